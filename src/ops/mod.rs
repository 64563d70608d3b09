//! The operations on the hot path, each with its backward pass, beside a naive reference.
//!
//! The project differentiates by hand: a forward function returns values, a backward function takes the gradient of
//! the result and *adds* to the gradient of each input. Nothing is recorded, so nothing can be dropped unnoticed; what
//! a layer keeps for its backward pass is a plain struct in `model/`. Each file holds the kernel, the reference (made
//! of candle's differentiable operations) and the tests that hold one against the other.
//!
//! All kernels give the same bits whatever the number of threads, and every forward kernel computes a row from that
//! row alone, whatever rows stand beside it: this is what makes the sampler's log-probs equal the trainer's.
//!
//! Kernels are written for contiguous rows of f32 on the CPU.

#![allow(clippy::inline_always, reason = "what a kernel calls must be compiled with the kernel's instruction set")]
#![allow(clippy::needless_range_loop, reason = "plain loops over fixed sizes become vectors and registers")]

pub mod attention;
pub mod elementwise;
pub mod embedding;
pub mod head;
pub mod linear;
pub mod math;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub(crate) mod simd;
pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Result, Tensor};

/// A parameter as the operations see it: its value and, while it is trained, the buffer its gradient is added to.
///
/// Clones share both storages: the optimizer, the sampler and the trainer all see one set of weights.
#[derive(Debug, Clone)]
pub struct Weight {
    value: Tensor,
    grad: Option<Tensor>,
}

impl Weight {
    /// A weight that receives no gradient.
    #[must_use]
    pub fn frozen(value: Tensor) -> Self {
        Self { value, grad: None }
    }

    /// A weight with a zeroed f32 gradient buffer of the same shape.
    ///
    /// # Errors
    /// Fails where the buffer cannot be allocated.
    pub fn trainable(value: Tensor) -> Result<Self> {
        let grad = Tensor::zeros(value.shape(), DType::F32, value.device())?;
        Ok(Self { value, grad: Some(grad) })
    }

    /// The value; shares storage with every clone.
    #[must_use]
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The gradient buffer, where the weight is trained.
    #[must_use]
    pub fn grad(&self) -> Option<&Tensor> {
        self.grad.as_ref()
    }
}
