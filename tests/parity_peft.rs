//! Adapters made by PEFT are read as PEFT reads them: logits, gradients of A and B, greedy text; and merged they are the
//! same model.
//!
//! `tests/fixtures/peft` holds two adapters with PEFT's numbers for them (`scripts/make_peft_fixtures.py`).

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candlewick::device::Compute;
use candlewick::model::{Decoder, PackedTokens, Recorder};
use candlewick::ops::attention::Segment;
use candlewick::ops::head::{LogprobGrads, Predictions, logits, token_logprobs, token_logprobs_backward};
use candlewick::recipe::{LoadedModel, load_model, merge};
use candlewick::rollout::{Engine, RolloutRequest, SamplingConfig};
use candlewick::text::StopRules;

const ADAPTERS: [&str; 2] = ["qwen2_tied", "qwen3"];
const TOLERANCE: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn load(folder: &Path) -> LoadedModel {
    load_model(folder.to_str().unwrap(), None, true, None).unwrap()
}

fn ids(stored: &HashMap<String, Tensor>, name: &str) -> Vec<u32> {
    stored[name].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
}

fn tokens(ids: &[u32]) -> PackedTokens {
    let segments = vec![Segment { rows: 0..ids.len(), prefix: 0..0 }];
    PackedTokens { ids: ids.to_vec(), positions: (0..ids.len() as u32).collect(), segments }
}

fn logits_of(decoder: &Decoder, ids: &[u32]) -> Tensor {
    logits(&decoder.forward(&tokens(ids), None).unwrap(), decoder.head()).unwrap()
}

/// max abs(a - b) / max abs(b)
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let largest =
        |t: Tensor| f64::from(t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap());
    largest((a - b).unwrap()) / largest(b.clone())
}

#[test]
fn logits_and_gradients_are_those_of_peft() {
    for name in ADAPTERS {
        let (stored, (decoder, _)) = (expected(name), load(&folder(name)).decoder(&Compute::cpu(), true).unwrap());
        let ids = ids(&stored, "input_ids");
        let found = difference(&logits_of(&decoder, &ids), &stored["logits"]);
        assert!(found < TOLERANCE, "{name}: logits differ by {found:e}");
        let base = difference(&logits_of(&decoder.without_adapter().unwrap(), &ids), &stored["logits"]);
        assert!(base > 0.1, "{name}: the adapter changes little ({base:e}), so this shows little");

        let num = ids.len() - 1;
        let rows: Vec<u32> = (0..num as u32).collect();
        let predictions = Predictions { rows: &rows, targets: &ids[1..], temperature: 1.0 };
        let mut recorder = Recorder::new(false);
        let hidden = decoder.forward(&tokens(&ids), Some(&mut recorder)).unwrap();
        token_logprobs(&hidden, decoder.head(), predictions).unwrap();
        let grads = vec![-1.0 / num as f32; num];
        let d_hidden = hidden.zeros_like().unwrap();
        let upstream = LogprobGrads { logprobs: &grads, entropies: None };
        token_logprobs_backward(upstream, &hidden, decoder.head(), predictions, &d_hidden).unwrap();
        decoder.backward(recorder, &tokens(&ids), &d_hidden).unwrap();
        let mut compared = 0;
        for param in decoder.trained() {
            let found = difference(param.weight.grad().unwrap(), &stored[&format!("grad.{}", param.name)]);
            assert!(found < TOLERANCE, "{name}: the gradient of {} differs by {found:e}", param.name);
            compared += 1;
        }
        assert_eq!(compared, stored.keys().filter(|key| key.starts_with("grad.")).count());
        assert!(decoder.params().iter().all(|param| param.weight.grad().is_none()), "the base is frozen");
    }
}

/// Through the sampler, which has the adapter's weights laid out in another way.
#[test]
fn greedy_text_is_that_of_peft_and_of_the_merged_model() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ADAPTERS {
        let stored = expected(name);
        let merged = scratch.path().join(name);
        merge(folder(name).to_str().unwrap(), &merged, None, true).unwrap();
        let greedy = |model: &LoadedModel| {
            let (decoder, _) = model.decoder(&Compute::cpu(), false).unwrap();
            let engine = Engine {
                decoder: &decoder,
                tokenizer: &model.tokenizer,
                sampling: SamplingConfig { temperature: 0.0, ..SamplingConfig::default() },
                stop: &StopRules { eos_ids: Vec::new(), stop_strings: Vec::new(), max_completion_length: 16 },
                slots: 1,
                seed: 0,
                step: 0,
            };
            let prompt_ids = ids(&stored, "prompt_ids");
            let request = RolloutRequest { prompt_ids, prompt: 0, first_completion: 0, num_generations: 1 };
            engine.run(&[request], &mut ()).unwrap().0[0].completions[0].ids.clone()
        };
        let (adapted, whole) = (load(&folder(name)), load(&merged));
        assert!(adapted.adapter.is_some() && whole.adapter.is_none());
        assert_eq!(greedy(&adapted), ids(&stored, "greedy_ids"), "{name}");
        assert_eq!(greedy(&whole), ids(&stored, "greedy_ids"), "{name}, merged");
        let of_merged = logits_of(&whole.decoder(&Compute::cpu(), false).unwrap().0, &ids(&stored, "input_ids"));
        let found = difference(&of_merged, &stored["logits"]);
        assert!(found < TOLERANCE, "{name}: merged, logits differ by {found:e}");
    }
}
