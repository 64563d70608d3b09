//! Rewards of a step's groups -> what the objective multiplies each token with, and which tokens it sees.

use super::rollouts::ScoredGroup;
use super::rows::completion_mask;
use crate::algorithm::{
    AdvantageEstimator, AlgorithmError, ScaleRewards, compute_advantages, compute_token_advantages, subtract_kl_penalty,
};
use crate::checkpoint::SavedCompletion;
use std::ops::Range;

/// What a step's rewards are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparison {
    pub estimator: AdvantageEstimator,
    pub num_generations: usize,
    /// Weight of the KL divergence that is taken off the rewards, 0: none.
    pub kl_in_reward: f64,
    /// Completions that the length limit cut are not in the loss.
    pub mask_truncated: bool,
}

impl Comparison {
    /// Fills in the advantages, and takes completions that the estimator does not learn from out of the loss.
    ///
    /// # Errors
    /// Where groups have different sizes, which no source makes.
    pub fn fill_in(&self, groups: &mut [&mut ScoredGroup]) -> Result<(), AlgorithmError> {
        let rewards = self.penalised_rewards(groups)?;
        let greedy: Vec<Option<f64>> = groups.iter().map(|group| group.greedy_reward).collect();
        let compared = compute_advantages(&rewards, self.num_generations, self.estimator, Some(&greedy))?;
        self.fill_in_token_advantages(groups)?;
        let rows = groups.iter_mut().flat_map(|group| &mut group.saved.completions);
        for ((row, advantage), is_included) in rows.zip(compared.advantages).zip(compared.included) {
            row.advantage = advantage;
            if !is_included {
                row.keep = vec![false; row.ids.len()];
            }
        }
        Ok(())
    }

    /// Fills in the advantages of tokens from their own rewards, where any token has one.
    fn fill_in_token_advantages(&self, groups: &mut [&mut ScoredGroup]) -> Result<(), AlgorithmError> {
        let scale = match self.estimator {
            AdvantageEstimator::Group(scale) => scale,
            // What is learned as it stands is not weighed token by token.
            AdvantageEstimator::Best { .. } => return Ok(()),
            _ => ScaleRewards::default(),
        };
        let rows: Vec<&SavedCompletion> = groups.iter().flat_map(|group| &group.saved.completions).collect();
        let scores: Vec<&Vec<Option<f64>>> = groups.iter().flat_map(|group| &group.token_values).collect();
        if scores.iter().all(|scores| scores.is_empty()) {
            return Ok(());
        }
        let values: Vec<Option<f64>> = rows
            .iter()
            .zip(&scores)
            .flat_map(|(row, scores)| (0..row.ids.len()).map(|t| scores.get(t).copied().flatten()))
            .collect();
        let ranges = ranges(&rows);
        let advantages = compute_token_advantages(&values, &ranges, self.num_generations, scale)?;
        let rows = groups.iter_mut().flat_map(|group| &mut group.saved.completions);
        rows.zip(ranges).for_each(|(row, range)| row.token_advantages = advantages[range].to_vec());
        Ok(())
    }

    /// The rewards, less the KL penalty where it is a part of them.
    fn penalised_rewards(&self, groups: &[&mut ScoredGroup]) -> Result<Vec<Option<f64>>, AlgorithmError> {
        let rows: Vec<&SavedCompletion> = groups.iter().flat_map(|group| &group.saved.completions).collect();
        let mut rewards: Vec<Option<f64>> = rows.iter().map(|row| row.reward).collect();
        if self.kl_in_reward > 0.0 {
            let flat = |values: fn(&SavedCompletion) -> &Vec<f32>| -> Vec<f64> {
                rows.iter().flat_map(|row| values(row)).copied().map(f64::from).collect()
            };
            let (old, reference) = (flat(|row| &row.old_logprobs), flat(|row| &row.ref_logprobs));
            let mask: Vec<bool> = rows.iter().flat_map(|row| completion_mask(row, self.mask_truncated)).collect();
            subtract_kl_penalty(&mut rewards, &old, &reference, &ranges(&rows), &mask, self.kl_in_reward)?;
        }
        Ok(rewards)
    }
}

/// The range of each completion's tokens in a flat array over all of them.
fn ranges(rows: &[&SavedCompletion]) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |row: &&SavedCompletion| {
        end += row.ids.len();
        end - row.ids.len()..end
    };
    rows.iter().map(range).collect()
}
