//! Rewards of a step -> one advantage a row.
//!
//! Group-relative advantages of GRPO (arXiv:2402.03300, section 4.1.2) with the scalings of TRL's `scale_rewards`.
//! Rows are group-major: row = prompt * `num_generations` + completion. Where the rewards come from is none of this
//! module's business.

use serde::{Deserialize, Serialize};

use super::AlgorithmError;

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

/// The advantages of a step and what is logged about its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// `[P * G]`, group-major. A row without a score has 0.
    pub advantages: Vec<f64>,
    /// `[P]`, mean and spread of each group.
    pub groups: Vec<GroupStats>,
    /// Mean and spread over all scored rows of the step: the metrics `reward` and `reward_std`.
    pub batch: GroupStats,
    /// Groups whose scored rewards are all equal: they teach nothing. Over `groups.len()` it is `frac_reward_zero_std`.
    pub zero_std_groups: usize,
}

/// Computes group-relative advantages: `A = (R - mean of the group) / (std + 1e-4)`, or `R - mean` without scaling.
///
/// A row with no score (`None`) leaves mean and standard deviation and gets advantage 0. A group whose rewards are all
/// equal gets advantages of exactly 0. It is counted in `zero_std_groups` whatever the scaling (TRL looks at the whole
/// batch for `batch` scaling, which says nothing about single groups).
///
/// # Shapes
/// `rewards [P * num_generations]`, group-major -> `advantages [P * num_generations]`.
///
/// # Errors
/// When the rewards do not make whole groups.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{ScaleRewards, compute_advantages};
///
/// let rewards = [Some(1.0), Some(0.0), None, Some(0.5)];
/// let step = compute_advantages(&rewards, 2, ScaleRewards::None)?;
/// assert_eq!(step.advantages, [0.5, -0.5, 0.0, 0.0]);
/// assert_eq!(step.zero_std_groups, 1);
/// # Ok::<(), candlewick::algorithm::AlgorithmError>(())
/// ```
pub fn compute_advantages(
    rewards: &[Option<f64>],
    num_generations: usize,
    scale: ScaleRewards,
) -> Result<Advantages, AlgorithmError> {
    if num_generations == 0 || !rewards.len().is_multiple_of(num_generations) {
        return Err(AlgorithmError::Groups { rewards: rewards.len(), num_generations });
    }
    let batch = compute_stats(rewards);
    let groups: Vec<GroupStats> = rewards.chunks_exact(num_generations).map(compute_stats).collect();
    let advantages = rewards
        .iter()
        .enumerate()
        .map(|(row, reward)| {
            let group = &groups[row / num_generations];
            let difference = reward.map_or(0.0, |reward| reward - group.mean);
            match scale {
                ScaleRewards::Group => difference / (group.std + STD_EPSILON),
                ScaleRewards::Batch => difference / (batch.std + STD_EPSILON),
                ScaleRewards::None => difference,
            }
        })
        .collect();
    let zero_std_groups = groups.iter().filter(|group| group.std <= ZERO_STD).count();
    Ok(Advantages { advantages, groups, batch, zero_std_groups })
}

/// Mean and Bessel-corrected standard deviation of the rows that have a score.
fn compute_stats(rewards: &[Option<f64>]) -> GroupStats {
    let scored = || rewards.iter().flatten().copied();
    let num_scored = scored().count();
    let Some(first) = scored().next() else {
        return GroupStats { mean: f64::NAN, std: 0.0, num_scored };
    };
    // Bitwise equal rewards: the rounding of sum / count must not turn them into tiny advantages.
    if scored().all(|reward| reward.to_bits() == first.to_bits()) {
        return GroupStats { mean: first, std: 0.0, num_scored };
    }
    let mean = scored().sum::<f64>() / num_scored as f64;
    let squares: f64 = scored().map(|reward| (reward - mean).powi(2)).sum();
    GroupStats { mean, std: (squares / (num_scored - 1) as f64).sqrt(), num_scored }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn group_scaling_divides_by_the_corrected_deviation() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0].map(Some);
        let step = compute_advantages(&rewards, 4, ScaleRewards::Group).unwrap();
        let expected = 0.5 / ((1.0f64 / 3.0).sqrt() + 1e-4);
        assert!(close(step.advantages[0], expected) && close(step.advantages[1], -expected));
        assert_eq!(step.advantages[4..], [0.0; 4]);
        assert_eq!(step.zero_std_groups, 1);
        assert!(close(step.batch.mean, 1.25));
    }

    #[test]
    fn batch_scaling_uses_one_deviation_for_all_groups() {
        let rewards = [1.0, 0.0, 3.0, 5.0].map(Some);
        let step = compute_advantages(&rewards, 2, ScaleRewards::Batch).unwrap();
        let std = (14.75f64 / 3.0).sqrt() + 1e-4;
        for (got, expected) in step.advantages.iter().zip([0.5 / std, -0.5 / std, -1.0 / std, 1.0 / std]) {
            assert!(close(*got, expected), "{got} {expected}");
        }
    }

    #[test]
    fn rows_without_a_score_leave_the_baseline() {
        let rewards = [Some(1.0), None, Some(3.0), None, None, None];
        let step = compute_advantages(&rewards, 3, ScaleRewards::None).unwrap();
        assert_eq!(step.advantages, [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(step.groups[1].num_scored, 0);
        assert!(step.groups[1].mean.is_nan());
        assert_eq!(step.zero_std_groups, 1);
        assert!(close(step.batch.mean, 2.0));
    }

    #[test]
    fn equal_rewards_that_round_badly_give_exact_zeros() {
        let step = compute_advantages(&[Some(0.1); 3], 3, ScaleRewards::Group).unwrap();
        assert_eq!(step.advantages, [0.0; 3]);
    }

    #[test]
    fn a_single_generation_teaches_nothing() {
        let step = compute_advantages(&[Some(2.0), Some(1.0)], 1, ScaleRewards::Group).unwrap();
        assert_eq!(step.advantages, [0.0; 2]);
        assert_eq!(step.zero_std_groups, 2);
    }

    #[test]
    fn incomplete_groups_are_refused() {
        for num_generations in [0, 2] {
            assert_eq!(
                compute_advantages(&[Some(1.0); 3], num_generations, ScaleRewards::Group),
                Err(AlgorithmError::Groups { rewards: 3, num_generations })
            );
        }
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_sum_to_zero(
            rewards in prop::collection::vec(prop::option::weighted(0.9, -10.0f64..10.0), 24),
            scale in prop::sample::select(vec![ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None]),
        ) {
            let step = compute_advantages(&rewards, 6, scale).unwrap();
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
            let a = compute_advantages(&plain, 4, ScaleRewards::Group).unwrap();
            let b = compute_advantages(&shifted, 4, ScaleRewards::Group).unwrap();
            for (a, b) in a.advantages.iter().zip(&b.advantages) {
                prop_assert!((a - b).abs() <= 1e-8);
            }
        }
    }
}
