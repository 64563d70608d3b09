//! Short runs through the library: a tiny model without weights, a few prompts, a reward that is easy to earn.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several test files")]

#[path = "fixtures.rs"]
mod fixtures;
#[path = "tiny_run.rs"]
mod tiny_run;

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::config::{Algorithm, Init, LrSchedulerType, RunConfig};
use candlewick::recipe::{TrainOptions, train};
use candlewick::reward::{FnReward, WeightedRewards};
use candlewick::trainer::Outcome;
use serde_json::{Map, Value};

pub use tiny_run::assert_same_run;

pub type Metrics = Map<String, Value>;

/// A folder with a model and `prompts.jsonl`; runs write below it.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fixtures::write_tiny(&place.path("model"));
        let row = |i: usize| format!("{{\"prompt\": \"{}\"}}\n", prompt(i));
        place.write("prompts.jsonl", &(0..12).map(row).collect::<String>());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// 20 steps of 4 prompts with 6 completions each.
    pub fn settings(&self, output: &str, algorithm: Algorithm) -> RunConfig {
        RunConfig {
            algorithm,
            model: self.path("model").to_string_lossy().into_owned(),
            init: Init::Random,
            train_file: self.path("prompts.jsonl").to_string_lossy().into_owned(),
            output_dir: self.path(output),
            max_prompt_length: 16,
            max_completion_length: 8,
            prompts_per_step: 4,
            num_generations: 6,
            learning_rate: Some(1e-2),
            lr_scheduler_type: LrSchedulerType::Constant,
            max_steps: Some(20),
            save_steps: 0,
            offline: true,
            ..RunConfig::default()
        }
    }

    /// The lines of metrics.jsonl without what the clock decides.
    pub fn metrics(&self, output: &str) -> Vec<Metrics> {
        tiny_run::timeless_metrics(&self.path(output))
    }
}

/// The prompt of row `i`.
pub fn prompt(i: usize) -> String {
    format!("{}+{}=", i % 7, i * 3 % 10)
}

/// The share of digits among the tokens: every group has better and worse completions.
pub fn digits() -> WeightedRewards {
    WeightedRewards::single(FnReward::new("digits", |input| {
        let digits = input.completion.chars().filter(char::is_ascii_digit).count();
        digits as f64 / input.completion_ids.len() as f64
    }))
}

pub fn finish(settings: &RunConfig, rewards: WeightedRewards) {
    let report = train(settings, TrainOptions { rewards: Some(rewards), ..TrainOptions::default() }).unwrap();
    assert_eq!(report.outcome, Outcome::Finished);
}

/// The values of a metric, where it stands.
pub fn values(metrics: &[Metrics], name: &str) -> Vec<f64> {
    metrics.iter().filter_map(|line| line.get(name)?.as_f64()).collect()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The first four of 20 rewards are low, the last four high.
pub fn assert_rises(name: &str, rewards: &[f64]) {
    assert_eq!(rewards.len(), 20, "{name}");
    let (first, last) = (mean(&rewards[..4]), mean(&rewards[16..]));
    assert!(first < 0.35 && last > 0.5 && last > first + 0.25, "{name}: {rewards:?}");
}

/// What is there when a run is killed right after the checkpoint of `step`.
pub fn copy_until(from: &Path, to: &Path, step: u64) {
    let name = format!("checkpoint-{step}");
    fs::create_dir_all(to.join(&name)).unwrap();
    for entry in fs::read_dir(from.join(&name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(&name).join(entry.file_name())).unwrap();
    }
    for log in ["metrics.jsonl", "completions.jsonl"] {
        fs::copy(from.join(log), to.join(log)).unwrap();
    }
}
