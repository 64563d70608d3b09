//! Training a reward model: its pairs, its evaluation, and the folder that it leaves.

use super::RecipeError;
use super::evaluator::Evaluator;
use super::parts::{LoadedModel, max_steps};
use super::rows::{Prepared, TrainingRows, eval_rows, prepare_parts};
use crate::checkpoint::{CheckpointError, classifier_config};
use crate::config::RunConfig;
use crate::data::Dataset;
use crate::io::{read_text, write_atomic};
use crate::model::{Decoder, Params, Task};
use crate::telemetry::{EvalFigures, StepMetrics};
use crate::text::{ScoredRenderer, pad_id};
use crate::trainer::reward::add_metrics;
use crate::trainer::{
    Evaluated, Method, ModelWriter, RankedPair, RewardTraining, RewardTrainingConfig, compute_ranking,
    prepare_ranked_pairs,
};
use std::path::Path;
use std::sync::Arc;

/// Learning of pairs, and its optimizer steps.
pub(super) fn method(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingRows,
) -> Result<(Method, u64), RecipeError> {
    let part = |data: Dataset| ranked_pairs(settings, model, &data);
    let Prepared { items: pairs, order } = prepare_parts(settings, data, part)?;
    let max_steps = max_steps(settings, pairs.len());
    let config = RewardTrainingConfig {
        pairs_per_step: settings.prompts_per_optimizer_step(),
        center_rewards_coefficient: settings.center_rewards_coefficient.unwrap_or(0.0),
        max_tokens_per_micro_batch: settings.max_tokens_per_micro_batch,
    };
    Ok((Method::Reward(RewardTraining { config, pairs, order }), max_steps))
}

/// How the texts of pairs are read, and the most tokens of one.
pub(super) fn reading(settings: &RunConfig, model: &LoadedModel) -> Result<(ScoredRenderer, usize), RecipeError> {
    let pad_id = pad_id(&model.resolved.folder, &model.tokenizer)?;
    let both = settings.max_prompt_length.saturating_add(settings.max_completion_length);
    let max_length = both.min(model.config.max_position_embeddings);
    Ok((ScoredRenderer::new(model.renderer(settings), pad_id), max_length))
}

/// The rows of a source as pairs; there is one at least.
pub(super) fn ranked_pairs(
    settings: &RunConfig,
    model: &LoadedModel,
    data: &Dataset,
) -> Result<Vec<RankedPair>, RecipeError> {
    let (renderer, max_length) = reading(settings, model)?;
    let (pairs, left_out) = prepare_ranked_pairs(&data.rows, &renderer, max_length)?;
    let (path, left_out) = (&data.source, left_out.len());
    if pairs.is_empty() {
        return Err(RecipeError::NoPairs { path: path.to_owned(), left_out, max_length });
    }
    if left_out > 0 {
        let path = path.display();
        tracing::warn!(
            "{path}: {left_out} pairs are empty, longer than {max_length} tokens or of equal tokens and were left out"
        );
    }
    Ok(pairs)
}

/// The evaluation on the pairs of `eval_file` or `dataset_test_split`, where one is set.
pub(super) fn evaluator(settings: &RunConfig, model: &LoadedModel) -> Result<Option<Arc<Evaluator>>, RecipeError> {
    let Some(data) = eval_rows(settings)? else { return Ok(None) };
    let pairs = ranked_pairs(settings, model, &data)?;
    let center = settings.center_rewards_coefficient.unwrap_or(0.0);
    let max_tokens = settings.max_tokens_per_micro_batch;
    Ok(Some(Arc::new(move |decoder: &Decoder| {
        let found = compute_ranking(decoder, &pairs, center, max_tokens)?;
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", found.loss);
        add_metrics(&mut metrics, &found.stats);
        let figures = EvalFigures::ranked(found.stats.accurate as f64 / pairs.len() as f64, pairs.len());
        Ok(Evaluated { figures, metrics, samples: Vec::new() })
    })))
}

/// Writes the folder as `write` does and makes a sequence classifier of it. A chat template that was given by a setting
/// is written too: whoever scores with the model must render as it learned.
pub(super) fn writer(
    settings: &RunConfig,
    model: &LoadedModel,
    write: ModelWriter,
) -> Result<ModelWriter, RecipeError> {
    let pad_id = pad_id(&model.resolved.folder, &model.tokenizer)?;
    let architecture = model.config.family.architecture_for(Task::SequenceClassification);
    let template = settings.chat_template.is_some().then(|| model.template.as_ref().map(|t| t.text().to_owned()));
    Ok(Box::new(move |folder: &Path, params: &Params| {
        write(folder, params)?;
        let path = folder.join("config.json");
        let config = classifier_config(&path, &read_text(&path)?, architecture, pad_id)?;
        let store = |path: &Path, text: &str| -> Result<(), CheckpointError> {
            Ok(write_atomic(path, |writer| writer.write_all(text.as_bytes()))?)
        };
        store(&path, &config)?;
        if let Some(Some(template)) = &template {
            store(&folder.join("chat_template.jinja"), template)?;
        }
        Ok(())
    }))
}
