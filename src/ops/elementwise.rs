//! The gated unit of the feed-forward block, sums, and dropout.

use super::gpu::{self, Launch, arg, kernel as typed};
use super::math::exp;
use super::simd::kernel;
use super::storage::{Mat, mat, unset, update};
use crate::rng::philox;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Values a task takes at a time.
const VALUES: usize = 16 * 1024;

/// `silu(gate) * up` (Shazeer, arXiv:2002.05202), from both halves of one matrix.
///
/// # Shapes
/// `gate_up [N, 2F]` (columns: gate, then up) `-> [N, F]`
///
/// # Errors
/// Fails where the number of columns is odd.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = half(gate_up)?;
    let y = unset(n, width, gate_up)?;
    if let Some(gpu) = gpu::of(gate_up) {
        let (x, out) = (gpu.view(gate_up)?, gpu.view(&y)?);
        let kernel = typed("silu_mul", x.dtype)?;
        gpu.launch(&kernel, Launch::rows(n, width), &[arg(&x.matrix), arg(&out.matrix)])?;
        return Ok(y);
    }
    let (storage, layout) = gate_up.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(&y, |y| {
        let rows = (VALUES / width.max(1)).max(1);
        y.data.par_chunks_mut((rows * width).max(1)).enumerate().for_each(|(block, y)| {
            gate_rows(x, block * rows, width, y);
        });
        Ok(())
    })?;
    drop(storage);
    Ok(y)
}

/// The gradient of [`silu_mul`] with respect to its input, as a new matrix.
///
/// With s = sigmoid(gate): d gate = g up s (1 + gate (1 - s)), d up = g gate s.
///
/// # Shapes
/// `g [N, F]`, `gate_up [N, 2F] -> [N, 2F]`
///
/// # Errors
/// Fails where the shapes do not fit.
pub fn silu_mul_backward(g: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = half(gate_up)?;
    if g.dims() != [n, width] {
        bail!("silu_mul: gradient {:?} for an input {:?}", g.dims(), gate_up.dims());
    }
    let dx = unset(n, 2 * width, g)?;
    if let Some(gpu) = gpu::of(g) {
        let (up, x, out) = (gpu.view(g)?, gpu.view(gate_up)?, gpu.view(&dx)?);
        let kernel = typed("silu_mul_backward", x.dtype)?;
        gpu.launch(&kernel, Launch::rows(n, width), &[arg(&up.matrix), arg(&x.matrix), arg(&out.matrix)])?;
        return Ok(dx);
    }
    let (g_storage, g_layout) = g.storage_and_layout();
    let (storage, layout) = gate_up.storage_and_layout();
    let (g, x) = (mat(&g_storage, g_layout)?, mat(&storage, layout)?);
    update(&dx, |dx| {
        let rows = (VALUES / width.max(1)).max(1);
        dx.data.par_chunks_mut((rows * 2 * width).max(1)).enumerate().for_each(|(block, dx)| {
            gate_rows_backward(g, x, block * rows, dx);
        });
        Ok(())
    })?;
    drop((storage, g_storage));
    Ok(dx)
}

kernel! {
    /// [`silu_mul`] of rows `first..` of the input into the rows of `y`.
    pub(crate) fn gate_rows(x: Mat<'_>, first: usize, width: usize, y: &mut [f32]) {
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let (gate, up) = x.row(first + row).split_at(width);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

kernel! {
    /// The gradients of rows `first..` into the rows of `dx`.
    fn gate_rows_backward(g: Mat<'_>, x: Mat<'_>, first: usize, dx: &mut [f32]) {
        let width = g.cols;
        for (row, dx) in dx.chunks_exact_mut(2 * width).enumerate() {
            let (g, (gate, up)) = (g.row(first + row), x.row(first + row).split_at(width));
            let (d_gate, d_up) = dx.split_at_mut(width);
            for i in 0..width {
                let s = 1.0 / (1.0 + exp(-gate[i]));
                d_gate[i] = g[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                d_up[i] = g[i] * gate[i] * s;
            }
        }
    }
}

kernel! {
    /// `y += x`
    pub(crate) fn add(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

/// `y += x` in place, the residual sum.
///
/// # Errors
/// Fails where the shapes differ.
pub fn add_into(y: &Tensor, x: &Tensor) -> Result<()> {
    if x.dims() != y.dims() {
        bail!("add: {:?} to {:?}", x.dims(), y.dims());
    }
    if let Some(gpu) = gpu::of(y) {
        let (to, from) = (gpu.view(y)?, gpu.view(x)?);
        let kernel = typed("add_into", to.dtype)?;
        return gpu.launch(&kernel, Launch::rows(to.rows(), to.cols()), &[arg(&to.matrix), arg(&from.matrix)]);
    }
    let (storage, layout) = x.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(y, |mut y| {
        if y.stride == y.cols && x.stride == x.cols {
            y.data.par_chunks_mut(VALUES).zip(x.data.par_chunks(VALUES)).for_each(|(y, x)| {
                add(y, x);
            });
        } else {
            (0..y.rows).for_each(|row| y.row(row).iter_mut().zip(x.row(row)).for_each(|(y, x)| *y += x));
        }
        Ok(())
    })
}

kernel! {
    /// `y += scale * x`
    pub(crate) fn add_scaled_row(y: &mut [f32], x: &[f32], scale: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += scale * x);
    }
}

/// `y += scale * x` in place; `y` may be a column range of a wider matrix.
///
/// # Errors
/// Fails where the shapes differ.
pub fn add_scaled(y: &Tensor, x: &Tensor, scale: f32) -> Result<()> {
    if x.dims() != y.dims() {
        bail!("add: {:?} to {:?}", x.dims(), y.dims());
    }
    if let Some(gpu) = gpu::of(y) {
        let (to, from) = (gpu.view(y)?, gpu.view(x)?);
        let args = [arg(&to.matrix), arg(&from.matrix), arg(&scale)];
        return gpu.launch(&typed("add_scaled", to.dtype)?, Launch::rows(to.rows(), to.cols()), &args);
    }
    let (storage, layout) = x.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(y, |y| {
        let (cols, stride) = (y.cols, y.stride);
        let rows = (VALUES / stride.max(1)).max(1);
        y.data.par_chunks_mut((rows * stride).max(1)).enumerate().for_each(|(block, y)| {
            for (row, y) in y.chunks_mut(stride).enumerate() {
                add_scaled_row(&mut y[..cols], x.row(block * rows + row), scale);
            }
        });
        Ok(())
    })
}

/// The draws that decide which values dropout leaves out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of a value to be left out, 0 to below 1.
    pub p: f32,
    /// Names the draws: equal keys leave out the same values.
    pub key: u64,
}

/// Leaves values out at random and divides the others by `1 - p` (Srivastava et al., JMLR 15, 2014, section 10). The map
/// is linear and its own transpose, so the gradient of its input is the dropout of the gradient, by the same key.
///
/// Value `(row, column)` is left out by the bits `philox([row, column / 4, 0, 0], key)[column % 4]`.
///
/// # Shapes
/// `x [N, D] -> [N, D]`
///
/// # Errors
/// Fails where the tensor's rows are not contiguous.
pub fn dropout(x: &Tensor, draws: Dropout) -> Result<Tensor> {
    let (n, cols) = x.dims2()?;
    let y = unset(n, cols, x)?;
    let Dropout { p, key } = draws;
    // A draw of 32 bits below this leaves its value out.
    let (threshold, scale) = ((f64::from(p) * 4_294_967_296.0) as u32, 1.0 / (1.0 - p));
    let key = [key as u32, (key >> 32) as u32];
    if let Some(gpu) = gpu::of(x) {
        let (from, to) = (gpu.view(x)?, gpu.view(&y)?);
        let args = [arg(&from.matrix), arg(&to.matrix), arg(&key[0]), arg(&key[1]), arg(&threshold), arg(&scale)];
        gpu.launch(&typed("dropout", from.dtype)?, Launch::rows(n, cols.div_ceil(4)), &args)?;
        return Ok(y);
    }
    let (storage, layout) = x.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(&y, |y| {
        y.data.par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, y)| {
            for (block, (y, x)) in y.chunks_mut(4).zip(x.row(row).chunks(4)).enumerate() {
                let bits = philox([row as u32, block as u32, 0, 0], key);
                for ((y, x), bits) in y.iter_mut().zip(x).zip(bits) {
                    *y = if bits < threshold { 0.0 } else { x * scale };
                }
            }
        });
        Ok(())
    })?;
    drop(storage);
    Ok(y)
}

fn half(gate_up: &Tensor) -> Result<(usize, usize)> {
    let (n, cols) = gate_up.dims2()?;
    if cols % 2 != 0 {
        bail!("silu_mul: {cols} columns are not two halves");
    }
    Ok((n, cols / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_close, assert_thread_invariant, on_each_device, random, reference_gradients, variable,
    };
    use candle_core::DType;

    /// The naive reference, differentiable by candle.
    fn reference(x: &Tensor) -> Result<Tensor> {
        let width = x.dim(1)? / 2;
        x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
    }

    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (n, width) in [(1, 1), (3, 17), (50, 700)] {
                let (x, g) = ((random(&[n, 2 * width], 1) * 3.0)?, random(&[n, width], 2));
                let xv = variable(&x);
                let y = reference(&xv)?;
                let expected = reference_gradients(&y, &g, &[&xv])?;
                assert_close(&silu_mul(&x)?, &y, 1e-5);
                assert_close(&silu_mul_backward(&g, &x)?, &expected[0], 1e-5);
            }
            Ok(())
        })
    }

    #[test]
    fn sums_in_place() -> Result<()> {
        on_each_device(|| {
            let (x, y) = (random(&[3, 5], 1), random(&[3, 9], 2));
            let expected = (&x + y.narrow(1, 2, 5)?.contiguous()?)?;
            add_into(&y.narrow(1, 2, 5)?, &x)?;
            assert_close(&y.narrow(1, 2, 5)?.contiguous()?, &expected, 0.0);
            Ok(())
        })
    }

    #[test]
    fn scaled_sums_in_place() -> Result<()> {
        on_each_device(|| {
            let (x, y) = (random(&[300, 70], 1), random(&[300, 90], 2));
            let before = y.narrow(1, 2, 70)?.contiguous()?;
            let around = y.narrow(1, 72, 18)?.contiguous()?;
            add_scaled(&y.narrow(1, 2, 70)?, &x, -0.5)?;
            let expected = (before.to_dtype(DType::F64)? - (x.to_dtype(DType::F64)? * 0.5)?)?;
            assert_close(&y.narrow(1, 2, 70)?.contiguous()?, &expected, 1e-6);
            assert_close(&y.narrow(1, 72, 18)?.contiguous()?, &around, 0.0);
            Ok(())
        })
    }

    /// About a share `p` is left out, the rest is scaled; equal keys give equal values, on every device; and the map is
    /// its own transpose: `<dropout(x), g> = <x, dropout(g)>`.
    #[test]
    fn dropout_leaves_out_its_share_and_is_its_own_transpose() -> Result<()> {
        let draws = Dropout { p: 0.25, key: 0x1234_5678_9abc_def0 };
        let run = || -> Result<Vec<f32>> {
            let (x, g) = (random(&[40, 203], 1), random(&[40, 203], 2));
            let y = dropout(&x, draws)?;
            let values = y.flatten_all()?.to_vec1::<f32>()?;
            let left_out = values.iter().filter(|y| **y == 0.0).count();
            assert!((1700..2360).contains(&left_out), "{left_out} of {}", values.len());
            for (y, x) in values.iter().zip(x.flatten_all()?.to_vec1::<f32>()?) {
                assert!(*y == 0.0 || (y - x / 0.75).abs() < 1e-5);
            }
            let dot = |a: &Tensor, b: &Tensor| (a.to_dtype(DType::F64)? * b.to_dtype(DType::F64)?)?.sum_all();
            let (left, right) = (dot(&y, &g)?, dot(&x, &dropout(&g, draws)?)?);
            assert!((left.to_scalar::<f64>()? - right.to_scalar::<f64>()?).abs() < 1e-3);
            let other = dropout(&x, Dropout { key: draws.key + 1, ..draws })?;
            assert_ne!(other.flatten_all()?.to_vec1::<f32>()?, values);
            Ok(values)
        };
        let on_cpu = run()?;
        on_each_device(|| {
            assert_eq!(run()?, on_cpu);
            Ok(())
        })
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        assert_thread_invariant(|| {
            let (x, g) = (random(&[300, 200], 1), random(&[300, 100], 2));
            let sum = random(&[300, 200], 3);
            add_scaled(&sum, &x, 0.3).expect("fits");
            let dropped = dropout(&x, Dropout { p: 0.1, key: 7 }).expect("fits");
            vec![silu_mul(&x).expect("fits"), silu_mul_backward(&g, &x).expect("fits"), sum, dropped]
        });
    }
}
