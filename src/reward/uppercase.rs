//! Shouting.

use super::error::RewardError;
use super::{Reward, RewardInput};

/// Uppercase letters over letters, by Unicode: from 0 to 1, and 0 where there are no letters. A letter without case,
/// such as a Chinese one, counts as a letter.
///
/// ```
/// use candlewick::reward::compute_uppercase_share;
/// assert_eq!(compute_uppercase_share("HI, there: 42!"), 2.0 / 7.0);
/// ```
#[must_use]
pub fn compute_uppercase_share(completion: &str) -> f64 {
    let letters = completion.chars().filter(|c| c.is_alphabetic()).count();
    let uppercase = completion.chars().filter(|c| c.is_uppercase() && c.is_alphabetic()).count();
    if letters == 0 { 0.0 } else { uppercase as f64 / letters as f64 }
}

/// The reward `uppercase`: [`compute_uppercase_share`] of the completion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uppercase;

impl Reward for Uppercase {
    fn name(&self) -> &'static str {
        "uppercase"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some(compute_uppercase_share(input.completion)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::scores;
    use super::*;

    #[test]
    fn only_letters_count() {
        let completions = ["LOUD", "Loud", "quiet", "A-1!b", "ÄÖü世", "123 !", ""];
        assert_eq!(scores(&Uppercase, "", &completions), [1.0, 0.25, 0.0, 0.5, 0.5, 0.0, 0.0]);
    }
}
