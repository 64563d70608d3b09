//! A model and its adapter -> one model folder.

use super::RecipeError;
use super::parts::{AdapterFolder, load_model};
use crate::checkpoint::{CheckpointDir, SHARD_BYTES, export_model};
use crate::model::adapter::{self, load_adapter};
use crate::model::{SavedDtype, load_weights};
use std::borrow::Cow;
use std::path::Path;

/// Adds the adapter in a PEFT folder to the weights of its base model and writes the result to the folder
/// `output`, in `dtype`, or else in that of the base model. Sums are f32.
///
/// # Errors
/// Fails where the adapter or its base model cannot be read or do not fit, and where `output` holds a model.
pub fn merge(adapter: &str, output: &Path, dtype: Option<SavedDtype>, offline: bool) -> Result<(), RecipeError> {
    let model = load_model(adapter, None, offline, None)?;
    let Some(AdapterFolder { folder, config }) = &model.adapter else {
        return Err(RecipeError::NotAnAdapter { folder: model.resolved.folder });
    };
    for taken in [folder, &model.resolved.folder] {
        let is_same = |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| Some(a) == b.canonicalize().ok());
        if is_same(taken, output) {
            return Err(RecipeError::MergeOver { output: output.to_owned() });
        }
    }
    CheckpointDir::new(output).require_no_model()?;
    let (mut weights, saved) = load_weights(&model.resolved.folder, &model.config)?;
    let (maps, tensors) = load_adapter(folder, config, &model.config)?;
    adapter::merge(&mut weights, &maps, &tensors)?;
    let specs: Vec<(&str, &[usize])> = weights.iter().map(|w| (w.name.as_str(), w.shape.as_slice())).collect();
    let data = |index: usize| Ok::<_, RecipeError>(Cow::Borrowed(weights[index].data.as_slice()));
    export_model(output, &model.resolved.folder, &specs, data, dtype.unwrap_or(saved), SHARD_BYTES)
}
