//! The rows of a data set as the trainer reads them: rendered, tokenised, in a resumable order.

use super::TrainError;
use crate::data::{Columns, Row, RowOrder, RowPlace};
use crate::reward::RewardInput;
use crate::text::PromptRenderer;
use serde_json::Value;
use std::fmt;

/// A prompt, ready to be run.
#[derive(Debug, Clone)]
pub struct PreparedPrompt {
    /// Number of the row in its file; names the prompt in the randomness.
    pub row: u64,
    /// Where the row stands, for messages.
    pub place: RowPlace,
    pub text: String,
    pub ids: Vec<u32>,
    /// The messages behind the text; `None` of plain text.
    pub messages: Option<Vec<Value>>,
    pub columns: Columns,
}

impl PreparedPrompt {
    /// A completion of this prompt as rewards see it.
    #[must_use]
    pub fn reward_input<'a>(&'a self, completion: &'a str, completion_ids: &'a [u32]) -> RewardInput<'a> {
        let Self { text, messages, columns, place, .. } = self;
        let line = place.number();
        RewardInput { prompt: text, messages: messages.as_deref(), completion, completion_ids, columns, line }
    }
}

/// The prompts of a file, those that are too long left out.
#[derive(Debug, Clone)]
pub struct PreparedPrompts {
    pub prompts: Vec<PreparedPrompt>,
    /// Rows whose prompt is longer than the limit.
    pub left_out: Vec<LeftOut>,
}

/// A row that a run does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub place: RowPlace,
    pub why: Misfit,
}

/// Why a row is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// The prompt is longer than it may be.
    Prompt { tokens: usize, limit: usize },
    /// A completion is longer than it may be.
    Completion { tokens: usize, limit: usize },
    /// Prompt and completion together are longer than the model's context.
    Both { tokens: usize, limit: usize },
    /// There is no token to learn.
    NothingToLearn,
    /// No token stands before the first one that would be learned.
    NoPrompt,
    /// The completions of a pair are the same tokens.
    EqualPair,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt { tokens, limit } => write!(f, "the prompt has {tokens} tokens, and {limit} are allowed"),
            Self::Completion { tokens, limit } => {
                write!(f, "the completion has {tokens} tokens, and {limit} are allowed")
            }
            Self::Both { tokens, limit } => {
                write!(f, "prompt and completion have {tokens} tokens, and the model reads {limit}")
            }
            Self::NothingToLearn => f.write_str("there is no token to learn"),
            Self::NoPrompt => f.write_str("the prompt is empty"),
            Self::EqualPair => f.write_str("both completions are the same tokens"),
        }
    }
}

impl PreparedPrompts {
    /// Renders and tokenises every row.
    ///
    /// # Errors
    /// Fails where a row cannot be rendered.
    pub fn new(rows: Vec<Row>, renderer: &PromptRenderer, max_prompt_length: usize) -> Result<Self, TrainError> {
        let mut prompts = Vec::with_capacity(rows.len());
        let mut left_out = Vec::new();
        for Row { index, place, prompt, columns } in rows {
            let rendered = match renderer.render(&prompt) {
                Ok(rendered) => rendered,
                Err(error) => return Err(TrainError::Row { place: place.into(), source: Box::new(error) }),
            };
            if rendered.ids.len() > max_prompt_length {
                let why = Misfit::Prompt { tokens: rendered.ids.len(), limit: max_prompt_length };
                left_out.push(LeftOut { place, why });
                continue;
            }
            let (text, ids, messages) = (rendered.text, rendered.ids, rendered.messages);
            prompts.push(PreparedPrompt { row: index, place, text, ids, messages, columns });
        }
        Ok(Self { prompts, left_out })
    }
}

/// Takes the next `count` rows after `drawn` of a data set of `order`'s size.
pub(super) fn draw(order: &mut RowOrder, drawn: u64, count: usize) -> Vec<usize> {
    (0..count as u64).map(|i| order.row_at(drawn + i)).collect()
}
