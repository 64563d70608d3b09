//! Group relative policy optimization (Shao et al., arXiv:2402.03300 algorithm 1): one optimizer step.
//!
//! [`Grpo::step`] reads like the algorithm: sample a group of completions for each prompt, score them, compare each
//! with its group, and move the policy towards the better ones, held back by the ratio's clip and the KL to a frozen
//! reference. `rollouts.rs` samples and scores; `algorithm` has the formulas; `policy.rs` runs the model.

use super::policy::{Policy, require_finite_loss};
use super::rollouts::{Rollouts, log_completions};
use super::{PreparedPrompt, StepContext, StepOutput, TrainError};
use crate::algorithm::{Denominators, ObjectiveConfig, ObjectiveStats, ScaleRewards, TokenBatch, compute_objective};
use crate::batch::{Group, MicroBatch, pack};
use crate::checkpoint::SavedRollouts;
use crate::data::RowOrder;
use crate::model::Decoder;
use crate::reward::WeightedRewards;
use crate::rollout::SamplingConfig;
use crate::telemetry::{StepFacts, StepMetrics};
use crate::text::{StopRules, Tokenizer};
use std::time::Instant;

/// Settings of a GRPO run.
#[derive(Debug, Clone)]
pub struct GrpoConfig {
    /// Prompts of an optimizer step.
    pub prompts_per_step: usize,
    /// Completions of a prompt.
    pub num_generations: usize,
    /// Optimizer steps on one set of rollouts.
    pub num_iterations: u64,
    pub objective: ObjectiveConfig,
    pub scale_rewards: ScaleRewards,
    /// Leave completions that the length limit cut out of the loss.
    pub mask_truncated_completions: bool,
    pub sampling: SamplingConfig,
    pub stop: StopRules,
    /// Completions that decode together; 0: all.
    pub rollout_slots: usize,
    pub max_tokens_per_micro_batch: usize,
    /// Completions of a step that are logged.
    pub log_completions: usize,
    pub seed: u64,
}

/// The parts of a GRPO run that do not change with the steps.
#[derive(Debug)]
pub struct Grpo {
    pub config: GrpoConfig,
    pub prompts: Vec<PreparedPrompt>,
    pub order: RowOrder,
    pub rewards: WeightedRewards,
    pub tokenizer: Tokenizer,
    /// The frozen reference policy; absent when beta is 0.
    pub reference: Option<Decoder>,
}

impl Grpo {
    /// One optimizer step: on fresh rollouts, or on kept ones while `num_iterations` is not reached.
    ///
    /// # Errors
    /// Fails where a reward fails, a tensor operation fails, or the loss or gradient is not finite; the weights are
    /// untouched then.
    pub fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        let started = Instant::now();
        let mut metrics = StepMetrics::new();
        let mut output = StepOutput::after(at);

        let sampled: SavedRollouts;
        let rollouts = if let Some(kept) = at.kept {
            kept
        } else {
            let fresh: Rollouts = self.sample(policy, at)?;
            fresh.add_metrics(&mut metrics);
            output.rows_drawn += self.config.prompts_per_step as u64;
            output.facts = Some(self.facts(at, &fresh));
            output.completions = log_completions(&fresh, at.step, self.config.log_completions);
            sampled = fresh.saved;
            &sampled
        };

        at.begin(super::phase::Phase::Backward);
        let learning = Instant::now();
        let rows: Vec<_> = rollouts.groups.iter().flat_map(|group| &group.completions).collect();
        let included: Vec<bool> =
            rows.iter().map(|row| !(self.config.mask_truncated_completions && row.is_truncated)).collect();
        let micro_batches = pack(&groups(rollouts), self.config.max_tokens_per_micro_batch);
        let denominators = Denominators {
            rows: rows.len(),
            active_tokens: rows.iter().zip(&included).filter(|(_, is)| **is).map(|(row, _)| row.ids.len()).sum(),
            micro_batches: micro_batches.len(),
        };
        let is_fresh = at.iteration == 0;
        let (mut loss, mut entropy) = (0.0, 0.0);
        let mut stats = ObjectiveStats::default();
        for batch in &micro_batches {
            let old = gather(batch, |row| &rows[row].old_logprobs);
            let reference = self.reference.is_some().then(|| gather(batch, |row| &rows[row].ref_logprobs));
            let advantages: Vec<f64> = batch.rows.iter().map(|row| rows[*row].advantage).collect();
            let completion_mask: Vec<bool> =
                batch.rows.iter().flat_map(|row| std::iter::repeat_n(included[*row], rows[*row].ids.len())).collect();
            policy.accumulate(batch, self.config.sampling.logprob_temperature(), |scored| {
                let logprobs: Vec<f64> = scored.logprobs.iter().copied().map(f64::from).collect();
                let tokens = TokenBatch {
                    logprobs: &logprobs,
                    // Fresh rollouts were sampled by these very weights: the ratio is 1 and its gradient that of l.
                    old_logprobs: (!is_fresh).then_some(&old[..]),
                    ref_logprobs: reference.as_deref(),
                    entropies: None,
                    rows: &batch.ranges,
                    advantages: &advantages,
                    token_advantages: None,
                    completion_mask: &completion_mask,
                    policy_mask: None,
                };
                let objective = compute_objective(&tokens, &self.config.objective, &denominators)?;
                loss += objective.loss;
                stats.merge(&objective.stats);
                let active = scored.entropies.iter().zip(&completion_mask).filter(|(_, is)| **is);
                entropy += active.map(|(entropy, _)| f64::from(*entropy)).sum::<f64>();
                if is_fresh {
                    let gap = logprobs.iter().zip(&old).map(|(now, then)| (now - then).abs());
                    let (sum, max) = gap.fold((0.0, 0.0f64), |(sum, max), d| (sum + d, max.max(d)));
                    metrics.mean("sampling/sampling_logp_difference/mean", sum, logprobs.len() as u64);
                    metrics.max("sampling/sampling_logp_difference/max", max);
                }
                Ok(objective.grad)
            })?;
        }
        require_finite_loss(at.step, loss)?;

        at.begin(super::phase::Phase::Optimizer);
        let update = policy.update(at.step)?;

        output.iteration = (at.iteration + 1) % self.config.num_iterations;
        output.kept = (output.iteration > 0).then(|| rollouts.clone());
        let num_tokens: usize = rollouts
            .groups
            .iter()
            .flat_map(|group| group.completions.iter().map(|row| group.prompt_ids.len() + row.ids.len()))
            .sum();
        output.num_tokens += num_tokens as u64;
        metrics.gauge("loss", loss);
        metrics.mean("entropy", entropy, stats.active_tokens);
        add_objective_metrics(&mut metrics, &stats, self.reference.is_some());
        metrics.gauge("grad_norm", update.grad_norm);
        metrics.gauge("learning_rate", update.learning_rate);
        metrics.gauge("epoch", output.rows_drawn as f64 / self.prompts.len().max(1) as f64);
        metrics.count("num_tokens", output.num_tokens);
        let step_time = started.elapsed().as_secs_f64();
        metrics.gauge("step_time", step_time);
        metrics.gauge("perf/train_secs", learning.elapsed().as_secs_f64());
        metrics.gauge("perf/tokens_per_sec", rows.iter().map(|row| row.ids.len()).sum::<usize>() as f64 / step_time);
        output.metrics = metrics;
        Ok(output)
    }

    fn facts(&self, at: &StepContext<'_>, rollouts: &Rollouts) -> StepFacts {
        let rows = || rollouts.saved.groups.iter().flat_map(|group| &group.completions);
        StepFacts {
            step: at.step,
            num_completions: rows().count() as u64,
            num_truncated: rows().filter(|row| row.is_truncated).count() as u64,
            max_completion_length: self.config.stop.max_completion_length,
            num_groups: rollouts.saved.groups.len() as u64,
            num_equal_groups: rollouts.advantages.zero_std_groups as u64,
            mean_reward: rollouts.advantages.batch.mean,
        }
    }
}

/// The rollouts as groups to pack; completions are numbered through the step.
pub(super) fn groups(rollouts: &SavedRollouts) -> Vec<Group<'_>> {
    let mut row = 0..;
    let numbered = rollouts.groups.iter().map(|group| Group {
        prompt: &group.prompt_ids,
        // The completions first: a pair that lacks its second half would swallow a number.
        completions: group.completions.iter().zip(row.by_ref()).map(|(c, row)| (row, c.ids.as_slice())).collect(),
    });
    numbered.collect()
}

/// The per-token values of a micro-batch's rows, flat, in f64.
fn gather<'a>(batch: &MicroBatch, values: impl Fn(usize) -> &'a Vec<f32>) -> Vec<f64> {
    batch.rows.iter().flat_map(|row| values(*row)).copied().map(f64::from).collect()
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
    use crate::checkpoint::{SavedCompletion, SavedGroup};

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
        };
        let group = |size| SavedGroup { row: 0, prompt_ids: vec![2], completions: vec![completion.clone(); size] };
        let rollouts = SavedRollouts { groups: vec![group(3), group(0), group(2)] };
        let numbers: Vec<Vec<usize>> =
            groups(&rollouts).iter().map(|group| group.completions.iter().map(|(row, _)| *row).collect()).collect();
        assert_eq!(numbers, [vec![0, 1, 2], vec![], vec![3, 4]]);
    }
}
