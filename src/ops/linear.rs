//! The affine map y = x Wᵀ + b, with a low-rank adapter beside it where there is one.

use super::Weight;
use super::gpu::{self, Launch, arg, kernel as typed};
use super::lora::{DecodingLora, Lora};
use super::math::axpy;
use super::matmul::{Form, Packed, matmul, matmul_into, matmul_packed};
use super::simd::kernel;
use super::storage::{Mat, MatMut, mat, unset, update};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// A weight `[out, in]` with an optional bias `[out]` and an optional adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Weight>,
    pub lora: Option<Lora>,
}

impl Linear {
    /// The map without an adapter.
    #[must_use]
    pub fn new(weight: Weight, bias: Option<Weight>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// `y = x Wᵀ + b`, and what the adapter adds. A row of the result depends on that row of `x` alone, to the bit.
    ///
    /// # Shapes
    /// `x [N, in] -> [N, out]`
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = unset(x.dim(0)?, self.weight.value().dim(0)?, x)?;
        self.forward_into(x, &y, None)?;
        Ok(y)
    }

    /// [`Linear::forward`] into `y [N, out]`, which may be a column range of a wider matrix. `noise` names the draws of
    /// the adapter's dropout; without it, nothing is left out.
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn forward_into(&self, x: &Tensor, y: &Tensor, noise: Option<u64>) -> Result<()> {
        matmul_into(y, x, self.weight.dense()?.as_ref(), Form::Nt, false)?;
        self.add_bias(y)?;
        self.lora.as_ref().map_or(Ok(()), |lora| lora.forward_into(x, y, noise))
    }

    fn add_bias(&self, y: &Tensor) -> Result<()> {
        let Some(bias) = &self.bias else { return Ok(()) };
        if let Some(gpu) = gpu::of(y) {
            let (y, bias) = (gpu.view(y)?, gpu.view(bias.value())?);
            let kernel = typed("add_to_rows", y.dtype)?;
            return gpu.launch(&kernel, Launch::rows(y.rows(), y.cols()), &[arg(&y.matrix), arg(&bias.matrix)]);
        }
        let (storage, layout) = bias.value().storage_and_layout();
        let bias = mat(&storage, layout)?;
        update(y, |mut y| {
            add_to_rows(&mut y, bias.row(0));
            Ok(())
        })
    }

    /// Adds `gᵀ x` to the weight's gradient, the column sums of `g` to the bias's, and `g W` to `dx`; a frozen
    /// weight costs nothing.
    ///
    /// # Shapes
    /// `g [N, out]` (gradient of the result), `x [N, in]`, `dx [N, in]`, overwritten unless `accumulate`. `noise` is that
    /// of the forward pass.
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn backward(&self, g: &Tensor, x: &Tensor, dx: &Tensor, accumulate: bool, noise: Option<u64>) -> Result<()> {
        matmul_into(dx, g, self.weight.dense()?.as_ref(), Form::Nn, accumulate)?;
        if let Some(lora) = &self.lora {
            lora.backward(g, x, dx, noise)?;
        }
        if let Some(grad) = self.weight.grad() {
            matmul_into(grad, g, x, Form::Tn, true)?;
        }
        if let Some(grad) = self.bias.as_ref().and_then(Weight::grad) {
            if let Some(gpu) = gpu::of(g) {
                return gpu.add_column_sums(g, grad);
            }
            let (storage, layout) = g.storage_and_layout();
            let g = mat(&storage, layout)?;
            update(grad, |sum: MatMut<'_>| {
                // Tasks own columns, so the order of each sum does not depend on the number of threads.
                sum.data.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sum)| {
                    add_rows(g.columns(chunk * COLUMNS, sum.len()), sum);
                });
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Linear maps of one input side by side, for many calls with few rows each.
#[derive(Debug)]
pub(crate) struct DecodingLinear {
    weight: Layout,
    bias: Option<Vec<f32>>,
    loras: Vec<DecodingLora>,
}

/// Weights of one input side by side, for many products with few rows each.
#[derive(Debug)]
enum Layout {
    /// Copied, in the order in which they are read.
    Packed(Packed),
    /// Where they are, and what they are quantised to: slower, and no memory.
    Shared(Vec<Weight>),
}

impl Layout {
    /// Lays out weights `[out, in]` on the CPU; without `pack` they stay where they are.
    fn new(weights: &[&Weight], pack: bool) -> Result<Self> {
        if !pack || weights.iter().any(|weight| weight.quantized.is_some()) {
            return Ok(Self::Shared(weights.iter().map(|weight| (*weight).clone()).collect()));
        }
        let guards: Vec<_> = weights.iter().map(|weight| weight.value().storage_and_layout()).collect();
        let weights = guards.iter().map(|(storage, layout)| mat(storage, layout)).collect::<Result<Vec<_>>>()?;
        Ok(Self::Packed(Packed::new(&weights)))
    }

    /// `y = x Wᵀ` of each weight, side by side, with the bits of [`matmul_into`].
    fn multiply(&self, x: Mat<'_>, y: &mut MatMut<'_>, threads: usize) -> Result<()> {
        match self {
            Self::Packed(weight) => matmul_packed(y, x, weight, threads)?,
            Self::Shared(weights) => {
                let mut start = 0;
                for weight in weights {
                    let mut product = |first: usize, w: Mat<'_>| {
                        let columns = start + first..start + first + w.rows;
                        matmul(&mut y.block(0..x.rows, columns), x, w, Form::Nt, false)
                    };
                    if let Some(quantized) = &weight.quantized {
                        quantized.each_part(product)?;
                    } else {
                        let (storage, layout) = weight.value().storage_and_layout();
                        product(0, mat(&storage, layout)?)?;
                    }
                    start += weight.value().dim(0)?;
                }
            }
        }
        Ok(())
    }
}

impl DecodingLinear {
    /// The maps as they are now; with `pack` they are copied and later changes are not seen.
    ///
    /// # Errors
    /// Fails for weights that are not f32 on the CPU.
    pub fn new(maps: &[&Linear], pack: bool) -> Result<Self> {
        let bias = maps.iter().any(|map| map.bias.is_some()).then(|| {
            let of = |map: &&Linear| match &map.bias {
                Some(bias) => bias.value().to_vec1(),
                None => Ok(vec![0.0; map.weight.value().dim(0)?]),
            };
            maps.iter().map(of).collect::<Result<Vec<_>>>().map(|parts| parts.concat())
        });
        let weights: Vec<&Weight> = maps.iter().map(|map| &map.weight).collect();
        let weight = Layout::new(&weights, pack)?;
        let (mut loras, mut start) = (Vec::new(), 0);
        for map in maps {
            if let Some(lora) = &map.lora {
                loras.push(DecodingLora::new(lora, start));
            }
            start += map.weight.value().dim(0)?;
        }
        Ok(Self { weight, bias: bias.transpose()?, loras })
    }

    /// [`Linear::forward`] of each map, side by side, in the same bits: `x [N, in]`, `y [N, sum of out]`. Packed weights
    /// are shared by at most `threads` threads.
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn forward(&self, x: Mat<'_>, y: &mut MatMut<'_>, threads: usize) -> Result<()> {
        self.weight.multiply(x, y, threads)?;
        if let Some(bias) = &self.bias {
            add_to_rows(y, bias);
        }
        self.loras.iter().try_for_each(|lora| lora.add_to(x, y))
    }
}

kernel! {
    fn add_to_rows(y: &mut MatMut<'_>, bias: &[f32]) {
        for row in 0..y.rows {
            y.row(row).iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

const COLUMNS: usize = 256;

kernel! {
    /// Adds every row of `x` to `sum`, from the first to the last.
    fn add_rows(x: Mat<'_>, sum: &mut [f32]) {
        for row in 0..x.rows {
            axpy(1.0, x.row(row), sum);
        }
    }
}

/// The naive reference, differentiable by candle.
#[cfg(test)]
fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
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
            for (n, i, o) in [(1, 1, 1), (1, 24, 7), (3, 65, 33), (70, 96, 300)] {
                let (x, w, b, g) = (random(&[n, i], 1), random(&[o, i], 2), random(&[o], 3), random(&[n, o], 4));
                let (xv, wv, bv) = (variable(&x), variable(&w), variable(&b));
                let y = reference(&xv, &wv, &bv)?;
                let expected = reference_gradients(&y, &g, &[&xv, &wv, &bv])?;
                let linear = Linear::new(Weight::trainable(w)?, Some(Weight::trainable(b)?));
                assert_close(&linear.forward(&x)?, &y, 1e-5);
                let dx = random(&[n, i], 5);
                let before = dx.copy()?;
                linear.backward(&g, &x, &dx, true, None)?;
                assert_close(&(&dx - before)?, &expected[0], 1e-5);
                assert_close(linear.weight.grad().expect("trainable"), &expected[1], 1e-5);
                assert_close(linear.bias.as_ref().and_then(Weight::grad).expect("trainable"), &expected[2], 1e-5);
            }
            Ok(())
        })
    }

    /// A row's result has the same bits alone and among any number of other rows, for the shapes at which the
    /// underlying library changes its mind (tiny outputs, narrow outputs with a deep sum, one row).
    #[test]
    fn a_row_does_not_depend_on_its_neighbours() -> Result<()> {
        on_each_device(|| {
            for (i, o) in
                [(1, 1), (24, 3), (24, 24), (64, 50), (130, 129), (896, 16), (896, 65), (1100, 64), (2000, 200)]
            {
                let linear = Linear::new(Weight::frozen(random(&[o, i], 2)), None);
                let x = random(&[140, i], 1);
                let all = linear.forward(&x)?.to_vec2::<f32>()?;
                for rows in [1, 2, 3, 5, 8, 13, 31, 64, 65, 129] {
                    for start in [0, 7] {
                        let some = linear.forward(&x.narrow(0, start, rows)?.contiguous()?)?.to_vec2::<f32>()?;
                        for (row, (a, b)) in some.iter().zip(&all[start..]).enumerate() {
                            let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "[{i} -> {o}] row {row} of {rows} from {start}");
                        }
                    }
                }
            }
            Ok(())
        })
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        assert_thread_invariant(|| {
            let trainable = |value: Tensor| Weight::trainable(value).expect("fits");
            let linear = Linear::new(trainable(random(&[300, 130], 2)), Some(trainable(random(&[300], 3))));
            let (x, g, dx) = (random(&[500, 130], 1), random(&[500, 300], 4), random(&[500, 130], 5));
            let y = linear.forward(&x).expect("fits");
            linear.backward(&g, &x, &dx, true, None).expect("fits");
            let grads = [linear.weight.grad(), linear.bias.as_ref().and_then(Weight::grad)];
            [y, dx].into_iter().chain(grads.into_iter().flatten().cloned()).collect()
        });
    }
}
