//! `metrics.jsonl` and `completions.jsonl`: one flat object a line, cut back on resume.
//!
//! A resumed run first cuts each file to the length that it had when the checkpoint was saved, so that the files of a
//! killed run end up as those of an uninterrupted one, times apart.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{MetricSink, StepMetrics, TelemetryError};
use crate::io::{IoError, unix_time};

/// An append-only file of JSON lines whose length is known.
#[derive(Debug)]
struct LineFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LineFile {
    fn open(path: &Path, keep_bytes: u64) -> Result<Self, IoError> {
        let mut file =
            File::options().write(true).create(true).truncate(false).open(path).map_err(IoError::of("open", path))?;
        let length = file.metadata().map_err(IoError::of("read the size of", path))?.len();
        if length < keep_bytes {
            tracing::warn!(
                "{} has {length} bytes, {keep_bytes} were expected: lines of earlier steps are missing from it",
                path.display()
            );
        }
        let bytes = length.min(keep_bytes);
        file.set_len(bytes).map_err(IoError::of("truncate", path))?;
        file.seek(SeekFrom::Start(bytes)).map_err(IoError::of("seek in", path))?;
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Appends one line by a single write, so that a reader never sees part of one from a healthy run.
    fn append(&mut self, object: &Map<String, Value>) -> Result<(), IoError> {
        let mut line = serde_json::to_vec(object)
            .map_err(|error| IoError::of("write", &self.path)(std::io::Error::from(error)))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(IoError::of("write", &self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), IoError> {
        self.file.sync_data().map_err(IoError::of("flush to disk", &self.path))
    }
}

/// `metrics.jsonl`: one object a step with `step`, the unix `time` in seconds, and the metrics.
#[derive(Debug)]
pub struct JsonlSink(LineFile);

impl JsonlSink {
    /// Opens the file and keeps its first `keep_bytes` bytes: 0 for a fresh run, the saved length on resume.
    pub fn open(path: &Path, keep_bytes: u64) -> Result<Self, TelemetryError> {
        Ok(Self(LineFile::open(path, keep_bytes)?))
    }

    /// The length of the file so far; a checkpoint remembers it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }
}

impl MetricSink for JsonlSink {
    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TelemetryError> {
        for (name, value) in metrics.non_finite() {
            tracing::warn!("step {step}: metric {name} is {value}; {} has null there", self.0.path.display());
        }
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        object.insert("time".into(), unix_time().into());
        object.extend(metrics.to_json());
        Ok(self.0.append(&object)?)
    }

    fn flush(&mut self) -> Result<(), TelemetryError> {
        Ok(self.0.sync()?)
    }
}

/// One sampled completion as `completions.jsonl` shows it.
#[derive(Debug, Clone, Copy)]
pub struct CompletionRecord<'a> {
    /// The step that trains on it.
    pub step: u64,
    /// The text that the model saw.
    pub prompt: &'a str,
    /// The text that it answered.
    pub completion: &'a str,
    /// Name and score of each reward; `None` is "no score".
    pub rewards: &'a [(&'a str, Option<f64>)],
    /// The weighted sum of the rewards.
    pub reward: Option<f64>,
    /// What the objective multiplies with; absent where nothing is learned from it.
    pub advantage: Option<f64>,
    /// `stop` or `length`.
    pub finish_reason: &'a str,
}

impl CompletionRecord<'_> {
    /// The line of `completions.jsonl`.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let rewards: Map<String, Value> =
            self.rewards.iter().map(|(name, score)| ((*name).to_owned(), Value::from(*score))).collect();
        let members = [
            ("step", Value::from(self.step)),
            ("prompt", self.prompt.into()),
            ("completion", self.completion.into()),
            ("rewards", rewards.into()),
            ("reward", self.reward.into()),
            ("advantage", self.advantage.into()),
            ("finish_reason", self.finish_reason.into()),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// `completions.jsonl`: what the model wrote and what it got for it.
#[derive(Debug)]
pub struct CompletionsSink(LineFile);

impl CompletionsSink {
    /// Opens the file and keeps its first `keep_bytes` bytes: 0 for a fresh run, the saved length on resume.
    pub fn open(path: &Path, keep_bytes: u64) -> Result<Self, TelemetryError> {
        Ok(Self(LineFile::open(path, keep_bytes)?))
    }

    /// Appends one completion.
    pub fn log(&mut self, record: &CompletionRecord<'_>) -> Result<(), TelemetryError> {
        Ok(self.0.append(&record.to_json())?)
    }

    /// The length of the file so far; a checkpoint remembers it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Makes what was logged durable; called before a checkpoint is committed.
    pub fn flush(&mut self) -> Result<(), TelemetryError> {
        Ok(self.0.sync()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64) -> StepMetrics {
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", loss);
        metrics
    }

    fn rows(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_resumed_file_equals_that_of_an_uninterrupted_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut sink = JsonlSink::open(&path, 0).unwrap();
        sink.log(1, &metrics(0.5)).unwrap();
        let saved = sink.bytes();
        sink.log(2, &metrics(9.0)).unwrap();
        sink.0.file.write_all(b"{\"step\":3,\"ti").unwrap();
        drop(sink);

        let mut sink = JsonlSink::open(&path, saved).unwrap();
        sink.log(2, &metrics(0.25)).unwrap();
        sink.flush().unwrap();
        let rows = rows(&path);
        let losses: Vec<_> = rows.iter().map(|row| (row["step"].as_u64(), row["loss"].as_f64())).collect();
        assert_eq!(losses, [(Some(1), Some(0.5)), (Some(2), Some(0.25))]);
        assert_eq!(rows[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["step", "time", "loss"]);
    }

    #[test]
    fn a_fresh_run_empties_the_file_and_a_short_file_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, b"{\"step\":1}\n").unwrap();
        assert_eq!(JsonlSink::open(&path, 1000).unwrap().bytes(), 11);
        JsonlSink::open(&path, 0).unwrap().log(1, &metrics(f64::NAN)).unwrap();
        assert_eq!(rows(&path)[0]["loss"], Value::Null);
    }

    #[test]
    fn completions_keep_text_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("completions.jsonl");
        let mut sink = CompletionsSink::open(&path, 0).unwrap();
        let record = CompletionRecord {
            step: 4,
            prompt: "1+1=\n\"?\"",
            completion: " 2 \u{2212}\u{0}",
            rewards: &[("last_integer", Some(1.0)), ("judge", None)],
            reward: Some(1.0),
            advantage: Some(-0.5),
            finish_reason: "stop",
        };
        sink.log(&record).unwrap();
        let row = &rows(&path)[0];
        assert_eq!(row["prompt"], record.prompt);
        assert_eq!(row["completion"], record.completion);
        assert_eq!(row["rewards"]["judge"], Value::Null);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), sink.bytes());
    }
}
