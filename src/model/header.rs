//! The header of a safetensors file, read strictly: nothing in it is believed before it is checked.
//!
//! Stricter than the `safetensors` crate, which keeps the last of two tensors with one name and lets control
//! characters into names. The data must be covered exactly, without overlap, hole or spare bytes. Reads no weights.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{HeaderProblem, ModelError};

/// The largest header that is read; the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// As in the file: `F32`, `BF16`, ...
    pub dtype: String,
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: u64,
    pub bytes: u64,
}

/// A checked header: the tensors in the order of their data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub entries: Vec<Entry>,
}

/// Reads and checks the header of the safetensors file at `path`.
///
/// # Errors
/// [`ModelError::Pickle`] and [`ModelError::OtherFormat`] for other formats under a safetensors name,
/// [`ModelError::Header`] for a damaged file, and read errors.
pub fn read(path: &Path) -> Result<(File, Header), ModelError> {
    let (file, bytes) = super::json::open_plain(path)?;
    let failed = |problem| ModelError::Header { path: path.to_owned(), problem };
    let read_error = |source| ModelError::Read { path: path.to_owned(), source };

    let mut start = [0u8; 64];
    let known = bytes.min(64) as usize;
    file.read_exact_at(&mut start[..known], 0).map_err(read_error)?;
    refuse_other_formats(path, &start[..known])?;
    let Some((prefix, _)) = start[..known].split_first_chunk::<8>() else {
        return Err(failed(HeaderProblem::TooShort { bytes }));
    };
    let length = u64::from_le_bytes(*prefix);
    let limit = MAX_HEADER_BYTES.min(bytes - 8);
    if !(2..=limit).contains(&length) {
        return Err(failed(HeaderProblem::Length { length, limit }));
    }
    let mut text = vec![0u8; length as usize];
    file.read_exact_at(&mut text, 8).map_err(read_error)?;
    let header = parse(&text, bytes).map_err(failed)?;
    Ok((file, header))
}

/// Checks the JSON `text` of a header against the size of its file.
///
/// # Errors
/// The first [`HeaderProblem`].
pub fn parse(text: &[u8], file_bytes: u64) -> Result<Header, HeaderProblem> {
    let data_start = 8 + text.len() as u64;
    let text = std::str::from_utf8(text).map_err(|error| HeaderProblem::Utf8 { at: error.valid_up_to() })?;
    let value = super::json::parse(text).map_err(|error| HeaderProblem::Json { message: error.to_string() })?;
    let Value::Object(map) = value else {
        return Err(HeaderProblem::Json { message: "not an object".into() });
    };
    let mut entries = Vec::with_capacity(map.len());
    for (name, value) in &map {
        if name == "__metadata__" {
            if !value.as_object().is_some_and(|map| map.values().all(Value::is_string)) {
                return Err(HeaderProblem::Metadata);
            }
            continue;
        }
        entries.push(parse_entry(name, value)?);
    }
    // Empty tensors share their start with the next one; the end keeps them in front of it.
    entries.sort_by_key(|entry| (entry.start, entry.bytes));
    let mut expected = 0;
    for entry in &mut entries {
        if entry.start != expected {
            let (name, found) = (entry.name.clone(), entry.start);
            return Err(HeaderProblem::Layout { name, expected, found });
        }
        expected = entry.start.checked_add(entry.bytes).ok_or_else(|| HeaderProblem::Overflow {
            name: entry.name.clone(),
            shape: entry.shape.iter().map(|size| *size as u64).collect(),
        })?;
        // Only now is the start known to be small enough to be moved.
        entry.start = entry.start.saturating_add(data_start);
    }
    let found = file_bytes.saturating_sub(data_start);
    if found != expected {
        return Err(HeaderProblem::DataLength { expected, found });
    }
    Ok(Header { entries })
}

/// One entry, its start still counted from the start of the data.
fn parse_entry(name: &str, value: &Value) -> Result<Entry, HeaderProblem> {
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(HeaderProblem::Name { name: name.to_owned() });
    }
    let malformed = |what| HeaderProblem::Entry { name: name.to_owned(), what };
    let fields: &Map<String, Value> = value.as_object().ok_or_else(|| malformed("the description"))?;
    let dtype = fields.get("dtype").and_then(Value::as_str).ok_or_else(|| malformed("dtype"))?;
    let bits = bits_of(dtype).ok_or_else(|| HeaderProblem::Dtype { name: name.to_owned(), dtype: dtype.to_owned() })?;
    let numbers = |key, what| -> Result<Vec<u64>, HeaderProblem> {
        let items = fields.get(key).and_then(Value::as_array).ok_or_else(|| malformed(what))?;
        items.iter().map(|item| item.as_u64().ok_or_else(|| malformed(what))).collect()
    };
    let sizes = numbers("shape", "shape")?;
    let &[start, end] = numbers("data_offsets", "data_offsets")?.as_slice() else {
        return Err(malformed("data_offsets"));
    };
    if fields.len() != 3 {
        return Err(malformed("the set of keys (dtype, shape, data_offsets)"));
    }
    let overflow = || HeaderProblem::Overflow { name: name.to_owned(), shape: sizes.clone() };
    let elements = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size)).ok_or_else(overflow)?;
    let total_bits = elements.checked_mul(bits).ok_or_else(overflow)?;
    let found = end.checked_sub(start).ok_or_else(|| malformed("data_offsets"))?;
    let expected = total_bits.div_ceil(8);
    if expected != found || !total_bits.is_multiple_of(8) {
        return Err(HeaderProblem::Span { name: name.to_owned(), expected, found });
    }
    let shape = sizes.iter().map(|size| usize::try_from(*size)).collect::<Result<_, _>>().map_err(|_| overflow())?;
    Ok(Entry { name: name.to_owned(), dtype: dtype.to_owned(), shape, start, bytes: found })
}

/// Bits of one element for every dtype that the format defines, also those that no model here uses.
fn bits_of(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Refuses files whose first bytes belong to something else.
fn refuse_other_formats(path: &Path, start: &[u8]) -> Result<(), ModelError> {
    let path = path.to_owned();
    // A header length never looks like these: it would be far above the limit.
    match start {
        [0x80, 2..=5, b'}' | b']' | b'c' | b'(' | 0x8a | 0x95, ..] => {
            Err(ModelError::Pickle { path, format: "pickle protocol" })
        }
        [b'P', b'K', 3, 4, ..] => Err(ModelError::Pickle { path, format: "torch zip archive" }),
        [b'G', b'G', b'U', b'F', ..] => Err(ModelError::OtherFormat { path, format: "GGUF" }),
        _ => {
            let what = if start.starts_with(b"version https://git-lfs") {
                "a Git LFS pointer"
            } else if start.starts_with(b"<")
                && start.get(1).is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'!')
            {
                "a web page"
            } else if start.starts_with(b"\x89HDF") {
                "an HDF5 file"
            } else {
                return Ok(());
            };
            Err(ModelError::Header { path, problem: HeaderProblem::OtherFile { what } })
        }
    }
}
