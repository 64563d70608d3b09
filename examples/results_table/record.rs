//! The result of a run, from the files of its work folder.

use super::tables::{Measures, Point, RunResult};
use serde_json::Value;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Puts the files of a work folder together.
pub fn record(folder: &Path) -> Result<RunResult, Box<dyn Error>> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let line = |name: &str| read(name).map(|text| text.trim().to_owned());
    let lines = |name: &str| read(name).map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let config: Value = serde_json::from_str(&read("config.json")?)?;
    let metrics: Vec<Value> =
        lines("run/metrics.jsonl")?.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    let parts: Vec<f64> = lines("parts")?.iter().map(|line| line.parse()).collect::<Result<_, _>>()?;
    let evaluated: Value = serde_json::from_str(&read("eval.json")?)?;
    let (start, end) = (measures(&evaluated["models"][0]), measures(&evaluated["models"][1]));

    let steps = metrics.iter().filter_map(|row| row["step"].as_u64()).max().unwrap_or(0);
    let completions = completions_at(steps, &config);
    let mut curve: Vec<Point> = metrics
        .iter()
        .filter_map(|row| Some((row["step"].as_u64()?, row["eval_accuracy"].as_f64()?)))
        .filter(|(step, _)| (1..steps).contains(step))
        .map(|(step, accuracy)| Point { completions: completions_at(step, &config), accuracy })
        .collect();
    // The ends are measured on all rows, the evaluations of a run perhaps on some.
    curve.splice(0..0, start.accuracy.map(|accuracy| Point { completions: 0, accuracy }));
    curve.extend(end.accuracy.map(|accuracy| Point { completions, accuracy }));
    Ok(RunResult {
        row: line("row")?,
        seed: line("seed")?.parse()?,
        version: line("version")?,
        recipe: line("recipe")?,
        commands: lines("commands")?,
        threads: line("threads")?.parse()?,
        train_seconds: train_seconds(&parts, &metrics),
        steps,
        completions,
        start,
        end,
        curve,
    })
}

fn measures(model: &Value) -> Measures {
    let text = &model["text"];
    Measures {
        num_samples: model["num_samples"].as_u64().unwrap_or(0),
        accuracy: model["accuracy"].as_f64(),
        accuracy_stderr: model["accuracy_stderr"].as_f64(),
        mean_reward: model["mean_reward"].as_f64(),
        letter_share: text["letter_share"].as_f64(),
        uppercase_share: text["uppercase_share"].as_f64(),
        e_share: text["given_share"].as_f64(),
        entropy_bits: text["entropy_bits"].as_f64(),
        perplexity: model["perplexity"].as_f64(),
    }
}

/// Completions that a run has sampled after `step` optimizer steps, by its settings (`config show --json`). Kept rollouts
/// are counted once; `remax` samples a greedy completion beside those of each prompt.
pub fn completions_at(step: u64, config: &Value) -> u64 {
    let number = |key: &str| config[key]["value"].as_u64().unwrap_or(1);
    let prompts = number("prompts_per_step") * number("gradient_accumulation_steps");
    let is_remax = config["algorithm"]["value"] == "remax";
    let completions = number("num_generations") + u64::from(is_remax);
    step.div_ceil(number("num_iterations").max(1)) * prompts * completions
}

/// Seconds from the start of each part of a run to its last step that counts: metrics.jsonl is cut on resume to the
/// steps that the run goes on from, so what a kill undid is left out.
pub fn train_seconds(parts: &[f64], metrics: &[Value]) -> f64 {
    let times: Vec<f64> = metrics.iter().filter_map(|row| row["time"].as_f64()).collect();
    let seconds_of = |(i, start): (usize, &f64)| {
        let end = parts.get(i + 1).copied().unwrap_or(f64::INFINITY);
        let in_part = times.iter().copied().filter(|time| (*start..end).contains(time));
        in_part.fold(0.0, |longest: f64, time| longest.max(time - start))
    };
    parts.iter().enumerate().map(seconds_of).sum()
}
