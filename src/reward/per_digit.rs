//! The share of characters that stand where the answer has them.

use super::answer::{answer_text, failed};
use super::error::RewardError;
use super::{Reward, RewardInput};
use crate::data::Columns;

/// Characters of the completion that equal the answer's at the same place, counted from the start, over the length of
/// the longer of the two. White space at both ends is left out. From 0 to 1; two empty texts are equal: 1.
///
/// ```
/// use candlewick::reward::compute_per_digit;
/// assert_eq!(compute_per_digit("1243", "1234"), 0.5);
/// assert_eq!(compute_per_digit("12345678", "1234"), 0.5);
/// ```
#[must_use]
pub fn compute_per_digit(completion: &str, answer: &str) -> f64 {
    let (completion, answer) = (completion.trim(), answer.trim());
    let longest = completion.chars().count().max(answer.chars().count());
    if longest == 0 {
        return 1.0;
    }
    let equal = completion.chars().zip(answer.chars()).filter(|(a, b)| a == b).count();
    equal as f64 / longest as f64
}

/// The reward `per_digit`: [`compute_per_digit`] of completion and answer column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerDigit {
    /// Column with the answer: a string, or any other JSON value as the file has it. Default `answer`.
    pub answer_column: String,
}

impl Default for PerDigit {
    fn default() -> Self {
        Self { answer_column: "answer".to_string() }
    }
}

impl Reward for PerDigit {
    fn name(&self) -> &'static str {
        "per_digit"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let answer = answer_text(input.columns, &self.answer_column).map_err(failed(self.name(), input))?;
        Ok(Some(compute_per_digit(input.completion, answer)))
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        answer_text(columns, &self.answer_column).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::scores;
    use super::*;

    #[test]
    fn places_count_from_the_start_and_the_longer_text_divides() {
        let completions = ["1234", " 1234 ", "1243", "123", "12345", "4321", "", "x1234", "１234"];
        let expected = [1.0, 1.0, 0.5, 0.75, 0.8, 0.0, 0.0, 0.0, 0.75];
        assert_eq!(scores(&PerDigit::default(), "1234", &completions), expected);
        assert_eq!(scores(&PerDigit::default(), " ", &["", "1"]), [1.0, 0.0]);
        assert_eq!(scores(&PerDigit::default(), "aé世", &["aé世界", "aê世"]), [0.75, 2.0 / 3.0]);
    }
}
