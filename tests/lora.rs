//! Training an adapter: the base stays as it is and is the reference, nothing of it is trained or stored, and a run that
//! is resumed ends in the same bits.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]
#![allow(clippy::float_cmp, reason = "exact results are compared")]

#[path = "support/tiny_run.rs"]
mod tiny_run;

use candlewick::device::Compute;
use candlewick::recipe::load_model;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tiny_run::{Bench, timeless_metrics};

const SETTINGS: &str = "max_steps = 6\nsave_steps = 2\nsave_total_limit = 0\nbeta = 0.04";
const LORA: &str = "lora={r = 4, alpha = 8, target_modules = 'all-linear'}";

/// A trained base model, as the settings that start from it.
fn start_from(bench: &Bench) -> (PathBuf, String) {
    bench.run_well("base", "never", &["max_steps=1", "save_steps=1"]);
    let base = bench.output_dir("base");
    let model = format!("model='{}'", base.display());
    (base, model)
}

fn train(bench: &Bench, name: &str, resume: &str, model: &str, more: &[&str]) -> PathBuf {
    bench.run_well(name, resume, &[&["init='pretrained'", model][..], more].concat());
    bench.output_dir(name)
}

fn sizes(checkpoint: &Path) -> (u64, u64) {
    let bytes = |name: &str| fs::metadata(checkpoint.join(name)).unwrap().len();
    (bytes("adapter_model.safetensors"), bytes("optimizer.safetensors"))
}

#[test]
fn an_adapter_is_trained_resumed_continued_and_merged() {
    let bench = Bench::new(SETTINGS);
    let (base, model) = start_from(&bench);
    let before = fs::read(base.join("model.safetensors")).unwrap();
    let whole = train(&bench, "whole", "never", &model, &[LORA, "learning_rate=1e-2"]);
    assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), before);
    assert!(!whole.join("model.safetensors").exists() && !whole.join("config.json").exists());

    // The reference is the model without its adapter, and B starts at zero: no divergence before the first update, some
    // after the last.
    let metrics = timeless_metrics(&whole);
    let kl = |row: usize| metrics[row]["kl"].as_f64().unwrap();
    assert!(kl(0) == 0.0 && kl(5) > 0.0, "{} {}", kl(0), kl(5));

    // Optimizer and result hold the adapter alone: r (inputs + outputs) values of each of 7 maps in 4 layers, as masters
    // and two moments.
    let (d, f, kv) = (64, 96, 32);
    let values = 4 * 4 * ((d + d) + 2 * (d + kv) + (d + d) + 3 * (d + f));
    let (adapter, optimizer) = sizes(&whole.join("checkpoint-6"));
    let header = 16 * 1024;
    assert!((4 * values..4 * values + header).contains(&adapter), "{adapter} bytes for {values} values");
    assert!((12 * values..12 * values + 3 * header).contains(&optimizer), "{optimizer} bytes for {values} values");

    // Killed after two steps and resumed.
    let resumed = bench.output_dir("resumed");
    fs::create_dir(&resumed).unwrap();
    copy_dir(&whole.join("checkpoint-2"), &resumed.join("checkpoint-2"));
    for log in ["metrics.jsonl", "completions.jsonl"] {
        fs::copy(whole.join(log), resumed.join(log)).unwrap();
    }
    train(&bench, "resumed", "auto", &model, &[LORA, "learning_rate=1e-2"]);
    for file in ["adapter_model.safetensors", "checkpoint-6/optimizer.safetensors", "completions.jsonl"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(resumed.join(file)).unwrap(), "{file}");
    }
    assert_eq!(timeless_metrics(&resumed), metrics);

    // With other adapters, the run cannot go on.
    let settings = ["init='pretrained'", &model, "lora={r = 8, alpha = 8, target_modules = 'all-linear'}"];
    let (code, text) = bench.run("resumed", "auto", &settings);
    assert!(code == Some(2) && text.contains("lora.r: 4 in the checkpoint, 8 now"), "{code:?} {text}");

    // An adapter that exists is trained further, with what it was made with.
    let further = format!("model='{}'", whole.display());
    let continued = train(&bench, "continued", "never", &further, &[LORA]);
    let config: Value =
        serde_json::from_str(&fs::read_to_string(continued.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &8.0.into()));
    assert_eq!(config["base_model_name_or_path"], base.to_str().unwrap());
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&continued) != weights(&whole));

    // Merged, it is a model like any other.
    let merged = bench.output_dir("merged");
    candlewick::recipe::merge(whole.to_str().unwrap(), &merged, None, true).unwrap();
    let again = candlewick::recipe::merge(whole.to_str().unwrap(), &merged, None, true).unwrap_err();
    assert!(again.to_string().contains("already holds config.json"), "{again}");
    let (decoder, _) =
        load_model(merged.to_str().unwrap(), None, true, None).unwrap().decoder(&Compute::cpu(), false).unwrap();
    assert_eq!(decoder.trained().iter().count(), decoder.params().iter().count());
    assert!(fs::read(merged.join("model.safetensors")).unwrap() != before);
}

/// Dropout changes the training pass, is drawn anew in each step, and is the same after a resume.
#[test]
fn dropout_is_named_by_the_seed() {
    let bench = Bench::new(SETTINGS);
    let (_, model) = start_from(&bench);
    let with = |dropout: f64| {
        format!("lora={{r = 4, dropout = {dropout}, target_modules = ['q_proj', 'layers.1.mlp.up_proj']}}")
    };
    let run = |name: &str, dropout: f64, resume: &str| {
        train(&bench, name, resume, &model, &[&with(dropout), "learning_rate=1e-2"])
    };
    let (none, some, again) = (run("none", 0.0, "never"), run("some", 0.2, "never"), run("again", 0.2, "never"));
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&none) != weights(&some) && weights(&some) == weights(&again));
    let resumed = bench.output_dir("resumed");
    fs::create_dir(&resumed).unwrap();
    copy_dir(&some.join("checkpoint-4"), &resumed.join("checkpoint-4"));
    for log in ["metrics.jsonl", "completions.jsonl"] {
        fs::copy(some.join(log), resumed.join(log)).unwrap();
    }
    assert!(weights(&run("resumed", 0.2, "auto")) == weights(&some));
}

/// A base in 8 or 4 bits: the reference has the same weights, so there is no divergence at first, and it learns.
#[test]
fn a_quantised_base_is_trained_beside() {
    let bench = Bench::new(SETTINGS);
    let (_, model) = start_from(&bench);
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let run = |name: &str, base: &str, resume: &str| {
        let lora = format!("lora={{r = 4{base}}}");
        train(&bench, name, resume, &model, &[&lora, "learning_rate=1e-2"])
    };
    let (whole, q8) = (run("whole", "", "never"), run("q8", ", quantize_base = 'q8_0'", "never"));
    let q4 = run("q4", ", quantize_base = 'q4_0'", "never");
    assert!(weights(&whole) != weights(&q8) && weights(&q8) != weights(&q4));
    for folder in [&q8, &q4] {
        let kl = |row: usize| timeless_metrics(folder)[row]["kl"].as_f64().unwrap();
        assert!(kl(0) == 0.0 && kl(5) > 0.0, "{} {}", kl(0), kl(5));
    }
}

#[test]
fn what_cannot_be_adapted_is_told() {
    let bench = Bench::new(SETTINGS);
    let (base, model) = start_from(&bench);
    let adapter = train(&bench, "adapter", "never", &model, &["max_steps=1", "lora={r = 2}"]);
    let given = format!("model='{}'", adapter.display());
    let cases: [(&[&str], i32, &str); 7] = [
        (&[&given], 2, "is an adapter, and the settings have no `[lora]` table"),
        (&[&given, "lora={r = 4}"], 2, "`r` of `[lora]` is 4, and the adapter in"),
        (&[&model, "lora={r = 0}"], 2, "`r` of `[lora]` must be from 1"),
        (&[&model, "lora={rank = 4}"], 2, "unknown key of `[lora]` `rank`"),
        (&[&model, "lora={target_modules = ['query']}"], 4, "\"query\" is none of the model's linear maps"),
        (&[&model, "lora={}", "sync_ref_model=true"], 2, "`sync_ref_model` moves the reference"),
        (&[&model, "lora={}", "init='random'"], 2, "drawn at random"),
    ];
    for (settings, code, message) in cases {
        let (found, text) = bench.run("bad", "never", &[&["init='pretrained'"], settings].concat());
        assert!(found == Some(code) && text.contains(message), "{settings:?}: {found:?}\n{text}");
    }

    // Beside another base, without one, and beside one that is gone.
    let config = adapter.join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/qwen2_untied");
    let load = || load_model(adapter.to_str().unwrap(), None, true, None);
    fs::write(&config, text.replace(base.to_str().unwrap(), fixture.to_str().unwrap())).unwrap();
    let error = load().unwrap().decoder(&Compute::cpu(), false).unwrap_err().to_string();
    assert!(error.contains("does not fit its base model") && error.contains("lora_A"), "{error}");
    fs::write(&config, text.replace(base.to_str().unwrap(), "/no/such/folder")).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("the base model /no/such/folder of the adapter in"), "{error}");
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["base_model_name_or_path"] = Value::Null;
    fs::write(&config, json.to_string()).unwrap();
    assert!(load().unwrap_err().to_string().contains("names no base model"));
    fs::write(&config, "{\"peft_type\": \"IA3\"}").unwrap();
    assert!(load().unwrap_err().to_string().contains("peft_type is \"IA3\""));
    let error = candlewick::recipe::merge(base.to_str().unwrap(), &bench.output_dir("m"), None, true).unwrap_err();
    assert!(error.to_string().contains("is no adapter"), "{error}");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
