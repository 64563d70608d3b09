//! Regular expressions: anywhere in a completion (`regex`), or over the whole of it (`format`).

use super::error::RewardError;
use super::{Reward, RewardInput};
use regex::Regex;

/// The pattern of `format` where none is set: digits, then the end of the text.
pub const DEFAULT_FORMAT: &str = "[0-9]+";

fn compile(reward: &str, pattern: &str) -> Result<Regex, RewardError> {
    Regex::new(pattern).map_err(|error| {
        // The last line says what is wrong; those before it show where.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        RewardError::Pattern { reward: reward.to_owned(), pattern: pattern.to_owned(), reason }
    })
}

/// The reward `regex`: `correct_reward` where the pattern matches anywhere in the completion, else `wrong_reward`.
///
/// The syntax is that of the `regex` crate: no look-around and no back-references, in exchange a search takes time
/// linear in the length of the completion.
#[derive(Debug, Clone)]
pub struct RegexReward {
    regex: Regex,
    /// Default 1.0.
    pub correct_reward: f64,
    /// Default 0.0.
    pub wrong_reward: f64,
}

impl RegexReward {
    /// Rewards 1 and 0.
    ///
    /// # Errors
    /// [`RewardError::Pattern`] where the pattern is no regular expression.
    pub fn new(pattern: &str) -> Result<Self, RewardError> {
        Ok(Self { regex: compile("regex", pattern)?, correct_reward: 1.0, wrong_reward: 0.0 })
    }
}

impl Reward for RegexReward {
    fn name(&self) -> &'static str {
        "regex"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let is_correct = self.regex.is_match(input.completion);
        Ok(Some(if is_correct { self.correct_reward } else { self.wrong_reward }))
    }
}

/// The reward `format`: `correct_reward` where the pattern matches the completion from its first character to its
/// last, else `wrong_reward`. White space is not left out.
#[derive(Debug, Clone)]
pub struct Format {
    regex: Regex,
    /// Default 1.0.
    pub correct_reward: f64,
    /// Default 0.0.
    pub wrong_reward: f64,
}

impl Format {
    /// Rewards 1 and 0.
    ///
    /// # Errors
    /// [`RewardError::Pattern`] where the pattern is no regular expression.
    pub fn new(pattern: &str) -> Result<Self, RewardError> {
        // Alone first: the message is about the pattern as it was written.
        compile("format", pattern)?;
        let regex = compile("format", &format!(r"\A(?:{pattern})\z"))?;
        Ok(Self { regex, correct_reward: 1.0, wrong_reward: 0.0 })
    }
}

impl Reward for Format {
    fn name(&self) -> &'static str {
        "format"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let is_correct = self.regex.is_match(input.completion);
        Ok(Some(if is_correct { self.correct_reward } else { self.wrong_reward }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::scores;
    use super::*;

    #[test]
    fn regex_matches_anywhere() {
        let reward = RegexReward { correct_reward: 2.0, wrong_reward: -1.0, ..RegexReward::new("<b>.*</b>").unwrap() };
        let completions = ["<b>1</b>", "so <b></b>!", "<b>1", "", "<b>\n</b>"];
        assert_eq!(scores(&reward, "", &completions), [2.0, 2.0, -1.0, -1.0, -1.0]);
    }

    #[test]
    fn format_is_about_the_whole_text() {
        let completions = ["42", "042", " 42", "42\n", "4 2", "-42", "42.", ""];
        let digits = Format::new(DEFAULT_FORMAT).unwrap();
        assert_eq!(scores(&digits, "", &completions), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        // Alternatives are one pattern, and lines do not end the text.
        assert_eq!(scores(&Format::new("a|ab").unwrap(), "", &["a", "ab", "abc", "b"]), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(scores(&Format::new("(?m)^a$").unwrap(), "", &["a", "a\nb"]), [1.0, 0.0]);
    }

    #[test]
    fn a_pattern_that_is_none_says_why() {
        let error = RegexReward::new("(a").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pattern `(a` of the reward `regex` is no regular expression: unclosed group"
        );
        let error = Format::new("a{99999}{99999}").unwrap_err().to_string();
        assert!(error.contains("of the reward `format`") && error.contains("size limit"), "{error}");
        // Not closed by what the whole-text match adds.
        assert!(Format::new("a)(?:b").is_err());
    }

    /// The engine does not backtrack: a pattern that explodes elsewhere is linear here.
    #[test]
    fn long_texts_take_linear_time() {
        let text = format!("{}!", "a".repeat(100_000));
        assert_eq!(scores(&Format::new("(a*)*b").unwrap(), "", &[&text]), [0.0]);
    }
}
