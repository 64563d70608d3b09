//! Reading the expected answer of a row, with the reason where there is none.

use super::RewardInput;
use super::error::RewardError;
use super::last_integer::extract_last_integer;
use crate::data::Columns;

/// The answer column of a row as text.
pub(super) fn answer_text<'a>(columns: &'a Columns, column: &str) -> Result<&'a str, String> {
    columns.text(column).ok_or_else(|| {
        if columns.names().any(|name| name == column) {
            return format!("its column `{column}` is empty");
        }
        let present: Vec<_> = columns.names().collect();
        let present = if present.is_empty() { "nothing but the prompt".to_owned() } else { present.join(", ") };
        format!("it has no column `{column}` (it has: {present})")
    })
}

/// The integer that the answer column ends in, in canonical form.
pub(super) fn answer_integer(columns: &Columns, column: &str) -> Result<String, String> {
    let answer = answer_text(columns, column)?;
    extract_last_integer(answer)
        .ok_or_else(|| format!("`{column}` does not end in an integer: `{}`", crate::text::excerpt(answer)))
}

/// The error of a reward that cannot score a completion, for `map_err`.
pub(super) fn failed(reward: &str, input: &RewardInput<'_>) -> impl FnOnce(String) -> RewardError {
    let (reward, line) = (reward.to_owned(), input.line);
    move |reason| RewardError::Failed { reward, line, reason }
}
