//! Text on its way into and out of a model: tokenizer, chat template, prompt rendering, stop rules.
//!
//! Everything here works on strings and token ids; it knows neither models nor data files. A prompt goes
//! [`Prompt`] -> [`PromptRenderer`] -> ids; a completion goes ids -> [`TextStream`] / [`StopState`] -> text.
//! Completions are never tokenised again: the ids of the sampler are what is trained.

mod byte_level;
mod chat;
mod error;
mod nearest;
mod python;
mod render;
mod scored;
mod stop;
mod stream;
#[cfg(test)]
mod test_tokenizer;
mod tokenizer;

pub use byte_level::{END_OF_TEXT, TokenizerFiles, byte_level_tokenizer, bytes_of};
pub use chat::{ChatTemplate, RenderOptions, TemplateSource};
pub use error::TextError;
pub(crate) use error::excerpt;
pub(crate) use nearest::nearest;
pub use render::{Prompt, PromptRenderer, RenderedPrompt};
pub use scored::{ScoredRenderer, pad_id};
pub use stop::{FinishReason, StopRules, StopState};
pub use stream::TextStream;
pub use tokenizer::{SpecialTokens, Tokenizer, eos_set};
