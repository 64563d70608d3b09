//! What can go wrong with rewards.

use crate::data::RowPlace;
use crate::error::{Diagnose, Exit};

/// An error of the `reward` area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewardError {
    #[error("{place}: the reward `{reward}` cannot use this row: {reason}")]
    BadRow { place: Box<RowPlace>, reward: String, reason: String },
    /// `completion`: how it begins.
    #[error("the reward `{reward}` gave {score} for a completion of line {line}: {completion:?}")]
    NonFinite { reward: String, line: usize, score: f64, completion: String },
    #[error("the weighted sum of the rewards is {total} for a completion of line {line}: {completion:?}")]
    NonFiniteTotal { line: usize, total: f64, completion: String },
    #[error("the reward `{reward}` failed on a completion of line {line}: {reason}")]
    Failed { reward: String, line: usize, reason: String },
    #[error("the reward `{reward}` gave {score} for token {token} of a completion of line {line}")]
    NonFiniteToken { reward: String, line: usize, token: usize, score: f64 },
    #[error(
        "the reward `{reward}` gave {given} token {what} for a completion of line {line}, which has {tokens} tokens"
    )]
    TokenCount { reward: String, line: usize, what: &'static str, given: usize, tokens: usize },
    #[error("the reward model {model} cannot be used: {reason}")]
    Model { model: String, reason: Box<dyn Diagnose> },
    #[error(
        "the reward model {model} cannot be used: its tokenizer has {tokenizer} tokens and its embedding only {rows}"
    )]
    Vocabulary { model: String, tokenizer: usize, rows: usize },
    #[error("the reward model {model} has no chat template, and the prompt of line {line} is a conversation")]
    NoTemplate { model: String, line: usize },
    #[error("the reward model {model} does not fit beside the model that is trained: {reason}")]
    Memory { model: String, reason: String },
    #[error("the pattern `{pattern}` of the reward `{reward}` is no regular expression: {reason}")]
    Pattern { reward: String, pattern: String, reason: String },
}

impl Diagnose for RewardError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadRow { .. } => "Correct the row, or set `answer_column` to the column that has the answer",
            Self::NonFinite { .. } => "A score must be a finite number; a reward may also answer None for `no score`",
            Self::NonFiniteToken { .. } => "A token's score must be a finite number, or None for `no score`",
            Self::NonFiniteTotal { .. } => "Use smaller weights",
            Self::TokenCount { .. } => "Give one entry for each of `completion_ids`, or an empty list",
            Self::Pattern { .. } => "The syntax is that of https://docs.rs/regex: no look-around, no back-references",
            Self::Vocabulary { .. } => "Take tokenizer and weights from the same model",
            Self::NoTemplate { .. } => "Add a chat_template.jinja to its folder: the one that it was trained with",
            Self::Memory { .. } => "Take a smaller reward model, or a device with more memory",
            Self::Model { reason, .. } => return reason.hint(),
            Self::Failed { .. } => return None,
        };
        Some(hint.to_string())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::BadRow { .. } => Exit::Data,
            Self::NonFinite { .. } | Self::NonFiniteTotal { .. } | Self::NonFiniteToken { .. } => Exit::NonFinite,
            Self::Failed { .. } | Self::TokenCount { .. } | Self::Memory { .. } => Exit::Failed,
            Self::Vocabulary { .. } | Self::NoTemplate { .. } => Exit::Model,
            Self::Model { reason, .. } => reason.exit(),
            Self::Pattern { .. } => Exit::Usage,
        }
    }
}
