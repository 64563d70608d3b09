//! A whole training run: find, check, load, train, write, evaluate what was written.

use super::RecipeError;
use super::card::{CardBase, run_card};
use super::evaluator::{Evaluator, evaluate_folder, evaluator};
use super::method::method;
use super::parts::{LoadedModel, check_device, graders};
use super::policy::{StartPolicy, adapter};
use super::push::push;
use super::reward_model;
use super::start::{Start, TrainingData};
use super::trackers::trackers;
use crate::checkpoint::{
    CheckpointDir, CheckpointError, Keep, RunIdentity, SavedRollouts, TrainerState, TrainingState, require_compatible,
    verify,
};
use crate::config::{Algorithm, Resume, RewardConfig, RunConfig};
use crate::env::HubEnv;
use crate::hub::{PushEvent, PushTarget, Pushed, ensure_repo};
use crate::io::{DirLock, sha256_file, write_atomic};
use crate::model::PeftConfig;
use crate::model::adapter::adapter_tensors;
use crate::reward::{IsStopping, WeightedRewards};
use crate::telemetry::{CompletionsSink, Console, JsonlSink, RunEnd, StepMetrics, Summary};
use crate::trainer::run::Evaluate;
use crate::trainer::{Method, Outcome, Policy, RunSettings, Trainer, restore, restore_reference, stop::StopSignal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a run takes beside its settings; the default is right for most library users.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// Rewards in place of those that the settings name, such as closures ([`FnReward`](crate::reward::FnReward)). Without
    /// an `eval_grader` a completion is then right in evaluations where the first of them scores it above 0.5.
    pub rewards: Option<WeightedRewards>,
    /// Asks the run to stop after a step. Default: it never does; see [`StopSignal::install`] for Ctrl-C.
    pub stop: StopSignal,
    /// Text of the `run_config.toml` in each checkpoint. Default none: the settings.
    pub run_config: Option<String>,
}

/// How a run ended and what it found.
#[derive(Debug)]
pub struct TrainReport {
    /// Whether every step was made.
    pub outcome: Outcome,
    /// Evaluation before and after, steps, time, where the model is.
    pub summary: Summary,
    /// What came of the push, where the settings ask for one and the run is finished. One that failed takes nothing
    /// away: the error names the command that makes it again.
    pub pushed: Option<Result<Pushed, RecipeError>>,
}

/// Trains as the settings say, and leaves checkpoints and the final model in their `output_dir`.
///
/// # Errors
/// Settings that are out of range or contradict each other, and whatever goes wrong in the run; the last checkpoint is
/// as it was.
pub fn train(settings: &RunConfig, options: TrainOptions) -> Result<TrainReport, RecipeError> {
    let TrainOptions { rewards: own, stop, run_config } = options;
    checkable(settings, own.as_ref()).check()?;
    settings.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let settings = &with_names_of(settings, own.as_ref());
    let run_config = run_config.unwrap_or_else(|| settings.to_toml());
    let (rewards, grader) = graders(settings, own.as_ref())?;
    rewards.check()?;
    let started = Instant::now();
    let compute = check_device(settings)?;
    let push_id = push_id(settings)?;
    let Start { mut model, data, base } = Start::new(settings)?;
    let adapter = adapter(settings, &model)?;
    let evaluate = evaluator(settings, &model, &data, rewards.clone(), grader)?;
    let _lock = DirLock::acquire(&settings.output_dir)?;
    let identity = identity(settings, &model, adapter.as_ref(), &data)?;
    let checkpoints = CheckpointDir::new(&settings.output_dir);
    checkpoints.remove_stale()?;
    let resumed = resume(settings, &checkpoints, &identity)?;
    if let Some(base) = base {
        model.resolved.folder = base.install(&settings.output_dir, resumed.is_some())?;
    }
    start_rewards(settings, &rewards, stop.clone())?;
    rewards.prepare(&compute)?;
    let start = StartPolicy::load(settings, &model, adapter.as_ref(), &compute)?;
    let reference = || start.reference(settings, &model, &compute);
    let (mut method, max_steps) = method(settings, &model, data, rewards, reference)?;
    let mut write_model = start.writer(settings, &model, adapter);
    if settings.algorithm == Algorithm::Reward {
        write_model = reward_model::writer(settings, &model, write_model)?;
    }
    let mut policy = start.into_policy(settings, max_steps)?;
    let Progress { state, mut history, kept } = match &resumed {
        None => Progress { state: TrainingState::start(identity), history: TrainerState::new(), kept: None },
        Some(folder) => {
            let progress = Progress::load(folder, identity, &mut policy, &mut method)?;
            // The run before may have been killed between its last commit and this.
            let best = progress.state.best.map(|best| best.step);
            checkpoints.rotate(Keep { limit: settings.save_total_limit, best })?;
            tracing::info!("continuing from {} at step {}", folder.display(), progress.state.step);
            progress
        }
    };
    // Beside the logs, for whoever reads them; each checkpoint has its own.
    write_atomic(&settings.output_dir.join("run_config.toml"), |w| w.write_all(run_config.as_bytes()))?;
    fill_history(&mut history, settings, max_steps);
    let mut trainer = Trainer {
        policy,
        method,
        settings: run_settings(settings, max_steps),
        metrics: JsonlSink::open(&settings.output_dir.join("metrics.jsonl"), state.metrics_bytes)?,
        completions: CompletionsSink::open(&settings.output_dir.join("completions.jsonl"), state.completions_bytes)?,
        trackers: trackers(settings, resumed.is_some().then_some(state.step))?,
        console: Console::new(max_steps, state.step, settings.logging_steps),
        state,
        history,
        kept,
        checkpoints,
        write_model,
        evaluate: evaluate.clone().map(|evaluate| -> Evaluate { Box::new(move |decoder| evaluate(decoder)) }),
        stop,
        run_config,
    };
    let outcome = trainer.run()?;
    trainer.console.finish();
    let (mut after, mut results) = (None, None);
    if outcome == Outcome::Finished {
        let (task, found_by) = (model.config.task, evaluate);
        let finish = |folder: &Path| {
            let evaluate = |evaluate: &Arc<Evaluator>| evaluate_folder(folder, task, &compute, evaluate.as_ref());
            let found = found_by.as_ref().map(evaluate).transpose()?;
            let after = found.as_ref().map(|found| found.figures);
            let card = run_card(settings, &CardBase::of(settings, &model), &trainer.state, after);
            write_atomic(&folder.join("README.md"), |w| w.write_all(card.as_bytes()))?;
            if let Some(found) = &found {
                let figures = all_results(&trainer.state, &trainer.history, &found.metrics);
                write_atomic(&folder.join("all_results.json"), |w| writeln!(w, "{figures:#}"))?;
            }
            Ok(found)
        };
        if let Some(found) = trainer.publish(finish)? {
            after = Some(found.figures);
            results = Some(evaluated(&found.metrics));
            trainer.show_samples(found.samples)?;
        }
    }
    let exit_code = match outcome {
        Outcome::Finished => 0,
        Outcome::Interrupted(exit) => exit as u8,
    };
    trainer.end_trackers(&RunEnd { results: results.as_ref(), exit_code });
    let pushed =
        push_id.filter(|_| outcome == Outcome::Finished).map(|id| push_model(settings, &id, trainer.state.step));
    let summary = Summary {
        before: trainer.state.before,
        after,
        steps: trainer.state.step,
        secs: started.elapsed().as_secs_f64(),
        model: settings.output_dir.clone(),
        next_command: Some(next_command(settings, outcome)),
    };
    Ok(TrainReport { outcome, summary, pushed })
}

/// How far a run is.
struct Progress {
    state: TrainingState,
    history: TrainerState,
    /// Rollouts that are to be used again.
    kept: Option<SavedRollouts>,
}

impl Progress {
    /// What the checkpoint `folder` holds; weights and moments go into the policy, and the reference's into the method.
    fn load(
        folder: &Path,
        identity: RunIdentity,
        policy: &mut Policy,
        method: &mut Method,
    ) -> Result<Self, RecipeError> {
        let state = TrainingState { identity, ..TrainingState::load(folder)? };
        let history = TrainerState::load_or_new(folder)?;
        let kept = if state.iteration > 0 { SavedRollouts::load(folder)? } else { None };
        restore(policy, folder, state.step - state.idle_steps.min(state.step))?;
        if let Some(reference) = method.reference_mut() {
            restore_reference(reference, folder)?;
        }
        Ok(Self { state, history, kept })
    }
}

/// The whole id of the repository that the run will be pushed to, which is made here: a token that may not push is found
/// out before the run, not after it.
fn push_id(settings: &RunConfig) -> Result<Option<String>, RecipeError> {
    if !settings.push_to_hub {
        return Ok(None);
    }
    Ok(Some(ensure_repo(&HubEnv::read(), &settings.push_id(), settings.hub_private_repo)?))
}

/// Pushes the final model.
fn push_model(settings: &RunConfig, id: &str, step: u64) -> Result<Pushed, RecipeError> {
    let folder = &settings.output_dir;
    let target = PushTarget { repo: id.to_owned(), revision: None, message: format!("Model after {step} steps") };
    let told = |event: PushEvent| {
        if let PushEvent::Begin { files, bytes } = event {
            tracing::info!("pushing {files} large files of {:.1} MB to {id}", bytes as f64 / 1e6);
        }
    };
    push(&HubEnv::read(), folder, &target, settings.hub_private_repo, false, &told).map_err(|source| {
        RecipeError::NotPushed {
            folder: folder.clone(),
            command: format!("candlewick push {} {id}", folder.display()),
            source: Box::new(source),
        }
    })
}

/// Lets the rewards get ready, where something is scored: a program is started while the model is loaded.
fn start_rewards(settings: &RunConfig, rewards: &WeightedRewards, stop: StopSignal) -> Result<(), RecipeError> {
    if settings.samples_completions() || settings.eval_file.is_some() {
        let is_stopping: IsStopping = Arc::new(move || stop.requested().is_some());
        rewards.start(&is_stopping)?;
    }
    Ok(())
}

/// The settings with the names and weights of the caller's own rewards, so that a checkpoint says what it was trained on.
fn with_names_of(settings: &RunConfig, own: Option<&WeightedRewards>) -> RunConfig {
    let mut settings = settings.clone();
    if let Some(own) = own {
        let parts = own.parts.iter().map(|(weight, reward)| (*weight, reward.name().to_owned()));
        settings.rewards =
            parts.map(|(weight, name)| RewardConfig { name, weight, ..RewardConfig::default() }).collect();
    }
    settings
}

/// The settings with the caller's own rewards as labels: names and weights are held to the rules of the tables, only
/// that no table can name them.
fn checkable(settings: &RunConfig, own: Option<&WeightedRewards>) -> RunConfig {
    let mut settings = with_names_of(settings, own);
    if own.is_some() {
        for table in &mut settings.rewards {
            table.label = Some(std::mem::replace(&mut table.name, RewardConfig::default().name));
        }
    }
    settings
}

fn identity(
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
        tokenizer_sha256: sha256_file(&model.resolved.folder.join("tokenizer.json"))?.1,
        data_sha256: data.sha256(),
        data_revision: data.revision(),
        shapes_sha256: RunIdentity::hash_shapes(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()))),
    })
}

/// The checkpoint to continue from, as `resume` asks; `None` for a fresh run.
fn resume(
    settings: &RunConfig,
    checkpoints: &CheckpointDir,
    identity: &RunIdentity,
) -> Result<Option<PathBuf>, RecipeError> {
    let (folder, step, skipped) = match settings.resume_choice() {
        Resume::Never => {
            checkpoints.make_way(None, &[])?;
            return Ok(None);
        }
        Resume::Auto => match checkpoints.newest_valid()? {
            None => {
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
    let saved = TrainingState::load(&folder)?;
    for difference in require_compatible(&folder, &saved.identity, identity, saved.iteration > 0)? {
        tracing::warn!("not as in the checkpoint: {difference}");
    }
    for (path, problem) in &skipped {
        tracing::warn!("{} is damaged and was left out: {problem}", path.display());
    }
    checkpoints.make_way(Some(step), &skipped)?;
    Ok(Some(folder))
}

/// The metrics of an evaluation by their names in the log.
fn evaluated(metrics: &StepMetrics) -> StepMetrics {
    let mut named = StepMetrics::new();
    named.extend("eval_", metrics);
    named
}

/// `all_results.json`, as transformers calls it: what the saved model was evaluated to, and after how much training.
fn all_results(state: &TrainingState, history: &TrainerState, metrics: &StepMetrics) -> serde_json::Value {
    let mut results = serde_json::Map::new();
    results.insert("step".into(), state.step.into());
    results.insert("epoch".into(), history.epoch.into());
    results.insert("num_tokens".into(), state.num_tokens.into());
    results.extend(evaluated(metrics).to_json());
    results.into()
}

fn run_settings(settings: &RunConfig, max_steps: u64) -> RunSettings {
    RunSettings {
        max_steps,
        eval_steps: settings.eval_steps,
        eval_on_start: settings.eval_on_start,
        save_steps: settings.save_steps,
        save_total_limit: settings.save_total_limit,
    }
}

fn fill_history(history: &mut TrainerState, settings: &RunConfig, max_steps: u64) {
    history.max_steps = max_steps;
    history.eval_steps = settings.eval_steps;
    history.logging_steps = settings.logging_steps;
    history.save_steps = settings.save_steps;
    history.num_train_epochs = settings.num_train_epochs.ceil() as u64;
    history.train_batch_size = (settings.prompts_per_step * settings.completions_per_prompt()) as u64;
}

fn next_command(settings: &RunConfig, outcome: Outcome) -> String {
    let output = settings.output_dir.display();
    match (outcome, &settings.eval_file) {
        (Outcome::Interrupted(_), _) => "the same command with --resume auto goes on".to_owned(),
        (Outcome::Finished, _) if settings.algorithm == Algorithm::Reward => {
            format!("a [[rewards]] table with name = \"model\" and model = \"{output}\"")
        }
        (Outcome::Finished, Some(file)) => {
            format!("candlewick eval {output} --data {file} --num-samples 4 --temperature 1")
        }
        (Outcome::Finished, None) => format!("candlewick generate {output} \"your prompt\""),
    }
}
