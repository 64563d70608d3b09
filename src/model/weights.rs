//! The weights of a model: read from safetensors into f32, or drawn fresh.
//!
//! Files are read into memory, never mapped: a mapped file that is cut short while it is in use kills the process. A
//! tensor is converted piece by piece, so the peak is the f32 model plus one small buffer a thread. Pickles are never
//! opened. Writing is `checkpoint`'s.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::Value;

use super::config::{Init, ModelConfig, Task, TensorSpec};
use super::error::{ModelError, TensorProblem};
use super::header::{self, Entry};
use crate::rng::{self, Stream};

/// The largest shard index that is read: a few million tensors.
const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Bytes converted at a time.
const PIECE_BYTES: usize = 1 << 20;

const HEAD: &str = "lm_head.weight";

/// The floating-point type of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedDtype {
    F32,
    Bf16,
    F16,
}

impl SavedDtype {
    /// The name in a safetensors header.
    #[must_use]
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// The name in `config.json`.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The type with the given name in a safetensors header.
    #[must_use]
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.safetensors_name() == name)
    }
}

/// One tensor in memory, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Reads the weights of the model folder: exactly [`ModelConfig::tensors`], in that order, with the dtype most of them have.
///
/// `rotary_emb.inv_freq` buffers of old files are skipped, and so is a tied head that equals the embedding.
///
/// # Errors
/// [`ModelError::Tensors`] with every missing, mis-shaped and unexpected tensor; [`ModelError::NonFinite`];
/// [`ModelError::Pickle`]; and what a damaged file or index gives.
pub fn load_weights(folder: &Path, config: &ModelConfig) -> Result<(Vec<LoadedTensor>, SavedDtype), ModelError> {
    load_weights_with(folder, config, |tensor| tensor)
}

/// [`load_weights`] with each tensor handed to `convert` as soon as it is read, so that not all are in memory in f32.
///
/// # Errors
/// As [`load_weights`].
pub fn load_weights_with<T: Send>(
    folder: &Path,
    config: &ModelConfig,
    convert: impl Fn(LoadedTensor) -> T + Sync,
) -> Result<(Vec<T>, SavedDtype), ModelError> {
    let mut problems = Vec::new();
    let mut stored = collect(folder, &mut problems)?;
    let mut wanted = Vec::new();
    for spec in config.tensors() {
        match stored.remove(&spec.name) {
            Some(tensor) => {
                check_tensor(&spec, &tensor, &mut problems);
                wanted.push((spec, tensor));
            }
            // Already named as absent from the shard that the index gives.
            None if problems
                .iter()
                .any(|p| matches!(p, TensorProblem::NotInShard { name, .. } if *name == spec.name)) => {}
            None => problems.push(TensorProblem::Missing { name: spec.name }),
        }
    }
    let tied_head = match config.task {
        Task::CausalLm if config.tie_word_embeddings => stored.remove(HEAD),
        // A head for tokens that was left in the file of a reward model is not used.
        Task::SequenceClassification => stored.remove(HEAD).and(None),
        Task::CausalLm => None,
    };
    stored.retain(|name, _| !name.ends_with("rotary_emb.inv_freq"));
    problems.extend(stored.into_keys().map(|name| TensorProblem::Unexpected { name }));
    let mismatch = |problems| ModelError::Tensors { folder: folder.to_owned(), problems };
    if !problems.is_empty() {
        return Err(mismatch(problems));
    }

    let dtype = main_dtype(&wanted);
    if let (Some(head), Some((spec, embedding))) = (tied_head, wanted.first()) {
        let head_spec = TensorSpec { name: HEAD.into(), ..spec.clone() };
        let mut problems = Vec::new();
        check_tensor(&head_spec, &head, &mut problems);
        if problems.is_empty() && head.read(&head_spec)?.data != embedding.read(spec)?.data {
            problems.push(TensorProblem::TiedHeadDiffers);
        }
        if !problems.is_empty() {
            return Err(mismatch(problems));
        }
    }
    // Collected before the first error is looked for, so that the same file always gives the same message.
    let read: Vec<Result<T, ModelError>> =
        wanted.into_par_iter().map(|(spec, tensor)| tensor.read(&spec).map(&convert)).collect();
    let tensors = read.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok((tensors, dtype))
}

/// Draws the weights of a fresh model: matrices from N(0, `initializer_range`^2), norms 1, biases 0.
///
/// Every value is named by `(seed, tensor, element)`: the same on every machine and thread count.
#[must_use]
pub fn init_weights(config: &ModelConfig, seed: u64) -> Vec<LoadedTensor> {
    let specs = config.tensors().into_iter().enumerate();
    specs.map(|(index, spec)| draw(index, spec, config.initializer_range, seed)).collect()
}

/// The first values of tensor `index` of a model.
fn draw(index: usize, spec: TensorSpec, initializer_range: f64, seed: u64) -> LoadedTensor {
    let elements: usize = spec.shape.iter().product();
    let data = match spec.init {
        Init::Zeros => vec![0.0; elements],
        Init::Ones => vec![1.0; elements],
        Init::Normal => (0..elements)
            .into_par_iter()
            .map(|element| {
                let z = rng::normal(seed, Stream::Init, [index as u64, element as u64, 0, 0]);
                (z * initializer_range) as f32
            })
            .collect(),
    };
    LoadedTensor { name: spec.name, shape: spec.shape, data }
}

/// Reads the weights of a reward model, or makes them of those of a language model: its head is left out, and the head
/// for scores is drawn from `seed` as in [`init_weights`].
///
/// # Errors
/// As [`load_weights`], and where the folder holds neither.
pub fn load_reward_weights(folder: &Path, seed: u64) -> Result<(Vec<LoadedTensor>, SavedDtype), ModelError> {
    let found = ModelConfig::load_as(folder, None)?;
    let (mut tensors, dtype) = load_weights(folder, &found)?;
    if found.task == Task::CausalLm {
        let config = ModelConfig { task: Task::SequenceClassification, ..found };
        tensors.retain(|tensor| tensor.name != HEAD);
        let fresh = config.tensors().into_iter().enumerate().skip(tensors.len());
        tensors.extend(fresh.map(|(index, spec)| draw(index, spec, config.initializer_range, seed)));
    }
    Ok((tensors, dtype))
}

/// A tensor that lies in a file.
pub(super) struct StoredTensor {
    path: PathBuf,
    file: std::sync::Arc<File>,
    pub entry: Entry,
}

impl StoredTensor {
    pub fn read(&self, spec: &TensorSpec) -> Result<LoadedTensor, ModelError> {
        let failed = |source| ModelError::Read { path: self.path.clone(), source };
        let Some(dtype) = SavedDtype::from_safetensors_name(&self.entry.dtype) else {
            return Err(ModelError::OtherFormat {
                path: self.path.clone(),
                format: "a dtype other than F32, BF16, F16",
            });
        };
        // The header check has shown that the file holds these bytes, so the allocation is bounded by its size.
        let mut data = vec![0f32; self.entry.bytes as usize / dtype.bytes()];
        let mut piece = vec![0u8; PIECE_BYTES.min(self.entry.bytes as usize)];
        let mut at = self.entry.start;
        for values in data.chunks_mut(PIECE_BYTES / dtype.bytes()) {
            let piece = &mut piece[..values.len() * dtype.bytes()];
            self.file.read_exact_at(piece, at).map_err(failed)?;
            at += piece.len() as u64;
            decode(piece, dtype, values);
        }
        let count = data.iter().filter(|value| !value.is_finite()).count();
        if count > 0 {
            return Err(ModelError::NonFinite { path: self.path.clone(), tensor: spec.name.clone(), count });
        }
        Ok(LoadedTensor { name: spec.name.clone(), shape: spec.shape.clone(), data })
    }
}

/// Little-endian bytes of a file -> f32.
fn decode(bytes: &[u8], dtype: SavedDtype, values: &mut [f32]) {
    match dtype {
        SavedDtype::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        SavedDtype::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        SavedDtype::F16 => {
            let halves: Vec<f16> = bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
            halves.convert_to_f32_slice(values);
        }
    }
}

pub(super) fn check_tensor(spec: &TensorSpec, tensor: &StoredTensor, problems: &mut Vec<TensorProblem>) {
    let entry = &tensor.entry;
    if SavedDtype::from_safetensors_name(&entry.dtype).is_none() {
        problems.push(TensorProblem::Dtype { name: spec.name.clone(), dtype: entry.dtype.clone() });
    }
    if entry.shape != spec.shape {
        problems.push(TensorProblem::Shape {
            name: spec.name.clone(),
            found: entry.shape.clone(),
            expected: spec.shape.clone(),
        });
    }
}

/// The dtype that holds most of the values.
fn main_dtype(tensors: &[(TensorSpec, StoredTensor)]) -> SavedDtype {
    let mut elements = BTreeMap::new();
    for (spec, tensor) in tensors {
        if let Some(dtype) = SavedDtype::from_safetensors_name(&tensor.entry.dtype) {
            *elements.entry(dtype).or_insert(0) += spec.shape.iter().product::<usize>();
        }
    }
    elements.into_iter().max_by_key(|(_, count)| *count).map_or(SavedDtype::F32, |(dtype, _)| dtype)
}

/// Every tensor of the folder's weight files by name, sorted; what contradicts the index goes to `problems`.
fn collect(folder: &Path, problems: &mut Vec<TensorProblem>) -> Result<BTreeMap<String, StoredTensor>, ModelError> {
    if !folder.is_dir() {
        return Err(ModelError::NotAFolder { path: folder.to_owned() });
    }
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() {
        return Ok(open(&single)?.into_iter().collect());
    }
    if !index.exists() {
        return Err(no_weights(folder));
    }
    let weight_map = read_index(&index)?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    let absent: Vec<String> =
        shards.keys().filter(|shard| !folder.join(shard).exists()).map(|shard| (*shard).to_owned()).collect();
    if !absent.is_empty() {
        return Err(ModelError::MissingShards { path: index, shards: absent });
    }
    let mut tensors = BTreeMap::new();
    let mut homes: HashMap<String, &str> = HashMap::new();
    for (shard, names) in shards {
        let mut held: HashMap<String, StoredTensor> = open(&folder.join(shard))?.into_iter().collect();
        for name in names {
            match held.remove(name) {
                Some(tensor) => {
                    if let Some(first) = homes.insert(name.to_owned(), shard) {
                        problems.push(twice(name, first, shard));
                    }
                    tensors.insert(name.to_owned(), tensor);
                }
                None => problems.push(TensorProblem::NotInShard { name: name.to_owned(), shard: shard.to_owned() }),
            }
        }
        // Left over: held by this shard although the index does not say so.
        for (name, tensor) in held {
            let first = homes.get(&name).copied().or_else(|| weight_map.get(&name).map(String::as_str));
            if let Some(first) = first {
                problems.push(twice(&name, first, shard));
            } else {
                homes.insert(name.clone(), shard);
                tensors.insert(name, tensor);
            }
        }
    }
    Ok(tensors)
}

fn twice(name: &str, first: &str, second: &str) -> TensorProblem {
    TensorProblem::Twice { name: name.to_owned(), first: first.to_owned(), second: second.to_owned() }
}

/// The tensors of a file.
pub(super) fn open(path: &Path) -> Result<Vec<(String, StoredTensor)>, ModelError> {
    let (file, header) = header::read(path)?;
    let file = std::sync::Arc::new(file);
    Ok(header
        .entries
        .into_iter()
        .map(|entry| (entry.name.clone(), StoredTensor { path: path.to_owned(), file: file.clone(), entry }))
        .collect())
}

/// The `weight_map` of a shard index; every shard is a plain file name.
///
/// # Errors
/// [`ModelError::Index`], [`ModelError::ShardName`], [`ModelError::Json`], and read errors.
pub fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let text = super::json::read_text(path, MAX_INDEX_BYTES)?;
    let value = super::json::parse(&text)
        .map_err(|error| ModelError::Json { path: path.to_owned(), message: error.to_string() })?;
    let malformed = || ModelError::Index {
        path: path.to_owned(),
        key: "weight_map",
        expected: "an object of tensor names and file names",
    };
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(malformed)?;
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(malformed)?;
        if !is_shard_name(shard) {
            return Err(ModelError::ShardName {
                path: path.to_owned(),
                tensor: tensor.clone(),
                shard: shard.to_owned(),
            });
        }
        weight_map.insert(tensor.clone(), shard.to_owned());
    }
    Ok(weight_map)
}

/// A name that cannot leave the folder on any system: letters, digits, `-`, `_`, `.`, ending in `.safetensors`.
fn is_shard_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 200 && name.chars().all(plain) && !name.starts_with('.') && name.ends_with(".safetensors")
}

/// Why a folder without safetensors weights cannot be used: it holds a pickle, another format, or nothing.
fn no_weights(folder: &Path) -> ModelError {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|item| item.path())
        .filter(|path| path.is_file())
        .collect();
    names.sort();
    let mut other = None;
    for path in names {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "bin" | "pt" | "pth" | "ckpt" | "pkl" => return ModelError::Pickle { path, format: "torch" },
            "npz" | "npy" => "NumPy",
            "gguf" | "ggml" => "GGUF",
            "h5" => "HDF5",
            "msgpack" => "Flax msgpack",
            "onnx" => "ONNX",
            "safetensors" if path.file_name().is_some_and(|name| name == "adapter_model.safetensors") => {
                "a LoRA adapter"
            }
            _ => continue,
        };
        other.get_or_insert(ModelError::OtherFormat { path, format });
    }
    other.unwrap_or_else(|| ModelError::MissingFile {
        folder: folder.to_owned(),
        file: "model.safetensors and no model.safetensors.index.json".into(),
    })
}
