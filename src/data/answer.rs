//! The answer of a row, taken out of a longer text: `#### 18` at the end of a solution.

use regex::Regex;

use super::error::Fault;
use super::row::Columns;
use crate::text::excerpt;

/// Where the answer stands and what of it counts.
#[derive(Debug, Clone)]
pub struct AnswerRule {
    /// The column of the file.
    pub column: String,
    /// The column that the rewards read.
    pub name: String,
    /// The part that counts: the one group of the pattern where it matches first. None: the whole column.
    pub pattern: Option<Regex>,
}

impl AnswerRule {
    /// Reads a pattern, which has exactly one group.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn pattern(text: &str) -> Result<Regex, String> {
        let pattern = Regex::new(text).map_err(|error| format!("is no regular expression: {error}"))?;
        match pattern.captures_len() - 1 {
            1 => Ok(pattern),
            0 => Err("has no group: put what is the answer in round brackets".to_owned()),
            n => Err(format!("has {n} groups: put only what is the answer in round brackets, write others as (?:...)")),
        }
    }

    /// Sets the answer among the columns of a row.
    pub(super) fn apply(&self, columns: &mut Columns) -> Result<(), Fault> {
        let Some(text) = columns.text(&self.column) else {
            let present: Vec<String> = columns.names().map(str::to_owned).collect();
            return Err(if present.contains(&self.column) {
                Fault::BadValue { place: self.column.clone(), reason: "the answer is null".to_owned() }
            } else {
                Fault::missing_column(&self.column, present)
            });
        };
        let group = |pattern: &Regex| {
            let group = pattern.captures(text)?.get(1)?;
            Some(group.as_str().trim().to_owned())
        };
        let answer = match &self.pattern {
            None => text.to_owned(),
            Some(pattern) => group(pattern).ok_or_else(|| {
                let reason = format!("`answer_regex` finds no answer in `{}`", excerpt(text));
                Fault::BadValue { place: self.column.clone(), reason }
            })?,
        };
        columns.set_text(&self.name, answer);
        Ok(())
    }
}

/// Two rules are the same if they read the same: a pattern is its text.
impl PartialEq for AnswerRule {
    fn eq(&self, other: &Self) -> bool {
        let text = |rule: &Self| rule.pattern.as_ref().map(|pattern| pattern.as_str().to_owned());
        (&self.column, &self.name, text(self)) == (&other.column, &other.name, text(other))
    }
}

impl Eq for AnswerRule {}
