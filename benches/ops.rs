//! Times each operation of the hot path, forward and backward, beside its naive form made of candle's own operations.
//!
//!     cargo bench --bench ops             all of them
//!     cargo bench --bench ops attention   those whose name holds the word
//!
//! The shapes are those of a Llama of 28 million parameters in a GRPO step: width 512, 8 heads of 64 that share 4 key and
//! value heads, 1408 inside the feed-forward part, 4096 tokens; 8 completions of 32 tokens after a prompt of 15. The
//! naive form computes what the operation's tests hold it against; `forward` and `backward` of it are one figure, since
//! candle's backward pass needs the recorded forward pass.
//!
//! `RAYON_NUM_THREADS` says how many threads both use.

mod naive;

use candle_core::{Device, Result, Tensor, Var};
use candlewick::device::Compute;
use candlewick::model::{Decoder, DecodingModel, ModelConfig, NewTokens, Params, init_weights};
use candlewick::ops::Weight;
use candlewick::ops::attention::{Context, Heads, Segment, attention, attention_backward, contexts};
use candlewick::ops::elementwise::{silu_mul, silu_mul_backward};
use candlewick::ops::embedding::{embedding, embedding_backward, zeros};
use candlewick::ops::head::{LogprobGrads, Predictions, token_logprobs, token_logprobs_backward};
use candlewick::ops::linear::Linear;
use candlewick::ops::rms_norm::{rms_norm, rms_norm_backward};
use candlewick::ops::rope::RopeTable;
use candlewick::optim::{AdamW, AdamWConfig};
use criterion::{Criterion, criterion_group, criterion_main};
use std::path::Path;

const PROMPT: usize = 15;
const COMPLETION: usize = 32;
const COMPLETIONS: usize = 8;
const ROWS: usize = PROMPT + COMPLETIONS * COMPLETION;
const WIDTH: usize = 512;
const INNER: usize = 1408;
const VOCAB: usize = 4096;
const HEADS: Heads = Heads { num_heads: 8, num_kv_heads: 4, head_dim: 64 };
const EPS: f64 = 1e-5;

fn random(rows: usize, cols: usize) -> Tensor {
    Tensor::randn(0f32, 1.0, (rows, cols), &Device::Cpu).expect("a shape")
}

fn trainable(value: &Tensor) -> Weight {
    Weight::trainable(value.copy().expect("a copy")).expect("a gradient buffer")
}

/// Token ids below `below`, spread over the whole range.
fn ids(count: usize, below: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 2_654_435_761 % below) as u32).collect()
}

/// The prompt, then each completion with the prompt as its prefix.
fn segments() -> Vec<Segment> {
    let completion = |i| PROMPT + i * COMPLETION..PROMPT + (i + 1) * COMPLETION;
    std::iter::once(Segment { rows: 0..PROMPT, prefix: 0..0 })
        .chain((0..COMPLETIONS).map(|i| Segment { rows: completion(i), prefix: 0..PROMPT }))
        .collect()
}

/// One operation: its forward pass, its backward pass, and the naive forms of the first and of both.
struct Op<'a> {
    name: &'a str,
    forward: &'a dyn Fn() -> Result<()>,
    backward: &'a dyn Fn() -> Result<()>,
    naive: &'a dyn Fn() -> Result<Tensor>,
    vars: &'a [&'a Var],
}

impl Op<'_> {
    fn bench(&self, criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group(self.name);
        group.bench_function("forward", |b| b.iter(|| (self.forward)().expect("the shapes fit")));
        group.bench_function("naive forward", |b| b.iter(|| (self.naive)().expect("the shapes fit")));
        group.bench_function("backward", |b| b.iter(|| (self.backward)().expect("the shapes fit")));
        group.bench_function("naive forward and backward", |b| {
            b.iter(|| {
                let grads = (self.naive)().and_then(|y| y.sum_all()?.backward()).expect("the shapes fit");
                assert!(self.vars.iter().all(|var| grads.get(var).is_some()), "a variable is not part of the graph");
            });
        });
        group.finish();
    }
}

fn var(value: &Tensor) -> Var {
    Var::from_tensor(value).expect("a float tensor")
}

fn linear(criterion: &mut Criterion) {
    let (x, w, g) = (random(ROWS, WIDTH), random(INNER, WIDTH), random(ROWS, INNER));
    let (xv, wv) = (var(&x), var(&w));
    let (layer, dx) = (Linear::new(trainable(&w), None), random(ROWS, WIDTH));
    Op {
        name: "linear",
        forward: &|| layer.forward(&x).map(drop),
        backward: &|| layer.backward(&g, &x, &dx, false, None),
        naive: &|| naive::linear(&xv, &wv),
        vars: &[&xv, &wv],
    }
    .bench(criterion);
}

fn norm(criterion: &mut Criterion) {
    let (x, w, g) = (random(ROWS, WIDTH), random(1, WIDTH).flatten_all().expect("a row"), random(ROWS, WIDTH));
    let (xv, wv) = (var(&x), var(&w));
    let (weight, dx) = (trainable(&w), random(ROWS, WIDTH));
    Op {
        name: "rms_norm",
        forward: &|| rms_norm(&x, &weight, EPS).map(drop),
        backward: &|| rms_norm_backward(&g, &x, &weight, EPS, &dx),
        naive: &|| naive::rms_norm(&xv, &wv, EPS),
        vars: &[&xv, &wv],
    }
    .bench(criterion);
}

fn rope(criterion: &mut Criterion) {
    let half = HEADS.head_dim / 2;
    let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let positions: Vec<u32> = (0..ROWS as u32).collect();
    let (x, table) =
        (random(ROWS, HEADS.q_width()), RopeTable::new(&inv_freq, &positions, &Device::Cpu).expect("a table"));
    let xv = var(&x);
    Op {
        name: "rope",
        forward: &|| table.rotate(&x, false),
        backward: &|| table.rotate(&x, true),
        naive: &|| naive::rope(&xv, &inv_freq, &positions),
        vars: &[&xv],
    }
    .bench(criterion);
}

fn attend(criterion: &mut Criterion) {
    let (qkv, g, segments) = (random(ROWS, HEADS.qkv_width()), random(ROWS, HEADS.q_width()), segments());
    let contexts = contexts(&segments, ROWS).expect("the segments cover the rows");
    let part = |start, width| qkv.narrow(1, start, width).expect("columns");
    let (q_width, kv_width) = (HEADS.q_width(), HEADS.kv_width());
    let (q, k, v) = (part(0, q_width), part(q_width, kv_width), part(q_width + kv_width, kv_width));
    let (qkv_var, mask) = (var(&qkv), naive::mask(contexts.rows()).expect("a mask"));
    Op {
        name: "attention",
        forward: &|| attention(&q, &k, &v, &contexts, HEADS).map(drop),
        backward: &|| attention_backward(&g, &qkv, &segments, &contexts, HEADS).map(drop),
        naive: &|| naive::attention(&qkv_var, &mask, HEADS),
        vars: &[&qkv_var],
    }
    .bench(criterion);
}

fn silu(criterion: &mut Criterion) {
    let (x, g) = (random(ROWS, 2 * INNER), random(ROWS, INNER));
    let xv = var(&x);
    Op {
        name: "silu_mul",
        forward: &|| silu_mul(&x).map(drop),
        backward: &|| silu_mul_backward(&g, &x).map(drop),
        naive: &|| naive::silu_mul(&xv),
        vars: &[&xv],
    }
    .bench(criterion);
}

fn embed(criterion: &mut Criterion) {
    let (table, g, ids) = (random(VOCAB, WIDTH), random(ROWS, WIDTH), ids(ROWS, VOCAB));
    let (tv, weight) = (var(&table), trainable(&table));
    Op {
        name: "embedding",
        forward: &|| embedding(&weight, &ids).map(drop),
        backward: &|| embedding_backward(&g, &weight, &ids),
        naive: &|| naive::embedding(&tv, &ids),
        vars: &[&tv],
    }
    .bench(criterion);
}

fn head(criterion: &mut Criterion) {
    let (hidden, w) = (random(ROWS, WIDTH), (random(VOCAB, WIDTH) * 0.02).expect("a product"));
    let (hv, wv) = (var(&hidden), var(&w));
    let (rows, targets): (Vec<u32>, _) = ((PROMPT as u32 - 1..ROWS as u32 - 1).collect(), ids(ROWS - PROMPT, VOCAB));
    let at = Predictions { rows: &rows, targets: &targets, temperature: 1.0 };
    let (weight, ones) = (trainable(&w), vec![1.0f32; rows.len()]);
    let d_hidden = zeros(ROWS, WIDTH, &hidden).expect("a buffer");
    let grads = LogprobGrads { logprobs: &ones, entropies: None };
    Op {
        name: "head log-probs",
        forward: &|| token_logprobs(&hidden, &weight, at).map(drop),
        backward: &|| token_logprobs_backward(grads, &hidden, &weight, at, &d_hidden).map(|_| ()),
        naive: &|| naive::logprobs(&hv, &wv, &rows, &targets),
        vars: &[&hv, &wv],
    }
    .bench(criterion);
}

/// One weight of the feed-forward part; the naive form is what candle's own optimizer does.
fn adamw(criterion: &mut Criterion) {
    let (theta, grad) = (random(INNER, WIDTH), random(INNER, WIDTH));
    let weight = trainable(&theta);
    weight.grad().expect("trainable").slice_set(&grad, 0, 0).expect("the same shape");
    let mut optimizer = AdamW::new(AdamWConfig::default(), [(weight.value(), true)]).expect("moments");
    let mut group = criterion.benchmark_group("adamw");
    group.bench_function("step", |b| {
        b.iter(|| {
            let step = optimizer.begin_step(1e-6, 1.0);
            optimizer.update(0, &weight, &step).expect("the shapes fit");
        });
    });
    let mut naive = naive::AdamW::new(var(&theta)).expect("a variable");
    group.bench_function("naive step", |b| b.iter(|| naive.step(&grad).expect("the shapes fit")));
    group.finish();
}

/// One more token for 64 sequences with 64 tokens each; the naive form is the training forward pass over a cache.
fn decode(criterion: &mut Criterion) {
    const SEQUENCES: usize = 64;
    const LENGTH: usize = 64;
    let text = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": {VOCAB}, "hidden_size": {WIDTH},
            "intermediate_size": {INNER}, "num_hidden_layers": 8, "num_attention_heads": {}, "num_key_value_heads": {}}}"#,
        HEADS.num_heads, HEADS.num_kv_heads
    );
    let config = ModelConfig::parse(&text, Path::new("config.json")).expect("a configuration");
    let params = Params::new(init_weights(&config, 1), &Compute::cpu(), false).expect("fits");
    let model = Decoder::new(config, params).expect("complete");
    let mut cache = model.new_cache(SEQUENCES * LENGTH).expect("fits");
    let mut decoding = DecodingModel::new(&model, true).expect("f32");
    let (ids, positions) = (ids(SEQUENCES, VOCAB), vec![LENGTH as u32 - 1; SEQUENCES]);
    let rows: Vec<u32> = (1..=SEQUENCES).map(|i| (i * LENGTH) as u32 - 1).collect();
    let contexts: Vec<Context> =
        (0..SEQUENCES).map(|i| Context { prefix: 0..0, own: i * LENGTH..(i + 1) * LENGTH }).collect();
    let mut group = criterion.benchmark_group("decode");
    group.bench_function("token", |b| {
        let tokens = NewTokens { ids: &ids, positions: &positions, rows: &rows, contexts: &contexts };
        b.iter(|| decoding.forward(tokens, &mut cache).expect("the shapes fit"));
    });
    group.bench_function("naive token", |b| {
        b.iter(|| model.forward_cached(&ids, &positions, &mut cache, &rows, &contexts).expect("the shapes fit"));
    });
    group.finish();
}

criterion_group!(benches, linear, norm, rope, attend, silu, embed, head, adamw, decode);
criterion_main!(benches);
