//! Supervised learning: one optimizer step on given completions, or on blocks of a text.

use super::phase::Phase;
use super::policy::{Policy, require_finite_loss};
use super::prompts::draw;
use super::rows::widen;
use super::{LeftOut, Misfit, StepContext, StepLog, StepOutput, TrainError};
use crate::algorithm::compute_sft_objective;
use crate::batch::Group;
use crate::data::{Row, RowOrder};
use crate::text::PromptRenderer;
use std::time::Instant;

/// A prompt and the tokens to learn.
#[derive(Debug, Clone)]
pub struct Example {
    pub prompt_ids: Vec<u32>,
    pub completion_ids: Vec<u32>,
}

impl Example {
    /// A block of a text: every token after the first is learned. `block` has one token at least.
    #[must_use]
    pub fn of_block(block: &[u32]) -> Self {
        let (first, rest) = block.split_at(block.len().min(1));
        Self { prompt_ids: first.to_vec(), completion_ids: rest.to_vec() }
    }
}

/// Settings of a supervised run.
#[derive(Debug, Clone, Copy)]
pub struct SftConfig {
    /// Rows of an optimizer step.
    pub rows_per_step: usize,
    pub max_tokens_per_micro_batch: usize,
}

/// The parts of a supervised run that do not change with the steps.
#[derive(Debug)]
pub struct Sft {
    pub config: SftConfig,
    pub examples: Vec<Example>,
    pub order: RowOrder,
}

/// The limits of an example's two parts, in tokens, and what is learned of it.
#[derive(Debug, Clone, Copy)]
pub struct ExampleConfig {
    pub max_prompt_length: usize,
    pub max_completion_length: usize,
    /// Longest prompt and completion together: the model's context.
    pub max_length: usize,
    /// Learn the completion alone; otherwise every token after the first.
    pub completion_only_loss: bool,
}

impl ExampleConfig {
    /// The limit that an example of so many tokens exceeds, if it does.
    pub(super) fn misfit(&self, prompt: usize, completion: usize) -> Option<Misfit> {
        let both = prompt + completion;
        if prompt > self.max_prompt_length {
            Some(Misfit::Prompt { tokens: prompt, limit: self.max_prompt_length })
        } else if completion > self.max_completion_length {
            Some(Misfit::Completion { tokens: completion, limit: self.max_completion_length })
        } else {
            (both > self.max_length).then_some(Misfit::Both { tokens: both, limit: self.max_length })
        }
    }
}

/// Renders and tokenises rows; returns the examples and the rows that are left out as too long or empty.
///
/// # Errors
/// Fails where a row cannot be rendered.
pub fn prepare_examples(
    rows: &[Row],
    renderer: &PromptRenderer,
    config: ExampleConfig,
) -> Result<(Vec<Example>, Vec<LeftOut>), TrainError> {
    let mut examples = Vec::with_capacity(rows.len());
    let mut left_out = Vec::new();
    for row in rows {
        let at_row = |error| TrainError::Row { place: row.place.clone().into(), source: Box::new(error) };
        let completion = row.completion().unwrap_or_default();
        let (prompt, completion_ids) = renderer.render_pair(&row.prompt, completion).map_err(at_row)?;
        let misfit = config.misfit(prompt.ids.len(), completion_ids.len());
        let mut example = Example { prompt_ids: prompt.ids, completion_ids };
        if !config.completion_only_loss || example.prompt_ids.is_empty() {
            // Something must stand before the first token that is predicted.
            let rest = example.prompt_ids.split_off(example.prompt_ids.len().min(1));
            example.completion_ids.splice(0..0, rest);
            if example.prompt_ids.is_empty() && !example.completion_ids.is_empty() {
                example.prompt_ids.push(example.completion_ids.remove(0));
            }
        }
        let is_empty = example.completion_ids.is_empty();
        match misfit.or(is_empty.then_some(Misfit::NothingToLearn)) {
            None => examples.push(example),
            Some(why) => left_out.push(LeftOut { place: row.place.clone(), why }),
        }
    }
    Ok((examples, left_out))
}

impl Sft {
    /// One optimizer step on the next rows.
    ///
    /// # Errors
    /// Fails where a tensor operation fails or the loss or gradient is not finite; the weights are untouched then.
    pub fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        let started = Instant::now();
        at.begin(Phase::Backward);
        let indexes = draw(&mut self.order, at.rows_drawn, self.config.rows_per_step);
        let examples: Vec<&Example> = indexes.into_iter().map(|index| &self.examples[index]).collect();
        let groups: Vec<Group<'_>> = examples
            .iter()
            .enumerate()
            .map(|(row, e)| Group { prompt: &e.prompt_ids, completions: vec![(row, &e.completion_ids[..])] })
            .collect();
        let active_tokens: usize = examples.iter().map(|e| e.completion_ids.len()).sum();
        let (mut loss, mut entropy) = (0.0, 0.0);
        let batches = policy.pack(&groups, self.config.max_tokens_per_micro_batch);
        // The gradient of a mean does not depend on the values.
        let grads =
            |index: usize| compute_sft_objective(&vec![0.0; batches[index].targets.len()], active_tokens).into();
        for (scored, ()) in policy.accumulate(&batches, 1.0, |index, _| Ok((grads(index), ())))? {
            loss += compute_sft_objective(&widen(&scored.logprobs), active_tokens).loss;
            entropy += widen(&scored.entropies).iter().sum::<f64>();
        }
        require_finite_loss(at.step, loss)?;

        at.begin(Phase::Optimizer);
        let update = policy.update(at.step)?;

        let mut output = StepOutput::after(at);
        output.rows_drawn += self.config.rows_per_step as u64;
        let trained_tokens: usize = examples.iter().map(|e| e.prompt_ids.len() + e.completion_ids.len()).sum();
        output.num_tokens += trained_tokens as u64;
        output.metrics.mean("entropy", entropy, active_tokens as u64);
        output.log_step(&StepLog {
            loss: Some(loss),
            update: Some(update),
            num_rows: self.examples.len(),
            trained_tokens,
            train_secs: started.elapsed().as_secs_f64(),
            started,
        });
        Ok(output)
    }
}
