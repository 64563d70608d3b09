//! Where a run begins: what it is a run of, the checkpoint that it continues, and how far that had come.

use super::RecipeError;
use super::parts::LoadedModel;
use super::start::TrainingData;
use crate::checkpoint::{
    CheckpointDir, CheckpointError, RunIdentity, SavedRollouts, TrainerState, TrainingState, require_compatible, verify,
};
use crate::config::{Init, Resume, RunConfig};
use crate::io::{IoError, sha256_bytes, sha256_file};
use crate::model::PeftConfig;
use crate::model::adapter::adapter_tensors;
use crate::trainer::{Method, Policy, restore, restore_reference};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// What this run is a run of.
pub(super) fn identity(
    settings: &RunConfig,
    model: &LoadedModel,
    adapter: Option<&PeftConfig>,
    data: &TrainingData,
) -> Result<RunIdentity, RecipeError> {
    let mut tensors = model.config.tensors();
    if let Some(adapter) = adapter {
        tensors.extend(adapter_tensors(&adapter.maps(&model.config)?));
    }
    // What a run computes with, not how it was said: a default that is written out is no difference.
    let settings = RunConfig { beta: Some(settings.resolved_beta()), ..settings.clone() };
    let config = serde_json::to_value(&settings).unwrap_or_default();
    Ok(RunIdentity {
        config: RunIdentity::flatten(&config),
        model: settings.model.clone(),
        revision: model.resolved.commit.clone(),
        weights_sha256: weights_sha256(&settings, model)?,
        template_sha256: model.template.as_ref().map(|template| sha256_bytes(template.text().as_bytes())),
        tokenizer_sha256: sha256_file(&model.resolved.folder.join("tokenizer.json"))?.1,
        data_sha256: data.sha256(),
        data_revision: data.revision(),
        shapes_sha256: RunIdentity::hash_shapes(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()))),
    })
}

/// SHA-256 of the weights that the run is told to read from a folder; a commit names those of the Hub.
fn weights_sha256(settings: &RunConfig, model: &LoadedModel) -> Result<Option<String>, RecipeError> {
    if settings.resolved_init() == Init::Random || model.resolved.commit.is_some() {
        return Ok(None);
    }
    let folder = &model.resolved.folder;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(IoError::of("list", folder))? {
        let path = entry.map_err(IoError::of("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort_unstable();
    let hashes: Vec<_> = files.par_iter().map(|path| Ok(sha256_file(path)?.1)).collect::<Result<_, RecipeError>>()?;
    Ok(Some(sha256_bytes(hashes.join("\n").as_bytes())))
}

/// A checkpoint that a run goes on from.
pub(super) struct Resumed {
    pub folder: PathBuf,
    /// Whether it lies in the run's own output directory, beside the logs that belong to it.
    pub is_here: bool,
}

/// The checkpoint to continue from, as `resume` asks; `None` for a fresh run.
pub(super) fn resume(
    settings: &RunConfig,
    checkpoints: &CheckpointDir,
    identity: &RunIdentity,
) -> Result<Option<Resumed>, RecipeError> {
    let (folder, step, skipped) = match settings.resume_choice() {
        Resume::Never => {
            checkpoints.make_way(None, &[])?;
            checkpoints.require_no_model()?;
            return Ok(None);
        }
        Resume::Auto => match checkpoints.newest_valid()? {
            None => {
                checkpoints.require_no_model()?;
                tracing::info!("no checkpoint in {}: starting afresh", settings.output_dir.display());
                return Ok(None);
            }
            Some(found) => (found.path, found.step, found.skipped),
        },
        Resume::From(path) => {
            if !path.exists() {
                return Err(CheckpointError::NotFound { output_dir: path }.into());
            }
            let manifest = verify(&path)?;
            (path, manifest.step, Vec::new())
        }
    };
    let parent = |path: &Path| path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    let is_here = parent(&folder) == settings.output_dir.canonicalize().ok();
    let saved = TrainingState::load(&folder)?;
    for difference in require_compatible(&folder, &saved.identity, identity, saved.iteration > 0)? {
        tracing::warn!("not as in the checkpoint: {difference}");
    }
    for (path, problem) in &skipped {
        tracing::warn!("{} is damaged and was left out: {problem}", path.display());
    }
    checkpoints.make_way(is_here.then_some(step), &skipped)?;
    if !is_here {
        checkpoints.require_no_model()?;
    }
    Ok(Some(Resumed { folder, is_here }))
}

/// Refuses what the run would refuse to begin over in its output directory; nothing is written.
///
/// # Errors
/// [`CheckpointError::WouldOverwrite`], [`CheckpointError::WouldReplace`], [`CheckpointError::NotFound`].
pub fn require_room(settings: &RunConfig) -> Result<(), RecipeError> {
    let checkpoints = CheckpointDir::new(&settings.output_dir);
    match settings.resume_choice() {
        Resume::Never => checkpoints.make_way(None, &[])?,
        Resume::Auto if checkpoints.list()?.is_empty() => {}
        Resume::Auto => return Ok(()),
        Resume::From(path) if path.exists() => return Ok(()),
        Resume::From(path) => return Err(CheckpointError::NotFound { output_dir: path }.into()),
    }
    Ok(checkpoints.require_no_model()?)
}

/// How far a run is.
pub(super) struct Progress {
    pub state: TrainingState,
    pub history: TrainerState,
    /// Rollouts that are to be used again.
    pub kept: Option<SavedRollouts>,
}

impl Progress {
    /// That of a fresh run.
    pub fn new(identity: RunIdentity) -> Self {
        Self { state: TrainingState::start(identity), history: TrainerState::new(), kept: None }
    }

    /// What the checkpoint holds; weights and moments go into the policy, and the reference's into the method.
    pub fn load(
        resumed: &Resumed,
        identity: RunIdentity,
        policy: &mut Policy,
        method: &mut Method,
    ) -> Result<Self, RecipeError> {
        let folder = &resumed.folder;
        let mut state = TrainingState { identity, ..TrainingState::load(folder)? };
        if !resumed.is_here {
            // The logs that the checkpoint belongs to lie elsewhere.
            (state.metrics_bytes, state.completions_bytes) = (0, 0);
        }
        let history = TrainerState::load_or_new(folder)?;
        let kept = if state.iteration > 0 { SavedRollouts::load(folder)? } else { None };
        restore(policy, folder, state.step - state.idle_steps.min(state.step))?;
        if let Some(reference) = method.reference_mut() {
            restore_reference(reference, folder)?;
        }
        Ok(Self { state, history, kept })
    }
}
