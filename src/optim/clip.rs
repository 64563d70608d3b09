//! The global norm of the gradient and the factor that bounds it.

use super::CHUNK;
use crate::ops::gpu::{self, Buffer, Launch, arg};
use crate::ops::math::LANES;
use crate::ops::simd::kernel;
use crate::ops::storage::mat;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// The sum of the squares of a gradient, in f64.
///
/// Chunks of a fixed size are summed in a fixed order, so that the number of threads does not show in the result.
#[must_use]
pub fn sum_of_squares(grad: &[f32]) -> f64 {
    let partial: Vec<f64> = grad.par_chunks(CHUNK).map(sum_chunk).collect();
    partial.iter().sum()
}

kernel! {
    fn sum_chunk(chunk: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (blocks, rest) = chunk.as_chunks::<LANES>();
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
    }
}

/// Blocks that sum a gradient on a GPU.
const BLOCKS: usize = 256;

/// The L2 norm over all gradients together, f32 on one device: the metric `grad_norm`. Not finite if any element is not.
///
/// # Errors
/// Fails for gradients that are not f32.
pub fn compute_grad_norm(grads: &[&Tensor]) -> Result<f64> {
    let mut squares = 0.0;
    if let Some(gpu) = grads.first().and_then(|grad| gpu::of(grad)) {
        let partial: Buffer = gpu.buffer::<f64>(grads.len() * BLOCKS)?;
        for (index, grad) in grads.iter().enumerate() {
            let flat = grad.flatten_all()?;
            let (values, count) = (gpu.view(&flat)?.matrix.data, flat.elem_count() as u64);
            let sums = partial.at(index * BLOCKS, size_of::<f64>());
            gpu.launch("sum_of_squares", Launch::blocks(BLOCKS), &[arg(&values), arg(&count), arg(&sums)])?;
        }
        squares = gpu.download::<f64>(&partial, grads.len() * BLOCKS)?.iter().sum();
    } else {
        for grad in grads {
            let flat = grad.flatten_all()?;
            let (storage, layout) = flat.storage_and_layout();
            squares += sum_of_squares(mat(&storage, layout)?.data);
        }
    }
    Ok(squares.sqrt())
}

/// What every gradient is multiplied by: `min(1, max_norm / (norm + 1e-6))`, as torch's `clip_grad_norm_`.
///
/// No `max_norm`, or one of 0, means no clipping, as in transformers. A norm that is not a number stays one.
#[must_use]
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    let Some(max_norm) = max_norm.filter(|max_norm| *max_norm > 0.0) else { return 1.0 };
    let factor = max_norm / (norm + 1e-6);
    if factor > 1.0 { 1.0 } else { factor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{device, on_each_device};
    use crate::rng::{Stream, uniform};

    #[test]
    fn norm_is_that_of_all_gradients_together() {
        on_each_device(|| {
            let tensor = |values: &[f32]| Tensor::new(values, &device()).unwrap();
            let norm = |a: &[f32], b: &[f32]| compute_grad_norm(&[&tensor(a), &tensor(b)]).unwrap();
            assert!((norm(&[3.0], &[0.0, 4.0]) - 5.0).abs() < 1e-12);
            assert!(norm(&[f32::NAN], &[1.0]).is_nan());
            Ok(())
        })
        .expect("runs");
        let grad: Vec<f32> = (0..1001).map(|i| uniform(3, Stream::Data, [0, i, 0, 0]) as f32).collect();
        let plain: f64 = grad.iter().map(|g| f64::from(*g).powi(2)).sum();
        assert!((sum_of_squares(&grad) - plain).abs() < 1e-10);
    }

    #[test]
    fn threads_do_not_show_in_the_norm() {
        let grad: Vec<f32> = (0..5 * CHUNK as u64 + 3).map(|i| uniform(4, Stream::Data, [0, i, 0, 0]) as f32).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_squares(&grad)).to_bits()
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn the_factor_never_enlarges() {
        assert!((clip_factor(2.0, Some(1.0)) - 1.0 / (2.0 + 1e-6)).abs() < 1e-15);
        for (norm, max_norm) in [(0.5, Some(1.0)), (0.0, Some(1.0)), (9.0, None), (9.0, Some(0.0))] {
            assert_eq!(clip_factor(norm, max_norm).to_bits(), 1.0f64.to_bits());
        }
        assert!(clip_factor(f64::NAN, Some(1.0)).is_nan());
        assert_eq!(clip_factor(f64::INFINITY, Some(1.0)).to_bits(), 0.0f64.to_bits());
    }
}
