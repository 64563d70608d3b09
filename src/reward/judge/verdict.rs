//! From a judge's reply to a score.

use super::super::error::RewardError;
use regex::Regex;
use serde_json::Value;

/// How the score is read in a reply.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The last match of a regular expression with one group, which holds the number.
    Pattern(Regex),
    /// The value of this key in the last JSON object of the reply that has it; text around the object, such as the
    /// fences of Markdown, is skipped.
    Key(String),
}

impl Verdict {
    /// The number in the group of `pattern`.
    ///
    /// # Errors
    /// `pattern` is no regular expression, or has not exactly one group.
    pub fn pattern(reward: &str, pattern: &str) -> Result<Self, RewardError> {
        let fault =
            |reason: String| RewardError::Pattern { reward: reward.to_owned(), pattern: pattern.to_owned(), reason };
        let regex = Regex::new(pattern).map_err(|error| fault(error.to_string()))?;
        match regex.captures_len() - 1 {
            1 => Ok(Self::Pattern(regex)),
            groups => Err(fault(format!("it has {groups} groups; the score is what its one group matches"))),
        }
    }

    /// The score of a reply; None where there is none, or it is no finite number.
    #[must_use]
    pub fn read(&self, reply: &str) -> Option<f64> {
        let score = match self {
            Self::Pattern(regex) => number(regex.captures_iter(reply).last()?.get(1)?.as_str()),
            Self::Key(key) => match last_object(reply, key)? {
                Value::Number(score) => score.as_f64(),
                Value::String(score) => number(&score),
                _ => None,
            },
        };
        score.filter(|score| score.is_finite())
    }
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// The value of `key` in the last JSON object that has it and lies in no other that was read.
fn last_object(text: &str, key: &str) -> Option<Value> {
    let (mut at, mut found) = (0, None);
    while let Some(open) = text[at..].find('{') {
        at += open;
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        if let Some(Ok(mut object)) = values.next() {
            found = object.get_mut(key).map(Value::take).or(found);
            at += values.byte_offset();
        } else {
            at += 1;
        }
    }
    found
}

/// The scale of a judge's scores, which becomes 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The score that becomes 0.
    pub min_score: f64,
    /// The score that becomes 1; above `min_score`.
    pub max_score: f64,
}

impl Scale {
    /// Where a score lies on the scale; None where it lies outside.
    #[must_use]
    pub fn apply(&self, score: f64) -> Option<f64> {
        let is_inside = (self.min_score..=self.max_score).contains(&score);
        is_inside.then(|| (score - self.min_score) / (self.max_score - self.min_score))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_the_last_match_is_the_score() {
        let verdict = Verdict::pattern("j", r"(?i)score:\s*(-?[0-9.]+)").unwrap();
        for (reply, score) in [
            ("Score: 7", Some(7.0)),
            ("score: 2, no: Score:\n-0.5", Some(-0.5)),
            ("seven", None),
            ("", None),
            ("Score: 1.2.3", None),
        ] {
            assert_eq!(verdict.read(reply), score, "{reply}");
        }
        assert_eq!(Verdict::pattern("j", "(.*)").unwrap().read("inf"), None);
        for (pattern, reason) in [("[0-9]+", "0 groups"), ("(a)(b)", "2 groups"), ("(", "unclosed")] {
            assert!(Verdict::pattern("j", pattern).unwrap_err().to_string().contains(reason), "{pattern}");
        }
        assert_eq!(Verdict::pattern("j", "a(?:b|c)([0-9])").unwrap().read("ac4"), Some(4.0));
    }

    #[test]
    fn the_key_is_found_in_fences_and_between_words() {
        let verdict = Verdict::Key("score".into());
        for (reply, score) in [
            (r#"{"score": 3}"#, Some(3.0)),
            ("```json\n{\n  \"reason\": \"{odd}\",\n  \"score\": 0.5\n}\n```", Some(0.5)),
            (r#"First {"score": 1}, then {"score": "2"} at last {"other": 3}."#, Some(2.0)),
            (r#"{broken {"score": 4}"#, Some(4.0)),
            (r#"{"a": {"score": 9}}"#, None),
            (r#"{"score": true}"#, None),
            (r#"{"score": null}"#, None),
            (r#"{"score": NaN}"#, None),
            ("{", None),
            ("no object", None),
        ] {
            assert_eq!(verdict.read(reply), score, "{reply}");
        }
    }

    #[test]
    fn a_scale_becomes_zero_to_one() {
        let scale = Scale { min_score: 1.0, max_score: 5.0 };
        assert_eq!(
            [0.9, 1.0, 2.0, 5.0, 5.1].map(|score| scale.apply(score)),
            [None, Some(0.0), Some(0.25), Some(1.0), None]
        );
    }
}
