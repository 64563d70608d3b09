//! `training_state.json`: where a run stands, beside its tensors.
//!
//! Randomness needs no state (see `rng`), so a few counters say all: a step that was interrupted is redone from its
//! start and comes out the same.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CheckpointError, RunIdentity};
use crate::io::{IoError, read_text, write_atomic};
use crate::telemetry::EvalFigures;

/// Name of the file inside a checkpoint.
pub const TRAINING_STATE_FILE: &str = "training_state.json";
/// Version of the file's format; raised when an older program would misread it.
pub const FORMAT_VERSION: u64 = 1;

/// The best checkpoint so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Its step.
    pub step: u64,
    /// The evaluation figure that made it the best.
    #[serde(with = "crate::io::exact_f64")]
    pub metric: f64,
}

/// Where a run stands after `step` optimizer steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u64,
    /// Optimizer steps done; also the steps that the schedule has seen.
    pub step: u64,
    /// Those of them in which there was nothing to learn from, so that no update was made: Adam's bias correction has
    /// seen the others only.
    #[serde(default)]
    pub idle_steps: u64,
    /// Data rows drawn since the start, over all epochs: the position of the data order.
    pub rows_drawn: u64,
    /// Passes already made over the saved rollouts; 0 where the next step samples anew.
    pub iteration: u64,
    /// Tokens of the rollouts (or rows) of each step since the start, prompts and completions.
    pub num_tokens: u64,
    /// Length of `metrics.jsonl` when the checkpoint was saved.
    pub metrics_bytes: u64,
    /// Length of `completions.jsonl` when the checkpoint was saved.
    pub completions_bytes: u64,
    /// The best checkpoint so far, where evaluation picks one.
    pub best: Option<BestCheckpoint>,
    /// The evaluation before the first step, for the table at the end.
    pub before: Option<EvalFigures>,
    /// Counters of the trainer that have no field of their own. Whole numbers and texts only: they are exact in JSON.
    pub extra: Map<String, Value>,
    /// What the run is a run of.
    pub identity: RunIdentity,
}

impl TrainingState {
    /// The state of a run that has not begun.
    #[must_use]
    pub fn start(identity: RunIdentity) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            step: 0,
            idle_steps: 0,
            rows_drawn: 0,
            iteration: 0,
            num_tokens: 0,
            metrics_bytes: 0,
            completions_bytes: 0,
            best: None,
            before: None,
            extra: Map::new(),
            identity,
        }
    }

    /// Writes the file into a checkpoint folder.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        save_json(&folder.join(TRAINING_STATE_FILE), self)
    }

    /// Reads the file of a checkpoint folder.
    ///
    /// # Errors
    /// [`CheckpointError::FutureVersion`] where a newer program wrote it; [`CheckpointError::Corrupt`] where it is
    /// not such a file.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }
        let path = folder.join(TRAINING_STATE_FILE);
        let text = read_text(&path)?;
        // The version is read by itself first: the rest of a newer file may not fit the struct.
        let version: Version = parse_json(&path, &text)?;
        if version.format_version > FORMAT_VERSION {
            return Err(CheckpointError::FutureVersion {
                folder: folder.to_owned(),
                file: TRAINING_STATE_FILE.into(),
                found: version.format_version,
                known: FORMAT_VERSION,
            });
        }
        parse_json(&path, &text)
    }
}

pub(super) fn parse_json<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T, CheckpointError> {
    serde_json::from_str(text).map_err(|error| CheckpointError::corrupt(path, format!("cannot be read: {error}")))
}

/// Writes JSON with an indent of 2 and a newline at the end.
pub(super) fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CheckpointError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| IoError::of("write", path)(error.into()))? + "\n";
    Ok(write_atomic(path, |writer| writer.write_all(text.as_bytes()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Diagnose, Exit};

    #[test]
    fn a_state_comes_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = TrainingState::start(RunIdentity::default());
        state.step = u64::MAX;
        // A value that the JSON library's own parser reads one unit in the last place off.
        for metric in [0.1 + 0.2, 1.0 / 3.0, 2.225_073_858_507_201e-308, 9_007_199_254_740_993.0, 7.038_531e-26] {
            state.best = Some(BestCheckpoint { step: 5, metric });
            state.before = Some(EvalFigures { loss: Some(metric), ..EvalFigures::graded(metric, -metric, 3) });
            state.save(dir.path()).unwrap();
            assert_eq!(TrainingState::load(dir.path()).unwrap(), state);
        }
    }

    #[test]
    fn a_newer_format_is_told_from_a_broken_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRAINING_STATE_FILE);
        std::fs::write(&path, r#"{"format_version": 99, "unknown": []}"#).unwrap();
        let error = TrainingState::load(dir.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::FutureVersion { found: 99, .. }), "{error}");
        for text in ["", "[]", r#"{"format_version": 1}"#, r#"{"format_version": -1}"#] {
            std::fs::write(&path, text).unwrap();
            let error = TrainingState::load(dir.path()).unwrap_err();
            assert!(matches!(error, CheckpointError::Corrupt { .. }), "{error}");
            assert_eq!(error.exit(), Exit::Io);
        }
    }
}
