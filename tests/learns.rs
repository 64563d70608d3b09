//! Training through the library: models learn, and what must not change the result does not.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::fs;
use std::path::Path;

use candlewick::algorithm::{AdvantageEstimator, LossType, ObjectiveConfig, ScaleRewards};
use candlewick::batch::{Group, pack};
use candlewick::checkpoint::{ROLLOUTS_FILE, SavedRollouts};
use candlewick::config::{Algorithm, Init, LrSchedulerType, RunConfig};
use candlewick::data::{Columns, RowOrder, RowPlace};
use candlewick::device::Compute;
use candlewick::model::{Decoder, ModelConfig, Params, init_weights};
use candlewick::ops::head::{Predictions, token_logprobs};
use candlewick::optim::{AdamWConfig, LrSchedule};
use candlewick::recipe::{TrainOptions, TrainReport, plan, train};
use candlewick::reward::{FnReward, WeightedRewards};
use candlewick::rollout::SamplingConfig;
use candlewick::telemetry::{Console, StepMetrics};
use candlewick::text::{StopRules, Tokenizer};
use candlewick::trainer::{
    Outcome, Policy, PolicyConfig, PolicyGradient, PolicyGradientConfig, PreparedPrompt, Reference, RolloutConfig,
    RolloutSource, StepContext,
};
use serde_json::Value;
use tiny_run::timeless_metrics;

/// A policy with its algorithm, stepped by hand.
struct Run {
    method: PolicyGradient,
    policy: Policy,
    step: u64,
    rows_drawn: u64,
    iteration: u64,
    kept: Option<SavedRollouts>,
}

/// What a test varies of a [`Run`].
#[derive(Clone, Copy)]
struct Options {
    loss_type: LossType,
    max_tokens_per_micro_batch: usize,
    num_iterations: u64,
    beta: f64,
    gradient_checkpointing: bool,
    learning_rate: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            loss_type: LossType::Dapo,
            max_tokens_per_micro_batch: 8192,
            num_iterations: 1,
            beta: 0.04,
            gradient_checkpointing: false,
            learning_rate: 1e-3,
        }
    }
}

fn tiny_decoder(trainable: bool) -> Decoder {
    let config = ModelConfig::parse(fixtures::TINY_CONFIG, Path::new("config.json")).unwrap();
    let params = Params::new(init_weights(&config, 11), &Compute::cpu(), trainable).unwrap();
    Decoder::new(config, params).unwrap()
}

/// The share of digits among the tokens: every group has better and worse completions.
fn digits() -> WeightedRewards {
    WeightedRewards::single(FnReward::new("digits", |input| {
        let digits = input.completion.chars().filter(char::is_ascii_digit).count();
        digits as f64 / input.completion_ids.len() as f64
    }))
}

impl Run {
    fn new(options: Options) -> Self {
        let tokenizer = Tokenizer::load(&fixtures::folder("qwen2_tied")).unwrap();
        let prompt = |row: u64| {
            let text = format!("{}+{}=", row % 7, row * 3 % 10);
            let ids = tokenizer.encode(&text, false).unwrap();
            PreparedPrompt {
                row,
                place: RowPlace::line("sums.jsonl".as_ref(), row as usize + 1),
                text,
                ids,
                messages: None,
                columns: Columns::new(),
            }
        };
        let prompts: Vec<PreparedPrompt> = (0..12).map(prompt).collect();
        let config = PolicyGradientConfig {
            prompts_per_step: 4,
            max_sampling_rounds: None,
            num_iterations: options.num_iterations,
            estimator: AdvantageEstimator::Group(ScaleRewards::Group),
            objective: ObjectiveConfig {
                loss_type: options.loss_type,
                beta: options.beta,
                max_completion_length: 12,
                ..ObjectiveConfig::default()
            },
            top_entropy_quantile: 1.0,
            mask_truncated_completions: false,
            max_tokens_per_micro_batch: options.max_tokens_per_micro_batch,
            log_completions: 0,
        };
        let source = RolloutSource {
            config: RolloutConfig {
                num_generations: 6,
                sampling: SamplingConfig { temperature: 0.9, ..SamplingConfig::default() },
                stop: StopRules { eos_ids: vec![1, 20, 33, 41], stop_strings: vec![], max_completion_length: 12 },
                slots: 0,
                seed: 5,
            },
            order: RowOrder::new(5, prompts.len(), true),
            prompts,
            rewards: digits(),
            tokenizer,
        };
        let reference = (options.beta > 0.0).then(|| Reference::new(tiny_decoder(false), None));
        let method = PolicyGradient { config, source, reference };
        let policy = PolicyConfig {
            adamw: AdamWConfig::default(),
            learning_rate: options.learning_rate,
            schedule: LrSchedule { kind: LrSchedulerType::Constant, warmup_steps: 0, num_steps: 100 },
            max_grad_norm: Some(1.0),
            gradient_checkpointing: options.gradient_checkpointing,
            seed: 0,
        };
        let policy = Policy::new(tiny_decoder(true), policy).unwrap();
        Self { method, policy, step: 0, rows_drawn: 0, iteration: 0, kept: None }
    }

    fn step(&mut self) -> StepMetrics {
        let console = Console::new(100, self.step, u64::MAX);
        let at = StepContext {
            step: self.step + 1,
            rows_drawn: self.rows_drawn,
            num_tokens: 0,
            iteration: self.iteration,
            kept: self.kept.as_ref(),
            console: &console,
        };
        let output = self.method.step(&mut self.policy, &at).unwrap();
        self.step += 1;
        (self.rows_drawn, self.iteration, self.kept) = (output.rows_drawn, output.iteration, output.kept);
        output.metrics
    }

    fn steps(options: Options, count: usize) -> Self {
        let mut run = Self::new(options);
        for _ in 0..count {
            let metrics = run.step();
            assert!(metrics.value("grad_norm").unwrap() > 1e-4, "nothing was learned from");
        }
        run
    }

    fn weights(&self) -> Vec<f32> {
        weights(&self.policy.decoder)
    }

    /// Mean log-prob a token of each completion of the rollouts.
    fn mean_logprobs(&self, rollouts: &SavedRollouts) -> Vec<f64> {
        let mut number = 0..;
        let groups: Vec<Group<'_>> = rollouts
            .groups
            .iter()
            .map(|group| Group {
                prompt: &group.prompt_ids,
                completions: number.by_ref().zip(&group.completions).map(|(n, c)| (n, &c.ids[..])).collect(),
            })
            .collect();
        let batch = &pack(&groups, usize::MAX)[0];
        let decoder = &self.policy.decoder;
        let hidden = decoder.forward(&batch.tokens, None).unwrap();
        let temperature = self.method.source.config.sampling.logprob_temperature();
        let at = Predictions { rows: &batch.prediction_rows, targets: &batch.targets, temperature };
        let scored = token_logprobs(&hidden, decoder.head(), at).unwrap();
        batch.ranges.iter().map(|range| mean(&scored.logprobs[range.clone()])).collect()
    }
}

fn weights(decoder: &Decoder) -> Vec<f32> {
    let flat = |p: &candlewick::model::Param| p.weight.value().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    decoder.params().iter().flat_map(flat).collect()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn equal_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// One step makes what was better than its group likelier and what was worse less likely.
#[test]
fn a_step_raises_the_log_prob_of_what_was_rewarded() {
    for loss_type in [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo] {
        // Two iterations, so that the step hands the rollouts back.
        let mut run = Run::steps(Options { loss_type, num_iterations: 2, ..Options::default() }, 1);
        let rollouts = run.kept.clone().unwrap();
        let rows: Vec<_> = rollouts.groups.iter().flat_map(|group| &group.completions).collect();
        let gain = |run: &Run, better: bool| {
            let now = run.mean_logprobs(&rollouts);
            let rows = rows.iter().zip(now).filter(|(row, _)| (row.advantage > 0.0) == better);
            let gains: Vec<f64> = rows.map(|(row, now)| now - mean(&row.old_logprobs)).collect();
            assert!(gains.len() >= 6);
            gains.iter().sum::<f64>() / gains.len() as f64
        };
        let first = (gain(&run, true), gain(&run, false));
        assert!(first.0 > 1e-3 && first.1 < -1e-3, "{loss_type:?}: {first:?}");
        let metrics = run.step();
        let second = (gain(&run, true), gain(&run, false));
        assert!(second.0 > first.0 && second.1 < first.1, "{loss_type:?}: {first:?}, then {second:?}");
        assert_eq!(metrics.value("reward"), None, "the second step uses the same rollouts");
        assert_eq!((run.rows_drawn, run.kept.is_none()), (4, true));
    }
}

/// The reward rises over a run, and the log-probs of sampler and trainer are equal all along.
#[test]
fn the_reward_rises() {
    let mut run = Run::new(Options { learning_rate: 1e-2, beta: 0.001, ..Options::default() });
    let mut rewards = Vec::new();
    for _ in 0..30 {
        let metrics = run.step();
        rewards.push(metrics.value("reward").unwrap());
        assert_eq!(metrics.value("sampling/sampling_logp_difference/max"), Some(0.0));
    }
    let (first, last) = (rewards[..5].iter().sum::<f64>() / 5.0, rewards[25..].iter().sum::<f64>() / 5.0);
    println!("reward {first:.3} -> {last:.3}");
    assert!(first < 0.3 && last > 0.8, "{rewards:?}");
}

/// How a step is cut into micro-batches is a matter of memory: the weights are the same but for rounding.
#[test]
fn micro_batches_do_not_change_the_weights() {
    for loss_type in [LossType::Grpo, LossType::DrGrpo, LossType::Dapo] {
        let run = |max_tokens_per_micro_batch| {
            let options = Options { loss_type, max_tokens_per_micro_batch, ..Options::default() };
            Run::steps(Options { learning_rate: 1e-4, ..options }, 4).weights()
        };
        let whole = run(8192);
        assert!(max_difference(&whole, &weights(&tiny_decoder(false))) > 1e-4, "the weights moved");
        for budget in [1, 64, 150] {
            let difference = max_difference(&whole, &run(budget));
            println!("{loss_type:?}, {budget} tokens a micro-batch: weights differ by at most {difference:e}");
            assert!(difference <= 1e-6, "{loss_type:?} {budget}: {difference:e}");
        }
    }
}

/// Computing activations again gives the same weights to the bit; so does a second run.
#[test]
fn gradient_checkpointing_changes_no_bit() {
    let run =
        |gradient_checkpointing| Run::steps(Options { gradient_checkpointing, ..Options::default() }, 3).weights();
    let kept = run(false);
    assert!(equal_bits(&kept, &run(true)));
    assert!(equal_bits(&kept, &run(false)));
}

/// The number of threads changes no bit of the weights, where several micro-batches are run side by side.
#[test]
fn threads_change_no_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Run::steps(Options { max_tokens_per_micro_batch: 120, ..Options::default() }, 3).weights())
    };
    let one = run(1);
    assert!(equal_bits(&one, &run(2)));
    assert!(equal_bits(&one, &run(5)));
}

/// A run folder with a tiny model without weights and six sums.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixtures::write_tiny(&folder.path().join("model"));
        let sums = [("1+2=", "3"), ("4+4=", "8"), ("7+5=", "12"), ("9+9=", "18"), ("8-6=", "2"), ("3-9=", "-6")];
        let row = |(prompt, answer): &(&str, &str)| {
            format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{answer}\", \"answer\": \"{answer}\"}}\n")
        };
        fs::write(folder.path().join("sums.jsonl"), sums.iter().map(row).collect::<String>()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self, algorithm: Algorithm, output: &str) -> RunConfig {
        RunConfig {
            algorithm,
            model: self.path("model").to_string_lossy().into_owned(),
            init: Init::Random,
            train_file: self.path("sums.jsonl").to_string_lossy().into_owned(),
            output_dir: self.path(output),
            max_prompt_length: 16,
            max_completion_length: 8,
            offline: true,
            ..RunConfig::default()
        }
    }

    fn grpo(&self, output: &str) -> RunConfig {
        RunConfig {
            num_generations: 8,
            prompts_per_step: 6,
            learning_rate: Some(1e-3),
            max_steps: Some(4),
            ..self.settings(Algorithm::Grpo, output)
        }
    }

    /// The lines of metrics.jsonl without what the clock decides.
    fn metrics(&self, output: &str) -> Vec<serde_json::Map<String, Value>> {
        timeless_metrics(&self.path(output))
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}

fn finish(settings: &RunConfig) -> TrainReport {
    settings.check().unwrap();
    let report = train(settings, TrainOptions::default()).unwrap();
    assert_eq!(report.outcome, Outcome::Finished);
    report
}

/// From random weights to six sums known by heart, by the recipe that a user calls; the saved folder answers them.
#[test]
fn supervised_training_memorises_sums() {
    let place = Workplace::new();
    let settings = RunConfig {
        eval_file: Some(place.path("sums.jsonl").to_string_lossy().into_owned()),
        prompts_per_step: 6,
        learning_rate: Some(1e-2),
        max_steps: Some(60),
        save_steps: 0,
        ..place.settings(Algorithm::Sft, "out")
    };
    let report = finish(&settings);
    let (before, after) = (report.summary.before.unwrap(), report.summary.after.unwrap());
    assert!(before.accuracy < Some(0.5), "{before:?}");
    assert!(after.accuracy > Some(0.999), "{after:?}");
    let losses: Vec<f64> = place.metrics("out").iter().filter_map(|m| m.get("loss")?.as_f64()).collect();
    println!("loss {:.3} -> {:.5}", losses[0], losses[losses.len() - 1]);
    assert_eq!(losses.len(), 60);
    // A random model spreads its probability over 57 tokens: ln 57 = 4.04.
    assert!((losses[0] - 57f64.ln()).abs() < 1.5, "{}", losses[0]);
    assert!(losses[59] < 0.02, "{}", losses[59]);
}

/// With beta 0 no reference is planned for, run or measured; with beta above 0 it is.
#[test]
fn no_reference_is_loaded_where_beta_is_0() {
    let place = Workplace::new();
    for (beta, output) in [(0.0, "without"), (0.04, "with")] {
        let settings = RunConfig { beta: Some(beta), max_steps: Some(1), ..place.grpo(output) };
        let reference = plan(&settings).unwrap().memory.reference;
        finish(&settings);
        let has_kl = place.metrics(output).iter().any(|line| line.contains_key("kl"));
        assert_eq!((reference > 0, has_kl), (beta > 0.0, beta > 0.0));
    }
}

/// A run that died after the first of two steps on the same rollouts goes on with the second one: weights, optimizer
/// and metrics end as those of the run that lived, to the bit.
#[test]
fn a_run_resumes_between_two_steps_on_the_same_rollouts() {
    let place = Workplace::new();
    let settings = RunConfig { num_iterations: 2, save_steps: 1, save_total_limit: 0, ..place.grpo("whole") };
    finish(&settings);
    let metrics = place.metrics("whole");
    assert_eq!(metrics.len(), 4);
    assert!(metrics.iter().all(|line| line["grad_norm"].as_f64().unwrap() > 0.0), "nothing was learned from");
    for step in [1, 3] {
        // What is left of a run that was killed: checkpoints up to the step, logs that ran ahead of them.
        let output = format!("from-{step}");
        copy_folder(&place.path("whole"), &place.path(&output));
        for later in step + 1..=4 {
            fs::remove_dir_all(place.path(&output).join(format!("checkpoint-{later}"))).unwrap();
        }
        assert!(place.path(&output).join(format!("checkpoint-{step}")).join(ROLLOUTS_FILE).is_file());
        assert!(!place.path("whole/checkpoint-2").join(ROLLOUTS_FILE).exists());
        finish(&RunConfig { output_dir: place.path(&output), resume: "auto".into(), ..settings.clone() });
        for file in ["model.safetensors", "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.safetensors"] {
            let (whole, resumed) = (place.read(&format!("whole/{file}")), place.read(&format!("{output}/{file}")));
            assert!(whole == resumed, "{file} differs after resuming at step {step}");
        }
        assert_eq!(place.metrics(&output), metrics);
        assert_eq!(place.read(&format!("{output}/completions.jsonl")), place.read("whole/completions.jsonl"));
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
