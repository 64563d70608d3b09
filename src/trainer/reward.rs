//! Reward models: one optimizer step on pairs of a better and a worse completion (Bradley-Terry).
//!
//! [`RewardTraining::step`] takes the next pairs and moves the model so that it scores the chosen completions above the
//! rejected ones. A text is read at its last token, so the gradient enters the decoder at that one row; the score head is
//! a parameter like any other. `algorithm/bradley_terry.rs` has the formula, `model/scoring.rs` packs the texts.

use super::phase::Phase;
use super::policy::{Policy, require_finite_loss};
use super::prompts::draw;
use super::{LeftOut, Misfit, StepContext, StepLog, StepOutput, TrainError};
use crate::algorithm::{RewardObjective, RewardStats, compute_reward_objective};
use crate::data::{Row, RowOrder};
use crate::model::{Decoder, Recorder, ScoreBatch, score_groups};
use crate::ops::score::{scores, scores_backward};
use crate::telemetry::StepMetrics;
use crate::text::ScoredRenderer;
use std::time::Instant;

/// A prompt with its better and with its worse completion, each as the model reads it. Neither is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankedPair {
    pub chosen_ids: Vec<u32>,
    pub rejected_ids: Vec<u32>,
}

impl RankedPair {
    fn num_tokens(&self) -> usize {
        self.chosen_ids.len() + self.rejected_ids.len()
    }

    fn texts(&self) -> [&[u32]; 2] {
        [&self.chosen_ids, &self.rejected_ids]
    }
}

/// Renders and tokenises pairs, each text at most `max_length` tokens long; returns them and the rows that are left out.
///
/// # Errors
/// Fails where a row cannot be rendered.
pub fn prepare_ranked_pairs(
    rows: &[Row],
    renderer: &ScoredRenderer,
    max_length: usize,
) -> Result<(Vec<RankedPair>, Vec<LeftOut>), TrainError> {
    let (mut pairs, mut left_out) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let at_row = |error| TrainError::Row { place: row.place.clone().into(), source: Box::new(error) };
        let (chosen, rejected) = row.pair().unwrap_or_default();
        let render = |completion| renderer.render(&row.prompt, completion).map_err(at_row);
        let pair = RankedPair { chosen_ids: render(chosen)?, rejected_ids: render(rejected)? };
        match misfit(&pair, max_length) {
            None => pairs.push(pair),
            Some(why) => left_out.push(LeftOut { place: row.place.clone(), why }),
        }
    }
    Ok((pairs, left_out))
}

fn misfit(pair: &RankedPair, limit: usize) -> Option<Misfit> {
    let of_text = |tokens: usize| match tokens {
        0 => Some(Misfit::NothingToLearn),
        _ if tokens > limit => Some(Misfit::Both { tokens, limit }),
        _ => None,
    };
    let texts = pair.texts().into_iter().find_map(|text| of_text(text.len()));
    texts.or((pair.chosen_ids == pair.rejected_ids).then_some(Misfit::EqualPair))
}

/// Settings of the training of a reward model.
#[derive(Debug, Clone, Copy)]
pub struct RewardTrainingConfig {
    /// Rows of an optimizer step.
    pub pairs_per_step: usize,
    /// Weight of the squared sum of a pair's scores.
    pub center_rewards_coefficient: f64,
    pub max_tokens_per_micro_batch: usize,
}

/// The parts of the training of a reward model that do not change with the steps.
#[derive(Debug)]
pub struct RewardTraining {
    pub config: RewardTrainingConfig,
    pub pairs: Vec<RankedPair>,
    pub order: RowOrder,
}

impl RewardTraining {
    /// One optimizer step on the next pairs.
    ///
    /// # Errors
    /// Fails where a tensor operation fails or the loss or gradient is not finite; the weights are untouched then.
    pub fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        let started = Instant::now();
        at.begin(Phase::Backward);
        let indexes = draw(&mut self.order, at.rows_drawn, self.config.pairs_per_step);
        let pairs: Vec<&RankedPair> = indexes.into_iter().map(|index| &self.pairs[index]).collect();
        let (loss, stats) = self.accumulate(policy, &pairs)?;
        require_finite_loss(at.step, loss)?;

        at.begin(Phase::Optimizer);
        let update = policy.update(at.step)?;

        let mut output = StepOutput::after(at);
        output.rows_drawn += pairs.len() as u64;
        let trained_tokens: usize = pairs.iter().map(|pair| pair.num_tokens()).sum();
        output.num_tokens += trained_tokens as u64;
        add_metrics(&mut output.metrics, &stats);
        output.log_step(&StepLog {
            loss: Some(loss),
            update: Some(update),
            num_rows: self.pairs.len(),
            trained_tokens,
            train_secs: started.elapsed().as_secs_f64(),
            started,
        });
        Ok(output)
    }

    /// Adds up the gradient of the step's loss, micro-batch by micro-batch.
    fn accumulate(&self, policy: &Policy, pairs: &[&RankedPair]) -> Result<(f64, RewardStats), TrainError> {
        let texts: Vec<[&[u32]; 2]> = pairs.iter().map(|pair| pair.texts()).collect();
        let groups: Vec<&[&[u32]]> = texts.iter().map(|pair| &pair[..]).collect();
        let largest = groups.iter().map(|pair| ScoreBatch::num_tokens(pair)).max().unwrap_or(0);
        let batches =
            ScoreBatch::pack_whole(&groups, policy.lane_tokens(self.config.max_tokens_per_micro_batch, largest));
        let center = self.config.center_rewards_coefficient;
        let found = policy.in_lanes(batches.len(), |decoder, index| {
            let objective = |scores: &[f64]| compute_reward_objective(scores, center, pairs.len());
            run(decoder, &batches[index], policy.config.gradient_checkpointing, objective)
        })?;
        let (mut loss, mut stats) = (0.0, RewardStats::default());
        for objective in found {
            loss += objective.loss;
            stats.merge(&objective.stats);
        }
        Ok((loss, stats))
    }
}

/// One micro-batch forward and backward; its gradients are added to those of `decoder`.
fn run(
    decoder: &Decoder,
    batch: &ScoreBatch,
    checkpointing: bool,
    objective: impl FnOnce(&[f64]) -> RewardObjective,
) -> Result<RewardObjective, TrainError> {
    let mut recorder = Recorder::new(checkpointing);
    let hidden = decoder.forward(&batch.tokens, Some(&mut recorder))?;
    let found = objective(&scores(&hidden, &batch.ends, decoder.head())?);
    let d_hidden = hidden.zeros_like()?;
    scores_backward(&found.grad, &hidden, &batch.ends, decoder.head(), &d_hidden)?;
    drop(hidden);
    decoder.backward(recorder, &batch.tokens, &d_hidden)?;
    Ok(found)
}

/// Loss and statistics of a model on pairs, nothing learned; `center` weighs the squared sum of a pair's scores.
///
/// # Errors
/// Fails where a tensor operation fails.
pub fn compute_ranking(
    model: &Decoder,
    pairs: &[RankedPair],
    center: f64,
    max_tokens: usize,
) -> Result<RewardObjective, TrainError> {
    let groups: Vec<Vec<&[u32]>> = pairs.iter().map(|pair| pair.texts().to_vec()).collect();
    let scores = score_groups(model, &groups, max_tokens)?;
    Ok(compute_reward_objective(&scores, center, pairs.len()))
}

/// Adds what is said of scores, with TRL's names.
pub fn add_metrics(metrics: &mut StepMetrics, stats: &RewardStats) {
    metrics.mean("accuracy", stats.accurate as f64, stats.pairs);
    metrics.mean("margin", stats.margin_sum, stats.pairs);
    metrics.mean("mean_reward", stats.score_sum, 2 * stats.pairs);
    if let Some((low, high)) = stats.range {
        metrics.min("min_reward", low);
        metrics.max("max_reward", high);
    }
}
