//! Reads what a run left in its folder. A run that still goes, or was killed, is as good as one that finished.

use super::ReportError;
use crate::io::{IoError, read_text};
use crate::reward::extract_last_integer;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Runs that a hint names at most.
const HINTED_RUNS: usize = 8;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The last step in the log.
    pub step: u64,
    /// Steps that the run was to make, where that is known.
    pub max_steps: Option<u64>,
    pub is_running: bool,
    /// Whether the final model is there.
    pub is_finished: bool,
}

impl Status {
    /// As a person says it.
    #[must_use]
    pub fn words(&self) -> String {
        let Self { step, max_steps, is_running, is_finished } = *self;
        let of = max_steps.map_or_else(String::new, |steps| format!(" of {steps}"));
        match (is_finished, is_running) {
            (true, _) => "finished".to_owned(),
            (false, true) => format!("running: step {step}{of}"),
            (false, false) => format!("stopped after step {step}{of}"),
        }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    pub step: u64,
    /// Unix seconds.
    pub time: Option<f64>,
    /// By the index of the name in [`Run::names`]; a metric that the line lacks, or has as null, is none.
    pub values: Vec<Option<f64>>,
}

/// What the distributions need of a completion, and how large it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub step: u64,
    pub reward: Option<f64>,
    /// The integer that the completion ends in, or all of it where the run's grader compares texts.
    pub answer: Option<String>,
    /// Bytes of its line.
    pub bytes: usize,
}

/// What was read of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub label: String,
    pub folder: PathBuf,
    pub status: Status,
    /// Metrics in the order of the log.
    pub names: Vec<String>,
    /// By step.
    pub rows: Vec<MetricRow>,
    /// In the order of the file.
    pub completions: Vec<Scored>,
    /// The settings by dotted key, as TOML; none where the run left none.
    pub config: Option<Map<String, Value>>,
    /// What could not be read, as sentences.
    pub problems: Vec<String>,
}

impl Run {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// Fails where there is no `metrics.jsonl` with at least one good line; what else is missing or damaged is told in
    /// [`Run::problems`].
    pub fn read(folder: &Path, label: &str) -> Result<Self, ReportError> {
        let log = folder.join("metrics.jsonl");
        if !log.is_file() {
            let below = runs_below(folder);
            return Err(ReportError::NotARun { path: folder.to_owned(), exists: folder.exists(), below });
        }
        let mut problems = Vec::new();
        let (mut names, mut rows) = read_metrics(&log, &mut problems)?;
        if let Some(results) = read_json(&folder.join("all_results.json"), &mut problems) {
            add_results(&results, &mut names, &mut rows);
        }
        let config = read_config(folder, &mut problems);
        let is_text = config.as_ref().and_then(|config| config.get("eval_grader")) == Some(&"\"exact_match\"".into());
        let completions = read_scored(&folder.join("completions.jsonl"), is_text, &mut problems)?;
        let step = rows.last().map_or(0, |row| row.step);
        let manifest = read_json(&folder.join("MANIFEST.json"), &mut problems);
        let published = manifest.as_ref().and_then(|manifest| manifest.get("step")).and_then(Value::as_u64);
        let is_running = is_held(folder);
        let status = Status {
            step,
            max_steps: max_steps(folder, config.as_ref()),
            is_running,
            is_finished: !is_running && published == Some(step),
        };
        let (label, folder) = (label.to_owned(), folder.to_owned());
        Ok(Self { label, folder, status, names, rows, completions, config, problems })
    }

    /// The file with the texts.
    pub(super) fn completions_file(&self) -> PathBuf {
        self.folder.join("completions.jsonl")
    }
}

/// Folders in `folder` that are runs.
fn runs_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut runs: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.join("metrics.jsonl").is_file()).collect();
    runs.sort();
    runs.truncate(HINTED_RUNS);
    runs
}

/// Calls `take` with each line that is a JSON object and its number of bytes. A last line without an end is one that
/// is being written. Returns how many lines there were, and the first that could not be read.
pub(super) fn each_line(
    path: &Path,
    mut take: impl FnMut(Map<String, Value>, usize) -> Result<(), String>,
) -> Result<Lines, IoError> {
    let mut reader = BufReader::new(File::open(path).map_err(IoError::of("open", path))?);
    let (mut bytes, mut found) = (Vec::new(), Lines::default());
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(IoError::of("read", path))? == 0 {
            return Ok(found);
        }
        found.total += 1;
        let line = bytes.strip_suffix(b"\n");
        let parsed = serde_json::from_slice(line.unwrap_or(&bytes)).map_err(|error| error.to_string());
        match parsed.and_then(|object| take(object, bytes.len())) {
            Ok(()) => {}
            Err(_) if line.is_none() => found.is_cut = true,
            Err(problem) => {
                found.num_bad += 1;
                found.first_bad.get_or_insert((found.total, problem));
            }
        }
    }
}

/// How the lines of a file were.
#[derive(Debug, Default)]
pub(super) struct Lines {
    total: usize,
    num_bad: usize,
    first_bad: Option<(usize, String)>,
    is_cut: bool,
}

impl Lines {
    fn describe(&self, file: &str, problems: &mut Vec<String>) {
        if let Some((line, problem)) = &self.first_bad {
            let (n, s) = (self.num_bad, if self.num_bad == 1 { "" } else { "s" });
            problems
                .push(format!("{file}: {n} line{s} of {} left out; the first is line {line}: {problem}", self.total));
        }
        if self.is_cut {
            problems.push(format!("{file}: the last line is cut and left out (the run is writing it, or was killed)"));
        }
    }
}

fn step_of(object: &Map<String, Value>) -> Result<u64, String> {
    object.get("step").and_then(Value::as_u64).ok_or_else(|| "it has no `step`".to_owned())
}

fn read_metrics(path: &Path, problems: &mut Vec<String>) -> Result<(Vec<String>, Vec<MetricRow>), ReportError> {
    let mut names: Vec<String> = Vec::new();
    let mut rows: Vec<MetricRow> = Vec::new();
    let lines = each_line(path, |object, _| {
        let mut row = MetricRow { step: step_of(&object)?, time: None, values: vec![None; names.len()] };
        for (name, value) in object {
            match name.as_str() {
                "step" => {}
                "time" => row.time = value.as_f64(),
                _ => {
                    let index = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                        names.push(name);
                        row.values.push(None);
                        names.len() - 1
                    });
                    row.values[index] = value.as_f64();
                }
            }
        }
        rows.push(row);
        Ok(())
    })?;
    lines.describe("metrics.jsonl", problems);
    if rows.is_empty() {
        return Err(match lines.first_bad {
            Some((line, problem)) => {
                ReportError::Unreadable { path: path.to_owned(), line, num_lines: lines.total, problem }
            }
            None => ReportError::Empty { path: path.to_owned() },
        });
    }
    for row in &mut rows {
        row.values.resize(names.len(), None);
    }
    rows.sort_by_key(|row| row.step);
    Ok((names, rows))
}

/// Adds what the final model was evaluated to, which has no line of its own, to the row of its step.
fn add_results(results: &Value, names: &mut Vec<String>, rows: &mut [MetricRow]) {
    let step = results.get("step").and_then(Value::as_u64);
    let Some(at) = rows.iter().rposition(|row| Some(row.step) == step) else { return };
    let found = results.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("eval_"));
    for (name, value) in found {
        let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.clone());
            for row in rows.iter_mut() {
                row.values.push(None);
            }
            names.len() - 1
        });
        let own = &mut rows[at].values[index];
        *own = own.or_else(|| value.as_f64());
    }
}

fn read_scored(path: &Path, is_text: bool, problems: &mut Vec<String>) -> Result<Vec<Scored>, ReportError> {
    let mut scored = Vec::new();
    if !path.is_file() {
        return Ok(scored);
    }
    let lines = each_line(path, |object, bytes| {
        let completion = object.get("completion").and_then(Value::as_str).ok_or("it has no `completion`")?;
        let answer = if is_text { Some(completion.trim().to_owned()) } else { extract_last_integer(completion) };
        let reward = object.get("reward").and_then(Value::as_f64);
        scored.push(Scored { step: step_of(&object)?, reward, answer, bytes });
        Ok(())
    })?;
    lines.describe("completions.jsonl", problems);
    Ok(scored)
}

/// The settings: those of the last start, else those of the newest checkpoint.
fn read_config(folder: &Path, problems: &mut Vec<String>) -> Option<Map<String, Value>> {
    let checkpoint = newest_checkpoint(folder).map(|checkpoint| checkpoint.join("run_config.toml"));
    let path = [Some(folder.join("run_config.toml")), checkpoint].into_iter().flatten().find(|path| path.is_file())?;
    let table = read_text(&path).map_err(|error| error.to_string());
    match table.and_then(|text| text.parse::<toml::Table>().map_err(|error| error.message().to_owned())) {
        Ok(table) => {
            let mut flat = Map::new();
            flatten("", &toml::Value::Table(table), &mut flat);
            Some(flat)
        }
        Err(problem) => {
            problems.push(format!("run_config.toml cannot be read: {problem}"));
            None
        }
    }
}

fn flatten(prefix: &str, value: &toml::Value, flat: &mut Map<String, Value>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, flat);
            }
        }
        other => {
            flat.insert(prefix.to_owned(), other.to_string().into());
        }
    }
}

/// The checkpoint with the highest step.
fn newest_checkpoint(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let step_of = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let steps = entries.filter_map(|entry| Some((step_of(&entry.path())?, entry.path())));
    steps.max_by_key(|(step, _)| *step).map(|(_, path)| path)
}

/// As the settings say, else as the newest checkpoint does.
fn max_steps(folder: &Path, config: Option<&Map<String, Value>>) -> Option<u64> {
    let set = config.and_then(|config| config.get("max_steps")?.as_str()?.parse().ok());
    set.or_else(|| {
        let state = fs::read(newest_checkpoint(folder)?.join("trainer_state.json")).ok()?;
        serde_json::from_slice::<Value>(&state).ok()?.get("max_steps")?.as_u64()
    })
}

fn read_json(path: &Path, problems: &mut Vec<String>) -> Option<Value> {
    let bytes = fs::read(path).ok()?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map_err(|error| problems.push(format!("{} cannot be read: {error}", path.display()))).ok()
}

/// Whether the process that wrote its number into the lock file has it open. The lock itself is not touched: a run that
/// starts at this moment must find it free.
fn is_held(folder: &Path) -> bool {
    let lock = folder.join(".lock");
    let (Ok(text), Ok(lock)) = (fs::read_to_string(&lock), lock.canonicalize()) else { return false };
    let Some(process) = text.split_whitespace().nth(1).and_then(|word| word.parse::<u32>().ok()) else { return false };
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files.filter_map(Result::ok).any(|file| fs::read_link(file.path()).is_ok_and(|target| target == lock))
}
