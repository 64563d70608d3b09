//! The whole completion against the answer.

use super::answer::{answer_text, failed};
use super::error::RewardError;
use super::{Reward, RewardInput};
use crate::data::Columns;

/// Whether a completion is the answer, white space at both ends aside.
///
/// ```
/// use candlewick::reward::is_exact_match;
/// assert!(is_exact_match(" 19\n", "19"));
/// assert!(!is_exact_match("019", "19"));
/// ```
#[must_use]
pub fn is_exact_match(completion: &str, answer: &str) -> bool {
    completion.trim() == answer.trim()
}

/// The reward `exact_match`: `correct_reward` where the completion is the text of the answer column, `wrong_reward`
/// everywhere else. See [`is_exact_match`].
#[derive(Debug, Clone, PartialEq)]
pub struct ExactMatch {
    /// Column with the answer: a string, or any other JSON value as the file has it. Default `answer`.
    pub answer_column: String,
    /// Default 1.0.
    pub correct_reward: f64,
    /// Default 0.0.
    pub wrong_reward: f64,
}

impl Default for ExactMatch {
    fn default() -> Self {
        Self { answer_column: "answer".to_string(), correct_reward: 1.0, wrong_reward: 0.0 }
    }
}

impl Reward for ExactMatch {
    fn name(&self) -> &'static str {
        "exact_match"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let answer = answer_text(input.columns, &self.answer_column).map_err(failed(self.name(), input))?;
        let is_correct = is_exact_match(input.completion, answer);
        Ok(Some(if is_correct { self.correct_reward } else { self.wrong_reward }))
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        answer_text(columns, &self.answer_column).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{input, scores};
    use super::*;

    #[test]
    fn only_the_whole_answer_is_right() {
        let reward = ExactMatch { correct_reward: 2.0, wrong_reward: -1.0, ..ExactMatch::default() };
        let completions = ["19", " 19\n", "019", "19.", "is 19", "", "１９"];
        let expected = [2.0, 2.0, -1.0, -1.0, -1.0, -1.0, -1.0];
        assert_eq!(scores(&reward, "19", &completions), expected);
        assert_eq!(scores(&reward, " two\twords ", &["two\twords", "two words"]), [2.0, -1.0]);
    }

    #[test]
    fn a_row_without_the_column_is_told() {
        let columns = Columns::from_iter([("result", "19")]);
        let reason = "it has no column `answer` (it has: result)";
        assert_eq!(ExactMatch::default().check_row(&columns).unwrap_err(), reason);
        let error = ExactMatch::default().score(&input("19", &[], &columns)).unwrap_err();
        assert_eq!(error.to_string(), format!("the reward `exact_match` failed on a completion of line 1: {reason}"));
    }
}
