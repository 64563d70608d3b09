//! The policy objective of one micro-batch: loss, gradient with respect to each token's log-prob, metrics.
//!
//! Runs the pieces (`ratio`, `surrogate`, [`super::kl`]) over the rows and weighs them by `aggregation`. The formulas
//! and their sources stand in those files.

use std::ops::Range;

use super::aggregation::{Denominators, LossType};
use super::kl::KlEstimator;
use super::ratio::ImportanceSamplingLevel;
use super::stats::ObjectiveStats;
use super::surrogate::Surrogate;
use super::{AlgorithmError, check_length, check_ranges};

/// Settings of the policy objective. The defaults are TRL's, apart from `beta` (the paper's 0.04).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObjectiveConfig {
    /// How the tokens are summed up; `cispo` and `sapo` also name the form of the policy term.
    pub loss_type: LossType,
    /// What the importance ratio is taken of.
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// The ratio is clipped below at `1 - epsilon`; in `[0, 1)`, default 0.2.
    pub epsilon: f64,
    /// The ratio is clipped above at `1 + epsilon_high`; at least 0, default `epsilon`. With `cispo` the cap of the
    /// ratio itself, at least 1.
    pub epsilon_high: f64,
    /// Cap of the ratio where the advantage is negative (two-sided clipping); above `1 + epsilon_high`, default none.
    /// `cispo` and `sapo` do not read it.
    pub delta: Option<f64>,
    /// Weight of the KL penalty; at least 0, default 0.04. 0 needs no reference policy.
    pub beta: f64,
    /// Which estimate of the KL divergence is penalised and logged.
    pub kl_estimator: KlEstimator,
    /// Multiply k3 by the importance ratio, which is differentiated (DeepSeek-V3.2, arXiv:2512.02556): the estimate is
    /// then unbiased off-policy and its mean gradient that of the reverse KL. Only k3 with a ratio reads it.
    pub use_bias_correction_kl: bool,
    /// Steepness of the `sapo` gate where the advantage is positive; above 0, default 1.
    pub sapo_temperature_pos: f64,
    /// Steepness of the `sapo` gate where the advantage is negative; above 0, default 1.05: such tokens fade sooner.
    pub sapo_temperature_neg: f64,
    /// Weight of the entropy bonus: `loss -= entropy_coef * mean entropy of the step's active tokens`. Default 0.
    pub entropy_coef: f64,
    /// Longest completion that the rollout may make, in tokens: the constant of `dr_grpo`. Default 512.
    pub max_completion_length: usize,
    /// Discount in (0, 1]: token t of n has the advantage `A * gamma^(n - 1 - t)`. Default 1.
    pub gamma: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            loss_type: LossType::default(),
            importance_sampling_level: ImportanceSamplingLevel::default(),
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            beta: 0.04,
            kl_estimator: KlEstimator::default(),
            use_bias_correction_kl: false,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            entropy_coef: 0.0,
            max_completion_length: 512,
            gamma: 1.0,
        }
    }
}

impl ObjectiveConfig {
    /// Whether a KL penalty is part of the loss.
    fn penalises(&self) -> bool {
        self.beta > 0.0 && self.kl_estimator.is_in_loss()
    }

    /// Whether the KL estimate is multiplied by the ratio.
    fn corrects_kl(&self) -> bool {
        self.use_bias_correction_kl
            && self.kl_estimator == KlEstimator::K3
            && self.importance_sampling_level != ImportanceSamplingLevel::None
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
    /// `[N]` entropies of the current policy; may be absent when `entropy_coef` is 0.
    pub entropies: Option<&'a [f64]>,
    /// `[B]` token range of each row in the flat arrays.
    pub rows: &'a [Range<usize>],
    /// `[B]` advantage of each row.
    pub advantages: &'a [f64],
    /// `[N]` what is added to the row's discounted advantage at each token (process supervision).
    pub token_advantages: Option<&'a [f64]>,
    /// `[N]` false takes the token out of the loss and of all token counts.
    pub completion_mask: &'a [bool],
    /// `[N]` false takes the policy term off the token, and leaves its KL penalty and its place in the denominators
    /// (`top_entropy_quantile`).
    pub policy_mask: Option<&'a [bool]>,
}

impl TokenBatch<'_> {
    /// Tokens of the rows that the completion mask keeps.
    #[must_use]
    pub fn active_tokens(&self) -> usize {
        self.rows.iter().map(|range| self.active_in(range)).sum()
    }

    fn active_in(&self, range: &Range<usize>) -> usize {
        self.completion_mask[range.clone()].iter().filter(|is| **is).count()
    }

    /// The log-ratio of a token.
    fn log_ratio(&self, t: usize) -> f64 {
        self.old_logprobs.map_or(0.0, |old| self.logprobs[t] - old[t])
    }
}

/// A micro-batch's share of the step's loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// The shares of a step's micro-batches add up to the step's loss.
    pub loss: f64,
    /// `[N]` derivative of the step's loss with respect to each token's log-prob; 0 outside the completion mask.
    pub grad: Vec<f64>,
    /// `[N]` derivative with respect to each token's entropy; `None` where no entropy bonus is given.
    pub entropy_grad: Option<Vec<f64>>,
    /// What is logged.
    pub stats: ObjectiveStats,
}

/// Computes the loss of a micro-batch and its gradient with respect to each token's log-prob.
///
/// Per token the policy term plus `beta * KL`, weighed and summed by `loss_type`; less the entropy bonus. The k1 penalty
/// is not in the loss: see [`super::subtract_kl_penalty`].
///
/// # Shapes
/// See [`TokenBatch`]; `grad [N]`.
///
/// # Errors
/// When the inputs do not fit together, `beta` is above 0 and there are no reference log-probs, or `entropy_coef` is not
/// 0 and there are no entropies.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{Denominators, ObjectiveConfig, TokenBatch, compute_objective};
///
/// let batch = TokenBatch {
///     logprobs: &[-1.0, -2.0, -0.5],
///     old_logprobs: None,
///     ref_logprobs: None,
///     entropies: None,
///     rows: &[0..2, 2..3],
///     advantages: &[1.0, -1.0],
///     token_advantages: None,
///     completion_mask: &[true; 3],
///     policy_mask: None,
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
    let micro_batch_tokens = batch.active_tokens();
    let mut sums = Sums {
        batch,
        config,
        surrogate: Surrogate::new(config),
        loss: 0.0,
        grad: vec![0.0; batch.logprobs.len()],
        stats: ObjectiveStats { active_tokens: micro_batch_tokens as u64, ..ObjectiveStats::default() },
    };
    for (range, &advantage) in batch.rows.iter().zip(batch.advantages) {
        let active = batch.active_in(range);
        let weight =
            config.loss_type.token_weight(active, micro_batch_tokens, config.max_completion_length, denominators);
        sums.add_row(range, active, advantage, weight);
        if config.kl_estimator == KlEstimator::SequenceSquared {
            sums.add_squared_kl(range, 1.0 / denominators.rows.max(1) as f64);
        }
    }
    let (bonus, entropy_grad) = compute_entropy_bonus(batch, config.entropy_coef, denominators);
    Ok(Objective { loss: sums.loss - bonus, grad: sums.grad, entropy_grad, stats: sums.stats })
}

/// What the rows of a micro-batch add up to.
struct Sums<'a> {
    batch: &'a TokenBatch<'a>,
    config: &'a ObjectiveConfig,
    surrogate: Surrogate,
    loss: f64,
    grad: Vec<f64>,
    stats: ObjectiveStats,
}

impl Sums<'_> {
    /// Adds the terms of the row's tokens, each with `weight`.
    fn add_row(&mut self, range: &Range<usize>, active: usize, advantage: f64, weight: f64) {
        let (batch, level) = (self.batch, self.config.importance_sampling_level);
        let share = level.share(active);
        let of_row = level.is_of_row().then(|| {
            let active = range.clone().filter(|t| batch.completion_mask[*t]);
            active.map(|t| batch.log_ratio(t)).sum::<f64>() * share
        });
        let (mut row_loss, mut row_slope, mut counts) = (0.0, 0.0, (0, 0));
        // From the last token back: the discount of token t is gamma^(tokens after it).
        let mut discounted = advantage;
        for t in range.clone().rev() {
            let token_advantage = discounted + batch.token_advantages.map_or(0.0, |values| values[t]);
            discounted *= self.config.gamma;
            if !batch.completion_mask[t] {
                continue;
            }
            let log_ratio = of_row.unwrap_or_else(|| batch.log_ratio(t));
            let term = self.surrogate.compute(log_ratio, batch.logprobs[t], token_advantage);
            let is_kept = batch.policy_mask.is_none_or(|mask| mask[t]);
            let policy = if is_kept { [term.value, term.logprob_slope, term.ratio_slope] } else { [0.0; 3] };
            let penalty = self.penalty(t, log_ratio);
            let [value, mut slope, ratio_slope] = std::array::from_fn(|at| policy[at] + penalty[at]);
            if of_row.is_some() {
                row_slope += ratio_slope;
            } else {
                slope += ratio_slope;
            }
            row_loss += value;
            self.grad[t] = slope * weight;
            counts.0 += u64::from(term.is_low_clipped);
            counts.1 += u64::from(term.is_high_clipped);
        }
        if let Some(log_ratio) = of_row {
            for t in range.clone().filter(|t| batch.completion_mask[*t]) {
                self.grad[t] += row_slope * weight * share;
            }
            // One ratio a row, a row without active tokens included, as TRL counts; its side is that of the row's
            // advantage.
            let term = self.surrogate.compute(log_ratio, 0.0, advantage);
            counts = (u64::from(term.is_low_clipped), u64::from(term.is_high_clipped));
        }
        self.loss += row_loss * weight;
        let ratios = if of_row.is_some() { 1 } else { active as u64 };
        if level != ImportanceSamplingLevel::None {
            self.stats.ratio_count += ratios;
            if self.surrogate.clips() {
                self.stats.add_row(ratios, counts.0, counts.1);
            }
        }
    }

    /// `beta` times the KL estimate of a token, its slope by the log-prob, and its slope by the log-ratio; logs the
    /// estimate.
    fn penalty(&mut self, t: usize, log_ratio: f64) -> [f64; 3] {
        let config = self.config;
        let Some(ref_logprobs) = self.batch.ref_logprobs else { return [0.0; 3] };
        if config.kl_estimator == KlEstimator::SequenceSquared {
            return [0.0; 3];
        }
        let (kl, slope) = config.kl_estimator.compute(self.batch.logprobs[t], ref_logprobs[t]);
        let (kl, slope, ratio_slope) = if config.corrects_kl() {
            let ratio = log_ratio.exp();
            (kl * ratio, slope * ratio, kl * ratio)
        } else {
            (kl, slope, 0.0)
        };
        self.stats.kl_sum += kl;
        self.stats.kl_count += 1;
        if config.penalises() { [kl, slope, ratio_slope].map(|x| config.beta * x) } else { [0.0; 3] }
    }

    /// Adds the squared KL of the row, with the weight `1 / rows of the step`.
    fn add_squared_kl(&mut self, range: &Range<usize>, weight: f64) {
        let Some(ref_logprobs) = self.batch.ref_logprobs else { return };
        let mask = self.batch.completion_mask;
        let sum = |values: &[f64]| range.clone().filter(|t| mask[*t]).map(|t| values[t]).sum::<f64>();
        let estimator = KlEstimator::SequenceSquared;
        let (kl, slope) = estimator.compute(sum(self.batch.logprobs), sum(ref_logprobs));
        self.stats.kl_sum += kl;
        self.stats.kl_count += 1;
        if self.config.penalises() {
            self.loss += self.config.beta * kl * weight;
            for t in range.clone().filter(|t| mask[*t]) {
                self.grad[t] += self.config.beta * slope * weight;
            }
        }
    }
}

/// The entropy bonus of the micro-batch and its derivative with respect to each entropy of the loss.
fn compute_entropy_bonus(batch: &TokenBatch, coef: f64, denominators: &Denominators) -> (f64, Option<Vec<f64>>) {
    let Some(entropies) = batch.entropies.filter(|_| coef != 0.0) else { return (0.0, None) };
    let weight = coef / denominators.active_tokens.max(1) as f64;
    let mut grad = vec![0.0; entropies.len()];
    let mut sum = 0.0;
    for t in batch.rows.iter().cloned().flatten().filter(|t| batch.completion_mask[*t]) {
        sum += entropies[t];
        grad[t] = -weight;
    }
    (sum * weight, Some(grad))
}

/// Checks that the parts of a batch fit together.
fn check_batch(batch: &TokenBatch, config: &ObjectiveConfig) -> Result<(), AlgorithmError> {
    let tokens = batch.logprobs.len();
    let optional = [
        ("old_logprobs", batch.old_logprobs),
        ("ref_logprobs", batch.ref_logprobs),
        ("entropies", batch.entropies),
        ("token_advantages", batch.token_advantages),
    ];
    for (name, values) in optional {
        check_length(name, values.map_or(tokens, <[f64]>::len), tokens)?;
    }
    check_length("advantages", batch.advantages.len(), batch.rows.len())?;
    check_length("completion_mask", batch.completion_mask.len(), tokens)?;
    check_length("policy_mask", batch.policy_mask.map_or(tokens, <[bool]>::len), tokens)?;
    check_ranges(batch.rows, tokens)?;
    if config.penalises() && batch.ref_logprobs.is_none() {
        return Err(AlgorithmError::MissingReference { beta: config.beta.to_string() });
    }
    if config.entropy_coef != 0.0 && batch.entropies.is_none() {
        return Err(AlgorithmError::MissingEntropies { entropy_coef: config.entropy_coef.to_string() });
    }
    Ok(())
}

#[cfg(test)]
#[path = "objective_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "mean_gradient_tests.rs"]
mod mean_gradient_tests;
