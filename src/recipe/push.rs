//! A model folder -> the files of a push: what belongs to the model, what stays here, and a card where there is none.
//!
//! How files get to the Hub is the business of `hub`.

use super::card::{CardBase, run_card};
use super::{PushError, RecipeError};
use crate::checkpoint::{
    CardFacts, CheckpointError, MANIFEST_FILE, Manifest, ROLLOUTS_FILE, TRAINER_STATE_FILE, TRAINING_STATE_FILE,
    TrainingState, base_license, card_with_id, model_card,
};
use crate::config::{Layers, RunConfig};
use crate::env::HubEnv;
use crate::hub::{self, PushEvent, PushFile, PushSource, PushTarget, Pushed};
use crate::io::{IoError, has_extension, read_text, sha256_file};
use crate::telemetry::EvalFigures;
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::path::Path;

const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const CARD: &str = "README.md";
/// The largest file that the Hub's storage takes, and the most entries of one folder.
const MAX_FILE_BYTES: u64 = 50_000_000_000;
const MAX_FILES: usize = 10_000;

/// What a run leaves beside its model; nobody needs it to use the model, and it may tell what the training data were.
const STATE_FILES: &[&str] = &[
    TRAINING_STATE_FILE,
    TRAINER_STATE_FILE,
    ROLLOUTS_FILE,
    MANIFEST_FILE,
    "optimizer.safetensors",
    "reference.safetensors",
    "run_config.toml",
    "metrics.jsonl",
    "metrics.csv",
    "completions.jsonl",
    "wandb.json",
    "wandb.log",
    "trackio.json",
    "trackio.log",
    "report.html",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
];
const STATE_FOLDERS: &[&str] = &["runs", "base", "wandb"];
/// Files that tell a run, or a checkpoint, from a folder of the model: one of them lies in each.
const OF_RUNS: &[&str] = &[MANIFEST_FILE, "metrics.jsonl", "run_config.toml"];

/// A file or folder that is not pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub path: String,
    pub why: &'static str,
}

/// What a push would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushPlan {
    /// By their paths.
    pub files: Vec<PushFile>,
    pub left_out: Vec<LeftOut>,
    /// Whether the card is made or completed by this push.
    pub has_new_card: bool,
}

impl PushPlan {
    /// Bytes of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Pushes the model in `folder`: see [`plan_push`] for the files, [`hub::ensure_repo`] for `is_private` and a repository
/// without an owner, [`hub::push`] for the rest.
///
/// # Errors
/// [`PushError`] where the folder holds no whole model, [`CheckpointError::Corrupt`] where its weights are not what was
/// written, and what the Hub says no to.
pub fn push(
    env: &HubEnv,
    folder: &Path,
    target: &PushTarget,
    is_private: Option<bool>,
    with_state: bool,
    progress: &dyn Fn(PushEvent),
) -> Result<Pushed, RecipeError> {
    let mut plan = plan_push(folder, &target.repo, with_state)?;
    // Before anything is read: a name that cannot be, a missing token or permission.
    let id = hub::ensure_repo(env, &target.repo, is_private)?;
    if id != target.repo {
        plan = plan_push(folder, &id, with_state)?;
    }
    progress(PushEvent::Step("reading the weights"));
    check_weights(folder, &mut plan.files)?;
    let target = PushTarget { repo: id, ..target.clone() };
    Ok(hub::push(env, &target, &plan.files, progress)?)
}

/// The files of `folder` that a push to `id` takes, reading no weights.
///
/// Hidden files, other checkpoints and, unless `with_state`, the state of the training stay here. Links to files are
/// followed. A `README.md` that is missing is made from what the folder tells.
///
/// # Errors
/// [`PushError`]: no model in the folder, a broken link, a name or a size that the Hub does not take.
pub fn plan_push(folder: &Path, id: &str, with_state: bool) -> Result<PushPlan, RecipeError> {
    if !folder.is_dir() {
        return Err(PushError::NoFolder { folder: folder.to_owned() }.into());
    }
    let mut plan = PushPlan { files: Vec::new(), left_out: Vec::new(), has_new_card: false };
    collect(folder, "", with_state, &mut plan)?;
    require_model(folder, &plan.files)?;
    plan.files.retain(|file| file.path != CARD);
    let (card, is_new) = card(folder, id)?;
    plan.has_new_card = is_new;
    plan.files.push(card);
    plan.files.sort_by(|a, b| a.path.cmp(&b.path));
    if plan.files.len() > MAX_FILES {
        return Err(PushError::TooMany { folder: folder.to_owned(), found: plan.files.len(), limit: MAX_FILES }.into());
    }
    Ok(plan)
}

fn collect(root: &Path, prefix: &str, with_state: bool, plan: &mut PushPlan) -> Result<(), RecipeError> {
    let folder = root.join(prefix);
    for entry in fs::read_dir(&folder).map_err(IoError::of("list", &folder))? {
        let entry = entry.map_err(IoError::of("list", &folder))?;
        let found = entry.path();
        let is_link = entry.file_type().map_err(IoError::of("read", &found))?.is_symlink();
        let name = entry.file_name();
        let bad_name = || PushError::Name { path: found.clone() };
        let name =
            name.to_str().filter(|name| !name.chars().any(|c| c.is_control() || c == '\\')).ok_or_else(bad_name)?;
        let path = format!("{prefix}{name}");
        // What a link points to decides what it is.
        let facts = match fs::metadata(&found) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_link => {
                return Err(PushError::BrokenLink { path: found }.into());
            }
            other => other.map_err(IoError::of("read", &found))?,
        };
        let reason = if facts.is_dir() {
            reason_to_leave_folder(&found, name, is_link, prefix.is_empty() && !with_state)
        } else {
            reason_to_leave_file(name, with_state)
        };
        if let Some(why) = reason {
            plan.left_out.push(LeftOut { path, why });
        } else if facts.is_dir() {
            collect(root, &format!("{path}/"), with_state, plan)?;
        } else if !facts.is_file() {
            plan.left_out.push(LeftOut { path, why: "neither a file nor a folder" });
        } else if facts.len() > MAX_FILE_BYTES {
            return Err(PushError::TooLarge { path: found, bytes: facts.len(), limit: MAX_FILE_BYTES }.into());
        } else {
            plan.files.push(PushFile { path, bytes: facts.len(), source: PushSource::File(found), sha256: None });
        }
    }
    plan.left_out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}

const HIDDEN: &str = "hidden";
const STATE: &str = "state of the training; --include-training-state takes it";

/// Why a folder stays here; `without_state`: folders of the training's state do.
fn reason_to_leave_folder(folder: &Path, name: &str, is_link: bool, without_state: bool) -> Option<&'static str> {
    if name.starts_with('.') {
        Some(HIDDEN)
    } else if is_link {
        Some("a link to a folder")
    } else if name.starts_with("checkpoint-") || name.contains(".tmp.") {
        Some("a checkpoint: push it by its own path")
    } else if OF_RUNS.iter().any(|file| folder.join(file).exists()) {
        Some("a run of its own: push it by its own path")
    } else {
        (without_state && STATE_FOLDERS.contains(&name)).then_some(STATE)
    }
}

/// Why a file stays here.
fn reason_to_leave_file(name: &str, with_state: bool) -> Option<&'static str> {
    let is_result = |start: &str, extension: &str| name.starts_with(start) && has_extension(name, extension);
    if name.starts_with('.') {
        Some(HIDDEN)
    } else if with_state {
        None
    } else if STATE_FILES.contains(&name) || is_result("rng_state", "pth") {
        Some(STATE)
    } else {
        let is_evaluation = is_result("results_", "json") || is_result("samples_", "jsonl");
        is_evaluation.then_some("what an evaluation found; --include-training-state takes it")
    }
}

/// A folder of which a loader could make a model: a configuration and every weight file that belongs to it.
fn require_model(folder: &Path, files: &[PushFile]) -> Result<(), PushError> {
    let has = |name: &str| files.iter().any(|file| file.path == name);
    let missing = |file: &str| PushError::NoWeights { folder: folder.to_owned(), file: file.to_owned() };
    if has(ADAPTER_CONFIG) {
        let weights = "adapter_model.safetensors";
        return if has(weights) { Ok(()) } else { Err(missing(weights)) };
    }
    if !has(CONFIG) {
        return Err(PushError::NoModel { folder: folder.to_owned() });
    }
    let index = "model.safetensors.index.json";
    if !has(index) {
        return if has("model.safetensors") { Ok(()) } else { Err(missing("model.safetensors")) };
    }
    let index = fs::read(folder.join(index)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let shards = index.as_ref().and_then(|index| index["weight_map"].as_object());
    let mut shards = shards.into_iter().flat_map(|map| map.values().filter_map(Value::as_str));
    shards.find(|shard| !has(shard)).map_or(Ok(()), |shard| Err(missing(shard)))
}

/// Hashes the weight files, and holds them against the manifest where the folder has one: damaged weights stay here.
fn check_weights(folder: &Path, files: &mut [PushFile]) -> Result<(), RecipeError> {
    let has_manifest = folder.join(MANIFEST_FILE).exists();
    let listed = if has_manifest { Manifest::read(folder)?.files } else { std::collections::BTreeMap::new() };
    for file in files.iter_mut().filter(|file| has_extension(&file.path, "safetensors")) {
        let PushSource::File(path) = &file.source else { continue };
        let (bytes, sha256) = sha256_file(path)?;
        if let Some(written) = listed.get(&file.path)
            && (written.bytes, &written.sha256) != (bytes, &sha256)
        {
            let problem = "is damaged (its SHA-256 is not that of the manifest)".to_owned();
            return Err(CheckpointError::Corrupt { folder: folder.to_owned(), file: file.path.clone(), problem }.into());
        }
        (file.bytes, file.sha256) = (bytes, Some(sha256));
    }
    Ok(())
}

/// The card to push, and whether it is another than the one in the folder.
fn card(folder: &Path, id: &str) -> Result<(PushFile, bool), RecipeError> {
    let path = folder.join(CARD);
    let text = |text: String| {
        let (bytes, source) = (text.len() as u64, PushSource::Text(text));
        (PushFile { path: CARD.into(), bytes, source, sha256: None }, true)
    };
    if !path.exists() {
        let made = card_of(folder);
        return Ok(text(card_with_id(&made, id).unwrap_or(made)));
    }
    let own = fs::read_to_string(&path).ok().and_then(|card| card_with_id(&card, id));
    if let Some(own) = own {
        return Ok(text(own));
    }
    let bytes = fs::metadata(&path).map_err(IoError::of("read", &path))?.len();
    Ok((PushFile { path: CARD.into(), bytes, source: PushSource::File(path), sha256: None }, false))
}

/// A card from what the folder tells: of a checkpoint the whole run, else what kind of model it is.
fn card_of(folder: &Path) -> String {
    let adapter = json_of(folder, ADAPTER_CONFIG);
    let template = json_of(folder, "tokenizer_config.json").is_some_and(|config| !config["chat_template"].is_null());
    let mut base = CardBase {
        is_chat: template || folder.join("chat_template.jinja").exists(),
        is_adapter: adapter.is_some(),
        ..CardBase::default()
    };
    let named = adapter.and_then(|adapter| adapter["base_model_name_or_path"].as_str().map(str::to_owned));
    if let (Ok(state), Some(settings)) = (TrainingState::load(folder), settings_of(folder)) {
        // A model that was read from a folder has no commit, and its path means nothing to others.
        if let Some(commit) = &state.identity.revision {
            base_of(&mut base, &settings.model, Some(commit));
        }
        let after = evaluated_at(folder, state.step);
        return run_card(&settings, &base, &state, after);
    }
    base_of(&mut base, named.as_deref().unwrap_or_default(), None);
    let name = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    model_card(&CardFacts {
        model_name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        base_model: base.repo,
        is_adapter: base.is_adapter,
        license: base.license,
        is_chat: base.is_chat,
        ..CardFacts::default()
    })
}

/// Looks a base model up in the cache, where it is one of the Hub.
fn base_of(base: &mut CardBase, model: &str, revision: Option<&str>) {
    if model.is_empty() || Path::new(model).exists() || model.split('/').count() != 2 || model.starts_with('.') {
        return;
    }
    base.repo = Some(model.to_owned());
    let found = hub::resolve(model, revision, true, &|_| {});
    base.license = found.ok().and_then(|found| base_license(&found.folder));
}

fn settings_of(folder: &Path) -> Option<RunConfig> {
    let path = folder.join("run_config.toml");
    Some(Layers::from_files([path]).resolve().ok()?.config)
}

/// What the evaluation after `step` found, where there was one.
fn evaluated_at(folder: &Path, step: u64) -> Option<EvalFigures> {
    let state = json_of(folder, TRAINER_STATE_FILE)?;
    let row = state["log_history"].as_array()?.iter().rev().find(|row| row["step"] == step)?;
    let value = |name: &str| row[name].as_f64();
    let figures = EvalFigures {
        accuracy: value("eval_accuracy"),
        mean_reward: value("eval_reward"),
        loss: value("eval_loss"),
        num_samples: 0,
    };
    (figures != EvalFigures::default()).then_some(figures)
}

fn json_of(folder: &Path, name: &str) -> Option<Value> {
    serde_json::from_str(&read_text(&folder.join(name)).ok()?).ok()
}
