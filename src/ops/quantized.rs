//! Frozen weights in 8 or 4 bits: blocks of 32 values of a row with one scale, GGML's formats `Q8_0` and `Q4_0`.
//!
//! A product turns the weight back into f32 first, so it is exactly that of the dequantised weight, forward and
//! backward. That costs time, and saves the memory of all weights but the one in use.

use super::storage::Mat;
use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Values of a block.
const BLOCK: usize = 32;

/// How a weight is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantFormat {
    /// 8 bits a value and a scale of 16 bits a block: 34 bytes for 32 values.
    Q8_0,
    /// 4 bits a value and a scale of 16 bits a block: 18 bytes for 32 values.
    Q4_0,
}

impl QuantFormat {
    /// Bytes of `values` values, a whole number of blocks.
    #[must_use]
    pub fn bytes(self, values: usize) -> usize {
        values / BLOCK
            * match self {
                Self::Q8_0 => size_of::<BlockQ8_0>(),
                Self::Q4_0 => size_of::<BlockQ4_0>(),
            }
    }
}

#[derive(Debug)]
enum Blocks {
    Q8_0(Vec<BlockQ8_0>),
    Q4_0(Vec<BlockQ4_0>),
}

/// A matrix `[out, in]` in few bits; clones share it.
#[derive(Debug, Clone)]
pub struct Quantized {
    blocks: Arc<Blocks>,
    rows: usize,
    cols: usize,
}

impl Quantized {
    /// Rounds a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// Fails where a row is no whole number of blocks of 32 values.
    pub fn new(values: &[f32], cols: usize, format: QuantFormat) -> Result<Self> {
        if cols == 0 || !cols.is_multiple_of(BLOCK) {
            bail!("a row of {cols} values is no whole number of blocks of {BLOCK}");
        }
        let blocks = match format {
            QuantFormat::Q8_0 => Blocks::Q8_0(round(values)),
            QuantFormat::Q4_0 => Blocks::Q4_0(round(values)),
        };
        Ok(Self { blocks: Arc::new(blocks), rows: values.len() / cols, cols })
    }

    /// `[rows, cols]`
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// All of it in f32, on the CPU.
    ///
    /// # Errors
    /// Fails where memory is short.
    pub fn dequantize(&self) -> Result<Tensor> {
        Tensor::from_vec(self.dequantize_rows(0..self.rows), (self.rows, self.cols), &Device::Cpu)
    }

    /// Some rows in f32.
    #[must_use]
    pub fn dequantize_rows(&self, rows: Range<usize>) -> Vec<f32> {
        let mut values = vec![0.0; rows.len() * self.cols];
        let each = self.cols / BLOCK;
        let blocks = |row: usize| (rows.start + row) * each..(rows.start + row + 1) * each;
        values.par_chunks_mut(self.cols).enumerate().with_min_len(16).for_each(|(row, values)| match &*self.blocks {
            Blocks::Q8_0(all) => BlockQ8_0::to_float(&all[blocks(row)], values),
            Blocks::Q4_0(all) => BlockQ4_0::to_float(&all[blocks(row)], values),
        });
        values
    }

    /// Runs `f(first, w)` on all rows, some at a time: `w` holds those from `first` on.
    pub(super) fn each_part(&self, mut f: impl FnMut(usize, Mat<'_>) -> Result<()>) -> Result<()> {
        /// Rows that are in f32 at one time.
        const PART: usize = 256;
        let mut start = 0;
        while start < self.rows {
            // Not a single row at the end: products with one column sum in an order of their own.
            let end = if self.rows - start < PART + 2 { self.rows } else { start + PART };
            f(start, Mat::new(&self.dequantize_rows(start..end), end - start, self.cols))?;
            start = end;
        }
        Ok(())
    }
}

fn round<B: GgmlType>(values: &[f32]) -> Vec<B> {
    let mut blocks = vec![B::zeros(); values.len() / BLOCK];
    blocks.par_iter_mut().zip(values.par_chunks_exact(BLOCK)).for_each(|(block, values)| {
        B::from_float(values, std::slice::from_mut(block));
    });
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Weight;
    use crate::ops::linear::{DecodingLinear, Linear};
    use crate::ops::storage::{MatMut, mat, unset, update};
    use crate::ops::testing::{assert_close, random};

    const FORMATS: [(QuantFormat, f32); 2] = [(QuantFormat::Q8_0, 0.02), (QuantFormat::Q4_0, 0.25)];

    fn quantized(rows: usize, cols: usize, format: QuantFormat) -> Quantized {
        let values = random(&[rows, cols], 1).flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
        Quantized::new(&values, cols, format).expect("whole blocks")
    }

    #[test]
    fn rounding_is_small_and_rows_are_those_of_the_whole() {
        for (format, tolerance) in FORMATS {
            let (w, exact) = (quantized(70, 96, format), random(&[70, 96], 1));
            let whole = w.dequantize().unwrap();
            assert_close(&whole, &exact, tolerance);
            let some = Tensor::from_vec(w.dequantize_rows(3..40), (37, 96), &Device::Cpu).unwrap();
            assert_close(&some, &whole.narrow(0, 3, 37).unwrap(), 0.0);
            assert_eq!(format.bytes(70 * 96), 70 * 3 * if format == QuantFormat::Q8_0 { 34 } else { 18 });
        }
        assert!(Quantized::new(&[0.0; 40], 20, QuantFormat::Q8_0).is_err());
    }

    /// Forward, decoding and the gradient of the input have the bits of the same map with dequantised weights.
    #[test]
    fn products_are_those_of_the_dequantised_weight() -> Result<()> {
        for (format, _) in FORMATS {
            for out in [1, 40, 257, 258, 600] {
                let w = quantized(out, 64, format);
                let dense = Linear::new(Weight::frozen(w.dequantize()?), None);
                let few = Linear::new(Weight::quantized(w)?, None);
                let (x, g) = (random(&[9, 64], 2), random(&[9, out], 3));
                assert_close(&few.forward(&x)?, &dense.forward(&x)?, 0.0);
                let (dx, expected) = (unset(9, 64, &x)?, unset(9, 64, &x)?);
                few.backward(&g, &x, &dx, false, None)?;
                dense.backward(&g, &x, &expected, false, None)?;
                assert_close(&dx, &expected, 0.0);
                let y = unset(9, out, &x)?;
                let decoding = DecodingLinear::new(&[&few], true)?;
                let (storage, layout) = x.storage_and_layout();
                let rows = mat(&storage, layout)?;
                update(&y, |mut y: MatMut<'_>| decoding.forward(rows, &mut y, 2))?;
                assert_close(&y, &dense.forward(&x)?, 0.0);
            }
        }
        Ok(())
    }
}
