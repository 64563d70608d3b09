//! Dynamic sampling (DAPO, arXiv:2503.14476 section 3.2): a group whose completions all have the same reward has no
//! advantage, so other prompts are drawn in its place.
//!
//! Owns which groups a step learns from and how many prompts the next round draws. Sampling itself is the business of
//! `rollouts.rs`. A round draws as many prompts as the rounds before it say are needed for what is missing: the paper
//! draws whole batches and drops what is left over.

use super::rollouts::{RolloutSource, Rollouts, ScoredGroup};
use super::{StepContext, TrainError};
use crate::model::Decoder;

impl RolloutSource {
    /// Samples prompts until `wanted` of them have completions with different rewards, in at most `max_rounds` rounds.
    /// All of them are in `rollouts`, in the order of the data; those that are not to be learned from are set aside.
    ///
    /// # Errors
    /// As [`RolloutSource::sample`].
    pub(super) fn sample_with_spread(
        &mut self,
        decoder: &Decoder,
        at: &StepContext<'_>,
        wanted: usize,
        max_rounds: usize,
        rollouts: &mut Rollouts,
    ) -> Result<(), TrainError> {
        let mut kept = 0;
        for _ in 0..max_rounds {
            let drawn = rollouts.groups.len();
            let count = next_round(wanted, kept, drawn);
            self.sample(decoder, at, count, rollouts)?;
            let stats = rollouts.reward_stats(self.config.num_generations)?;
            for (group, stats) in rollouts.groups.iter_mut().zip(&stats.groups).skip(drawn) {
                let is_kept = kept < wanted && (stats.has_spread() || has_token_spread(group));
                group.is_set_aside = !is_kept;
                kept += usize::from(is_kept);
            }
            if kept == wanted {
                return Ok(());
            }
        }
        tracing::info!(
            "step {}: {kept} of the {} prompts that max_sampling_rounds = {max_rounds} allows have different rewards, \
             {wanted} are wanted",
            at.step,
            rollouts.groups.len()
        );
        Ok(())
    }
}

/// Prompts of the next round, where `kept` of `drawn` can be learned from and `wanted` are to be.
fn next_round(wanted: usize, kept: usize, drawn: usize) -> usize {
    let missing = wanted - kept;
    // The share that could be learned from so far tells how many are needed; never more than a whole step's.
    if kept == 0 { wanted } else { (missing * drawn).div_ceil(kept).min(wanted) }
}

/// Whether the rewards of tokens differ, which teach something even where those of the completions are equal.
pub(super) fn has_token_spread(group: &ScoredGroup) -> bool {
    let mut values = group.token_values.iter().flatten().flatten();
    values.next().is_some_and(|first| values.any(|value| value.total_cmp(first).is_ne()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first round is a whole step; where half of it was kept, the other half needs as many prompts again.
    #[test]
    fn a_round_draws_what_the_rounds_before_say_is_needed() {
        assert_eq!(next_round(8, 0, 0), 8);
        assert_eq!(next_round(8, 0, 8), 8);
        assert_eq!(next_round(8, 4, 8), 8);
        assert_eq!(next_round(8, 6, 8), 3);
        assert_eq!(next_round(8, 7, 8), 2);
        assert_eq!(next_round(8, 1, 16), 8);
        assert_eq!(next_round(8, 7, 11), 2);
    }
}
