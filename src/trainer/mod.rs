//! The training loop and what belongs to it.
//!
//! [`run`] is the loop: step, log, evaluate, save, stop. [`policy_gradient`], [`dpo`], [`reward`] and [`sft`] are the steps;
//! [`policy`] is the model they train. A step changes nothing before its update: interrupted anywhere, it is redone from its start.

mod compare;
pub mod dpo;
mod dynamic_sampling;
mod error;
#[cfg(all(test, any(emulation, feature = "cuda")))]
mod gpu_tests;
pub mod phase;
pub mod policy;
pub mod policy_gradient;
pub mod prompts;
mod reference;
pub mod reward;
mod rollouts;
mod rows;
pub mod run;
mod save;
pub mod sft;
pub mod stop;

pub use dpo::{Dpo, DpoStepConfig, Pair, PairSource, prepare_pairs};
pub use error::TrainError;
pub use policy::{Policy, PolicyConfig, TokenGrads};
pub use policy_gradient::{PolicyGradient, PolicyGradientConfig};
pub use prompts::{LeftOut, Misfit, PreparedPrompt, PreparedPrompts};
pub use reference::{Reference, ReferenceSync};
pub use reward::{RankedPair, RewardTraining, RewardTrainingConfig, compute_ranking, prepare_ranked_pairs};
pub use rollouts::{RolloutConfig, RolloutSource};
pub use run::{Evaluated, Method, Outcome, RunSettings, Trainer};
pub use save::{ModelWriter, restore, restore_reference};
pub use sft::{Example, ExampleConfig, Sft, SftConfig, prepare_examples};

use crate::checkpoint::SavedRollouts;
use crate::telemetry::{Console, StepFacts, StepMetrics};
use crate::text::FinishReason;
use std::time::Instant;

/// Where a run stands when a step begins.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The step that is made, from 1.
    pub step: u64,
    /// Data rows drawn so far.
    pub rows_drawn: u64,
    /// Tokens of the steps so far, prompts and completions.
    pub num_tokens: u64,
    /// Steps already made on the kept rollouts.
    pub iteration: u64,
    /// Rollouts that are used again.
    pub kept: Option<&'a SavedRollouts>,
    pub console: &'a Console,
}

impl StepContext<'_> {
    fn begin(&self, phase: phase::Phase) {
        phase.begin(self.step);
    }
}

/// What a step leaves behind: the counters after it, and what to log.
#[derive(Debug, Default)]
pub struct StepOutput {
    pub rows_drawn: u64,
    pub num_tokens: u64,
    pub iteration: u64,
    /// Why there was nothing to learn from; weights and optimizer are then as they were. `None`: an update was made.
    pub idle: Option<&'static str>,
    /// Rollouts that the next step uses again.
    pub kept: Option<SavedRollouts>,
    pub metrics: StepMetrics,
    pub completions: Vec<LoggedCompletion>,
    /// What the watch looks at; `None` where nothing was sampled.
    pub facts: Option<StepFacts>,
}

impl StepOutput {
    fn after(at: &StepContext<'_>) -> Self {
        Self { rows_drawn: at.rows_drawn, num_tokens: at.num_tokens, ..Self::default() }
    }
}

/// What every step logs of itself.
struct StepLog {
    /// Loss and update; absent where there was nothing to learn from.
    loss: Option<f64>,
    update: Option<policy::Update>,
    /// Rows of the data set.
    num_rows: usize,
    trained_tokens: usize,
    train_secs: f64,
    started: Instant,
}

impl StepOutput {
    /// Adds the metrics that every step has; the counters of the output are those after the step.
    fn log_step(&mut self, log: &StepLog) {
        let metrics = &mut self.metrics;
        if let Some(loss) = log.loss {
            metrics.gauge("loss", loss);
        }
        if let Some(update) = log.update {
            metrics.gauge("grad_norm", update.grad_norm);
            metrics.gauge("learning_rate", update.learning_rate);
        }
        metrics.gauge("epoch", self.rows_drawn as f64 / log.num_rows.max(1) as f64);
        metrics.count("num_tokens", self.num_tokens);
        let step_time = log.started.elapsed().as_secs_f64();
        metrics.gauge("step_time", step_time);
        metrics.gauge("perf/train_secs", log.train_secs);
        metrics.gauge("perf/tokens_per_sec", log.trained_tokens as f64 / step_time);
    }
}

/// A completion for `completions.jsonl`.
#[derive(Debug, Clone)]
pub struct LoggedCompletion {
    pub step: u64,
    pub prompt: String,
    pub completion: String,
    pub rewards: Vec<(String, Option<f64>)>,
    pub reward: Option<f64>,
    pub advantage: Option<f64>,
    pub finish_reason: FinishReason,
}
