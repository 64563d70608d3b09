//! The model card of a run: which of its settings and figures a reader wants to see.

use super::parts::LoadedModel;
use crate::checkpoint::{CardFacts, CardResult, TrainingState, base_license, model_card};
use crate::config::{Algorithm, RunConfig};
use crate::data::{RowKind, Source};
use crate::telemetry::EvalFigures;
use std::path::Path;

/// What a card says of the model that a run began with.
#[derive(Debug, Clone, Default)]
pub(super) struct CardBase {
    /// Its Hub id, where it came from the Hub.
    pub repo: Option<String>,
    pub license: Option<String>,
    /// Whether prompts go through a chat template.
    pub is_chat: bool,
    /// Whether the run made an adapter to it.
    pub is_adapter: bool,
}

impl CardBase {
    pub fn of(settings: &RunConfig, model: &LoadedModel) -> Self {
        Self {
            repo: model.resolved.repo.clone(),
            license: base_license(&model.resolved.folder),
            is_chat: model.template.is_some(),
            is_adapter: settings.lora.is_some(),
        }
    }
}

/// The card of a model that a run with `settings` has made, evaluated as `after`.
pub(super) fn run_card(
    settings: &RunConfig,
    base: &CardBase,
    state: &TrainingState,
    after: Option<EvalFigures>,
) -> String {
    let dataset = match settings.eval_source() {
        Ok(Some(source)) => source_name(&source),
        _ => format!("the end of {}", file_name(&settings.train_file)),
    };
    let result = |metric: &str, value: fn(&EvalFigures) -> Option<f64>| {
        Some(CardResult {
            metric: metric.to_owned(),
            dataset: dataset.clone(),
            before: state.before.as_ref().and_then(value),
            after: after.as_ref().and_then(value)?,
        })
    };
    let measured = [
        result("accuracy", |figures| figures.accuracy),
        result("mean_reward", |figures| figures.mean_reward),
        result("perplexity", EvalFigures::perplexity),
    ];
    model_card(&CardFacts {
        model_name: file_name(&settings.output_dir.to_string_lossy()),
        base_model: base.repo.clone(),
        is_adapter: base.is_adapter,
        algorithm: settings.algorithm.name().into(),
        datasets: trained_on(settings),
        license: base.license.clone(),
        is_chat: base.is_chat,
        steps: state.step,
        settings: key_settings(settings),
        results: measured.into_iter().flatten().collect(),
        versions: vec![("candlewick".into(), env!("CARGO_PKG_VERSION").into())],
    })
}

fn key_settings(settings: &RunConfig) -> Vec<(String, String)> {
    let mut rows = vec![
        ("learning_rate", settings.resolved_learning_rate().to_string()),
        ("prompts_per_step", settings.prompts_per_optimizer_step().to_string()),
        ("seed", settings.seed.to_string()),
    ];
    if settings.samples_completions() {
        let rewards = settings.rewards.iter().map(|reward| format!("{} x {}", reward.weight, reward.called()));
        rows.extend([
            ("num_generations", settings.num_generations.to_string()),
            ("beta", settings.resolved_beta().to_string()),
            ("temperature", settings.temperature.to_string()),
            ("max_completion_length", settings.max_completion_length.to_string()),
            ("rewards", rewards.collect::<Vec<_>>().join(", ")),
        ]);
    }
    if let Some(lora) = &settings.lora {
        let lora = lora.peft();
        rows.extend([("lora.r", lora.r.to_string()), ("lora.alpha", lora.lora_alpha.to_string())]);
    }
    if settings.algorithm == Algorithm::Pretrain {
        rows.push(("block_size", settings.block_size.to_string()));
    }
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the model was trained on: names of files, ids of data sets.
fn trained_on(settings: &RunConfig) -> Vec<String> {
    let sources = settings.training_sources(RowKind::Prompt).unwrap_or_default();
    sources.iter().map(|source| source_name(&source.source)).collect()
}

fn source_name(source: &Source) -> String {
    match source {
        Source::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Source::Split(split) => split.name.clone(),
    }
}

fn file_name(file: &str) -> String {
    Path::new(file).file_name().unwrap_or_default().to_string_lossy().into_owned()
}
