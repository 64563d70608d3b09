//! f32 tensors in a safetensors file, written and read as a stream: master weights and optimizer moments.
//!
//! The exported model files are written elsewhere; these are for resuming, and their tensors are exact to the bit.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};

use super::CheckpointError;
use crate::io::IoError;
use crate::model::SavedDtype;

/// Bytes of the length field before the header.
const PREFIX_BYTES: usize = 8;
/// Largest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const CHUNK_BYTES: usize = 1 << 16;

/// A tensor to write.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its axes.
    pub shape: &'a [usize],
    /// Its elements, row-major.
    pub data: &'a [f32],
}

/// A tensor that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
}

/// Writes tensors in the given order, with the metadata that loaders of `PyTorch` models ask for.
///
/// The file is not flushed to disk: committing the folder does that.
pub fn write_tensors(path: &Path, tensors: &[TensorView<'_>]) -> Result<(), CheckpointError> {
    let specs: Vec<_> = tensors.iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    write_tensors_with(path, &specs, |index| Ok::<_, CheckpointError>(Cow::Borrowed(tensors[index].data)))
}

/// Like [`write_tensors`], asking for the elements of one tensor at a time, so that tensors that live on a device
/// are never all in memory at once.
///
/// # Errors
/// What `data` returns; [`CheckpointError::Corrupt`] where it gives another number of elements than the shape has.
pub fn write_tensors_with<'a, E: From<CheckpointError>>(
    path: &Path,
    specs: &[(&str, &[usize])],
    mut data: impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
) -> Result<(), E> {
    let failed = |error| CheckpointError::from(IoError::of("write", path)(error));
    let header = header(specs, SavedDtype::F32).map_err(|error| failed(error.into()))?;
    let file = File::create(path).map_err(IoError::of("create", path)).map_err(CheckpointError::from)?;
    let mut writer = BufWriter::with_capacity(CHUNK_BYTES, file);
    writer.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| writer.write_all(&header)).map_err(failed)?;
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    for (index, (name, shape)) in specs.iter().enumerate() {
        let values = data(index)?;
        if values.len() != num_elements(shape) {
            let problem = format!("tensor {name} of shape {shape:?} was given {} elements", values.len());
            return Err(CheckpointError::corrupt(path, problem).into());
        }
        for chunk in values.chunks(CHUNK_BYTES / 4) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            writer.write_all(&bytes).map_err(failed)?;
        }
    }
    Ok(writer.flush().map_err(failed)?)
}

/// The header as JSON, padded with spaces so that the data starts at a multiple of 8 bytes.
pub(super) fn header(specs: &[(&str, &[usize])], dtype: SavedDtype) -> serde_json::Result<Vec<u8>> {
    let mut members = Map::new();
    // Loaders of PyTorch models look for this word.
    members.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for (name, shape) in specs {
        let end = offset + num_elements(shape) * dtype.bytes();
        let entry = json!({ "dtype": dtype.safetensors_name(), "shape": shape, "data_offsets": [offset, end] });
        members.insert((*name).to_owned(), entry);
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(members))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

pub(super) fn num_elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Reads every tensor of a file of [`write_tensors`], in the order of the data.
///
/// # Errors
/// [`CheckpointError::Corrupt`] for anything that is not a whole, gapless safetensors file of f32 tensors.
pub fn read_tensors(path: &Path) -> Result<Vec<NamedTensor>, CheckpointError> {
    let failed = |error| CheckpointError::from(IoError::of("read", path)(error));
    let corrupt = |problem: String| CheckpointError::corrupt(path, problem);
    let file = File::open(path).map_err(IoError::of("open", path))?;
    let size = file.metadata().map_err(failed)?.len();
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, file);
    let mut length = [0u8; PREFIX_BYTES];
    if size < PREFIX_BYTES as u64 {
        return Err(corrupt(format!("has only {size} bytes")));
    }
    reader.read_exact(&mut length).map_err(failed)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > size - PREFIX_BYTES as u64 {
        return Err(corrupt(format!("has a header of {header_bytes} bytes in a file of {size}")));
    }
    let mut header = vec![0; header_bytes as usize];
    reader.read_exact(&mut header).map_err(failed)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| corrupt(format!("has a wrong header: {error}")))?;
    let mut left = size - PREFIX_BYTES as u64 - header_bytes;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        if info.dtype != Dtype::F32 {
            return Err(corrupt(format!("holds tensor {name} as {:?}, F32 was expected", info.dtype)));
        }
        let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
        left = left.checked_sub(bytes).ok_or_else(|| corrupt(format!("ends inside tensor {name}")))?;
        let mut data = vec![0f32; num_elements(&info.shape)];
        reader.read_exact(bytemuck::cast_slice_mut(&mut data)).map_err(failed)?;
        if cfg!(target_endian = "big") {
            for value in &mut data {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        tensors.push(NamedTensor { name, shape: info.shape.clone(), data });
    }
    if left > 0 {
        return Err(corrupt(format!("has {left} bytes after its last tensor")));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn every_bit_pattern_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("optimizer.safetensors");
        let odd: Vec<f32> =
            [0x7fc0_0001u32, 0xffff_ffff, 0x8000_0000, 1, 0x7f80_0000, 0x3f80_0001].map(f32::from_bits).to_vec();
        let long: Vec<f32> = (0..40_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))).collect();
        let views = [
            TensorView { name: "z.first", shape: &[2, 3], data: &odd },
            TensorView { name: "empty", shape: &[0, 7], data: &[] },
            TensorView { name: "a.scalar", shape: &[], data: &odd[..1] },
            TensorView { name: "long", shape: &[40_000], data: &long },
        ];
        write_tensors(&path, &views).unwrap();
        let read = read_tensors(&path).unwrap();
        for view in views {
            let tensor = read.iter().find(|tensor| tensor.name == view.name).unwrap();
            assert_eq!(tensor.shape, view.shape);
            let bits = |data: &[f32]| data.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&tensor.data), bits(view.data));
        }
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 4);
    }

    #[test]
    fn a_wrong_number_of_elements_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let view = TensorView { name: "w", shape: &[2, 2], data: &[0.0; 3] };
        let error = write_tensors(&dir.path().join("t.safetensors"), &[view]).unwrap_err();
        assert!(error.to_string().contains("tensor w of shape [2, 2]"), "{error}");
    }

    #[test]
    fn cut_or_lengthened_files_are_refused_without_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        write_tensors(&path, &[TensorView { name: "w", shape: &[2, 2], data: &[1.0; 4] }]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            read_tensors(&path).unwrap_err();
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(read_tensors(&path).unwrap_err().to_string().contains("1 bytes after"));
    }
}
