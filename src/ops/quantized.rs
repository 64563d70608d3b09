//! Frozen weights in 8 or 4 bits: blocks of 32 values of a row with one scale, GGML's formats `Q8_0` and `Q4_0`.
//!
//! A product turns the weight back into f32, or on a GPU into the format that the model computes in, first; so it is
//! exactly that of the dequantised weight, forward and backward. That costs time, and saves the memory of all weights but
//! the one in use.

use super::gpu::{self, Buffer, Launch, Plain, arg, kernel as typed};
use super::storage::{Mat, unset_as};
use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0};
use candle_core::{DType, Device, Result, Tensor, bail};
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

// SAFETY: a number of 16 bits and bytes, laid out as in C, without padding: as the kernels declare it.
unsafe impl Plain for BlockQ8_0 {}
// SAFETY: as above.
unsafe impl Plain for BlockQ4_0 {}

/// Where the blocks are.
#[derive(Clone)]
enum Place {
    Cpu(Arc<Blocks>),
    Gpu(Arc<Buffer>),
}

/// A matrix `[out, in]` in few bits; clones share it.
#[derive(Clone)]
pub struct Quantized {
    place: Place,
    rows: usize,
    cols: usize,
    format: QuantFormat,
    dtype: DType,
    device: Device,
}

impl std::fmt::Debug for Quantized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Quantized({} x {}, {:?})", self.rows, self.cols, self.format)
    }
}

impl Quantized {
    /// Rounds a matrix `[rows, cols]`, for products of values of type `dtype` on `device`.
    ///
    /// # Errors
    /// Fails where a row is no whole number of blocks of 32 values, or the device's memory is short.
    pub fn new(values: &[f32], cols: usize, format: QuantFormat, dtype: DType, device: &Device) -> Result<Self> {
        if cols == 0 || !cols.is_multiple_of(BLOCK) {
            bail!("a row of {cols} values is no whole number of blocks of {BLOCK}");
        }
        let blocks = match format {
            QuantFormat::Q8_0 => Blocks::Q8_0(round(values)),
            QuantFormat::Q4_0 => Blocks::Q4_0(round(values)),
        };
        let place = match (gpu::of_device(device), &blocks) {
            (None, _) => Place::Cpu(Arc::new(blocks)),
            (Some(gpu), Blocks::Q8_0(blocks)) => Place::Gpu(Arc::new(gpu.upload(blocks)?)),
            (Some(gpu), Blocks::Q4_0(blocks)) => Place::Gpu(Arc::new(gpu.upload(blocks)?)),
        };
        Ok(Self { place, rows: values.len() / cols, cols, format, dtype, device: device.clone() })
    }

    /// `[rows, cols]`
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The type of values that it is turned back into.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All of it, to multiply with.
    ///
    /// # Errors
    /// Fails where memory is short.
    pub fn dequantize(&self) -> Result<Tensor> {
        match &self.place {
            Place::Cpu(blocks) => {
                let values = self.rows_of(blocks, 0..self.rows);
                Tensor::from_vec(values, (self.rows, self.cols), &self.device)?.to_dtype(self.dtype)
            }
            Place::Gpu(blocks) => {
                let Some(gpu) = gpu::of_device(&self.device) else { bail!("expected a GPU") };
                let values = unset_as(self.rows, self.cols, self.dtype, &self.device)?;
                let name = match self.format {
                    QuantFormat::Q8_0 => "dequantize_q8_0",
                    QuantFormat::Q4_0 => "dequantize_q4_0",
                };
                let (to, from) = (gpu.view(&values)?, blocks.pointer());
                let args = [arg(&to.matrix), arg(&from)];
                gpu.launch(&typed(name, self.dtype)?, Launch::elements(self.rows * self.cols / 8), &args)?;
                Ok(values)
            }
        }
    }

    /// Some rows in f32.
    fn rows_of(&self, blocks: &Blocks, rows: Range<usize>) -> Vec<f32> {
        let mut values = vec![0.0; rows.len() * self.cols];
        let each = self.cols / BLOCK;
        let of_row = |row: usize| (rows.start + row) * each..(rows.start + row + 1) * each;
        values.par_chunks_mut(self.cols).enumerate().with_min_len(16).for_each(|(row, values)| match blocks {
            Blocks::Q8_0(all) => BlockQ8_0::to_float(&all[of_row(row)], values),
            Blocks::Q4_0(all) => BlockQ4_0::to_float(&all[of_row(row)], values),
        });
        values
    }

    /// Runs `f(first, w)` on all rows, some at a time: `w` holds those from `first` on, in f32. On the CPU only.
    pub(super) fn each_part(&self, mut f: impl FnMut(usize, Mat<'_>) -> Result<()>) -> Result<()> {
        /// Rows that are in f32 at one time.
        const PART: usize = 256;
        let Place::Cpu(blocks) = &self.place else { bail!("expected a weight on the CPU") };
        let mut start = 0;
        while start < self.rows {
            // Not a single row at the end: products with one column sum in an order of their own.
            let end = if self.rows - start < PART + 2 { self.rows } else { start + PART };
            f(start, Mat::new(&self.rows_of(blocks, start..end), end - start, self.cols))?;
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
    #[cfg(any(emulation, feature = "cuda"))]
    use crate::ops::testing::on_gpu;
    use crate::ops::testing::{assert_close, device, on_each_device, random};

    const FORMATS: [(QuantFormat, f32); 2] = [(QuantFormat::Q8_0, 0.02), (QuantFormat::Q4_0, 0.25)];

    fn quantized(rows: usize, cols: usize, format: QuantFormat) -> Quantized {
        let values = random(&[rows, cols], 1).flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
        Quantized::new(&values, cols, format, DType::F32, &device()).expect("whole blocks")
    }

    #[test]
    fn rounding_is_small() -> Result<()> {
        for (format, tolerance) in FORMATS {
            assert_close(&quantized(70, 96, format).dequantize()?, &random(&[70, 96], 1), tolerance);
            assert_eq!(format.bytes(70 * 96), 70 * 3 * if format == QuantFormat::Q8_0 { 34 } else { 18 });
        }
        assert!(Quantized::new(&[0.0; 40], 20, QuantFormat::Q8_0, DType::F32, &Device::Cpu).is_err());
        Ok(())
    }

    /// A GPU turns blocks into the bits that the CPU does, scales of every size among them.
    #[test]
    #[cfg(any(emulation, feature = "cuda"))]
    fn a_gpu_gives_the_same_values() -> Result<()> {
        for (format, _) in FORMATS {
            // Scales below what f16 can hold as a normal number, too, and blocks of zeros.
            let values: Vec<f32> = (0..90 * 64)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) * [1.0, 1e-3, 1e-5, 1e-7, 0.0, 300.0][i / 32 % 6])
                .collect();
            let make = |dtype| Quantized::new(&values, 64, format, dtype, &device())?.dequantize();
            for dtype in [DType::F32, DType::BF16] {
                let bits = |t: Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2::<f32>();
                let (cpu, gpu) = (bits(make(dtype)?)?, on_gpu(|| bits(make(dtype)?))?);
                assert!(cpu == gpu, "{format:?} as {dtype:?}");
            }
        }
        Ok(())
    }

    /// Forward and the gradient of the input have the bits of the same map with dequantised weights.
    #[test]
    fn products_are_those_of_the_dequantised_weight() -> Result<()> {
        on_each_device(|| {
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
                }
            }
            Ok(())
        })
    }

    /// Decoding on the CPU, which turns some rows back at a time, gives the same bits, too.
    #[test]
    fn decoding_gives_the_bits_of_the_whole_weight() -> Result<()> {
        for (format, _) in FORMATS {
            for out in [1, 40, 257, 258, 600] {
                let few = Linear::new(Weight::quantized(quantized(out, 64, format))?, None);
                let x = random(&[9, 64], 2);
                let y = unset(9, out, &x)?;
                let decoding = DecodingLinear::new(&[&few], true)?;
                let (storage, layout) = x.storage_and_layout();
                let rows = mat(&storage, layout)?;
                update(&y, |mut y: MatMut<'_>| decoding.forward(rows, &mut y, 2))?;
                assert_close(&y, &few.forward(&x)?, 0.0);
            }
        }
        Ok(())
    }
}
