//! Result files in the shape of lm-evaluation-harness (`result_schema.py`, `loggers/evaluation_tracker.py`):
//! `<output>/<model>/results_<time>.json` and one line a prompt in `<output>/<model>/samples_<task>_<time>.jsonl`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{EvalFigures, EvalSample};
use crate::data::Row;
use crate::io::{IoError, create_dirs, sha256_bytes, write_atomic};
use crate::text::Prompt;

/// What the harness's filters put where they find no answer.
const NOT_EXTRACTED: &str = "[invalid]";

/// What was evaluated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRun {
    /// Repository or folder of the model, as the user named it.
    pub model: String,
    /// Resolved commit of the model, where it came from the Hub.
    pub model_commit: Option<String>,
    /// Name of the task: the data file's, without its ending.
    pub task: String,
    /// The data file.
    pub data: PathBuf,
    /// SHA-256 of the data file.
    pub data_sha256: String,
    /// Rows in the data file.
    pub num_rows: usize,
    /// Rows evaluated at most, where that was limited.
    pub limit: Option<usize>,
    /// Completions a prompt.
    pub num_samples_per_prompt: usize,
    /// Name of the grading rule; it stands after the metric and a comma.
    pub filter: &'static str,
    /// Sampling settings by their names (`temperature`, `max_completion_length`, ...).
    pub generation_kwargs: Map<String, Value>,
    /// Seed of the sampling.
    pub seed: u64,
    /// Where the model ran: `cpu`.
    pub device: String,
    /// The chat template's text, where prompts went through one.
    pub chat_template: Option<String>,
    /// The system message put before conversations.
    pub system_prompt: Option<String>,
    /// When the evaluation began.
    pub started: jiff::Zoned,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// One line of the samples file.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(transparent)]
pub struct SampleRow(pub Value);

/// Where the files were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultPaths {
    /// The figures, `results_<time>.json`.
    pub results: PathBuf,
    /// The samples, `samples_<task>_<time>.jsonl`.
    pub samples: PathBuf,
}

/// The content of the results file.
#[must_use]
pub fn results_json(run: &EvalRun, figures: &EvalFigures) -> Value {
    let mut metrics = Map::new();
    metrics.insert("name".into(), json!(run.task));
    metrics.insert("alias".into(), json!(run.task));
    metrics.insert("sample_len".into(), json!(figures.num_prompts));
    let mut add = |name: &str, filter: &str, value: f64, stderr: Option<f64>| {
        metrics.insert(format!("{name},{filter}"), json!(value));
        // The schema knows numbers only: where there is no standard error, there is no member.
        if let Some(stderr) = stderr {
            metrics.insert(format!("{name}_stderr,{filter}"), json!(stderr));
        }
    };
    add("exact_match", run.filter, figures.accuracy.value, figures.accuracy.stderr);
    for (k, estimate) in &figures.pass_at_k {
        add(&format!("pass@{k}"), run.filter, estimate.value, estimate.stderr);
    }
    for (k, estimate) in &figures.pass_hat_k {
        add(&format!("pass^{k}"), run.filter, estimate.value, estimate.stderr);
    }
    if let Some(reward) = figures.mean_reward {
        add("mean_reward", "none", reward.value, reward.stderr);
    }
    for (name, value) in &figures.rewards {
        if let Some(value) = value {
            add(&format!("rewards/{name}"), "none", *value, None);
        }
    }
    add("mean_completion_tokens", "none", figures.mean_completion_tokens, None);
    add("clipped_ratio", "none", figures.clipped_ratio, None);

    let by_task = |value: Value| json!({ run.task.as_str(): value });
    let mut config = json!({
        "model": "candlewick",
        "model_args": format!("pretrained={}", run.model),
        "model_num_samples": figures.num_samples,
        "device": run.device,
        "limit": run.limit,
        "random_seed": run.seed,
        "gen_kwargs": run.generation_kwargs,
    });
    if let Some(commit) = &run.model_commit {
        config["model_sha"] = json!(commit);
    }
    json!({
        "results": by_task(Value::Object(metrics)),
        "group_subtasks": by_task(json!([])),
        "configs": by_task(json!({
            "task": run.task,
            "dataset_path": run.data,
            "dataset_sha256": run.data_sha256,
            "output_type": "generate_until",
            "num_fewshot": 0,
            "repeats": run.num_samples_per_prompt,
            "generation_kwargs": run.generation_kwargs,
            "filter_list": [{"name": run.filter}],
        })),
        "versions": by_task(json!(1)),
        "n-shot": by_task(json!(0)),
        "higher_is_better": by_task(json!({"exact_match": true, "mean_reward": true})),
        "n-samples": by_task(json!({"original": run.num_rows, "effective": figures.num_prompts})),
        "config": config,
        "date": run.started.timestamp().as_millisecond() as f64 / 1000.0,
        "candlewick_version": env!("CARGO_PKG_VERSION"),
        "system_instruction": run.system_prompt,
        "system_instruction_sha": run.system_prompt.as_deref().map(sha256),
        "chat_template": run.chat_template,
        "chat_template_sha": run.chat_template.as_deref().map(sha256),
        "model_source": "candlewick",
        "model_name": run.model,
        "model_name_sanitized": sanitized(&run.model),
        "total_evaluation_time_seconds": run.seconds.to_string(),
    })
}

/// The lines of the samples file: one a prompt, with all its completions. `rows` are rows of the data in its order;
/// samples of one prompt stand together.
#[must_use]
pub fn sample_rows(run: &EvalRun, rows: &[Row], samples: &[EvalSample]) -> Vec<SampleRow> {
    samples
        .chunk_by(|a, b| a.row_index == b.row_index)
        .map(|group| {
            let each = |value: fn(&EvalSample) -> Value| group.iter().map(value).collect::<Vec<Value>>();
            let row = rows.binary_search_by_key(&group[0].row_index, |row| row.index).ok().map(|at| &rows[at]);
            let doc = row.map_or(Value::Null, document);
            let num_correct = group.iter().filter(|sample| sample.is_correct).count();
            SampleRow(json!({
                "doc_id": group[0].row_index,
                "doc": doc,
                // The harness has texts here always.
                "target": group[0].target.as_deref().unwrap_or_default(),
                "arguments": {"gen_args_0": {"arg_0": group[0].prompt, "arg_1": run.generation_kwargs}},
                "resps": [each(|sample| json!(sample.completion))],
                "filtered_resps": each(|sample| json!(sample.extracted.as_deref().unwrap_or(NOT_EXTRACTED))),
                "filter": run.filter,
                "metrics": ["exact_match"],
                "exact_match": num_correct as f64 / group.len() as f64,
                "is_correct": each(|sample| json!(sample.is_correct)),
                "reward": each(|sample| json!(sample.reward)),
                "rewards": each(|sample| json!(sample.rewards)),
                "num_tokens": each(|sample| json!(sample.num_tokens)),
                "finish_reason": each(|sample| json!(sample.finish_reason.as_str())),
                "doc_hash": sha256(&doc.to_string()),
                "prompt_hash": sha256(&group[0].prompt),
                "target_hash": sha256(group[0].target.as_deref().unwrap_or_default()),
            }))
        })
        .collect()
}

/// A row as the data file has it: the prompt and all columns.
fn document(row: &Row) -> Value {
    let mut doc = Map::new();
    doc.insert(
        "prompt".into(),
        match &row.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Messages(messages) => json!(messages),
        },
    );
    for name in row.columns.names() {
        doc.insert(name.to_string(), row.columns.json(name).unwrap_or(Value::Null));
    }
    Value::Object(doc)
}

/// Writes both files below `output`, in the harness's places.
pub fn write_results(
    output: &Path,
    run: &EvalRun,
    figures: &EvalFigures,
    sample_rows: &[SampleRow],
) -> Result<ResultPaths, IoError> {
    let folder = output.join(sanitized(&run.model));
    create_dirs(&folder)?;
    let time = run.started.strftime("%Y-%m-%dT%H-%M-%S.%6f").to_string();
    let paths = ResultPaths {
        results: folder.join(format!("results_{time}.json")),
        samples: folder.join(format!("samples_{}_{time}.jsonl", sanitized(&run.task))),
    };
    write_atomic(&paths.samples, |file| sample_rows.iter().try_for_each(|SampleRow(row)| writeln!(file, "{row}")))?;
    let results = results_json(run, figures);
    write_atomic(&paths.results, |file| writeln!(file, "{results:#}"))?;
    Ok(paths)
}

/// A name that is a file name everywhere, as the harness makes it: `org/name` becomes `org__name`.
fn sanitized(name: &str) -> String {
    let mut clean = String::with_capacity(name.len());
    let mut in_run = false;
    for c in name.chars() {
        let is_special = matches!(c, '"' | '<' | '>' | ':' | '/' | '|' | '\\' | '?' | '*' | '[' | ']');
        if !is_special {
            clean.push(c);
        } else if !in_run {
            clean.push_str("__");
        }
        in_run = is_special;
    }
    // A folder given as `..` must not name its parent.
    if clean.chars().all(|c| c == '.') { "model".to_string() } else { clean }
}

fn sha256(text: &str) -> String {
    sha256_bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::super::{EvalFigures, compute_figures};
    use super::*;
    use crate::data::Columns;
    use crate::data::RowPlace;

    fn run() -> EvalRun {
        EvalRun {
            model: "org/name".into(),
            model_commit: None,
            task: "sums".into(),
            data: "data/sums.jsonl".into(),
            data_sha256: "00".into(),
            num_rows: 5,
            limit: Some(2),
            filter: "last-integer",
            num_samples_per_prompt: 2,
            generation_kwargs: Map::from_iter([("temperature".to_string(), json!(0.0))]),
            seed: 1,
            device: "cpu".into(),
            chat_template: Some("{{ x }}".into()),
            system_prompt: None,
            started: "2026-11-20T16:50:12.25+00:00[UTC]".parse().unwrap(),
            seconds: 1.5,
        }
    }

    fn evaluation() -> (Vec<EvalSample>, EvalFigures) {
        let samples: Vec<_> = [(0, true), (0, false), (1, true), (1, true)].map(|(row, ok)| sample(row, ok)).into();
        let figures = compute_figures(&samples, &["last_integer".to_string()]).unwrap();
        (samples, figures)
    }

    #[test]
    fn results_have_the_keys_of_the_harness() {
        let (_, figures) = evaluation();
        let results = results_json(&run(), &figures);
        assert_eq!(results["results"]["sums"]["exact_match,last-integer"], json!(0.75));
        assert_eq!(results["results"]["sums"]["exact_match_stderr,last-integer"], json!(0.25));
        assert_eq!(results["results"]["sums"]["pass@2,last-integer"], json!(1.0));
        assert_eq!(results["results"]["sums"]["pass^2,last-integer"], json!(0.5));
        assert!(results["results"]["sums"].get("clipped_ratio_stderr,none").is_none());
        assert_eq!(results["n-samples"]["sums"], json!({"original": 5, "effective": 2}));
        assert_eq!(results["date"], json!(1_795_193_412.25));
        assert_eq!(results["chat_template_sha"].as_str().unwrap().len(), 64);
        assert_eq!(results["system_instruction_sha"], Value::Null);
        // The schema has texts there or nothing.
        assert!(results["config"].get("model_sha").is_none());
    }

    #[test]
    fn files_stand_where_the_harness_puts_them() {
        let (samples, figures) = evaluation();
        let rows: Vec<Row> = (0..2)
            .map(|index| Row {
                index,
                place: RowPlace::line("sums.jsonl".as_ref(), index as usize + 1),
                prompt: Prompt::Text(format!("{index} + 1 =")),
                columns: Columns::from_iter([("answer", "1")]),
            })
            .collect();
        let output = tempfile::tempdir().unwrap();
        let lines = sample_rows(&run(), &rows, &samples);
        let paths = write_results(output.path(), &run(), &figures, &lines).unwrap();
        let folder = output.path().join("org__name");
        assert_eq!(paths.results, folder.join("results_2026-11-20T16-50-12.250000.json"));
        assert_eq!(paths.samples, folder.join("samples_sums_2026-11-20T16-50-12.250000.jsonl"));
        let written = std::fs::read_to_string(&paths.samples).unwrap();
        let first: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
        assert_eq!(written.lines().count(), 2);
        assert_eq!(first["doc"], json!({"prompt": "0 + 1 =", "answer": "1"}));
        assert_eq!(first["resps"], json!([["right", "wrong"]]));
        assert_eq!(first["filtered_resps"], json!(["1", "[invalid]"]));
        assert_eq!(first["exact_match"], json!(0.5));
        assert_eq!(first["finish_reason"], json!(["stop", "length"]));
    }

    #[test]
    fn names_become_file_names() {
        assert_eq!(sanitized("a/b//c:d"), "a__b__c__d");
        assert_eq!(sanitized(".."), "model");
    }
}
