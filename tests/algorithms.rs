//! Every algorithm, through the recipe that a user calls: its reward rises, a resumed run ends in the same bits, and
//! what is sampled, masked or followed is what the settings say.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::fs;
use std::path::Path;

use candlewick::checkpoint::{NamedTensor, read_tensors};
use candlewick::config::{Algorithm, ImportanceSamplingLevel, KlEstimator, LossType, RunConfig};
use candlewick::reward::{FnReward, RewardInput, TokenFnReward, TokenScores, WeightedRewards};
use serde_json::Value;
use small_run::{Metrics, Place, assert_rises, assert_same_run, copy_until, digits, finish, mean, values};

/// What tells a run from the plain one of its algorithm.
type Change = fn(&mut RunConfig);
/// A run: its name, its algorithm, its rewards, its settings.
type Case = (&'static str, Algorithm, fn() -> WeightedRewards, Change);

const REINFORCED: [Algorithm; 5] =
    [Algorithm::Grpo, Algorithm::Rloo, Algorithm::Remax, Algorithm::ReinforcePlusPlus, Algorithm::Raft];

/// Trains and checks that the reward rises from about a fifth to well above it.
fn learns(place: &Place, name: &str, settings: &RunConfig) -> Vec<Metrics> {
    finish(settings, digits());
    let metrics = place.metrics(name);
    assert_rises(name, &values(&metrics, "reward"));
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
    let forms: [(&str, Algorithm, Change); 10] = [
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

fn is_digit(c: char) -> f64 {
    f64::from(u8::from(c.is_ascii_digit()))
}

/// Whether the first token is one that is wanted: a third of the ids.
fn starts_well(input: &RewardInput<'_>) -> f64 {
    f64::from(u8::from(input.completion_ids[0].is_multiple_of(3)))
}

/// Scores of the first token alone, and all others taken out of the loss.
fn first_token(input: &RewardInput<'_>) -> TokenScores {
    let is_first = (0..input.completion_ids.len()).map(|t| t == 0);
    let values = is_first.clone().map(|is| is.then_some(starts_well(input)));
    TokenScores { values: values.collect(), keep: is_first.collect() }
}

/// The digits, and rewards of single tokens beside them: each digit, and nothing to learn of the last token.
fn digits_by_token() -> WeightedRewards {
    digits().with(
        0.5,
        TokenFnReward::new("by_token", |input| {
            let n = input.completion_ids.len();
            let values = (0..n).map(|t| input.completion.chars().nth(t).map(is_digit)).collect();
            TokenScores { values, keep: (0..n).map(|t| n == 1 || t + 1 < n).collect() }
        }),
    )
}

/// As the digits, but all completions of a prompt that begins with an even digit are alike.
fn digits_after_odd() -> WeightedRewards {
    WeightedRewards::single(FnReward::new("digits_after_odd", |input| {
        let is_odd = input.prompt.starts_with(['1', '3', '5', '7', '9']);
        let digits = input.completion.chars().filter(char::is_ascii_digit).count();
        if is_odd { digits as f64 / input.completion_ids.len() as f64 } else { 0.5 }
    }))
}

/// Five steps, two on each set of rollouts; stopped inside and between two sets, the run ends in the same weights,
/// moments, reference, metrics and completions as without a stop.
#[test]
fn a_resumed_run_ends_in_the_same_bits_with_every_algorithm() {
    let place = Place::new();
    let plain = REINFORCED.map(|algorithm| -> Case { (algorithm.name(), algorithm, digits, |_| ()) });
    let forms: [Case; 4] = [
        ("rloo_by_token", Algorithm::Rloo, digits_by_token, |_| ()),
        ("remax_by_token", Algorithm::Remax, digits_by_token, |c| c.loss_type = LossType::Sapo),
        ("dynamic_sampling", Algorithm::ReinforcePlusPlus, digits_after_odd, |c| c.dynamic_sampling = true),
        ("sync_ref_model", Algorithm::Grpo, digits, |c| {
            c.sync_ref_model = true;
            c.ref_model_sync_steps = 1;
            c.use_bias_correction_kl = true;
        }),
    ];
    for (name, algorithm, rewards, change) in plain.into_iter().chain(forms) {
        let mut settings = RunConfig {
            num_iterations: 2,
            max_steps: Some(5),
            save_steps: 1,
            save_total_limit: 0,
            ..place.settings(name, algorithm)
        };
        change(&mut settings);
        finish(&settings, rewards());
        let whole = place.path(name);
        let moved = fs::read(whole.join("checkpoint-5/model.safetensors")).unwrap();
        assert!(moved != fs::read(whole.join("checkpoint-3/model.safetensors")).unwrap(), "{name} learns nothing");
        for step in [2, 3] {
            let resumed = format!("{name}-from-{step}");
            copy_until(&whole, &place.path(&resumed), step);
            let settings = RunConfig { resume: "auto".into(), output_dir: place.path(&resumed), ..settings.clone() };
            finish(&settings, rewards());
            assert_same_run(&whole, &place.path(&resumed), "checkpoint-5");
            let reference = |run: &str| fs::read(place.path(run).join("checkpoint-5/reference.safetensors")).ok();
            assert!(reference(name) == reference(&resumed), "{resumed}: the reference differs");
        }
    }
}

/// Prompts without a spread are drawn over: the first step is, bit for bit, that of a run whose data lack them.
#[test]
fn dynamic_sampling_learns_from_the_first_prompts_with_a_spread() {
    let place = Place::new();
    let write = |name: &str, even: &str| {
        let row = |i: usize| match i % 2 {
            0 => format!("{{\"prompt\": \"{even}+{}=\"}}\n", i / 2),
            _ => format!("{{\"prompt\": \"{}+{}=\"}}\n", i % 10, i / 2),
        };
        fs::write(place.path(name), (0..24).map(row).collect::<String>()).unwrap();
        place.path(name).to_string_lossy().into_owned()
    };
    let settings = |output: &str, train_file: String| RunConfig {
        train_file,
        shuffle: false,
        max_steps: Some(1),
        log_completions: 1000,
        ..place.settings(output, Algorithm::Grpo)
    };
    let dynamic = RunConfig { dynamic_sampling: true, ..settings("dynamic", write("all.jsonl", "4")) };
    finish(&dynamic, digits_after_odd());
    // Prompts that are too long are left out; the others keep their place in the file, which names their draws.
    finish(&settings("odd", write("odd.jsonl", "4444444444444444444")), digits_after_odd());
    let weights = |run: &str| fs::read(place.path(run).join("model.safetensors")).unwrap();
    assert!(weights("dynamic") == weights("odd"));

    // Of the first four prompts two have a spread, so the other two take another four, and all of them are counted.
    let metrics = &place.metrics("dynamic")[0];
    assert_eq!((&metrics["dynamic_sampling/num_prompts"], &metrics["epoch"]), (&8.into(), &(8.0 / 24.0).into()));
    assert_eq!(metrics["dynamic_sampling/num_prompts_kept"], 4);
    assert_eq!(metrics["frac_reward_zero_std"], 0.5);
    let of_odd = place.metrics("odd")[0]["reward"].as_f64().unwrap();
    assert!((metrics["reward"].as_f64().unwrap() - f64::midpoint(of_odd, 0.5)).abs() < 1e-12, "over all prompts drawn");
    assert_eq!(metrics["loss"], place.metrics("odd")[0]["loss"]);
    // What is not learned from has no advantage, not one of 0.
    let text = fs::read_to_string(place.path("dynamic").join("completions.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8 * 6);
    assert!(lines.iter().all(|line| line["advantage"].is_null() == line["prompt"].as_str().unwrap().starts_with('4')));
}

/// A step that finds too few prompts with a spread learns from those, and one that finds none makes no update.
#[test]
fn dynamic_sampling_is_bounded() {
    let place = Place::new();
    let settings = |output: &str| RunConfig {
        dynamic_sampling: true,
        max_sampling_rounds: 2,
        max_steps: Some(3),
        ..place.settings(output, Algorithm::Rloo)
    };
    let only_one = || {
        WeightedRewards::single(FnReward::new("only_one", |input| {
            if input.prompt == "1+3=" { f64::from(input.completion_ids[0]) } else { 0.0 }
        }))
    };
    finish(&settings("few"), only_one());
    let few = place.metrics("few");
    // Eight prompts a step and twelve in the file: two epochs pass, and the one prompt comes twice.
    assert_eq!(values(&few, "dynamic_sampling/num_prompts"), [8.0; 3]);
    assert!((values(&few, "dynamic_sampling/num_prompts_kept").iter().sum::<f64>() - 2.0).abs() < 1e-12);
    assert_eq!(values(&few, "epoch").last().map(|epoch| epoch.to_bits()), Some(2.0f64.to_bits()));

    finish(&settings("none"), WeightedRewards::single(FnReward::new("same", |_| 1.0)));
    let none = place.metrics("none");
    assert_eq!(values(&none, "dynamic_sampling/num_prompts_kept"), [0.0; 3]);
    assert_eq!((values(&none, "reward"), values(&none, "loss")), (vec![1.0; 3], vec![]));
}

fn tensors(path: &Path) -> impl Fn(&str) -> Vec<f32> + use<> {
    let all: Vec<NamedTensor> = read_tensors(path).unwrap();
    move |name| all.iter().find(|tensor| tensor.name == name).unwrap().data.clone()
}

/// reference <- (1 - alpha) reference + alpha policy every two steps (TR-DPO, arXiv:2404.09656 eq. 3), and the KL
/// divergence is that to the moved reference.
#[test]
fn the_reference_follows_the_policy() {
    let place = Place::new();
    let settings = |output: &str, alpha: f64| RunConfig {
        sync_ref_model: true,
        ref_model_mixup_alpha: alpha,
        ref_model_sync_steps: 2,
        max_steps: Some(4),
        save_steps: 1,
        save_total_limit: 0,
        ..place.settings(output, Algorithm::Grpo)
    };
    finish(&settings("mixed", 0.3), digits());
    let at = |step: u64, file: &str| place.path("mixed").join(format!("checkpoint-{step}")).join(file);
    assert!(!at(1, "reference.safetensors").exists(), "it is the start model still");
    let name = "model.layers.0.mlp.up_proj.weight";
    let [two, three, four] = [2, 3, 4].map(|step| tensors(&at(step, "reference.safetensors"))(name));
    assert_eq!(two, three);
    let policy = tensors(&at(4, "optimizer.safetensors"))(&format!("master.{name}"));
    assert!(policy != two && four != two);
    for ((old, policy), new) in two.iter().zip(&policy).zip(&four) {
        assert!((0.7 * old + 0.3 * policy - new).abs() < 1e-6, "{old} {policy} {new}");
    }

    // With alpha 1 the third step measures the policy against itself.
    finish(&settings("replaced", 1.0), digits());
    let kl = values(&place.metrics("replaced"), "kl");
    assert!(kl[1] > 1e-6 && kl[2].abs() < 1e-9 && kl[3] > 1e-6, "{kl:?}");
}

/// A reward may score single tokens and take tokens out of the loss: a run that learns from first tokens alone makes the
/// step of a run whose completions are one token long, and the first tokens become what the reward asks for.
#[test]
fn a_token_out_of_the_loss_has_no_gradient() {
    let place = Place::new();
    // The second reward has no weight: it only says how many begin as they should.
    let rewards = || {
        let first = WeightedRewards::single(TokenFnReward::new("first", first_token));
        first.with(0.0, FnReward::new("starts_well", starts_well))
    };
    let settings = |output: &str| RunConfig { beta: Some(0.01), ..place.settings(output, Algorithm::Grpo) };
    let one_step = RunConfig { max_steps: Some(1), ..settings("masked") };
    finish(&one_step, rewards());
    finish(&RunConfig { max_completion_length: 1, output_dir: place.path("short"), ..one_step }, rewards());
    let (masked, short) = (place.metrics("masked").remove(0), place.metrics("short").remove(0));
    let lengths = ["masked", "short"].map(|name| values(&place.metrics(name), "completions/mean_length")[0]);
    assert!(lengths[0] > 2.0 && lengths[1] < 1.5, "{lengths:?}");
    for name in ["loss", "grad_norm", "entropy"] {
        let (masked, short) = (masked[name].as_f64().unwrap(), short[name].as_f64().unwrap());
        assert!((masked - short).abs() <= 1e-5 * short.abs().max(1e-3), "{name}: {masked} {short}");
    }
    let weights = |run: &str| tensors(&place.path(run).join("checkpoint-1/optimizer.safetensors"));
    let name = "m.model.layers.1.self_attn.q_proj.weight";
    for (masked, short) in weights("masked")(name).into_iter().zip(weights("short")(name)) {
        assert!((masked - short).abs() < 1e-7, "{masked} {short}");
    }

    finish(&settings("learned"), rewards());
    let shares = values(&place.metrics("learned"), "rewards/starts_well/mean");
    let (before, after) = (mean(&shares[..4]), mean(&shares[16..]));
    println!("first tokens as they should be: {before:.3} -> {after:.3}");
    assert!(before < 0.55 && after > before + 0.3, "{shares:?}");
}
