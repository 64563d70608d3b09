//! Names for what a step is doing, as debug-level log lines: `phase=rollout step=3`.
//!
//! `RUST_LOG=candlewick::trainer::phase=debug` shows them with their times. The crash tests read them to know where a
//! killed run died, so the text is kept stable.

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Completions are being sampled.
    Rollout,
    /// Completions are being scored.
    Reward,
    /// Loss and gradients are being computed.
    Backward,
    /// The weights are being updated.
    Optimizer,
    /// The model is being evaluated.
    Evaluate,
    /// A checkpoint or the final model is being written.
    Save,
}

impl Phase {
    /// The name in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::Reward => "reward",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Evaluate => "evaluate",
            Self::Save => "save",
        }
    }

    /// Says that this phase of `step` begins; the phase before it has ended.
    pub fn begin(self, step: u64) {
        tracing::debug!("phase={} step={step}", self.name());
    }
}
