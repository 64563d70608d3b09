//! Rewards: from a completion and the columns of its row to a score.
//!
//! [`Reward`] is the seam that users extend; [`FnReward`] makes one of a closure. [`WeightedRewards`] is what the
//! trainer and the evaluation call. Rewards see text and ids, never tensors.

mod error;
mod last_integer;
mod weighted;

use crate::data::Columns;

pub use error::RewardError;
pub use last_integer::{LastInteger, LastNumber, extract_last_integer, extract_last_number};
pub use weighted::{Scored, WeightedRewards};

/// What a reward sees.
#[derive(Debug, Clone, Copy)]
pub struct RewardInput<'a> {
    /// The prompt as the model read it.
    pub prompt: &'a str,
    /// The decoded completion, special tokens left out.
    pub completion: &'a str,
    /// The sampled ids, an EOS included.
    pub completion_ids: &'a [u32],
    /// The other columns of the prompt's row.
    pub columns: &'a Columns,
    /// Line of the row in its file, from 1, for messages.
    pub line: usize,
}

/// A score for completions. It may be called from several threads, and must depend on its input alone.
pub trait Reward: Send + Sync {
    /// The name in metrics (`rewards/<name>/mean`) and messages.
    fn name(&self) -> &str;

    /// The score of a completion; None means "no score": the reward is left out of this completion's sum.
    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError>;

    /// Checks before a run that a row has what the reward needs. The error is told with the row's line.
    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        let _ = columns;
        Ok(())
    }
}

/// A reward made of a closure.
///
/// ```
/// use candlewick::reward::{FnReward, Reward};
/// let short = FnReward::new("short", |input| -(input.completion_ids.len() as f64));
/// assert_eq!(short.name(), "short");
/// let exact = FnReward::new("exact", |input| {
///     let answer = input.columns.text("answer").unwrap_or_default();
///     f64::from(input.completion.trim() == answer)
/// });
/// ```
pub struct FnReward<F> {
    name: String,
    score: F,
}

impl<F: Fn(&RewardInput<'_>) -> f64 + Send + Sync> FnReward<F> {
    /// A reward called `name`, whose score is what the closure returns: a finite number.
    pub fn new(name: impl Into<String>, score: F) -> Self {
        Self { name: name.into(), score }
    }
}

impl<F: Fn(&RewardInput<'_>) -> f64 + Send + Sync> Reward for FnReward<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some((self.score)(input)))
    }
}
