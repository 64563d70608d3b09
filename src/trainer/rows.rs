//! The completions of a step as the objective reads them: which of them run through the model, and the arrays of each
//! micro-batch.

use super::PolicyGradientConfig;
use crate::algorithm::LossType;
use crate::batch::{Group, MicroBatch};
use crate::checkpoint::{SavedCompletion, SavedGroup, SavedRollouts};

/// The completions of a step, by their number.
pub(super) struct Rows<'a> {
    groups: &'a [SavedGroup],
    pub completions: Vec<&'a SavedCompletion>,
    /// Which tokens are in the loss, one entry a token of each completion.
    masks: Vec<Vec<bool>>,
    /// Whether the completion can change the gradient. The others are not run, but stay in every denominator.
    runs: Vec<bool>,
    /// Tokens that are in the loss, those of completions that are not run included.
    pub active_tokens: usize,
}

/// What the objective needs of a micro-batch's completions, flat: one entry a token, or of `advantages` a row.
pub(super) struct BatchValues {
    pub old_logprobs: Vec<f64>,
    pub ref_logprobs: Option<Vec<f64>>,
    pub advantages: Vec<f64>,
    pub token_advantages: Option<Vec<f64>>,
    pub completion_mask: Vec<bool>,
}

impl<'a> Rows<'a> {
    pub fn new(rollouts: &'a SavedRollouts, config: &PolicyGradientConfig) -> Self {
        let rows: Vec<&SavedCompletion> = rollouts.groups.iter().flat_map(|group| &group.completions).collect();
        let masks: Vec<Vec<bool>> =
            rows.iter().map(|row| completion_mask(row, config.mask_truncated_completions)).collect();
        let active_tokens = masks.iter().flatten().filter(|is| **is).count();
        let every_row_counts = every_row_counts(config);
        let runs = rows.iter().zip(&masks);
        let runs = runs.map(|(row, mask)| mask.contains(&true) && (every_row_counts || has_advantage(row))).collect();
        Self { groups: &rollouts.groups, completions: rows, masks, runs, active_tokens }
    }

    /// The completions that are run, as groups to pack; completions are numbered through the step.
    pub fn groups(&self) -> Vec<Group<'a>> {
        let mut row = 0..;
        let numbered = self.groups.iter().map(|group| {
            // The completions first: a pair that lacks its second half would swallow a number.
            let all = group.completions.iter().zip(row.by_ref()).map(|(c, row)| (row, c.ids.as_slice()));
            Group { prompt: &group.prompt_ids, completions: all.filter(|(row, _)| self.runs[*row]).collect() }
        });
        numbered.collect()
    }

    /// Completions that are not run.
    pub fn num_skipped(&self) -> usize {
        self.runs.iter().filter(|is| !**is).count()
    }

    /// The arrays of a micro-batch.
    pub fn values(&self, batch: &MicroBatch, has_reference: bool) -> BatchValues {
        let rows = || batch.rows.iter().map(|row| self.completions[*row]);
        let token_advantages = rows().any(|row| !row.token_advantages.is_empty()).then(|| {
            let of_row = |row: &SavedCompletion| {
                if row.token_advantages.is_empty() { vec![0.0; row.ids.len()] } else { row.token_advantages.clone() }
            };
            rows().flat_map(of_row).collect()
        });
        BatchValues {
            old_logprobs: rows().flat_map(|row| widen(&row.old_logprobs)).collect(),
            ref_logprobs: has_reference.then(|| rows().flat_map(|row| widen(&row.ref_logprobs)).collect()),
            advantages: rows().map(|row| row.advantage).collect(),
            token_advantages,
            completion_mask: batch.rows.iter().flat_map(|row| self.masks[*row].iter().copied()).collect(),
        }
    }
}

/// Whether a completion without an advantage changes the gradient (by its KL or its entropy), or how others count.
fn every_row_counts(config: &PolicyGradientConfig) -> bool {
    let objective = &config.objective;
    objective.beta > 0.0
        || objective.entropy_coef > 0.0
        || config.top_entropy_quantile < 1.0
        || objective.loss_type == LossType::Bnpo
}

fn has_advantage(row: &SavedCompletion) -> bool {
    row.advantage != 0.0 || row.token_advantages.iter().any(|advantage| *advantage != 0.0)
}

/// Which tokens of a completion are in the loss, one entry a token.
pub(super) fn completion_mask(row: &SavedCompletion, mask_truncated: bool) -> Vec<bool> {
    if mask_truncated && row.is_truncated {
        vec![false; row.ids.len()]
    } else if row.keep.is_empty() {
        vec![true; row.ids.len()]
    } else {
        row.keep.clone()
    }
}

pub(super) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Tokens of the prompt and the completion of each row.
pub(super) fn num_tokens<'a>(groups: impl Iterator<Item = &'a SavedGroup>) -> u64 {
    let of_group = |group: &SavedGroup| -> usize {
        group.completions.iter().map(|row| group.prompt_ids.len() + row.ids.len()).sum()
    };
    groups.map(of_group).sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{AdvantageEstimator, ObjectiveConfig, ScaleRewards};
    use crate::batch::pack;

    fn completion(advantage: f64) -> SavedCompletion {
        SavedCompletion {
            ids: vec![1, 2],
            old_logprobs: vec![-1.0, -2.0],
            ref_logprobs: Vec::new(),
            is_truncated: false,
            reward: None,
            reward_parts: Vec::new(),
            advantage,
            token_advantages: Vec::new(),
            keep: Vec::new(),
        }
    }

    fn rollouts(groups: Vec<Vec<SavedCompletion>>) -> SavedRollouts {
        let group = |completions| SavedGroup { row: 0, prompt_ids: vec![2], completions };
        SavedRollouts { groups: groups.into_iter().map(group).collect() }
    }

    fn config(beta: f64) -> PolicyGradientConfig {
        PolicyGradientConfig {
            prompts_per_step: 1,
            max_sampling_rounds: None,
            num_iterations: 1,
            estimator: AdvantageEstimator::Group(ScaleRewards::Group),
            objective: ObjectiveConfig { beta, ..ObjectiveConfig::default() },
            top_entropy_quantile: 1.0,
            mask_truncated_completions: true,
            max_tokens_per_micro_batch: 100,
            log_completions: 0,
        }
    }

    fn numbers(rows: &Rows<'_>) -> Vec<Vec<usize>> {
        rows.groups().iter().map(|group| group.completions.iter().map(|(row, _)| *row).collect()).collect()
    }

    #[test]
    fn completions_are_numbered_through_the_step() {
        let all = rollouts(vec![vec![completion(0.0); 3], vec![], vec![completion(0.0); 2]]);
        assert_eq!(numbers(&Rows::new(&all, &config(0.04))), [vec![0, 1, 2], vec![], vec![3, 4]]);
    }

    /// Without a KL term a completion without an advantage has no gradient; it is not run, but counts.
    #[test]
    fn what_cannot_change_the_gradient_is_not_run() {
        let masked = SavedCompletion { is_truncated: true, ..completion(1.0) };
        let half = SavedCompletion { keep: vec![true, false], ..completion(-1.0) };
        let scored = SavedCompletion { token_advantages: vec![0.0, 0.5], ..completion(0.0) };
        let all = rollouts(vec![vec![completion(0.0), masked, half], vec![scored, completion(0.5)]]);
        let rows = Rows::new(&all, &config(0.0));
        assert_eq!(numbers(&rows), [vec![2], vec![3, 4]]);
        assert_eq!((rows.num_skipped(), rows.active_tokens), (2, 7));
        let values = rows.values(&pack(&rows.groups(), 100)[0], false);
        assert_eq!(values.completion_mask, [true, false, true, true, true, true]);
        assert_eq!(values.token_advantages.unwrap(), [0.0, 0.0, 0.0, 0.5, 0.0, 0.0]);
        assert_eq!(values.advantages, [-1.0, 0.0, 0.5]);
        // With a KL term only what is masked is left out.
        assert_eq!(numbers(&Rows::new(&all, &config(0.04))), [vec![0, 2], vec![3, 4]]);
    }
}
