//! Estimators of the KL divergence between the policy and the frozen reference policy, per token.
//!
//! With `u = ref_logprob - logprob` (nats): k1 = -u, k2 = u^2 / 2, k3 = e^u - u - 1 (arXiv:2402.03300 eq. 4;
//! joschu.net/blog/kl-approx). On fresh samples the mean gradient of k2 is that of KL(policy || reference), the mean
//! gradient of k3 that of KL(reference || policy). The mean gradient of k1 in the loss would be zero, so k1 is never
//! differentiated: it is taken off the rewards by [`subtract_kl_penalty`].

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{AlgorithmError, check_length, check_ranges};

/// Which per-token estimate of KL(policy || reference) is used.
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
}

impl KlEstimator {
    /// Whether the penalty is a term of the loss (k2, k3) or goes into the reward (k1).
    #[must_use]
    pub fn is_in_loss(self) -> bool {
        !matches!(self, Self::K1)
    }

    /// The estimate of one token in nats and its derivative with respect to the token's `logprob`.
    #[must_use]
    pub fn compute(self, logprob: f64, ref_logprob: f64) -> (f64, f64) {
        let u = ref_logprob - logprob;
        match self {
            Self::K1 => (-u, 1.0),
            Self::K2 => (0.5 * u * u, -u),
            // exp_m1 keeps the digits of the estimate where the policies are close, as they are at the start.
            Self::K3 => (u.exp_m1() - u, -u.exp_m1()),
        }
    }
}

/// Takes the k1 penalty off each row's reward: `R_i -= beta * sum over t of (old_logprob - ref_logprob)`, as in RLOO.
///
/// Called before the advantages are computed when `kl_estimator = "k1"`. Rows without a score stay without one. A row
/// that is not `included` (a truncated completion that is masked) has no active tokens and keeps its reward.
///
/// # Shapes
/// `rewards [B]`, `rows [B]` (token range of each row), `included [B]`; `old_logprobs [N]`, `ref_logprobs [N]`, nats.
///
/// # Errors
/// When the lengths do not fit together.
pub fn subtract_kl_penalty(
    rewards: &mut [Option<f64>],
    old_logprobs: &[f64],
    ref_logprobs: &[f64],
    rows: &[Range<usize>],
    included: &[bool],
    beta: f64,
) -> Result<(), AlgorithmError> {
    check_length("ref_logprobs", ref_logprobs.len(), old_logprobs.len())?;
    check_length("rewards", rewards.len(), rows.len())?;
    check_length("included", included.len(), rows.len())?;
    check_ranges(rows, old_logprobs.len())?;
    for ((reward, range), _) in rewards.iter_mut().zip(rows).zip(included).filter(|(_, included)| **included) {
        let old = &old_logprobs[range.clone()];
        let reference = &ref_logprobs[range.clone()];
        let kl: f64 = old.iter().zip(reference).map(|(old, reference)| old - reference).sum();
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
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
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
    fn the_penalty_is_taken_off_scored_and_included_rows() {
        let mut rewards = [Some(1.0), None, Some(2.0), Some(3.0)];
        let old = [-1.0, -2.0, -0.5, -1.0];
        let reference = [-1.5, -2.5, -0.25, -3.0];
        subtract_kl_penalty(&mut rewards, &old, &reference, &[0..2, 2..3, 2..3, 3..4], &[true, true, true, false], 0.5)
            .unwrap();
        assert_eq!(rewards, [Some(0.5), None, Some(2.125), Some(3.0)]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut rewards = [Some(1.0); 2];
        let error = subtract_kl_penalty(&mut rewards, &[-1.0], &[-1.0], &[0..1, 1..2], &[true; 2], 0.1).unwrap_err();
        assert_eq!(error, AlgorithmError::Range { row: 1, start: 1, end: 2, tokens: 1 });
    }
}
