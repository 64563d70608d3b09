//! The policy objective of one micro-batch: loss, gradient with respect to each token's log-prob, metrics.
//!
//! Runs the per-token pieces (`surrogate`, [`super::kl`]) over the rows and weighs them by `aggregation`. The formulas
//! and their sources stand in those files.

use std::ops::Range;

use super::aggregation::{Denominators, LossType};
use super::kl::KlEstimator;
use super::surrogate::{ClipBounds, compute_clipped};
use super::{AlgorithmError, check_length, check_ranges};

/// Settings of the policy objective. The defaults are TRL's, apart from `beta` (the paper's 0.04).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObjectiveConfig {
    /// How the tokens are summed up.
    pub loss_type: LossType,
    /// The ratio is clipped below at `1 - epsilon`; in `[0, 1)`, default 0.2.
    pub epsilon: f64,
    /// The ratio is clipped above at `1 + epsilon_high`; at least 0, default `epsilon`.
    pub epsilon_high: f64,
    /// Cap of the ratio where the advantage is negative (two-sided clipping); above `1 + epsilon_high`, default none.
    pub delta: Option<f64>,
    /// Weight of the KL penalty; at least 0, default 0.04. 0 needs no reference policy.
    pub beta: f64,
    /// Which estimate of the KL divergence is penalised and logged.
    pub kl_estimator: KlEstimator,
    /// Longest completion that the rollout may make, in tokens: the constant of `dr_grpo`. Default 512.
    pub max_completion_length: usize,
    /// Discount in (0, 1]: token t of n has the advantage `A * gamma^(n - 1 - t)`. Default 1.
    pub gamma: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            loss_type: LossType::default(),
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            beta: 0.04,
            kl_estimator: KlEstimator::default(),
            max_completion_length: 512,
            gamma: 1.0,
        }
    }
}

/// The completion tokens of a micro-batch, flat: the tokens of row 0, then those of row 1, and so on. Nats.
#[derive(Debug, Clone, Copy)]
pub struct TokenBatch<'a> {
    /// `[N]` log-probs of the current policy.
    pub logprobs: &'a [f64],
    /// `[N]` log-probs of the policy that made the rollout. `None`: it is the current policy; every ratio is 1, and
    /// the gradient flows through the numerator.
    pub old_logprobs: Option<&'a [f64]>,
    /// `[N]` log-probs of the reference policy; may be absent when `beta` is 0.
    pub ref_logprobs: Option<&'a [f64]>,
    /// `[B]` token range of each row in the flat arrays.
    pub rows: &'a [Range<usize>],
    /// `[B]` advantage of each row.
    pub advantages: &'a [f64],
    /// `[B]` false takes the row out of the loss and of the token counts (`mask_truncated_completions`).
    pub included: &'a [bool],
}

impl TokenBatch<'_> {
    /// Tokens of the included rows.
    #[must_use]
    pub fn active_tokens(&self) -> usize {
        self.rows.iter().zip(self.included).filter(|(_, included)| **included).map(|(range, _)| range.len()).sum()
    }
}

/// A micro-batch's share of the step's loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// The shares of a step's micro-batches add up to the step's loss.
    pub loss: f64,
    /// `[N]` derivative of the step's loss with respect to each token's log-prob; 0 outside the included rows.
    pub grad: Vec<f64>,
    /// What is logged.
    pub stats: ObjectiveStats,
}

/// Sums over active tokens and extremes over rows, to be merged over the micro-batches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ObjectiveStats {
    /// Active tokens: the count under `kl_sum`, `low_clipped`, `high_clipped` and `ratio_sum`.
    pub active_tokens: u64,
    /// Sum of the KL estimate, nats; 0 without reference log-probs.
    pub kl_sum: f64,
    /// Tokens clipped below: `clip_ratio/low_mean` times the active tokens.
    pub low_clipped: u64,
    /// Tokens clipped above: `clip_ratio/high_mean` times the active tokens.
    pub high_clipped: u64,
    /// Least share of a row's tokens that is clipped below, over rows with tokens: `clip_ratio/low_min`.
    pub low_min: Option<f64>,
    /// Greatest share of a row's tokens that is clipped above, over rows with tokens: `clip_ratio/high_max`.
    pub high_max: Option<f64>,
    /// Sum of the ratio `exp(logprob - old_logprob)`.
    pub ratio_sum: f64,
}

impl ObjectiveStats {
    /// Adds the statistics of another micro-batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.active_tokens += other.active_tokens;
        self.kl_sum += other.kl_sum;
        self.low_clipped += other.low_clipped;
        self.high_clipped += other.high_clipped;
        self.ratio_sum += other.ratio_sum;
        self.low_min = [self.low_min, other.low_min].into_iter().flatten().reduce(f64::min);
        self.high_max = [self.high_max, other.high_max].into_iter().flatten().reduce(f64::max);
    }

    /// Tokens clipped on either side: `clip_ratio/region_mean` times the active tokens.
    #[must_use]
    pub fn region_clipped(&self) -> u64 {
        self.low_clipped + self.high_clipped
    }

    /// Adds one row's counts of clipped tokens.
    fn add_row(&mut self, tokens: usize, low: u64, high: u64) {
        if tokens == 0 {
            return;
        }
        let row = Self {
            low_clipped: low,
            high_clipped: high,
            low_min: Some(low as f64 / tokens as f64),
            high_max: Some(high as f64 / tokens as f64),
            ..Self::default()
        };
        self.merge(&row);
    }
}

/// Computes the loss of a micro-batch and its gradient with respect to each token's log-prob.
///
/// Per token `p = -min(min(w, delta) A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta * KL`, weighed and summed by
/// `loss_type`. The k1 penalty is not in the loss: see [`super::subtract_kl_penalty`].
///
/// # Shapes
/// See [`TokenBatch`]; `grad [N]`.
///
/// # Errors
/// When the inputs do not fit together, or `beta` is above 0 and there are no reference log-probs.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{Denominators, ObjectiveConfig, TokenBatch, compute_objective};
///
/// let batch = TokenBatch {
///     logprobs: &[-1.0, -2.0, -0.5],
///     old_logprobs: None,
///     ref_logprobs: None,
///     rows: &[0..2, 2..3],
///     advantages: &[1.0, -1.0],
///     included: &[true, true],
/// };
/// let config = ObjectiveConfig { beta: 0.0, ..ObjectiveConfig::default() };
/// let step = Denominators { rows: 2, active_tokens: 3, micro_batches: 1 };
/// let objective = compute_objective(&batch, &config, &step)?;
/// assert!((objective.loss + 1.0 / 3.0).abs() < 1e-12);
/// # Ok::<(), candlewick::algorithm::AlgorithmError>(())
/// ```
pub fn compute_objective(
    batch: &TokenBatch,
    config: &ObjectiveConfig,
    denominators: &Denominators,
) -> Result<Objective, AlgorithmError> {
    check_batch(batch, config)?;
    let bounds = ClipBounds {
        low: 1.0 - config.epsilon,
        high: 1.0 + config.epsilon_high,
        delta: config.delta.unwrap_or(f64::INFINITY),
    };
    let penalises = config.beta > 0.0 && config.kl_estimator.is_in_loss();
    let micro_batch_tokens = batch.active_tokens();
    let mut stats = ObjectiveStats { active_tokens: micro_batch_tokens as u64, ..ObjectiveStats::default() };
    let mut grad = vec![0.0; batch.logprobs.len()];
    let mut loss = 0.0;
    for ((range, &advantage), _) in batch.rows.iter().zip(batch.advantages).zip(batch.included).filter(|x| *x.1) {
        let weight =
            config.loss_type.token_weight(range.len(), micro_batch_tokens, config.max_completion_length, denominators);
        let (mut row_loss, mut low, mut high) = (0.0, 0, 0);
        // From the last token back: the discount of token t is gamma^(tokens after it).
        let mut discounted = advantage;
        for t in range.clone().rev() {
            let logprob = batch.logprobs[t];
            let log_ratio = batch.old_logprobs.map_or(0.0, |old| logprob - old[t]);
            let term = compute_clipped(log_ratio, discounted, &bounds);
            let (mut value, mut slope) = (term.value, term.slope);
            if let Some(ref_logprobs) = batch.ref_logprobs {
                let (kl, kl_slope) = config.kl_estimator.compute(logprob, ref_logprobs[t]);
                stats.kl_sum += kl;
                if penalises {
                    value += config.beta * kl;
                    slope += config.beta * kl_slope;
                }
            }
            row_loss += value;
            grad[t] = slope * weight;
            low += u64::from(term.is_low_clipped);
            high += u64::from(term.is_high_clipped);
            stats.ratio_sum += log_ratio.exp();
            discounted *= config.gamma;
        }
        loss += row_loss * weight;
        stats.add_row(range.len(), low, high);
    }
    Ok(Objective { loss, grad, stats })
}

/// Checks that the parts of a batch fit together.
fn check_batch(batch: &TokenBatch, config: &ObjectiveConfig) -> Result<(), AlgorithmError> {
    let tokens = batch.logprobs.len();
    check_length("old_logprobs", batch.old_logprobs.map_or(tokens, <[f64]>::len), tokens)?;
    check_length("ref_logprobs", batch.ref_logprobs.map_or(tokens, <[f64]>::len), tokens)?;
    check_length("advantages", batch.advantages.len(), batch.rows.len())?;
    check_length("included", batch.included.len(), batch.rows.len())?;
    check_ranges(batch.rows, tokens)?;
    if config.beta > 0.0 && config.kl_estimator.is_in_loss() && batch.ref_logprobs.is_none() {
        return Err(AlgorithmError::MissingReference { beta: config.beta.to_string() });
    }
    Ok(())
}

#[cfg(test)]
#[path = "objective_tests.rs"]
mod tests;
