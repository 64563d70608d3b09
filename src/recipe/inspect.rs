//! What is in a checkpoint, for people: the model's shape, how far the run was, what a resumed run would find.

use super::RecipeError;
use crate::checkpoint::{
    CheckpointError, MANIFEST_FILE, Manifest, RunIdentity, SavedRollouts, TRAINING_STATE_FILE, TrainerState,
    TrainingState, unlisted_files,
};
use crate::config::RunConfig;
use crate::io::{has_extension, read_text};
use crate::model::header;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const OPTIMIZER: &str = "optimizer.safetensors";

/// What is in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointSummary {
    pub folder: PathBuf,
    /// Version of the program that wrote it.
    pub candlewick_version: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: Option<u64>,
    pub algorithm: Option<String>,
    /// The model that the run began with, as it was named, with its commit.
    pub start_model: String,
    /// As `qwen2`.
    pub model_type: Option<String>,
    /// Layers, widths, heads, vocabulary.
    pub shape: String,
    pub parameters: u64,
    pub tensors: usize,
    /// Number format of the saved weights.
    pub dtype: String,
    /// Tokens trained on.
    pub num_tokens: u64,
    /// Rows of the data that were drawn, over all epochs.
    pub rows_drawn: u64,
    pub epoch: f64,
    /// What the optimizer's file holds.
    pub optimizer: String,
    /// Whether the reference policy is no longer the start model.
    pub has_reference: bool,
    /// Completions that wait to be learned from again.
    pub saved_rollouts: Option<usize>,
    /// Step and figure of the best evaluation so far.
    pub best: Option<(u64, f64)>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its files with their bytes.
    pub files: BTreeMap<String, u64>,
    /// Files that it was not written with.
    pub unlisted: Vec<String>,
    /// Settings that are not the defaults, as JSON.
    pub settings: BTreeMap<String, String>,
}

/// Reads what a checkpoint says of itself; the weights are not read, but for their headers.
///
/// # Errors
/// [`CheckpointError`] where the folder is no checkpoint or a file that describes it is damaged.
pub fn inspect(folder: &Path) -> Result<CheckpointSummary, RecipeError> {
    if !folder.is_dir() {
        return Err(CheckpointError::NotFound { output_dir: folder.to_owned() }.into());
    }
    let manifest = Manifest::read(folder)?;
    if !manifest.files.contains_key(TRAINING_STATE_FILE) {
        let problem = "lists no training state: this is a finished model, not a checkpoint of a run".to_owned();
        let (folder, file) = (folder.to_owned(), MANIFEST_FILE.to_owned());
        return Err(CheckpointError::Corrupt { folder, file, problem }.into());
    }
    let state = TrainingState::load(folder)?;
    let history = TrainerState::load_or_new(folder)?;
    let config = json_of(&folder.join("config.json"));
    let weights = weights_of(folder, &manifest)?;
    let rollouts = SavedRollouts::load(folder)?;
    let text = |name: &str| state.identity.config.get(name).and_then(|text| serde_json::from_str::<String>(text).ok());
    let revision = state.identity.revision.as_ref().map_or_else(String::new, |revision| format!(" at {revision}"));
    Ok(CheckpointSummary {
        folder: folder.to_owned(),
        candlewick_version: manifest.candlewick_version.clone(),
        step: state.step,
        max_steps: Some(history.max_steps).filter(|steps| *steps > 0),
        algorithm: text("algorithm"),
        start_model: format!("{}{revision}", state.identity.model),
        model_type: config["model_type"].as_str().map(str::to_owned),
        shape: shape(&config),
        parameters: weights.parameters,
        tensors: weights.tensors,
        dtype: weights.dtypes.into_iter().collect::<Vec<_>>().join(" and "),
        num_tokens: state.num_tokens,
        rows_drawn: state.rows_drawn,
        epoch: history.epoch,
        optimizer: optimizer(folder, &manifest, &state)?,
        has_reference: manifest.files.contains_key("reference.safetensors"),
        saved_rollouts: rollouts.map(|saved| saved.groups.iter().map(|group| group.completions.len()).sum()),
        best: state.best.map(|best| (best.step, best.metric)),
        bytes: manifest.files.values().map(|file| file.bytes).sum(),
        unlisted: unlisted_files(folder, &manifest)?,
        files: manifest.files.into_iter().map(|(name, file)| (name, file.bytes)).collect(),
        settings: changed_settings(&state.identity),
    })
}

struct Weights {
    parameters: u64,
    tensors: usize,
    dtypes: BTreeSet<String>,
}

/// The weights of the model: of one file, of shards, or of an adapter.
fn weights_of(folder: &Path, manifest: &Manifest) -> Result<Weights, RecipeError> {
    let mut weights = Weights { parameters: 0, tensors: 0, dtypes: BTreeSet::new() };
    let is_model = |name: &str| name.starts_with("model") || name.starts_with("adapter_model");
    for name in manifest.files.keys().filter(|name| is_model(name) && has_extension(name, "safetensors")) {
        for entry in header::read(&folder.join(name))?.1.entries {
            weights.parameters += entry.shape.iter().product::<usize>() as u64;
            weights.tensors += 1;
            weights.dtypes.insert(entry.dtype);
        }
    }
    Ok(weights)
}

fn optimizer(folder: &Path, manifest: &Manifest, state: &TrainingState) -> Result<String, RecipeError> {
    if !manifest.files.contains_key(OPTIMIZER) {
        return Ok("none".into());
    }
    let entries = header::read(&folder.join(OPTIMIZER))?.1.entries;
    let of = |prefix: &str| entries.iter().filter(|entry| entry.name.starts_with(prefix)).count();
    let updates = state.step - state.idle_steps.min(state.step);
    Ok(format!(
        "AdamW after {updates} updates: f32 weights of {} tensors, first moments of {}, second of {}",
        of("master."),
        of("m."),
        of("v.")
    ))
}

/// The sizes that tell models apart, as far as config.json names them.
fn shape(config: &Value) -> String {
    let named = [
        ("num_hidden_layers", "layers"),
        ("hidden_size", "wide"),
        ("intermediate_size", "in the MLP"),
        ("num_attention_heads", "heads"),
        ("num_key_value_heads", "key/value heads"),
        ("vocab_size", "tokens"),
    ];
    let parts = named.iter().filter_map(|(key, words)| Some(format!("{} {words}", config[*key].as_u64()?)));
    parts.collect::<Vec<_>>().join(", ")
}

/// The settings of the run that are not the defaults.
fn changed_settings(identity: &RunIdentity) -> BTreeMap<String, String> {
    let defaults = RunIdentity::flatten(&serde_json::to_value(RunConfig::default()).unwrap_or_default());
    let is_changed = |(key, value): &(&String, &String)| value.as_str() != "null" && defaults.get(*key) != Some(value);
    identity.config.iter().filter(is_changed).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A file that may be absent, or be somebody else's business.
fn json_of(path: &Path) -> Value {
    read_text(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}
