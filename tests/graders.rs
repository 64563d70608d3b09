//! What counts as right in evaluations is what `eval_grader` says, in the figures and in the names of the result files;
//! rows that it cannot judge are told before anything is sampled.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

use candlewick::config::{EvalGrader, RewardConfig, RunConfig};
use candlewick::error::{Diagnose, Exit};
use candlewick::recipe::{EvaluateOptions, Evaluation, RecipeError, TrainOptions, evaluate, train};
use std::fs;
use std::path::{Path, PathBuf};

fn settings(grader: EvalGrader, reward: RewardConfig) -> RunConfig {
    RunConfig {
        model: "tests/fixtures/hf/qwen2_tied".into(),
        max_completion_length: 6,
        // No random draw: each run samples the same completions.
        temperature: 0.0,
        eval_grader: Some(grader),
        rewards: vec![reward],
        ..RunConfig::default()
    }
}

fn letters() -> RewardConfig {
    RewardConfig { name: "letter_count".into(), letter: Some("7".into()), ..RewardConfig::default() }
}

fn run(settings: &RunConfig, data: PathBuf) -> Result<Evaluation, RecipeError> {
    let output = Some(data.with_extension("results"));
    evaluate(
        settings,
        &EvaluateOptions { data: data.into(), num_samples: 1, num_rows: None, output, rewards: None },
        &mut (),
    )
}

fn write(folder: &Path, rows: &[(&str, &str)]) -> PathBuf {
    let path = folder.join("rows.jsonl");
    let line = |(prompt, answer): &(&str, &str)| serde_json::json!({"prompt": prompt, "answer": answer}).to_string();
    fs::write(&path, rows.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

#[test]
fn accuracy_is_what_the_grader_says() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = ["1 + 2 =", "3 - 1 =", "7 7 7"];
    let data = write(folder.path(), &prompts.map(|prompt| (prompt, "x")));
    let by_reward = run(&settings(EvalGrader::Reward, letters()), data).unwrap();
    let sampled: Vec<&str> = by_reward.samples.iter().map(|sample| sample.completion.as_str()).collect();
    for (sample, completion) in by_reward.samples.iter().zip(&sampled) {
        assert_eq!(sample.is_correct, completion.contains('7'), "{completion:?}");
    }
    let files = by_reward.files.unwrap();
    assert!(fs::read_to_string(&files.results).unwrap().contains("exact_match,first-reward"));

    // The model's own words are the answer of the first row alone, but for white space.
    let own = format!(" {} ", sampled[0]);
    let data = write(folder.path(), &[(prompts[0], &own), (prompts[1], "other"), (prompts[2], "")]);
    let exact = run(&settings(EvalGrader::ExactMatch, letters()), data).unwrap();
    assert_eq!(exact.samples.iter().map(|sample| sample.is_correct).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(exact.samples[1].target.as_deref(), Some("other"));
    assert_eq!(exact.samples[1].extracted.as_deref(), Some(sampled[1].trim()));
    assert!((exact.figures.accuracy.value - 1.0 / 3.0).abs() < 1e-12);
    assert!(fs::read_to_string(exact.files.unwrap().results).unwrap().contains("exact_match,exact-match"));
}

/// A reward of letters needs no answers; a grader of integers does.
#[test]
fn rows_that_the_grader_cannot_judge_are_told_first() {
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), &[("1 + 2 =", "3"), ("3 - 1 =", "two")]);
    let integers = settings(EvalGrader::LastInteger, letters());
    let error = run(&integers, data.clone()).unwrap_err();
    assert_eq!(error.exit(), Exit::Data);
    let expected =
        "rows.jsonl:2: what is right here cannot be told by `last_integer`: `answer` does not end in an integer";
    assert!(error.to_string().contains(expected), "{error}");
    assert!(error.hint().unwrap().contains("`eval_grader`"));

    // In a run, before the first step.
    let file = data.to_string_lossy().into_owned();
    let output_dir = folder.path().join("run");
    let integers =
        RunConfig { train_file: file.clone(), eval_file: Some(file), output_dir, temperature: 1.0, ..integers };
    assert_eq!(train(&integers, TrainOptions::default()).unwrap_err().exit(), Exit::Data);
    assert!(!integers.output_dir.exists());
}
