//! From prompts to scored completions: what every algorithm that samples begins a step with.

use super::dynamic_sampling::has_token_spread;
use super::phase::Phase;
use super::prompts::draw;
use super::rows::num_tokens;
use super::{LoggedCompletion, PreparedPrompt, StepContext, TrainError};
use crate::algorithm::{AdvantageEstimator, Advantages, AlgorithmError, GroupStats, ScaleRewards, compute_advantages};
use crate::checkpoint::{SavedCompletion, SavedGroup};
use crate::data::RowOrder;
use crate::model::Decoder;
use crate::reward::{RewardInput, Scored, WeightedRewards};
use crate::rollout::{Completion, Engine, Observer, RolloutGroup, RolloutProgress, RolloutRequest, SamplingConfig};
use crate::telemetry::{Console, StepFacts, StepMetrics};
use crate::text::{FinishReason, StopRules, Tokenizer};
use rayon::prelude::*;
use std::iter;
use std::time::Instant;

/// The number of a prompt's greedy completion in the randomness: no sampled one comes that far.
const GREEDY_COMPLETION: u64 = u64::MAX;

/// How completions are sampled.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// Completions of a prompt.
    pub num_generations: usize,
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// When completions end.
    pub stop: StopRules,
    /// Completions that decode together; 0: all.
    pub slots: usize,
    /// Names the draws.
    pub seed: u64,
}

/// Prompts in their order, and what turns them into scored completions.
#[derive(Debug)]
pub struct RolloutSource {
    pub config: RolloutConfig,
    pub prompts: Vec<PreparedPrompt>,
    pub order: RowOrder,
    pub rewards: WeightedRewards,
    pub tokenizer: Tokenizer,
}

/// The scored completions of one prompt.
#[derive(Debug)]
pub(super) struct ScoredGroup {
    /// What is learned from; advantages and reference log-probs are filled in later.
    pub saved: SavedGroup,
    /// Index of the prompt in [`RolloutSource::prompts`].
    pub prompt: usize,
    /// Text of each completion.
    pub texts: Vec<String>,
    /// Rewards of the tokens of each completion; empty where there are none.
    pub token_values: Vec<Vec<Option<f64>>>,
    /// Reward of the prompt's greedy completion, where one was sampled.
    pub greedy_reward: Option<f64>,
    /// Not learned from: dynamic sampling drew another prompt in its place. Metrics count it all the same.
    pub is_set_aside: bool,
}

/// What a step has sampled so far, in the order in which its prompts were drawn.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    pub groups: Vec<ScoredGroup>,
    rollout_secs: f64,
    reward_secs: f64,
}

impl RolloutSource {
    /// Draws the next `count` prompts after those of the run and of `rollouts`, samples and scores their completions,
    /// and adds them to `rollouts`.
    ///
    /// # Errors
    /// Fails where a completion cannot be sampled or scored.
    pub(super) fn sample(
        &mut self,
        decoder: &Decoder,
        at: &StepContext<'_>,
        count: usize,
        rollouts: &mut Rollouts,
    ) -> Result<(), TrainError> {
        let indexes = draw(&mut self.order, at.rows_drawn + rollouts.groups.len() as u64, count);
        let mut requests: Vec<RolloutRequest> = Vec::with_capacity(count);
        for (number, index) in indexes.iter().enumerate() {
            // A prompt that stands in the step more than once gets completions with other numbers each time.
            let earlier = rollouts.groups.iter().map(|group| group.prompt).chain(indexes[..number].iter().copied());
            let times = earlier.filter(|other| other == index).count();
            let first = (times * self.config.num_generations) as u64;
            requests.push(self.request(*index, first, self.config.num_generations));
        }
        let sampled = self.run(decoder, at, self.config.sampling, &requests, rollouts)?;
        let scored = self.score(at, &indexes, &sampled, rollouts)?;
        for ((prompt, group), scored) in indexes.into_iter().zip(sampled).zip(scored) {
            let (mut texts, mut token_values, mut completions) = (Vec::new(), Vec::new(), Vec::new());
            for (sampled, (text, mut scored)) in group.completions.into_iter().zip(scored) {
                texts.push(text);
                token_values.push(std::mem::take(&mut scored.token_values));
                completions.push(completion(sampled, scored));
            }
            let saved = SavedGroup { row: self.prompts[prompt].row, prompt_ids: group.prompt_ids, completions };
            rollouts.groups.push(ScoredGroup {
                saved,
                prompt,
                texts,
                token_values,
                greedy_reward: None,
                is_set_aside: false,
            });
        }
        Ok(())
    }

    /// Scores a greedy completion of every prompt of `rollouts`: a baseline, and not learned from.
    ///
    /// # Errors
    /// As [`RolloutSource::sample`].
    pub(super) fn add_greedy(
        &self,
        decoder: &Decoder,
        at: &StepContext<'_>,
        rollouts: &mut Rollouts,
    ) -> Result<(), TrainError> {
        let indexes: Vec<usize> = rollouts.groups.iter().map(|group| group.prompt).collect();
        let requests: Vec<_> = indexes.iter().map(|index| self.request(*index, GREEDY_COMPLETION, 1)).collect();
        let sampled = self.run(decoder, at, SamplingConfig::greedy(), &requests, rollouts)?;
        let scored = self.score(at, &indexes, &sampled, rollouts)?;
        for (group, scored) in rollouts.groups.iter_mut().zip(scored) {
            group.greedy_reward = scored.first().and_then(|(_, scored)| scored.total);
        }
        Ok(())
    }

    fn request(&self, prompt: usize, first_completion: u64, num_generations: usize) -> RolloutRequest {
        let prompt = &self.prompts[prompt];
        RolloutRequest { prompt_ids: prompt.ids.clone(), prompt: prompt.row, first_completion, num_generations }
    }

    fn run(
        &self,
        decoder: &Decoder,
        at: &StepContext<'_>,
        sampling: SamplingConfig,
        requests: &[RolloutRequest],
        rollouts: &mut Rollouts,
    ) -> Result<Vec<RolloutGroup>, TrainError> {
        at.begin(Phase::Rollout);
        let started = Instant::now();
        let engine = Engine {
            decoder,
            tokenizer: &self.tokenizer,
            sampling,
            stop: &self.config.stop,
            slots: self.config.slots,
            seed: self.config.seed,
            step: at.step,
        };
        let (sampled, stats) = engine.run(requests, &mut Bar { console: at.console })?;
        tracing::debug!(forwarded = stats.tokens_forwarded, sampled = stats.tokens_sampled, "rollout");
        rollouts.rollout_secs += started.elapsed().as_secs_f64();
        Ok(sampled)
    }

    /// Text and score of every completion.
    fn score(
        &self,
        at: &StepContext<'_>,
        prompts: &[usize],
        sampled: &[RolloutGroup],
        rollouts: &mut Rollouts,
    ) -> Result<Vec<Vec<(String, Scored)>>, TrainError> {
        at.begin(Phase::Reward);
        let started = Instant::now();
        let of_group = |(prompt, group): (&usize, &'_ RolloutGroup)| (*prompt, group.completions.len());
        let prompts =
            prompts.iter().zip(sampled).map(of_group).flat_map(|(prompt, count)| iter::repeat_n(prompt, count));
        let completions: Vec<&Completion> = sampled.iter().flat_map(|group| &group.completions).collect();
        let texts = completions.par_iter().map(|completion| self.tokenizer.decode(&completion.ids));
        let texts = texts.collect::<Result<Vec<String>, _>>()?;
        let rows = prompts.zip(texts.iter().zip(&completions));
        let inputs: Vec<RewardInput<'_>> =
            rows.map(|(prompt, (text, sampled))| self.prompts[prompt].reward_input(text, &sampled.ids)).collect();
        let scored = self.rewards.score_batch(&inputs)?;
        let mut scored = texts.into_iter().zip(scored);
        let groups = sampled.iter().map(|group| scored.by_ref().take(group.completions.len()).collect()).collect();
        rollouts.reward_secs += started.elapsed().as_secs_f64();
        Ok(groups)
    }
}

fn completion(sampled: Completion, scored: Scored) -> SavedCompletion {
    SavedCompletion {
        ids: sampled.ids,
        old_logprobs: sampled.sampling_logprobs,
        ref_logprobs: Vec::new(),
        is_truncated: sampled.finish_reason == FinishReason::Length,
        reward: scored.total,
        reward_parts: scored.parts,
        advantage: 0.0,
        token_advantages: Vec::new(),
        keep: scored.keep,
    }
}

impl Rollouts {
    /// Mean and spread of the rewards, of all and of each group.
    ///
    /// # Errors
    /// Where groups have different sizes, which no source makes.
    pub fn reward_stats(&self, num_generations: usize) -> Result<Advantages, AlgorithmError> {
        let rewards: Vec<Option<f64>> = self.completions().map(|row| row.reward).collect();
        compute_advantages(&rewards, num_generations, AdvantageEstimator::Group(ScaleRewards::None), None)
    }

    /// The groups that the step learns from.
    pub fn learned(&mut self) -> impl Iterator<Item = &mut ScoredGroup> {
        self.groups.iter_mut().filter(|group| !group.is_set_aside)
    }

    pub fn completions(&self) -> impl Iterator<Item = &SavedCompletion> {
        self.groups.iter().flat_map(|group| &group.saved.completions)
    }

    /// Tokens of all prompts and completions.
    pub fn num_tokens(&self) -> u64 {
        num_tokens(self.groups.iter().map(|group| &group.saved))
    }

    /// Adds what is said of the completions and their rewards.
    pub fn add_metrics(&self, metrics: &mut StepMetrics, source: &RolloutSource, stats: &Advantages) {
        let rows: Vec<&SavedCompletion> = self.completions().collect();
        metrics.gauge("reward", stats.batch.mean);
        metrics.gauge("reward_std", stats.batch.std);
        for (index, name) in source.rewards.names().enumerate() {
            let scores: Vec<f64> = rows.iter().filter_map(|row| row.reward_parts[index]).collect();
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let squares: f64 = scores.iter().map(|s| (s - mean).powi(2)).sum();
            metrics.mean(&format!("rewards/{name}/mean"), scores.iter().sum(), scores.len() as u64);
            let std = (squares / scores.len().saturating_sub(1).max(1) as f64).sqrt();
            metrics.gauge(&format!("rewards/{name}/std"), std);
            // Of a reward that scores single tokens none has a score.
            if !scores.is_empty() && scores.len() < rows.len() {
                metrics.count(&format!("rewards/{name}/num_unscored"), (rows.len() - scores.len()) as u64);
            }
        }
        metrics.mean("frac_reward_zero_std", stats.zero_std_groups as f64, self.groups.len() as u64);
        for reward in self.groups.iter().filter_map(|group| group.greedy_reward) {
            metrics.mean("greedy_reward", reward, 1);
        }
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

    /// What the watch looks at.
    pub fn facts(&self, step: u64, source: &RolloutSource, stats: &Advantages) -> StepFacts {
        let is_equal = |(group, stats): &(&ScoredGroup, &GroupStats)| !stats.has_spread() && !has_token_spread(group);
        let num_equal_groups = self.groups.iter().zip(&stats.groups).filter(is_equal).count() as u64;
        StepFacts {
            step,
            num_completions: self.completions().count() as u64,
            num_truncated: self.completions().filter(|row| row.is_truncated).count() as u64,
            max_completion_length: source.config.stop.max_completion_length,
            num_groups: self.groups.len() as u64,
            num_equal_groups,
            mean_reward: stats.batch.mean,
            idle: None,
        }
    }

    /// The first `count` completions as they go to `completions.jsonl`.
    pub fn log(&self, source: &RolloutSource, step: u64, count: usize) -> Vec<LoggedCompletion> {
        let names: Vec<String> = source.rewards.names().map(str::to_owned).collect();
        let rows = self.groups.iter().flat_map(|group| {
            let prompt = &source.prompts[group.prompt].text;
            let rows = group.saved.completions.iter().zip(&group.texts);
            rows.map(move |(row, text)| (prompt, row, text, (!group.is_set_aside).then_some(row.advantage)))
        });
        let logged = rows.take(count).map(|(prompt, row, completion, advantage)| LoggedCompletion {
            step,
            prompt: prompt.clone(),
            completion: completion.clone(),
            rewards: names.iter().cloned().zip(row.reward_parts.iter().copied()).collect(),
            reward: row.reward,
            advantage,
            finish_reason: if row.is_truncated { FinishReason::Length } else { FinishReason::Stop },
        });
        logged.collect()
    }
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
