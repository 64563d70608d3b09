//! What a run evaluates: greedy completions of the rows of `eval_file`, or the end of a training text.

use super::RecipeError;
use super::corpus::{Corpus, sample_prompt};
use super::parts::{LoadedModel, PromptLimit, load_model_as, prepare, sampling};
use super::reward_model;
use super::rows::eval_rows;
use super::start::TrainingData;
use crate::config::{Algorithm, RunConfig};
use crate::device::Compute;
use crate::eval::{EvalConfig, EvalError, Grader, compute_perplexity, run_eval, summarize};
use crate::model::{Decoder, Task};
use crate::reward::WeightedRewards;
use crate::rollout::{Engine, RolloutRequest, SamplingConfig};
use crate::telemetry::{EvalFigures, StepMetrics};
use crate::text::{StopRules, Tokenizer};
use crate::trainer::{Evaluated, LoggedCompletion, TrainError};
use std::path::Path;
use std::sync::Arc;

/// Evaluates a model of the run; its data are checked when it is made.
pub(super) type Evaluator = dyn Fn(&Decoder) -> Result<Evaluated, TrainError>;

/// The evaluation that the settings ask for, if they ask for one.
pub(super) fn evaluator(
    settings: &RunConfig,
    model: &LoadedModel,
    data: &TrainingData,
    rewards: WeightedRewards,
    grader: Grader,
) -> Result<Option<Arc<Evaluator>>, RecipeError> {
    match data {
        TrainingData::Text(corpus) => on_text(settings, model, corpus),
        TrainingData::Rows(_) if settings.algorithm == Algorithm::Reward => reward_model::evaluator(settings, model),
        TrainingData::Rows(_) => on_rows(settings, model, rewards, grader),
    }
}

/// Greedy evaluation on the rows of `eval_file` or `dataset_test_split`, where one is set.
fn on_rows(
    settings: &RunConfig,
    model: &LoadedModel,
    rewards: WeightedRewards,
    grader: Grader,
) -> Result<Option<Arc<Evaluator>>, RecipeError> {
    let Some(data) = eval_rows(settings)? else { return Ok(None) };
    rewards.check_rows(&data.rows)?;
    grader.check_rows(&data.rows)?;
    let prompts =
        prepare(&data.source, data.rows, &model.renderer(settings), PromptLimit::new(settings, model))?.prompts;
    if settings.architecture.is_some() {
        // A tokenizer made from the training rows leaves out what it does not know.
        for prompt in &prompts {
            let characters = model.tokenizer.missing_characters(&prompt.text);
            if !characters.is_empty() {
                let place = prompt.place.to_string();
                return Err(RecipeError::MissingCharacters { place, characters });
            }
        }
    }
    let config = EvalConfig {
        num_samples: 1,
        sampling: SamplingConfig::greedy(),
        stop: model.stop_rules(&settings.stop, settings.max_completion_length),
        slots: settings.rollout_slots,
        seed: settings.seed,
    };
    let tokenizer = model.tokenizer.clone();
    Ok(Some(Arc::new(move |decoder: &Decoder| {
        let samples = run_eval(decoder, &tokenizer, &prompts, &rewards, &grader, &config, &mut ());
        let samples = samples.map_err(|error| match error {
            // What was trained is saved where a reward fails.
            EvalError::Reward(error) => error.into(),
            other => TrainError::other(other),
        })?;
        let (figures, metrics) = summarize(&samples, &rewards);
        Ok(Evaluated { figures, metrics, samples: Vec::new() })
    })))
}

/// The loss on the validation part of the text, where there is one, and what the model writes by itself.
fn on_text(settings: &RunConfig, model: &LoadedModel, corpus: &Corpus) -> Result<Option<Arc<Evaluator>>, RecipeError> {
    let prompt_ids = sample_prompt(&settings.sample_prompt, &model.tokenizer, &corpus.train)?;
    let context = model.config.max_position_embeddings;
    if prompt_ids.len() >= context {
        return Err(RecipeError::SamplePrompt { tokens: prompt_ids.len(), context });
    }
    if corpus.validation.is_empty() {
        return Ok(None);
    }
    let writer = Writer {
        prompt_ids,
        num_samples: settings.num_samples,
        sampling: sampling(settings),
        stop: model.stop_rules(&settings.stop, settings.max_completion_length),
        slots: settings.rollout_slots,
        seed: settings.seed,
        tokenizer: model.tokenizer.clone(),
    };
    let (ids, block_size) = (corpus.validation.clone(), settings.block_size);
    let max_tokens = settings.max_tokens_per_micro_batch;
    Ok(Some(Arc::new(move |decoder: &Decoder| {
        let mut metrics = StepMetrics::new();
        // The validation part holds a block, so there is something to predict.
        let Some(found) = compute_perplexity(decoder, &ids, block_size, max_tokens)? else {
            return Ok(Evaluated::default());
        };
        metrics.gauge("loss", found.loss);
        metrics.gauge("perplexity", found.perplexity);
        let figures = EvalFigures::of_text(found.loss, found.num_tokens);
        Ok(Evaluated { figures, metrics, samples: writer.write(decoder)? })
    })))
}

/// Lets a model write, by the same draws each time.
struct Writer {
    prompt_ids: Vec<u32>,
    num_samples: usize,
    sampling: SamplingConfig,
    stop: StopRules,
    slots: usize,
    seed: u64,
    tokenizer: Tokenizer,
}

impl Writer {
    fn write(&self, decoder: &Decoder) -> Result<Vec<LoggedCompletion>, TrainError> {
        if self.num_samples == 0 {
            return Ok(Vec::new());
        }
        let engine = Engine {
            decoder,
            tokenizer: &self.tokenizer,
            sampling: self.sampling,
            stop: &self.stop,
            slots: self.slots,
            seed: self.seed,
            step: 0,
        };
        let prompt_ids = self.prompt_ids.clone();
        let request = RolloutRequest { prompt_ids, prompt: 0, first_completion: 0, num_generations: self.num_samples };
        let (groups, _) = engine.run(&[request], &mut ())?;
        let prompt = self.tokenizer.decode(&self.prompt_ids)?;
        let completions = groups.iter().flat_map(|group| &group.completions);
        completions
            .map(|completion| {
                Ok(LoggedCompletion {
                    step: 0,
                    prompt: prompt.clone(),
                    completion: self.tokenizer.decode(&completion.ids)?,
                    rewards: Vec::new(),
                    reward: None,
                    advantage: None,
                    finish_reason: completion.finish_reason,
                })
            })
            .collect()
    }
}

/// Reads the written folder of a model for `task` back and evaluates that.
pub(super) fn evaluate_folder(
    folder: &Path,
    task: Task,
    compute: &Compute,
    evaluate: &Evaluator,
) -> Result<Evaluated, TrainError> {
    let model = load_model_as(&folder.to_string_lossy(), None, true, None, Some(task)).map_err(TrainError::other)?;
    let (decoder, _) = model.decoder(compute, false).map_err(TrainError::other)?;
    evaluate(&decoder)
}
