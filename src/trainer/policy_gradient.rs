//! Policy gradients on sampled completions: one optimizer step of GRPO (Shao et al., arXiv:2402.03300 algorithm 1) and
//! of the algorithms beside it.
//!
//! [`PolicyGradient::step`] reads like the algorithm: sample completions for each prompt, score them, compare each
//! with a baseline, and move the policy towards the better ones, held back by the ratio's clip and the KL to a frozen
//! reference. What tells the algorithms apart are two values, and no code here asks which one it is:
//!
//! | algorithm | baseline ([`AdvantageEstimator`]) | objective ([`ObjectiveConfig`]) |
//! |---|---|---|
//! | GRPO | `Group`: the mean of the group | as it is set |
//! | RLOO | `LeaveOneOut`: the mean of the others | ratio of the whole completion, mean over completions, KL in the reward |
//! | ReMax | `Greedy`: the reward of a greedy completion | as it is set |
//! | REINFORCE++ | `Whitened`: as GRPO, scaled over the batch | as it is set |
//! | RAFT | `Best`: none, the best of the group is learned | likelihood: no ratio, no KL |
//!
//! `rollouts.rs` samples and scores, `compare.rs` compares, `algorithm` has the formulas, `policy.rs` runs the model.

use super::compare::{Comparison, completion_mask};
use super::phase::Phase;
use super::policy::{Policy, require_finite_loss};
use super::rollouts::{RolloutSource, Rollouts, ScoredGroup};
use super::{Reference, StepContext, StepLog, StepOutput, TrainError};
use crate::algorithm::{
    AdvantageEstimator, Denominators, KlEstimator, ObjectiveConfig, ObjectiveStats, TokenBatch, compute_objective,
};
use crate::batch::{Group, MicroBatch, pack};
use crate::checkpoint::{SavedCompletion, SavedGroup, SavedRollouts};
use crate::telemetry::StepMetrics;
use std::time::Instant;

/// Settings of a policy gradient run.
#[derive(Debug, Clone)]
pub struct PolicyGradientConfig {
    /// Prompts of an optimizer step.
    pub prompts_per_step: usize,
    /// Optimizer steps on one set of rollouts.
    pub num_iterations: u64,
    /// What rewards are compared with.
    pub estimator: AdvantageEstimator,
    pub objective: ObjectiveConfig,
    /// Leave completions that the length limit cut out of the loss.
    pub mask_truncated_completions: bool,
    pub max_tokens_per_micro_batch: usize,
    /// Completions of a step that are logged.
    pub log_completions: usize,
}

/// The parts of a policy gradient run that do not change with the steps.
#[derive(Debug)]
pub struct PolicyGradient {
    pub config: PolicyGradientConfig,
    pub source: RolloutSource,
    /// The policy that the KL divergence is measured to; absent when beta is 0.
    pub reference: Option<Reference>,
}

impl PolicyGradient {
    /// One optimizer step: on fresh rollouts, or on kept ones while `num_iterations` is not reached.
    ///
    /// # Errors
    /// Fails where a reward fails, a tensor operation fails, or the loss or gradient is not finite; the weights are
    /// untouched then.
    pub fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        let started = Instant::now();
        let mut output = StepOutput::after(at);
        let sampled: SavedRollouts;
        let rollouts = if let Some(kept) = at.kept {
            output.num_tokens += num_tokens(kept);
            kept
        } else {
            sampled = self.sample(policy, at, &mut output)?;
            &sampled
        };

        at.begin(Phase::Backward);
        let learning = Instant::now();
        let rows = Rows::new(rollouts, self.config.mask_truncated_completions);
        let is_fresh = at.iteration == 0;
        let (loss, update) = if rows.active_tokens == 0 {
            output.is_idle = true;
            (None, None)
        } else {
            let loss = self.accumulate(policy, rollouts, &rows, is_fresh, &mut output.metrics)?;
            require_finite_loss(at.step, loss)?;
            at.begin(Phase::Optimizer);
            (Some(loss), Some(policy.update(at.step)?))
        };
        let train_secs = learning.elapsed().as_secs_f64();

        if !output.is_idle {
            output.iteration = (at.iteration + 1) % self.config.num_iterations;
            output.kept = (output.iteration > 0).then(|| rollouts.clone());
        }
        let trained_tokens = rows.rows.iter().map(|row| row.ids.len()).sum();
        let num_rows = self.source.prompts.len();
        output.log_step(&StepLog { loss, update, num_rows, trained_tokens, train_secs, started });
        Ok(output)
    }

    /// Samples, scores and compares the completions of the step's prompts.
    fn sample(
        &mut self,
        policy: &Policy,
        at: &StepContext<'_>,
        output: &mut StepOutput,
    ) -> Result<SavedRollouts, TrainError> {
        let mut rollouts = Rollouts::default();
        self.source.sample(&policy.decoder, at, self.config.prompts_per_step, &mut rollouts)?;
        if self.config.estimator == AdvantageEstimator::Greedy {
            self.source.add_greedy(&policy.decoder, at, &mut rollouts)?;
        }
        let mut groups: Vec<&mut ScoredGroup> = rollouts.groups.iter_mut().collect();
        if let Some(reference) = &self.reference {
            let mut saved: Vec<&mut SavedGroup> = groups.iter_mut().map(|group| &mut group.saved).collect();
            let temperature = self.source.config.sampling.logprob_temperature();
            reference.add_logprobs(&mut saved, self.config.max_tokens_per_micro_batch, temperature)?;
        }
        self.comparison().fill_in(&mut groups)?;

        let stats = rollouts.reward_stats(self.source.config.num_generations)?;
        rollouts.add_metrics(&mut output.metrics, &self.source, &stats);
        output.facts = Some(rollouts.facts(at.step, &self.source, &stats));
        output.completions = rollouts.log(&self.source, at.step, self.config.log_completions);
        output.rows_drawn += rollouts.groups.len() as u64;
        output.num_tokens += rollouts.num_tokens();
        Ok(SavedRollouts { groups: rollouts.groups.into_iter().map(|group| group.saved).collect() })
    }

    fn comparison(&self) -> Comparison {
        let objective = &self.config.objective;
        Comparison {
            estimator: self.config.estimator,
            num_generations: self.source.config.num_generations,
            kl_in_reward: if objective.kl_estimator == KlEstimator::K1 { objective.beta } else { 0.0 },
            mask_truncated: self.config.mask_truncated_completions,
        }
    }

    /// Adds up the gradient of the step's loss, micro-batch by micro-batch; returns the loss.
    fn accumulate(
        &self,
        policy: &Policy,
        rollouts: &SavedRollouts,
        rows: &Rows<'_>,
        is_fresh: bool,
        metrics: &mut StepMetrics,
    ) -> Result<f64, TrainError> {
        let micro_batches = pack(&groups(rollouts), self.config.max_tokens_per_micro_batch);
        let denominators = Denominators {
            rows: rows.rows.len(),
            active_tokens: rows.active_tokens,
            micro_batches: micro_batches.len(),
        };
        let (mut loss, mut entropy) = (0.0, 0.0);
        let mut stats = ObjectiveStats::default();
        for batch in &micro_batches {
            let values = rows.of(batch, self.reference.is_some());
            policy.accumulate(batch, self.source.config.sampling.logprob_temperature(), |scored| {
                let [logprobs, entropies] = [&scored.logprobs, &scored.entropies].map(|values| widen(values));
                let tokens = TokenBatch {
                    logprobs: &logprobs,
                    // Fresh rollouts were sampled by these very weights: the ratio is 1 and its gradient that of l.
                    old_logprobs: (!is_fresh).then_some(&values.old_logprobs[..]),
                    ref_logprobs: values.ref_logprobs.as_deref(),
                    entropies: Some(&entropies),
                    rows: &batch.ranges,
                    advantages: &values.advantages,
                    token_advantages: None,
                    completion_mask: &values.completion_mask,
                    policy_mask: None,
                };
                let objective = compute_objective(&tokens, &self.config.objective, &denominators)?;
                loss += objective.loss;
                stats.merge(&objective.stats);
                let active = entropies.iter().zip(&values.completion_mask).filter(|(_, is)| **is);
                entropy += active.map(|(entropy, _)| entropy).sum::<f64>();
                if is_fresh {
                    let gap = logprobs.iter().zip(&values.old_logprobs).map(|(now, then)| (now - then).abs());
                    let (sum, max) = gap.fold((0.0, 0.0f64), |(sum, max), d| (sum + d, max.max(d)));
                    metrics.mean("sampling/sampling_logp_difference/mean", sum, logprobs.len() as u64);
                    metrics.max("sampling/sampling_logp_difference/max", max);
                }
                Ok(objective.into())
            })?;
        }
        metrics.mean("entropy", entropy, stats.active_tokens);
        add_objective_metrics(metrics, &stats, self.reference.is_some());
        Ok(loss)
    }
}

/// The completions of a step, by their number, with the tokens that are in the loss.
struct Rows<'a> {
    rows: Vec<&'a SavedCompletion>,
    /// One entry a token of each completion.
    masks: Vec<Vec<bool>>,
    /// Tokens that are in the loss.
    active_tokens: usize,
}

/// What the objective needs of a micro-batch's completions, flat: one entry a token, or of `advantages` a row.
struct BatchValues {
    old_logprobs: Vec<f64>,
    ref_logprobs: Option<Vec<f64>>,
    advantages: Vec<f64>,
    completion_mask: Vec<bool>,
}

impl<'a> Rows<'a> {
    fn new(rollouts: &'a SavedRollouts, mask_truncated: bool) -> Self {
        let rows: Vec<&SavedCompletion> = rollouts.groups.iter().flat_map(|group| &group.completions).collect();
        let masks: Vec<Vec<bool>> = rows.iter().map(|row| completion_mask(row, mask_truncated)).collect();
        let active_tokens = masks.iter().flatten().filter(|is| **is).count();
        Self { rows, masks, active_tokens }
    }

    fn of(&self, batch: &MicroBatch, has_reference: bool) -> BatchValues {
        let rows = || batch.rows.iter().map(|row| self.rows[*row]);
        BatchValues {
            old_logprobs: rows().flat_map(|row| widen(&row.old_logprobs)).collect(),
            ref_logprobs: has_reference.then(|| rows().flat_map(|row| widen(&row.ref_logprobs)).collect()),
            advantages: rows().map(|row| row.advantage).collect(),
            completion_mask: batch.rows.iter().flat_map(|row| self.masks[*row].iter().copied()).collect(),
        }
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// The rollouts as groups to pack; completions are numbered through the step.
fn groups(rollouts: &SavedRollouts) -> Vec<Group<'_>> {
    let mut row = 0..;
    let numbered = rollouts.groups.iter().map(|group| Group {
        prompt: &group.prompt_ids,
        // The completions first: a pair that lacks its second half would swallow a number.
        completions: group.completions.iter().zip(row.by_ref()).map(|(c, row)| (row, c.ids.as_slice())).collect(),
    });
    numbered.collect()
}

/// Tokens of the prompt and the completion of each row.
fn num_tokens(rollouts: &SavedRollouts) -> u64 {
    let of_group = |group: &SavedGroup| -> usize {
        group.completions.iter().map(|row| group.prompt_ids.len() + row.ids.len()).sum()
    };
    rollouts.groups.iter().map(of_group).sum::<usize>() as u64
}

fn add_objective_metrics(metrics: &mut StepMetrics, stats: &ObjectiveStats, has_reference: bool) {
    let ratios = stats.ratio_count;
    if has_reference {
        metrics.mean("kl", stats.kl_sum, stats.kl_count);
    }
    metrics.mean("clip_ratio/region_mean", stats.region_clipped() as f64, ratios);
    metrics.mean("clip_ratio/low_mean", stats.low_clipped as f64, ratios);
    metrics.gauge("clip_ratio/low_min", stats.low_min.unwrap_or(0.0));
    metrics.mean("clip_ratio/high_mean", stats.high_clipped as f64, ratios);
    metrics.gauge("clip_ratio/high_max", stats.high_max.unwrap_or(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_numbered_through_the_step() {
        let completion = SavedCompletion {
            ids: vec![1],
            old_logprobs: vec![-1.0],
            ref_logprobs: Vec::new(),
            is_truncated: false,
            reward: None,
            reward_parts: Vec::new(),
            advantage: 0.0,
            token_advantages: Vec::new(),
            keep: Vec::new(),
        };
        let group = |size| SavedGroup { row: 0, prompt_ids: vec![2], completions: vec![completion.clone(); size] };
        let rollouts = SavedRollouts { groups: vec![group(3), group(0), group(2)] };
        let numbers: Vec<Vec<usize>> =
            groups(&rollouts).iter().map(|group| group.completions.iter().map(|(row, _)| *row).collect()).collect();
        assert_eq!(numbers, [vec![0, 1, 2], vec![], vec![3, 4]]);
    }
}
