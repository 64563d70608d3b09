//! Direct preference optimization (Rafailov et al., arXiv:2305.18290): one optimizer step on pairs of a better and a
//! worse completion.
//!
//! [`Dpo::step`] takes the next pairs, lets the frozen start model score them, and moves the policy so that it prefers
//! the chosen to the rejected completions by more than the start model does (eq. 7). The pairs are rows of a file, or
//! sampled anew at each step: of the completions of a prompt the best and the worst by their reward. The loss is about
//! the policy itself, so log-probs are those of temperature 1, whatever the completions were sampled with.
//!
//! `rollouts.rs` samples and scores, `algorithm/preference.rs` has the formulas, `policy.rs` runs the model.

use super::phase::Phase;
use super::policy::{Policy, require_finite_loss};
use super::prompts::draw;
use super::rollouts::{RolloutSource, Rollouts};
use super::rows::widen;
use super::{
    ExampleConfig, LeftOut, LoggedCompletion, Misfit, Reference, StepContext, StepLog, StepOutput, TrainError,
};
use crate::algorithm::{DpoConfig, DpoStats, PairBatch, compute_dpo_objective};
use crate::batch::{Group, pack_whole};
use crate::checkpoint::{SavedCompletion, SavedGroup};
use crate::data::{Row, RowOrder};
use crate::telemetry::StepMetrics;
use crate::text::PromptRenderer;
use std::time::Instant;

/// The log-probs of the loss are those of the policy itself.
const TEMPERATURE: f32 = 1.0;

/// A prompt with a better and a worse completion. The prompt has one token at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub prompt_ids: Vec<u32>,
    pub chosen_ids: Vec<u32>,
    pub rejected_ids: Vec<u32>,
}

impl Pair {
    /// Tokens of the prompt with either completion.
    fn num_tokens(&self) -> usize {
        2 * self.prompt_ids.len() + self.chosen_ids.len() + self.rejected_ids.len()
    }
}

/// Renders and tokenises pairs, each completion as supervised learning would learn it; returns them and the rows that
/// are left out: too long, without a prompt, or of equal tokens.
///
/// # Errors
/// Fails where a row cannot be rendered.
pub fn prepare_pairs(
    rows: &[Row],
    renderer: &PromptRenderer,
    config: ExampleConfig,
) -> Result<(Vec<Pair>, Vec<LeftOut>), TrainError> {
    let mut pairs = Vec::with_capacity(rows.len());
    let mut left_out = Vec::new();
    for row in rows {
        let at_row = |error| TrainError::Row { place: row.place.clone().into(), source: Box::new(error) };
        let (chosen, rejected) = row.pair().unwrap_or_default();
        let (prompt, chosen_ids) = renderer.render_pair(&row.prompt, chosen).map_err(at_row)?;
        let (_, rejected_ids) = renderer.render_pair(&row.prompt, rejected).map_err(at_row)?;
        let misfit = [&chosen_ids, &rejected_ids].iter().find_map(|ids| config.misfit(prompt.ids.len(), ids.len()));
        // Something must stand before the first token that is predicted.
        let no_prompt = prompt.ids.is_empty().then_some(Misfit::NoPrompt);
        let equal = (chosen_ids == rejected_ids).then_some(Misfit::EqualPair);
        match misfit.or(no_prompt).or(equal) {
            None => pairs.push(Pair { prompt_ids: prompt.ids, chosen_ids, rejected_ids }),
            Some(why) => left_out.push(LeftOut { place: row.place.clone(), why }),
        }
    }
    Ok((pairs, left_out))
}

/// Settings of a preference run.
#[derive(Debug, Clone, Copy)]
pub struct DpoStepConfig {
    /// Rows, or prompts to sample from, of an optimizer step.
    pub prompts_per_step: usize,
    pub objective: DpoConfig,
    pub max_tokens_per_micro_batch: usize,
    /// Sampled completions of a step that are logged.
    pub log_completions: usize,
}

/// Where pairs come from.
#[derive(Debug)]
pub enum PairSource {
    /// The rows of a file.
    Given { pairs: Vec<Pair>, order: RowOrder },
    /// Completions of the policy, ordered by their rewards.
    Sampled(RolloutSource),
}

impl PairSource {
    /// Rows of the data set.
    fn num_rows(&self) -> usize {
        match self {
            Self::Given { pairs, .. } => pairs.len(),
            Self::Sampled(source) => source.prompts.len(),
        }
    }
}

/// The parts of a preference run that do not change with the steps.
#[derive(Debug)]
pub struct Dpo {
    pub config: DpoStepConfig,
    pub source: PairSource,
    /// The start model, which margins are measured from.
    pub reference: Reference,
}

/// Sums over the micro-batches of a step.
#[derive(Debug, Default)]
struct Found {
    loss: f64,
    stats: DpoStats,
    /// Summed log-probs of the chosen and of the rejected completions.
    chosen_logprobs: f64,
    rejected_logprobs: f64,
    entropy: f64,
    tokens: u64,
}

impl Dpo {
    /// One optimizer step on the next pairs; without a pair no update is made.
    ///
    /// # Errors
    /// Fails where a reward fails, a tensor operation fails, or the loss or gradient is not finite; the weights are
    /// untouched then.
    pub fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        let started = Instant::now();
        let mut output = StepOutput::after(at);
        let pairs = self.next_pairs(policy, at, &mut output)?;

        at.begin(Phase::Backward);
        let learning = Instant::now();
        let (mut loss, mut update) = (None, None);
        if pairs.is_empty() {
            output.idle = Some("no prompt has two different completions with different rewards");
        } else {
            let found = self.accumulate(policy, &pairs)?;
            require_finite_loss(at.step, found.loss)?;
            at.begin(Phase::Optimizer);
            (loss, update) = (Some(found.loss), Some(policy.update(at.step)?));
            found.add_metrics(&mut output.metrics);
        }
        let trained_tokens = pairs.iter().map(Pair::num_tokens).sum();
        let (num_rows, train_secs) = (self.source.num_rows(), learning.elapsed().as_secs_f64());
        output.log_step(&StepLog { loss, update, num_rows, trained_tokens, train_secs, started });
        Ok(output)
    }

    /// The pairs of this step, with what is counted and logged of them.
    fn next_pairs(
        &mut self,
        policy: &Policy,
        at: &StepContext<'_>,
        output: &mut StepOutput,
    ) -> Result<Vec<Pair>, TrainError> {
        let count = self.config.prompts_per_step;
        let source = match &mut self.source {
            PairSource::Given { pairs, order } => {
                let drawn: Vec<Pair> =
                    draw(order, at.rows_drawn, count).into_iter().map(|row| pairs[row].clone()).collect();
                output.rows_drawn += count as u64;
                output.num_tokens += drawn.iter().map(Pair::num_tokens).sum::<usize>() as u64;
                return Ok(drawn);
            }
            PairSource::Sampled(source) => source,
        };
        let mut rollouts = Rollouts::default();
        source.sample(&policy.decoder, at, count, &mut rollouts)?;
        let pairs: Vec<Pair> = rollouts.groups.iter().filter_map(|group| best_and_worst(&group.saved)).collect();
        let stats = rollouts.reward_stats(source.config.num_generations)?;
        rollouts.add_metrics(&mut output.metrics, source, &stats);
        output.metrics.mean("frac_pairs_dropped", (count - pairs.len()) as f64, count as u64);
        output.facts = Some(rollouts.facts(at.step, source, &stats));
        // A completion has no advantage here: it is compared with one other.
        let logged = rollouts.log(source, at.step, self.config.log_completions).into_iter();
        output.completions = logged.map(|logged| LoggedCompletion { advantage: None, ..logged }).collect();
        output.rows_drawn += count as u64;
        output.num_tokens += rollouts.num_tokens();
        Ok(pairs)
    }

    /// Adds up the gradient of the step's loss, micro-batch by micro-batch.
    fn accumulate(&self, policy: &Policy, pairs: &[Pair]) -> Result<Found, TrainError> {
        let groups: Vec<Group<'_>> = pairs
            .iter()
            .enumerate()
            .map(|(k, pair)| Group {
                prompt: &pair.prompt_ids,
                completions: vec![(2 * k, &pair.chosen_ids[..]), (2 * k + 1, &pair.rejected_ids[..])],
            })
            .collect();
        let batches = pack_whole(&groups, self.config.max_tokens_per_micro_batch);
        let parts = policy.accumulate(&batches, TEMPERATURE, |index, score| {
            let batch = &batches[index];
            let (logprobs, ref_logprobs) =
                (widen(&score()?.logprobs), widen(&self.reference.logprobs(batch, TEMPERATURE)?));
            let tokens = PairBatch { logprobs: &logprobs, ref_logprobs: &ref_logprobs, rows: &batch.ranges };
            let (objective, stats) = compute_dpo_objective(&tokens, &self.config.objective, pairs.len())?;
            let sums = (objective.loss, objective.stats.active_tokens, stats);
            Ok((objective.into(), sums))
        })?;
        let mut found = Found::default();
        for (batch, (scored, (loss, tokens, stats))) in batches.iter().zip(parts) {
            found.loss += loss;
            found.tokens += tokens;
            found.stats.merge(&stats);
            let logprobs = widen(&scored.logprobs);
            for pair in batch.ranges.chunks_exact(2) {
                found.chosen_logprobs += logprobs[pair[0].clone()].iter().sum::<f64>();
                found.rejected_logprobs += logprobs[pair[1].clone()].iter().sum::<f64>();
            }
            found.entropy += widen(&scored.entropies).iter().sum::<f64>();
        }
        Ok(found)
    }
}

impl Found {
    fn add_metrics(&self, metrics: &mut StepMetrics) {
        let stats = &self.stats;
        metrics.mean("rewards/chosen", stats.chosen_sum, stats.pairs);
        metrics.mean("rewards/rejected", stats.rejected_sum, stats.pairs);
        metrics.mean("rewards/accuracies", stats.accurate as f64, stats.pairs);
        metrics.mean("rewards/margins", stats.margin_sum, stats.pairs);
        metrics.mean("logps/chosen", self.chosen_logprobs, stats.pairs);
        metrics.mean("logps/rejected", self.rejected_logprobs, stats.pairs);
        metrics.mean("entropy", self.entropy, self.tokens);
    }
}

/// The best and the worst completion of a group by their rewards, the first of equals; `None` where they have the same
/// reward or the same tokens. A completion without a score, or with tokens that a reward took out of the loss, is not
/// compared.
fn best_and_worst(group: &SavedGroup) -> Option<Pair> {
    let is_whole = |row: &SavedCompletion| row.keep.iter().all(|keep| *keep);
    let mut scored = group.completions.iter().filter_map(|row| Some((row.reward.filter(|_| is_whole(row))?, row)));
    let first = scored.next()?;
    let (best, worst) = scored.fold((first, first), |(best, worst), row| {
        (if row.0 > best.0 { row } else { best }, if row.0 < worst.0 { row } else { worst })
    });
    (best.0 > worst.0 && best.1.ids != worst.1.ids).then(|| Pair {
        prompt_ids: group.prompt_ids.clone(),
        chosen_ids: best.1.ids.clone(),
        rejected_ids: worst.1.ids.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(id: u32, reward: Option<f64>) -> SavedCompletion {
        SavedCompletion {
            ids: vec![id],
            old_logprobs: vec![-1.0],
            ref_logprobs: Vec::new(),
            is_truncated: false,
            reward,
            reward_parts: Vec::new(),
            advantage: 0.0,
            token_advantages: Vec::new(),
            keep: Vec::new(),
        }
    }

    fn pair(completions: Vec<SavedCompletion>) -> Option<(u32, u32)> {
        let pair = best_and_worst(&SavedGroup { row: 0, prompt_ids: vec![1], completions })?;
        assert_eq!(pair.prompt_ids, [1]);
        Some((pair.chosen_ids[0], pair.rejected_ids[0]))
    }

    /// The first of the best against the first of the worst; what has no score is neither.
    #[test]
    fn a_group_gives_its_best_and_its_worst() {
        let rewards = [None, Some(0.5), Some(1.0), Some(-1.0), Some(1.0), Some(-1.0), None];
        let group = || rewards.iter().zip(0..).map(|(reward, id)| completion(id, *reward)).collect::<Vec<_>>();
        assert_eq!(pair(group()), Some((2, 3)));
        let mut masked = group();
        (masked[2].keep, masked[3].keep) = (vec![false], vec![true]);
        assert_eq!(pair(masked), Some((4, 3)));
    }

    #[test]
    fn a_group_without_a_difference_gives_no_pair() {
        assert_eq!(pair(vec![completion(1, Some(0.5)), completion(2, Some(0.5))]), None);
        assert_eq!(pair(vec![completion(1, Some(0.5)), completion(1, Some(1.0))]), None, "the same tokens");
        assert_eq!(pair(vec![completion(1, None), completion(2, Some(1.0))]), None, "one score");
        assert_eq!(pair(Vec::new()), None);
    }
}
