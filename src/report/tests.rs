//! Runs of all kinds become pages; what is no run is refused.

use super::*;
use crate::error::{Diagnose, Exit};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;

pub(super) fn folder_of(metrics: &str, completions: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    fs::write(folder.path().join("completions.jsonl"), completions).unwrap();
    folder
}

/// A run whose files are gone once it is read.
pub(super) fn run_of(metrics: &str, completions: &str) -> Run {
    Run::read(folder_of(metrics, completions).path(), "run").unwrap()
}

fn data_of(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn page_of(runs: &[Run]) -> String {
    page(runs, &"2026-11-20T16:50:12+00:00[UTC]".parse().unwrap()).unwrap()
}

#[test]
fn a_killed_run_is_shown_and_what_is_damaged_is_told() {
    let metrics = "{\"step\":0,\"time\":5,\"eval_accuracy\":0.5}\nnonsense\n{\"step\":1,\"time\":7.5,\"reward\":0.25}\n{\"step\":2,\"ti";
    let folder = folder_of(metrics, "{\"step\":1,\"completion\":\"<b>\"}\n{\"nothing\":1}\n");
    fs::write(folder.path().join("run_config.toml"), "max_steps = 60\n[architecture]\nhidden_size = 64\n").unwrap();
    let run = Run::read(folder.path(), "a").unwrap();
    assert_eq!(run.status.words(), "stopped after step 1 of 60");
    assert_eq!(run.names, ["eval_accuracy", "reward"]);
    assert_eq!(run.problems.len(), 3, "{:?}", run.problems);
    assert!(run.problems[0].starts_with("metrics.jsonl: 1 line of 4 left out; the first is line 2: "));
    assert!(run.problems[1].contains("the last line is cut"));
    assert!(run.problems[2].ends_with("the first is line 2: it has no `completion`"));
    let data = data_of(&page_of(&[run]));
    assert_eq!(data["runs"][0]["config"], json!({"max_steps": "60", "architecture.hidden_size": "64"}));
    assert_eq!(data["runs"][0]["texts"]["rows"][0][2], "<b>");
}

#[test]
fn runs_with_other_metrics_stand_side_by_side() {
    let runs = [
        run_of("{\"step\":1,\"reward\":1}\n", ""),
        run_of("{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":null}\n", ""),
    ];
    let data = data_of(&page_of(&runs));
    assert_eq!(data["runs"][0]["curves"]["series"], json!({"reward": {"values": [1]}}));
    assert_eq!(data["runs"][1]["curves"]["series"], json!({"loss": {"values": [2.5, null]}}));
    assert_eq!(data["bins"], json!([]));
}

#[test]
fn a_finished_run_and_one_that_goes_are_told_apart() {
    let folder = folder_of("{\"step\":3,\"loss\":1}\n", "");
    fs::write(folder.path().join("MANIFEST.json"), "{\"step\": 3}").unwrap();
    fs::write(folder.path().join("all_results.json"), "{\"step\":3,\"epoch\":1,\"eval_accuracy\":0.75}").unwrap();
    let run = Run::read(folder.path(), "a").unwrap();
    assert_eq!(run.status.words(), "finished");
    assert_eq!(
        (&run.names[..], &run.rows[0].values[..]),
        (&["loss".into(), "eval_accuracy".into()][..], &[Some(1.0), Some(0.75)][..])
    );
    let lock = crate::io::DirLock::acquire(folder.path()).unwrap();
    assert_eq!(Run::read(folder.path(), "a").unwrap().status.words(), "running: step 3");
    drop(lock);
    assert_eq!(Run::read(folder.path(), "a").unwrap().status.words(), "finished");
}

#[test]
fn what_is_no_run_is_refused_with_a_reason() {
    let folder = folder_of("", "");
    let read = |path: &Path| Run::read(path, "a").unwrap_err();
    let empty = read(folder.path());
    assert!(matches!(empty, ReportError::Empty { .. }), "{empty}");
    let missing = read(&folder.path().join("nowhere"));
    assert!(missing.to_string().ends_with("is not the folder of a run: it does not exist"), "{missing}");
    assert_eq!(missing.exit(), Exit::Data);

    fs::write(folder.path().join("metrics.jsonl"), "[]\n{\"loss\":1}\n").unwrap();
    let unreadable = read(folder.path());
    assert!(unreadable.to_string().contains("metrics.jsonl:1: not a line of metrics: "), "{unreadable}");
    assert!(unreadable.to_string().ends_with("nor is any other of its 2 lines"), "{unreadable}");

    fs::rename(folder.path().join("metrics.jsonl"), folder.path().join("moved")).unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("metrics.jsonl"), "{\"step\":1}\n").unwrap();
    let above = read(folder.path());
    assert_eq!(above.hint().unwrap(), format!("name the runs in it: candlewick report {}", run.display()));
}

#[test]
fn a_page_is_written_where_it_is_asked_for() {
    let folder = folder_of("{\"step\":1,\"loss\":1}\n", "");
    let runs = [(folder.path().to_owned(), "a".to_owned())];
    let file = folder.path().join("new/page.html");
    let report = write_report(&runs, &file).unwrap();
    assert_eq!((report.path, report.bytes), (file.clone(), fs::metadata(&file).unwrap().len()));
    assert_eq!(write_report(&runs, folder.path()).unwrap().path, folder.path().join("report.html"));
}

/// Several long runs with all the metrics of GRPO, evaluations, and completions of many tokens.
#[test]
fn a_thousand_steps_of_four_runs_fit_into_two_megabytes() {
    let (mut metrics, mut completions) = (String::new(), String::new());
    for step in 1..=1000 {
        let value = |i: u32| (f64::from(step) * 0.37 + f64::from(i)).sin() * 1.234_567_890_123;
        let _ = write!(metrics, "{{\"step\":{step},\"time\":{}", 1.79e9 + f64::from(step));
        for i in 0..36 {
            let _ = write!(metrics, ",\"group/metric_{i}\":{}", value(i));
        }
        let _ = writeln!(metrics, "{}}}", if step % 10 == 0 { ",\"eval_accuracy\":0.5" } else { "" });
        for i in 0..8 {
            let line = json!({
                "step": step, "prompt": format!("What is {step} + {i}?"), "completion": "some words ".repeat(40),
                "rewards": {"exact": value(i)}, "reward": value(i), "advantage": value(i + 1), "finish_reason": "stop",
            });
            let _ = writeln!(completions, "{line}");
        }
    }
    let folder = folder_of(&metrics, &completions);
    let run = Run::read(folder.path(), "a").unwrap();
    let one = page_of(std::slice::from_ref(&run));
    let four = page_of(&[run.clone(), run.clone(), run.clone(), run]);
    for (page, thinning) in [(&one, 1), (&four, 2)] {
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
        let data = data_of(page);
        assert_eq!(data["runs"][0]["curves"]["thinning"], thinning);
        assert_eq!(data["runs"][0]["texts"]["total"], 8000);
        assert!(data["runs"][0]["texts"]["rows"].as_array().unwrap().len() > 200);
    }
}
