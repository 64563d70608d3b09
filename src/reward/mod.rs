//! Rewards: from a completion and the columns of its row to a score.
//!
//! [`Reward`] is the seam that users extend; [`FnReward`] makes one of a closure, [`TokenFnReward`] one that speaks of
//! single tokens, [`CommandReward`] one of a program, [`Judge`] one of a service. [`WeightedRewards`] is what the
//! trainer and the evaluation call. Rewards see text and ids, never tensors; [`ModelReward`] runs a model of its own.

mod answer;
mod closure;
mod command;
mod error;
mod exact_match;
mod judge;
mod last_integer;
mod length;
mod letter_count;
mod model;
mod per_digit;
mod regex;
mod relative_distance;
mod repetition_penalty;
#[cfg(test)]
mod testing;
mod uppercase;
mod weighted;

use crate::data::Columns;
use crate::device::Compute;
use rayon::prelude::*;
use serde_json::Value;
use std::sync::Arc;

pub use self::regex::{DEFAULT_FORMAT, Format, RegexReward};
pub use closure::{FnReward, Labelled, TokenFnReward};
pub use command::{CommandConfig, CommandReward};
pub use error::{ProgramTrouble, RewardError};
pub use exact_match::{ExactMatch, is_exact_match};
pub use judge::{Judge, JudgeConfig, OnFailure, Scale, Verdict};
pub use last_integer::{LastInteger, LastNumber, extract_last_integer, extract_last_number};
pub use length::{Length, SoftOverlong};
pub use letter_count::LetterCount;
pub use model::{ModelReward, ModelRewardConfig};
pub use per_digit::{PerDigit, compute_per_digit};
pub use relative_distance::{RelativeDistance, compute_relative_distance};
pub use repetition_penalty::RepetitionPenalty;
pub use uppercase::{Uppercase, compute_uppercase_share};
pub use weighted::{Scored, WeightedRewards};

/// What a reward sees.
#[derive(Debug, Clone, Copy)]
pub struct RewardInput<'a> {
    /// The prompt as the model read it.
    pub prompt: &'a str,
    /// The messages that it was rendered from, a system prompt included; `None` where the prompt is plain text.
    pub messages: Option<&'a [Value]>,
    /// The decoded completion, special tokens left out.
    pub completion: &'a str,
    /// The sampled ids, an EOS included.
    pub completion_ids: &'a [u32],
    /// The other columns of the prompt's row.
    pub columns: &'a Columns,
    /// Line of the row in its file, or number of a Parquet file's row, from 1, for messages.
    pub line: usize,
}

/// Tells whether the run is to stop: what waits then need not wait for long, and nothing is tried again.
pub type IsStopping = Arc<dyn Fn() -> bool + Send + Sync>;

/// A score for completions. It may be called from several threads, and must depend on its input alone.
pub trait Reward: Send + Sync {
    /// The name in metrics (`rewards/<name>/mean`) and messages.
    fn name(&self) -> &str;

    /// The score of a completion; None means "no score": the reward is left out of this completion's sum.
    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError>;

    /// The scores of several completions, one each in their order: how the completions of a step are scored.
    fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        inputs.par_iter().map(|input| self.score(input)).collect()
    }

    /// Whether scoring mostly waits for something outside of this process. Such a reward scores on a thread of its own,
    /// beside the others, and must not use rayon's global pool, whose threads may all be waiting for it.
    fn is_external(&self) -> bool {
        false
    }

    /// Checks before a run, quickly, that what the reward needs from outside is there.
    fn check(&self) -> Result<(), RewardError> {
        Ok(())
    }

    /// Loads what the reward needs beside its input; called before the first completion is scored.
    fn prepare(&self, compute: &Compute) -> Result<(), RewardError> {
        let _ = compute;
        Ok(())
    }

    /// Gets ready to score, where that takes time; called before the first batch of a run, maybe more than once.
    fn start(&self, is_stopping: &IsStopping) -> Result<(), RewardError> {
        let _ = is_stopping;
        Ok(())
    }

    /// Checks before a run that a row has what the reward needs. The error is told with the row's line.
    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        let _ = columns;
        Ok(())
    }

    /// What the reward says of single tokens, beside the score of the whole; None where it says nothing.
    fn token_scores(&self, input: &RewardInput<'_>) -> Result<Option<TokenScores>, RewardError> {
        let _ = input;
        Ok(None)
    }
}

/// What a reward says of the tokens of a completion.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// The reward of each completion id, None where there is none (process supervision gives one at the end of each
    /// step of the reasoning). Empty: none at all.
    pub values: Vec<Option<f64>>,
    /// Whether each completion id may be learned from; false leaves it out of the loss. Empty: all may.
    pub keep: Vec<bool>,
}

/// The most characters of a completion, or of what a program or a service says, that a message shows.
const SHOWN_CHARACTERS: usize = 60;

/// What a message shows of a text.
fn beginning(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
