//! What can go wrong with a tokenizer, a chat template or a prompt.

use std::path::PathBuf;

use crate::error::{Diagnose, Exit};
use crate::io::IoError;

/// An error of the `text` area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{folder} has no tokenizer.json")]
    NoTokenizer { folder: PathBuf },
    #[error("{path} is not a tokenizer that the `tokenizers` library reads: {reason}")]
    BadTokenizer { path: PathBuf, reason: String },
    #[error("{path}:{line}:{column}: not the JSON that is needed: {reason}")]
    BadJson { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("{path}: `{key}` must be {expected}, but it is {got}")]
    BadField { path: PathBuf, key: String, expected: &'static str, got: String },
    #[error("{path}: {key} is `{token}`, a token that tokenizer.json does not have")]
    UnknownSpecialToken { path: PathBuf, key: String, token: String },
    #[error("cannot tokenise the text starting with `{excerpt}`: {reason}")]
    Encode { excerpt: String, reason: String },
    #[error("cannot decode {count} token ids: {reason}")]
    Decode { count: usize, reason: String },
    #[error("the chat template {template} does not parse{}: {reason}", at_line(*line))]
    TemplateSyntax { template: String, line: Option<usize>, reason: String },
    #[error("the chat template {template} failed{}: {reason}", at_line(*line))]
    TemplateRender { template: String, line: Option<usize>, reason: String },
    #[error("the chat template {template} rejects these messages: {reason}")]
    TemplateRaised { template: String, reason: String },
    #[error("the chat template {template} ran for more than {fuel} instructions and was stopped")]
    TemplateFuel { template: String, fuel: u64 },
    #[error("the prompt is a conversation, but the model folder has no chat template")]
    NoChatTemplate,
    #[error("the prompt `{excerpt}` has no tokens")]
    EmptyPrompt { excerpt: String },
    #[error("the chat template {template} does not keep the prompt as a prefix once the completion follows it")]
    PromptNotPrefix { template: String },
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" at its line {line}"))
}

impl Diagnose for TextError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTokenizer { .. } => {
                "Use a model folder with a tokenizer.json; \
                 AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one"
            }
            Self::NoChatTemplate => {
                "Set `chat_template` to a Jinja file, or give plain text prompts and no system prompt"
            }
            Self::TemplateRaised { .. } => "Change the roles or the order of the messages in the data",
            Self::TemplateSyntax { .. } | Self::TemplateRender { .. } | Self::TemplateFuel { .. } => {
                "Set `chat_template` to a corrected Jinja file"
            }
            Self::EmptyPrompt { .. } => "Give a prompt with text that the tokenizer knows, or remove the row",
            Self::UnknownSpecialToken { .. } => {
                "Save the tokenizer again with transformers, so that tokenizer.json has every special token"
            }
            Self::PromptNotPrefix { .. } => {
                "Use rows with `prompt` and `completion` strings for supervised fine-tuning"
            }
            Self::Io(error) => return error.hint(),
            _ => return None,
        };
        Some(hint.to_string())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            Self::NoTokenizer { .. }
            | Self::BadTokenizer { .. }
            | Self::BadJson { .. }
            | Self::BadField { .. }
            | Self::UnknownSpecialToken { .. }
            | Self::TemplateSyntax { .. }
            | Self::TemplateFuel { .. }
            | Self::Decode { .. } => Exit::Model,
            Self::NoChatTemplate => Exit::Usage,
            _ => Exit::Data,
        }
    }
}

/// The first 60 characters of a text, with line breaks and control characters escaped, for messages.
pub(crate) fn excerpt(text: &str) -> String {
    const LIMIT: usize = 60;
    let mut short = String::new();
    for c in text.chars().take(LIMIT) {
        match c {
            '\n' => short.push_str("\\n"),
            '\t' => short.push_str("\\t"),
            '\r' => short.push_str("\\r"),
            c if c.is_control() => short.extend(c.escape_unicode()),
            c => short.push(c),
        }
    }
    if text.chars().nth(LIMIT).is_some() {
        short.push('…');
    }
    short
}
