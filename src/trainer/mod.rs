//! The training loop and what belongs to it.
//!
//! [`run`] is the loop: step, log, evaluate, save, stop. [`grpo`] and [`sft`] are the steps; [`policy`] is the model
//! they train. A step changes nothing before its update: interrupted anywhere, it is redone from its start.

mod error;
pub mod grpo;
pub mod phase;
pub mod policy;
pub mod prompts;
mod rollouts;
pub mod run;
mod save;
pub mod sft;
pub mod stop;

pub use error::TrainError;
pub use grpo::{Grpo, GrpoConfig};
pub use policy::{Policy, PolicyConfig};
pub use prompts::{PreparedPrompt, PreparedPrompts};
pub use run::{Method, Outcome, RunSettings, Trainer};
pub use save::{ModelWriter, restore};
pub use sft::{Example, ExampleConfig, Sft, SftConfig, prepare_examples};

use crate::checkpoint::SavedRollouts;
use crate::telemetry::{Console, StepFacts, StepMetrics};
use crate::text::FinishReason;

/// Where a run stands when a step begins.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The step that is made, from 1.
    pub step: u64,
    /// Data rows drawn so far.
    pub rows_drawn: u64,
    /// Tokens trained on so far.
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

/// A completion for `completions.jsonl`.
#[derive(Debug, Clone)]
pub struct LoggedCompletion {
    pub step: u64,
    pub prompt: String,
    pub completion: String,
    pub rewards: Vec<(String, Option<f64>)>,
    pub reward: Option<f64>,
    pub advantage: f64,
    pub finish_reason: FinishReason,
}
