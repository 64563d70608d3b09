//! Helpers for the tests of the operations.

use super::simd::limit;
use crate::rng::{self, Stream};
use candle_core::{Device, Result, Tensor, Var};

/// A tensor of standard normal values, named by its seed.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| rng::normal(seed, Stream::Init, [i as u64, 0, 0, 0]) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("the count matches the shape")
}

pub(crate) fn variable(tensor: &Tensor) -> Var {
    Var::from_tensor(tensor).expect("a float tensor")
}

/// The largest difference, relative to the largest value of `b` (or 1 where that is smaller).
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = || -> Result<f32> {
        let scale = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.max(1.0);
        Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? / scale)
    };
    difference().expect("tensors of one shape")
}

#[track_caller]
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let difference = difference(a, b);
    assert!(difference <= tolerance, "differ by {difference:e}, more than {tolerance:e}");
}

/// The gradients of `sum(y * upstream)` with respect to `vars`, by candle's own automatic differentiation.
pub(crate) fn reference_gradients(y: &Tensor, upstream: &Tensor, vars: &[&Var]) -> Result<Vec<Tensor>> {
    let grads = (y * upstream)?.sum_all()?.backward()?;
    Ok(vars.iter().map(|v| grads.get(v).expect("the variable is part of the graph").clone()).collect())
}

/// Runs `f` with the vector instructions of this machine and with fewer, and checks that the results have the same bits.
pub(crate) fn assert_level_invariant(f: impl Fn() -> Vec<Tensor>) {
    let run = |level| {
        limit::set(level);
        let bits = all_bits(&f());
        limit::set(*limit::LEVELS.last().expect("there is one"));
        bits
    };
    let plain = run(limit::LEVELS[0]);
    for level in &limit::LEVELS[1..] {
        assert!(run(*level) == plain, "{level:?}");
    }
}

fn all_bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    let values = tensors.iter().map(|t| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32"));
    values.map(|v| v.into_iter().map(f32::to_bits).collect()).collect()
}

/// Runs `f` on pools of one and of two threads and checks that the results have the same bits.
pub(crate) fn assert_thread_invariant(f: impl Fn() -> Vec<Tensor> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        all_bits(&pool.install(&f))
    };
    assert_eq!(run(1), run(2));
}
