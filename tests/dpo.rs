//! Learning from pairs, given in a file or sampled: what is preferred grows likelier, what cannot be learned from changes
//! nothing, and a resumed run ends in the same bits.

#![allow(clippy::float_cmp, reason = "the first loss is ln 2 to the bit")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::fs;

use candlewick::config::{Algorithm, DpoLossType, DpoPairs, OnBadRow, RunConfig};
use candlewick::error::Diagnose;
use candlewick::recipe::{RecipeError, plan};
use candlewick::reward::{FnReward, WeightedRewards};
use small_run::{Place, assert_rises, assert_same_run, copy_until, digits, finish, prompt, values};

/// A folder that has a few pairs too.
fn place() -> Place {
    let place = Place::new();
    let row = |i: usize| {
        let (chosen, rejected) = (i % 7 + i * 3 % 10, i % 4);
        format!("{{\"prompt\": \"{}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}-\"}}\n", prompt(i))
    };
    place.write("pairs.jsonl", &(0..12).map(row).collect::<String>());
    place
}

fn settings(place: &Place, output: &str, dpo_pairs: DpoPairs) -> RunConfig {
    let file = if dpo_pairs == DpoPairs::File { "pairs.jsonl" } else { "prompts.jsonl" };
    let train_file = place.path(file).to_string_lossy().into_owned();
    RunConfig { dpo_pairs, train_file, ..place.settings(output, Algorithm::Dpo) }
}

/// Where the policy is the start model no completion is preferred, and the loss is that of a guess, ln 2.
#[test]
fn the_policy_comes_to_prefer_the_chosen_completions_of_a_file() {
    let place = place();
    finish(&settings(&place, "run", DpoPairs::File), digits());
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
    let place = place();
    for (name, dpo_loss_type, label_smoothing) in [
        ("smoothed", DpoLossType::Sigmoid, 0.1),
        ("hinge", DpoLossType::Hinge, 0.0),
        ("ipo", DpoLossType::Ipo, 0.0),
        ("sigmoid_norm", DpoLossType::SigmoidNorm, 0.0),
    ] {
        finish(&RunConfig { dpo_loss_type, label_smoothing, ..settings(&place, name, DpoPairs::File) }, digits());
        let metrics = place.metrics(name);
        let (loss, margins) = (values(&metrics, "loss"), values(&metrics, "rewards/margins"));
        println!("{name}: loss {:.3} -> {:.3}, margin {:.3}", loss[0], loss[19], margins[19]);
        assert!(loss[19] < loss[0] && margins[19] > 0.1, "{name}: {loss:?} {margins:?}");
    }
}

/// A pair is never torn, so a budget of one token runs pair by pair; only the order of the sums differs.
#[test]
fn micro_batches_change_nothing() {
    let place = place();
    for (name, max_tokens_per_micro_batch) in [("whole", 8192), ("torn", 1)] {
        let settings = settings(&place, name, DpoPairs::File);
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
    let place = place();
    finish(&settings(&place, "run", DpoPairs::Sampled), digits());
    let metrics = place.metrics("run");
    assert_rises("dpo", &values(&metrics, "reward"));
    assert_eq!(values(&metrics, "loss")[0], std::f64::consts::LN_2);
    assert!(values(&metrics, "frac_pairs_dropped").iter().all(|dropped| *dropped < 1.0));
    assert_eq!(values(&metrics, "completions/mean_length").len(), 20);
}

/// Log-probs of the loss are untempered, so sampling hotter or colder leaves the first loss at ln 2.
#[test]
fn the_temperature_is_for_sampling_alone() {
    let place = place();
    let settings = settings(&place, "run", DpoPairs::Sampled);
    finish(&RunConfig { temperature: 1.5, max_steps: Some(3), ..settings }, digits());
    let loss = values(&place.metrics("run"), "loss");
    assert_eq!(loss[0], std::f64::consts::LN_2);
    assert!(loss[1] != loss[0], "{loss:?}");
}

#[test]
fn equal_rewards_give_no_pair_and_no_update() {
    let place = place();
    let constant = || WeightedRewards::single(FnReward::new("constant", |_| 1.0));
    for (name, steps) in [("one", 1), ("three", 3)] {
        finish(&RunConfig { max_steps: Some(steps), ..settings(&place, name, DpoPairs::Sampled) }, constant());
    }
    let metrics = place.metrics("three");
    assert_eq!(values(&metrics, "frac_pairs_dropped"), [1.0; 3]);
    assert!(metrics.iter().all(|line| !line.contains_key("loss") && !line.contains_key("rewards/margins")));
    let weights = |name: &str| fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("one"), weights("three"));
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one() {
    let place = place();
    for (name, pairs) in [("file", DpoPairs::File), ("sampled", DpoPairs::Sampled)] {
        let settings = RunConfig {
            max_steps: Some(6),
            save_steps: 1,
            save_total_limit: 0,
            resume: "auto".to_owned(),
            ..settings(&place, name, pairs)
        };
        finish(&settings, digits());
        let whole = place.path(name);
        for step in [1, 4] {
            let resumed = place.path(&format!("{name}-from-{step}"));
            copy_until(&whole, &resumed, step);
            finish(&RunConfig { output_dir: resumed.clone(), ..settings.clone() }, digits());
            assert_same_run(&whole, &resumed, "checkpoint-6");
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
    let place = place();
    let good = "{\"prompt\": \"1+1=\", \"chosen\": \"2\", \"rejected\": \"3\"}\n";
    let equal = "{\"prompt\": \"1+2=\", \"chosen\": \"3\", \"rejected\": \"3\"}\n";
    let lacking = "{\"prompt\": \"1+2=\", \"chosen\": \"3\"}\n";
    place.write("pairs.jsonl", &[good, equal, good, lacking].concat());
    let settings = settings(&place, "run", DpoPairs::File);
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
