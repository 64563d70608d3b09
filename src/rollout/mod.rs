//! From prompts to completions: many sequences decode together, each with a cache slot of its own.
//!
//! [`engine`] runs the model and hands slots to waiting completions; [`sampler`] turns a row of logits into a token.
//! A completion depends on the weights, the seed, the step, its prompt and its index, and on nothing else: not on the
//! number of slots, the number of threads or the order of the prompts. The log-probs kept here are the trainer's.
//! Rewards, and what is learned from a completion, are elsewhere.

pub mod engine;
#[cfg(all(test, any(emulation, feature = "cuda")))]
mod gpu_tests;
pub mod sampler;

pub use engine::{CacheShape, Engine, Observer, RolloutProgress, RolloutStats, Sampled};
pub use sampler::{SamplingConfig, sample_token};

use crate::device;
use crate::error::{Diagnose, Exit};
use crate::text::{FinishReason, TextError};

/// A prompt and how many completions of it are wanted.
#[derive(Debug, Clone)]
pub struct RolloutRequest {
    /// The prompt's tokens, at least one.
    pub prompt_ids: Vec<u32>,
    /// Names the prompt in the randomness: its row in the data file.
    pub prompt: u64,
    /// Index of the first completion; above 0 where a prompt stands in a batch a second time.
    pub first_completion: u64,
    /// Completions that are wanted.
    pub num_generations: usize,
}

/// A sampled continuation of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The tokens, the end-of-sequence token included where one was sampled.
    pub ids: Vec<u32>, // [C]
    /// Log-prob of each token as the sampler saw it: of the whole distribution at the sampling temperature, nats.
    pub sampling_logprobs: Vec<f32>, // [C]
    /// Whether the model ended it or the length limit did.
    pub finish_reason: FinishReason,
}

/// The completions of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutGroup {
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// Its completions, in the order of their numbers.
    pub completions: Vec<Completion>,
}

/// Why prompts could not be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RolloutError {
    /// A prompt leaves no room for a completion.
    #[error("prompt {prompt} has {tokens} tokens, and the model's context is {context}")]
    PromptTooLong { prompt: u64, tokens: usize, context: usize },
    /// A prompt without a token: there is nothing to continue.
    #[error("prompt {prompt} has no tokens")]
    EmptyPrompt { prompt: u64 },
    /// A prompt holds a token that the model does not have.
    #[error("prompt {prompt} holds token {id}, and the model's vocabulary has {vocab_size} tokens")]
    UnknownToken { prompt: u64, id: u32, vocab_size: usize },
    /// The model's output is not a number.
    #[error("the model's output for prompt {prompt} is not finite")]
    NonFinite { prompt: u64 },
    /// A completion could not be decoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Diagnose for RolloutError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::PromptTooLong { .. } => {
                "Shorten the prompt; a run leaves such rows out where `max_prompt_length` is below the context."
            }
            Self::EmptyPrompt { .. } => "Give the row a prompt; a tokenizer without a BOS token maps \"\" to nothing.",
            Self::UnknownToken { .. } => "The tokenizer and the model do not belong together: check the model folder.",
            Self::NonFinite { .. } => {
                "The weights are damaged or have diverged: check the model folder, or lower `learning_rate`."
            }
            Self::Text(error) => return error.hint(),
            Self::Tensor(error) => {
                return device::hint(
                    error,
                    "Halve `rollout_slots` (`--slots`) as often as it takes: no completion changes.",
                );
            }
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::PromptTooLong { .. } | Self::EmptyPrompt { .. } => Exit::Data,
            Self::UnknownToken { .. } => Exit::Model,
            Self::NonFinite { .. } => Exit::NonFinite,
            Self::Text(error) => error.exit(),
            Self::Tensor(_) => Exit::Failed,
        }
    }
}
