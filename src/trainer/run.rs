//! The loop: step, log, evaluate, save, stop. What a step does, what is evaluated and what a model folder looks like is
//! plugged in by `recipe`.

use super::phase::Phase;
use super::save::{ModelWriter, Snapshot};
use super::stop::StopSignal;
use super::{
    Dpo, LoggedCompletion, Policy, PolicyGradient, Reference, RewardTraining, Sft, StepContext, StepOutput, TrainError,
};
use crate::checkpoint::{BestCheckpoint, CheckpointDir, Keep, SavedRollouts, TrainerState, TrainingState};
use crate::device::peak_gpu_memory;
use crate::error::{Diagnose, Exit};
use crate::model::Decoder;
use crate::telemetry::{
    CompletionRecord, CompletionsSink, Console, EvalFigures, JsonlSink, MetricSink, RunEnd, StepFacts, StepMetrics,
    Watch, peak_memory_bytes,
};
use std::path::{Path, PathBuf};

/// The algorithm of a run.
#[derive(Debug)]
pub enum Method {
    /// Sample, score, reinforce.
    PolicyGradient(Box<PolicyGradient>),
    /// Prefer one completion to another.
    Dpo(Box<Dpo>),
    /// Score one completion above another.
    Reward(RewardTraining),
    /// Learn given completions.
    Sft(Sft),
}

impl Method {
    /// The policy that the trained one is held to, where there is one.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::PolicyGradient(method) => method.reference.as_ref(),
            Self::Dpo(method) => Some(&method.reference),
            Self::Reward(_) | Self::Sft(_) => None,
        }
    }

    /// As [`Method::reference`], to be changed.
    pub fn reference_mut(&mut self) -> Option<&mut Reference> {
        match self {
            Self::PolicyGradient(method) => method.reference.as_mut(),
            Self::Dpo(method) => Some(&mut method.reference),
            Self::Reward(_) | Self::Sft(_) => None,
        }
    }

    fn step(&mut self, policy: &mut Policy, at: &StepContext<'_>) -> Result<StepOutput, TrainError> {
        match self {
            Self::PolicyGradient(method) => method.step(policy, at),
            Self::Dpo(method) => method.step(policy, at),
            Self::Reward(method) => method.step(policy, at),
            Self::Sft(method) => method.step(policy, at),
        }
    }
}

/// When things happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSettings {
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Steps between evaluations; 0: none in between.
    pub eval_steps: u64,
    /// Evaluate before the first step.
    pub eval_on_start: bool,
    /// Steps between checkpoints; 0: only at the end.
    pub save_steps: u64,
    /// Checkpoints to keep; 0: all.
    pub save_total_limit: usize,
}

impl RunSettings {
    /// Whether a checkpoint is saved after `step`.
    fn saves_at(&self, step: u64) -> bool {
        step == self.max_steps || (self.save_steps > 0 && step.is_multiple_of(self.save_steps))
    }
}

/// What an evaluation inside a run gives.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// The figures for the table.
    pub figures: EvalFigures,
    /// Metrics, without the prefix `eval_`.
    pub metrics: StepMetrics,
    /// Texts to show to people; their `step` is set where they are logged.
    pub samples: Vec<LoggedCompletion>,
}

/// Evaluates a model.
pub type Evaluate = Box<dyn Fn(&Decoder) -> Result<Evaluated, TrainError>>;

/// A run, ready to go on from where its state says.
pub struct Trainer {
    pub policy: Policy,
    pub method: Method,
    pub settings: RunSettings,
    pub state: TrainingState,
    pub history: TrainerState,
    pub kept: Option<SavedRollouts>,
    pub checkpoints: CheckpointDir,
    pub write_model: ModelWriter,
    pub evaluate: Option<Evaluate>,
    pub metrics: JsonlSink,
    pub completions: CompletionsSink,
    /// Where `report_to` says that metrics go, too.
    pub trackers: Vec<Box<dyn MetricSink>>,
    pub console: Console,
    pub stop: StopSignal,
    /// The resolved settings as TOML, saved with each checkpoint.
    pub run_config: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every step is done.
    Finished,
    /// A signal came; the state is saved, and the process should end with this code.
    Interrupted(Exit),
}

impl Trainer {
    /// Makes the steps that are left.
    ///
    /// # Errors
    /// Whatever a step, a sink or a checkpoint fails with. Where a value is not finite or a reward fails, the state
    /// after the last whole step is saved first.
    pub fn run(&mut self) -> Result<Outcome, TrainError> {
        if self.state.step == 0 && self.settings.eval_on_start && self.state.before.is_none() {
            let mut metrics = StepMetrics::new();
            self.state.before = match self.evaluate_into(&mut metrics) {
                Ok(found) => found,
                Err(error) => return self.end_with(error),
            };
            if self.state.before.is_some() {
                self.log(0, &metrics)?;
            }
        }
        let mut watch = Watch::default();
        while self.state.step < self.settings.max_steps {
            if let Some(exit) = self.stop.requested() {
                self.save_unless_saved()?;
                return Ok(Outcome::Interrupted(exit));
            }
            let output = match self.step() {
                Ok(output) => output,
                Err(error) => {
                    // The gradients of a step that is not finished must not be added to those of another.
                    self.policy.clear_gradients()?;
                    return self.end_with(error);
                }
            };
            let facts = output.facts.map(|facts| StepFacts { idle: output.idle, ..facts });
            if let Some(warnings) = facts.map(|facts| watch.observe(&facts)) {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
            }
            if let Err(error) = self.finish_step(output) {
                return self.end_with(error);
            }
            if self.settings.saves_at(self.state.step) {
                self.save()?;
            }
        }
        Ok(Outcome::Finished)
    }

    fn step(&mut self) -> Result<StepOutput, TrainError> {
        let at = StepContext {
            step: self.state.step + 1,
            rows_drawn: self.state.rows_drawn,
            num_tokens: self.state.num_tokens,
            iteration: self.state.iteration,
            kept: self.kept.as_ref(),
            console: &self.console,
        };
        let output = self.method.step(&mut self.policy, &at)?;
        if let Some(reference) = self.method.reference_mut() {
            reference.follow(&self.policy.decoder, at.step)?;
        }
        Ok(output)
    }

    /// Ends the run with an error. Where a value that is not finite, or a reward, is to blame, the state after the last
    /// whole step is saved first.
    fn end_with(&mut self, error: TrainError) -> Result<Outcome, TrainError> {
        let is_reward = matches!(error, TrainError::Reward(_));
        if !is_reward && error.exit() != Exit::NonFinite {
            return Err(error);
        }
        if let Err(unsaved) = self.save_unless_saved() {
            tracing::warn!("the state after step {} could not be saved: {unsaved}", self.state.step);
            return Err(error);
        }
        match self.stop.requested() {
            // Rewards that wait for something outside try nothing again once the run is to stop.
            Some(exit) if is_reward => {
                tracing::warn!("stopped while completions were scored: {error}");
                Ok(Outcome::Interrupted(exit))
            }
            _ => Err(error),
        }
    }

    /// Takes over the counters of a step that is done, evaluates where it is time to, and logs.
    fn finish_step(&mut self, output: StepOutput) -> Result<(), TrainError> {
        let step = self.state.step + 1;
        self.state.step = step;
        self.state.idle_steps += u64::from(output.idle.is_some());
        self.state.rows_drawn = output.rows_drawn;
        self.state.num_tokens = output.num_tokens;
        self.state.iteration = output.iteration;
        self.kept = output.kept;
        let mut metrics = output.metrics;
        if let Some(bytes) = peak_memory_bytes() {
            metrics.count("perf/peak_memory_bytes", bytes);
        }
        if let Some(bytes) = peak_gpu_memory(self.policy.decoder.device()) {
            metrics.count("perf/peak_device_memory_bytes", bytes);
        }
        // An evaluation that fails takes nothing of the step away: what the step found is logged first.
        let mut evaluated = Ok(None);
        let every = self.settings.eval_steps;
        // The last evaluation is that of the saved model.
        if every > 0 && step.is_multiple_of(every) && step < self.settings.max_steps {
            evaluated = self.evaluate_into(&mut metrics);
            // The best of the checkpoints: what is not saved cannot be gone back to.
            if let Ok(Some(figures)) = &evaluated
                && let Some(metric) = figures.metric()
                && self.settings.saves_at(step)
                && self.state.best.is_none_or(|best| figures.is_better_than(best.metric))
            {
                self.state.best = Some(BestCheckpoint { step, metric });
            }
        }
        self.log_completions(&output.completions)?;
        self.log(step, &metrics)?;
        self.console.log(step, &metrics)?;
        self.history.epoch = metrics.value("epoch").unwrap_or(0.0);
        self.history.push_history(step, self.history.epoch, &metrics);
        evaluated.map(drop)
    }

    fn evaluate_into(&mut self, metrics: &mut StepMetrics) -> Result<Option<EvalFigures>, TrainError> {
        let Some(evaluate) = &self.evaluate else { return Ok(None) };
        Phase::Evaluate.begin(self.state.step);
        let found = evaluate(&self.policy.decoder)?;
        metrics.extend("eval_", &found.metrics);
        self.show_samples(found.samples)?;
        Ok(Some(found.figures))
    }

    /// Shows and logs texts that the model wrote after the last step.
    ///
    /// # Errors
    /// Fails where the log cannot be written.
    pub fn show_samples(&mut self, mut samples: Vec<LoggedCompletion>) -> Result<(), TrainError> {
        for sample in &mut samples {
            sample.step = self.state.step;
            self.console.sample(sample.step, &format!("{}{}", sample.prompt, sample.completion));
        }
        self.log_completions(&samples)
    }

    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.metrics.log(step, metrics)?;
        Ok(self.trackers.iter_mut().try_for_each(|tracker| tracker.log(step, metrics))?)
    }

    /// Tells the trackers that the run is over; one that runs beside this process gets some time to finish.
    pub fn end_trackers(&mut self, end: &RunEnd<'_>) {
        self.trackers.iter_mut().for_each(|tracker| tracker.end(end));
    }

    fn log_completions(&mut self, records: &[LoggedCompletion]) -> Result<(), TrainError> {
        for record in records {
            let rewards: Vec<(&str, Option<f64>)> = record.rewards.iter().map(|(n, s)| (n.as_str(), *s)).collect();
            let record = CompletionRecord {
                step: record.step,
                prompt: &record.prompt,
                completion: &record.completion,
                rewards: &rewards,
                reward: record.reward,
                advantage: record.advantage,
                finish_reason: record.finish_reason.as_str(),
            };
            self.completions.log(&record)?;
            self.trackers.iter_mut().try_for_each(|tracker| tracker.completion(&record))?;
        }
        Ok(())
    }

    fn save_unless_saved(&mut self) -> Result<(), TrainError> {
        if self.checkpoints.path(self.state.step).is_dir() { Ok(()) } else { self.save().map(|_| ()) }
    }

    /// Commits a checkpoint of the state after the last whole step, then removes old ones.
    fn save(&mut self) -> Result<PathBuf, TrainError> {
        Phase::Save.begin(self.state.step);
        self.metrics.flush()?;
        self.completions.flush()?;
        self.trackers.iter_mut().try_for_each(|tracker| tracker.flush())?;
        self.state.metrics_bytes = self.metrics.bytes();
        self.state.completions_bytes = self.completions.bytes();
        self.history.global_step = self.state.step;
        self.history.num_input_tokens_seen = self.state.num_tokens;
        self.history.best_global_step = self.state.best.map(|best| best.step);
        self.history.best_metric = self.state.best.map(|best| best.metric);
        let folder = |step| self.checkpoints.path(step).file_name().map(|name| name.to_string_lossy().into_owned());
        self.history.best_model_checkpoint = self.history.best_global_step.and_then(folder);
        let pending = self.checkpoints.begin(self.state.step)?;
        self.snapshot().write(pending.path(), &self.write_model)?;
        let path = pending.commit(self.state.identity.facts())?;
        tracing::info!("saved {}", path.display());
        let best = self.state.best.map(|best| best.step);
        self.checkpoints.rotate(Keep { limit: self.settings.save_total_limit, best })?;
        Ok(path)
    }

    fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            policy: &self.policy,
            reference: self.method.reference(),
            state: &self.state,
            history: &self.history,
            kept: self.kept.as_ref(),
            run_config: &self.run_config,
        }
    }

    /// Writes the final model into the output directory itself. `finish` sees the written folder before it is
    /// published and may add to it: it reads the model back, evaluates it and writes the model card. `None` where it was
    /// asked to stop meanwhile: nothing is published then.
    ///
    /// # Errors
    /// Fails where writing fails, or `finish` does.
    pub fn publish<T>(
        &mut self,
        finish: impl FnOnce(&Path) -> Result<T, TrainError>,
    ) -> Result<(Outcome, Option<T>), TrainError> {
        Phase::Save.begin(self.state.step);
        let pending = self.checkpoints.begin_final(self.state.step)?;
        (self.write_model)(pending.path(), self.policy.decoder.trained())?;
        match finish(pending.path()) {
            Ok(found) => {
                pending.publish(self.state.identity.facts())?;
                Ok((Outcome::Finished, Some(found)))
            }
            Err(error) => Ok((self.end_with(error)?, None)),
        }
    }
}
