//! The named parameters of a model, in checkpoint order.

use super::{LoadedTensor, ModelError};
use crate::ops::Weight;
use candle_core::{Device, Result, Tensor};

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

impl Params {
    /// Moves loaded tensors to a device; with `trainable`, each gets a gradient buffer.
    ///
    /// # Errors
    /// Fails where a tensor cannot be made.
    pub fn new(tensors: Vec<LoadedTensor>, device: &Device, trainable: bool) -> Result<Self> {
        let entry = |tensor: LoadedTensor| {
            let value = Tensor::from_vec(tensor.data, tensor.shape, device)?;
            let weight = if trainable { Weight::trainable(value)? } else { Weight::frozen(value) };
            Ok(Param { name: tensor.name, weight })
        };
        Ok(Self { entries: tensors.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// A copy with storage of its own that receives no gradient: a reference policy.
    ///
    /// # Errors
    /// Fails where a tensor cannot be copied.
    pub fn frozen_copy(&self) -> Result<Self> {
        let entry = |p: &Param| Ok(Param { name: p.name.clone(), weight: Weight::frozen(p.weight.value().copy()?) });
        Ok(Self { entries: self.entries.iter().map(entry).collect::<Result<_>>()? })
    }

    /// The same values, which stay shared, with zeroed gradient buffers of their own where there are any.
    ///
    /// # Errors
    /// Fails where a buffer cannot be allocated.
    pub fn with_own_gradients(&self) -> Result<Self> {
        let entry = |p: &Param| {
            let value = p.weight.value().clone();
            let weight = if p.weight.grad().is_some() { Weight::trainable(value)? } else { Weight::frozen(value) };
            Ok(Param { name: p.name.clone(), weight })
        };
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
