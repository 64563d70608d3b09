//! Writing a checkpoint of a run, and continuing from one.

use super::TrainError;
use super::policy::Policy;
use crate::checkpoint::{
    CheckpointError, SavedRollouts, TrainerState, TrainingState, read_tensors, write_tensors_with,
};
use crate::model::Params;
use crate::ops::storage::update;
use candle_core::Tensor;
use std::borrow::Cow;
use std::path::Path;

/// Writes the Hugging Face folder of a model: weights, configuration, tokenizer.
pub type ModelWriter = Box<dyn Fn(&Path, &Params) -> Result<(), TrainError>>;

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const RUN_CONFIG_FILE: &str = "run_config.toml";

/// Everything that a checkpoint holds beside the model.
pub(super) struct Snapshot<'a> {
    pub policy: &'a Policy,
    pub state: &'a TrainingState,
    pub history: &'a TrainerState,
    pub kept: Option<&'a SavedRollouts>,
    pub run_config: &'a str,
}

impl Snapshot<'_> {
    /// Writes the files of a checkpoint into `folder`.
    pub fn write(&self, folder: &Path, write_model: &ModelWriter) -> Result<(), TrainError> {
        write_model(folder, self.policy.decoder.params())?;
        self.write_optimizer(&folder.join(OPTIMIZER_FILE))?;
        self.state.save(folder)?;
        self.history.save(folder)?;
        if let Some(kept) = self.kept {
            kept.save(folder)?;
        }
        crate::io::write_atomic(&folder.join(RUN_CONFIG_FILE), |w| w.write_all(self.run_config.as_bytes()))?;
        Ok(())
    }

    /// Master weights and both moments of every parameter, f32, whatever the dtype of the exported model.
    fn write_optimizer(&self, path: &Path) -> Result<(), TrainError> {
        let params = self.policy.decoder.params();
        let count = params.iter().count();
        let named = |prefix: &'static str| {
            params.iter().map(move |p| (format!("{prefix}{}", p.name), p.weight.value().dims().to_vec()))
        };
        let specs: Vec<(String, Vec<usize>)> =
            named(MASTER).chain(named(FIRST_MOMENT)).chain(named(SECOND_MOMENT)).collect();
        let specs: Vec<(&str, &[usize])> = specs.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let masters: Vec<&Tensor> = params.iter().map(|p| p.weight.value()).collect();
        let optimizer = &self.policy.optimizer;
        write_tensors_with(path, &specs, |index| match index / count.max(1) {
            0 => Ok::<_, TrainError>(Cow::Owned(masters[index].flatten_all()?.to_vec1::<f32>()?)),
            1 => Ok(Cow::Borrowed(&optimizer.m[index - count])),
            _ => Ok(Cow::Borrowed(&optimizer.v[index - 2 * count])),
        })
    }
}

const MASTER: &str = "master.";
const FIRST_MOMENT: &str = "m.";
const SECOND_MOMENT: &str = "v.";

/// Puts weights and moments of the checkpoint in `folder` into the policy.
///
/// # Errors
/// Fails where a tensor is missing or has another shape.
pub fn restore(policy: &mut Policy, folder: &Path, step: u64) -> Result<(), TrainError> {
    let path = folder.join(OPTIMIZER_FILE);
    let mut tensors: std::collections::HashMap<String, _> =
        read_tensors(&path)?.into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut take = |name: String, shape: &[usize]| {
        let tensor = tensors.remove(&name).filter(|t| t.shape == shape);
        let missing = || CheckpointError::corrupt(&path, format!("has no tensor {name} of shape {shape:?}"));
        tensor.map(|t| t.data).ok_or_else(missing)
    };
    for (index, param) in policy.decoder.params().iter().enumerate() {
        let shape = param.weight.value().dims();
        let master = take(format!("{MASTER}{}", param.name), shape)?;
        update(&param.weight.value().flatten_all()?, |m| {
            m.data.copy_from_slice(&master);
            Ok(())
        })?;
        policy.optimizer.m[index] = take(format!("{FIRST_MOMENT}{}", param.name), shape)?;
        policy.optimizer.v[index] = take(format!("{SECOND_MOMENT}{}", param.name), shape)?;
    }
    policy.optimizer.step = step;
    Ok(())
}
