//! A whole training run: find, check, load, train, write, evaluate what was written.

use super::RecipeError;
use super::card::{CardBase, run_card};
use super::evaluator::{Evaluator, evaluate_folder, evaluator};
use super::method::method;
use super::parts::{LoadedModel, check_device, graders};
use super::policy::{StartPolicy, adapter};
use super::push::push;
use super::resume::{Progress, Resumed, identity, resume};
use super::reward_model;
use super::start::{Start, TrainingData};
use super::trackers::trackers;
use crate::checkpoint::{CheckpointDir, Keep, RunIdentity, TrainerState, TrainingState};
use crate::config::{Algorithm, RewardConfig, RunConfig};
use crate::device::Compute;
use crate::env::HubEnv;
use crate::hub::{PushEvent, PushTarget, Pushed, ensure_repo};
use crate::io::{DirLock, write_atomic};
use crate::model::PeftConfig;
use crate::reward::{IsStopping, WeightedRewards};
use crate::telemetry::{CompletionsSink, Console, JsonlSink, RunEnd, StepMetrics, Summary};
use crate::trainer::run::Evaluate;
use crate::trainer::{Evaluated, Outcome, RunSettings, Trainer, stop::StopSignal};
use std::path::Path;
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
    let started = Instant::now();
    let TrainOptions { rewards: own, stop, run_config } = options;
    checkable(settings, own.as_ref()).check()?;
    settings.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let settings = &with_names_of(settings, own.as_ref());
    let run_config = run_config.unwrap_or_else(|| settings.to_toml());
    let (parts, data, rewards) = prepare(settings, own.as_ref(), &stop)?;
    let mut trainer = build(settings, &parts, data, rewards, (stop, run_config))?;
    let mut outcome = trainer.run()?;
    trainer.console.finish();
    let mut found = None;
    if outcome == Outcome::Finished {
        (outcome, found) = publish(settings, &parts, &mut trainer)?;
    }
    let (after, results) = found.map(|found| (found.figures, evaluated(&found.metrics))).unzip();
    let exit_code = match outcome {
        Outcome::Finished => 0,
        Outcome::Interrupted(exit) => exit as u8,
    };
    trainer.end_trackers(&RunEnd { results: results.as_ref(), exit_code });
    let push_id = parts.push_id.as_ref().filter(|_| outcome == Outcome::Finished);
    let pushed = push_id.map(|id| push_model(settings, id, trainer.state.step));
    let summary = Summary {
        before: trainer.state.before,
        after,
        steps: trainer.state.step,
        secs: started.elapsed().as_secs_f64(),
        model: match outcome {
            Outcome::Finished => settings.output_dir.clone(),
            Outcome::Interrupted(_) => trainer.checkpoints.path(trainer.state.step),
        },
        next_command: Some(next_command(settings, outcome)),
    };
    Ok(TrainReport { outcome, summary, pushed })
}

/// What a run is made of, before any weights are read.
struct Parts {
    compute: Compute,
    model: LoadedModel,
    adapter: Option<PeftConfig>,
    evaluate: Option<Arc<Evaluator>>,
    identity: RunIdentity,
    checkpoints: CheckpointDir,
    resumed: Option<Resumed>,
    /// The repository that the model goes to in the end.
    push_id: Option<String>,
    /// Held until the run is over.
    _lock: DirLock,
}

/// Checks all that can be checked before the weights are read, and starts the rewards.
fn prepare(
    settings: &RunConfig,
    own: Option<&WeightedRewards>,
    stop: &StopSignal,
) -> Result<(Parts, TrainingData, WeightedRewards), RecipeError> {
    let (rewards, grader) = graders(settings, own)?;
    rewards.check()?;
    let compute = check_device(settings)?;
    let Start { mut model, data, base } = Start::new(settings)?;
    let adapter = adapter(settings, &model)?;
    let evaluate = evaluator(settings, &model, &data, rewards.clone(), grader)?;
    let lock = DirLock::acquire(&settings.output_dir)?;
    let identity = identity(settings, &model, adapter.as_ref(), &data)?;
    let checkpoints = CheckpointDir::new(&settings.output_dir);
    checkpoints.remove_stale()?;
    let resumed = resume(settings, &checkpoints, &identity)?;
    let push_id = push_id(settings)?;
    if let Some(base) = base {
        model.resolved.folder = base.install(&settings.output_dir, resumed.is_some())?;
    }
    start_rewards(settings, &rewards, stop.clone())?;
    rewards.prepare(&compute)?;
    let parts = Parts { compute, model, adapter, evaluate, identity, checkpoints, resumed, push_id, _lock: lock };
    Ok((parts, data, rewards))
}

/// Reads the weights, and where the run goes on its state, and puts the trainer together.
fn build(
    settings: &RunConfig,
    parts: &Parts,
    data: TrainingData,
    rewards: WeightedRewards,
    (stop, run_config): (StopSignal, String),
) -> Result<Trainer, RecipeError> {
    let Parts { compute, model, adapter, identity, checkpoints, .. } = parts;
    let start = StartPolicy::load(settings, model, adapter.as_ref(), compute)?;
    let reference = || start.reference(settings, model, compute);
    let (mut method, max_steps) = method(settings, model, data, rewards, reference)?;
    let mut write_model = start.writer(settings, model, adapter.clone());
    if settings.algorithm == Algorithm::Reward {
        write_model = reward_model::writer(settings, model, write_model)?;
    }
    let mut policy = start.into_policy(settings, max_steps)?;
    let Progress { state, mut history, kept } = match &parts.resumed {
        None => Progress::new(identity.clone()),
        Some(resumed) => {
            let progress = Progress::load(resumed, identity.clone(), &mut policy, &mut method)?;
            // The run before may have been killed between its last commit and this.
            let best = progress.state.best.map(|best| best.step);
            checkpoints.rotate(Keep { limit: settings.save_total_limit, best })?;
            tracing::info!("continuing from {} at step {}", resumed.folder.display(), progress.state.step);
            progress
        }
    };
    // Beside the logs, for whoever reads them; each checkpoint has its own.
    write_atomic(&settings.output_dir.join("run_config.toml"), |w| w.write_all(run_config.as_bytes()))?;
    fill_history(&mut history, settings, max_steps);
    let evaluate = parts.evaluate.clone();
    Ok(Trainer {
        policy,
        method,
        settings: run_settings(settings, max_steps),
        metrics: JsonlSink::open(&settings.output_dir.join("metrics.jsonl"), state.metrics_bytes)?,
        completions: CompletionsSink::open(&settings.output_dir.join("completions.jsonl"), state.completions_bytes)?,
        trackers: trackers(settings, parts.resumed.is_some().then_some(state.step))?,
        console: Console::new(max_steps, state.step, settings.logging_steps),
        state,
        history,
        kept,
        checkpoints: checkpoints.clone(),
        write_model,
        evaluate: evaluate.map(|evaluate| -> Evaluate { Box::new(move |decoder| evaluate(decoder)) }),
        stop,
        run_config,
    })
}

/// Writes the final model, reads it back and evaluates that, writes the model card, and makes all of it visible.
fn publish(
    settings: &RunConfig,
    parts: &Parts,
    trainer: &mut Trainer,
) -> Result<(Outcome, Option<Evaluated>), RecipeError> {
    let Parts { compute, model, evaluate, .. } = parts;
    let (state, history) = (trainer.state.clone(), trainer.history.clone());
    let finish = |folder: &Path| {
        let found = match evaluate {
            None => None,
            Some(evaluate) => Some(evaluate_folder(folder, model.config.task, compute, evaluate.as_ref())?),
        };
        let after = found.as_ref().map(|found| found.figures);
        let card = run_card(settings, &CardBase::of(settings, model), &state, after);
        write_atomic(&folder.join("README.md"), |w| w.write_all(card.as_bytes()))?;
        if let Some(found) = &found {
            let figures = all_results(&state, &history, &found.metrics);
            write_atomic(&folder.join("all_results.json"), |w| writeln!(w, "{figures:#}"))?;
        }
        Ok(found)
    };
    let (outcome, found) = trainer.publish(finish)?;
    let mut found = found.flatten();
    if let Some(found) = &mut found {
        trainer.show_samples(std::mem::take(&mut found.samples))?;
    }
    Ok((outcome, found))
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
    if settings.samples_completions() || settings.has_eval_rows() {
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
