//! Rewards that a library user brings: they take the place of those that the settings name, everywhere in a run.

use candlewick::config::RunConfig;
use candlewick::error::{Diagnose, Exit};
use candlewick::recipe::{EvaluateOptions, TrainOptions, evaluate, train};
use candlewick::reward::{FnReward, Reward, RewardError, RewardInput, WeightedRewards};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows without an answer: the rewards of the settings could not use them.
const ROWS: &str = "{\"prompt\": \"1 + 2 =\"}\n{\"prompt\": \"3 - 1 =\"}\n";

fn settings(folder: &Path) -> std::io::Result<RunConfig> {
    let file = folder.join("rows.jsonl");
    fs::write(&file, ROWS)?;
    let file = file.to_string_lossy().into_owned();
    Ok(RunConfig {
        model: "tests/fixtures/hf/qwen2_tied".into(),
        train_file: file.clone(),
        eval_file: Some(file),
        output_dir: folder.join("run"),
        prompts_per_step: 2,
        max_completion_length: 6,
        max_steps: Some(2),
        ..RunConfig::default()
    })
}

/// The first reward calls every completion right, the second tells them apart.
fn rewards() -> WeightedRewards {
    let always = FnReward::new("always", |_| 1.0);
    let brief = FnReward::new("brief", |input| -(input.completion_ids.len() as f64));
    WeightedRewards::default().with(0.5, always).with(0.1, brief)
}

#[test]
fn a_run_trains_and_evaluates_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path()).unwrap();
    let report = train(&settings, TrainOptions { rewards: Some(rewards()), ..TrainOptions::default() }).unwrap();
    let after = report.summary.after.unwrap();
    assert_eq!((after.accuracy.map(f64::to_bits), after.num_samples), (Some(1.0f64.to_bits()), 2));
    assert!(after.mean_reward < Some(0.5));

    let metrics = fs::read_to_string(settings.output_dir.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let (always, brief) = (&last["rewards/always/mean"], &last["rewards/brief/mean"]);
    let expected = 0.5 * always.as_f64().unwrap() + 0.1 * brief.as_f64().unwrap();
    assert!((last["reward"].as_f64().unwrap() - expected).abs() < 1e-12);
    let saved = fs::read_to_string(settings.output_dir.join("checkpoint-2/run_config.toml")).unwrap();
    assert!(saved.contains("\"brief\"") && !saved.contains("last_integer"), "{saved}");

    let options = EvaluateOptions {
        data: settings.train_file.clone().into(),
        num_samples: 2,
        num_rows: None,
        output: Some(folder.path().join("results")),
        rewards: Some(rewards()),
    };
    let settings = RunConfig { model: settings.output_dir.to_str().unwrap().into(), ..settings };
    let evaluation = evaluate(&settings, &options, &mut ()).unwrap();
    assert_eq!(evaluation.figures.accuracy.value.to_bits(), 1.0f64.to_bits());
    let results = fs::read_to_string(evaluation.files.unwrap().results).unwrap();
    assert!(results.contains("exact_match,first-reward"), "{results}");
}

/// Settings built in code are checked as those of a file are, before anything is written.
#[test]
fn settings_built_in_code_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = RunConfig { prompts_per_step: 0, top_p: f64::NAN, ..settings(folder.path()).unwrap() };
    let error = train(&wrong, TrainOptions::default()).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    let text = error.to_string();
    assert!(text.contains("prompts_per_step") && text.contains("top_p"), "{text}");
    assert!(!wrong.output_dir.exists());
    // Nothing would be reinforced.
    let silent = WeightedRewards::default().with(0.0, FnReward::new("silent", |_| 1.0));
    let options = TrainOptions { rewards: Some(silent), ..TrainOptions::default() };
    assert_eq!(train(&settings(folder.path()).unwrap(), options).unwrap_err().exit(), Exit::Usage);
}

/// Completions of a step: 2 prompts of 2.
const PER_STEP: usize = 4;

/// Fails from the completion with this number on: with a score that is not finite, or with an error.
struct Late {
    seen: AtomicUsize,
    fails_at: usize,
    score: Option<f64>,
}

impl Reward for Late {
    fn name(&self) -> &'static str {
        "late"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        if self.seen.fetch_add(1, Ordering::Relaxed) < self.fails_at {
            return Ok(Some(input.completion_ids.len() as f64));
        }
        let (reward, line) = (self.name().to_owned(), input.line);
        self.score.map(Some).ok_or(RewardError::Failed { reward, line, reason: "the judge is away".into() })
    }
}

/// A reward that stops working in the middle of a run is named with the row, and costs no step that was made before:
/// neither where it scores rollouts nor where it scores an evaluation. The run goes on from there.
#[test]
fn a_reward_that_fails_late_loses_nothing() {
    let cases = [
        (Some(f64::NAN), Exit::NonFinite, "the reward `late` gave NaN for a completion of line", 0),
        (Some(f64::INFINITY), Exit::NonFinite, "the reward `late` gave inf for a completion of line", 0),
        (None, Exit::Failed, "the reward `late` failed on a completion of line", 0),
        // One more completion is scored before: the first of the evaluation after step 2.
        (Some(f64::NAN), Exit::NonFinite, "the reward `late` gave NaN for a completion of line", 2),
    ];
    for (score, exit, message, eval_steps) in cases {
        let folder = tempfile::tempdir().unwrap();
        let settings = RunConfig {
            num_generations: 2,
            max_steps: Some(4),
            save_steps: 0,
            eval_steps,
            eval_on_start: false,
            eval_file: (eval_steps > 0).then(|| folder.path().join("rows.jsonl").to_string_lossy().into_owned()),
            ..settings(folder.path()).unwrap()
        };
        let fails_at = 2 * PER_STEP;
        let options = || TrainOptions {
            rewards: Some(WeightedRewards::single(Late { seen: AtomicUsize::new(0), fails_at, score })),
            ..TrainOptions::default()
        };
        let error = train(&settings, options()).unwrap_err();
        assert_eq!(error.exit(), exit);
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(settings.output_dir.join("checkpoint-2/MANIFEST.json").is_file());
        let steps = || -> Vec<u64> {
            let metrics = fs::read_to_string(settings.output_dir.join("metrics.jsonl")).unwrap();
            metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
        };
        assert_eq!(steps(), [1, 2]);

        let resumed = RunConfig { resume: "auto".into(), eval_steps: 0, eval_file: None, ..settings.clone() };
        train(&resumed, options()).unwrap();
        assert_eq!(steps(), [1, 2, 3, 4]);
    }
}
