//! Root-mean-square normalisation (Zhang and Sennrich, arXiv:1910.07467 eq. 4), over whole rows or over each head.

use super::Weight;
use super::embedding::zeros_as;
use super::gpu::{self, Gpu, Launch, Pointer, arg, kernel as typed};
use super::math::{axpy, dot, dot3};
use super::simd::kernel;
use super::storage::{Shared, mat, unset, update};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Rows a task takes at a time; also the fixed unit in which weight gradients are summed.
const ROWS: usize = 32;

/// `y = w * x / sqrt(mean(x^2) + eps)`, the mean over each `w`-sized piece of a row.
///
/// # Shapes
/// `x [N, C]`, `w [E]` with C a multiple of E (E = C normalises rows, `E = head_dim` normalises heads) `-> [N, C]`
///
/// # Errors
/// Fails where C is no multiple of E.
pub fn rms_norm(x: &Tensor, weight: &Weight, eps: f64) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let y = unset(rows, cols, x)?;
    rms_norm_into(x, weight, eps, &y)?;
    Ok(y)
}

/// [`rms_norm`] into `y [N, C]`; `x` and `y` may be column ranges of wider matrices.
///
/// # Errors
/// Fails where C is no multiple of E or the shapes differ.
pub fn rms_norm_into(x: &Tensor, weight: &Weight, eps: f64, y: &Tensor) -> Result<()> {
    check(x, weight, y)?;
    if let Some(gpu) = gpu::of(x) {
        let (x, w, y, eps) = (gpu.view(x)?, gpu.view(weight.value())?, gpu.view(y)?, eps as f32);
        let vectors = x.rows() * (x.cols() / w.cols());
        let args = [arg(&x.matrix), arg(&w.matrix), arg(&y.matrix), arg(&eps)];
        return gpu.launch(&typed("rms_norm", x.dtype)?, Launch::blocks(vectors), &args);
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let (w_storage, w_layout) = weight.value().storage_and_layout();
    let (x, w) = (mat(&x_storage, x_layout)?, mat(&w_storage, w_layout)?.row(0));
    update(y, |y| {
        let (cols, stride, out) = (y.cols, y.stride, Shared::new(y.data));
        (0..x.rows).into_par_iter().with_min_len(ROWS).for_each(|row| {
            // SAFETY: each row is written by one task.
            let y = unsafe { out.slice(row * stride, cols) };
            norm_row(x.row(row), w, eps, y);
        });
        Ok(())
    })
}

kernel! {
    /// [`rms_norm`] of any number of pieces of the weight's size.
    pub(crate) fn norm_row(x: &[f32], w: &[f32], eps: f64, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
            let scale = inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * scale * w;
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps as f32).sqrt()
}

/// Adds the gradients of [`rms_norm`]: with r = 1/rms and h = x r, `dx += r (g w - h mean(g w h))`, `dw += sum g h`.
///
/// # Shapes
/// `g [N, C]` (gradient of the result), `x [N, C]` (the input), `dx [N, C]`
///
/// # Errors
/// Fails where C is no multiple of E or the shapes differ.
pub fn rms_norm_backward(g: &Tensor, x: &Tensor, weight: &Weight, eps: f64, dx: &Tensor) -> Result<()> {
    check(x, weight, dx)?;
    if let Some(gpu) = gpu::of(x) {
        return backward_on_gpu(&gpu, g, x, weight, eps, dx);
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let (g_storage, g_layout) = g.storage_and_layout();
    let (w_storage, w_layout) = weight.value().storage_and_layout();
    let (x, g, w) = (mat(&x_storage, x_layout)?, mat(&g_storage, g_layout)?, mat(&w_storage, w_layout)?.row(0));
    let wants_dw = weight.grad().is_some();
    let sums: Vec<Vec<f32>> = update(dx, |dx| {
        let (cols, stride, out) = (dx.cols, dx.stride, Shared::new(dx.data));
        Ok((0..x.rows.div_ceil(ROWS))
            .into_par_iter()
            .map(|block| {
                let mut dw = vec![0.0f32; if wants_dw { w.len() } else { 0 }];
                let rows = block * ROWS..((block + 1) * ROWS).min(x.rows);
                // SAFETY: each row belongs to one block, and each block to one task.
                let row_of = |row: usize| unsafe { out.slice(row * stride, cols) };
                rows.for_each(|row| backward_row(x.row(row), g.row(row), w, eps, row_of(row), &mut dw));
                dw
            })
            .collect())
    })?;
    if let Some(grad) = weight.grad() {
        update(grad, |grad| {
            for dw in &sums {
                axpy(1.0, dw, grad.data);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Blocks among which the vectors are shared out.
const BLOCKS: usize = 512;

fn backward_on_gpu(gpu: &Gpu, g: &Tensor, x: &Tensor, weight: &Weight, eps: f64, dx: &Tensor) -> Result<()> {
    let (g, x, w, out) = (gpu.view(g)?, gpu.view(x)?, gpu.view(weight.value())?, gpu.view(dx)?);
    let (size, eps) = (w.cols(), eps as f32);
    let blocks = (x.rows() * (x.cols() / size)).min(BLOCKS);
    let partial = match weight.grad() {
        Some(_) => Some(zeros_as(blocks, size, DType::F32, dx.device())?),
        None => None,
    };
    let view = partial.as_ref().map(|sums| gpu.view(sums)).transpose()?;
    let sums = view.map_or(Pointer::NULL, |view| view.matrix.data);
    let launch = Launch { shared: 4 * size as u32, ..Launch::blocks(blocks) };
    let args = [arg(&g.matrix), arg(&x.matrix), arg(&w.matrix), arg(&out.matrix), arg(&sums), arg(&eps)];
    gpu.launch(&typed("rms_norm_backward", x.dtype)?, launch, &args)?;
    match (&partial, weight.grad()) {
        (Some(partial), Some(grad)) => gpu.add_column_sums(partial, grad),
        _ => Ok(()),
    }
}

kernel! {
fn backward_row(x: &[f32], g: &[f32], w: &[f32], eps: f64, dx: &mut [f32], dw: &mut [f32]) {
    let size = w.len();
    for ((x, g), dx) in x.chunks_exact(size).zip(g.chunks_exact(size)).zip(dx.chunks_exact_mut(size)) {
        let r = inverse_rms(x, eps);
        let gwx = dot3(g, w, x);
        let shrink = gwx * r * r * r / size as f32;
        for i in 0..size {
            dx[i] += (g[i] * w[i]).mul_add(r, -(x[i] * shrink));
        }
        for i in 0..dw.len() {
            dw[i] = (g[i] * r).mul_add(x[i], dw[i]);
        }
    }
}
}

fn check(x: &Tensor, weight: &Weight, y: &Tensor) -> Result<()> {
    let (size, cols) = (weight.value().dim(0)?, x.dim(1)?);
    if size == 0 || cols % size != 0 || x.dims() != y.dims() {
        bail!("rms_norm: rows of {cols} values with a weight of {size}, result {:?}", y.dims());
    }
    Ok(())
}

/// The naive reference, differentiable by candle; `x [N, C]` with heads of E.
#[cfg(test)]
fn reference(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let (n, c) = x.dims2()?;
    let e = w.dim(0)?;
    let x = x.reshape((n, c / e, e))?;
    let mean = x.sqr()?.mean_keepdim(2)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(w)?.reshape((n, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_close, assert_thread_invariant, on_each_device, random, reference_gradients, variable,
    };

    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (n, c, e) in [(1, 1, 1), (5, 24, 24), (70, 30, 10), (33, 128, 128)] {
                let (x, w, g) = (random(&[n, c], 1), random(&[e], 2), random(&[n, c], 3));
                let (xv, wv) = (variable(&x), variable(&w));
                let y = reference(&xv, &wv, 1e-6)?;
                let expected = reference_gradients(&y, &g, &[&xv, &wv])?;
                let weight = Weight::trainable(w)?;
                assert_close(&rms_norm(&x, &weight, 1e-6)?, &y, 1e-5);
                let dx = random(&[n, c], 4);
                let before = dx.copy()?;
                rms_norm_backward(&g, &x, &weight, 1e-6, &dx)?;
                assert_close(&(&dx - before)?, &expected[0], 1e-5);
                assert_close(weight.grad().expect("trainable"), &expected[1], 1e-5);
            }
            Ok(())
        })
    }

    /// A column range of a wider matrix (the q part of packed q, k, v) is read and written in place.
    #[test]
    fn works_on_column_ranges() -> Result<()> {
        on_each_device(|| {
            let (wide, weight) = (random(&[6, 50], 1), Weight::frozen(random(&[10], 2)));
            let x = wide.narrow(1, 10, 20)?;
            let out = random(&[6, 45], 3);
            rms_norm_into(&x, &weight, 1e-6, &out.narrow(1, 25, 20)?)?;
            assert_close(
                &out.narrow(1, 25, 20)?.contiguous()?,
                &reference(&x.contiguous()?, weight.value(), 1e-6)?,
                1e-5,
            );
            Ok(())
        })
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        assert_thread_invariant(|| {
            let (x, g, dx) = (random(&[500, 40], 1), random(&[500, 40], 2), random(&[500, 40], 3));
            let weight = Weight::trainable(random(&[40], 4)).expect("fits");
            rms_norm_backward(&g, &x, &weight, 1e-6, &dx).expect("fits");
            vec![dx, weight.grad().expect("trainable").clone()]
        });
    }
}
