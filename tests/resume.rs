//! A run that was stopped and resumed leaves the same bits as one that was not.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use candlewick::checkpoint::verify;
use tiny_run::{Bench, assert_same_run};

/// Ten steps, a checkpoint after each; cycles of three iterations, so that most checkpoints lie inside a cycle.
const TEN_STEPS: &str = "max_steps = 10\nsave_steps = 1\nsave_total_limit = 0\nnum_iterations = 3\nbeta = 0.04";

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What is there when a run is killed right after the checkpoint of `step`.
fn copy_until(from: &Path, to: &Path, step: u64) {
    let checkpoint = format!("checkpoint-{step}");
    copy_dir(&from.join(&checkpoint), &to.join(&checkpoint));
    for log in ["metrics.jsonl", "completions.jsonl"] {
        fs::copy(from.join(log), to.join(log)).unwrap();
    }
}

#[test]
fn a_run_resumed_from_any_step_equals_the_uninterrupted_one() {
    let bench = Bench::new(TEN_STEPS);
    bench.run_well("whole", "never", &[]);
    let whole = bench.output_dir("whole");
    let final_weights = fs::read(whole.join("checkpoint-10/model.safetensors")).unwrap();
    let first_weights = fs::read(whole.join("checkpoint-1/model.safetensors")).unwrap();
    assert!(final_weights != first_weights, "a run that learns nothing shows nothing");
    verify(&whole).unwrap();
    let state = fs::read_to_string(whole.join("checkpoint-10/trainer_state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    // Four rollouts of 8 prompts out of 40.
    assert_eq!(state["epoch"], 0.8);
    for step in 1..=9 {
        let name = format!("from-{step}");
        let resumed = bench.output_dir(&name);
        copy_until(&whole, &resumed, step);
        bench.run_well(&name, "auto", &[]);
        assert_same_run(&whole, &resumed, "checkpoint-10");
    }
    // A path instead of `auto`, into another directory, and another number of threads and slots.
    let path = whole.join("checkpoint-4");
    let text = bench.run_well("by-path", path.to_str().unwrap(), &["threads=1", "rollout_slots=3"]);
    assert!(text.contains("checkpoint-4"), "{text}");
    let (a, b) = (whole.join("model.safetensors"), bench.output_dir("by-path").join("model.safetensors"));
    assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    let metrics = fs::read_to_string(bench.output_dir("by-path").join("metrics.jsonl")).unwrap();
    assert!(metrics.starts_with("{\"step\":5,"), "the log of another run is not continued: {metrics}");
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let bench = Bench::new(TEN_STEPS);
    bench.run_well("run", "auto", &[]);
    let run = bench.output_dir("run");
    let before = fs::read(run.join("metrics.jsonl")).unwrap();
    let weights = fs::read(run.join("model.safetensors")).unwrap();
    bench.run_well("run", "auto", &[]);
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
    assert_eq!(fs::read(run.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_from_there() {
    let settings = "max_steps = 80\nsave_steps = 100\nsave_total_limit = 0\nnum_iterations = 2\nbeta = 0.04";
    let bench = Bench::new(settings);
    bench.run_well("whole", "never", &[]);
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut running = bench.start(signal, "auto", &[]);
        assert!(running.wait_for(|line| line.contains("phase=backward step=3")), "{}", running.text());
        let sent = Instant::now();
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code), "{}", running.text());
        assert!(sent.elapsed() < Duration::from_secs(2), "it took {:?} to stop", sent.elapsed());
        assert!(running.text().contains("stopping after this step"), "{}", running.text());
        let text = bench.run_well(signal, "auto", &[]);
        assert!(text.contains("checkpoint-"), "{text}");
        assert_same_run(&bench.output_dir("whole"), &bench.output_dir(signal), "checkpoint-80");
    }
}

#[test]
fn a_second_run_on_the_same_directory_is_refused() {
    let bench = Bench::new("max_steps = 1000\nsave_steps = 1000");
    let mut first = bench.start("run", "auto", &[]);
    assert!(first.wait_for(|line| line.contains("phase=backward step=1")), "{}", first.text());
    let (code, text) = bench.run("run", "auto", &[]);
    first.kill();
    assert_eq!(code, Some(7), "{text}");
    assert!(text.contains("in use by another run (process"), "{text}");
}

#[test]
fn damaged_checkpoints_are_skipped_by_name_and_never_started_over() {
    let bench = Bench::new("max_steps = 6\nsave_steps = 2\nsave_total_limit = 0");
    bench.run_well("whole", "never", &[]);
    let (whole, run) = (bench.output_dir("whole"), bench.output_dir("run"));
    copy_until(&whole, &run, 2);
    copy_until(&whole, &run, 4);
    fs::write(run.join("checkpoint-4/optimizer.safetensors"), b"damaged").unwrap();
    let text = bench.run_well("run", "auto", &[]);
    assert!(text.contains("checkpoint-4 is damaged and was left out: optimizer.safetensors"), "{text}");
    assert_same_run(&whole, &run, "checkpoint-6");

    for step in [2, 4, 6] {
        fs::remove_file(run.join(format!("checkpoint-{step}/MANIFEST.json"))).unwrap();
    }
    let (code, text) = bench.run("run", "auto", &[]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("no valid checkpoint") && text.contains("checkpoint-2"), "{text}");
}

#[test]
fn what_cannot_be_continued_is_refused_with_the_differences() {
    let bench = Bench::new("max_steps = 4\nsave_steps = 2");
    bench.run_well("run", "never", &[]);
    let (code, text) = bench.run("run", "never", &[]);
    assert_eq!(code, Some(2), "a fresh run over an old one: {text}");
    let (code, text) = bench.run("run", "auto", &["algorithm='sft'"]);
    assert_eq!(code, Some(2), "{text}");
    let text = bench.run_well("run", "auto", &["max_steps=6", "learning_rate=1e-3"]);
    assert!(text.contains("learning_rate: 0.003 in the checkpoint, 0.001 now"), "{text}");
    assert!(bench.output_dir("run").join("checkpoint-6").is_dir());
}
