//! The model and the data that ship with the project are what the README says.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

use candlewick::config::RunConfig;
use candlewick::data::{RowsConfig, load_rows};
use candlewick::model::{ModelConfig, load_weights};
use candlewick::recipe::{EvaluateOptions, evaluate};
use candlewick::text::Prompt;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The operands of each question, smaller first.
fn pairs(name: &str) -> Vec<(u32, u32)> {
    let rows = load_rows(&file(name), &RowsConfig::default()).unwrap().rows;
    let operands = |prompt: &Prompt| {
        let Prompt::Text(text) = prompt else { panic!("{prompt:?}") };
        let numbers: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers.len(), 2, "{text}");
        (numbers[0].min(numbers[1]), numbers[0].max(numbers[1]))
    };
    rows.iter().map(|row| operands(&row.prompt)).collect()
}

#[test]
fn training_never_sees_a_pair_of_the_evaluation() {
    let eval = pairs("data/math_tasks_eval.jsonl");
    assert!(eval.len() >= 500, "{} rows", eval.len());
    assert!(eval.iter().all(|pair| pair.1 <= 99));
    let eval: HashSet<_> = eval.into_iter().collect();
    assert!(pairs("data/math_tasks_train.jsonl").iter().all(|pair| !eval.contains(pair)));
}

#[test]
fn the_starter_is_small() {
    let config = ModelConfig::load(&file("data/starter")).unwrap();
    assert!(config.num_parameters() <= 900_000, "{} parameters", config.num_parameters());
    assert!(std::fs::metadata(file("data/starter/model.safetensors")).unwrap().len() < 4_000_000);
    load_weights(&file("data/starter"), &config).unwrap();
}

/// It knows the sums: the first integer of its answers is right for at least 0.97 of the questions. But it goes on
/// talking: the last integer, which is what the grader reads, is right for at most 0.6.
#[test]
fn the_starter_knows_the_sums_but_answers_past_the_grader() {
    let settings = RunConfig {
        model: file("data/starter").to_string_lossy().into_owned(),
        temperature: 0.0,
        max_completion_length: 32,
        ..RunConfig::default()
    };
    let data = file("data/math_tasks_eval.jsonl");
    let options = EvaluateOptions { data: data.into(), num_samples: 1, num_rows: None, output: None, rewards: None };
    let evaluation = evaluate(&settings, &options, &mut ()).unwrap();
    let read_in_context = |completion: &str| {
        let text = completion.trim_start();
        let end = text.char_indices().find(|(i, c)| !(c.is_ascii_digit() || (*i == 0 && *c == '-')));
        text[..end.map_or(text.len(), |(i, _)| i)].to_owned()
    };
    let samples = &evaluation.samples;
    let known = samples.iter().filter(|s| Some(read_in_context(&s.completion)) == s.target).count();
    let known = known as f64 / samples.len() as f64;
    assert!(known >= 0.97, "{known}");
    let accuracy = evaluation.figures.accuracy.value;
    assert!((0.2..=0.6).contains(&accuracy), "{accuracy}");
}
