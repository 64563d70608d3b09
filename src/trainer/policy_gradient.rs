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

use super::compare::Comparison;
use super::phase::Phase;
use super::policy::{Policy, require_finite_loss, score};
use super::rollouts::{RolloutSource, Rollouts, ScoredGroup};
use super::rows::{Rows, num_tokens, widen};
use super::{Reference, StepContext, StepLog, StepOutput, TrainError};
use crate::algorithm::{
    AdvantageEstimator, Denominators, KlEstimator, ObjectiveConfig, ObjectiveStats, TokenBatch, compute_objective,
    entropy_threshold,
};
use crate::batch::MicroBatch;
use crate::checkpoint::{SavedGroup, SavedRollouts};
use crate::telemetry::{StepMetrics, Watch};
use std::time::Instant;

/// Settings of a policy gradient run.
#[derive(Debug, Clone)]
pub struct PolicyGradientConfig {
    /// Prompts of an optimizer step.
    pub prompts_per_step: usize,
    /// Rounds in which prompts are drawn until enough have completions with different rewards (dynamic sampling);
    /// `None`: a step learns from the first prompts that it draws.
    pub max_sampling_rounds: Option<usize>,
    /// Optimizer steps on one set of rollouts.
    pub num_iterations: u64,
    /// What rewards are compared with.
    pub estimator: AdvantageEstimator,
    pub objective: ObjectiveConfig,
    /// Share of a step's tokens, the most uncertain ones, that keep their policy term; 1: all.
    pub top_entropy_quantile: f64,
    /// Leave completions that the length limit cut out of the loss.
    pub mask_truncated_completions: bool,
    pub max_tokens_per_micro_batch: usize,
    /// Completions of a step that are logged.
    pub log_completions: usize,
}

impl PolicyGradientConfig {
    /// Whether the objective depends on the entropies of the tokens.
    fn needs_entropies(&self) -> bool {
        self.objective.entropy_coef != 0.0 || self.top_entropy_quantile < 1.0
    }
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
            output.num_tokens += num_tokens(kept.groups.iter());
            kept
        } else {
            sampled = self.sample(policy, at, &mut output)?;
            &sampled
        };

        at.begin(Phase::Backward);
        let learning = Instant::now();
        let rows = Rows::new(rollouts, &self.config);
        let (mut loss, mut update) = (None, None);
        if rows.active_tokens == 0 {
            output.idle = Some(self.idle_reason(!rollouts.groups.is_empty()));
        } else {
            let found = self.accumulate(policy, at, &rows, &mut output.metrics)?;
            require_finite_loss(at.step, found)?;
            at.begin(Phase::Optimizer);
            (loss, update) = (Some(found), Some(policy.update(at.step)?));
            output.iteration = (at.iteration + 1) % self.config.num_iterations;
            output.kept = (output.iteration > 0).then(|| rollouts.clone());
        }
        let trained_tokens = rows.completions.iter().map(|row| row.ids.len()).sum();
        let (num_rows, train_secs) = (self.source.prompts.len(), learning.elapsed().as_secs_f64());
        output.log_step(&StepLog { loss, update, num_rows, trained_tokens, train_secs, started });
        Ok(output)
    }

    /// Why a step without a token in the loss has none.
    fn idle_reason(&self, has_groups: bool) -> &'static str {
        match self.config.estimator {
            _ if !has_groups => "dynamic_sampling found no prompt whose completions have different rewards",
            AdvantageEstimator::Best { min_reward: Some(_) } => "no completion has a reward above raft_min_reward",
            AdvantageEstimator::Best { .. } => "no completion has a reward, or the best of each prompt is masked",
            _ => "every completion is masked: cut by the length limit, or taken out by a reward",
        }
    }

    /// Samples, scores and compares the completions of the step's prompts.
    fn sample(
        &mut self,
        policy: &Policy,
        at: &StepContext<'_>,
        output: &mut StepOutput,
    ) -> Result<SavedRollouts, TrainError> {
        let mut rollouts = Rollouts::default();
        let (decoder, wanted) = (&policy.decoder, self.config.prompts_per_step);
        match self.config.max_sampling_rounds {
            None => self.source.sample(decoder, at, wanted, &mut rollouts)?,
            Some(rounds) => self.source.sample_with_spread(decoder, at, wanted, rounds, &mut rollouts)?,
        }
        if self.config.estimator == AdvantageEstimator::Greedy {
            self.source.add_greedy(&policy.decoder, at, &mut rollouts)?;
        }
        let mut groups: Vec<&mut ScoredGroup> = rollouts.learned().collect();
        if let Some(reference) = &self.reference {
            let mut saved: Vec<&mut SavedGroup> = groups.iter_mut().map(|group| &mut group.saved).collect();
            let temperature = self.source.config.sampling.logprob_temperature();
            reference.add_logprobs(&mut saved, self.config.max_tokens_per_micro_batch, temperature)?;
        }
        self.comparison().fill_in(&mut groups)?;
        if self.config.max_sampling_rounds.is_some() {
            output.metrics.count("dynamic_sampling/num_prompts_kept", groups.len() as u64);
            output.metrics.count("dynamic_sampling/num_prompts", rollouts.groups.len() as u64);
        }

        let stats = rollouts.reward_stats(self.source.config.num_generations)?;
        rollouts.add_metrics(&mut output.metrics, &self.source, &stats);
        output.facts = Some(rollouts.facts(at.step, &self.source, &stats));
        output.completions = rollouts.log(&self.source, at.step, self.config.log_completions);
        output.rows_drawn += rollouts.groups.len() as u64;
        output.num_tokens += rollouts.num_tokens();
        let learned = rollouts.groups.into_iter().filter(|group| !group.is_set_aside);
        Ok(SavedRollouts { groups: learned.map(|group| group.saved).collect() })
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
        at: &StepContext<'_>,
        rows: &Rows<'_>,
        metrics: &mut StepMetrics,
    ) -> Result<f64, TrainError> {
        let micro_batches = policy.pack(&rows.groups(), self.config.max_tokens_per_micro_batch);
        let denominators = Denominators {
            rows: rows.completions.len(),
            active_tokens: rows.active_tokens,
            micro_batches: micro_batches.len(),
        };
        let threshold = self.entropy_threshold(policy, at, rows, &micro_batches)?;
        let is_fresh = at.iteration == 0;
        let values: Vec<_> = micro_batches.iter().map(|b| rows.values(b, self.reference.is_some())).collect();
        let temperature = self.source.config.sampling.logprob_temperature();
        let found = policy.accumulate(&micro_batches, temperature, |index, score| {
            let values = &values[index];
            // The log-probs of fresh rollouts are those of the sampler, to the bit.
            let (logprobs, entropies) = if is_fresh && !self.config.needs_entropies() {
                (values.old_logprobs.clone(), None)
            } else {
                let scored = score()?;
                (widen(&scored.logprobs), Some(widen(&scored.entropies)))
            };
            let is_uncertain = |least| entropies.iter().flatten().map(|entropy| *entropy >= least).collect();
            let policy_mask: Option<Vec<bool>> = threshold.map(is_uncertain);
            let tokens = TokenBatch {
                logprobs: &logprobs,
                // Fresh rollouts were sampled by these very weights: the ratio is 1 and its gradient that of l.
                old_logprobs: (!is_fresh).then_some(&values.old_logprobs[..]),
                ref_logprobs: values.ref_logprobs.as_deref(),
                entropies: entropies.as_deref(),
                rows: &micro_batches[index].ranges,
                advantages: &values.advantages,
                token_advantages: values.token_advantages.as_deref(),
                completion_mask: &values.completion_mask,
                policy_mask: policy_mask.as_deref(),
            };
            let objective = compute_objective(&tokens, &self.config.objective, &denominators)?;
            let sums = (objective.loss, objective.stats);
            Ok((objective.into(), sums))
        })?;

        let (mut loss, mut entropy) = (0.0, 0.0);
        let mut stats = ObjectiveStats::default();
        for (values, (scored, (part, part_stats))) in values.iter().zip(found) {
            loss += part;
            stats.merge(&part_stats);
            let active = scored.entropies.iter().zip(&values.completion_mask).filter(|(_, is)| **is);
            entropy += active.map(|(entropy, _)| f64::from(*entropy)).sum::<f64>();
            if is_fresh {
                let pairs = widen(&scored.logprobs).into_iter().zip(&values.old_logprobs);
                let gap = pairs.map(|(now, then)| (now - then).abs());
                let (sum, max) = gap.fold((0.0, 0.0f64), |(sum, max), d| (sum + d, max.max(d)));
                metrics.mean("sampling/sampling_logp_difference/mean", sum, scored.logprobs.len() as u64);
                metrics.max("sampling/sampling_logp_difference/max", max);
            }
        }
        // As those of the clipping: over the completions that were run. Skipped ones are in none of them.
        metrics.mean("entropy", entropy, stats.active_tokens);
        metrics.mean("frac_completions_skipped", rows.num_skipped() as f64, rows.completions.len() as u64);
        add_objective_metrics(metrics, &stats, self.reference.is_some());
        Ok(loss)
    }

    /// The least entropy of a token that the policy learns from, over the whole step; `None`: it learns from all.
    fn entropy_threshold(
        &self,
        policy: &Policy,
        at: &StepContext<'_>,
        rows: &Rows<'_>,
        micro_batches: &[MicroBatch],
    ) -> Result<Option<f64>, TrainError> {
        if self.config.top_entropy_quantile >= 1.0 {
            return Ok(None);
        }
        let mut entropies = Vec::with_capacity(rows.active_tokens);
        for batch in micro_batches {
            let scored = score(&policy.decoder, batch, self.source.config.sampling.logprob_temperature())?;
            let mask = rows.values(batch, false).completion_mask;
            entropies.extend(widen(&scored.entropies).into_iter().zip(mask).filter(|(_, is)| *is).map(|(e, _)| e));
        }
        let threshold = entropy_threshold(&entropies, self.config.top_entropy_quantile);
        // A NaN would silently take every token out.
        Watch::require_finite(at.step, "entropy", threshold)?;
        Ok(Some(threshold))
    }
}

fn add_objective_metrics(metrics: &mut StepMetrics, stats: &ObjectiveStats, has_reference: bool) {
    if has_reference {
        metrics.mean("kl", stats.kl_sum, stats.kl_count);
    }
    // There are none where the objective clips nothing.
    if let (Some(low_min), Some(high_max)) = (stats.low_min, stats.high_max) {
        let ratios = stats.ratio_count;
        metrics.mean("clip_ratio/region_mean", stats.region_clipped() as f64, ratios);
        metrics.mean("clip_ratio/low_mean", stats.low_clipped as f64, ratios);
        metrics.gauge("clip_ratio/low_min", low_min);
        metrics.mean("clip_ratio/high_mean", stats.high_clipped as f64, ratios);
        metrics.gauge("clip_ratio/high_max", high_max);
    }
}
