//! Writing a checkpoint of a run, and continuing from one.

use super::policy::Policy;
use super::{Reference, TrainError};
use crate::checkpoint::{
    CheckpointError, NamedTensor, SavedRollouts, TrainerState, TrainingState, read_tensors, write_tensors_with,
};
use crate::model::Params;
use candle_core::{DType, Tensor};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Writes the Hugging Face folder of a model, or of its adapter: trained weights, configuration, tokenizer.
pub type ModelWriter = Box<dyn Fn(&Path, &Params) -> Result<(), TrainError>>;

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const REFERENCE_FILE: &str = "reference.safetensors";
const RUN_CONFIG_FILE: &str = "run_config.toml";

/// Everything that a checkpoint holds beside the model.
pub(super) struct Snapshot<'a> {
    pub policy: &'a Policy,
    pub reference: Option<&'a Reference>,
    pub state: &'a TrainingState,
    pub history: &'a TrainerState,
    pub kept: Option<&'a SavedRollouts>,
    pub run_config: &'a str,
}

impl Snapshot<'_> {
    /// Writes the files of a checkpoint into `folder`.
    pub fn write(&self, folder: &Path, write_model: &ModelWriter) -> Result<(), TrainError> {
        write_model(folder, self.policy.decoder.trained())?;
        self.write_optimizer(&folder.join(OPTIMIZER_FILE))?;
        // A reference that has not moved is the start model.
        if let Some(reference) = self.reference.filter(|reference| reference.has_moved) {
            write_params(&folder.join(REFERENCE_FILE), reference.decoder.params())?;
        }
        self.state.save(folder)?;
        self.history.save(folder)?;
        if let Some(kept) = self.kept {
            kept.save(folder)?;
        }
        crate::io::write_atomic(&folder.join(RUN_CONFIG_FILE), |w| w.write_all(self.run_config.as_bytes()))?;
        Ok(())
    }

    /// Master weights and both moments of every trained parameter, f32, whatever the dtype of the exported model.
    fn write_optimizer(&self, path: &Path) -> Result<(), TrainError> {
        let params = self.policy.decoder.trained();
        let count = params.iter().count();
        let named = |prefix: &'static str| {
            params.iter().map(move |p| (format!("{prefix}{}", p.name), p.weight.value().dims().to_vec()))
        };
        let specs: Vec<(String, Vec<usize>)> =
            named(MASTER).chain(named(FIRST_MOMENT)).chain(named(SECOND_MOMENT)).collect();
        let specs: Vec<(&str, &[usize])> = specs.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let masters: Vec<&Tensor> = params.iter().map(|p| p.weight.master()).collect();
        let optimizer = &self.policy.optimizer;
        write_tensors_with(path, &specs, |index| {
            let tensor = match index / count.max(1) {
                0 => masters[index],
                1 => &optimizer.m[index - count],
                _ => &optimizer.v[index - 2 * count],
            };
            Ok::<_, TrainError>(Cow::Owned(tensor.flatten_all()?.to_vec1::<f32>()?))
        })
    }
}

const MASTER: &str = "master.";
const FIRST_MOMENT: &str = "m.";
const SECOND_MOMENT: &str = "v.";

/// Weights, f32.
fn write_params(path: &Path, params: &Params) -> Result<(), TrainError> {
    let specs: Vec<(&str, &[usize])> = params.iter().map(|p| (p.name.as_str(), p.weight.value().dims())).collect();
    let values: Vec<&Tensor> = params.iter().map(|p| p.weight.master()).collect();
    write_tensors_with(path, &specs, |index| {
        let values = values[index].to_dtype(DType::F32)?;
        Ok::<_, TrainError>(Cow::Owned(values.flatten_all()?.to_vec1::<f32>()?))
    })
}

/// The tensors of a file, to be taken out by name.
struct Tensors {
    path: PathBuf,
    by_name: HashMap<String, NamedTensor>,
}

impl Tensors {
    fn read(path: PathBuf) -> Result<Self, TrainError> {
        let by_name = read_tensors(&path)?.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Self { path, by_name })
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
        let tensor = self.by_name.remove(name).filter(|tensor| tensor.shape == shape);
        let missing = || CheckpointError::corrupt(&self.path, format!("has no tensor {name} of shape {shape:?}"));
        Ok(tensor.map(|tensor| tensor.data).ok_or_else(missing)?)
    }
}

/// Puts weights and moments of the checkpoint in `folder` into the policy. `updates`: those that its optimizer has made.
///
/// # Errors
/// Fails where a tensor is missing or has another shape.
pub fn restore(policy: &mut Policy, folder: &Path, updates: u64) -> Result<(), TrainError> {
    let mut tensors = Tensors::read(folder.join(OPTIMIZER_FILE))?;
    for (index, param) in policy.decoder.trained().iter().enumerate() {
        let shape = param.weight.value().dims();
        let mut take = |prefix: &str| tensors.take(&format!("{prefix}{}", param.name), shape);
        param.weight.set(take(MASTER)?)?;
        let device = param.weight.value().device();
        policy.optimizer.m[index] = Tensor::from_vec(take(FIRST_MOMENT)?, shape, device)?;
        policy.optimizer.v[index] = Tensor::from_vec(take(SECOND_MOMENT)?, shape, device)?;
    }
    policy.optimizer.step = updates;
    Ok(())
}

/// Puts the weights that the checkpoint in `folder` has for the reference into it, if there are any: without them it is
/// the start model still.
///
/// # Errors
/// Fails where a tensor is missing or has another shape.
pub fn restore_reference(reference: &mut Reference, folder: &Path) -> Result<(), TrainError> {
    let path = folder.join(REFERENCE_FILE);
    if !path.exists() {
        return Ok(());
    }
    let mut tensors = Tensors::read(path)?;
    for param in reference.decoder.params() {
        param.weight.set(tensors.take(&param.name, param.weight.value().dims())?)?;
    }
    reference.has_moved = true;
    Ok(())
}
