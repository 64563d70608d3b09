//! `candlewick checkpoint`: what a run saved is listed, described and held against what was written.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CANDLEWICK_")) {
        command.env_remove(name);
    }
    let output = command.args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn json(args: &[&str], code: i32) -> Value {
    let (found, stdout, stderr) = run(&[args, &["--json"]].concat());
    assert_eq!(found, Some(code), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// Three steps of GRPO on a tiny model that reuses its rollouts, each saved.
fn make_run(place: &Path) -> String {
    let (model, data, output) = (place.join("model"), place.join("train.jsonl"), place.join("run"));
    fixtures::write_tiny(&model);
    let row = |i: u32| format!("{{\"prompt\": \"{i}+1=\", \"answer\": {}}}\n", i + 1);
    let rows: String = (0..8).map(row).collect();
    fs::write(&data, rows).unwrap();
    let [model, data, output] = [model, data, output].map(|path| path.to_str().unwrap().to_owned());
    let args = ["train", "--device", "cpu", "--max-steps", "3", "--save-steps", "1", "--max-completion-length", "4"];
    let files = ["--model", &model, "--train-file", &data, "--output-dir", &output, "--num-generations", "4"];
    let set = ["--set", "init=random", "--set", "num_iterations=2", "--set", "prompts_per_step=2"];
    let (code, _, stderr) = run(&[&args[..], &files[..], &set[..]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    output
}

#[test]
fn checkpoints_are_listed_described_and_verified() {
    let place = tempfile::tempdir().unwrap();
    let output = make_run(place.path());
    let folder = |step: u64| format!("{output}/checkpoint-{step}");

    let listed = json(&["checkpoint", "ls", &output], 0);
    let listed = listed["checkpoints"].as_array().unwrap();
    let steps: Vec<_> = listed.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3]);
    assert!(listed.iter().all(|row| row["problem"].is_null() && row["bytes"].as_u64() > Some(10_000)), "{listed:?}");
    assert_eq!(listed.iter().map(|row| row["is_last"] == true).collect::<Vec<_>>(), [false, false, true]);
    assert!(listed[0]["saved"].as_str().unwrap().ends_with('Z'));

    let found = json(&["checkpoint", "inspect", &folder(1)], 0);
    assert_eq!((&found["step"], &found["max_steps"]), (&1.into(), &3.into()));
    assert_eq!(found["algorithm"], "grpo");
    assert_eq!(found["shape"], "2 layers, 32 wide, 48 in the MLP, 4 heads, 2 key/value heads, 57 tokens");
    let header: u64 = fs::metadata(format!("{}/model.safetensors", folder(1))).unwrap().len();
    let parameters = found["parameters"].as_u64().unwrap();
    assert!(parameters * 4 < header && header < parameters * 4 + 4096, "{parameters} of {header} bytes");
    assert_eq!(found["dtype"], "F32");
    assert!(found["optimizer"].as_str().unwrap().starts_with("AdamW after "), "{found}");
    assert_eq!(found["saved_rollouts"], 8, "two prompts of four completions wait for the second pass");
    assert_eq!(found["settings"]["num_iterations"], "2");
    assert!(found["settings"]["temperature"].is_null(), "a default is no difference");
    assert_eq!(json(&["checkpoint", "inspect", &folder(2)], 0)["saved_rollouts"], Value::Null);
    let (_, text, _) = run(&["checkpoint", "inspect", &folder(1)]);
    assert!(text.contains("step         1 of 3\n") && text.contains("  num_generations = 4\n"), "{text}");

    // The run's folder has a model of its own; its checkpoints are named one by one.
    let folders = [1, 2, 3].map(folder);
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    let verified = json(&[&["checkpoint", "verify", &output], &folders[..]].concat(), 0);
    assert_eq!(verified["checkpoints"].as_array().unwrap().len(), 4);
}

#[test]
fn damage_is_named_with_its_file_and_ends_with_4() {
    let place = tempfile::tempdir().unwrap();
    let output = make_run(place.path());
    let folder = |step: u64| format!("{output}/checkpoint-{step}");

    // One byte of the middle one, a file of the newest, and a file that nobody knows.
    let weights = format!("{}/optimizer.safetensors", folder(2));
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::remove_file(format!("{}/tokenizer.json", folder(3))).unwrap();
    fs::write(format!("{}/notes.txt", folder(1)), "mine").unwrap();

    let (code, text, stderr) = run(&["checkpoint", "verify", &folder(1), &folder(2), &folder(3)]);
    assert_eq!(code, Some(4), "{stderr}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with(&folder(1)) && lines[0].ends_with("all as written"), "{text}");
    assert_eq!(lines[1], format!("{}: notes.txt is no part of it", folder(1)));
    let damaged = "optimizer.safetensors is damaged (its SHA-256 is not that of the manifest)";
    assert_eq!(lines[2], format!("{}: {damaged}", folder(2)));
    assert_eq!(lines[3], format!("{}: tokenizer.json is missing", folder(3)));

    // What is too short or missing is seen without reading; a flipped byte is not.
    let (code, text, _) = run(&["checkpoint", "ls", &output]);
    assert_eq!(code, Some(0));
    assert!(text.contains("tokenizer.json is missing") && text.contains("complete last"), "{text}");
    let listed = json(&["checkpoint", "ls", &output], 0);
    assert_eq!(listed["checkpoints"][1]["is_last"], true);

    fs::write(format!("{}/MANIFEST.json", folder(2)), "{}").unwrap();
    let verified = json(&["checkpoint", "verify", &folder(2)], 4);
    assert_eq!(verified["checkpoints"][0]["problems"][0]["file"], "MANIFEST.json");
    assert_ne!(run(&["checkpoint", "inspect", &folder(2)]).0, Some(0));
    let nowhere = place.path().join("nowhere");
    for verb in ["ls", "inspect", "verify"] {
        let (code, _, stderr) = run(&["checkpoint", verb, nowhere.to_str().unwrap()]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("there is no checkpoint in"), "{stderr}");
    }
    // A finished model is verified, but it is no checkpoint.
    let (_, _, stderr) = run(&["checkpoint", "inspect", &output]);
    assert!(stderr.contains("this is a finished model"), "{stderr}");
}
