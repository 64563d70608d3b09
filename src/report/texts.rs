//! The completions that can be browsed on the page: all of them, or those of steps evenly over the run.

use super::run::{Run, each_line};
use crate::io::IoError;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bytes of the completions of all runs together.
const MAX_BYTES: usize = 600_000;
/// Characters of a prompt or a completion that are shown.
const MAX_CHARS: usize = 4000;

/// For each run the rows, with prompts and names of rewards written once, and how much is left out.
pub(super) fn texts(runs: &[Run]) -> Result<Vec<Value>, IoError> {
    let num_with_texts = runs.iter().filter(|run| !run.completions.is_empty()).count();
    let max_bytes = MAX_BYTES / num_with_texts.max(1);
    runs.iter().map(|run| of_run(run, max_bytes)).collect()
}

fn of_run(run: &Run, max_bytes: usize) -> Result<Value, IoError> {
    let mut texts = Texts { max_bytes, ..Texts::default() };
    if !run.completions.is_empty() {
        let steps = chosen_steps(run, max_bytes);
        each_line(&run.completions_file(), |object, _| {
            texts.add(&object, &steps);
            Ok(())
        })?;
    }
    Ok(json!({
        "prompts": texts.prompts,
        "parts": texts.parts,
        "rows": texts.rows,
        "total": run.completions.len(),
        "num_cut": texts.num_cut,
    }))
}

/// Steps evenly over the run, the first and the last among them, whose completions fit.
fn chosen_steps(run: &Run, max_bytes: usize) -> BTreeSet<u64> {
    let mut bytes: BTreeMap<u64, usize> = BTreeMap::new();
    for scored in &run.completions {
        // What is cut does not count; four bytes a character at most.
        *bytes.entry(scored.step).or_default() += scored.bytes.min(4 * MAX_CHARS);
    }
    let total: usize = bytes.values().sum();
    let steps: Vec<u64> = bytes.into_keys().collect();
    if total <= max_bytes {
        return steps.into_iter().collect();
    }
    let num_chosen = (steps.len() * max_bytes / total).max(2);
    (0..num_chosen).map(|i| steps[i * (steps.len() - 1) / (num_chosen - 1)]).collect()
}

/// What is gathered while the lines are read.
#[derive(Default)]
struct Texts {
    max_bytes: usize,
    bytes: usize,
    prompts: Vec<String>,
    index_of: HashMap<String, usize>,
    /// Names of the rewards.
    parts: Vec<String>,
    rows: Vec<Value>,
    /// Rows with a text that was cut.
    num_cut: usize,
}

impl Texts {
    fn add(&mut self, object: &Map<String, Value>, steps: &BTreeSet<u64>) {
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let value = |name: &str| object.get(name).cloned().unwrap_or_default();
        let Some(step) = object.get("step").and_then(Value::as_u64).filter(|step| steps.contains(step)) else { return };
        let (prompt, is_long_prompt) = cut(text("prompt"));
        let (completion, is_long) = cut(text("completion"));
        let scores = object.get("rewards").and_then(Value::as_object);
        for name in scores.into_iter().flat_map(Map::keys) {
            if !self.parts.contains(name) {
                self.parts.push(name.clone());
            }
        }
        let score = |name: &String| scores.and_then(|scores| scores.get(name)).cloned().unwrap_or_default();
        let scores: Vec<Value> = self.parts.iter().map(score).collect();
        let known = self.index_of.get(&prompt).copied();
        let row = json!([
            step,
            known.unwrap_or(self.prompts.len()),
            completion,
            value("reward"),
            value("advantage"),
            value("finish_reason"),
            scores,
        ]);
        // The steps are chosen by their mean size; one of them may be much larger.
        let bytes = row.to_string().len() + if known.is_none() { prompt.len() } else { 0 };
        if self.bytes + bytes > self.max_bytes {
            return;
        }
        self.bytes += bytes;
        if known.is_none() {
            self.index_of.insert(prompt.clone(), self.prompts.len());
            self.prompts.push(prompt);
        }
        self.num_cut += usize::from(is_long || is_long_prompt);
        self.rows.push(row);
    }
}

/// The first [`MAX_CHARS`] characters, with a word on what is missing, and whether anything is.
fn cut(text: &str) -> (String, bool) {
    match text.char_indices().nth(MAX_CHARS) {
        None => (text.to_owned(), false),
        Some((end, _)) => (format!("{} […]", &text[..end]), true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::folder_of;
    use super::*;

    fn line(step: u64, prompt: &str, completion: &str) -> String {
        let scores = json!({"exact": 0.5});
        json!({
            "step": step, "prompt": prompt, "completion": completion, "rewards": scores, "reward": 0.5,
            "advantage": null, "finish_reason": "stop",
        })
        .to_string()
            + "\n"
    }

    #[test]
    fn few_completions_are_all_there() {
        let lines = line(1, "a", "1") + &line(1, "a", "</script>") + &line(2, "b", "x");
        let folder = folder_of("{\"step\":1}\n", &lines);
        let found = of_run(&Run::read(folder.path(), "run").unwrap(), 10_000).unwrap();
        assert_eq!(found["prompts"], json!(["a", "b"]));
        assert_eq!(found["rows"][1], json!([1, 0, "</script>", 0.5, null, "stop", [0.5]]));
        assert_eq!((&found["total"], &found["num_cut"]), (&json!(3), &json!(0)));
    }

    #[test]
    fn of_many_those_of_even_steps_stay_and_long_ones_are_cut() {
        let long = "é".repeat(MAX_CHARS + 1);
        let lines: String = (1..=200).map(|step| line(step, "p", "some words")).collect();
        let folder = folder_of("{\"step\":1}\n", &(lines + &line(200, "p", &long)));
        let run = Run::read(folder.path(), "run").unwrap();
        let found = of_run(&run, 12_000).unwrap();
        let steps: Vec<u64> = found["rows"].as_array().unwrap().iter().map(|row| row[0].as_u64().unwrap()).collect();
        assert!(steps.len() > 20 && steps.len() < 200, "{}", steps.len());
        assert_eq!((steps[0], *steps.last().unwrap()), (1, 200));
        assert!(found["rows"].to_string().len() < 13_000);
        let all = of_run(&run, 1_000_000).unwrap();
        assert_eq!(all["num_cut"], 1);
        assert!(all["rows"][200][2].as_str().unwrap().ends_with("é […]"));
    }
}
