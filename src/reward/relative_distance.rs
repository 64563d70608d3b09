//! How near the integer of a completion is to that of the answer.

use super::answer::{answer_integer, failed};
use super::error::RewardError;
use super::last_integer::extract_last_integer;
use super::{Reward, RewardInput};
use crate::data::Columns;

/// `1 - |x - y| / max(|x|, |y|)` of the integers that two texts end in, read by the rules of `last_integer`: 1 where
/// they are equal, above 0 where they have the same sign, below 0 down to -1 where they have not. 0 where a text ends
/// in no integer. The size of the numbers does not matter.
///
/// ```
/// use candlewick::reward::compute_relative_distance;
/// assert_eq!(compute_relative_distance("It is 15.", "20"), 0.75);
/// assert_eq!(compute_relative_distance("I do not know", "20"), 0.0);
/// ```
#[must_use]
pub fn compute_relative_distance(completion: &str, answer: &str) -> f64 {
    match (extract_last_integer(completion), extract_last_integer(answer)) {
        (Some(x), Some(y)) => closeness(&x, &y),
        _ => 0.0,
    }
}

/// The formula for two integers in canonical form.
fn closeness(x: &str, y: &str) -> f64 {
    if x == y {
        return 1.0;
    }
    // Both are divided by one power of ten, so that the larger lies between 0.1 and 1 and nothing overflows.
    let digits = |integer: &str| integer.trim_start_matches('-').len();
    let places = digits(x).max(digits(y));
    let (x, y) = (scale_down(x, places), scale_down(y, places));
    let largest = x.abs().max(y.abs());
    if largest > 0.0 { 1.0 - (x - y).abs() / largest } else { 1.0 }
}

/// `integer / 10^places`, where the integer has at most so many digits. The digits that a float cannot hold are left
/// out.
fn scale_down(integer: &str, places: usize) -> f64 {
    const KEPT: usize = 40;
    let digits = integer.trim_start_matches('-');
    let zeros = places - digits.len();
    if zeros > 400 {
        return 0.0;
    }
    let fraction = format!("0.{}{}", "0".repeat(zeros), &digits[..digits.len().min(KEPT)]);
    let size: f64 = fraction.parse().unwrap_or(0.0);
    if integer.starts_with('-') { -size } else { size }
}

/// The reward `relative_distance`: [`compute_relative_distance`] of completion and answer column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativeDistance {
    /// Column with the answer, a JSON string or number that ends in an integer. Default `answer`.
    pub answer_column: String,
}

impl Default for RelativeDistance {
    fn default() -> Self {
        Self { answer_column: "answer".to_string() }
    }
}

impl Reward for RelativeDistance {
    fn name(&self) -> &'static str {
        "relative_distance"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let answer = answer_integer(input.columns, &self.answer_column).map_err(failed(self.name(), input))?;
        Ok(Some(extract_last_integer(input.completion).map_or(0.0, |integer| closeness(&integer, &answer))))
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        answer_integer(columns, &self.answer_column).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::scores;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        let reward = RelativeDistance::default();
        let completions = ["20", "15", "so 25", "0", "-20", "-10", "2000", "", "no number", "1.5"];
        let expected = [1.0, 0.75, 0.8, 0.0, -1.0, -0.5, 0.01, 0.0, 0.0, 0.0];
        for (got, expected) in scores(&reward, "20", &completions).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{got}, not {expected}");
        }
        assert_eq!(scores(&reward, "0", &["0", "-0", "7"]), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn numbers_beyond_any_float_are_compared() {
        let reward = RelativeDistance::default();
        let million = |first: &str| format!("{first}{}", "0".repeat(1_000_000));
        let half = scores(&reward, &million("4"), &[&million("2"), &million("-4"), &million("4"), "7"]);
        assert_eq!(half, [0.5, -1.0, 1.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// For integers that floats hold exactly, the formula is the plain one.
        #[test]
        fn it_is_the_formula(x in -1_000_000i64..1_000_000, y in -1_000_000i64..1_000_000) {
            let largest = x.abs().max(y.abs()) as f64;
            let expected = if x == y { 1.0 } else { 1.0 - (x - y).abs() as f64 / largest };
            let got = compute_relative_distance(&x.to_string(), &y.to_string());
            prop_assert!((got - expected).abs() < 1e-12, "{} instead of {}", got, expected);
        }

        #[test]
        fn it_stays_within_its_bounds(x in "-?[0-9]{1,400}", y in "-?[0-9]{1,400}") {
            let got = compute_relative_distance(&x, &y);
            prop_assert!((-1.0..=1.0).contains(&got), "{}", got);
        }
    }
}
