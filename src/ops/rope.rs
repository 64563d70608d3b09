//! Rotary position embedding (Su et al., arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints.

use super::gpu::{self, Launch, Place, Pointer, arg, kernel as typed};
use super::simd::kernel;
use super::storage::{Shared, update};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

const ROWS: usize = 32;

/// The angles of each token.
pub struct RopeTable {
    angles: Angles,
    tokens: usize,
    half: usize,
}

enum Angles {
    /// cos and sin, f32, `[N, E/2]` each.
    Known { cos: Vec<f32>, sin: Vec<f32> },
    /// Positions `[N]` and frequencies `[E/2]`, where a GPU computes them itself.
    OnGpu { positions: Place, inv_freq: Place },
}

impl RopeTable {
    /// The angles `position * inv_freq` of each token, for tensors on `device`; `inv_freq [E/2]`, `positions [N]`.
    ///
    /// # Errors
    /// Fails where the memory of a GPU is short.
    pub fn new(inv_freq: &[f32], positions: &[u32], device: &Device) -> Result<Self> {
        let angles = if let Some(gpu) = gpu::of_device(device) {
            let copy = (gpu.upload(positions)?, gpu.upload(inv_freq)?);
            Angles::OnGpu { positions: Place::Copied(copy.0), inv_freq: Place::Copied(copy.1) }
        } else {
            let angles = positions.iter().flat_map(|p| inv_freq.iter().map(move |f| *p as f32 * f));
            let (sin, cos) = angles.map(f32::sin_cos).unzip();
            Angles::Known { cos, sin }
        };
        Ok(Self { angles, tokens: positions.len(), half: inv_freq.len() })
    }

    /// The angles of `tokens` tokens whose positions are on the GPU, as are the `half` frequencies; both stay there.
    pub(crate) fn given(positions: Pointer, inv_freq: Pointer, tokens: usize, half: usize) -> Self {
        Self {
            angles: Angles::OnGpu { positions: Place::Given(positions), inv_freq: Place::Given(inv_freq) },
            tokens,
            half,
        }
    }

    /// Rotates every head of `x` in place by its token's angles, or back with `inverse`; the backward pass is the
    /// inverse rotation of the gradient.
    ///
    /// # Shapes
    /// `x [N, heads * E]`, possibly a column range of a wider matrix; row n has the table's n-th position.
    ///
    /// # Errors
    /// Fails where the rows or the width do not fit the table.
    pub fn rotate(&self, x: &Tensor, inverse: bool) -> Result<()> {
        let (half, sign) = (self.half, if inverse { -1.0 } else { 1.0f32 });
        let (rows, cols) = x.dims2()?;
        if half == 0 || cols % (2 * half) != 0 || rows != self.tokens {
            bail!("rope: [{rows}, {cols}] with a table of [{}, {half}]", self.tokens);
        }
        match &self.angles {
            Angles::Known { cos, sin } => update(x, |x| {
                let (stride, data) = (x.stride, Shared::new(x.data));
                (0..rows).into_par_iter().with_min_len(ROWS).for_each(|row| {
                    // SAFETY: each row is written by one task.
                    let x = unsafe { data.slice(row * stride, cols) };
                    rotate_row(x, &cos[row * half..][..half], &sin[row * half..][..half], sign);
                });
                Ok(())
            }),
            Angles::OnGpu { positions, inv_freq } => {
                let Some(gpu) = gpu::of(x) else { bail!("rope: angles of another device") };
                let (x, half, angles) = (gpu.view(x)?, half as u32, [positions.pointer(), inv_freq.pointer()]);
                let args = [arg(&x.matrix), arg(&angles[0]), arg(&angles[1]), arg(&half), arg(&sign)];
                gpu.launch(&typed("rope", x.dtype)?, Launch::rows(rows, cols / 2), &args)
            }
        }
    }

    /// [`RopeTable::rotate`] of one row: every head of `x` by the angles of token `row`.
    ///
    /// # Errors
    /// Fails where the table is that of a GPU.
    pub(crate) fn rotate_one(&self, row: usize, x: &mut [f32]) -> Result<()> {
        let Angles::Known { cos, sin } = &self.angles else { bail!("rope: angles of another device") };
        rotate_row(x, &cos[row * self.half..][..self.half], &sin[row * self.half..][..self.half], 1.0);
        Ok(())
    }
}

kernel! {
    fn rotate_row(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in x.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y, s) = (a[i], b[i], sin[i] * sign);
                a[i] = x * cos[i] - y * s;
                b[i] = y * cos[i] + x * s;
            }
        }
    }
}

/// The naive reference on `x [N, H*E]`: `x cos + rotate_half(x) sin`.
#[cfg(test)]
fn reference(x: &Tensor, inv_freq: &[f32], positions: &[u32]) -> Result<Tensor> {
    let ((n, c), half) = (x.dims2()?, inv_freq.len());
    let heads = c / (2 * half);
    let freqs = Tensor::new(inv_freq, x.device())?.reshape((1, half))?;
    let positions: Vec<f32> = positions.iter().map(|p| *p as f32).collect();
    let angles = Tensor::new(positions, x.device())?.reshape((n, 1))?.broadcast_mul(&freqs)?;
    let angles = Tensor::cat(&[&angles, &angles], 1)?.reshape((n, 1, 2 * half))?.to_dtype(x.dtype())?;
    let x = x.reshape((n, heads, 2 * half))?;
    let turned = Tensor::cat(&[&x.narrow(2, half, half)?.neg()?, &x.narrow(2, 0, half)?], 2)?;
    (x.broadcast_mul(&angles.cos()?)? + turned.broadcast_mul(&angles.sin()?)?)?.reshape((n, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, device, on_each_device, random, reference_gradients, variable};

    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (n, heads, half) in [(1, 1, 1), (7, 3, 5), (40, 2, 16)] {
                let inv_freq: Vec<f32> = (0..half).map(|i| 1.0 / 10f32.powf(i as f32 / half as f32)).collect();
                let positions: Vec<u32> = (0..n as u32).map(|i| i * 13 % 29).collect();
                let (x, g) = (random(&[n, heads * 2 * half], 1), random(&[n, heads * 2 * half], 2));
                let xv = variable(&x);
                let y = reference(&xv, &inv_freq, &positions)?;
                let expected = reference_gradients(&y, &g, &[&xv])?;
                let table = RopeTable::new(&inv_freq, &positions, &device())?;
                let wide = Tensor::cat(&[&x, &random(&[n, 3], 3)], 1)?;
                table.rotate(&wide.narrow(1, 0, heads * 2 * half)?, false)?;
                assert_close(&wide.narrow(1, 0, heads * 2 * half)?.contiguous()?, &y, 1e-5);
                assert_close(&wide.narrow(1, heads * 2 * half, 3)?.contiguous()?, &random(&[n, 3], 3), 0.0);
                table.rotate(&g, true)?;
                assert_close(&g, &expected[0], 1e-5);
            }
            Ok(())
        })
    }
}
