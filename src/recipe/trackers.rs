//! Where `report_to` says that metrics go, besides the files that every run writes.

use super::RecipeError;
use crate::config::RunConfig;
use crate::telemetry::{BridgeLimits, BridgeSettings, BridgeSink, CsvSink, MetricSink, TensorBoardSink};
use serde_json::Value;

/// Opens the trackers of a run that starts, or goes on after `resumed_at`. The log files must be open: they are cut to
/// the checkpoint then.
pub(super) fn trackers(settings: &RunConfig, resumed_at: Option<u64>) -> Result<Vec<Box<dyn MetricSink>>, RecipeError> {
    let mut names: Vec<&str> = Vec::new();
    for name in &settings.report_to {
        // Named twice is meant once.
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let opened = names.into_iter().filter_map(|name| tracker(settings, name, resumed_at).transpose());
    opened.collect()
}

/// `None` for `none`; other names were refused with the configuration.
fn tracker(
    settings: &RunConfig,
    name: &str,
    resumed_at: Option<u64>,
) -> Result<Option<Box<dyn MetricSink>>, RecipeError> {
    let folder = &settings.output_dir;
    Ok(match name {
        "tensorboard" => {
            let folder = folder.join("runs").join(settings.run_name.as_deref().unwrap_or("run"));
            Some(Box::new(TensorBoardSink::open(&folder, resumed_at.unwrap_or(0))?))
        }
        "csv" => Some(Box::new(CsvSink::open(&folder.join("metrics.csv"), &folder.join("metrics.jsonl"))?)),
        "wandb" | "trackio" => Some(Box::new(BridgeSink::start(&BridgeSettings {
            tracker: name,
            python: &settings.python,
            folder,
            is_resumed: resumed_at.is_some(),
            offline: settings.offline,
            project: settings.project.as_deref(),
            name: &run_name(settings),
            config: config(settings),
            limits: BridgeLimits::default(),
        })?)),
        _ => None,
    })
}

/// The name that is set, else that of the folder.
fn run_name(settings: &RunConfig) -> String {
    let folder = || settings.output_dir.file_name().map(|name| name.to_string_lossy().into_owned());
    settings.run_name.clone().or_else(folder).unwrap_or_else(|| "run".to_owned())
}

/// The settings of the run, those that are not set left out.
fn config(settings: &RunConfig) -> Value {
    let mut config = serde_json::to_value(settings).unwrap_or_default();
    if let Some(members) = config.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    config
}
