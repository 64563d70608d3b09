//! The named parameters of a model, in checkpoint order.

use super::{LoadedTensor, ModelError};
use crate::device::Compute;
use crate::ops::Weight;
use crate::ops::quantized::{QuantFormat, Quantized};
use candle_core::{Result, Tensor};

/// One parameter: its literal Hugging Face name and its weight.
#[derive(Debug, Clone)]
pub struct Param {
    pub name: String,
    pub weight: Weight,
}

/// All parameters of a model in the order of its tensor list; clones share the weights.
#[derive(Debug, Clone)]
pub struct Params {
    entries: Vec<Param>,
}

impl Param {
    /// A frozen parameter; with a `format`, that of a linear map of a layer is kept in few bits.
    ///
    /// # Errors
    /// Fails where its rows are no whole number of blocks, or memory is short.
    pub fn frozen(tensor: LoadedTensor, compute: &Compute, format: Option<QuantFormat>) -> Result<Self> {
        let LoadedTensor { name, shape, data } = tensor;
        let weight = match (format, &*shape) {
            (Some(format), [_, cols]) if name.ends_with("_proj.weight") => {
                Weight::quantized(Quantized::new(&data, *cols, format, compute.dtype, &compute.device)?)?
            }
            _ => Weight::frozen(Tensor::from_vec(data, shape, &compute.device)?.to_dtype(compute.dtype)?),
        };
        Ok(Self { name, weight })
    }
}

impl Params {
    /// Moves loaded tensors to a device; with `trainable`, each gets a gradient buffer.
    ///
    /// # Errors
    /// Fails where a tensor cannot be made.
    pub fn new(tensors: Vec<LoadedTensor>, compute: &Compute, trainable: bool) -> Result<Self> {
        let entry = |tensor: LoadedTensor| {
            let value = Tensor::from_vec(tensor.data, tensor.shape, &compute.device)?;
            let weight = if trainable {
                Weight::trainable_as(value, compute.dtype)?
            } else {
                Weight::frozen(value.to_dtype(compute.dtype)?)
            };
            Ok(Param { name: tensor.name, weight })
        };
        Ok(Self { entries: tensors.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// Frozen parameters.
    #[must_use]
    pub fn of(entries: Vec<Param>) -> Self {
        Self { entries }
    }

    /// The same values, which stay shared, with zeroed gradient buffers of their own where there are any.
    ///
    /// # Errors
    /// Fails where a buffer cannot be allocated.
    pub fn with_own_gradients(&self) -> Result<Self> {
        let entry = |p: &Param| Ok(Param { name: p.name.clone(), weight: p.weight.with_own_gradient()? });
        Ok(Self { entries: self.entries.iter().map(entry).collect::<Result<_>>()? })
    }

    /// Every parameter, in checkpoint order.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.entries.iter()
    }

    /// The parameter called `name`; clones of its weight share storage.
    ///
    /// # Errors
    /// Names the tensor where there is none.
    pub fn weight(&self, name: &str) -> std::result::Result<Weight, ModelError> {
        let found = self.entries.iter().find(|p| p.name == name);
        found.map(|p| p.weight.clone()).ok_or_else(|| ModelError::NoSuchParameter { name: name.to_owned() })
    }
}

impl<'a> IntoIterator for &'a Params {
    type Item = &'a Param;
    type IntoIter = std::slice::Iter<'a, Param>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
