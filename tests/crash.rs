//! Twenty kills with SIGKILL at random moments of a 40-step run, a restart after each: the final model, optimizer and
//! metrics equal those of a run that was left alone.
//!
//! Some kills aim at a phase: they wait for its line in the log and then a random part of its usual duration. Where a
//! kill really landed is read from the last phase line that the process wrote.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use candlewick::rng::{Stream, below, uniform};
use tiny_run::{Bench, Running, assert_same_run};

const STEPS: u64 = 40;
const SAVE_STEPS: u64 = 5;
const KILLS: usize = 20;
/// Names every random choice of this test.
const SEED: u64 = 20;
/// Completions of this length make rollout and backward pass long enough to be hit on a busy machine.
const LONG: &[&str] = &["max_completion_length=24"];
/// What the kills aim at in turn; `None` is any moment. An aimed kill may still land just after its phase: each gets
/// about twice as many tries as must hit.
const AIMS: [Option<&str>; 7] =
    [Some("save"), Some("rollout"), Some("backward"), Some("rollout"), Some("save"), Some("backward"), None];

/// Usual duration of each phase in the run that was left alone: the median time to the next phase line.
fn durations(running: &Running) -> BTreeMap<String, Duration> {
    let mut all: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for pair in running.phases().windows(2) {
        all.entry(pair[0].1.clone()).or_default().push(pair[1].0 - pair[0].0);
    }
    all.into_iter()
        .map(|(name, mut times)| {
            times.sort_unstable();
            (name, times[times.len() / 2])
        })
        .collect()
}

/// A moment to kill at: once `marker` ends a line of the log, and then this share of the usual time of `phase`.
struct Kill {
    marker: String,
    /// `None`: a whole step.
    phase: Option<&'static str>,
    share: f64,
}

/// The kill of an `attempt` whose process starts after `done` steps.
fn plan(attempt: usize, done: u64) -> Kill {
    let draw = |purpose, n| below(SEED, Stream::Data, [attempt as u64, purpose, 0, 0], n);
    let share = uniform(SEED, Stream::Data, [attempt as u64, 1, 0, 0]);
    // The first process must get past a save, or later restarts would begin from nothing. Later ones get past the
    // next save now and then, so that the run gets on, but on average slowly enough for all kills. None gets so close
    // to the end that it might finish before it is killed.
    let first = if attempt == 0 { SAVE_STEPS + 1 } else { done + 1 };
    let step = (first + draw(0, SAVE_STEPS + 1)).min(STEPS - 3);
    let phase = if attempt == 0 { None } else { AIMS[attempt % AIMS.len()] };
    match phase {
        Some("save") if done + SAVE_STEPS < STEPS => {
            Kill { marker: format!("phase=save step={}", done + SAVE_STEPS), phase, share: share * 0.4 }
        }
        // Odd steps sample, even ones use the rollouts once more.
        Some("rollout" | "save") => {
            Kill { marker: format!("phase=rollout step={}", step | 1), phase: Some("rollout"), share: share * 0.4 }
        }
        Some(name) => Kill { marker: format!("phase={name} step={step}"), phase, share: share * 0.4 },
        None => Kill { marker: format!(" step={step}"), phase, share },
    }
}

fn count<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<&'a str, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name.as_str()).or_default() += 1;
        counts
    })
}

#[test]
fn a_run_killed_twenty_times_equals_one_that_was_left_alone() {
    let settings = format!(
        "max_steps = {STEPS}\nsave_steps = {SAVE_STEPS}\nsave_total_limit = 2\nnum_iterations = 2\nbeta = 0.04"
    );
    let bench = Bench::new(&settings);
    let mut whole = bench.start("whole", "auto", LONG);
    assert_eq!(whole.wait().code(), Some(0), "{}", whole.text());
    let usual = durations(&whole);
    eprintln!("usual durations: {usual:?}; seed {SEED}");

    let (mut landed, mut steps_run, mut late_starts, mut done) = (Vec::new(), 0u64, 0, 0u64);
    for attempt in 0..=KILLS {
        let mut running = bench.start("killed", "auto", LONG);
        if attempt == KILLS {
            assert_eq!(running.wait().code(), Some(0), "{}", running.text());
        } else {
            let Kill { marker, phase, share } = plan(attempt, done);
            let is_there = running.wait_for(|line| line.trim_end().ends_with(&marker));
            assert!(is_there, "attempt {attempt} never came to {marker}:\n{}", running.text());
            let time = phase.map_or_else(|| usual.values().sum(), |name| usual[name]);
            std::thread::sleep(time.mul_f64(share));
            running.kill();
            landed.push(running.phases().last().unwrap().1.clone());
        }
        let phases = running.phases();
        steps_run += phases.iter().filter(|(_, name, _)| name == "optimizer").count() as u64;
        if attempt > 0 && phases.first().is_some_and(|(_, _, step)| *step > 1) {
            late_starts += 1;
        }
        done = newest_checkpoint(&bench);
    }

    eprintln!(
        "kills landed in {:?}; {steps_run} steps run; {late_starts} restarts from a step above 0",
        count(landed.iter())
    );
    assert_same_run(&bench.output_dir("whole"), &bench.output_dir("killed"), &format!("checkpoint-{STEPS}"));
    assert!(steps_run <= STEPS + KILLS as u64 * SAVE_STEPS, "{steps_run} steps were run");
    assert!(late_starts >= 15, "only {late_starts} restarts began from a step above 0");
    let counts = count(landed.iter());
    for phase in ["rollout", "backward", "save"] {
        assert!(counts.get(phase).is_some_and(|count| *count >= 3), "too few kills in {phase}: {counts:?}");
    }
    assert_eq!(names_in(&bench, "killed"), names_in(&bench, "whole"), "what is left in the output directory");
    let weights = |step: u64| fs::read(bench.output_dir("whole").join(format!("checkpoint-{step}/model.safetensors")));
    assert!(weights(STEPS).unwrap() != weights(STEPS - SAVE_STEPS).unwrap(), "a run that learns nothing shows nothing");
}

fn names_in(bench: &Bench, run: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.output_dir(run)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn newest_checkpoint(bench: &Bench) -> u64 {
    let names = names_in(bench, "killed").into_iter();
    names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).max().unwrap_or(0)
}
