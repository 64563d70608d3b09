//! The text that a judge is asked, with the places that each completion fills.

use super::super::RewardInput;
use crate::data::Columns;

/// A text with placeholders in braces: `{prompt}`, `{completion}`, and `{name}` for any column of the row. A name is of
/// letters, digits, `_`, `-` and `.`; braces around anything else stay as they are, and what is filled in is not
/// looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Prompt,
    Completion,
    Column(String),
}

impl Template {
    pub fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let (mut plain, mut rest) = (String::new(), text);
        while let Some(open) = rest.find('{') {
            let (before, after) = (&rest[..open], &rest[open + 1..]);
            plain.push_str(before);
            match after.find('}').map(|close| (&after[..close], &after[close + 1..])) {
                Some((name, behind)) if is_name(name) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(match name {
                        "prompt" => Part::Prompt,
                        "completion" => Part::Completion,
                        column => Part::Column(column.to_owned()),
                    });
                    rest = behind;
                }
                _ => {
                    plain.push('{');
                    rest = after;
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Self { parts }
    }

    /// Whether the completion stands in it.
    pub fn has_completion(&self) -> bool {
        self.parts.contains(&Part::Completion)
    }

    /// The first of its columns that a row does not have.
    pub fn missing_column(&self, columns: &Columns) -> Option<&str> {
        self.parts.iter().find_map(|part| match part {
            Part::Column(name) if columns.text(name).is_none() => Some(name.as_str()),
            _ => None,
        })
    }

    /// The text for one completion; a column that is missing is left out.
    pub fn fill(&self, input: &RewardInput<'_>) -> String {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text,
            Part::Prompt => input.prompt,
            Part::Completion => input.completion,
            Part::Column(name) => input.columns.text(name).unwrap_or_default(),
        });
        texts.collect()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::input;
    use super::*;

    #[test]
    fn names_in_braces_are_filled_in_and_other_braces_stay() {
        let columns = Columns::from_iter([("answer", "{prompt}"), ("level", "3")]);
        let input = RewardInput { prompt: "P", ..input("C {level}", &[], &columns) };
        let fill = |text: &str| Template::parse(text).fill(&input);
        assert_eq!(fill("{prompt}|{completion}|{answer}"), "P|C {level}|{prompt}");
        assert_eq!(
            fill("{\"score\": {level}} {} { prompt } {{level}} {level"),
            "{\"score\": 3} {} { prompt } {3} {level"
        );
        assert_eq!(fill(""), "");
        assert_eq!(fill("é{level}é"), "é3é");
    }

    #[test]
    fn columns_that_a_row_lacks_are_told() {
        let columns = Columns::from_iter([("answer", "1")]);
        assert_eq!(Template::parse("{prompt}{answer}").missing_column(&columns), None);
        assert_eq!(Template::parse("{answer} {solution} {x}").missing_column(&columns), Some("solution"));
        assert!(Template::parse("{completion}").has_completion());
        assert!(!Template::parse("{complétion}{prompt}").has_completion());
    }
}
