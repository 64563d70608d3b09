//! The decoder computes what transformers computes: logits, losses, every gradient, greedy text.
//!
//! `tests/fixtures/hf` holds tiny random models of each family and transformers' numbers for them
//! (`scripts/make_hf_fixtures.py`). Besides, candle-transformers' own models agree on the same weights.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use candlewick::device::Compute;
use candlewick::model::{
    Decoder, Family, LoadedTensor, ModelConfig, PackedTokens, Params, Recorder, RopeScaling, init_weights, load_weights,
};
use candlewick::ops::attention::Segment;
use candlewick::ops::head::{LogprobGrads, Predictions, logits, token_logprobs, token_logprobs_backward};
use candlewick::rollout::{Engine, RolloutRequest, SamplingConfig};
use candlewick::text::{StopRules, Tokenizer};

const FAMILIES: [&str; 6] = ["llama_gqa7", "llama3_scaled", "mistral", "qwen2_tied", "qwen2_untied", "qwen3"];
const TOLERANCE: f64 = 1e-4;

/// A fixture folder with its stored tensors.
struct Fixture {
    folder: PathBuf,
    stored: HashMap<String, Tensor>,
}

impl Fixture {
    fn load(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name);
        let stored = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        Self { folder, stored }
    }

    fn weights(&self) -> (ModelConfig, Vec<LoadedTensor>) {
        let config = ModelConfig::load(&self.folder).unwrap();
        let (tensors, _) = load_weights(&self.folder, &config).unwrap();
        (config, tensors)
    }

    fn decoder(&self, trainable: bool) -> Decoder {
        let (config, tensors) = self.weights();
        decoder(&config, tensors, trainable)
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.stored[name].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        flat(&self.stored[name])
    }
}

fn decoder(config: &ModelConfig, tensors: Vec<LoadedTensor>, trainable: bool) -> Decoder {
    Decoder::new(config.clone(), Params::new(tensors, &Compute::cpu(), trainable).unwrap()).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// One sequence from position 0.
fn sequence(ids: &[u32]) -> PackedTokens {
    PackedTokens {
        ids: ids.to_vec(),
        positions: (0..ids.len() as u32).collect(),
        segments: vec![Segment { rows: 0..ids.len(), prefix: 0..0 }],
    }
}

/// max|a-b| / max|b|, the measure of all comparisons here.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let far = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(found.iter().all(|value| value.is_finite()));
    far / expected.iter().map(|b| f64::from(b.abs())).fold(0.0, f64::max)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let difference = difference(found, expected);
    assert!(difference <= TOLERANCE, "{what}: {difference:e}");
}

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for name in FAMILIES {
        let (fixture, decoder) = (Fixture::load(name), Fixture::load(name).decoder(false));
        let ids = fixture.ids("input_ids");
        let hidden = decoder.forward(&sequence(&ids), None).unwrap();
        assert_close(name, &flat(&logits(&hidden, decoder.head()).unwrap()), &fixture.floats("logits"));
        let rows: Vec<u32> = (0..ids.len() as u32 - 1).collect();
        let predictions = Predictions { rows: &rows, targets: &ids[1..], temperature: 1.0 };
        let scored = token_logprobs(&hidden, decoder.head(), predictions).unwrap();
        let nll: Vec<f32> = scored.logprobs.iter().map(|logprob| -logprob).collect();
        assert_close(&format!("{name} nll"), &nll, &fixture.floats("nll"));
    }
}

/// Positions far beyond the original context, where the scaled frequencies differ from the plain ones.
#[test]
fn scaled_rotary_embeddings_hold_over_a_long_sequence() {
    let fixture = Fixture::load("llama3_scaled");
    let (mut config, tensors) = fixture.weights();
    let positions = fixture.ids("long_positions");
    let tokens = sequence(&fixture.ids("long_ids"));
    let at_positions = |decoder: &Decoder| {
        let hidden = decoder.forward(&tokens, None).unwrap();
        let rows = hidden.index_select(&Tensor::new(&positions[..], &Device::Cpu).unwrap(), 0).unwrap();
        flat(&logits(&rows, decoder.head()).unwrap())
    };
    let expected = fixture.floats("long_logits");
    assert_close("long", &at_positions(&decoder(&config, tensors.clone(), false)), &expected);
    // The sequence is long enough to tell: without the scaling it comes out wrong.
    config.rope_scaling = RopeScaling::None;
    assert!(difference(&at_positions(&decoder(&config, tensors, false)), &expected) > 100.0 * TOLERANCE);
}

#[test]
fn every_gradient_is_that_of_transformers() {
    for name in FAMILIES {
        let fixture = Fixture::load(name);
        for checkpointing in [false, true] {
            let decoder = fixture.decoder(true);
            let tokens = sequence(&fixture.ids("input_ids"));
            let mut recorder = Recorder::new(checkpointing);
            let hidden = decoder.forward(&tokens, Some(&mut recorder)).unwrap();
            let num_targets = tokens.ids.len() - 1;
            let rows: Vec<u32> = (0..num_targets as u32).collect();
            let predictions = Predictions { rows: &rows, targets: &tokens.ids[1..], temperature: 1.0 };
            // The loss is the mean of the negative log-probs.
            let grads = LogprobGrads { logprobs: &vec![-1.0 / num_targets as f32; num_targets], entropies: None };
            let d_hidden = hidden.zeros_like().unwrap();
            token_logprobs_backward(grads, &hidden, decoder.head(), predictions, &d_hidden).unwrap();
            decoder.backward(recorder, &tokens, &d_hidden).unwrap();
            let mut compared = 0;
            for param in decoder.params() {
                let expected = fixture.floats(&format!("grad.{}", param.name));
                let found = flat(param.weight.grad().unwrap());
                assert!(found.iter().any(|value| *value != 0.0), "{name} {}", param.name);
                assert_close(&format!("{name} {} (checkpointing {checkpointing})", param.name), &found, &expected);
                compared += 1;
            }
            assert_eq!(compared, fixture.stored.keys().filter(|key| key.starts_with("grad.")).count());
        }
    }
}

/// 64 greedy tokens through the cached decode of the rollout engine.
#[test]
fn greedy_text_is_that_of_transformers() {
    for name in FAMILIES {
        let (fixture, decoder) = (Fixture::load(name), Fixture::load(name).decoder(false));
        let tokenizer = Tokenizer::load(&fixture.folder).unwrap();
        let text = std::fs::read_to_string(fixture.folder.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let prompt_ids = tokenizer.encode(expected["prompt"].as_str().unwrap(), false).unwrap();
        assert_eq!(prompt_ids, fixture.ids("prompt_ids"), "{name}");
        let greedy_ids = fixture.ids("greedy_ids");
        // No token ends the text: the fixtures go on past their own EOS.
        let stop = StopRules { eos_ids: vec![], stop_strings: vec![], max_completion_length: greedy_ids.len() };
        let engine = Engine {
            decoder: &decoder,
            tokenizer: &tokenizer,
            sampling: SamplingConfig::greedy(),
            stop: &stop,
            slots: 0,
            seed: 0,
            step: 0,
        };
        let request = RolloutRequest { prompt_ids, prompt: 0, first_completion: 0, num_generations: 1 };
        let (groups, _) = engine.run(&[request], &mut ()).unwrap();
        let completion = &groups[0].completions[0];
        assert_eq!(completion.ids, greedy_ids, "{name}");
        let text = tokenizer.decode_with_special(&completion.ids).unwrap();
        assert_eq!(text, expected["greedy_text"].as_str().unwrap(), "{name}");
    }
}

/// Logits of the last position by candle-transformers.
fn by_candle(config: &ModelConfig, tensors: &[LoadedTensor], ids: &[u32]) -> Vec<f32> {
    let map = tensors
        .iter()
        .map(|t| (t.name.clone(), Tensor::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu).unwrap()));
    let weights = VarBuilder::from_tensors(map.collect(), DType::F32, &Device::Cpu);
    let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let common = serde_json::json!({
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta, "tie_word_embeddings": config.tie_word_embeddings, "hidden_act": "silu",
        "attention_bias": config.out_bias, "use_sliding_window": false, "max_window_layers": 0,
    });
    let with = |key: &str, value: serde_json::Value| {
        let mut json = common.clone();
        json[key] = value;
        json
    };
    let output = match config.family {
        Family::Llama => {
            let scaling = match config.rope_scaling {
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    serde_json::json!({
                        "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                        "high_freq_factor": high_freq_factor,
                        "original_max_position_embeddings": original_max_position_embeddings,
                    })
                }
                _ => serde_json::Value::Null,
            };
            let config: llama::LlamaConfig = serde_json::from_value(with("rope_scaling", scaling)).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            llama::Llama::load(weights, &config).unwrap().forward(&input, 0, &mut cache)
        }
        Family::Mistral => {
            let config: mistral::Config = serde_json::from_value(common).unwrap();
            mistral::Model::new(&config, weights).unwrap().forward(&input, 0)
        }
        Family::Qwen2 => {
            let config: qwen2::Config = serde_json::from_value(with("sliding_window", 512.into())).unwrap();
            qwen2::ModelForCausalLM::new(&config, weights).unwrap().forward(&input, 0)
        }
        Family::Qwen3 => {
            let config: qwen3::Config = serde_json::from_value(common).unwrap();
            qwen3::ModelForCausalLM::new(&config, weights).unwrap().forward(&input, 0)
        }
    };
    flat(&output.unwrap())
}

fn assert_candle_agrees(what: &str, config: &ModelConfig, tensors: Vec<LoadedTensor>, ids: &[u32]) {
    let expected = by_candle(config, &tensors, ids);
    let decoder = decoder(config, tensors, false);
    let hidden = decoder.forward(&sequence(ids), None).unwrap();
    let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
    assert_close(what, &flat(&logits(&last, decoder.head()).unwrap()), &expected);
}

/// The folders whose settings candle-transformers knows; its llama has neither biases nor a `head_dim` of its own.
#[test]
fn candle_transformers_agrees_on_the_fixtures() {
    for name in ["mistral", "qwen2_tied", "qwen2_untied", "qwen3"] {
        let fixture = Fixture::load(name);
        let (config, tensors) = fixture.weights();
        assert_candle_agrees(name, &config, tensors, &fixture.ids("input_ids"));
    }
}

#[test]
fn candle_transformers_agrees_on_llamas() {
    let plain = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 41, "hidden_size": 56, "intermediate_size": 37,
        "num_hidden_layers": 2, "num_attention_heads": 7, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "initializer_range": 0.1"#;
    let scaling = r#", "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}"#;
    let ids: Vec<u32> = (0..200).map(|i| (i * i * 7 + 3) % 41).collect();
    for more in ["", r#", "tie_word_embeddings": true"#, scaling] {
        let config = ModelConfig::parse(&format!("{plain}{more}}}"), Path::new("config.json")).unwrap();
        assert_candle_agrees(more, &config, init_weights(&config, 5), &ids);
    }
}
