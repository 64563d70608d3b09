//! Learning from pairs, given in a file or sampled: what is preferred grows likelier, what cannot be learned from changes
//! nothing, and a resumed run ends in the same bits.

#![allow(clippy::float_cmp, reason = "the first loss is ln 2 to the bit")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::config::{Algorithm, DpoLossType, DpoPairs, Init, LrSchedulerType, OnBadRow, RunConfig};
use candlewick::error::Diagnose;
use candlewick::recipe::{RecipeError, TrainOptions, plan, train};
use candlewick::reward::{FnReward, WeightedRewards};
use candlewick::telemetry::StepMetrics;
use candlewick::trainer::Outcome;
use serde_json::{Map, Value};

type Metrics = Map<String, Value>;

/// A folder with a tiny model without weights, a few prompts and a few pairs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fixtures::write_tiny(&place.path("model"));
        let prompt = |i: usize| format!("{}+{}=", i % 7, i * 3 % 10);
        let rows = |row: &dyn Fn(usize) -> String| (0..12).map(row).collect::<String>();
        place.write("prompts.jsonl", &rows(&|i| format!("{{\"prompt\": \"{}\"}}\n", prompt(i))));
        let pair = |i: usize| (format!("{}", i % 7 + i * 3 % 10), format!("{}-", i % 4));
        let pair = |i: usize| {
            let (chosen, rejected) = pair(i);
            format!("{{\"prompt\": \"{}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n", prompt(i))
        };
        place.write("pairs.jsonl", &rows(&pair));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn settings(&self, output: &str, pairs: DpoPairs) -> RunConfig {
        let file = if pairs == DpoPairs::File { "pairs.jsonl" } else { "prompts.jsonl" };
        RunConfig {
            algorithm: Algorithm::Dpo,
            dpo_pairs: pairs,
            model: self.path("model").to_string_lossy().into_owned(),
            init: Init::Random,
            train_file: self.path(file).to_string_lossy().into_owned(),
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

fn finish(settings: &RunConfig, rewards: WeightedRewards) {
    let report = train(settings, TrainOptions { rewards: Some(rewards), ..TrainOptions::default() }).unwrap();
    assert_eq!(report.outcome, Outcome::Finished);
}

fn values(metrics: &[Metrics], name: &str) -> Vec<f64> {
    metrics.iter().filter_map(|line| line.get(name)?.as_f64()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Where the policy is the start model no completion is preferred, and the loss is that of a guess, ln 2.
#[test]
fn the_policy_comes_to_prefer_the_chosen_completions_of_a_file() {
    let place = Place::new();
    finish(&place.settings("run", DpoPairs::File), digits());
    let metrics = place.metrics("run");
    let of = |name: &str| values(&metrics, name);
    assert_eq!(of("loss").len(), 20);
    assert_eq!(of("loss")[0], std::f64::consts::LN_2);
    for name in ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"] {
        assert_eq!(of(name)[0], 0.0, "{name}");
    }
    let (accuracies, margins, loss) = (of("rewards/accuracies"), of("rewards/margins"), of("loss"));
    println!("accuracies {accuracies:?}\nmargins {margins:?}\nloss {loss:?}");
    assert!(accuracies[10..].iter().all(|accuracy| *accuracy == 1.0), "{accuracies:?}");
    assert!(margins[19] > 0.5 && loss[19] < 0.5, "{margins:?} {loss:?}");
    let (chosen, rejected) = (of("logps/chosen"), of("logps/rejected"));
    assert!(chosen[19] - rejected[19] > chosen[0] - rejected[0] + 5.0, "{chosen:?} {rejected:?}");
    // beta 0.1 times the log-ratio to the start model.
    assert!((margins[19] - (of("rewards/chosen")[19] - of("rewards/rejected")[19])).abs() < 1e-9);
    assert!(of("reward").is_empty() && of("epoch")[19] > 6.0);
}

#[test]
fn every_form_of_the_loss_falls_and_raises_the_margin() {
    let place = Place::new();
    for (name, dpo_loss_type, label_smoothing) in [
        ("smoothed", DpoLossType::Sigmoid, 0.1),
        ("hinge", DpoLossType::Hinge, 0.0),
        ("ipo", DpoLossType::Ipo, 0.0),
        ("sigmoid_norm", DpoLossType::SigmoidNorm, 0.0),
    ] {
        finish(&RunConfig { dpo_loss_type, label_smoothing, ..place.settings(name, DpoPairs::File) }, digits());
        let metrics = place.metrics(name);
        let (loss, margins) = (values(&metrics, "loss"), values(&metrics, "rewards/margins"));
        println!("{name}: loss {:.3} -> {:.3}, margin {:.3}", loss[0], loss[19], margins[19]);
        assert!(loss[19] < loss[0] && margins[19] > 0.1, "{name}: {loss:?} {margins:?}");
    }
}

/// A pair is never torn, so a budget of one token runs pair by pair; only the order of the sums differs.
#[test]
fn micro_batches_change_nothing() {
    let place = Place::new();
    for (name, max_tokens_per_micro_batch) in [("whole", 8192), ("torn", 1)] {
        let settings = place.settings(name, DpoPairs::File);
        finish(&RunConfig { max_tokens_per_micro_batch, max_steps: Some(5), ..settings }, digits());
    }
    let (whole, torn) = (place.metrics("whole"), place.metrics("torn"));
    for name in ["loss", "grad_norm", "logps/chosen", "logps/rejected", "entropy"] {
        let (a, b) = (values(&whole, name), values(&torn, name));
        assert_eq!((a.len(), b.len()), (5, 5), "{name}");
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs()), "{name}: {a:?} {b:?}");
    }
}

#[test]
fn the_reward_rises_with_sampled_pairs() {
    let place = Place::new();
    finish(&place.settings("run", DpoPairs::Sampled), digits());
    let metrics = place.metrics("run");
    let rewards = values(&metrics, "reward");
    assert_eq!(rewards.len(), 20);
    let (first, last) = (mean(&rewards[..4]), mean(&rewards[16..]));
    println!("reward {first:.3} -> {last:.3}");
    assert!(first < 0.35 && last > 0.5 && last > first + 0.25, "{rewards:?}");
    assert_eq!(values(&metrics, "loss")[0], std::f64::consts::LN_2);
    assert!(values(&metrics, "frac_pairs_dropped").iter().all(|dropped| *dropped < 1.0));
    assert_eq!(values(&metrics, "completions/mean_length").len(), 20);
}

/// Log-probs of the loss are untempered, so sampling hotter or colder leaves the first loss at ln 2.
#[test]
fn the_temperature_is_for_sampling_alone() {
    let place = Place::new();
    let settings = place.settings("run", DpoPairs::Sampled);
    finish(&RunConfig { temperature: 1.5, max_steps: Some(3), ..settings }, digits());
    let loss = values(&place.metrics("run"), "loss");
    assert_eq!(loss[0], std::f64::consts::LN_2);
    assert!(loss[1] != loss[0], "{loss:?}");
}

#[test]
fn equal_rewards_give_no_pair_and_no_update() {
    let place = Place::new();
    let constant = || WeightedRewards::single(FnReward::new("constant", |_| 1.0));
    for (name, steps) in [("one", 1), ("three", 3)] {
        finish(&RunConfig { max_steps: Some(steps), ..place.settings(name, DpoPairs::Sampled) }, constant());
    }
    let metrics = place.metrics("three");
    assert_eq!(values(&metrics, "frac_pairs_dropped"), [1.0; 3]);
    assert!(metrics.iter().all(|line| !line.contains_key("loss") && !line.contains_key("rewards/margins")));
    let weights = |name: &str| fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("one"), weights("three"));
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one() {
    let place = Place::new();
    for (name, pairs) in [("file", DpoPairs::File), ("sampled", DpoPairs::Sampled)] {
        let settings = RunConfig {
            max_steps: Some(6),
            save_steps: 1,
            save_total_limit: 0,
            resume: "auto".to_owned(),
            ..place.settings(name, pairs)
        };
        finish(&settings, digits());
        let whole = place.path(name);
        for step in [1, 4] {
            // What is there when a run is killed right after the checkpoint of the step.
            let resumed_name = format!("{name}-from-{step}");
            let resumed = place.path(&resumed_name);
            copy_dir(&whole.join(format!("checkpoint-{step}")), &resumed.join(format!("checkpoint-{step}")));
            for log in ["metrics.jsonl", "completions.jsonl"] {
                fs::copy(whole.join(log), resumed.join(log)).unwrap();
            }
            finish(&RunConfig { output_dir: resumed.clone(), ..settings.clone() }, digits());
            for file in ["checkpoint-6/model.safetensors", "checkpoint-6/optimizer.safetensors", "completions.jsonl"] {
                let same = fs::read(whole.join(file)).unwrap() == fs::read(resumed.join(file)).unwrap();
                assert!(same, "{resumed_name}: {file}");
            }
            assert_eq!(place.metrics(name), place.metrics(&resumed_name));
        }
        let weights = |step: u64| fs::read(whole.join(format!("checkpoint-{step}/model.safetensors"))).unwrap();
        assert!(weights(1) != weights(6), "a run that learns nothing shows nothing");
    }
}

fn refused(settings: &RunConfig) -> (RecipeError, String) {
    let error = plan(settings).unwrap_err();
    let text = format!("{error}\n{}", error.hint().unwrap_or_default());
    (error, text)
}

/// A pair of equal texts and a row without a column are told by file and line; skipped, the rest is learned.
#[test]
fn bad_pairs_are_told_by_their_line() {
    let place = Place::new();
    let good = "{\"prompt\": \"1+1=\", \"chosen\": \"2\", \"rejected\": \"3\"}\n";
    let equal = "{\"prompt\": \"1+2=\", \"chosen\": \"3\", \"rejected\": \"3\"}\n";
    let lacking = "{\"prompt\": \"1+2=\", \"chosen\": \"3\"}\n";
    place.write("pairs.jsonl", &[good, equal, good, lacking].concat());
    let settings = place.settings("run", DpoPairs::File);
    let (_, text) = refused(&settings);
    assert!(text.contains("pairs.jsonl:2: `chosen` and `rejected` are equal"), "{text}");
    assert!(text.contains("pairs.jsonl:4: no column `rejected`; the row has `prompt`, `chosen`"), "{text}");
    assert!(text.contains("on_bad_row = \"skip\""), "{text}");
    let skipping = RunConfig { on_bad_row: OnBadRow::Skip, ..settings.clone() };
    assert_eq!(plan(&skipping).unwrap().rows, 2);

    // Other names of the columns, and answers as messages.
    place.write(
        "pairs.jsonl",
        "{\"prompt\": \"1+1=\", \"good\": \"2\", \"bad\": [{\"role\": \"assistant\", \"content\": \"3\"}]}\n",
    );
    let named = RunConfig { chosen_column: "good".to_owned(), rejected_column: "bad".to_owned(), ..settings.clone() };
    let plan = plan(&named).unwrap();
    assert_eq!((plan.rows, plan.first_prompt.as_str(), plan.num_generations), (1, "1+1=", 2));

    // Too long is left out; where nothing is left the run says what to raise.
    let (_, text) = refused(&RunConfig { max_completion_length: 1, ..named });
    assert!(text.contains("no row is left") && text.contains("max_completion_length"), "{text}");
}
