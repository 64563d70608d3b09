//! The kernels with bf16 values: close to the same kernels with f32 values, which each operation's own tests hold
//! against its reference.

use crate::ops::Weight;
use crate::ops::attention::{Heads, Segment, attention, attention_backward, contexts, parts};
use crate::ops::elementwise::{add_into, silu_mul, silu_mul_backward};
use crate::ops::embedding::{RowNumbers, embedding, embedding_backward, scatter_add_rows, scatter_rows, zeros};
use crate::ops::head::{LogprobGrads, Predictions, token_logprobs, token_logprobs_backward};
use crate::ops::linear::Linear;
use crate::ops::lora::Lora;
use crate::ops::rms_norm::{rms_norm, rms_norm_backward};
use crate::ops::rope::RopeTable;
use crate::ops::testing::{assert_close, device, difference, on_gpu, random};
use candle_core::{DType, Result, Tensor};

/// Runs `f` on values of both types, emulated; its results may differ by the rounding of bf16, relative to the largest.
fn compare(f: impl Fn(DType) -> Result<Vec<Tensor>>) {
    let run = |dtype| on_gpu(|| f(dtype)).expect("runs");
    let (exact, rounded) = (run(DType::F32), run(DType::BF16));
    assert_eq!(exact.len(), rounded.len());
    for (exact, rounded) in exact.iter().zip(&rounded) {
        let widened = rounded.to_dtype(DType::F32).expect("a float type");
        assert_close(&widened, exact, 0.03);
        // What is rounded at the end cannot be exact; gradients of weights are f32 in both.
        assert!(rounded.dtype() == DType::F32 || difference(&widened, exact) > 0.0, "the two types gave the same");
    }
}

/// The same values in both types: those that bf16 has.
fn values(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    random(shape, seed).to_dtype(DType::BF16).and_then(|t| t.to_dtype(dtype)).expect("a float type")
}

fn weight(shape: &[usize], seed: u64, dtype: DType) -> Weight {
    Weight::trainable_as(values(shape, seed, DType::F32), dtype).expect("fits")
}

fn grad(weight: &Weight) -> Tensor {
    weight.grad().expect("trainable").clone()
}

#[test]
fn elementwise() {
    compare(|dtype| {
        let (x, g) = (values(&[5, 64], 1, dtype), values(&[5, 32], 2, dtype));
        let y = silu_mul(&x)?;
        let dx = silu_mul_backward(&g, &x)?;
        add_into(&dx, &x)?;
        Ok(vec![y, dx])
    });
}

#[test]
fn norms() {
    compare(|dtype| {
        let (x, g, w) = (values(&[600, 80], 1, dtype), values(&[600, 80], 2, dtype), weight(&[40], 3, dtype));
        let (y, dx) = (rms_norm(&x, &w, 1e-5)?, zeros(600, 80, &x)?);
        rms_norm_backward(&g, &x, &w, 1e-5, &dx)?;
        Ok(vec![y, dx, grad(&w)])
    });
}

#[test]
fn linear_maps() {
    compare(|dtype| {
        let linear = Linear::new(weight(&[24, 40], 1, dtype), Some(weight(&[24], 2, dtype)));
        let (x, g) = (values(&[300, 40], 3, dtype), values(&[300, 24], 4, dtype));
        let (y, dx) = (linear.forward(&x)?, zeros(300, 40, &x)?);
        linear.backward(&g, &x, &dx, true, None)?;
        let bias = linear.bias.as_ref().map(grad);
        Ok([y, dx, grad(&linear.weight)].into_iter().chain(bias).collect())
    });
}

#[test]
fn adapted_maps() {
    compare(|dtype| {
        let (a, b) = (weight(&[8, 40], 5, dtype), weight(&[24, 8], 6, dtype));
        let lora = Lora { a, b, scale: 0.5, dropout: 0.2, module: 1 };
        let linear = Linear { lora: Some(lora.clone()), ..Linear::new(weight(&[24, 40], 1, dtype), None) };
        let (x, g) = (values(&[300, 40], 3, dtype), values(&[300, 24], 4, dtype));
        let (y, dx) = (zeros(300, 24, &x)?, zeros(300, 40, &x)?);
        linear.forward_into(&x, &y, Some(9))?;
        linear.backward(&g, &x, &dx, true, Some(9))?;
        Ok(vec![y, dx, grad(&lora.a), grad(&lora.b)])
    });
}

#[test]
fn rotations() {
    compare(|dtype| {
        let x = values(&[3, 16], 1, dtype);
        RopeTable::new(&[1.0, 0.1, 0.01, 0.001], &[0, 7, 3000], &device())?.rotate(&x, true)?;
        Ok(vec![x])
    });
}

#[test]
fn rows_of_tables() {
    compare(|dtype| {
        let (table, ids) = (weight(&[9, 300], 1, dtype), [3u32, 8, 3, 0, 3]);
        let (y, g) = (embedding(&table, &ids)?, values(&[5, 300], 2, dtype));
        embedding_backward(&g, &table, &ids)?;
        add_into(&g, &y)?;
        let sum = values(&[9, 300], 3, dtype);
        scatter_add_rows(&sum, &ids, &g)?;
        scatter_rows(&sum, &RowNumbers::new(&[1, 2, 4, 5, 6]), &g)?;
        // The gradient is a sum of values that bf16 has: exact in both.
        let exact = grad(&table);
        add_into(&exact, &g.narrow(0, 0, 1)?.broadcast_as((9, 300))?.to_dtype(DType::F32)?.contiguous()?)?;
        Ok(vec![sum, exact])
    });
}

#[test]
fn predictions() {
    compare(|dtype| {
        let (hidden, head) = (values(&[20, 16], 1, dtype), weight(&[300, 16], 2, dtype));
        let rows: Vec<u32> = (0..600).map(|i| i * 7 % 20).collect();
        let targets: Vec<u32> = (0..600).map(|i| i * 5 % 300).collect();
        let at = Predictions { rows: &rows, targets: &targets, temperature: 0.8 };
        let by: Vec<f32> = (0..600).map(|i| (i % 11) as f32 - 4.0).collect();
        let (entropies, d_hidden) = ([0.25; 600], zeros(20, 16, &hidden)?);
        let grads = LogprobGrads { logprobs: &by, entropies: Some(&entropies) };
        let found = token_logprobs_backward(grads, &hidden, &head, at, &d_hidden)?;
        assert_eq!(found, token_logprobs(&hidden, &head, at)?);
        Ok(vec![d_hidden, grad(&head)])
    });
}

/// Heads of every width that there is a kernel for; long enough for several tiles of queries and of keys.
#[test]
fn attention_of_every_width() {
    for (num_heads, num_kv_heads, head_dim) in [(6, 2, 24), (7, 1, 64), (2, 2, 128), (2, 1, 200)] {
        compare(|dtype| {
            let heads = Heads { num_heads, num_kv_heads, head_dim };
            let segments = [(0..70, 0..0), (70..75, 0..70), (75..110, 0..70), (110..111, 0..0), (111..150, 110..111)]
                .map(|(rows, prefix)| Segment { rows, prefix });
            let contexts = contexts(&segments, 150)?;
            let (qkv, g) = (values(&[150, heads.qkv_width()], 1, dtype), values(&[150, heads.q_width()], 2, dtype));
            let [q, k, v] = parts(&qkv, heads)?;
            let y = attention(&q, &k, &v, &contexts, heads)?;
            Ok(vec![y, attention_backward(&g, &qkv, &segments, &contexts, heads)?])
        });
    }
}
