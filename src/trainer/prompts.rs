//! The rows of a data set as the trainer reads them: rendered, tokenised, in a resumable order.

use super::TrainError;
use crate::data::{Columns, Row, RowOrder};
use crate::text::PromptRenderer;
use serde_json::Value;
use std::path::Path;

/// A prompt, ready to be run.
#[derive(Debug, Clone)]
pub struct PreparedPrompt {
    /// Number of the row in its file; names the prompt in the randomness.
    pub row: u64,
    /// Line in the file, for messages.
    pub line: usize,
    pub text: String,
    pub ids: Vec<u32>,
    /// The messages behind the text; `None` of plain text.
    pub messages: Option<Vec<Value>>,
    pub columns: Columns,
}

/// The prompts of a file, those that are too long left out.
#[derive(Debug, Clone)]
pub struct PreparedPrompts {
    pub prompts: Vec<PreparedPrompt>,
    /// Rows left out because their prompt is longer than the limit.
    pub too_long: usize,
}

impl PreparedPrompts {
    /// Renders and tokenises every row of the file `path`.
    ///
    /// # Errors
    /// Fails where a row cannot be rendered.
    pub fn new(
        path: &Path,
        rows: Vec<Row>,
        renderer: &PromptRenderer,
        max_prompt_length: usize,
    ) -> Result<Self, TrainError> {
        let mut prompts = Vec::with_capacity(rows.len());
        let mut too_long = 0;
        for row in rows {
            let at_row = |error| TrainError::Row { path: path.to_owned(), line: row.line, source: Box::new(error) };
            let rendered = renderer.render(&row.prompt).map_err(at_row)?;
            if rendered.ids.len() > max_prompt_length {
                too_long += 1;
                continue;
            }
            let (text, ids, messages) = (rendered.text, rendered.ids, rendered.messages);
            prompts.push(PreparedPrompt { row: row.index, line: row.line, text, ids, messages, columns: row.columns });
        }
        Ok(Self { prompts, too_long })
    }
}

/// Takes the next `count` rows after `drawn` of a data set of `order`'s size.
pub(super) fn draw(order: &mut RowOrder, drawn: u64, count: usize) -> Vec<usize> {
    (0..count as u64).map(|i| order.row_at(drawn + i)).collect()
}
