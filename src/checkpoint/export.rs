//! A trained model as a Hugging Face folder: what transformers, vLLM and the converters load unchanged.
//!
//! The base model's files are copied byte for byte; only the weights are new, and the dtype in `config.json` where it
//! changed. Weights are converted and written one tensor at a time. Training state is not here, and the f32 master
//! weights belong to it: an export is rounded to the dtype that is asked for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::json;

use super::CheckpointError;
use super::tensors::{header, num_elements};
use crate::io::{IoError, create_dirs, write_atomic};
use crate::model::SavedDtype;

/// Largest weight file by default: what the Hub's own tools write.
pub const SHARD_BYTES: u64 = 5_000_000_000;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Values converted at a time.
const PIECE: usize = 1 << 15;

/// Files of a base model besides its tokenizer that an export keeps unchanged, where the base has them.
const COPIED: &[&str] = &["generation_config.json", "LICENSE", "LICENSE.txt", "NOTICE"];
/// Files of a tokenizer.
const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Writes the model folder `out`: the files of `base` and the tensors `specs`, rounded to `dtype`.
///
/// `data(i)` gives the elements of `specs[i]`, one tensor at a time. Weights of more than `shard_bytes` are cut into
/// shards with an index; weight files of an earlier export that no longer belong are removed last. The model card is
/// the caller's.
///
/// # Errors
/// What `data` returns; [`CheckpointError::NotRepresentable`] for a value that `dtype` cannot hold;
/// [`CheckpointError::Corrupt`] where `data` gives another number of elements than the shape has; I/O errors.
pub fn export_model<'a, E: From<CheckpointError>>(
    out: &Path,
    base: &Path,
    specs: &[(&str, &[usize])],
    data: impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
    dtype: SavedDtype,
    shard_bytes: u64,
) -> Result<(), E> {
    create_dirs(out).map_err(CheckpointError::from)?;
    let names = write_weights(out, specs, data, dtype, shard_bytes)?;
    copy_base(out, base, dtype)?;
    remove_other_weights(out, &names).map_err(CheckpointError::from)?;
    Ok(())
}

/// Writes the folder of an adapter as PEFT does: `adapter_config.json` with the text `config`, the tensors `specs`, and
/// the tokenizer of `base`. `data` and `dtype` are those of [`export_model`].
///
/// # Errors
/// As [`export_model`].
pub fn export_adapter<'a, E: From<CheckpointError>>(
    out: &Path,
    base: &Path,
    config: &str,
    specs: &[(&str, &[usize])],
    mut data: impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
    dtype: SavedDtype,
) -> Result<(), E> {
    create_dirs(out).map_err(CheckpointError::from)?;
    write_file(&out.join(ADAPTER_WEIGHTS), specs, 0..specs.len(), &mut data, dtype)?;
    write_atomic(&out.join(ADAPTER_CONFIG), |writer| writer.write_all(config.as_bytes()))
        .map_err(CheckpointError::from)?;
    copy_files(out, base, TOKENIZER)?;
    remove_other_weights(out, &[ADAPTER_WEIGHTS.into(), ADAPTER_CONFIG.into()]).map_err(CheckpointError::from)?;
    Ok(())
}

/// Writes one weight file or shards with an index; returns the names of all of them.
fn write_weights<'a, E: From<CheckpointError>>(
    out: &Path,
    specs: &[(&str, &[usize])],
    mut data: impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
    dtype: SavedDtype,
    shard_bytes: u64,
) -> Result<Vec<String>, E> {
    let shards = cut(specs, dtype, shard_bytes);
    if let [all] = shards.as_slice() {
        write_file(&out.join(WEIGHTS), specs, all.clone(), &mut data, dtype)?;
        return Ok(vec![WEIGHTS.into()]);
    }
    let mut names = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (i, range) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_file(&out.join(&name), specs, range.clone(), &mut data, dtype)?;
        weight_map.extend(specs[range.clone()].iter().map(|(tensor, _)| (*tensor, name.clone())));
        names.push(name);
    }
    let elements: usize = specs.iter().map(|(_, shape)| num_elements(shape)).sum();
    let metadata = json!({ "total_parameters": elements, "total_size": elements * dtype.bytes() });
    let index = json!({ "metadata": metadata, "weight_map": weight_map });
    let path = out.join(INDEX);
    write_atomic(&path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, &index)?;
        writer.write_all(b"\n")
    })
    .map_err(CheckpointError::from)?;
    names.push(INDEX.into());
    Ok(names)
}

/// Consecutive runs of tensors of at most `shard_bytes`; a larger tensor is alone in its file.
fn cut(specs: &[(&str, &[usize])], dtype: SavedDtype, shard_bytes: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut filled) = (0, 0u64);
    for (i, (_, shape)) in specs.iter().enumerate() {
        let bytes = (num_elements(shape) * dtype.bytes()) as u64;
        if i > start && filled + bytes > shard_bytes {
            shards.push(start..i);
            (start, filled) = (i, 0);
        }
        filled += bytes;
    }
    shards.push(start..specs.len());
    shards
}

fn write_file<'a, E: From<CheckpointError>>(
    path: &Path,
    specs: &[(&str, &[usize])],
    range: Range<usize>,
    data: &mut impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
    dtype: SavedDtype,
) -> Result<(), E> {
    // The writer speaks io::Error only, so an error of the data is kept beside it.
    let mut failure = None;
    let result = write_atomic(path, |writer| {
        let header = header(&specs[range.clone()], dtype)?;
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for i in range {
            let (name, shape) = specs[i];
            let written = match data(i) {
                Ok(values) if values.len() == num_elements(shape) => {
                    write_tensor(writer, &values, dtype)?.then_some(()).ok_or_else(|| {
                        CheckpointError::NotRepresentable { tensor: name.to_owned(), dtype: dtype.torch_name() }.into()
                    })
                }
                Ok(values) => {
                    let problem = format!("tensor {name} of shape {shape:?} was given {} elements", values.len());
                    Err(CheckpointError::corrupt(path, problem).into())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                failure = Some(error);
                return Err(io::Error::other("no data"));
            }
        }
        Ok(())
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(result.map_err(CheckpointError::from)?),
    }
}

/// Writes the elements in `dtype`, rounded to nearest even; false where a value is or becomes infinite or NaN.
fn write_tensor(writer: &mut dyn Write, values: &[f32], dtype: SavedDtype) -> io::Result<bool> {
    let mut bytes = Vec::with_capacity(PIECE * dtype.bytes());
    let (mut brain, mut half) = (vec![bf16::ZERO; PIECE], vec![f16::ZERO; PIECE]);
    let mut finite = true;
    for piece in values.chunks(PIECE) {
        bytes.clear();
        match dtype {
            SavedDtype::F32 => {
                finite &= piece.iter().all(|value| value.is_finite());
                bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            }
            SavedDtype::Bf16 => {
                let brain = &mut brain[..piece.len()];
                brain.convert_from_f32_slice(piece);
                finite &= brain.iter().all(|value| value.is_finite());
                bytes.extend(brain.iter().flat_map(|value| value.to_le_bytes()));
            }
            SavedDtype::F16 => {
                let half = &mut half[..piece.len()];
                half.convert_from_f32_slice(piece);
                finite &= half.iter().all(|value| value.is_finite());
                bytes.extend(half.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        writer.write_all(&bytes)?;
    }
    Ok(finite)
}

/// Copies the files of the base model that are not weights.
fn copy_base(out: &Path, base: &Path, dtype: SavedDtype) -> Result<(), CheckpointError> {
    let read = |path: &Path| fs::read(path).map_err(IoError::of("read", path));
    let path = base.join("config.json");
    let config = String::from_utf8(read(&path)?).map_err(|_| CheckpointError::corrupt(&path, "is not UTF-8"))?;
    let config = with_dtype(&config, dtype);
    write_atomic(&out.join("config.json"), |writer| writer.write_all(config.as_bytes()))?;
    copy_files(out, base, TOKENIZER)?;
    copy_files(out, base, COPIED)
}

/// Copies those of the files `names` that `base` has.
fn copy_files(out: &Path, base: &Path, names: &[&str]) -> Result<(), CheckpointError> {
    for name in names {
        let path = base.join(name);
        if path.is_file() {
            let content = fs::read(&path).map_err(IoError::of("read", &path))?;
            write_atomic(&out.join(name), |writer| writer.write_all(&content))?;
        }
    }
    Ok(())
}

/// Removes files of an earlier export with another number of shards or of another kind, which loaders would mix up with
/// the new.
fn remove_other_weights(out: &Path, names: &[String]) -> Result<(), IoError> {
    for entry in fs::read_dir(out).map_err(IoError::of("list", out))? {
        let path = entry.map_err(IoError::of("list", out))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_shard = name.starts_with("model-") && path.extension().is_some_and(|kind| kind == "safetensors");
        let is_other = [WEIGHTS, INDEX, ADAPTER_WEIGHTS, ADAPTER_CONFIG].contains(&name);
        if (is_shard || is_other) && !names.iter().any(|written| written == name) {
            fs::remove_file(&path).map_err(IoError::of("remove", &path))?;
        }
    }
    Ok(())
}

/// `config.json` with another dtype, every other byte as it was.
///
/// Both names of the key are known; where neither is there, nothing changes: loaders then look at the weights.
fn with_dtype(config: &str, dtype: SavedDtype) -> String {
    let mut text = config.to_owned();
    for key in ["dtype", "torch_dtype"] {
        if let Some(range) = value_of(&text, key) {
            text.replace_range(range, &format!("\"{}\"", dtype.torch_name()));
        }
    }
    text
}

/// Where the value of a top-level `key` stands in the text of a JSON object, if it is a string or null.
fn value_of(text: &str, key: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = end_of_string(bytes, at)?;
                let found = depth == 1 && &text[at + 1..end] == key;
                let rest = &text[end + 1..];
                at = end;
                if let Some(value) = rest.trim_start().strip_prefix(':').filter(|_| found) {
                    let value = value.trim_start();
                    let start = text.len() - value.len();
                    return match value.as_bytes().first()? {
                        b'"' => Some(start..end_of_string(bytes, start)? + 1),
                        b'n' => Some(start..start + "null".len()),
                        _ => None,
                    };
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The closing quote of the string that opens at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dtype_of_a_config_changes() {
        let old = "{\n  \"a\\\"\": \"torch_dtype\", \"sub\": {\"dtype\": \"x\"},\n  \"torch_dtype\" : \"bfloat16\",\n \"eps\": 1e-06}";
        assert_eq!(with_dtype(old, SavedDtype::F16), old.replace("bfloat16", "float16"));
        assert_eq!(with_dtype("{\"dtype\": null}", SavedDtype::F32), "{\"dtype\": \"float32\"}");
        for unchanged in ["{\"eps\": 1}", "{\"dtype\": 5}", "{", "\"", "{\"dtype\"", "{\"dtype\":", "}}", ""] {
            assert_eq!(with_dtype(unchanged, SavedDtype::F32), unchanged);
        }
    }

    #[test]
    fn shards_are_cut_before_they_overflow() {
        let shapes: Vec<Vec<usize>> = [10, 10, 5, 100, 1, 1].iter().map(|n| vec![*n]).collect();
        let specs: Vec<(&str, &[usize])> = shapes.iter().map(|shape| ("x", shape.as_slice())).collect();
        assert_eq!(cut(&specs, SavedDtype::F32, 80), [0..2, 2..3, 3..4, 4..6]);
        assert!(cut(&specs, SavedDtype::Bf16, 1000).into_iter().eq(std::iter::once(0..6)));
        assert_eq!(cut(&specs, SavedDtype::F32, 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    }
}
