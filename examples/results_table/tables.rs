//! The results of runs as Markdown tables: what `results/*.json` hold, and how the README shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One run: a row of the tables with one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// What was run: `addition-grpo`, say.
    pub row: String,
    /// The seed of the run.
    pub seed: u64,
    /// The version of the program, and the commit where there is one.
    pub version: String,
    /// The configuration file of the run.
    pub recipe: String,
    /// What was typed, in order.
    pub commands: Vec<String>,
    /// CPU threads.
    pub threads: u64,
    /// Wall time of training with its evaluations, the parts of an interrupted run added up.
    pub train_seconds: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Completions sampled in training.
    pub completions: u64,
    /// The model that the run started from.
    pub start: Measures,
    /// The model that the run left.
    pub end: Measures,
    /// The evaluations along the way, the first and the last by the measures above.
    pub curve: Vec<Point>,
}

/// What a model is measured by after a run. Missing where it was not measured or is a share of nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Completions that were measured.
    pub num_samples: u64,
    /// Share of right completions.
    pub accuracy: Option<f64>,
    /// Its standard error.
    pub accuracy_stderr: Option<f64>,
    /// Mean of the run's reward.
    pub mean_reward: Option<f64>,
    /// Letters among the characters.
    pub letter_share: Option<f64>,
    /// Uppercase letters among the letters.
    pub uppercase_share: Option<f64>,
    /// The letter e among the characters.
    pub e_share: Option<f64>,
    /// Entropy of the distribution of the characters, in bits.
    pub entropy_bits: Option<f64>,
    /// Perplexity on the validation text.
    pub perplexity: Option<f64>,
}

/// An evaluation in the course of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Completions sampled up to it.
    pub completions: u64,
    /// Share of right completions.
    pub accuracy: f64,
}

/// The tables by the names of their markers.
pub const TABLES: [&str; 4] = ["addition", "curve", "letter", "shouting"];

/// Rows in the order of the tables; others follow by name.
pub const ROWS: [&str; 9] = [
    "addition-grpo",
    "addition-grpo-clipped",
    "addition-rloo",
    "addition-remax",
    "addition-raft",
    "addition-dpo",
    "letter-e",
    "letter-e-beta025",
    "shouting",
];

/// Reads `*.json` of a folder; none where it does not exist.
pub fn load(folder: &Path) -> Result<Vec<RunResult>, Box<dyn Error>> {
    let mut results = Vec::new();
    if !folder.is_dir() {
        return Ok(results);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let result: RunResult = serde_json::from_str(&fs::read_to_string(&path)?)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            if path.file_stem().is_some_and(|name| *name != *format!("{}-{}", result.row, result.seed)) {
                return Err(format!("{} holds {} with seed {}", path.display(), result.row, result.seed).into());
            }
            results.push(result);
        }
    }
    let rank = |row: &str| ROWS.iter().position(|known| *known == row).unwrap_or(ROWS.len());
    results.sort_by(|a, b| (rank(&a.row), &a.row, a.seed).cmp(&(rank(&b.row), &b.row, b.seed)));
    Ok(results)
}

/// The table `name`, with a newline at the end of each line; empty where there is no result for it.
#[must_use]
pub fn table(name: &str, results: &[RunResult]) -> String {
    let of = |family: &str| results.iter().filter(|result| result.row.starts_with(family)).collect::<Vec<_>>();
    match name {
        "addition" => addition(&of("addition-")),
        "curve" => curve(&of("addition-")),
        "letter" => letter(&of("letter-")),
        "shouting" => shouting(&of("shouting")),
        _ => String::new(),
    }
}

fn addition(results: &[&RunResult]) -> String {
    let lines = results.iter().map(|result| {
        let accuracy = change(result, |measures| measures.accuracy, 3);
        vec![short(&result.row), result.seed.to_string(), accuracy, count(result.completions), minutes(result)]
    });
    markdown(&["algorithm", "seed", "accuracy before -> after", "completions", "minutes"], lines)
}

fn letter(results: &[&RunResult]) -> String {
    let lines = results.iter().map(|result| {
        vec![
            result.row.clone(),
            result.seed.to_string(),
            change(result, |measures| measures.e_share, 3),
            change(result, |measures| measures.entropy_bits, 2),
            change(result, |measures| measures.perplexity, 2),
            count(result.completions),
            minutes(result),
        ]
    });
    let heads = ["run", "seed", "share of \"e\"", "entropy, bits", "perplexity", "completions", "minutes"];
    markdown(&heads, lines)
}

fn shouting(results: &[&RunResult]) -> String {
    let lines = results.iter().map(|result| {
        vec![
            result.seed.to_string(),
            change(result, |measures| measures.uppercase_share, 3),
            change(result, |measures| measures.letter_share, 3),
            change(result, |measures| measures.entropy_bits, 2),
            change(result, |measures| measures.perplexity, 2),
            count(result.completions),
            minutes(result),
        ]
    });
    let heads =
        ["seed", "uppercase of letters", "letters of text", "entropy, bits", "perplexity", "completions", "minutes"];
    markdown(&heads, lines)
}

/// Accuracy after so many completions, the mean over the seeds: a column an algorithm. Each value is that of the last
/// evaluation up to there; it is missing where there was none since the line above, and so is a line without a value.
fn curve(results: &[&RunResult]) -> String {
    let mut by_row: BTreeMap<usize, Vec<&RunResult>> = BTreeMap::new();
    for result in results {
        let first = results.iter().position(|other| other.row == result.row).unwrap_or(0);
        by_row.entry(first).or_default().push(result);
    }
    let budgets = budgets(results);
    let mut heads = vec!["completions".to_owned()];
    heads.extend(by_row.values().map(|runs| short(&runs[0].row)));
    let lines = budgets.iter().enumerate().filter_map(|(i, &budget)| {
        let before = i.checked_sub(1).map(|i| budgets[i]);
        let mut cells = vec![count(budget)];
        cells.extend(by_row.values().map(|runs| {
            let values: Vec<f64> = runs.iter().filter_map(|run| value_at(run, before, budget)).collect();
            // A mean over some of the seeds would not be one over the seeds.
            if values.len() == runs.len() {
                format!("{:.3}", values.iter().sum::<f64>() / values.len() as f64)
            } else {
                "-".to_owned()
            }
        }));
        cells[1..].iter().any(|cell| cell != "-").then_some(cells)
    });
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    markdown(&heads, lines)
}

/// 0, then 1,000 doubled again and again, last the length of the longest run.
fn budgets(results: &[&RunResult]) -> Vec<u64> {
    let longest = results.iter().flat_map(|result| &result.curve).map(|point| point.completions).max();
    let Some(longest) = longest else { return Vec::new() };
    let mut budgets = vec![0];
    let mut budget = 1000;
    while budget < longest {
        budgets.push(budget);
        budget *= 2;
    }
    if longest > 0 {
        budgets.push(longest);
    }
    budgets
}

fn value_at(run: &RunResult, before: Option<u64>, budget: u64) -> Option<f64> {
    let is_in = |point: &&Point| point.completions <= budget && before.is_none_or(|before| point.completions > before);
    run.curve.iter().filter(is_in).max_by_key(|point| point.completions).map(|point| point.accuracy)
}

fn markdown(heads: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = String::new();
    for cells in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    if text.is_empty() {
        return text;
    }
    format!("| {} |\n|{}\n{text}", heads.join(" | "), "---|".repeat(heads.len()))
}

fn change(result: &RunResult, value: impl Fn(&Measures) -> Option<f64>, digits: usize) -> String {
    let shown =
        |measures: &Measures| value(measures).map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    format!("{} -> {}", shown(&result.start), shown(&result.end))
}

fn short(row: &str) -> String {
    row.strip_prefix("addition-").unwrap_or(row).to_owned()
}

fn minutes(result: &RunResult) -> String {
    format!("{:.1}", result.train_seconds / 60.0)
}

/// A whole number with commas between its thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

/// A text with the tables between their markers, `<!-- results:NAME -->` and `<!-- end of results:NAME -->`, made anew.
/// A table without markers is left out.
pub fn fill(text: &str, results: &[RunResult]) -> Result<String, String> {
    let mut text = text.to_owned();
    for name in TABLES {
        let (start, end) = (format!("<!-- results:{name} -->\n"), format!("<!-- end of results:{name} -->"));
        let Some(at) = text.find(&start) else { continue };
        let from = at + start.len();
        let length = text[from..].find(&end).ok_or_else(|| format!("the marker `{end}` is missing"))?;
        let table = table(name, results);
        text.replace_range(from..from + length, &format!("\n{table}{}", if table.is_empty() { "" } else { "\n" }));
    }
    Ok(text)
}

/// Why a text does not show the results: what it names and `results` lack, else the line that differs. None where the
/// two agree.
#[must_use]
pub fn disagreement(text: &str, results: &[RunResult]) -> Option<String> {
    let filled = match fill(text, results) {
        Ok(filled) if filled == text => return None,
        Ok(filled) => filled,
        Err(error) => return Some(error),
    };
    let (shown, made): (BTreeSet<&str>, BTreeSet<&str>) = (text.lines().collect(), filled.lines().collect());
    let mut message = String::from("the tables are not those of the results;");
    for (lines, what) in
        [(shown.difference(&made), "only in the text"), (made.difference(&shown), "only in the results")]
    {
        for line in lines {
            let _ = write!(message, "\n{what}: {line}");
        }
    }
    Some(message)
}
