//! Rollouts that an unfinished cycle of `num_iterations` still needs, exact to the bit.
//!
//! Saved as one safetensors file of flat arrays: lengths tell the rows apart, all groups one after the other.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View, serialize};

use super::CheckpointError;
use crate::io::{IoError, write_atomic};

/// Name of the file inside a checkpoint.
pub const ROLLOUTS_FILE: &str = "rollouts.safetensors";

/// One sampled completion with everything that the objective needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedCompletion {
    /// Token ids, the ending EOS included.
    pub ids: Vec<u32>,
    /// Log-probs under the policy that sampled, nats; one a token.
    pub old_logprobs: Vec<f32>,
    /// Log-probs under the reference policy, nats; empty where there is none.
    pub ref_logprobs: Vec<f32>,
    /// Whether the length limit cut it.
    pub is_truncated: bool,
    /// Weighted sum of the rewards; `None` is "no score".
    pub reward: Option<f64>,
    /// Score of each reward function, in the order of the settings.
    pub reward_parts: Vec<Option<f64>>,
    /// What the objective multiplies with.
    pub advantage: f64,
    /// What is added to the advantage at each token; empty: nothing.
    pub token_advantages: Vec<f64>,
    /// Which tokens are in the loss; empty: all of them.
    pub keep: Vec<bool>,
}

/// The completions of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedGroup {
    /// Index of the prompt's row in the data file.
    pub row: u64,
    /// Token ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// Its completions, in order.
    pub completions: Vec<SavedCompletion>,
}

/// The rollouts of one sampling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SavedRollouts {
    /// In the order of the step's prompts.
    pub groups: Vec<SavedGroup>,
}

/// A flat array of the file, as little-endian bytes.
struct Flat {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Vec<u8>,
}

impl View for &Flat {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn flat<const N: usize>(dtype: Dtype, values: impl Iterator<Item = [u8; N]>) -> Flat {
    let bytes: Vec<u8> = values.flatten().collect();
    Flat { dtype, shape: [bytes.len() / N], bytes }
}

fn u32s(values: impl Iterator<Item = usize>) -> Flat {
    flat(Dtype::U32, values.map(|value| (value as u32).to_le_bytes()))
}

/// "No score" is a NaN in the file; a reward that is not finite never gets this far.
fn score(value: Option<f64>) -> [u8; 8] {
    value.unwrap_or(f64::NAN).to_le_bytes()
}

impl SavedRollouts {
    /// Writes [`ROLLOUTS_FILE`] into a checkpoint folder.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(ROLLOUTS_FILE);
        let groups = || self.groups.iter();
        let rows = || groups().flat_map(|group| &group.completions);
        let arrays = [
            ("group_rows", flat(Dtype::U64, groups().map(|group| group.row.to_le_bytes()))),
            ("group_sizes", u32s(groups().map(|group| group.completions.len()))),
            ("prompt_lengths", u32s(groups().map(|group| group.prompt_ids.len()))),
            ("prompt_ids", flat(Dtype::U32, groups().flat_map(|group| &group.prompt_ids).map(|id| id.to_le_bytes()))),
            ("completion_lengths", u32s(rows().map(|row| row.ids.len()))),
            ("completion_ids", flat(Dtype::U32, rows().flat_map(|row| &row.ids).map(|id| id.to_le_bytes()))),
            ("old_logprobs", flat(Dtype::F32, rows().flat_map(|row| &row.old_logprobs).map(|l| l.to_le_bytes()))),
            ("ref_lengths", u32s(rows().map(|row| row.ref_logprobs.len()))),
            ("ref_logprobs", flat(Dtype::F32, rows().flat_map(|row| &row.ref_logprobs).map(|l| l.to_le_bytes()))),
            ("is_truncated", flat(Dtype::U8, rows().map(|row| [u8::from(row.is_truncated)]))),
            ("rewards", flat(Dtype::F64, rows().map(|row| score(row.reward)))),
            ("part_lengths", u32s(rows().map(|row| row.reward_parts.len()))),
            ("reward_parts", flat(Dtype::F64, rows().flat_map(|row| &row.reward_parts).map(|part| score(*part)))),
            ("advantages", flat(Dtype::F64, rows().map(|row| row.advantage.to_le_bytes()))),
            ("token_advantage_lengths", u32s(rows().map(|row| row.token_advantages.len()))),
            (
                "token_advantages",
                flat(Dtype::F64, rows().flat_map(|row| &row.token_advantages).map(|a| a.to_le_bytes())),
            ),
            ("keep_lengths", u32s(rows().map(|row| row.keep.len()))),
            ("keep", flat(Dtype::U8, rows().flat_map(|row| &row.keep).map(|keep| [u8::from(*keep)]))),
        ];
        let views = arrays.iter().map(|(name, array)| (*name, array));
        let bytes = serialize(views, None)
            .map_err(|error| IoError::of("write", &path)(std::io::Error::other(error.to_string())))?;
        Ok(write_atomic(&path, |writer| writer.write_all(&bytes))?)
    }

    /// Reads [`ROLLOUTS_FILE`] of a checkpoint folder; `None` where the checkpoint has none.
    ///
    /// # Errors
    /// [`CheckpointError::Corrupt`] where arrays are missing or their lengths do not fit each other.
    pub fn load(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = folder.join(ROLLOUTS_FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(IoError::of("read", &path))?,
        };
        let corrupt = |problem: String| CheckpointError::corrupt(&path, problem);
        let file = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(format!("cannot be read: {error}")))?;
        let arrays = Arrays { file };
        arrays.groups().map(|groups| Some(Self { groups })).map_err(corrupt)
    }
}

/// The arrays of a file that is being read; the errors are what is wrong with the file.
struct Arrays<'a> {
    file: SafeTensors<'a>,
}

impl Arrays<'_> {
    fn groups(&self) -> Result<Vec<SavedGroup>, String> {
        let group_rows = self.read("group_rows", Dtype::U64, u64::from_le_bytes)?;
        let group_sizes = self.lengths("group_sizes")?;
        let prompt_lengths = self.lengths("prompt_lengths")?;
        let mut prompt_ids = Cut::new("prompt_ids", self.read("prompt_ids", Dtype::U32, u32::from_le_bytes)?);
        let mut completions = Cut::new("group_sizes", self.completions()?);
        if group_rows.len() != group_sizes.len() || group_rows.len() != prompt_lengths.len() {
            return Err("has arrays of different lengths for its groups".into());
        }
        let mut groups = Vec::with_capacity(group_rows.len());
        for ((row, size), length) in group_rows.into_iter().zip(group_sizes).zip(prompt_lengths) {
            groups.push(SavedGroup { row, prompt_ids: prompt_ids.take(length)?, completions: completions.take(size)? });
        }
        prompt_ids.end()?;
        completions.end()?;
        Ok(groups)
    }

    fn completions(&self) -> Result<Vec<SavedCompletion>, String> {
        let lengths = self.lengths("completion_lengths")?;
        let (ref_lengths, part_lengths) = (self.lengths("ref_lengths")?, self.lengths("part_lengths")?);
        let mut ids = Cut::new("completion_ids", self.read("completion_ids", Dtype::U32, u32::from_le_bytes)?);
        let mut old = Cut::new("old_logprobs", self.read("old_logprobs", Dtype::F32, f32::from_le_bytes)?);
        let mut reference = Cut::new("ref_logprobs", self.read("ref_logprobs", Dtype::F32, f32::from_le_bytes)?);
        let mut parts = Cut::new("reward_parts", self.read("reward_parts", Dtype::F64, f64::from_le_bytes)?);
        let is_truncated = self.read("is_truncated", Dtype::U8, |[byte]: [u8; 1]| byte != 0)?;
        let rewards = self.read("rewards", Dtype::F64, f64::from_le_bytes)?;
        let advantages = self.read("advantages", Dtype::F64, f64::from_le_bytes)?;
        // Files of earlier versions have none of these: no row has any.
        let token_lengths = self.lengths_or_zeros("token_advantage_lengths", lengths.len())?;
        let mut token_advantages =
            Cut::new("token_advantages", self.read_or_none("token_advantages", Dtype::F64, f64::from_le_bytes)?);
        let keep_lengths = self.lengths_or_zeros("keep_lengths", lengths.len())?;
        let mut keep = Cut::new("keep", self.read_or_none("keep", Dtype::U8, |[byte]: [u8; 1]| byte != 0)?);
        let counts = [
            ref_lengths.len(),
            part_lengths.len(),
            is_truncated.len(),
            rewards.len(),
            advantages.len(),
            token_lengths.len(),
            keep_lengths.len(),
        ];
        if counts.iter().any(|count| *count != lengths.len()) {
            return Err("has arrays of different lengths for its completions".into());
        }
        let scored = |value: f64| (!value.is_nan()).then_some(value);
        let mut rows = Vec::with_capacity(lengths.len());
        for (index, length) in lengths.into_iter().enumerate() {
            rows.push(SavedCompletion {
                ids: ids.take(length)?,
                old_logprobs: old.take(length)?,
                ref_logprobs: reference.take(ref_lengths[index])?,
                is_truncated: is_truncated[index],
                reward: scored(rewards[index]),
                reward_parts: parts.take(part_lengths[index])?.into_iter().map(scored).collect(),
                advantage: advantages[index],
                token_advantages: token_advantages.take(token_lengths[index])?,
                keep: keep.take(keep_lengths[index])?,
            });
        }
        token_advantages.end()?;
        keep.end()?;
        ids.end()?;
        old.end()?;
        reference.end()?;
        parts.end()?;
        Ok(rows)
    }

    fn lengths(&self, name: &str) -> Result<Vec<usize>, String> {
        self.read(name, Dtype::U32, |bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn lengths_or_zeros(&self, name: &str, count: usize) -> Result<Vec<usize>, String> {
        if self.has(name) { self.lengths(name) } else { Ok(vec![0; count]) }
    }

    fn read_or_none<T, const N: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        value: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        if self.has(name) { self.read(name, dtype, value) } else { Ok(Vec::new()) }
    }

    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    fn read<T, const N: usize>(&self, name: &str, dtype: Dtype, value: fn([u8; N]) -> T) -> Result<Vec<T>, String> {
        let view = self.file.tensor(name).map_err(|error| format!("lacks {name}: {error}"))?;
        if view.dtype() != dtype {
            return Err(format!("holds {name} as {:?}, {dtype:?} was expected", view.dtype()));
        }
        let (values, _) = view.data().as_chunks::<N>();
        Ok(values.iter().map(|bytes| value(*bytes)).collect())
    }
}

/// A flat array that is cut into rows from its start.
struct Cut<T> {
    name: &'static str,
    rest: std::vec::IntoIter<T>,
}

impl<T> Cut<T> {
    fn new(name: &'static str, values: Vec<T>) -> Self {
        Self { name, rest: values.into_iter() }
    }

    fn take(&mut self, length: usize) -> Result<Vec<T>, String> {
        if length > self.rest.len() {
            return Err(format!("ends too early in {}", self.name));
        }
        Ok(self.rest.by_ref().take(length).collect())
    }

    fn end(&self) -> Result<(), String> {
        if self.rest.len() == 0 { Ok(()) } else { Err(format!("has values left over in {}", self.name)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(seed: u32, length: usize) -> SavedCompletion {
        let bits = |i: usize| f32::from_bits((seed + i as u32).wrapping_mul(0x9E37_79B9) & 0x7f7f_ffff);
        SavedCompletion {
            ids: (0..length as u32).map(|i| i * seed).collect(),
            old_logprobs: (0..length).map(bits).collect(),
            ref_logprobs: if seed.is_multiple_of(2) { Vec::new() } else { (0..length).map(bits).collect() },
            is_truncated: seed.is_multiple_of(3),
            reward: (seed != 4).then_some(1.0 / f64::from(seed)),
            reward_parts: vec![Some(f64::from(seed)), None],
            advantage: -0.1 * f64::from(seed),
            token_advantages: if seed == 3 { vec![0.25; length] } else { Vec::new() },
            keep: if seed == 1 { (0..length).map(|i| i.is_multiple_of(2)).collect() } else { Vec::new() },
        }
    }

    fn rollouts() -> SavedRollouts {
        let group = |row, sizes: &[(u32, usize)]| SavedGroup {
            row,
            prompt_ids: vec![7; row as usize % 5],
            completions: sizes.iter().map(|(seed, length)| completion(*seed, *length)).collect(),
        };
        SavedRollouts { groups: vec![group(13, &[(1, 5), (2, 0), (3, 1)]), group(u64::MAX, &[]), group(9, &[(4, 2)])] }
    }

    #[test]
    fn ragged_rollouts_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SavedRollouts::load(dir.path()).unwrap(), None);
        for rollouts in [SavedRollouts::default(), rollouts()] {
            rollouts.save(dir.path()).unwrap();
            assert_eq!(SavedRollouts::load(dir.path()).unwrap(), Some(rollouts));
        }
    }

    /// A file without the arrays that came later is what such a version wrote.
    #[test]
    fn a_file_of_an_earlier_version_has_every_token_in_the_loss() {
        let dir = tempfile::tempdir().unwrap();
        let mut rollouts = rollouts();
        rollouts.save(dir.path()).unwrap();
        let path = dir.path().join(ROLLOUTS_FILE);
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let later = ["token_advantage_lengths", "token_advantages", "keep_lengths", "keep"];
        let earlier: Vec<_> = file.tensors().into_iter().filter(|(name, _)| !later.contains(&name.as_str())).collect();
        assert_eq!(earlier.len(), file.len() - later.len());
        fs::write(&path, serialize(earlier, None).unwrap()).unwrap();
        for row in rollouts.groups.iter_mut().flat_map(|group| &mut group.completions) {
            (row.token_advantages, row.keep) = (Vec::new(), Vec::new());
        }
        assert_eq!(SavedRollouts::load(dir.path()).unwrap(), Some(rollouts));
    }

    #[test]
    fn a_file_whose_arrays_do_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut wrong = rollouts();
        wrong.groups[0].completions[0].old_logprobs.pop();
        wrong.save(dir.path()).unwrap();
        let error = SavedRollouts::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("old_logprobs"), "{error}");
        fs::write(dir.path().join(ROLLOUTS_FILE), b"garbage").unwrap();
        SavedRollouts::load(dir.path()).unwrap_err();
    }
}
