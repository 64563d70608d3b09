//! The mathematics of the training algorithms: pure functions on slices, in f64.
//!
//! An algorithm is put together from three pieces, one file each, and a new one adds to the piece it changes:
//!
//! | piece | file | from -> to |
//! |---|---|---|
//! | advantage | [`advantage`], `process` (rewards of single tokens) | rewards of a step -> one advantage a row, or a token |
//! | objective | `ratio`, `surrogate` (policy term), [`kl`] (penalty) | log-probs and advantage -> one term a token, and its slopes |
//! | aggregation | `aggregation` | terms of all tokens -> one scalar: the denominators |
//!
//! [`objective`] runs the three over the tokens of a micro-batch. Beside them stand [`supervised`], the objective of
//! plain fine-tuning, and those of pairs of a better and a worse completion: [`preference`], and `bradley_terry` for reward
//! models.
//!
//! Nothing here touches a device, a file or a clock. The results are the loss and its analytic gradient with respect
//! to each token's log-prob; the model's backward pass starts from there.

pub mod advantage;
mod aggregation;
mod bradley_terry;
mod entropy;
pub mod kl;
pub mod objective;
pub mod preference;
mod process;
mod ratio;
mod stats;
pub mod supervised;
mod surrogate;

pub use advantage::{AdvantageEstimator, Advantages, GroupStats, ScaleRewards, compute_advantages};
pub use aggregation::{Denominators, LossType};
pub use bradley_terry::{RewardObjective, RewardStats, compute_reward_objective};
pub use entropy::entropy_threshold;
pub use kl::{KlEstimator, subtract_kl_penalty};
pub use objective::{Objective, ObjectiveConfig, TokenBatch, compute_objective};
pub use preference::{DpoConfig, DpoLossType, DpoStats, PairBatch, compute_dpo_objective};
pub use process::compute_token_advantages;
pub use ratio::ImportanceSamplingLevel;
pub use stats::ObjectiveStats;
pub use supervised::compute_sft_objective;

use crate::error::{Diagnose, Exit};

/// An input of this layer whose size or parts do not fit together: a mistake of the calling code, not of its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AlgorithmError {
    /// Two inputs that go together have different lengths.
    #[error("{name} has {got} entries where {expected} are needed")]
    Length { name: &'static str, expected: usize, got: usize },
    /// The rewards cannot be cut into groups of `num_generations`.
    #[error("{rewards} rewards cannot be cut into groups of {num_generations} generations")]
    Groups { rewards: usize, num_generations: usize },
    /// A row's token range lies outside the flat arrays.
    #[error("row {row} covers tokens {start}..{end}, but there are {tokens} tokens")]
    Range { row: usize, start: usize, end: usize, tokens: usize },
    /// `beta` asks for a KL penalty and there are no reference log-probs to compute it from.
    #[error("beta = {beta} needs the log-probs of the reference policy, and there are none")]
    MissingReference { beta: String },
    /// An entropy bonus is asked for and there are no entropies to compute it from.
    #[error("entropy_coef = {entropy_coef} needs the entropies of the policy, and there are none")]
    MissingEntropies { entropy_coef: String },
    /// The advantages are taken over the greedy completions, and their rewards were not given.
    #[error("the advantages need the reward of each prompt's greedy completion, and there are none")]
    MissingGreedy,
    /// The rows are not pairs of a better and a worse completion.
    #[error("{rows} rows do not make pairs")]
    Pairs { rows: usize },
}

impl Diagnose for AlgorithmError {
    fn exit(&self) -> Exit {
        Exit::Failed
    }
}

/// Checks that `name` has `expected` entries.
fn check_length(name: &'static str, got: usize, expected: usize) -> Result<(), AlgorithmError> {
    if got == expected { Ok(()) } else { Err(AlgorithmError::Length { name, expected, got }) }
}

/// Checks that every row's token range lies within `tokens` tokens.
fn check_ranges(rows: &[std::ops::Range<usize>], tokens: usize) -> Result<(), AlgorithmError> {
    match rows.iter().position(|range| range.start > range.end || range.end > tokens) {
        None => Ok(()),
        Some(row) => Err(AlgorithmError::Range { row, start: rows[row].start, end: rows[row].end, tokens }),
    }
}
