//! Learning a text from nothing: it learns, it resumes to the bit, its folder is a model as any other, and what cannot
//! be learned is refused with the place.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

#[path = "support/tiny_run.rs"]
mod tiny_run;

use candlewick::config::{Algorithm, ArchitectureConfig, ModelType, RunConfig, TokenizerKind};
use candlewick::error::{Diagnose, Exit};
use candlewick::recipe::{
    GenerateOptions, PerplexityOptions, RecipeError, TrainOptions, generate, load_model, perplexity, plan, train,
};
use candlewick::telemetry::Summary;
use std::fs;
use std::path::{Path, PathBuf};
use tiny_run::{assert_same_run, timeless_metrics};

/// Sentences of three words, in lower and upper case.
fn text() -> String {
    let (names, verbs, things) = (["Ann", "Ben", "Cid"], ["sees", "has", "wants"], ["a cat", "a hat", "TWO NUTS"]);
    let sentence = |i: usize| format!("{} {} {}.\n", names[i % 3], verbs[i / 3 % 3], things[i * 7 / 5 % 3]);
    (0..150).map(sentence).collect()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write("text.txt", text());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// 30 steps of a model of 2 layers, 32 wide.
    fn settings(&self, output: &str) -> RunConfig {
        RunConfig {
            algorithm: Algorithm::Pretrain,
            train_file: self.name("text.txt"),
            output_dir: self.path(output),
            architecture: Some(architecture()),
            block_size: 32,
            prompts_per_step: 8,
            learning_rate: Some(1e-2),
            max_steps: Some(30),
            eval_steps: 10,
            save_steps: 10,
            save_total_limit: 0,
            max_completion_length: 20,
            logging_steps: 100,
            ..RunConfig::default()
        }
    }
}

fn architecture() -> ArchitectureConfig {
    ArchitectureConfig {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 32,
        tokenizer: Some(TokenizerKind::Char),
        ..ArchitectureConfig::default()
    }
}

fn finish(settings: &RunConfig) -> Summary {
    train(settings, TrainOptions::default()).unwrap_or_else(|error| panic!("{error}")).summary
}

fn refused(settings: &RunConfig) -> RecipeError {
    let planned = plan(settings).map(|_| ()).unwrap_err();
    let error = train(settings, TrainOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!(planned.to_string(), error.to_string(), "the plan finds what the run would");
    assert!(error.hint().is_some(), "{error}");
    error
}

/// From as unsure as between all characters to a few; the text that was kept back is predicted too.
#[test]
fn a_text_is_learned_from_nothing() {
    let place = Place::new();
    let settings = place.settings("out");
    let summary = finish(&settings);
    let (before, after) = (summary.before.unwrap(), summary.after.unwrap());
    let (first, last) = (before.perplexity().unwrap(), after.perplexity().unwrap());
    let num_tokens = load_model(&place.name("out"), None, true, None).unwrap().tokenizer.vocab_size() as f64;
    assert!((first / num_tokens - 1.0).abs() < 0.2, "{first} of {num_tokens} tokens");
    assert!(last < 5.0, "{first} -> {last}");
    assert!(summary.render().contains("perplexity"), "{}", summary.render());

    let rows = timeless_metrics(&place.path("out"));
    let evaluated: Vec<u64> =
        rows.iter().filter(|row| row.contains_key("eval_loss")).map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(evaluated, [0, 10, 20]);
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("| perplexity | the end of text.txt |"), "{card}");

    let samples = fs::read_to_string(place.path("out/completions.jsonl")).unwrap();
    let samples: Vec<serde_json::Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = samples.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 0, 10, 10, 20, 20, 30, 30]);
    assert!(samples.iter().all(|row| row["prompt"] == "\n" && row["reward"].is_null() && row["advantage"].is_null()));
}

/// The evaluation of the run and the one of a finished model are the same function: the same text, the same figure.
#[test]
fn the_perplexity_of_the_saved_model_is_that_of_the_run() {
    let place = Place::new();
    let after = finish(&RunConfig { max_steps: Some(5), ..place.settings("out") }).after.unwrap();
    let text = text();
    let tail = text.len() - text.len().div_ceil(10);
    place.write("tail.txt", &text[tail..]);
    let settings = RunConfig { model: place.name("out"), ..RunConfig::default() };
    let options = PerplexityOptions { data: place.path("tail.txt"), block_size: Some(32) };
    let found = perplexity(&settings, &options).unwrap();
    assert_eq!((Some(found.loss), found.num_tokens), (after.loss, after.num_samples));
    assert_eq!(perplexity(&settings, &PerplexityOptions { block_size: None, ..options.clone() }).unwrap(), found);

    let too_long = perplexity(&settings, &PerplexityOptions { block_size: Some(33), ..options.clone() }).unwrap_err();
    assert!(matches!(too_long, RecipeError::BlockSize { block_size: 33, context: 32 }), "{too_long}");
    place.write("one.txt", "A");
    let options = PerplexityOptions { data: place.path("one.txt"), block_size: None };
    assert!(matches!(perplexity(&settings, &options).unwrap_err(), RecipeError::TooShort { tokens: 1, .. }));
}

#[test]
fn a_run_resumed_from_any_checkpoint_equals_the_uninterrupted_one() {
    let place = Place::new();
    finish(&place.settings("whole"));
    let whole = place.path("whole");
    for step in [10, 20] {
        let name = format!("from-{step}");
        let resumed = place.path(&name);
        copy_folder(&whole.join(format!("checkpoint-{step}")), &resumed.join(format!("checkpoint-{step}")));
        for log in ["metrics.jsonl", "completions.jsonl"] {
            fs::copy(whole.join(log), resumed.join(log)).unwrap();
        }
        // The folder of the new model may be gone: it follows from the settings and the text.
        if step == 20 {
            copy_folder(&whole.join("base"), &resumed.join("base"));
        }
        let summary = finish(&RunConfig { resume: "auto".into(), ..place.settings(&name) });
        assert!(summary.before.is_some(), "the evaluation before the first step is remembered");
        assert_same_run(&whole, &resumed, "checkpoint-30");
    }
}

#[test]
fn another_architecture_or_text_is_another_run() {
    let place = Place::new();
    let first = RunConfig { max_steps: Some(10), ..place.settings("out") };
    finish(&first);
    let again = RunConfig { resume: "auto".into(), ..first };
    let other = ArchitectureConfig { rope_theta: 500.0, ..architecture() };
    let error = refused_run(&RunConfig { architecture: Some(other), ..again.clone() });
    assert!(error.contains("architecture.rope_theta: 10000.0 in the checkpoint, 500.0 now"), "{error}");
    place.write("text.txt", text().replace("Ann", "Zoe"));
    let error = refused_run(&again);
    assert!(error.contains("tokenizer: "), "{error}");
}

fn refused_run(settings: &RunConfig) -> String {
    let error = train(settings, TrainOptions::default()).map(|_| ()).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    error.to_string()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every family, and both tokenizers, give a folder that the other verbs read.
#[test]
fn a_new_model_of_each_family_can_be_used() {
    let place = Place::new();
    for (model_type, tokenizer) in [
        (ModelType::Llama, TokenizerKind::Byte),
        (ModelType::Qwen2, TokenizerKind::Char),
        (ModelType::Qwen3, TokenizerKind::Char),
    ] {
        let output = format!("{model_type:?}");
        let architecture = ArchitectureConfig { model_type, tokenizer: Some(tokenizer), ..architecture() };
        finish(&RunConfig {
            architecture: Some(architecture),
            max_steps: Some(1),
            num_samples: 0,
            ..place.settings(&output)
        });
        let settings = RunConfig {
            model: place.name(&output),
            max_completion_length: 8,
            temperature: 0.0,
            ..RunConfig::default()
        };
        let options = GenerateOptions { prompt: "Ann sees".into(), chat: false };
        let mut shown = String::new();
        generate(&settings, &options, &mut |piece| shown.push_str(piece)).unwrap();
        let model = load_model(&settings.model, None, true, None).unwrap();
        let ids = model.tokenizer.encode("Ann sees TWO NUTS.\n", true).unwrap();
        assert_eq!(ids.len(), 19);
        assert_eq!(model.tokenizer.decode(&ids).unwrap(), "Ann sees TWO NUTS.\n");
        assert_eq!(model.config.family.model_type(), output.to_lowercase());
    }
}

/// A tokenizer made from rows knows prompts and completions, and the run ends completions by its end token.
#[test]
fn rows_can_be_learned_by_a_new_model_too() {
    let place = Place::new();
    place.write("rows.jsonl", "{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n".repeat(8));
    let eval = |row: &str| {
        place.write("eval.jsonl", row);
        RunConfig {
            algorithm: Algorithm::Sft,
            train_file: place.name("rows.jsonl"),
            eval_file: Some(place.name("eval.jsonl")),
            eval_steps: 0,
            learning_rate: Some(3e-2),
            max_prompt_length: 8,
            ..place.settings("out")
        }
    };
    let summary = finish(&eval("{\"prompt\": \"1+1=\", \"answer\": 2}"));
    assert_eq!(summary.after.unwrap().accuracy, Some(1.0));
    let model = load_model(&place.name("out"), None, true, None).unwrap();
    assert_eq!(model.tokenizer.vocab_size(), "\u{3}1+=2".len());

    let error =
        refused(&RunConfig { output_dir: place.path("other"), ..eval("\n{\"prompt\": \"7-1=\", \"answer\": 6}") });
    assert!(error.to_string().ends_with("eval.jsonl:2: the tokenizer does not have '7', '-'"), "{error}");
    place.write(
        "rows.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
    );
    let error = refused(&RunConfig { eval_file: None, output_dir: place.path("chat"), ..eval("") });
    assert!(error.to_string().contains("rows.jsonl:1: a conversation"), "{error}");
    assert_eq!(error.exit(), Exit::Data);
}

#[test]
fn texts_that_cannot_be_learned_are_refused_with_their_place() {
    let place = Place::new();
    let of = |content: &[u8]| {
        place.write("bad.txt", content);
        RunConfig { train_file: place.name("bad.txt"), ..place.settings("bad") }
    };
    let long = "abc ".repeat(100);
    for (content, message) in [
        (&b"first\nsecond \xff"[..], "bad.txt:2: not valid UTF-8: byte 13 of the file is 0xff"),
        (&b""[..], "bad.txt has no text"),
        (&b"too short"[..], "bad.txt: the training part has 8 tokens, and a block needs 33"),
        (&long.as_bytes()[..300], "bad.txt: the validation part has 30 tokens, and a block needs 33"),
    ] {
        let error = refused(&of(content));
        assert!(error.to_string().ends_with(message), "{error}");
        assert_eq!(error.exit(), Exit::Data);
    }
    // Nothing was written but the folder of the lock.
    assert!(!place.path("bad/base").exists());

    // A whole text may be learned: then there is nothing to evaluate, and no part that is too short.
    let all = RunConfig { validation_fraction: 0.0, eval_steps: 0, max_steps: Some(1), ..of(long.as_bytes()) };
    let summary = finish(&all);
    assert_eq!((summary.before, summary.after), (None, None));
}

#[test]
fn a_given_model_must_know_the_text_and_hold_a_block() {
    let place = Place::new();
    finish(&RunConfig { max_steps: Some(1), ..place.settings("start") });
    let with_model =
        RunConfig { model: place.name("start"), architecture: None, max_steps: Some(1), ..place.settings("next") };
    let error = refused(&RunConfig { block_size: 33, ..with_model.clone() });
    assert!(error.to_string().contains("block_size = 33 is more than the model's context of 32 tokens"), "{error}");
    assert_eq!(error.exit(), Exit::Usage);
    let error = refused(&RunConfig { sample_prompt: "Zoe".into(), ..with_model.clone() });
    assert!(error.to_string().contains("`sample_prompt`: the tokenizer does not have 'Z', 'o'"), "{error}");
    let error = refused(&RunConfig { sample_prompt: "Ann ".repeat(8), ..with_model.clone() });
    assert!(error.to_string().contains("sample_prompt has 32 tokens, and the model's context is 32"), "{error}");
    finish(&with_model);

    place.write("text.txt", text() + "No.\nZoë and Ole!\n");
    let error = refused(&RunConfig { output_dir: place.path("third"), ..with_model });
    assert!(
        error.to_string().ends_with("text.txt:151: the tokenizer does not have 'o', 'Z', 'ë', 'l', '!'"),
        "{error}"
    );
    assert_eq!(error.exit(), Exit::Data);
}
