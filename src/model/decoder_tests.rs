//! What the decoder promises: gradients equal to slopes, one result on both ways through, checkpointing that changes
//! nothing, shared prefixes that equal separate sequences.

use super::*;
use crate::device::Compute;
#[cfg(any(emulation, feature = "cuda"))]
use crate::model::RecordedModel;
use crate::model::{DecodingModel, Family, LoadedTensor, NewTokens, RopeScaling};
use crate::ops::head::{LogprobGrads, Predictions, logits, token_logprobs, token_logprobs_backward};
#[cfg(any(emulation, feature = "cuda"))]
use crate::ops::testing::{compute, on_gpu};
use crate::rng::{self, Stream};
use std::ops::Range;

fn config(family: Family) -> ModelConfig {
    let qwen3 = family == Family::Qwen3;
    ModelConfig {
        family,
        task: Task::CausalLm,
        vocab_size: 29,
        hidden_size: 20,
        intermediate_size: 33,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 256,
        tie_word_embeddings: family == Family::Qwen2,
        qkv_bias: family == Family::Qwen2,
        out_bias: false,
        mlp_bias: family == Family::Llama,
        qk_norm: qwen3,
        initializer_range: 0.02,
        notices: Vec::new(),
    }
}

/// Random weights with non-trivial biases and norms.
fn decoder(family: Family, trainable: bool) -> Decoder {
    random_decoder(config(family), &Compute::cpu(), trainable)
}

fn random_decoder(config: ModelConfig, compute: &Compute, trainable: bool) -> Decoder {
    let tensors = config.tensors().into_iter().enumerate().map(|(index, spec)| {
        let count: usize = spec.shape.iter().product();
        let draw = |i: usize| rng::normal(7, Stream::Init, [index as u64, i as u64, 0, 0]) as f32;
        let mean = if spec.name.contains("norm") { 1.0 } else { 0.0 };
        let data = (0..count).map(|i| mean + 0.2 * draw(i)).collect();
        LoadedTensor { name: spec.name, shape: spec.shape, data }
    });
    let params = Params::new(tensors.collect(), compute, trainable).expect("fits");
    Decoder::new(config, params).expect("complete")
}

const FAMILIES: [Family; 4] = Family::ALL;

/// A prompt of 5 with completions of 4 and 3, and a lone sequence of 6.
fn packed() -> PackedTokens {
    PackedTokens {
        ids: (0..18).map(|i| (i * 11 + 3) % 29).collect(),
        positions: vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 0, 1, 2, 3, 4, 5],
        segments: [(0..5, 0..0), (5..9, 0..5), (9..12, 0..5), (12..18, 0..0)]
            .map(|(rows, prefix)| Segment { rows, prefix })
            .to_vec(),
    }
}

const ROWS: [u32; 6] = [4, 4, 7, 10, 13, 16];
const TARGETS: [u32; 6] = [3, 9, 28, 0, 14, 5];
const GRADS: [f32; 6] = [0.5, -1.0, 0.25, 1.0, -0.5, 2.0];

fn predictions() -> Predictions<'static> {
    Predictions { rows: &ROWS, targets: &TARGETS, temperature: 0.9 }
}

fn loss(decoder: &Decoder, tokens: &PackedTokens) -> f64 {
    let hidden = decoder.forward(tokens, None).expect("runs");
    let scored = token_logprobs(&hidden, decoder.head(), predictions()).expect("runs");
    scored.logprobs.iter().zip(GRADS).map(|(l, g)| f64::from(*l) * f64::from(g)).sum()
}

fn run_backward(decoder: &Decoder, tokens: &PackedTokens, checkpointing: bool) {
    let mut recorder = Recorder::new(checkpointing);
    let hidden = decoder.forward(tokens, Some(&mut recorder)).expect("runs");
    let d_hidden = hidden.zeros_like().expect("fits");
    let grads = LogprobGrads { logprobs: &GRADS, entropies: None };
    token_logprobs_backward(grads, &hidden, decoder.head(), predictions(), &d_hidden).expect("runs");
    decoder.backward(recorder, tokens, &d_hidden).expect("runs");
}

fn grads(decoder: &Decoder) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
    decoder.params().iter().map(|p| (p.name.clone(), flat(p.weight.grad().expect("trainable")))).collect()
}

/// Every parameter of every family receives a finite gradient that is not zero, and in a random direction the slope
/// of the loss equals the gradient's projection.
#[test]
fn every_parameter_gets_the_right_gradient() {
    for family in FAMILIES {
        let (model, tokens) = (decoder(family, true), packed());
        run_backward(&model, &tokens, false);
        for ((name, grad), param) in grads(&model).into_iter().zip(model.params()) {
            assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "{family:?} {name}");
            let direction: Vec<f32> =
                (0..grad.len()).map(|i| rng::normal(11, Stream::Init, [i as u64, 0, 0, 0]) as f32).collect();
            let norm = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
            let shift = |h: f32| {
                let flat = param.weight.value().flatten_all().expect("fits");
                crate::ops::storage::update(&flat, |m| {
                    m.data.iter_mut().zip(&direction).for_each(|(w, d)| *w += h * d / norm);
                    Ok(())
                })
                .expect("f32");
            };
            let h = 2e-3;
            shift(h);
            let above = loss(&model, &tokens);
            shift(-2.0 * h);
            let below = loss(&model, &tokens);
            shift(h);
            let slope = (above - below) / (2.0 * f64::from(h));
            let projected: f64 = grad.iter().zip(&direction).map(|(g, d)| f64::from(g * d / norm)).sum();
            assert!((slope - projected).abs() < 5e-3 * slope.abs().max(1.0), "{family:?} {name}: {slope} {projected}");
        }
    }
}

/// Keeping only the layers' inputs gives the same gradients to the bit.
#[test]
fn checkpointing_changes_no_bit() {
    for family in FAMILIES {
        let (kept, again, tokens) = (decoder(family, true), decoder(family, true), packed());
        run_backward(&kept, &tokens, false);
        run_backward(&again, &tokens, true);
        for ((name, a), (_, b)) in grads(&kept).into_iter().zip(grads(&again)) {
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "{family:?} {name}");
        }
    }
}

/// A prompt shared by its completions gives the hidden states, to the bit, and the gradients, to rounding, of the
/// same sequences written out separately.
#[test]
fn a_shared_prefix_equals_separate_sequences() {
    for family in FAMILIES {
        let tokens = packed();
        let (shared, separate) = (decoder(family, true), decoder(family, true));
        let sequences: [Vec<usize>; 3] = [(0..9).collect(), (0..5).chain(9..12).collect(), (12..18).collect()];
        let mut long = PackedTokens::default();
        for rows in &sequences {
            let start = long.ids.len();
            long.ids.extend(rows.iter().map(|r| tokens.ids[*r]));
            long.positions.extend(0..rows.len() as u32);
            long.segments.push(Segment { rows: start..start + rows.len(), prefix: 0..0 });
        }
        // The rows of ROWS in the long form: the prompt's last row once for each completion.
        let rows = [4u32, 13, 7, 15, 18, 21];
        let a = shared.forward(&tokens, None).expect("runs").to_vec2::<f32>().expect("f32");
        let b = separate.forward(&long, None).expect("runs").to_vec2::<f32>().expect("f32");
        for (short, long) in ROWS.iter().zip(rows) {
            let (a, b) = (&a[*short as usize], &b[long as usize]);
            assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{family:?} row {short}");
        }
        run_backward(&shared, &tokens, false);
        let mut recorder = Recorder::new(false);
        let hidden = separate.forward(&long, Some(&mut recorder)).expect("runs");
        let d_hidden = hidden.zeros_like().expect("fits");
        let at = Predictions { rows: &rows, ..predictions() };
        let upstream = LogprobGrads { logprobs: &GRADS, entropies: None };
        token_logprobs_backward(upstream, &hidden, separate.head(), at, &d_hidden).expect("runs");
        separate.backward(recorder, &long, &d_hidden).expect("runs");
        for ((name, a), (_, b)) in grads(&shared).into_iter().zip(grads(&separate)) {
            let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let worst = a.iter().zip(&b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= 1e-5 * scale.max(1e-3), "{family:?} {name}: {worst} of {scale}");
        }
    }
}

/// The bits of each row, widened to f32.
fn bits(hidden: Result<Tensor>) -> Vec<Vec<u32>> {
    let hidden = hidden.and_then(|hidden| hidden.to_dtype(DType::F32)?.to_vec2::<f32>()).expect("runs");
    hidden.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

/// Token by token through the cache, with cache rows in another order, each hidden state has the bits of the packed
/// forward pass.
fn assert_cached_equals_packed(model: &Decoder, what: &str) {
    let tokens = packed();
    let packed = bits(model.forward(&tokens, None));
    let mut cache = model.new_cache(40).expect("fits");
    // The prompt (rows 0..5) goes to cache rows 20..25 at once, its first completion (5..9) to 3.. one by one.
    let contexts: Vec<Context> = (0..5).map(|i| Context { prefix: 0..0, own: 20..21 + i }).collect();
    let rows: Vec<u32> = (20..25).collect();
    let prompt = model.forward_cached(&tokens.ids[..5], &tokens.positions[..5], &mut cache, &rows, &contexts);
    let mut all = bits(prompt);
    for i in 0..4usize {
        let context = Context { prefix: 20..25, own: 3..4 + i };
        let (id, position) = (tokens.ids[5 + i], tokens.positions[5 + i]);
        all.extend(bits(model.forward_cached(&[id], &[position], &mut cache, &[3 + i as u32], &[context])));
    }
    assert_eq!(all, packed[..9], "{what}");
}

#[test]
fn cached_equals_packed_to_the_bit() {
    for family in FAMILIES {
        assert_cached_equals_packed(&decoder(family, false), &format!("{family:?}"));
    }
}

/// The same promise of the kernels for a GPU, in both formats.
#[cfg(any(emulation, feature = "cuda"))]
#[test]
fn cached_equals_packed_to_the_bit_on_a_gpu() {
    for (family, dtype) in FAMILIES.into_iter().flat_map(|family| [(family, DType::F32), (family, DType::BF16)]) {
        on_gpu(|| {
            let model = random_decoder(config(family), &compute(dtype), false);
            assert_cached_equals_packed(&model, &format!("{family:?} {dtype:?}"));
        });
    }
}

/// Token by token for several sequences at once, as a rollout on a GPU does it: the bits of the packed forward pass, in
/// the first call, in those that are recorded, and when the number of rows changes.
#[cfg(any(emulation, feature = "cuda"))]
#[test]
fn recorded_decoding_equals_packed_to_the_bit() {
    const PROMPT: usize = 5;
    const TOKENS: usize = 5;
    for (family, dtype) in FAMILIES.into_iter().flat_map(|family| [(family, DType::F32), (family, DType::BF16)]) {
        on_gpu(|| {
            let model = random_decoder(config(family), &compute(dtype), false);
            let rows = 3;
            let tokens = completions_of_one_prompt(PROMPT, rows, TOKENS);
            let packed = bits(model.forward(&tokens, None));
            let mut cache = model.new_cache(PROMPT + rows * TOKENS).expect("fits");
            prefill(&model, &tokens, PROMPT, &mut cache);
            let mut decoding = RecordedModel::new(&model).expect("on a GPU");
            for i in 0..TOKENS {
                // The last completion ends before the others.
                let rows = if i + 1 == TOKENS { rows - 1 } else { rows };
                let at: Vec<usize> = (0..rows).map(|row| PROMPT + row * TOKENS + i).collect();
                let own = |row: &usize| Context { prefix: 0..PROMPT, own: row - i..row + 1 };
                let new = NewTokens {
                    ids: &at.iter().map(|row| tokens.ids[*row]).collect::<Vec<_>>(),
                    positions: &vec![(PROMPT + i) as u32; rows],
                    rows: &at.iter().map(|row| *row as u32).collect::<Vec<_>>(),
                    contexts: &at.iter().map(own).collect::<Vec<_>>(),
                };
                let found = bits(decoding.forward(new, &mut cache));
                let expected: Vec<_> = at.iter().map(|row| packed[*row].clone()).collect();
                assert_eq!(found, expected, "{family:?} {dtype:?} token {i}");
            }
        });
    }
}

/// The kernels for a GPU give the gradients of those for the CPU, to rounding.
#[cfg(any(emulation, feature = "cuda"))]
#[test]
fn gradients_on_a_gpu_equal_those_on_the_cpu() {
    for (family, dtype, tolerance) in
        FAMILIES.into_iter().flat_map(|family| [(family, DType::F32, 1e-4), (family, DType::BF16, 0.1)])
    {
        let cpu = decoder(family, true);
        run_backward(&cpu, &packed(), false);
        let found = on_gpu(|| {
            let gpu = random_decoder(config(family), &compute(dtype), true);
            run_backward(&gpu, &packed(), true);
            grads(&gpu)
        });
        for ((name, a), (_, b)) in found.into_iter().zip(grads(&cpu)) {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let apart = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            let size = norm(&mut b.iter().copied());
            assert!(apart <= tolerance * size, "{family:?} {dtype:?} {name}: {apart} of {size}");
        }
    }
}

/// A prompt of `prompt` tokens, then `rows` completions of `length` tokens each.
fn completions_of_one_prompt(prompt: usize, rows: usize, length: usize) -> PackedTokens {
    let id = |row: usize, position: usize| ((row * 13 + position * 7 + 2) % 29) as u32;
    let mut tokens = PackedTokens {
        ids: (0..prompt).map(|position| id(0, position)).collect(),
        positions: (0..prompt as u32).collect(),
        segments: vec![Segment { rows: 0..prompt, prefix: 0..0 }],
    };
    for row in 0..rows {
        tokens.ids.extend((prompt..prompt + length).map(|position| id(row, position)));
        tokens.positions.extend(prompt as u32..(prompt + length) as u32);
        let start = prompt + row * length;
        tokens.segments.push(Segment { rows: start..start + length, prefix: 0..prompt });
    }
    tokens
}

/// Runs the first `prompt` tokens; their keys and values go to the first rows of the cache.
fn prefill(model: &Decoder, tokens: &PackedTokens, prompt: usize, cache: &mut KvCache) {
    let contexts: Vec<Context> = (0..prompt).map(|i| Context { prefix: 0..0, own: 0..i + 1 }).collect();
    let rows: Vec<u32> = (0..prompt as u32).collect();
    let (ids, positions) = (&tokens.ids[..prompt], &tokens.positions[..prompt]);
    model.forward_cached(ids, positions, cache, &rows, &contexts).expect("runs");
}

/// Decoding many completions of one prompt together gives the bits of the packed forward pass and, in the logits, of
/// the head's: with weights laid out and where they are, on one thread and on two, few rows and many, heads of 8 and of
/// 32 values.
#[test]
fn decoding_equals_packed_to_the_bit() {
    const PROMPT: usize = 5;
    const TOKENS: usize = 4;
    for (family, head_dim, rows) in FAMILIES.into_iter().flat_map(|f| [(f, 8, 3), (f, 32, 40), (f, 32, 5)]) {
        let model = random_decoder(ModelConfig { head_dim, ..config(family) }, &Compute::cpu(), false);
        let tokens = completions_of_one_prompt(PROMPT, rows, TOKENS);
        let hidden = model.forward(&tokens, None).expect("runs");
        let logits = logits(&hidden, model.head()).expect("runs").to_vec2::<f32>().expect("f32");
        let hidden = hidden.to_vec2::<f32>().expect("f32");

        let decode = |pack: bool| {
            let mut cache = model.new_cache(PROMPT + rows * TOKENS).expect("fits");
            prefill(&model, &tokens, PROMPT, &mut cache);
            let mut decoding = DecodingModel::new(&model, pack).expect("f32");
            for i in 0..TOKENS {
                let at: Vec<usize> = (0..rows).map(|row| PROMPT + row * TOKENS + i).collect();
                let own = |row: &usize| Context { prefix: 0..PROMPT, own: row - i..row + 1 };
                let new = NewTokens {
                    ids: &at.iter().map(|row| tokens.ids[*row]).collect::<Vec<_>>(),
                    positions: &vec![(PROMPT + i) as u32; rows],
                    rows: &at.iter().map(|row| *row as u32).collect::<Vec<_>>(),
                    contexts: &at.iter().map(own).collect::<Vec<_>>(),
                };
                let found = decoding.forward(new, &mut cache).expect("runs");
                let z = decoding.map_logits(&found, |_, z| z.to_vec()).expect("runs");
                let found = found.to_vec2::<f32>().expect("f32");
                for ((row, found), z) in at.iter().zip(&found).zip(z) {
                    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same(found, &hidden[*row]), "{family:?} {head_dim} {rows} {pack}: hidden of row {row}");
                    assert!(same(&z, &logits[*row]), "{family:?} {head_dim} {rows} {pack}: logits of row {row}");
                }
            }
        };
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| decode(true));
            pool.install(|| decode(false));
        }
    }
}

/// Tokens that would write a row which another one sees, a row twice, or a row outside the cache are refused.
#[test]
fn decoding_refuses_rows_in_each_others_way() {
    let model = decoder(Family::Llama, false);
    let mut cache = model.new_cache(8).expect("fits");
    let mut run = |rows: [u32; 2], own: [Range<usize>; 2], prefix: Range<usize>| {
        let contexts = own.map(|own| Context { prefix: prefix.clone(), own });
        let tokens = NewTokens { ids: &[1, 2], positions: &[2, 2], rows: &rows, contexts: &contexts };
        DecodingModel::new(&model, true).expect("f32").forward(tokens, &mut cache)
    };
    assert!(run([3, 5], [3..4, 5..6], 0..3).is_ok());
    assert!(run([3, 3], [3..4, 3..4], 0..3).is_err());
    assert!(run([3, 5], [3..4, 3..6], 0..3).is_err());
    assert!(run([3, 5], [3..4, 5..6], 0..4).is_err());
    assert!(run([3, 8], [3..4, 8..9], 0..3).is_err());
    assert!(run([3, 5], [3..4, 4..5], 0..3).is_err());
}
