//! What a run would do, without doing it: the first prompt, the batch arithmetic, an estimate of the memory.

use super::RecipeError;
use super::evaluator::evaluator;
use super::memory::{Memory, max_tokens_per_step};
use super::method::{examples, pairs, prompts};
use super::parts::{LoadedModel, check_device, graders, max_steps};
use super::policy::adapter;
use super::reward_model::ranked_pairs;
use super::rows::{Prepared, TrainingRows, prepare_parts};
use super::start::{Start, TrainingData};
use crate::batch::blocks;
use crate::config::{Algorithm, RunConfig};
use serde::Serialize;
use std::fmt::Write;

/// Tokens of a training text that are shown.
const SHOWN_TOKENS: usize = 32;

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The word of the setting.
    pub algorithm: &'static str,
    /// The model as the settings name it.
    pub model: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// Rows of the training file that are used, or blocks of a text.
    pub rows: usize,
    /// Prompts, or blocks, of an optimizer step.
    pub prompts_per_step: usize,
    /// Completions of a prompt; 1 for supervised fine-tuning, 2 for pairs of a file.
    pub num_generations: usize,
    /// Completions of an optimizer step.
    pub completions_per_step: usize,
    /// Optimizer steps of the run.
    pub max_steps: u64,
    /// The most tokens that a step can run through the model in training.
    pub max_tokens_per_step: usize,
    /// The most micro-batches that makes.
    pub max_micro_batches: usize,
    /// Estimated memory.
    pub memory: Memory,
    /// The first prompt as the model reads it, or the start of the text.
    pub first_prompt: String,
    /// Its tokens.
    pub first_prompt_ids: Vec<u32>,
}

/// Resolves everything that a run needs, reads no weights and writes nothing.
///
/// # Errors
/// Whatever the run would fail with before its first step, damaged weight files and the output directory apart.
pub fn plan(settings: &RunConfig) -> Result<Plan, RecipeError> {
    settings.check()?;
    settings.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let (rewards, grader) = graders(settings, None)?;
    rewards.check()?;
    let compute = check_device(settings)?;
    let Start { model, data, .. } = Start::new(settings)?;
    adapter(settings, &model)?;
    // The evaluation's data are checked as the run would; nothing is evaluated.
    evaluator(settings, &model, &data, rewards.clone(), grader)?;
    let (rows, first_prompt, first_prompt_ids, longest_prompt) = match data {
        TrainingData::Text(corpus) => {
            let shown = &corpus.train[..corpus.train.len().min(SHOWN_TOKENS)];
            let num_blocks = blocks(&corpus.train, settings.block_size).count();
            (num_blocks, model.tokenizer.decode_with_special(shown)?, shown.to_vec(), 1)
        }
        TrainingData::Rows(data) if settings.samples_completions() => {
            let prompts = prepare_parts(settings, data, |part| prompts(settings, &model, part, &rewards))?.items;
            let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
            (prompts.len(), prompts[0].text.clone(), prompts[0].ids.clone(), longest)
        }
        TrainingData::Rows(data) if settings.algorithm == Algorithm::Dpo => {
            let pairs = prepare_parts(settings, data, |part| pairs(settings, &model, &part))?.items;
            let longest = pairs.iter().map(|pair| pair.prompt_ids.len()).max().unwrap_or(0);
            let first = &pairs[0].prompt_ids;
            (pairs.len(), model.tokenizer.decode_with_special(first)?, first.clone(), longest)
        }
        TrainingData::Rows(data) if settings.algorithm == Algorithm::Reward => {
            let part = |data| ranked_pairs(settings, &model, &data);
            let Prepared { items: pairs, .. } = prepare_parts(settings, data, part)?;
            let longest =
                pairs.iter().map(|pair| pair.chosen_ids.len().max(pair.rejected_ids.len())).max().unwrap_or(0);
            let first = &pairs[0].chosen_ids;
            (pairs.len(), model.tokenizer.decode_with_special(first)?, first.clone(), longest)
        }
        TrainingData::Rows(data) => first_example(settings, &model, data)?,
    };
    let num_generations = settings.completions_per_prompt();
    let prompts_per_step = settings.prompts_per_optimizer_step();
    let max_tokens_per_step = max_tokens_per_step(settings, &model.config, longest_prompt);
    let budget = settings.max_tokens_per_micro_batch;
    Ok(Plan {
        algorithm: settings.algorithm.name(),
        model: match &settings.architecture {
            None => settings.model.clone(),
            Some(architecture) => format!("a new {}", architecture.model_type.family().model_type()),
        },
        parameters: model.config.num_parameters(),
        rows,
        prompts_per_step,
        num_generations,
        completions_per_step: prompts_per_step * num_generations,
        max_steps: max_steps(settings, rows),
        max_tokens_per_step,
        max_micro_batches: max_tokens_per_step.div_ceil(budget),
        memory: Memory::of_run(settings, &model.config, &compute, longest_prompt),
        first_prompt,
        first_prompt_ids,
    })
}

fn first_example(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingRows,
) -> Result<(usize, String, Vec<u32>, usize), RecipeError> {
    let Prepared { items, .. } = prepare_parts(settings, data, |part| examples(settings, model, &part))?;
    // Each part has an example at least.
    let first = items.first();
    let ids: Vec<u32> = first.iter().flat_map(|e| e.prompt_ids.iter().chain(&e.completion_ids)).copied().collect();
    let longest = items.iter().map(|e| e.prompt_ids.len()).max().unwrap_or(0);
    Ok((items.len(), model.tokenizer.decode_with_special(&ids)?, ids, longest))
}

impl Plan {
    /// The plan for people.
    #[must_use]
    pub fn render(&self) -> String {
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let m = &self.memory;
        let is_text = self.algorithm == Algorithm::Pretrain.name();
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<14}{value}");
        };
        line("model", format!("{} ({} parameters)", self.model, self.parameters));
        line("algorithm", self.algorithm.to_owned());
        line(if is_text { "blocks" } else { "rows" }, self.rows.to_string());
        let (prompts, completions) = (self.prompts_per_step, self.completions_per_step);
        let step = if is_text {
            format!("{prompts} blocks")
        } else {
            format!("{prompts} prompts x {} = {completions} completions", self.num_generations)
        };
        line("step", step);
        line("steps", self.max_steps.to_string());
        line(
            "tokens",
            format!("at most {} a step, in at most {} micro-batches", self.max_tokens_per_step, self.max_micro_batches),
        );
        line("memory", format!("about {}", mib(m.peak())));
        line("", format!("weights {}, gradients {}, moments {}", mib(m.weights), mib(m.gradients), mib(m.moments)));
        line(
            "",
            format!(
                "reference {}, sampling {}, activations {}{}",
                mib(m.reference),
                mib(m.rollout()),
                mib(m.activations),
                if m.gradient_checkpointing { " (gradient_checkpointing)" } else { "" }
            ),
        );
        line(if is_text { "text" } else { "first prompt" }, format!("{:?}", self.first_prompt));
        line("token ids", format!("{:?}", self.first_prompt_ids));
        text
    }
}
