//! Evaluating a model folder or Hub model on a JSONL set: loads, runs `eval`, writes the result files where asked to.

use super::RecipeError;
use super::corpus::{MAX_DEFAULT_BLOCK, PerplexityOptions, perplexity};
use super::parts::{LoadedModel, PromptLimit, check_device, graders, load_model, prepare, sampling};
use super::rows::load_source;
use crate::config::RunConfig;
use crate::data::{RowKind, Source};
use crate::error::{Diagnose, Exit};
use crate::eval::{
    EvalConfig, EvalFigures, EvalRun, EvalSample, Perplexity, ResultPaths, compute_figures, run_eval, sample_rows,
    write_results,
};
use crate::io::{require_writable, sha256_file};
use crate::reward::{IsStopping, WeightedRewards};
use crate::rollout::Observer;
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What is evaluated beside the settings (`model`, the columns, `temperature`, `seed`, ...), which are those of a run.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Where the rows are: a file (`path.into()`), or a split of a data set.
    pub data: Source,
    /// Completions of each prompt.
    pub num_samples: usize,
    /// Evaluate the first rows only.
    pub num_rows: Option<usize>,
    /// Where the result files go; `None` writes none.
    pub output: Option<PathBuf>,
    /// Rewards in place of those that the settings name. Without an `eval_grader` a completion is then right where the
    /// first of them scores it above 0.5.
    pub rewards: Option<WeightedRewards>,
}

/// What an evaluation found.
#[derive(Debug)]
pub struct Evaluation {
    /// Accuracy, rewards, pass@k.
    pub figures: EvalFigures,
    /// Every completion; those of a prompt stand together.
    pub samples: Vec<EvalSample>,
    /// The result files, where an output folder was given.
    pub files: Option<ResultPaths>,
}

/// Evaluates several models with the same settings, one after the other, on the same rows with the same draws. The
/// files of all are looked at before the first completion is sampled.
///
/// # Errors
/// As [`evaluate`]; of several models, the one at fault is named.
pub fn evaluate_models(
    settings: &RunConfig,
    models: &[String],
    options: &EvaluateOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<Evaluation>, RecipeError> {
    load_all(settings, models)?;
    if let Some(output) = &options.output {
        // What cannot be written is found out before hours of sampling.
        require_writable(output)?;
    }
    let mut evaluate_one = |model: &String| {
        let settings = RunConfig { model: model.clone(), ..settings.clone() };
        evaluate(&settings, options, observer).map_err(|error| of_model(models, model, error))
    };
    models.iter().map(&mut evaluate_one).collect()
}

/// How well each of several models predicts a text file, in blocks of one length: the shortest context, at most 1024.
///
/// # Errors
/// As [`perplexity`]; of several models, the one at fault is named.
pub fn perplexities(settings: &RunConfig, models: &[String], data: &Path) -> Result<Perplexities, RecipeError> {
    let loaded = load_all(settings, models)?;
    let shortest = loaded.iter().map(|model| model.config.max_position_embeddings).min();
    let block_size = shortest.map(|context| context.min(MAX_DEFAULT_BLOCK));
    let options = PerplexityOptions { data: data.to_owned(), block_size };
    let measure = |model: &String| {
        let settings = RunConfig { model: model.clone(), ..settings.clone() };
        perplexity(&settings, &options).map_err(|error| of_model(models, model, error))
    };
    let hash = |model: &LoadedModel| Ok(sha256_file(&model.resolved.folder.join("tokenizer.json"))?.1);
    let hashes = loaded.iter().map(hash).collect::<Result<HashSet<String>, RecipeError>>()?;
    Ok(Perplexities {
        of_models: models.iter().map(measure).collect::<Result<_, _>>()?,
        tokenizers_differ: hashes.len() > 1,
    })
}

/// Several models on one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexities {
    /// In the order of the models.
    pub of_models: Vec<Perplexity>,
    /// The models cut the text into tokens in different ways: a figure a token of one is none of another.
    pub tokenizers_differ: bool,
}

/// Everything of the models but their weights.
fn load_all(settings: &RunConfig, models: &[String]) -> Result<Vec<LoadedModel>, RecipeError> {
    let (revision, template) = (settings.revision.as_deref(), settings.chat_template.as_deref());
    let load = |model: &String| {
        load_model(model, revision, settings.offline, template).map_err(|error| of_model(models, model, error))
    };
    models.iter().map(load).collect()
}

/// An error with the model at fault, where there are several and it is not the data's.
fn of_model(models: &[String], model: &str, source: RecipeError) -> RecipeError {
    if models.len() == 1 || source.exit() == Exit::Data {
        return source;
    }
    RecipeError::OfModel { model: model.to_owned(), source: Box::new(source) }
}

/// Samples completions for every row and grades them.
///
/// # Errors
/// Fails where model or data cannot be read, or a completion cannot be sampled or scored.
pub fn evaluate(
    settings: &RunConfig,
    options: &EvaluateOptions,
    observer: &mut dyn Observer,
) -> Result<Evaluation, RecipeError> {
    let (started, clock) = (jiff::Zoned::now(), Instant::now());
    let (rewards, grader) = graders(settings, options.rewards.as_ref())?;
    rewards.check()?;
    let compute = check_device(settings)?;
    let (revision, template) = (settings.revision.as_deref(), settings.chat_template.as_deref());
    let model = load_model(&settings.model, revision, settings.offline, template)?;
    let mut data = load_source(&options.data, &settings.rows_config(RowKind::Prompt)?, settings.offline)?.dataset;
    let all_rows = data.rows.len();
    data.rows.truncate(options.num_rows.unwrap_or(usize::MAX));
    rewards.check_rows(&data.rows)?;
    grader.check_rows(&data.rows)?;
    let rows = data.rows.clone();
    let limit = PromptLimit::new(settings, &model);
    let prompts = prepare(&data.source, data.rows, &model.renderer(settings), limit)?.prompts;
    let config = EvalConfig {
        num_samples: options.num_samples,
        sampling: sampling(settings),
        stop: model.stop_rules(&settings.stop, settings.max_completion_length),
        slots: settings.rollout_slots,
        seed: settings.seed,
    };
    let is_stopping: IsStopping = Arc::new(|| false);
    rewards.start(&is_stopping)?;
    rewards.prepare(&compute)?;
    let (decoder, _) = model.decoder(&compute, false)?;
    let samples = run_eval(&decoder, &model.tokenizer, &prompts, &rewards, &grader, &config, observer)?;
    let names: Vec<String> = rewards.names().map(str::to_owned).collect();
    let Some(figures) = compute_figures(&samples, &names) else {
        return Err(RecipeError::NoRows { path: data.source, rows: all_rows, too_long: 0, limit });
    };
    let files = match &options.output {
        None => None,
        Some(output) => {
            let kwargs = json!({
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": settings.top_k,
                "min_p": settings.min_p,
                "repetition_penalty": settings.repetition_penalty,
                "stop": config.stop.stop_strings,
                "max_completion_length": settings.max_completion_length,
                "do_sample": settings.temperature > 0.0,
            });
            let run = EvalRun {
                model: settings.model.clone(),
                model_commit: model.resolved.commit.clone(),
                task: options.data.short_name(),
                data: data.source,
                data_sha256: data.sha256,
                num_rows: all_rows,
                limit: options.num_rows,
                num_samples_per_prompt: options.num_samples,
                filter: grader.name(),
                generation_kwargs: kwargs.as_object().cloned().unwrap_or_default(),
                seed: settings.seed,
                device: compute.name().into(),
                chat_template: model.template.as_ref().map(|template| template.text().to_owned()),
                system_prompt: settings.system_prompt.clone(),
                started,
                seconds: clock.elapsed().as_secs_f64(),
            };
            Some(write_results(output, &run, &figures, &sample_rows(&run, &rows, &samples))?)
        }
    };
    Ok(Evaluation { figures, samples, files })
}
