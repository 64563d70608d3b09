//! Every algorithm, through the recipe that a user calls: its reward rises, what it cannot learn from changes nothing,
//! and a resumed run ends in the same bits.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::fs;
use std::path::PathBuf;

use candlewick::config::{Algorithm, ImportanceSamplingLevel, Init, KlEstimator, LossType, LrSchedulerType, RunConfig};
use candlewick::recipe::{TrainOptions, TrainReport, train};
use candlewick::reward::{FnReward, WeightedRewards};
use candlewick::telemetry::StepMetrics;
use candlewick::trainer::Outcome;
use serde_json::{Map, Value};

type Metrics = Map<String, Value>;

/// A folder with a tiny model without weights and a few prompts.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixtures::write_tiny(&folder.path().join("model"));
        let row = |i: usize| format!("{{\"prompt\": \"{}+{}=\"}}\n", i % 7, i * 3 % 10);
        fs::write(folder.path().join("prompts.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self, output: &str, algorithm: Algorithm) -> RunConfig {
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
    fn metrics(&self, output: &str) -> Vec<Metrics> {
        let text = fs::read_to_string(self.path(output).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut object: Metrics = serde_json::from_str(line).unwrap();
            object.retain(|name, _| name != "time" && !StepMetrics::is_wall_clock(name));
            object
        };
        text.lines().map(line).collect()
    }
}

/// The share of digits among the tokens: every group has better and worse completions.
fn digits() -> WeightedRewards {
    WeightedRewards::single(FnReward::new("digits", |input| {
        let digits = input.completion.chars().filter(char::is_ascii_digit).count();
        digits as f64 / input.completion_ids.len() as f64
    }))
}

fn finish(settings: &RunConfig, rewards: WeightedRewards) -> TrainReport {
    let report = train(settings, TrainOptions { rewards: Some(rewards), ..TrainOptions::default() }).unwrap();
    assert_eq!(report.outcome, Outcome::Finished);
    report
}

fn values(metrics: &[Metrics], name: &str) -> Vec<f64> {
    metrics.iter().filter_map(|line| line.get(name)?.as_f64()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

const REINFORCED: [Algorithm; 5] =
    [Algorithm::Grpo, Algorithm::Rloo, Algorithm::Remax, Algorithm::ReinforcePlusPlus, Algorithm::Raft];

/// Trains and checks that the reward rises from about a fifth to well above it.
fn learns(place: &Place, name: &str, settings: &RunConfig) -> Vec<Metrics> {
    finish(settings, digits());
    let metrics = place.metrics(name);
    let rewards = values(&metrics, "reward");
    assert_eq!(rewards.len(), 20);
    let (first, last) = (mean(&rewards[..4]), mean(&rewards[16..]));
    println!("{name}: reward {first:.3} -> {last:.3}");
    assert!(first < 0.35 && last > 0.5 && last > first + 0.25, "{name}: {rewards:?}");
    metrics
}

#[test]
fn the_reward_rises_with_every_algorithm() {
    let place = Place::new();
    for algorithm in REINFORCED {
        let name = algorithm.name();
        // A weak penalty: the run is short.
        let beta = (algorithm != Algorithm::Raft).then_some(0.001);
        let metrics = learns(&place, name, &RunConfig { beta, ..place.settings(name, algorithm) });
        assert_eq!(values(&metrics, "kl").len(), if beta.is_some() { 20 } else { 0 }, "{name}");
        assert_eq!(values(&metrics, "greedy_reward").len(), if name == "remax" { 20 } else { 0 }, "{name}");
        let off = values(&metrics, "sampling/sampling_logp_difference/max");
        assert!(off.iter().all(|difference| *difference == 0.0), "{name}: {off:?}");
    }
}

/// The forms of the objective that settings make out of GRPO and REINFORCE++.
#[test]
fn the_reward_rises_with_every_form_of_the_objective() {
    let place = Place::new();
    let forms: [(&str, Algorithm, fn(&mut RunConfig)); 10] = [
        ("bnpo", Algorithm::Grpo, |c| c.loss_type = LossType::Bnpo),
        ("dr_grpo", Algorithm::Grpo, |c| c.loss_type = LossType::DrGrpo),
        ("cispo", Algorithm::Grpo, |c| c.loss_type = LossType::Cispo),
        ("sapo", Algorithm::Grpo, |c| c.loss_type = LossType::Sapo),
        ("reinforce", Algorithm::Grpo, |c| c.loss_type = LossType::Reinforce),
        ("gspo", Algorithm::Grpo, |c| {
            c.loss_type = LossType::Grpo;
            c.importance_sampling_level = ImportanceSamplingLevel::Sequence;
        }),
        ("vanilla", Algorithm::Grpo, |c| c.importance_sampling_level = ImportanceSamplingLevel::None),
        ("top_entropy", Algorithm::Grpo, |c| c.top_entropy_quantile = 0.5),
        ("corrected_kl", Algorithm::Grpo, |c| {
            c.beta = Some(0.001);
            c.use_bias_correction_kl = true;
        }),
        ("arithmetic", Algorithm::ReinforcePlusPlus, |c| {
            c.loss_type = LossType::Reinforce;
            c.importance_sampling_level = ImportanceSamplingLevel::None;
            c.kl_estimator = KlEstimator::SequenceSquared;
            c.beta = Some(0.0001);
        }),
    ];
    for (name, algorithm, change) in forms {
        // Two steps a rollout, so that ratios are not all 1.
        let mut settings = RunConfig { beta: Some(0.0), num_iterations: 2, ..place.settings(name, algorithm) };
        settings.max_steps = Some(40);
        change(&mut settings);
        learns(&place, name, &settings);
    }
}
