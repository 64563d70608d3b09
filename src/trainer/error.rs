//! Why a run could not go on.

use crate::algorithm::AlgorithmError;
use crate::checkpoint::CheckpointError;
use crate::data::RowPlace;
use crate::device;
use crate::error::{Diagnose, Exit};
use crate::io::IoError;
use crate::reward::RewardError;
use crate::rollout::RolloutError;
use crate::telemetry::{NonFinite, TelemetryError};
use crate::text::TextError;

/// Why a run could not go on. The last checkpoint is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A row of the data could not be rendered or tokenised.
    #[error("{place}: {source}")]
    Row { place: Box<RowPlace>, source: Box<TextError> },
    /// Evaluation or export failed.
    #[error("{0}")]
    Other(Box<dyn Diagnose>),
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    #[error(transparent)]
    Algorithm(#[from] AlgorithmError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Reward(#[from] RewardError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// Wraps an error of a part that the recipe plugged in.
    pub fn other(error: impl Diagnose) -> Self {
        Self::Other(Box::new(error))
    }

    /// The wrapped error, where it knows what to do.
    fn inner(&self) -> Option<&dyn Diagnose> {
        match self {
            Self::Row { source, .. } => Some(source.as_ref()),
            Self::Other(error) => Some(error.as_ref()),
            Self::NonFinite(error) => Some(error),
            Self::Checkpoint(error) => Some(error),
            Self::Io(error) => Some(error),
            Self::Reward(error) => Some(error),
            Self::Rollout(error) => Some(error),
            Self::Telemetry(error) => Some(error),
            Self::Text(error) => Some(error),
            Self::Algorithm(_) | Self::Tensor(_) => None,
        }
    }
}

impl Diagnose for TrainError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Tensor(error) => device::hint(
                error,
                "Halve `max_tokens_per_micro_batch` as often as it takes, or set `gradient_checkpointing = true`: neither \
                 changes the result.",
            ),
            other => other.inner().and_then(Diagnose::hint),
        }
    }

    fn exit(&self) -> Exit {
        self.inner().map_or(Exit::Failed, Diagnose::exit)
    }
}
