//! The operations on the hot path, each with its backward pass, beside a naive reference.
//!
//! The project differentiates by hand: a forward function returns values, a backward function takes the gradient of
//! the result and *adds* to the gradient of each input. Nothing is recorded, so nothing can be dropped unnoticed; what
//! a layer keeps for its backward pass is a plain struct in `model/`. Each file holds the kernel, the reference (made
//! of candle's differentiable operations, in f64) and the tests that hold one against the other.
//!
//! All kernels give the same bits whatever the number of threads, and every forward kernel computes a row from that
//! row alone, whatever rows stand beside it: this is what makes the sampler's log-probs equal the trainer's.
//!
//! Kernels on the CPU are written for contiguous rows of f32; those for a GPU stand beside them in `.cu` files and are
//! launched where the tensors live on one (`gpu/`).

#![allow(clippy::inline_always, reason = "what a kernel calls must be compiled with the kernel's instruction set")]
#![allow(clippy::needless_range_loop, reason = "plain loops over fixed sizes become vectors and registers")]

pub mod attention;
pub mod elementwise;
pub mod embedding;
pub(crate) mod gpu;
pub mod head;
pub mod linear;
pub mod lora;
pub mod math;
pub mod matmul;
pub mod quantized;
pub mod rms_norm;
pub mod rope;
pub mod score;
pub(crate) mod simd;
pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Result, Tensor};
use quantized::Quantized;
use std::borrow::Cow;

/// A parameter as the operations see it: its value and, while it is trained, the buffer its gradient is added to.
///
/// Clones share all storages: the optimizer, the sampler and the trainer see one set of weights.
#[derive(Debug, Clone)]
pub struct Weight {
    value: Tensor,
    grad: Option<Tensor>,
    master: Option<Tensor>,
    quantized: Option<Quantized>,
}

impl Weight {
    /// A weight that receives no gradient.
    #[must_use]
    pub fn frozen(value: Tensor) -> Self {
        Self { value, grad: None, master: None, quantized: None }
    }

    /// A weight with a zeroed f32 gradient buffer of the same shape.
    ///
    /// # Errors
    /// Fails where the buffer cannot be allocated.
    pub fn trainable(value: Tensor) -> Result<Self> {
        Self::trainable_as(value, DType::F32)
    }

    /// [`Weight::trainable`], used as `dtype`. Where that is not f32, the given values are kept beside the rounded ones
    /// (Micikevicius et al., arXiv:1710.03740 section 3.1).
    ///
    /// # Errors
    /// Fails where the buffers cannot be allocated.
    pub fn trainable_as(master: Tensor, dtype: DType) -> Result<Self> {
        let grad = Some(Tensor::zeros(master.shape(), DType::F32, master.device())?);
        if dtype == DType::F32 {
            return Ok(Self { value: master, grad, master: None, quantized: None });
        }
        Ok(Self { value: master.to_dtype(dtype)?, grad, master: Some(master), quantized: None })
    }

    /// A frozen matrix in few bits. Its [`Weight::value`] has its shape, but no values: only what asks for
    /// [`Weight::dense`] can use it.
    ///
    /// # Errors
    /// Fails where the device does.
    pub fn quantized(matrix: Quantized) -> Result<Self> {
        // Rows that are no rows in memory: an operation that does not know of quantised weights refuses them.
        let value = Tensor::zeros((1, 1), matrix.dtype(), matrix.device())?.broadcast_as(matrix.shape())?;
        Ok(Self { value, grad: None, master: None, quantized: Some(matrix) })
    }

    /// The value in the format that products use.
    ///
    /// # Errors
    /// Fails where memory is short.
    pub fn dense(&self) -> Result<Cow<'_, Tensor>> {
        match &self.quantized {
            None => Ok(Cow::Borrowed(&self.value)),
            Some(matrix) => matrix.dequantize().map(Cow::Owned),
        }
    }

    /// The same values, which stay shared, with a zeroed gradient buffer of its own where there is one.
    ///
    /// # Errors
    /// Fails where the buffer cannot be allocated.
    pub fn with_own_gradient(&self) -> Result<Self> {
        let grad = self.grad.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { grad, ..self.clone() })
    }

    /// The value that operations use; shares storage with every clone. See [`Weight::quantized`].
    #[must_use]
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The exact value, f32 where the weight is trained.
    #[must_use]
    pub fn master(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.value)
    }

    /// The gradient buffer, where the weight is trained.
    #[must_use]
    pub fn grad(&self) -> Option<&Tensor> {
        self.grad.as_ref()
    }

    /// Replaces the value in every clone.
    ///
    /// # Errors
    /// Fails where `values` are not as many as the weight has.
    pub fn set(&self, values: Vec<f32>) -> Result<()> {
        let values = Tensor::from_vec(values, self.value.shape(), self.value.device())?;
        if let Some(master) = &self.master {
            storage::copy(master, &values)?;
        }
        storage::copy(&self.value, &values.to_dtype(self.value.dtype())?)
    }
}

/// Whether the kernels for a GPU can be loaded on this one.
///
/// # Errors
/// Fails with the driver's reason.
#[cfg(feature = "cuda")]
pub fn check_kernels(device: &candle_core::Device) -> Result<()> {
    gpu::of_device(device).map_or(Ok(()), |gpu| gpu.check())
}

/// The vector instructions that the kernels on the CPU use.
#[must_use]
pub fn instructions() -> &'static str {
    match simd::level() {
        simd::Level::Plain => "plain",
        #[cfg(target_arch = "x86_64")]
        simd::Level::Avx2 => "AVX2",
        #[cfg(target_arch = "x86_64")]
        simd::Level::Avx512 => "AVX-512",
    }
}
