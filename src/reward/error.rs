//! What can go wrong with rewards.

use std::io;

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
    #[error("the reward `{reward}` gave {given} scores for {wanted} completions")]
    ScoreCount { reward: String, given: usize, wanted: usize },
    #[error("the program `{program}` of the reward `{reward}` cannot be run: {}", cannot(source))]
    CannotRun { reward: String, program: String, source: io::Error },
    #[error("the program of the reward `{reward}` {trouble}")]
    Program { reward: String, trouble: Box<ProgramTrouble> },
    #[error("the reward `{reward}` needs a key, and the environment variable {variable} has none")]
    NoKey { reward: String, variable: String },
    /// `tries`: how often it was asked.
    #[error("the judge of the reward `{reward}` at {url} gave no answer{}: {reason}", after(*tries))]
    Judge { reward: String, url: String, tries: usize, status: Option<u16>, reason: String },
    /// `reply`: how it begins.
    #[error("the judge of the reward `{reward}` gave no score for a completion of line {line}: {reply:?}")]
    NoVerdict { reward: String, line: usize, reply: String },
}

/// What a reward's program did wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramTrouble {
    /// `ending`: how it ended; `last_words`: the last line on its stderr.
    #[error("{ending} after {answered} of {wanted} scores{}{}", restarted(*restarts), said(last_words))]
    Ended { ending: String, answered: usize, wanted: usize, restarts: usize, last_words: String },
    #[error("gave {answered} of {wanted} scores within {secs} seconds")]
    Late { secs: f64, answered: usize, wanted: usize },
    /// `reply`: how it begins.
    #[error("answered {reply:?}: {reason}")]
    Reply { reply: String, reason: String },
}

fn cannot(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => "there is no such program".to_owned(),
        io::ErrorKind::PermissionDenied => "it may not be executed".to_owned(),
        _ => source.to_string(),
    }
}

fn after(tries: usize) -> String {
    if tries > 1 { format!(" after {tries} tries") } else { String::new() }
}

fn restarted(restarts: usize) -> String {
    match restarts {
        0 => String::new(),
        1 => ", started again once".to_owned(),
        more => format!(", started again {more} times"),
    }
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!("; the last on its stderr: {last_words}") }
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
            Self::ScoreCount { .. } => "Return one score for each of the inputs, None for `no score`",
            Self::CannotRun { source, .. } => cannot_run_hint(source),
            Self::Program { trouble, .. } => trouble.hint(),
            Self::NoKey { .. } => {
                "Export the variable with the key of the service, or leave out `api_key_env` where it needs none"
            }
            Self::Judge { status, .. } => judge_hint(*status),
            Self::NoVerdict { .. } => {
                "Let `prompt_template` ask for the form that `score_pattern` or `score_key` reads; with `on_failure = \
                 \"none\"` such a completion gets no score. A run has saved its state: --resume auto goes on"
            }
            Self::Failed { .. } => return None,
        };
        Some(hint.to_string())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::BadRow { .. } => Exit::Data,
            Self::NonFinite { .. } | Self::NonFiniteTotal { .. } | Self::NonFiniteToken { .. } => Exit::NonFinite,
            Self::Failed { .. }
            | Self::TokenCount { .. }
            | Self::ScoreCount { .. }
            | Self::Program { .. }
            | Self::Memory { .. } => Exit::Failed,
            Self::Vocabulary { .. } | Self::NoTemplate { .. } => Exit::Model,
            Self::Model { reason, .. } => reason.exit(),
            Self::Pattern { .. } | Self::CannotRun { .. } | Self::NoKey { .. } => Exit::Usage,
            Self::Judge { .. } | Self::NoVerdict { .. } => Exit::Remote,
        }
    }
}

fn cannot_run_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "`command` is a list of the program and its arguments; a path counts from the folder that candlewick is \
             called in, a name without a slash is looked for in PATH"
        }
        _ => {
            "Make it executable (chmod +x) with a first line such as #!/usr/bin/env python3, or put its interpreter \
             first: command = [\"python3\", \"grade.py\"]"
        }
    }
}

impl ProgramTrouble {
    fn hint(&self) -> &'static str {
        match self {
            Self::Ended { .. } => {
                "Its messages are in the log above. It must go on reading until its input ends. A run \
                 has saved its state: --resume auto goes on"
            }
            Self::Late { .. } => {
                "It must write a line for each completion and flush it (print(..., flush=True) in Python); raise \
                 `timeout_secs` if it needs longer. A run has saved its state: --resume auto goes on"
            }
            Self::Reply { .. } => {
                "Each line on its stdout must be an object such as {\"id\":0,\"score\":1.0}; messages belong on \
                 stderr. A run has saved its state: --resume auto goes on"
            }
        }
    }
}

fn judge_hint(status: Option<u16>) -> &'static str {
    match status {
        Some(401 | 403) => "Check the key in the variable that `api_key_env` names, and what it is allowed",
        Some(300..=399 | 404 | 405) => {
            "Check `base_url`, to which /chat/completions is added (it often ends in /v1), and `judge_model`"
        }
        Some(429) => "Lower `concurrency` or raise `max_retries`. A run has saved its state: --resume auto goes on",
        Some(400..=499) => "Check `judge_model` and `prompt_template` against what the service accepts",
        _ => {
            "Check that the service runs at `base_url` and, with https, that its certificate is trusted here; raise \
             `timeout_secs` or lower `concurrency` if it is slow. A run has saved its state: --resume auto goes on"
        }
    }
}
