//! The objective of pairs of a better and a worse completion: direct preference optimization (arXiv:2305.18290 eq. 7).
//!
//! Works on log-probs of the policy and of the frozen reference; where the pairs come from is none of this module's
//! business. The variants and their names are TRL's.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{AlgorithmError, Objective, ObjectiveStats, check_length, check_ranges};

/// How the margin between a pair's completions becomes a loss.
///
/// `c` and `r` are the summed log-ratios `log policy - log reference` of the chosen and the rejected completion, `n_c`
/// and `n_r` their tokens, `eps` the label smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoLossType {
    /// `-(1 - eps) log sigmoid(x) - eps log sigmoid(-x)`, `x = beta (c - r)` (arXiv:2305.18290 eq. 7; with smoothed
    /// labels the conservative form of ericmitchell.ai/cdpo.pdf).
    #[default]
    Sigmoid,
    /// `max(0, 1 - beta (c - r))` (RSO, arXiv:2309.06657).
    Hinge,
    /// `(c / n_c - r / n_r - 1 / (2 beta))^2` (IPO, arXiv:2310.12036 eq. 17, a mean over tokens as its authors advise).
    Ipo,
    /// As `sigmoid` with `x = beta (c / n_c - r / n_r)`: length does not help.
    SigmoidNorm,
}

impl DpoLossType {
    /// Whether the log-ratios are means over tokens rather than sums.
    fn is_per_token(self) -> bool {
        matches!(self, Self::Ipo | Self::SigmoidNorm)
    }
}

/// Settings of the preference objective; the defaults are TRL's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoConfig {
    /// How the margin becomes a loss.
    pub loss_type: DpoLossType,
    /// How strongly the policy is held to the reference: the larger, the less it moves. Above 0, default 0.1.
    pub beta: f64,
    /// Probability that a label is wrong, in `[0, 0.5)`, default 0. `hinge` and `ipo` do not read it.
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { loss_type: DpoLossType::default(), beta: 0.1, label_smoothing: 0.0 }
    }
}

/// The completion tokens of a micro-batch of pairs, flat. Row `2 k` is the chosen, row `2 k + 1` the rejected
/// completion of pair k.
#[derive(Debug, Clone, Copy)]
pub struct PairBatch<'a> {
    /// `[N]` log-probs of the current policy, nats.
    pub logprobs: &'a [f64],
    /// `[N]` log-probs of the reference policy, nats.
    pub ref_logprobs: &'a [f64],
    /// `[2 K]` token range of each row in the flat arrays.
    pub rows: &'a [Range<usize>],
}

/// Sums over pairs, to be merged over the micro-batches of a step. The implicit reward of a completion is `beta` times
/// its summed log-ratio, whatever the loss type.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DpoStats {
    /// Pairs: the count under the others.
    pub pairs: u64,
    /// Sum of the implicit rewards of the chosen completions: `rewards/chosen` times `pairs`.
    pub chosen_sum: f64,
    /// Sum of the implicit rewards of the rejected completions: `rewards/rejected` times `pairs`.
    pub rejected_sum: f64,
    /// Pairs whose chosen completion has the greater implicit reward: `rewards/accuracies` times `pairs`.
    pub accurate: u64,
    /// Sum of the differences of the implicit rewards: `rewards/margins` times `pairs`.
    pub margin_sum: f64,
}

impl DpoStats {
    /// Adds the statistics of another micro-batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.chosen_sum += other.chosen_sum;
        self.rejected_sum += other.rejected_sum;
        self.accurate += other.accurate;
        self.margin_sum += other.margin_sum;
    }
}

/// Computes one micro-batch's share of the mean loss over the step's pairs.
///
/// # Shapes
/// See [`PairBatch`]; `num_pairs`: pairs of the whole step; `grad [N]`, 0 outside the rows.
///
/// # Errors
/// When the rows are not pairs or the lengths do not fit together.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{DpoConfig, PairBatch, compute_dpo_objective};
///
/// let batch = PairBatch { logprobs: &[-1.0, -2.0], ref_logprobs: &[-1.0, -2.0], rows: &[0..1, 1..2] };
/// let (objective, stats) = compute_dpo_objective(&batch, &DpoConfig::default(), 1)?;
/// assert!((objective.loss - 2.0f64.ln()).abs() < 1e-12);
/// assert_eq!(objective.grad, [-0.05, 0.05]);
/// assert_eq!(stats.accurate, 0);
/// # Ok::<(), candlewick::algorithm::AlgorithmError>(())
/// ```
pub fn compute_dpo_objective(
    batch: &PairBatch,
    config: &DpoConfig,
    num_pairs: usize,
) -> Result<(Objective, DpoStats), AlgorithmError> {
    let tokens = batch.logprobs.len();
    check_length("ref_logprobs", batch.ref_logprobs.len(), tokens)?;
    check_ranges(batch.rows, tokens)?;
    if !batch.rows.len().is_multiple_of(2) {
        return Err(AlgorithmError::Pairs { rows: batch.rows.len() });
    }
    let weight = 1.0 / num_pairs.max(1) as f64;
    let (mut loss, mut grad, mut stats) = (0.0, vec![0.0; tokens], DpoStats::default());
    for pair in batch.rows.chunks_exact(2) {
        let [chosen, rejected] = [&pair[0], &pair[1]];
        let [c, r] = [chosen, rejected].map(|row| sum_log_ratio(batch, row));
        let scale = |row: &Range<usize>| {
            if config.loss_type.is_per_token() { 1.0 / row.len().max(1) as f64 } else { 1.0 }
        };
        let (value, slope) = compute_pair(c * scale(chosen) - r * scale(rejected), config);
        loss += value * weight;
        for (row, sign) in [(chosen, 1.0), (rejected, -1.0)] {
            grad[row.clone()].fill(sign * slope * scale(row) * weight);
        }
        stats.merge(&DpoStats {
            pairs: 1,
            chosen_sum: config.beta * c,
            rejected_sum: config.beta * r,
            accurate: u64::from(config.beta * c > config.beta * r),
            margin_sum: config.beta * c - config.beta * r,
        });
    }
    let active_tokens = batch.rows.iter().map(|row| row.len() as u64).sum();
    let objective = Objective {
        loss,
        grad,
        entropy_grad: None,
        stats: ObjectiveStats { active_tokens, ..ObjectiveStats::default() },
    };
    Ok((objective, stats))
}

/// The summed log-ratio between policy and reference of one completion.
fn sum_log_ratio(batch: &PairBatch, row: &Range<usize>) -> f64 {
    row.clone().map(|t| batch.logprobs[t] - batch.ref_logprobs[t]).sum()
}

/// The loss of one pair and its derivative with respect to the margin `c - r` (of sums or of means).
fn compute_pair(margin: f64, config: &DpoConfig) -> (f64, f64) {
    let (beta, smoothing) = (config.beta, config.label_smoothing);
    match config.loss_type {
        DpoLossType::Sigmoid | DpoLossType::SigmoidNorm => {
            let x = beta * margin;
            let value = (1.0 - smoothing) * softplus(-x) + smoothing * softplus(x);
            (value, beta * (smoothing - sigmoid(-x)))
        }
        // Written so that a NaN margin is no 0: it must reach the non-finite check.
        DpoLossType::Hinge if beta * margin >= 1.0 => (0.0, 0.0),
        DpoLossType::Hinge => (1.0 - beta * margin, -beta),
        DpoLossType::Ipo => {
            let gap = margin - 0.5 / beta;
            (gap * gap, 2.0 * gap)
        }
    }
}

/// `log(1 + e^x) = -log sigmoid(-x)`, without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    // f64::max would hide a NaN.
    (if x > 0.0 { x } else { 0.0 }) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS_TYPES: [DpoLossType; 4] =
        [DpoLossType::Sigmoid, DpoLossType::Hinge, DpoLossType::Ipo, DpoLossType::SigmoidNorm];
    const LOGPROBS: [f64; 9] = [-0.5, -1.0, -2.5, -0.1, -3.0, -0.7, -1.2, -0.2, -0.9];
    const REFERENCE: [f64; 9] = [-0.9, -0.2, -2.0, -1.1, -2.0, -0.6, -1.0, -0.8, -0.3];

    /// Two pairs of unequal lengths, one of them with an empty rejected completion, and a token of no row.
    const ROWS: [Range<usize>; 4] = [0..3, 3..5, 6..9, 6..6];

    fn compute(logprobs: &[f64], config: &DpoConfig) -> (Objective, DpoStats) {
        let batch = PairBatch { logprobs, ref_logprobs: &REFERENCE, rows: &ROWS };
        compute_dpo_objective(&batch, config, 3).unwrap()
    }

    #[test]
    fn gradients_match_finite_differences() {
        let step = 1e-6;
        for loss_type in LOSS_TYPES {
            for (beta, label_smoothing) in [(0.1, 0.0), (0.7, 0.2)] {
                let config = DpoConfig { loss_type, beta, label_smoothing };
                let grad = compute(&LOGPROBS, &config).0.grad;
                for (t, slope) in grad.iter().enumerate() {
                    let loss = |change: f64| {
                        let mut moved = LOGPROBS;
                        moved[t] += change;
                        compute(&moved, &config).0.loss
                    };
                    let numeric = (loss(step) - loss(-step)) / (2.0 * step);
                    assert!((numeric - slope).abs() < 1e-8, "{config:?} token {t}: {numeric} {slope}");
                }
                assert_eq!((grad[5], grad[0] != 0.0), (0.0, true));
            }
        }
    }

    #[test]
    fn a_hinge_is_flat_beyond_its_margin() {
        let config = DpoConfig { loss_type: DpoLossType::Hinge, beta: 2.0, label_smoothing: 0.0 };
        let batch = PairBatch { logprobs: &[-1.0, -2.0], ref_logprobs: &[-1.5, -1.5], rows: &[0..1, 1..2] };
        let (objective, stats) = compute_dpo_objective(&batch, &config, 1).unwrap();
        assert_eq!((objective.loss, objective.grad), (0.0, vec![0.0; 2]));
        assert_eq!((stats.accurate, stats.margin_sum, stats.chosen_sum), (1, 2.0, 1.0));
    }

    #[test]
    fn large_margins_do_not_overflow_and_nan_is_not_hidden() {
        for loss_type in LOSS_TYPES {
            let config = DpoConfig { loss_type, beta: 1.0, label_smoothing: 0.1 };
            for margin in [1e4, -1e4] {
                let (value, slope) = compute_pair(margin, &config);
                assert!(value.is_finite() && slope.is_finite(), "{loss_type:?} {margin}");
            }
            assert!(compute_pair(f64::NAN, &config).0.is_nan(), "{loss_type:?}");
        }
    }

    #[test]
    fn rows_that_are_no_pairs_are_refused() {
        let batch = PairBatch { logprobs: &[-1.0; 3], ref_logprobs: &[-1.0; 3], rows: &[0..1, 1..2, 2..3] };
        let check = |batch: PairBatch| compute_dpo_objective(&batch, &DpoConfig::default(), 1).unwrap_err();
        assert_eq!(check(batch), AlgorithmError::Pairs { rows: 3 });
        let short = AlgorithmError::Length { name: "ref_logprobs", expected: 3, got: 1 };
        assert_eq!(check(PairBatch { ref_logprobs: &[-1.0], ..batch }), short);
        let outside = AlgorithmError::Range { row: 1, start: 2, end: 4, tokens: 3 };
        assert_eq!(check(PairBatch { rows: &[0..1, 2..4], ..batch }), outside);
    }
}
