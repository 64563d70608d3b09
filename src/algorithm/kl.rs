//! Estimators of the KL divergence between the policy and the frozen reference policy.
//!
//! Per token, with `u = ref_logprob - logprob` (nats): k1 = -u, k2 = u^2 / 2, k3 = e^u - u - 1 (arXiv:2402.03300 eq. 4;
//! joschu.net/blog/kl-approx). On fresh samples the mean gradient of k2 is that of KL(policy || reference), the mean
//! gradient of k3 that of KL(reference || policy). The mean gradient of k1 in the loss would be zero, so k1 is never
//! differentiated: it is taken off the rewards by [`subtract_kl_penalty`]. Per row: `sequence_squared`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{AlgorithmError, check_length, check_ranges};

/// Which estimate of KL(policy || reference) is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `logprob - ref_logprob`: unbiased, may be negative; acts through the reward.
    K1,
    /// Half the squared log-ratio: its gradient is that of the reverse KL.
    K2,
    /// `e^u - u - 1`: unbiased and never negative (the paper's choice, and TRL's).
    #[default]
    K3,
    /// The square of a row's summed log-ratio, mean over the step's rows whatever the loss type. Half of it is k2 of
    /// the row as one action, so its mean gradient is twice that of the reverse KL of whole completions.
    SequenceSquared,
}

impl KlEstimator {
    /// Whether the penalty is a term of the loss, or goes into the reward (k1).
    #[must_use]
    pub fn is_in_loss(self) -> bool {
        !matches!(self, Self::K1)
    }

    /// The estimate of one token in nats and its derivative with respect to the token's `logprob`; with
    /// `SequenceSquared` of one row, the log-probs being sums over its tokens (nats squared).
    #[must_use]
    pub fn compute(self, logprob: f64, ref_logprob: f64) -> (f64, f64) {
        let u = ref_logprob - logprob;
        match self {
            Self::K1 => (-u, 1.0),
            Self::K2 => (0.5 * u * u, -u),
            // exp_m1 keeps the digits of the estimate where the policies are close, as they are at the start.
            Self::K3 => (u.exp_m1() - u, -u.exp_m1()),
            Self::SequenceSquared => (u * u, -2.0 * u),
        }
    }
}

/// Takes the k1 penalty off each row's reward: `R_i -= beta * sum over t of m_t (old_logprob - ref_logprob)`, as in
/// RLOO.
///
/// Called before the advantages are computed when `kl_estimator = "k1"`. Rows without a score stay without one. A row
/// without active tokens (a truncated completion that is masked) keeps its reward.
///
/// # Shapes
/// `rewards [B]`, `rows [B]` (token range of each row); `old_logprobs [N]`, `ref_logprobs [N]`, nats;
/// `completion_mask [N]`.
///
/// # Errors
/// When the lengths do not fit together.
pub fn subtract_kl_penalty(
    rewards: &mut [Option<f64>],
    old_logprobs: &[f64],
    ref_logprobs: &[f64],
    rows: &[Range<usize>],
    completion_mask: &[bool],
    beta: f64,
) -> Result<(), AlgorithmError> {
    check_length("ref_logprobs", ref_logprobs.len(), old_logprobs.len())?;
    check_length("rewards", rewards.len(), rows.len())?;
    check_length("completion_mask", completion_mask.len(), old_logprobs.len())?;
    check_ranges(rows, old_logprobs.len())?;
    for (reward, range) in rewards.iter_mut().zip(rows) {
        let active = range.clone().filter(|t| completion_mask[*t]);
        let kl: f64 = active.map(|t| old_logprobs[t] - ref_logprobs[t]).sum();
        if let Some(reward) = reward {
            *reward -= beta * kl;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_match_finite_differences() {
        let step = 1e-6;
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3, KlEstimator::SequenceSquared] {
            for (logprob, ref_logprob) in [(-1.0, -1.0), (-0.3, -2.0), (-3.0, -0.5), (-1.0, -1.001)] {
                let (value, slope) = estimator.compute(logprob, ref_logprob);
                let above = estimator.compute(logprob + step, ref_logprob).0;
                let below = estimator.compute(logprob - step, ref_logprob).0;
                assert!(((above - below) / (2.0 * step) - slope).abs() < 1e-8, "{estimator:?} {logprob} {ref_logprob}");
                assert!(value >= 0.0 || estimator == KlEstimator::K1);
            }
        }
    }

    #[test]
    fn the_penalty_is_taken_off_scored_rows_by_their_active_tokens() {
        let mut rewards = [Some(1.0), None, Some(2.0), Some(3.0), Some(4.0)];
        let old = [-1.0, -2.0, -0.5, -1.0, -1.0, -0.25];
        let reference = [-1.5, -2.5, -0.25, -3.0, -2.0, -9.0];
        let mask = [true, true, true, false, true, false];
        subtract_kl_penalty(&mut rewards, &old, &reference, &[0..2, 2..3, 2..3, 3..4, 4..6], &mask, 0.5).unwrap();
        assert_eq!(rewards, [Some(0.5), None, Some(2.125), Some(3.0), Some(3.5)]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut rewards = [Some(1.0); 2];
        let error = subtract_kl_penalty(&mut rewards, &[-1.0], &[-1.0], &[0..1, 1..2], &[true], 0.1).unwrap_err();
        assert_eq!(error, AlgorithmError::Range { row: 1, start: 1, end: 2, tokens: 1 });
        let error = subtract_kl_penalty(&mut rewards, &[-1.0], &[-1.0], &[0..1, 0..1], &[], 0.1).unwrap_err();
        assert_eq!(error, AlgorithmError::Length { name: "completion_mask", expected: 1, got: 0 });
    }
}
