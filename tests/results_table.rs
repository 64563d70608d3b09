//! The tables of results: what the README shows is what `results/*.json` hold.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "../examples/results_table/tables.rs"]
mod tables;

#[path = "../examples/results_table/record.rs"]
mod record;

use record::{completions_at, record, train_seconds};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use tables::{Measures, Point, ROWS, RunResult, TABLES, disagreement, fill, load, table};

#[test]
fn the_readme_shows_the_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = load(&root.join("results")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    if let Some(difference) = disagreement(&readme, &results) {
        panic!("{difference}\nto correct it: cargo run --release --example results_table -- fill README.md");
    }
}

/// Every row of the tables can be run, and what cannot be run is told before anything is built.
#[test]
fn the_script_knows_the_rows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(root.join("scripts/results.sh")).unwrap();
    let head: String =
        script.lines().take_while(|line| line.starts_with('#')).map(|line| line.replace('#', "")).collect();
    for row in ROWS {
        assert!(head.contains(row), "{row}");
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |row: &str, seed: &str| {
        let done = Command::new("bash")
            .arg(root.join("scripts/results.sh"))
            .args([row, seed])
            .env("RESULTS", folder.path())
            .output()
            .unwrap();
        (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    for row in ROWS {
        fs::write(folder.path().join(format!("{row}-7.json")), "").unwrap();
        let (code, said) = run(row, "7");
        assert!(code == Some(0) && said.contains(&format!("{row}-7.json is there")), "{code:?} {said}");
    }
    assert_eq!(run("addition", "7"), (Some(2), "results: there is no row 'addition'\n".into()));
    assert_eq!(run("letter-e", "x"), (Some(2), "results: the seed is a whole number, not 'x'\n".into()));
}

fn measures(accuracy: f64) -> Measures {
    Measures {
        num_samples: 256,
        accuracy: Some(accuracy),
        accuracy_stderr: None,
        mean_reward: Some(accuracy),
        letter_share: Some(0.75),
        uppercase_share: None,
        e_share: Some(accuracy / 2.0),
        entropy_bits: Some(4.0 - accuracy),
        perplexity: Some(10.0 + accuracy),
    }
}

/// A run with an evaluation every 1,500 completions.
fn run(row: &str, seed: u64, accuracies: &[f64]) -> RunResult {
    let curve: Vec<Point> =
        accuracies.iter().enumerate().map(|(i, &accuracy)| Point { completions: 1500 * i as u64, accuracy }).collect();
    RunResult {
        row: row.into(),
        seed,
        version: "0.1.0".into(),
        recipe: "configs/x.toml".into(),
        commands: vec!["candlewick train configs/x.toml".into()],
        threads: 1,
        train_seconds: 90.0,
        steps: 10,
        completions: curve.last().unwrap().completions,
        start: measures(accuracies[0]),
        end: measures(*accuracies.last().unwrap()),
        curve,
    }
}

fn some_results() -> Vec<RunResult> {
    vec![
        run("addition-grpo", 1, &[0.25, 0.5, 0.75, 1.0]),
        run("addition-grpo", 2, &[0.25, 0.25, 0.5, 0.5]),
        run("addition-rloo", 1, &[0.25, 0.5]),
        run("letter-e", 1, &[0.125, 0.875]),
        run("shouting", 3, &[0.5, 1.0]),
    ]
}

#[test]
fn tables_of_some_results() {
    let all: Vec<String> = TABLES.iter().map(|name| table(name, &some_results())).collect();
    insta::assert_snapshot!(all.join("\n"));
    assert!(TABLES.iter().all(|name| table(name, &[]).is_empty()));
}

/// Markers are filled, and filled again to the same; a file that was changed or has gone is told with its line.
#[test]
fn a_text_agrees_or_the_difference_is_told() {
    let results = some_results();
    let text = "a\n\n<!-- results:addition -->\n<!-- end of results:addition -->\n\nb\n";
    let filled = fill(text, &results).unwrap();
    assert!(filled.contains("| rloo | 1 | 0.250 -> 0.500 | 1,500 | 1.5 |\n\n<!-- end"), "{filled}");
    assert_eq!(fill(&filled, &results).unwrap(), filled);
    assert_eq!(disagreement(&filled, &results), None);
    assert_eq!(disagreement("no markers\n", &results), None);

    let told = disagreement(&filled, &results[1..]).unwrap();
    assert!(told.ends_with("only in the text: | grpo | 1 | 0.250 -> 1.000 | 4,500 | 1.5 |"), "{told}");
    let told = disagreement(&filled.replace("0.500", "0.900"), &results).unwrap();
    assert!(told.contains("only in the text: | grpo | 2 | 0.250 -> 0.900"), "{told}");
    assert!(told.contains("only in the results: | grpo | 2 | 0.250 -> 0.500"), "{told}");
    assert!(disagreement("<!-- results:letter -->\n", &results).unwrap().contains("is missing"));
}

#[test]
fn results_are_read_in_the_order_of_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    for result in some_results().iter().rev() {
        let path = folder.path().join(format!("{}-{}.json", result.row, result.seed));
        fs::write(path, serde_json::to_string(result).unwrap()).unwrap();
    }
    assert_eq!(load(folder.path()).unwrap(), some_results());
    fs::write(folder.path().join("other-1.json"), serde_json::to_string(&some_results()[0]).unwrap()).unwrap();
    assert!(load(folder.path()).unwrap_err().to_string().contains("holds addition-grpo with seed 1"));
    assert_eq!(load(Path::new("no/such/folder")).unwrap(), []);
}

#[test]
fn the_parts_of_a_run_add_up() {
    let at = |times: &[f64]| times.iter().map(|time| json!({ "time": time })).collect::<Vec<_>>();
    assert!((train_seconds(&[100.0], &at(&[101.0, 130.0])) - 30.0).abs() < 1e-9);
    // Killed after 130, gone on at 500; a third part that made no step counts for nothing.
    let seconds = train_seconds(&[100.0, 500.0, 700.0], &at(&[101.0, 130.0, 520.0]));
    assert!((seconds - 50.0).abs() < 1e-9, "{seconds}");
}

#[test]
fn completions_follow_from_the_settings() {
    let config = |algorithm: &str| {
        json!({
            "algorithm": { "value": algorithm }, "prompts_per_step": { "value": 10 },
            "gradient_accumulation_steps": { "value": 2 }, "num_generations": { "value": 4 },
            "num_iterations": { "value": 3 },
        })
    };
    assert_eq!([0, 1, 3, 4].map(|step| completions_at(step, &config("grpo"))), [0, 80, 80, 160]);
    assert_eq!(completions_at(3, &config("remax")), 100);
}

/// The ends of the curve are the evaluations of the finished models; in between are those of metrics.jsonl.
#[test]
fn a_work_folder_becomes_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::create_dir_all(folder.path().join("run")).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    };
    for (name, line) in
        [("row", "addition-grpo"), ("seed", "3"), ("recipe", "x.toml"), ("version", "0.1"), ("threads", "1")]
    {
        write(name, &format!("{line}\n"));
    }
    write("commands", "one\ntwo\n");
    write("parts", "1000\n");
    let config =
        r#"{"prompts_per_step": {"value": 8}, "num_generations": {"value": 2}, "algorithm": {"value": "grpo"}}"#;
    write("config.json", config);
    let metrics = [
        r#"{"step": 0, "time": 1001.0, "eval_accuracy": 0.1}"#,
        r#"{"step": 1, "time": 1002.0}"#,
        r#"{"step": 2, "time": 1004.5, "eval_accuracy": 0.5}"#,
        r#"{"step": 3, "time": 1006.0}"#,
    ];
    write("run/metrics.jsonl", &metrics.join("\n"));
    let eval = json!({ "models": [
        { "accuracy": 0.125, "num_samples": 64, "text": { "given_share": 0.25 } },
        { "accuracy": 0.75, "num_samples": 64, "perplexity": 2.5, "text": {} },
    ] });
    write("eval.json", &eval.to_string());
    let result = record(folder.path()).unwrap();
    let curve: Vec<_> = result.curve.iter().map(|point| (point.completions, point.accuracy)).collect();
    assert_eq!(curve, [(0, 0.125), (32, 0.5), (48, 0.75)]);
    assert_eq!((result.seed, result.steps, result.completions), (3, 3, 48));
    assert_eq!((result.start.e_share, result.end.e_share, result.end.perplexity), (Some(0.25), None, Some(2.5)));
    assert!((result.train_seconds - 6.0).abs() < 1e-9);
    fs::remove_file(folder.path().join("parts")).unwrap();
    assert!(record(folder.path()).unwrap_err().to_string().contains("parts: "));
}
