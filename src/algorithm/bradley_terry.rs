//! The objective of a reward model: of two completions of a prompt the better one gets the higher score (Bradley-Terry;
//! Ouyang et al., arXiv:2203.02155 eq. 1).
//!
//! `loss = -log sigmoid(c - r) + lambda (c + r)^2`, a mean over pairs, with the scores c of the chosen and r of the
//! rejected completion. The second term keeps scores around 0 (arXiv:2312.09244 eq. 2); the names are TRL's.

use super::preference::{sigmoid, softplus};

/// A micro-batch's share of the loss, and its derivatives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RewardObjective {
    pub loss: f64,
    /// By each score, `[2 K]`.
    pub grad: Vec<f64>,
    pub stats: RewardStats,
}

/// What is logged of scores, to be merged over the micro-batches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RewardStats {
    pub pairs: u64,
    /// Pairs whose chosen completion has the higher score: `accuracy` times `pairs`.
    pub accurate: u64,
    /// Sum of the scores' differences: `margin` times `pairs`.
    pub margin_sum: f64,
    /// Sum of all scores: `mean_reward` times twice the pairs.
    pub score_sum: f64,
    /// The lowest and the highest score; `None` before there was one.
    pub range: Option<(f64, f64)>,
}

impl RewardStats {
    /// Adds the statistics of another micro-batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.accurate += other.accurate;
        self.margin_sum += other.margin_sum;
        self.score_sum += other.score_sum;
        self.range = match (self.range, other.range) {
            (Some((low, high)), Some((other_low, other_high))) => Some((low.min(other_low), high.max(other_high))),
            (own, other) => own.or(other),
        };
    }
}

/// Computes one micro-batch's share of the mean loss over the step's pairs.
///
/// # Shapes
/// `scores [2 K]`: of pair k the chosen completion at `2 k`, the rejected one at `2 k + 1`; `num_pairs`: pairs of the whole
/// step; `center`: lambda, 0 or more.
///
/// # Examples
/// ```
/// use candlewick::algorithm::compute_reward_objective;
///
/// let objective = compute_reward_objective(&[1.0, 1.0], 0.0, 1);
/// assert!((objective.loss - 2.0f64.ln()).abs() < 1e-12);
/// assert_eq!(objective.grad, [-0.5, 0.5]);
/// assert_eq!(objective.stats.accurate, 0);
/// ```
#[must_use]
pub fn compute_reward_objective(scores: &[f64], center: f64, num_pairs: usize) -> RewardObjective {
    let weight = 1.0 / num_pairs.max(1) as f64;
    let mut found = RewardObjective::default();
    for pair in scores.chunks_exact(2) {
        let (c, r) = (pair[0], pair[1]);
        found.loss += weight * (softplus(r - c) + center * (c + r).powi(2));
        let (slope, pull) = (sigmoid(r - c), 2.0 * center * (c + r));
        found.grad.extend([weight * (pull - slope), weight * (pull + slope)]);
        found.stats.merge(&RewardStats {
            pairs: 1,
            accurate: u64::from(c > r),
            margin_sum: c - r,
            score_sum: c + r,
            range: Some((c.min(r), c.max(r))),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f64; 6] = [0.5, -0.25, -1.5, 2.0, 0.75, 0.75];

    #[test]
    fn gradients_match_finite_differences() {
        let step = 1e-6;
        for center in [0.0, 0.3] {
            let found = compute_reward_objective(&SCORES, center, 4);
            assert_eq!(found.grad.len(), 6);
            for (index, slope) in found.grad.iter().enumerate() {
                let loss = |change: f64| {
                    let mut moved = SCORES;
                    moved[index] += change;
                    compute_reward_objective(&moved, center, 4).loss
                };
                let numeric = (loss(step) - loss(-step)) / (2.0 * step);
                assert!((numeric - slope).abs() < 1e-8, "{center} {index}: {numeric} {slope}");
            }
        }
    }

    /// `-log sigmoid` of 0.75, -3.5 and 0 and the squares 0.25^2, 0.5^2, 1.5^2, worked out by hand.
    #[test]
    fn the_loss_is_that_of_the_formula() {
        let logs = 0.386_871_006_f64 + 3.529_750_407 + std::f64::consts::LN_2;
        let found = compute_reward_objective(&SCORES, 0.1, 3);
        assert!((found.loss - (logs + 0.1 * (0.0625 + 0.25 + 2.25)) / 3.0).abs() < 1e-8, "{}", found.loss);
        let stats = found.stats;
        assert_eq!((stats.pairs, stats.accurate, stats.range), (3, 1, Some((-1.5, 2.0))));
        assert!((stats.margin_sum + 2.75).abs() < 1e-12 && (stats.score_sum - 2.25).abs() < 1e-12);
    }

    /// The shares of micro-batches add up to the whole.
    #[test]
    fn the_cut_changes_nothing() {
        let whole = compute_reward_objective(&SCORES, 0.1, 3);
        let (first, rest) =
            (compute_reward_objective(&SCORES[..2], 0.1, 3), compute_reward_objective(&SCORES[2..], 0.1, 3));
        assert!((first.loss + rest.loss - whole.loss).abs() < 1e-15);
        let mut stats = first.stats;
        stats.merge(&rest.stats);
        assert_eq!(stats, whole.stats);
        assert_eq!([first.grad, rest.grad].concat(), whole.grad);
    }

    #[test]
    fn far_scores_do_not_overflow_and_nan_is_not_hidden() {
        for scores in [[1e4, -1e4], [-1e4, 1e4]] {
            let found = compute_reward_objective(&scores, 0.0, 1);
            assert!(found.loss.is_finite() && found.grad.iter().all(|slope| slope.is_finite()));
        }
        assert!(compute_reward_objective(&[f64::NAN, 0.0], 0.0, 1).loss.is_nan());
    }
}
