//! How often a letter occurs.

use super::error::RewardError;
use super::{Reward, RewardInput};

/// The reward `letter_count`: how often a letter occurs in the completion, or its share of all characters.
///
/// ```
/// use candlewick::reward::LetterCount;
/// assert_eq!(LetterCount { letter: 'e', normalize: false }.compute("eleven E"), 3.0);
/// assert_eq!(LetterCount { letter: 'e', normalize: true }.compute("eleven E"), 0.375);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LetterCount {
    /// The character that is counted; `e` is not `E`.
    pub letter: char,
    /// Divide the count by the number of characters, white space included; 0 for an empty completion.
    pub normalize: bool,
}

impl LetterCount {
    /// The score of a text: a count, or from 0 to 1 with `normalize`.
    #[must_use]
    pub fn compute(&self, completion: &str) -> f64 {
        let count = completion.chars().filter(|c| *c == self.letter).count() as f64;
        if self.normalize { count / completion.chars().count().max(1) as f64 } else { count }
    }
}

impl Reward for LetterCount {
    fn name(&self) -> &'static str {
        "letter_count"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some(self.compute(input.completion)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::scores;
    use super::*;

    #[test]
    fn it_counts_or_divides_by_all_characters() {
        let completions = ["eee", "tree house", "E", "", "ée"];
        let count = LetterCount { letter: 'e', normalize: false };
        assert_eq!(scores(&count, "", &completions), [3.0, 3.0, 0.0, 0.0, 1.0]);
        let share = LetterCount { letter: 'e', normalize: true };
        assert_eq!(scores(&share, "", &completions), [1.0, 0.3, 0.0, 0.0, 0.5]);
    }
}
