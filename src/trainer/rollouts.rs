//! The first half of a GRPO step: prompts -> completions -> rewards -> advantages, and the reference's log-probs.

use super::grpo::{Grpo, groups};
use super::phase::Phase;
use super::policy::{Policy, predictions};
use super::prompts::draw;
use super::{LoggedCompletion, PreparedPrompt, StepContext, TrainError};
use crate::algorithm::{AdvantageEstimator, Advantages, KlEstimator, compute_advantages, subtract_kl_penalty};
use crate::batch::pack;
use crate::checkpoint::{SavedCompletion, SavedGroup, SavedRollouts};
use crate::ops::head::token_logprobs;
use crate::reward::RewardInput;
use crate::rollout::{Engine, Observer, RolloutGroup, RolloutProgress, RolloutRequest};
use crate::telemetry::{Console, StepMetrics};
use crate::text::FinishReason;
use rayon::prelude::*;
use std::collections::HashMap;
use std::time::Instant;

/// Fresh rollouts of a step and what is logged about them.
pub(super) struct Rollouts {
    pub saved: SavedRollouts,
    pub advantages: Advantages,
    reward_names: Vec<String>,
    /// Prompt and completion text of every row.
    texts: Vec<(String, String)>,
    rollout_secs: f64,
    reward_secs: f64,
}

impl Grpo {
    /// Samples, scores and compares the completions of the step's prompts.
    pub(super) fn sample(&mut self, policy: &Policy, at: &StepContext<'_>) -> Result<Rollouts, TrainError> {
        at.begin(Phase::Rollout);
        let started = Instant::now();
        let indexes = draw(&mut self.order, at.rows_drawn, self.config.prompts_per_step);
        let prompts: Vec<&PreparedPrompt> = indexes.into_iter().map(|index| &self.prompts[index]).collect();
        let engine = Engine {
            decoder: &policy.decoder,
            tokenizer: &self.tokenizer,
            sampling: self.config.sampling,
            stop: &self.config.stop,
            slots: self.config.rollout_slots,
            seed: self.config.seed,
            step: at.step,
        };
        let (sampled, stats) = engine.run(&self.requests(&prompts), &mut Bar { console: at.console })?;
        tracing::debug!(forwarded = stats.tokens_forwarded, sampled = stats.tokens_sampled, "rollout");
        let rollout_secs = started.elapsed().as_secs_f64();

        at.begin(Phase::Reward);
        let started = Instant::now();
        let texts = self.decode(&prompts, &sampled)?;
        let mut saved = self.score(&prompts, sampled, &texts)?;
        let reward_secs = started.elapsed().as_secs_f64();

        self.add_reference(&mut saved)?;
        let advantages = self.compare(&mut saved)?;
        let reward_names = self.rewards.names().map(str::to_owned).collect();
        Ok(Rollouts { saved, advantages, reward_names, texts, rollout_secs, reward_secs })
    }

    /// A prompt that stands in the step twice gets completions with other numbers the second time.
    fn requests(&self, prompts: &[&PreparedPrompt]) -> Vec<RolloutRequest> {
        let mut seen: HashMap<u64, u64> = HashMap::new();
        let request = |prompt: &&PreparedPrompt| {
            let times = seen.entry(prompt.row).or_default();
            let first_completion = *times * self.config.num_generations as u64;
            *times += 1;
            RolloutRequest {
                prompt_ids: prompt.ids.clone(),
                prompt: prompt.row,
                first_completion,
                num_generations: self.config.num_generations,
            }
        };
        prompts.iter().map(request).collect()
    }

    fn decode(
        &self,
        prompts: &[&PreparedPrompt],
        sampled: &[RolloutGroup],
    ) -> Result<Vec<(String, String)>, TrainError> {
        let rows = prompts.iter().zip(sampled).flat_map(|(p, g)| g.completions.iter().map(|c| (*p, c)));
        rows.map(|(prompt, c)| Ok((prompt.text.clone(), self.tokenizer.decode(&c.ids)?))).collect()
    }

    /// The rewards of every completion, in parallel.
    fn score(
        &self,
        prompts: &[&PreparedPrompt],
        sampled: Vec<RolloutGroup>,
        texts: &[(String, String)],
    ) -> Result<SavedRollouts, TrainError> {
        let rows: Vec<_> =
            prompts.iter().zip(&sampled).flat_map(|(p, g)| g.completions.iter().map(move |c| (*p, c))).collect();
        let scored = rows
            .par_iter()
            .zip(texts)
            .map(|((prompt, c), (_, completion))| {
                let (columns, line) = (&prompt.columns, prompt.line);
                let input = RewardInput { prompt: &prompt.text, completion, completion_ids: &c.ids, columns, line };
                self.rewards.score(&input)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut scored = scored.into_iter();
        let groups = sampled.into_iter().zip(prompts).map(|(group, prompt)| SavedGroup {
            row: prompt.row,
            prompt_ids: group.prompt_ids,
            completions: group
                .completions
                .into_iter()
                .zip(scored.by_ref())
                .map(|(c, scored)| SavedCompletion {
                    ids: c.ids,
                    old_logprobs: c.sampling_logprobs,
                    ref_logprobs: Vec::new(),
                    is_truncated: c.finish_reason == FinishReason::Length,
                    reward: scored.total,
                    reward_parts: scored.parts,
                    advantage: 0.0,
                })
                .collect(),
        });
        Ok(SavedRollouts { groups: groups.collect() })
    }

    /// Fills in the reference policy's log-probs, where there is one.
    fn add_reference(&self, saved: &mut SavedRollouts) -> Result<(), TrainError> {
        let Some(reference) = &self.reference else { return Ok(()) };
        let mut found: Vec<(usize, Vec<f32>)> = Vec::new();
        for batch in pack(&groups(saved), self.config.max_tokens_per_micro_batch) {
            let hidden = reference.forward(&batch.tokens, None)?;
            let at = predictions(&batch, self.config.sampling.logprob_temperature());
            let scored = token_logprobs(&hidden, reference.head(), at)?;
            let of_row = |range: &std::ops::Range<usize>| scored.logprobs[range.clone()].to_vec();
            found.extend(batch.rows.iter().copied().zip(batch.ranges.iter().map(of_row)));
        }
        let mut rows: Vec<&mut SavedCompletion> = saved.groups.iter_mut().flat_map(|g| &mut g.completions).collect();
        for (row, logprobs) in found {
            rows[row].ref_logprobs = logprobs;
        }
        Ok(())
    }

    /// Fills in the advantages.
    fn compare(&self, saved: &mut SavedRollouts) -> Result<Advantages, TrainError> {
        let rows: Vec<&SavedCompletion> = saved.groups.iter().flat_map(|group| &group.completions).collect();
        let mut rewards: Vec<Option<f64>> = rows.iter().map(|row| row.reward).collect();
        let num_generations = self.config.num_generations;
        let estimator = AdvantageEstimator::Group(self.config.scale_rewards);
        // What is logged is said of the rewards alone, without a penalty.
        let logged = compute_advantages(&rewards, num_generations, estimator, None)?;
        let objective = &self.config.objective;
        if objective.kl_estimator == KlEstimator::K1 && objective.beta > 0.0 {
            let flat = |values: fn(&SavedCompletion) -> &Vec<f32>| -> Vec<f64> {
                rows.iter().flat_map(|row| values(row)).copied().map(f64::from).collect()
            };
            let mut end = 0;
            let ranges: Vec<_> = rows
                .iter()
                .map(|row| {
                    end += row.ids.len();
                    end - row.ids.len()..end
                })
                .collect();
            let is_active = |row: &&SavedCompletion| !(self.config.mask_truncated_completions && row.is_truncated);
            let completion_mask: Vec<bool> =
                rows.iter().flat_map(|row| std::iter::repeat_n(is_active(row), row.ids.len())).collect();
            let (old, reference) = (flat(|row| &row.old_logprobs), flat(|row| &row.ref_logprobs));
            subtract_kl_penalty(&mut rewards, &old, &reference, &ranges, &completion_mask, objective.beta)?;
        }
        let advantages = compute_advantages(&rewards, num_generations, estimator, None)?.advantages;
        let rows = saved.groups.iter_mut().flat_map(|group| &mut group.completions);
        rows.zip(&advantages).for_each(|(row, advantage)| row.advantage = *advantage);
        Ok(Advantages { advantages, ..logged })
    }
}

impl Rollouts {
    pub(super) fn add_metrics(&self, metrics: &mut StepMetrics) {
        let rows: Vec<&SavedCompletion> = self.saved.groups.iter().flat_map(|group| &group.completions).collect();
        metrics.gauge("reward", self.advantages.batch.mean);
        metrics.gauge("reward_std", self.advantages.batch.std);
        for (index, name) in self.reward_names.iter().enumerate() {
            let scores: Vec<f64> = rows.iter().filter_map(|row| row.reward_parts[index]).collect();
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let squares: f64 = scores.iter().map(|s| (s - mean).powi(2)).sum();
            metrics.mean(&format!("rewards/{name}/mean"), scores.iter().sum(), scores.len() as u64);
            let std = (squares / scores.len().saturating_sub(1).max(1) as f64).sqrt();
            metrics.gauge(&format!("rewards/{name}/std"), std);
        }
        let groups = self.saved.groups.len() as u64;
        metrics.mean("frac_reward_zero_std", self.advantages.zero_std_groups as f64, groups);
        for row in &rows {
            let length = row.ids.len() as f64;
            metrics.mean("completions/mean_length", length, 1);
            metrics.min("completions/min_length", length);
            metrics.max("completions/max_length", length);
        }
        let ended: Vec<f64> = rows.iter().filter(|row| !row.is_truncated).map(|row| row.ids.len() as f64).collect();
        // TRL's value where no completion ended by itself.
        let or_zero = |value: f64| if ended.is_empty() { 0.0 } else { value };
        let mean = ended.iter().sum::<f64>() / ended.len() as f64;
        metrics.gauge("completions/mean_terminated_length", or_zero(mean));
        let least = ended.iter().copied().fold(f64::INFINITY, f64::min);
        metrics.gauge("completions/min_terminated_length", or_zero(least));
        let most = ended.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        metrics.gauge("completions/max_terminated_length", or_zero(most));
        metrics.mean("completions/clipped_ratio", (rows.len() - ended.len()) as f64, rows.len() as u64);
        metrics.gauge("perf/rollout_secs", self.rollout_secs);
        metrics.gauge("perf/reward_secs", self.reward_secs);
    }
}

/// The first `count` completions as they go to `completions.jsonl`.
pub(super) fn log_completions(rollouts: &Rollouts, step: u64, count: usize) -> Vec<LoggedCompletion> {
    let rows = rollouts.saved.groups.iter().flat_map(|group| &group.completions);
    let logged = rows.zip(&rollouts.texts).take(count).map(|(row, (prompt, completion))| LoggedCompletion {
        step,
        prompt: prompt.clone(),
        completion: completion.clone(),
        rewards: rollouts.reward_names.iter().cloned().zip(row.reward_parts.iter().copied()).collect(),
        reward: row.reward,
        advantage: row.advantage,
        finish_reason: if row.is_truncated { FinishReason::Length } else { FinishReason::Stop },
    });
    logged.collect()
}

/// Shows how far the rollout is.
struct Bar<'a> {
    console: &'a Console,
}

impl Observer for Bar<'_> {
    fn progress(&mut self, progress: RolloutProgress) {
        self.console.rollout(progress.completions_done as u64, progress.completions as u64);
    }
}
