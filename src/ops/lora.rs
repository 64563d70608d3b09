//! Low-rank adapters: `s B A x` beside a frozen map (Hu et al., arXiv:2106.09685 section 4.1).
//!
//! The adapter is never merged into the weight while it is trained, so that the same map without it is the model that
//! training began with.

use super::Weight;
use super::elementwise::{Dropout, add_into, add_scaled, add_scaled_row, dropout};
use super::embedding::zeros;
use super::matmul::{Form, matmul, matmul_into};
use super::storage::{Mat, MatMut, mat, unset};
use crate::rng::{self, Stream};
use candle_core::{Result, Tensor};
use std::borrow::Cow;

/// The adapter of one map.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[r, in]`
    pub a: Weight,
    /// `[out, r]`
    pub b: Weight,
    /// What its result is multiplied by: alpha / r, or alpha / sqrt(r) (Kalajdzievski, arXiv:2312.03732).
    pub scale: f32,
    /// Probability that a value of its input is left out in training, 0 to below 1.
    pub dropout: f32,
    /// Number of the map in the model: names its draws.
    pub module: u64,
}

impl Lora {
    /// `y += s dropout(x) Aᵀ Bᵀ`
    ///
    /// # Shapes
    /// `x [N, in]`, `y [N, out]`; `noise` names the draws of dropout, without it nothing is left out
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn forward_into(&self, x: &Tensor, y: &Tensor, noise: Option<u64>) -> Result<()> {
        let x = self.dropped(x, noise)?;
        let low = self.low(&x)?;
        let product = unset(y.dim(0)?, y.dim(1)?, y)?;
        matmul_into(&product, &low, self.b.value(), Form::Nt, false)?;
        add_scaled(y, &product, self.scale)
    }

    /// Adds the gradients of A and B to their buffers, and that of the input to `dx`.
    ///
    /// With z = dropout(x): dB = s gᵀ (z Aᵀ), dA = s (g B)ᵀ z, dz = s g B A.
    ///
    /// # Shapes
    /// `g [N, out]` (gradient of the result), `x, dx [N, in]`; `noise` as in the forward pass
    ///
    /// # Errors
    /// Fails where the shapes do not fit.
    pub fn backward(&self, g: &Tensor, x: &Tensor, dx: &Tensor, noise: Option<u64>) -> Result<()> {
        let x = self.dropped(x, noise)?;
        let (n, rank) = (g.dim(0)?, self.a.value().dim(0)?);
        if let Some(grad) = self.b.grad() {
            let low = self.scaled(&self.low(&x)?)?;
            matmul_into(grad, g, &low, Form::Tn, true)?;
        }
        let d_low = unset(n, rank, g)?;
        matmul_into(&d_low, g, self.b.value(), Form::Nn, false)?;
        let d_low = self.scaled(&d_low)?;
        if let Some(grad) = self.a.grad() {
            matmul_into(grad, &d_low, &x, Form::Tn, true)?;
        }
        match self.draws(noise) {
            None => matmul_into(dx, &d_low, self.a.value(), Form::Nn, true),
            Some(draws) => {
                let dz = unset(n, dx.dim(1)?, dx)?;
                matmul_into(&dz, &d_low, self.a.value(), Form::Nn, false)?;
                add_into(dx, &dropout(&dz, draws)?)
            }
        }
    }

    /// `x Aᵀ [N, r]`
    fn low(&self, x: &Tensor) -> Result<Tensor> {
        let low = unset(x.dim(0)?, self.a.value().dim(0)?, x)?;
        matmul_into(&low, x, self.a.value(), Form::Nt, false)?;
        Ok(low)
    }

    fn scaled(&self, x: &Tensor) -> Result<Tensor> {
        let y = zeros(x.dim(0)?, x.dim(1)?, x)?;
        add_scaled(&y, x, self.scale)?;
        Ok(y)
    }

    fn draws(&self, noise: Option<u64>) -> Option<Dropout> {
        let noise = noise.filter(|_| self.dropout > 0.0)?;
        Some(Dropout { p: self.dropout, key: rng::bits(noise, Stream::Dropout, [self.module, 0, 0, 0]) })
    }

    fn dropped<'a>(&self, x: &'a Tensor, noise: Option<u64>) -> Result<Cow<'a, Tensor>> {
        self.draws(noise).map_or(Ok(Cow::Borrowed(x)), |draws| dropout(x, draws).map(Cow::Owned))
    }
}

/// An adapter for many calls with few rows each: [`Lora::forward_into`] without dropout, in the same bits.
#[derive(Debug)]
pub(super) struct DecodingLora {
    lora: Lora,
    /// First column of the map's result in the matrix that it is added to.
    start: usize,
}

impl DecodingLora {
    pub fn new(lora: &Lora, start: usize) -> Self {
        Self { lora: lora.clone(), start }
    }

    /// Adds the adapter's result for `x [N, in]` to its columns of `y`.
    pub fn add_to(&self, x: Mat<'_>, y: &mut MatMut<'_>) -> Result<()> {
        // The weights are small: laying them out for few rows would save little, and the products with few columns or
        // a short sum would have to keep the order of the general one's special cases.
        let product = |x: Mat<'_>, weight: &Weight| -> Result<(Vec<f32>, usize)> {
            let (storage, layout) = weight.value().storage_and_layout();
            let w = mat(&storage, layout)?;
            let mut y = vec![0.0; x.rows * w.rows];
            matmul(&mut MatMut::new(&mut y, x.rows, w.rows), x, w, Form::Nt, false)?;
            Ok((y, w.rows))
        };
        let (low, rank) = product(x, &self.lora.a)?;
        let (added, out) = product(Mat::new(&low, x.rows, rank), &self.lora.b)?;
        for (row, added) in added.chunks_exact(out).enumerate() {
            add_scaled_row(&mut y.row(row)[self.start..][..out], added, self.lora.scale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear::{DecodingLinear, Linear};
    use crate::ops::storage::update;
    use crate::ops::testing::{
        assert_close, assert_thread_invariant, device, on_each_device, random, reference_gradients, variable,
    };
    use candle_core::DType;

    fn lora(a: Tensor, b: Tensor, dropout: f32) -> Result<Lora> {
        Ok(Lora { a: Weight::trainable(a)?, b: Weight::trainable(b)?, scale: 0.75, dropout, module: 3 })
    }

    /// Against candle's own differentiation of `x Wᵀ + s (m x) Aᵀ Bᵀ`, m what dropout does to ones.
    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (n, i, o, r, p) in [(1, 1, 1, 1, 0.0), (3, 65, 33, 4, 0.0), (70, 96, 300, 8, 0.0), (40, 24, 20, 2, 0.3)]
            {
                let (x, w, g) = (random(&[n, i], 1), random(&[o, i], 2), random(&[n, o], 4));
                let (a, b) = (random(&[r, i], 5), random(&[o, r], 6));
                let lora = lora(a.copy()?, b.copy()?, p)?;
                let noise = Some(11);
                let ones = Tensor::ones((n, i), DType::F32, &device())?;
                let mask = lora.dropped(&ones, noise)?.to_dtype(DType::F64)?;
                assert!(p == 0.0 || mask.min_all()?.to_scalar::<f64>()? == 0.0);
                let (xv, av, bv) = (variable(&x), variable(&a), variable(&b));
                let base = xv.matmul(&w.to_dtype(DType::F64)?.t()?)?;
                let y = (base + ((&mask * xv.as_tensor())?.matmul(&av.t()?)?.matmul(&bv.t()?)? * 0.75)?)?;
                let expected = reference_gradients(&y, &g, &[&xv, &av, &bv])?;

                let linear = Linear { lora: Some(lora), ..Linear::new(Weight::frozen(w), None) };
                let found = unset(n, o, &x)?;
                linear.forward_into(&x, &found, noise)?;
                assert_close(&found, &y, 1e-5);
                let dx = unset(n, i, &x)?;
                linear.backward(&g, &x, &dx, false, noise)?;
                assert_close(&dx, &expected[0], 1e-5);
                let lora = linear.lora.as_ref().expect("given");
                assert_close(lora.a.grad().expect("trainable"), &expected[1], 1e-5);
                assert_close(lora.b.grad().expect("trainable"), &expected[2], 1e-5);
            }
            Ok(())
        })
    }

    /// A row has the same bits alone and among others, for every rank; and packed for decoding.
    #[test]
    fn a_row_does_not_depend_on_its_neighbours() -> Result<()> {
        let maps = |rank: usize| -> Result<[Linear; 2]> {
            let map = |out: usize, seed: u64| -> Result<Linear> {
                let lora = lora(random(&[rank, 130], seed), random(&[out, rank], seed + 1), 0.0)?;
                Ok(Linear { lora: Some(lora), ..Linear::new(Weight::frozen(random(&[out, 130], seed + 2)), None) })
            };
            Ok([map(48, 10)?, map(33, 20)?])
        };
        let bits = |y: &Tensor| -> Result<Vec<Vec<u32>>> {
            Ok(y.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect())
        };
        for rank in [1, 2, 3, 4, 8, 16, 64] {
            on_each_device(|| {
                for map in maps(rank)? {
                    let x = random(&[140, 130], 1);
                    let all = bits(&map.forward(&x)?)?;
                    for rows in [1, 2, 3, 5, 8, 13, 31, 64, 65, 129] {
                        for start in [0, 7] {
                            let some = bits(&map.forward(&x.narrow(0, start, rows)?.contiguous()?)?)?;
                            assert!(some == all[start..start + rows], "rank {rank}, {rows} rows from {start}");
                        }
                    }
                }
                Ok(())
            })?;
            let maps = maps(rank)?;
            let x = random(&[140, 130], 1);
            let parts = [bits(&maps[0].forward(&x)?)?, bits(&maps[1].forward(&x)?)?];
            let packed = DecodingLinear::new(&[&maps[0], &maps[1]], true)?;
            for rows in [1, 3, 64] {
                let y = unset(rows, 48 + 33, &x)?;
                let some = x.narrow(0, 5, rows)?.contiguous()?;
                let (storage, layout) = some.storage_and_layout();
                let some = mat(&storage, layout)?;
                update(&y, |mut y| packed.forward(some, &mut y, 2))?;
                for (row, y) in bits(&y)?.into_iter().enumerate() {
                    assert!(y == [&parts[0][5 + row][..], &parts[1][5 + row]].concat(), "rank {rank}, row {row}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        assert_thread_invariant(|| {
            let (x, g, dx) = (random(&[500, 130], 1), random(&[500, 300], 4), random(&[500, 130], 5));
            let lora = lora(random(&[8, 130], 2), random(&[300, 8], 3), 0.1).expect("fits");
            let y = random(&[500, 300], 6);
            lora.forward_into(&x, &y, Some(1)).expect("fits");
            lora.backward(&g, &x, &dx, Some(1)).expect("fits");
            let grads = [lora.a.grad(), lora.b.grad()];
            [y, dx].into_iter().chain(grads.into_iter().flatten().cloned()).collect()
        });
    }
}
