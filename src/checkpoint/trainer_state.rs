//! `trainer_state.json` with the keys that Hugging Face's tools read: progress and the history of the logs.
//!
//! Written for others; a resumed run takes only the history from it, number for number.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::CheckpointError;
use super::state::{parse_json, save_json};
use crate::io::{IoError, read_text};
use crate::telemetry::StepMetrics;

/// Name of the file inside a checkpoint.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";

/// One entry of the history: numbers as the text that was first written, so that a resumed run repeats them exactly.
type HistoryRow = BTreeMap<String, Box<RawValue>>;

/// The content of `trainer_state.json`; the fields stand in the file's order, by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerState {
    /// Step of the best checkpoint.
    pub best_global_step: Option<u64>,
    /// Its evaluation figure.
    pub best_metric: Option<f64>,
    /// Its folder, beside this one.
    pub best_model_checkpoint: Option<String>,
    /// Epochs of data seen, with fraction.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Always false here.
    pub is_hyper_param_search: bool,
    /// True: one process writes.
    pub is_local_process_zero: bool,
    /// True: one process writes.
    pub is_world_process_zero: bool,
    log_history: Vec<HistoryRow>,
    /// Steps between log entries.
    pub logging_steps: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Tokens trained on.
    pub num_input_tokens_seen: u64,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Unused here.
    pub stateful_callbacks: BTreeMap<String, serde_json::Value>,
    /// Not counted here.
    pub total_flos: f64,
    /// Completions (or rows) of a step.
    pub train_batch_size: u64,
    /// Unused here.
    pub trial_name: Option<String>,
    /// Unused here.
    pub trial_params: Option<BTreeMap<String, serde_json::Value>>,
}

impl TrainerState {
    /// The state of a run that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self { is_local_process_zero: true, is_world_process_zero: true, ..Self::default() }
    }

    /// Appends the metrics of a step to the history. What depends on the clock is left out: it belongs to
    /// `metrics.jsonl`, and without it equal runs write equal files.
    pub fn push_history(&mut self, step: u64, epoch: f64, metrics: &StepMetrics) {
        let mut row = HistoryRow::new();
        let members = metrics.to_json().into_iter().filter(|(name, _)| !StepMetrics::is_wall_clock(name));
        for (name, value) in members.chain([("step".into(), step.into()), ("epoch".into(), epoch.into())]) {
            // A number or null always has a text.
            if let Ok(text) = to_raw_value(&value) {
                row.insert(name, text);
            }
        }
        self.log_history.push(row);
    }

    /// Writes the file into a checkpoint folder, keys sorted, indent 2.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        save_json(&folder.join(TRAINER_STATE_FILE), self)
    }

    /// Reads the file of a checkpoint folder.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(TRAINER_STATE_FILE);
        parse_json(&path, &read_text(&path)?)
    }

    /// Like [`TrainerState::load`], with an empty history where the file is absent.
    pub fn load_or_new(folder: &Path) -> Result<Self, CheckpointError> {
        match Self::load(folder) {
            Err(CheckpointError::Io(IoError::Failed { source, .. }))
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(Self::new())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_known_keys_sorted_and_survives_a_round_trip_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRAINER_STATE_FILE);
        let mut state = TrainerState::new();
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", 7.038_531e-26);
        metrics.gauge("reward", f64::NAN);
        metrics.gauge("step_time", 1.5);
        metrics.gauge("perf/train_secs", 1.5);
        metrics.count("num_tokens", 12);
        state.push_history(1, 1.0 / 3.0, &metrics);
        state.save(dir.path()).unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        TrainerState::load(dir.path()).unwrap().save(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);

        let value: serde_json::Value = serde_json::from_str(&first).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = vec![
            "best_global_step",
            "best_metric",
            "best_model_checkpoint",
            "epoch",
            "eval_steps",
            "global_step",
            "is_hyper_param_search",
            "is_local_process_zero",
            "is_world_process_zero",
            "log_history",
            "logging_steps",
            "max_steps",
            "num_input_tokens_seen",
            "num_train_epochs",
            "save_steps",
            "stateful_callbacks",
            "total_flos",
            "train_batch_size",
            "trial_name",
            "trial_params",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
        let row = value["log_history"][0].as_object().unwrap();
        assert_eq!(row.keys().collect::<Vec<_>>(), ["epoch", "loss", "num_tokens", "reward", "step"]);
        assert!(row["reward"].is_null());
    }
}
