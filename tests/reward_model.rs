//! Reward models: the scores and gradients of transformers and torch, training of pairs that learns, resumes in the same
//! bits and leaves a folder that scores, and what is said of folders and files that cannot be used.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::config::{Algorithm, EvalGrader, Init, OnBadRow, RewardConfig, RunConfig};
use candlewick::device::Compute;
use candlewick::error::{Diagnose, Exit};
use candlewick::model::{Decoder, ModelConfig, Params, Recorder, ScoreBatch, Task, load_reward_weights, load_weights};
use candlewick::ops::score::{scores, scores_backward};
use candlewick::recipe::{RecipeError, TrainOptions, plan, train};
use candlewick::reward::{ModelReward, Reward, RewardInput};
use candlewick::text::{Prompt, PromptRenderer, ScoredRenderer, Tokenizer};
use candlewick::trainer::compute_ranking;
use candlewick::trainer::{Outcome, RankedPair};
use serde_json::Value;
use small_run::{Place, assert_same_run, copy_until, prompt, values};

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reward").join(name)
}

fn expected(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(to.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
        }
    }
}

/// Every row of the fixtures alone and all together: conversations through the template, padding left out.
#[test]
fn scores_are_those_of_transformers() {
    for name in FAMILIES {
        let (reward, expected) = (ModelReward::load(&folder(name), &Compute::cpu()).unwrap(), expected(name));
        let rows: Vec<&Value> = ["plain", "chat"].iter().flat_map(|kind| expected[kind].as_array().unwrap()).collect();
        assert_eq!(rows.len(), if name == "qwen3" { 11 } else { 9 });
        let columns = candlewick::data::Columns::new();
        let inputs: Vec<RewardInput<'_>> = rows
            .iter()
            .map(|row| RewardInput {
                prompt: row["prompt"].as_str().unwrap_or_default(),
                messages: row["messages"].as_array().map(Vec::as_slice),
                completion: row["completion"].as_str().unwrap(),
                completion_ids: &[],
                columns: &columns,
                line: 1,
            })
            .collect();
        let together = reward.score_all(&inputs).unwrap();
        for ((row, input), score) in rows.iter().zip(&inputs).zip(&together) {
            let wanted = row["score"].as_f64().unwrap();
            assert!((score - wanted).abs() < 1e-5, "{name}: {score} instead of {wanted} for {row}");
            assert_eq!(reward.score(input).unwrap().map(f64::to_bits), Some(score.to_bits()), "{name}: {row}");
        }
    }
}

/// The pairs of the qwen2 fixture, as tokens.
fn fixture_pairs() -> Vec<RankedPair> {
    let renderer = PromptRenderer::new(Tokenizer::load(&folder("qwen2")).unwrap(), None);
    let renderer = ScoredRenderer::new(renderer, Some(0));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = expected("qwen2")["pairs"].as_array().unwrap().clone();
    pairs
        .iter()
        .map(|pair| {
            let ids = |name: &str| renderer.render(&Prompt::Text(text(&pair["prompt"])), &text(&pair[name])).unwrap();
            RankedPair { chosen_ids: ids("chosen"), rejected_ids: ids("rejected") }
        })
        .collect()
}

/// Loss and the gradient of every parameter, the score head's among them, with activations kept and computed again.
#[test]
fn loss_and_gradients_are_those_of_torch() {
    let gradients = safetensors_of(&folder("qwen2").join("gradients.safetensors"));
    let pairs = fixture_pairs();
    for checkpointing in [false, true] {
        let config = ModelConfig::load_as(&folder("qwen2"), Some(Task::SequenceClassification)).unwrap();
        let (tensors, _) = load_weights(&folder("qwen2"), &config).unwrap();
        let model = Decoder::new(config, Params::new(tensors, &Compute::cpu(), true).unwrap()).unwrap();
        let found = compute_ranking(&model, &pairs, 0.1, 1000).unwrap();
        assert!((found.loss - expected("qwen2")["loss"].as_f64().unwrap()).abs() < 1e-6, "{}", found.loss);

        let texts: Vec<[&[u32]; 2]> = pairs.iter().map(|pair| [&pair.chosen_ids[..], &pair.rejected_ids]).collect();
        let groups: Vec<&[&[u32]]> = texts.iter().map(|pair| &pair[..]).collect();
        let batches = ScoreBatch::pack_whole(&groups, 1000);
        assert_eq!(batches.len(), 1);
        let mut recorder = Recorder::new(checkpointing);
        let hidden = model.forward(&batches[0].tokens, Some(&mut recorder)).unwrap();
        assert_eq!(scores(&hidden, &batches[0].ends, model.head()).unwrap().len(), 6);
        let d_hidden = hidden.zeros_like().unwrap();
        scores_backward(&found.grad, &hidden, &batches[0].ends, model.head(), &d_hidden).unwrap();
        model.backward(recorder, &batches[0].tokens, &d_hidden).unwrap();
        assert_eq!(model.params().iter().count(), gradients.len());
        for param in model.params() {
            let own = param.weight.grad().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (_, theirs) = gradients.iter().find(|(name, _)| *name == param.name).unwrap();
            let scale = theirs.iter().fold(0f32, |most, x| most.max(x.abs()));
            let worst = own.iter().zip(theirs).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(own.len() == theirs.len() && worst <= 1e-4 * scale, "{}: {worst} of {scale}", param.name);
        }
    }
}

fn safetensors_of(path: &Path) -> Vec<(String, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    file.tensors().into_iter().map(|(name, view)| (name, values(view.data()))).collect()
}

/// Pairs whose better completion ends in a digit above 4, the worse in one below.
fn place() -> Place {
    let place = Place::new();
    let row = |i: usize| {
        let (chosen, rejected) = (5 + (i * 7) % 5, (i * 3) % 5);
        format!("{{\"prompt\": \"{}\", \"chosen\": \"{chosen}\", \"rejected\": \"{rejected}\"}}\n", prompt(i))
    };
    place.write("pairs.jsonl", &(0..20).map(row).collect::<String>());
    place.write("held_out.jsonl", &(20..30).map(row).collect::<String>());
    place
}

fn settings(place: &Place, output: &str) -> RunConfig {
    let file = |name: &str| place.path(name).to_string_lossy().into_owned();
    RunConfig {
        train_file: file("pairs.jsonl"),
        eval_file: Some(file("held_out.jsonl")),
        center_rewards_coefficient: Some(0.01),
        learning_rate: Some(3e-3),
        ..place.settings(output, Algorithm::Reward)
    }
}

fn finish(settings: &RunConfig) -> candlewick::telemetry::Summary {
    let report = train(settings, TrainOptions::default()).unwrap();
    assert_eq!(report.outcome, Outcome::Finished);
    report.summary
}

/// The model learns, its folder is a sequence classifier, and reinforcement with it raises its score and what it means.
#[test]
fn a_reward_model_learns_and_is_learned_from() {
    let place = place();
    let run = RunConfig { max_steps: Some(40), eval_steps: 10, ..settings(&place, "rm") };
    let summary = finish(&run);
    let metrics = place.metrics("rm");
    let of = |name: &str| values(&metrics, name);
    println!("loss {:?}\naccuracy {:?}\neval {:?}", of("loss"), of("accuracy"), of("eval_accuracy"));
    assert!((of("loss")[0] - std::f64::consts::LN_2).abs() < 0.1 && of("loss")[39] < 0.3);
    assert!(of("accuracy")[30..].iter().all(|accuracy| *accuracy > 0.9));
    assert!(of("margin")[39] > 1.0 && of("min_reward")[39] < of("mean_reward")[39]);
    assert!(of("mean_reward")[39] < of("max_reward")[39] && of("grad_norm").len() == 40);
    for name in ["eval_loss", "eval_accuracy", "eval_margin", "eval_min_reward", "eval_mean_reward", "eval_max_reward"]
    {
        assert_eq!(of(name).len(), 4, "{name}: before the first step, after 10, 20 and 30");
    }
    assert_eq!(summary.after.unwrap().accuracy, Some(1.0));
    assert!(summary.next_command.unwrap().contains("[[rewards]]"));

    let config: Value = serde_json::from_str(&fs::read_to_string(place.path("rm/config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "Qwen2ForSequenceClassification");
    assert_eq!((&config["id2label"]["0"], &config["pad_token_id"]), (&"LABEL_0".into(), &0.into()));
    let names: Vec<String> =
        safetensors_of(&place.path("rm/model.safetensors")).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name == "score.weight") && !names.iter().any(|name| name == "lm_head.weight"));
    let card = fs::read_to_string(place.path("rm/README.md")).unwrap();
    assert!(card.contains("text-classification") && card.contains("| accuracy | held_out.jsonl |"), "{card}");

    let model = place.path("rm").to_string_lossy().into_owned();
    let table = RewardConfig { name: "model".to_owned(), model: Some(model.clone()), ..RewardConfig::default() };
    let grpo = RunConfig {
        rewards: vec![table],
        eval_grader: Some(EvalGrader::Reward),
        max_completion_length: 1,
        learning_rate: Some(1e-2),
        ..place.settings("grpo", Algorithm::Grpo)
    };
    finish(&grpo);
    let metrics = place.metrics("grpo");
    let rewards = values(&metrics, "rewards/model/mean");
    println!("rewards {rewards:?}");
    assert!(rewards.len() == 20 && rewards[19] > rewards[0] + 1.0, "{rewards:?}");

    // A reward model is a start, too: it goes on from where it was.
    let again = RunConfig { model, init: Init::Pretrained, max_steps: Some(1), ..settings(&place, "again") };
    let before = finish(&again).before.unwrap();
    assert_eq!(before.accuracy, Some(1.0));
}

/// The score head of a language model is drawn from the seed; everything else is the model's.
#[test]
fn a_language_model_gets_a_head() {
    let place = place();
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/qwen2_untied");
    let (tensors, _) = load_weights(&starter, &ModelConfig::load(&starter).unwrap()).unwrap();
    let head = |seed| load_reward_weights(&starter, seed).unwrap().0.pop().unwrap();
    let (made, _) = load_reward_weights(&starter, 1).unwrap();
    assert_eq!(tensors.last().unwrap().name, "lm_head.weight");
    assert_eq!(made[..made.len() - 1], tensors[..tensors.len() - 1]);
    assert_eq!((head(1).name.as_str(), &head(1).shape[..]), ("score.weight", &[1, 20][..]));
    assert!(head(1) == head(1) && head(1) != head(2));
    let spread = head(1).data.iter().map(|x| x * x).sum::<f32>() / 20.0;
    assert!((0.05..0.2).contains(&spread.sqrt()), "initializer_range is 0.1: {spread}");

    let run = RunConfig {
        model: starter.to_string_lossy().into_owned(),
        init: Init::Pretrained,
        max_steps: Some(2),
        ..settings(&place, "run")
    };
    finish(&run);
    let reward = ModelReward::load(&place.path("run"), &Compute::cpu()).unwrap();
    let columns = candlewick::data::Columns::new();
    let input = RewardInput {
        prompt: "1+2=",
        messages: None,
        completion: "3",
        completion_ids: &[],
        columns: &columns,
        line: 1,
    };
    assert!(reward.score(&input).unwrap().unwrap().is_finite());
}

#[test]
fn micro_batches_change_nothing() {
    let place = place();
    for (name, max_tokens_per_micro_batch) in [("whole", 8192), ("torn", 1)] {
        let settings = settings(&place, name);
        finish(&RunConfig { max_tokens_per_micro_batch, max_steps: Some(5), ..settings });
    }
    let accumulated =
        RunConfig { prompts_per_step: 2, gradient_accumulation_steps: 2, ..settings(&place, "accumulated") };
    finish(&RunConfig { max_steps: Some(5), ..accumulated });
    let whole = place.metrics("whole");
    for other in [place.metrics("torn"), place.metrics("accumulated")] {
        for name in ["loss", "grad_norm", "margin", "mean_reward", "max_reward"] {
            let (a, b) = (values(&whole, name), values(&other, name));
            assert_eq!((a.len(), b.len()), (5, 5), "{name}");
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3 * a.abs().max(0.1)), "{name}: {a:?} {b:?}");
        }
    }
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one() {
    let place = place();
    let settings = RunConfig {
        max_steps: Some(6),
        save_steps: 1,
        save_total_limit: 0,
        resume: "auto".to_owned(),
        ..settings(&place, "whole")
    };
    finish(&settings);
    let whole = place.path("whole");
    for step in [1, 4] {
        let resumed = place.path(&format!("from-{step}"));
        copy_until(&whole, &resumed, step);
        finish(&RunConfig { output_dir: resumed.clone(), ..settings.clone() });
        assert_same_run(&whole, &resumed, "checkpoint-6");
    }
    let head = |step: u64| {
        let tensors = safetensors_of(&whole.join(format!("checkpoint-{step}/model.safetensors")));
        tensors.into_iter().find(|(name, _)| name == "score.weight").unwrap().1
    };
    assert!(head(1) != head(6), "the head is trained");
}

fn refused(settings: &RunConfig) -> (RecipeError, String) {
    let error = plan(settings).unwrap_err();
    let text = format!("{error}\n{}", error.hint().unwrap_or_default());
    (error, text)
}

/// GRPO with the reward model in the folder `name`.
fn grpo_with(place: &Place, name: &str) -> RunConfig {
    let model = Some(place.path(name).to_string_lossy().into_owned());
    let table = RewardConfig { name: "model".to_owned(), model, ..RewardConfig::default() };
    RunConfig { rewards: vec![table], ..place.settings("out", Algorithm::Grpo) }
}

/// Copies the qwen2 reward model and changes its config.json.
fn spoilt(place: &Place, name: &str, from: &str, to: &str) {
    copy_folder(&folder("qwen2"), &place.path(name));
    let path = place.path(name).join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(path, config.replace(from, to)).unwrap();
}

#[test]
fn folders_that_are_no_reward_models_are_told_apart() {
    let place = place();
    let said = |name: &str| {
        let (error, text) = refused(&grpo_with(&place, name));
        assert_eq!(error.exit(), Exit::Model, "{text}");
        text
    };
    // The policy itself: a language model.
    let text = said("model");
    assert!(text.contains("architecture Qwen2ForCausalLM is a language model, which has no score head"), "{text}");
    assert!(text.contains("algorithm = \"reward\""), "{text}");
    spoilt(&place, "labels", "\"0\": \"LABEL_0\"", "\"0\": \"a\", \"1\": \"b\"");
    assert!(said("labels").contains("the model has 2 labels; a reward model has one"));
    spoilt(&place, "other", "Qwen2ForSequenceClassification", "BertForSequenceClassification");
    assert!(said("other").contains("supported are LlamaForSequenceClassification, Mistral"));
    copy_folder(&folder("qwen2"), &place.path("mute"));
    fs::remove_file(place.path("mute/tokenizer.json")).unwrap();
    assert!(said("mute").contains("tokenizer.json"));

    // A classifier cannot be the policy.
    copy_folder(&folder("qwen2"), &place.path("classifier"));
    let model = place.path("classifier").to_string_lossy().into_owned();
    let (_, text) = refused(&RunConfig { model, ..place.settings("out", Algorithm::Grpo) });
    assert!(text.contains("scores texts and cannot write any") && text.contains("Name a language model"), "{text}");
    let (error, _) = refused(&grpo_with(&place, "no/such/folder"));
    assert_eq!(error.exit(), Exit::Usage);
}

/// What only the weights tell is told before the first step.
#[test]
fn weights_without_a_score_head_are_refused() {
    let place = place();
    let message = |name: &str| {
        let error = train(&grpo_with(&place, name), TrainOptions::default()).unwrap_err();
        assert_eq!(error.exit(), Exit::Model, "{error}");
        assert!(!place.path("out/metrics.jsonl").exists());
        format!("{error}\n{}", error.hint().unwrap_or_default())
    };
    // The weights of a language model of the same sizes.
    copy_folder(&folder("qwen2"), &place.path("headless"));
    let bytes = fs::read(folder("qwen2").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views = |rename: &str| {
        let views = file.tensors().into_iter();
        views
            .map(|(name, view)| (if name == "score.weight" { rename.to_owned() } else { name }, view))
            .collect::<Vec<_>>()
    };
    let write = |folder: &str, views: Vec<(String, safetensors::tensor::TensorView<'_>)>| {
        let path = place.path(folder).join("model.safetensors");
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    write("headless", views("lm_head.weight"));
    let text = message("headless");
    assert!(text.contains("score.weight is missing") && text.contains("no score head"), "{text}");
    // Two labels that config.json does not count.
    copy_folder(&folder("qwen2"), &place.path("wide"));
    let data = vec![0u8; 2 * 20 * 4];
    let mut wide = views("score.weight");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 20], &data).unwrap();
    wide.retain(|(name, _)| name != "score.weight");
    wide.push(("score.weight".to_owned(), view));
    write("wide", wide);
    assert!(message("wide").contains("score.weight has shape [2, 20], expected [1, 20]"));
}

/// A conversation needs the reward model's own template; a text beyond its context is read from its end.
#[test]
fn conversations_and_long_texts_have_their_rules() {
    let reward = ModelReward::load(&folder("qwen2"), &Compute::cpu()).unwrap();
    let columns = candlewick::data::Columns::new();
    let messages = [serde_json::json!({"role": "user", "content": "1+2"})];
    let input = |prompt, completion| RewardInput {
        prompt,
        messages: None,
        completion,
        completion_ids: &[],
        columns: &columns,
        line: 7,
    };
    let error = reward.score(&RewardInput { messages: Some(&messages), ..input("", "3") }).unwrap_err();
    assert!(error.to_string().contains("no chat template, and the prompt of line 7 is a conversation"), "{error}");
    assert!(error.hint().is_some());
    let error = reward.score(&input("", "")).unwrap_err();
    assert!(error.to_string().contains("line 7: prompt and completion have no tokens together"), "{error}");
    // The context is 128 tokens, a character each.
    let long = "a".repeat(200) + &"b".repeat(100);
    let score =
        |prompt: &str, completion: &str| reward.score(&RewardInput { prompt, completion, ..input("", "") }).unwrap();
    assert_eq!(score(&long, "1+2"), score(&long[long.len() - 125..], "1+2"));
}

#[test]
fn bad_pairs_are_told_by_their_line() {
    let place = place();
    let good = "{\"prompt\": \"1+1=\", \"chosen\": \"2\", \"rejected\": \"3\"}\n";
    let equal = "{\"prompt\": \"1+2=\", \"chosen\": \"3\", \"rejected\": \"3\"}\n";
    let lacking = "{\"prompt\": \"1+2=\", \"completion\": \"3\"}\n";
    place.write("pairs.jsonl", &[good, equal, good, lacking].concat());
    let settings = settings(&place, "run");
    let (_, text) = refused(&settings);
    assert!(text.contains("pairs.jsonl:2: `chosen` and `rejected` are equal"), "{text}");
    assert!(text.contains("pairs.jsonl:4: no column `chosen`; the row has `prompt`, `completion`"), "{text}");
    let found = plan(&RunConfig { on_bad_row: OnBadRow::Skip, ..settings.clone() }).unwrap();
    assert_eq!((found.rows, found.num_generations, found.first_prompt.as_str()), (2, 2, "1+1=2"));

    // Both completions count, with the prompt; where nothing is left the run says what to raise.
    place.write("pairs.jsonl", good);
    place.write("held_out.jsonl", good);
    let limits = |max_prompt_length, max_completion_length| RunConfig {
        max_prompt_length,
        max_completion_length,
        ..settings.clone()
    };
    assert_eq!(plan(&limits(4, 1)).unwrap().rows, 1);
    let (error, text) = refused(&limits(3, 1));
    assert!(text.contains("no pair is left") && text.contains("longer than 4 tokens"), "{text}");
    assert!(text.contains("max_completion_length") && error.exit() == Exit::Data, "{text}");
}
