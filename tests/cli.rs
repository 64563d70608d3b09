//! The program from outside: exit codes, what goes to stdout and what to stderr.

use std::process::{Command, Output, Stdio};

fn candlewick(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CANDLEWICK_") {
            command.env_remove(name);
        }
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(args: &[&str]) -> Output {
    candlewick(args).output().expect("the program starts")
}

#[test]
fn a_config_is_shown_on_stdout_and_nothing_else_is() {
    let args = ["config", "show", "configs/quickstart.toml", "--set", "beta=.5", "--learning_rate=1e-5"];
    let shown = output(&args);
    assert_eq!(shown.status.code(), Some(0));
    assert_eq!(text(&shown.stderr), "");
    assert!(text(&shown.stdout).contains("beta = 0.5  # --set beta=.5\n"));
    assert!(text(&shown.stdout).contains("learning_rate = 0.00001  # --learning-rate 1e-5\n"));

    let json = candlewick(&args).arg("--json").env("CANDLEWICK_SEED", "7").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["seed"]["value"], 7);
    assert_eq!(json["seed"]["source"], "environment variable CANDLEWICK_SEED=7");
}

#[test]
fn wrong_settings_and_wrong_arguments_exit_with_2() {
    let wrong = output(&["config", "show", "configs/nowhere.toml", "--set", "lr=1"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(text(&wrong.stdout), "");
    insta::assert_snapshot!(text(&wrong.stderr), @"
    error: the configuration has 2 errors

    configuration file configs/nowhere.toml does not exist
     --> configs/nowhere.toml

    unknown setting `lr`
     --> --set lr=1
     = help: `lr` is called `learning_rate` here

    hint: `candlewick config reference` describes every setting
    ");

    assert_eq!(output(&["config", "shwo"]).status.code(), Some(2));
    assert_eq!(output(&[]).status.code(), Some(2));
    assert_eq!(output(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_bare_resume_flag_means_auto() {
    let shown = output(&["config", "show", "configs/quickstart.toml", "--resume"]);
    assert!(text(&shown.stdout).contains("resume = \"auto\""));
    let swallowed = output(&["config", "show", "--resume", "configs/quickstart.toml"]);
    assert!(text(&swallowed.stderr).contains("write `--resume` after the files"));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = candlewick(&["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(text(&done.stderr), "");
}

#[test]
fn sums_are_written_and_impossible_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums.jsonl");
    let path = path.to_str().unwrap();
    let made = output(&["data", "arithmetic", path, "--rows", "5", "--operators", "-", "--split", "eval"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 5);
    assert_ne!(output(&["data", "arithmetic", path, "--rows", "5", "--max-operand", "0"]).status.code(), Some(0));
    assert_ne!(output(&["data", "arithmetic", path, "--operators", "*"]).status.code(), Some(0));
    // Words that contradict each other, and a fraction of nothing, are wrong arguments.
    for args in [["--digits", "2", "--max-operand", "9"], ["--test-file", "t", "--split", "eval"]] {
        assert_eq!(output(&[&["data", "arithmetic", path], &args[..]].concat()).status.code(), Some(2));
    }
    assert_eq!(output(&["data", "arithmetic", path, "--test-fraction", "0.2"]).status.code(), Some(2));
}
