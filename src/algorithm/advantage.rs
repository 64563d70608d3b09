//! Rewards of a step -> one advantage a row.
//!
//! What a reward is compared with, and what the difference is divided by: [`AdvantageEstimator`]. Rows are group-major: row = prompt * `num_generations` + completion. Where the rewards come from is none of this
//! module's business.

use serde::{Deserialize, Serialize};

use super::{AlgorithmError, check_length};

/// Added to the standard deviation before dividing, as TRL does; in units of the reward.
const STD_EPSILON: f64 = 1e-4;

/// A standard deviation up to this size counts as zero (the tolerance of `torch.isclose` against zero).
const ZERO_STD: f64 = 1e-8;

/// What the difference between a reward and its group's mean is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the row's group (the paper's choice).
    #[default]
    Group,
    /// The standard deviation of all rewards of the step.
    Batch,
    /// Nothing: keeps hard and easy prompts at their own scale (Dr. GRPO, arXiv:2503.20783).
    None,
}

/// What the reward of a completion is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdvantageEstimator {
    /// The mean of its group: `(R - mean) / (std + 1e-4)`, or `R - mean` without scaling (GRPO, arXiv:2402.03300,
    /// section 4.1.2).
    Group(ScaleRewards),
    /// The mean of the others of its group: `R_i - (sum - R_i) / (G - 1)` (RLOO, arXiv:2402.14740). A row that is the
    /// only scored one of its group has advantage 0.
    LeaveOneOut,
    /// The reward of the greedy completion of the same prompt (`ReMax`, arXiv:2310.10505). A prompt whose greedy
    /// completion has no score gives advantage 0: there is nothing to compare with.
    Greedy,
    /// The mean of its group, and the difference is divided by the standard deviation of these differences over the
    /// batch (REINFORCE++-baseline, arXiv:2501.03262).
    Whitened,
    /// The best row of a group has advantage 1, and every other row leaves the loss (RAFT, arXiv:2304.06767). Among
    /// equal rows the first is the best.
    Best {
        /// A row is kept only where its reward is above this.
        min_reward: Option<f64>,
    },
}

/// Mean and spread of the scored rewards of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupStats {
    /// Mean reward; NaN where no row has a score.
    pub mean: f64,
    /// Standard deviation with Bessel's correction; 0 where fewer than two rows have a score.
    pub std: f64,
    /// Rows that have a score.
    pub num_scored: usize,
}

impl GroupStats {
    /// Whether rewards differ: a group without a spread teaches nothing where it is compared with itself.
    #[must_use]
    pub fn has_spread(&self) -> bool {
        self.std > ZERO_STD
    }
}

/// The advantages of a step and what is logged about its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// `[P * G]`, group-major. A row without a score has 0.
    pub advantages: Vec<f64>,
    /// `[P * G]`, false where the estimator takes the row out of the loss ([`AdvantageEstimator::Best`]).
    pub included: Vec<bool>,
    /// `[P]`, mean and spread of each group.
    pub groups: Vec<GroupStats>,
    /// Mean and spread over all scored rows of the step: the metrics `reward` and `reward_std`.
    pub batch: GroupStats,
    /// Groups whose scored rewards are all equal: they teach nothing. Over `groups.len()` it is `frac_reward_zero_std`.
    pub zero_std_groups: usize,
}

/// Computes the advantage of each row from the rewards of a step.
///
/// A row with no score (`None`) leaves mean and standard deviation and gets advantage 0. A group whose rewards are all
/// equal gets advantages of exactly 0 where it is compared with itself. It is counted in `zero_std_groups` whatever the
/// estimator (TRL looks at the whole batch for `batch` scaling, which says nothing about single groups).
///
/// # Shapes
/// `rewards [P * num_generations]`, group-major; `greedy [P]`, which only [`AdvantageEstimator::Greedy`] reads ->
/// `advantages [P * num_generations]`.
///
/// # Errors
/// When the rewards do not make whole groups, or `greedy` is missing or does not fit.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{AdvantageEstimator, ScaleRewards, compute_advantages};
///
/// let rewards = [Some(1.0), Some(0.0), None, Some(0.5)];
/// let step = compute_advantages(&rewards, 2, AdvantageEstimator::Group(ScaleRewards::None), None)?;
/// assert_eq!(step.advantages, [0.5, -0.5, 0.0, 0.0]);
/// assert_eq!(step.zero_std_groups, 1);
/// let step = compute_advantages(&rewards, 2, AdvantageEstimator::Greedy, Some(&[Some(0.5), Some(1.0)]))?;
/// assert_eq!(step.advantages, [0.5, -0.5, 0.0, -0.5]);
/// # Ok::<(), candlewick::algorithm::AlgorithmError>(())
/// ```
pub fn compute_advantages(
    rewards: &[Option<f64>],
    num_generations: usize,
    estimator: AdvantageEstimator,
    greedy: Option<&[Option<f64>]>,
) -> Result<Advantages, AlgorithmError> {
    if num_generations == 0 || !rewards.len().is_multiple_of(num_generations) {
        return Err(AlgorithmError::Groups { rewards: rewards.len(), num_generations });
    }
    let batch = compute_stats(rewards.iter().copied());
    let groups: Vec<GroupStats> =
        rewards.chunks_exact(num_generations).map(|group| compute_stats(group.iter().copied())).collect();
    let zero_std_groups = groups.iter().filter(|group| !group.has_spread()).count();
    let mut included = vec![true; rewards.len()];
    let centred = || {
        let rows = rewards.iter().enumerate();
        rows.map(|(row, reward)| reward.map_or(0.0, |reward| reward - groups[row / num_generations].mean))
    };
    let advantages = match estimator {
        AdvantageEstimator::Group(scale) => centred()
            .enumerate()
            .map(|(row, difference)| scale.apply(difference, groups[row / num_generations].std, batch.std))
            .collect(),
        AdvantageEstimator::LeaveOneOut => centred()
            .enumerate()
            // R - (sum - R) / (n - 1) = (R - mean) n / (n - 1), which is exactly 0 where all rewards are equal.
            .map(|(row, difference)| match groups[row / num_generations].num_scored {
                0 | 1 => 0.0,
                n => difference * n as f64 / (n - 1) as f64,
            })
            .collect(),
        AdvantageEstimator::Greedy => compare_with_greedy(rewards, num_generations, greedy)?,
        AdvantageEstimator::Whitened => {
            // The differences of a group sum to 0, so their mean over the batch is 0 and is not taken off once more:
            // its rounding would push the exact zeros of equal groups.
            let squares: f64 = centred().map(|difference| difference * difference).sum();
            let std = (squares / batch.num_scored.saturating_sub(1).max(1) as f64).sqrt();
            centred().map(|difference| difference / (std + STD_EPSILON)).collect()
        }
        AdvantageEstimator::Best { min_reward } => {
            for (group, included) in rewards.chunks(num_generations).zip(included.chunks_mut(num_generations)) {
                included.fill(false);
                if let Some(best) = find_best(group, min_reward) {
                    included[best] = true;
                }
            }
            included.iter().map(|is| f64::from(u8::from(*is))).collect()
        }
    };
    Ok(Advantages { advantages, included, groups, batch, zero_std_groups })
}

impl ScaleRewards {
    /// Divides a difference by the standard deviation that is asked for.
    pub(super) fn apply(self, difference: f64, group_std: f64, batch_std: f64) -> f64 {
        match self {
            Self::Group => difference / (group_std + STD_EPSILON),
            Self::Batch => difference / (batch_std + STD_EPSILON),
            Self::None => difference,
        }
    }
}

/// The reward of each row less that of its prompt's greedy completion; 0 where either has no score.
fn compare_with_greedy(
    rewards: &[Option<f64>],
    num_generations: usize,
    greedy: Option<&[Option<f64>]>,
) -> Result<Vec<f64>, AlgorithmError> {
    let greedy = greedy.ok_or(AlgorithmError::MissingGreedy)?;
    check_length("greedy", greedy.len(), rewards.len() / num_generations)?;
    let rows = rewards.chunks(num_generations).zip(greedy).flat_map(|(group, baseline)| {
        group.iter().map(|reward| reward.zip(*baseline).map_or(0.0, |(reward, baseline)| reward - baseline))
    });
    Ok(rows.collect())
}

/// The first of the best-scored rows of a group, if its reward is above `min_reward`.
fn find_best(group: &[Option<f64>], min_reward: Option<f64>) -> Option<usize> {
    let scored = group.iter().enumerate().filter_map(|(row, reward)| Some((row, (*reward)?)));
    let kept = scored.filter(|(_, reward)| min_reward.is_none_or(|least| *reward > least));
    kept.reduce(|best, row| if row.1 > best.1 { row } else { best }).map(|(row, _)| row)
}

/// Mean and Bessel-corrected standard deviation of the values that there are.
pub(super) fn compute_stats(values: impl IntoIterator<Item = Option<f64>>) -> GroupStats {
    let scored: Vec<f64> = values.into_iter().flatten().collect();
    let num_scored = scored.len();
    let Some(first) = scored.first() else {
        return GroupStats { mean: f64::NAN, std: 0.0, num_scored };
    };
    // Bitwise equal rewards: the rounding of sum / count must not turn them into tiny advantages.
    if scored.iter().all(|reward| reward.to_bits() == first.to_bits()) {
        return GroupStats { mean: *first, std: 0.0, num_scored };
    }
    let mean = scored.iter().sum::<f64>() / num_scored as f64;
    let squares: f64 = scored.iter().map(|reward| (reward - mean).powi(2)).sum();
    GroupStats { mean, std: (squares / (num_scored - 1) as f64).sqrt(), num_scored }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::AdvantageEstimator::{Best, Greedy, Group, LeaveOneOut, Whitened};
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn group_scaling_divides_by_the_corrected_deviation() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0].map(Some);
        let step = compute_advantages(&rewards, 4, Group(ScaleRewards::Group), None).unwrap();
        let expected = 0.5 / ((1.0f64 / 3.0).sqrt() + 1e-4);
        assert!(close(step.advantages[0], expected) && close(step.advantages[1], -expected));
        assert_eq!(step.advantages[4..], [0.0; 4]);
        assert_eq!(step.zero_std_groups, 1);
        assert!(close(step.batch.mean, 1.25));
    }

    #[test]
    fn batch_scaling_uses_one_deviation_for_all_groups() {
        let rewards = [1.0, 0.0, 3.0, 5.0].map(Some);
        let step = compute_advantages(&rewards, 2, Group(ScaleRewards::Batch), None).unwrap();
        let std = (14.75f64 / 3.0).sqrt() + 1e-4;
        for (got, expected) in step.advantages.iter().zip([0.5 / std, -0.5 / std, -1.0 / std, 1.0 / std]) {
            assert!(close(*got, expected), "{got} {expected}");
        }
    }

    #[test]
    fn rows_without_a_score_leave_the_baseline() {
        let rewards = [Some(1.0), None, Some(3.0), None, None, None];
        let step = compute_advantages(&rewards, 3, Group(ScaleRewards::None), None).unwrap();
        assert_eq!(step.advantages, [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(step.groups[1].num_scored, 0);
        assert!(step.groups[1].mean.is_nan());
        assert_eq!(step.zero_std_groups, 1);
        assert!(close(step.batch.mean, 2.0));
    }

    #[test]
    fn equal_rewards_that_round_badly_give_exact_zeros() {
        let step = compute_advantages(&[Some(0.1); 3], 3, Group(ScaleRewards::Group), None).unwrap();
        assert_eq!(step.advantages, [0.0; 3]);
    }

    #[test]
    fn a_single_generation_teaches_nothing() {
        let step = compute_advantages(&[Some(2.0), Some(1.0)], 1, Group(ScaleRewards::Group), None).unwrap();
        assert_eq!(step.advantages, [0.0; 2]);
        assert_eq!(step.zero_std_groups, 2);
    }

    #[test]
    fn incomplete_groups_are_refused() {
        for num_generations in [0, 2] {
            assert_eq!(
                compute_advantages(&[Some(1.0); 3], num_generations, Group(ScaleRewards::Group), None),
                Err(AlgorithmError::Groups { rewards: 3, num_generations })
            );
        }
    }

    #[test]
    fn leave_one_out_compares_with_the_others() {
        let rewards = [
            Some(1.0),
            Some(4.0),
            None,
            Some(1.0),
            None,
            Some(7.0),
            None,
            None,
            Some(0.1),
            Some(0.1),
            Some(0.1),
            Some(0.1),
        ];
        let step = compute_advantages(&rewards, 4, LeaveOneOut, None).unwrap();
        let expected = [-1.5, 3.0, 0.0, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        for (got, expected) in step.advantages.iter().zip(expected) {
            assert!(close(*got, expected), "{got} {expected}");
        }
        assert_eq!(step.advantages[8..], [0.0; 4]);
        assert_eq!((step.zero_std_groups, step.included), (2, vec![true; 12]));
    }

    #[test]
    fn greedy_compares_with_the_greedy_completion_of_the_prompt() {
        let rewards = [Some(1.0), Some(0.0), Some(1.0), None, Some(2.0), Some(1.0)];
        let step = compute_advantages(&rewards, 2, Greedy, Some(&[Some(1.0), Some(0.25), None])).unwrap();
        assert_eq!(step.advantages, [0.0, -1.0, 0.75, 0.0, 0.0, 0.0]);
        // A group of equal rewards may well teach something here.
        let step = compute_advantages(&[Some(1.0); 2], 2, Greedy, Some(&[Some(0.0)])).unwrap();
        assert_eq!((step.advantages, step.zero_std_groups), (vec![1.0; 2], 1));
        assert_eq!(compute_advantages(&rewards, 2, Greedy, None), Err(AlgorithmError::MissingGreedy));
        let short = AlgorithmError::Length { name: "greedy", expected: 3, got: 1 };
        assert_eq!(compute_advantages(&rewards, 2, Greedy, Some(&[None])), Err(short));
    }

    #[test]
    fn whitened_divides_by_the_deviation_of_the_differences() {
        let rewards = [Some(1.0), Some(3.0), None, Some(10.0), Some(10.0), Some(10.0), Some(8.0), None, Some(0.0)];
        let step = compute_advantages(&rewards, 3, Whitened, None).unwrap();
        // Differences -1, 1, 0 x 3, 4, -4: seven scored rows, sum of squares 34.
        let std = (34.0f64 / 6.0).sqrt() + 1e-4;
        for (got, expected) in step.advantages.iter().zip([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0, -4.0]) {
            assert!(close(*got, expected / std), "{got} {expected}");
        }
        assert_eq!(compute_advantages(&[Some(1.0); 4], 2, Whitened, None).unwrap().advantages, [0.0; 4]);
    }

    #[test]
    fn best_keeps_one_row_of_a_group() {
        let rewards = [Some(1.0), Some(2.0), Some(2.0), None, Some(0.5), Some(0.25), None, None, None];
        let keep = |min_reward| compute_advantages(&rewards, 3, Best { min_reward }, None).unwrap();
        let t = true;
        assert_eq!(keep(None).included, [!t, t, !t, !t, t, !t, !t, !t, !t]);
        assert_eq!(keep(None).advantages, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        // The bound itself is not above the bound.
        assert_eq!(keep(Some(0.5)).included, [!t, t, !t, !t, !t, !t, !t, !t, !t]);
        assert_eq!(keep(Some(2.0)).advantages, [0.0; 9]);
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_sum_to_zero(
            rewards in prop::collection::vec(prop::option::weighted(0.9, -10.0f64..10.0), 24),
            estimator in prop::sample::select(vec![
                Group(ScaleRewards::Group), Group(ScaleRewards::Batch), Group(ScaleRewards::None), LeaveOneOut, Whitened,
            ]),
        ) {
            let step = compute_advantages(&rewards, 6, estimator, None).unwrap();
            for group in step.advantages.chunks(6) {
                let size: f64 = group.iter().map(|a| a.abs()).sum();
                prop_assert!(group.iter().sum::<f64>().abs() <= 1e-9 * size.max(1.0));
            }
        }

        #[test]
        fn a_shift_of_all_rewards_changes_nothing(
            rewards in prop::collection::vec(-10.0f64..10.0, 12),
            shift in -5.0f64..5.0,
        ) {
            let plain: Vec<_> = rewards.iter().copied().map(Some).collect();
            let shifted: Vec<_> = rewards.iter().map(|reward| Some(reward + shift)).collect();
            let a = compute_advantages(&plain, 4, Group(ScaleRewards::Group), None).unwrap();
            let b = compute_advantages(&shifted, 4, Group(ScaleRewards::Group), None).unwrap();
            for (a, b) in a.advantages.iter().zip(&b.advantages) {
                prop_assert!((a - b).abs() <= 1e-8);
            }
        }
    }
}
