//! Helpers for the tests of the operations.

use super::simd::limit;
use crate::rng::{self, Stream};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::cell::RefCell;

/// A tensor of standard normal values, named by its seed.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| rng::normal(seed, Stream::Init, [i as u64, 0, 0, 0]) as f32).collect();
    Tensor::from_vec(values, shape, &device()).expect("the count matches the shape")
}

/// The values in f64, for a reference.
pub(crate) fn variable(tensor: &Tensor) -> Var {
    tensor.to_dtype(DType::F64).and_then(|wide| Var::from_tensor(&wide)).expect("a float tensor")
}

/// The largest difference, relative to the largest value of `b` (or 1 where that is smaller).
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = || -> Result<f32> {
        let (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
        let scale = b.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.max(1.0);
        Ok((a - &b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? / scale)
    };
    difference().expect("tensors of one shape")
}

#[track_caller]
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let difference = difference(a, b);
    assert!(difference <= tolerance, "differ by {difference:e}, more than {tolerance:e}");
}

/// The gradients, f64, of `sum(y * upstream)` with respect to `vars`, by candle's own automatic differentiation.
pub(crate) fn reference_gradients(y: &Tensor, upstream: &Tensor, vars: &[&Var]) -> Result<Vec<Tensor>> {
    let grads = (y * upstream.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    Ok(vars.iter().map(|v| grads.get(v).expect("the variable is part of the graph").clone()).collect())
}

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::Cpu) };
}

/// Where the tensors of a test live.
pub(crate) fn device() -> Device {
    DEVICE.with_borrow(Clone::clone)
}

/// The device of the test, and a format.
#[cfg(any(emulation, feature = "cuda"))]
pub(crate) fn compute(dtype: candle_core::DType) -> crate::device::Compute {
    crate::device::Compute { device: device(), dtype }
}

/// Runs `f` with the kernels for the CPU, then, where they can be run, with those for a GPU.
pub(crate) fn on_each_device(f: impl Fn() -> Result<()>) -> Result<()> {
    f()?;
    #[cfg(any(emulation, feature = "cuda"))]
    on_gpu(f)?;
    Ok(())
}

/// Runs `f` with the kernels for a GPU: on a GPU if the tests are built for one and there is one, else emulated.
#[cfg(any(emulation, feature = "cuda"))]
pub(crate) fn on_gpu<R>(f: impl FnOnce() -> R) -> R {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            DEVICE.set(Device::Cpu);
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = GPU.as_ref() {
        DEVICE.set(gpu.clone());
        let _back = Back;
        return f();
    }
    let _back = Back;
    #[cfg(emulation)]
    return super::gpu::emulate(f);
    #[cfg(not(emulation))]
    panic!("these tests were built without a C++ compiler and need a GPU");
}

/// The GPU of this machine; with `GPU_TESTS` in the environment there must be one. Tests that use it run one at a time
/// (`--test-threads 1`): they share a stream.
#[cfg(feature = "cuda")]
static GPU: std::sync::LazyLock<Option<Device>> = std::sync::LazyLock::new(|| {
    let gpu = crate::device::open(crate::device::DeviceKind::Cuda);
    if std::env::var_os("GPU_TESTS").is_some() { Some(gpu.expect("a GPU")) } else { gpu.ok() }
});

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
