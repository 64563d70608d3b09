//! Why a recipe could not be carried out.

use super::parts::PromptLimit;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::device::DeviceError;
use crate::error::{Diagnose, Exit};
use crate::eval::EvalError;
use crate::hub::HubError;
use crate::io::IoError;
use crate::model::ModelError;
use crate::reward::RewardError;
use crate::rollout::RolloutError;
use crate::telemetry::TelemetryError;
use crate::text::TextError;
use crate::trainer::TrainError;
use std::path::PathBuf;

/// Why a recipe could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// Every row was left out.
    #[error("{}: no row is left: {too_long} of {rows} prompts are longer than {limit}", path.display())]
    NoRows { path: PathBuf, rows: usize, too_long: usize, limit: PromptLimit },
    /// Not one of the examples fits.
    #[error("{}: no row is left: {left_out} are empty, longer than max_prompt_length or max_completion_length, or than the model's context", path.display())]
    NoExamples { path: PathBuf, left_out: usize },
    /// The tokenizer has more tokens than the model.
    #[error("the tokenizer has {tokenizer} tokens and the model's embedding only {model}")]
    Vocabulary { tokenizer: usize, model: usize },
    /// A number format that the device does not compute in.
    #[error("dtype = \"bf16\" needs a CUDA device")]
    Dtype,
    /// The model has no chat template and one is needed.
    #[error("{} has no chat template", folder.display())]
    NoChatTemplate { folder: PathBuf },
    /// One of several models could not be evaluated.
    #[error("{model}: {source}")]
    OfModel { model: String, source: Box<RecipeError> },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Reward(#[from] RewardError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl RecipeError {
    fn inner(&self) -> Option<&dyn Diagnose> {
        match self {
            Self::Config(error) => Some(error),
            Self::Checkpoint(error) => Some(error),
            Self::Data(error) => Some(error),
            Self::Device(error) => Some(error),
            Self::Eval(error) => Some(error),
            Self::Hub(error) => Some(error),
            Self::Io(error) => Some(error),
            Self::Model(error) => Some(error),
            Self::Reward(error) => Some(error),
            Self::Rollout(error) => Some(error),
            Self::Telemetry(error) => Some(error),
            Self::Text(error) => Some(error),
            Self::Train(error) => Some(error),
            Self::OfModel { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}

impl Diagnose for RecipeError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoRows { limit: PromptLimit::Context { .. }, .. } => {
                "Shorten the prompts, or take a model with a longer context."
            }
            Self::NoRows { limit: PromptLimit::Setting(_), .. } => "Raise `max_prompt_length`, or shorten the prompts.",
            Self::NoExamples { .. } => "Raise `max_prompt_length` and `max_completion_length`.",
            Self::Vocabulary { .. } => "Take tokenizer and weights from the same model.",
            Self::Dtype => "Leave `dtype` at \"auto\", which is f32 on the CPU.",
            Self::NoChatTemplate { .. } => "Leave out --chat, or give a template with --chat-template.",
            _ => return self.inner().and_then(Diagnose::hint),
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoRows { .. } | Self::NoExamples { .. } => Exit::Data,
            Self::Dtype | Self::NoChatTemplate { .. } => Exit::Usage,
            Self::Vocabulary { .. } => Exit::Model,
            _ => self.inner().map_or(Exit::Failed, Diagnose::exit),
        }
    }
}
