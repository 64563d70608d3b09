//! The low-rank adapters of a decoder: their weights, drawn fresh or read from a PEFT folder.
//!
//! Tensors have the names that PEFT gives them. Files are written by `checkpoint`.

use super::peft::{AdaptedMap, PeftConfig};
use super::weights::{check_tensor, open};
use super::{Init, LoadedTensor, ModelConfig, ModelError, Params, TensorProblem, TensorSpec};
use crate::device::Compute;
use crate::ops::lora::Lora;
use crate::rng::{self, Stream};
use candle_core::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// The weights' file in a PEFT folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of each map.
const PREFIX: &str = "base_model.model.";

/// Adapters of some of a decoder's maps.
#[derive(Debug, Clone)]
pub struct Adapter {
    maps: Vec<AdaptedMap>,
    dropout: f32,
    /// A and B of each map, in the order of the maps.
    params: Params,
}

impl Adapter {
    /// Wires the tensors of [`load_adapter`] or [`init_adapter`]; with `trainable`, each gets a gradient buffer.
    ///
    /// # Errors
    /// Fails where a tensor cannot be made.
    pub fn new(
        config: &PeftConfig,
        maps: Vec<AdaptedMap>,
        tensors: Vec<LoadedTensor>,
        compute: &Compute,
        trainable: bool,
    ) -> Result<Self> {
        let params = Params::new(tensors, compute, trainable)?;
        Ok(Self { maps, dropout: config.lora_dropout as f32, params })
    }

    /// The same values, which stay shared, with zeroed gradient buffers of their own where there are any.
    ///
    /// # Errors
    /// Fails where a buffer cannot be allocated.
    pub fn with_own_gradients(&self) -> Result<Self> {
        Ok(Self { params: self.params.with_own_gradients()?, ..self.clone() })
    }

    /// Every A and B.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The adapter of a map, where it has one.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<Lora> {
        let index = self.maps.iter().position(|map| map.name == name)?;
        let [a, b] = ["A", "B"].map(|part| self.params.weight(&tensor_name(name, part)));
        let scale = self.maps[index].scale;
        Some(Lora { a: a.ok()?, b: b.ok()?, scale, dropout: self.dropout, module: index as u64 })
    }
}

fn tensor_name(map: &str, part: &str) -> String {
    format!("{PREFIX}{map}.lora_{part}.weight")
}

/// The tensors of some maps' adapters: A and B of each.
#[must_use]
pub fn adapter_tensors(maps: &[AdaptedMap]) -> Vec<TensorSpec> {
    let of_map = |map: &AdaptedMap| {
        let spec = |part: &str, shape: [usize; 2], init| TensorSpec {
            name: tensor_name(&map.name, part),
            shape: shape.to_vec(),
            init,
        };
        // As PEFT starts them: A as a linear map of torch, B zero, so that training begins with the base model.
        [spec("A", [map.rank, map.inputs], Init::Normal), spec("B", [map.outputs, map.rank], Init::Zeros)]
    };
    maps.iter().flat_map(of_map).collect()
}

/// The first weights of a new adapter: B is zero, A uniform within 1 / sqrt(inputs) (He et al., arXiv:1502.01852, with
/// the slope sqrt(5) that torch and PEFT use).
///
/// Every value is named by `(seed, map, element)`.
#[must_use]
pub fn init_adapter(maps: &[AdaptedMap], seed: u64) -> Vec<LoadedTensor> {
    let draw = |(index, spec): (usize, TensorSpec)| {
        let count: usize = spec.shape.iter().product();
        let bound = 1.0 / (spec.shape[1] as f64).sqrt();
        let value = |element: usize| match spec.init {
            Init::Normal => {
                let at = [index as u64 / 2, element as u64, 0, 0];
                ((2.0 * rng::uniform(seed, Stream::Adapter, at) - 1.0) * bound) as f32
            }
            Init::Zeros | Init::Ones => 0.0,
        };
        LoadedTensor { data: (0..count).map(value).collect(), name: spec.name, shape: spec.shape }
    };
    adapter_tensors(maps).into_iter().enumerate().map(draw).collect()
}

/// Reads the adapter in `folder`: the tensors of every map that `config` names for the base model, in its order.
///
/// # Errors
/// [`ModelError::Adapter`] with every tensor that is missing, of another shape or of another map; what a damaged file
/// gives.
pub fn load_adapter(
    folder: &Path,
    config: &PeftConfig,
    base: &ModelConfig,
) -> std::result::Result<(Vec<AdaptedMap>, Vec<LoadedTensor>), ModelError> {
    let path = folder.join(ADAPTER_WEIGHTS);
    if !path.exists() {
        let is_pickle = folder.join("adapter_model.bin").exists();
        return Err(if is_pickle {
            ModelError::Pickle { path: folder.join("adapter_model.bin"), format: "torch" }
        } else {
            ModelError::MissingFile { folder: folder.to_owned(), file: ADAPTER_WEIGHTS.into() }
        });
    }
    let mut stored: BTreeMap<_, _> = open(&path)?.into_iter().collect();
    // The file says which maps have an adapter: `layers_to_transform` and the like have had their effect on it.
    let mut maps = config.maps(base)?;
    maps.retain(|map| ["A", "B"].iter().any(|part| stored.contains_key(&tensor_name(&map.name, part))));
    let mut problems = Vec::new();
    let mut wanted = Vec::new();
    for spec in adapter_tensors(&maps) {
        match stored.remove(&spec.name) {
            Some(tensor) => {
                check_tensor(&spec, &tensor, &mut problems);
                wanted.push((spec, tensor));
            }
            None => problems.push(TensorProblem::Missing { name: spec.name }),
        }
    }
    problems.extend(stored.into_keys().map(|name| TensorProblem::Unexpected { name }));
    if maps.is_empty() && problems.is_empty() {
        problems.push(TensorProblem::Missing { name: "every lora_A and lora_B".into() });
    }
    if !problems.is_empty() {
        let base = config.base_model.clone().unwrap_or_default();
        return Err(ModelError::Adapter { folder: folder.to_owned(), base, problems });
    }
    let tensors = wanted.iter().map(|(spec, tensor)| tensor.read(spec)).collect::<std::result::Result<_, _>>()?;
    Ok((maps, tensors))
}

/// Adds each adapter to the weight of its map, `W += s B A`, in f32.
///
/// # Errors
/// [`ModelError::NoSuchParameter`] where the model has no such map.
pub fn merge(
    weights: &mut [LoadedTensor],
    maps: &[AdaptedMap],
    adapter: &[LoadedTensor],
) -> std::result::Result<(), ModelError> {
    use rayon::prelude::*;
    for (map, parts) in maps.iter().zip(adapter.chunks_exact(2)) {
        let name = format!("{}.weight", map.name);
        let Some(weight) = weights.iter_mut().find(|weight| weight.name == name) else {
            return Err(ModelError::NoSuchParameter { name });
        };
        let (a, b) = (&parts[0].data, &parts[1].data);
        weight.data.par_chunks_mut(map.inputs).zip(b.par_chunks(map.rank)).for_each(|(row, b)| {
            let mut sum = vec![0.0f32; map.inputs];
            for (b, a) in b.iter().zip(a.chunks_exact(map.inputs)) {
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
            row.iter_mut().zip(&sum).for_each(|(w, sum)| *w += map.scale * sum);
        });
    }
    Ok(())
}
