//! Why a recipe could not be carried out.

use super::PushError;
use super::parts::PromptLimit;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::{DataError, RowPlace};
use crate::device::{self, DeviceError};
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
    /// Not one of the pairs fits.
    #[error("{}: no pair is left: {left_out} are empty, longer than {max_length} tokens, or of equal tokens", path.display())]
    NoPairs { path: PathBuf, left_out: usize, max_length: usize },
    /// The tokenizer has more tokens than the model.
    #[error("the tokenizer has {tokenizer} tokens and the model's embedding only {model}")]
    Vocabulary { tokenizer: usize, model: usize },
    /// A number format that the device does not compute in.
    #[error("dtype = \"{dtype}\" needs a CUDA device")]
    Dtype { dtype: &'static str },
    /// A block does not fit into the model's context.
    #[error("block_size = {block_size} is more than the model's context of {context} tokens")]
    BlockSize { block_size: usize, context: usize },
    /// A text, or a part of it, does not fill a block.
    #[error("{}: the {part} part has {tokens} tokens, and a block needs {}", path.display(), block_size + 1)]
    TooShort { path: PathBuf, part: &'static str, tokens: usize, block_size: usize },
    /// A text has characters that the tokenizer would leave out.
    #[error("{place}: the tokenizer does not have {}", list(characters))]
    MissingCharacters { place: String, characters: Vec<char> },
    /// Samples would begin with more than the model can read.
    #[error("sample_prompt has {tokens} tokens, and the model's context is {context}")]
    SamplePrompt { tokens: usize, context: usize },
    /// A conversation where the tokenizer knows plain text only.
    #[error("{place}: a conversation, but `tokenizer = \"char\"` knows nothing of chat templates")]
    Conversation { place: Box<RowPlace> },
    /// The folder for the files of a new model holds something else.
    #[error("{} holds {file}, so the files of the new model are not written there", folder.display())]
    ForeignFolder { folder: PathBuf, file: String },
    /// A new model's file is not what the run began with.
    #[error("{} is not what `[architecture]` and the training data give: the run began with another model", path.display())]
    OtherBase { path: PathBuf },
    /// The model has no chat template and one is needed.
    #[error("{} has no chat template", folder.display())]
    NoChatTemplate { folder: PathBuf },
    /// An adapter does not say which model it belongs to.
    #[error("{} names no base model (base_model_name_or_path)", folder.join("adapter_config.json").display())]
    NoBase { folder: PathBuf },
    /// The base model of an adapter cannot be found.
    #[error("the base model {base} of the adapter in {}: {source}", folder.display())]
    Base { folder: PathBuf, base: String, source: Box<HubError> },
    /// A run that would train a model is given an adapter.
    #[error("{} is an adapter, and the settings have no `[lora]` table", folder.display())]
    AdapterGiven { folder: PathBuf },
    /// The adapter that a run goes on with is not what the settings ask for.
    #[error("`{key}` of `[lora]` is {given}, and the adapter in {} was made with {there}", folder.display())]
    OtherLora { folder: PathBuf, key: &'static str, given: String, there: String },
    /// A model is not an adapter, and only those can be merged.
    #[error("{} is no adapter: it has no adapter_config.json", folder.display())]
    NotAnAdapter { folder: PathBuf },
    /// A merged model would overwrite what it is made of.
    #[error("{} holds what is to be merged", output.display())]
    MergeOver { output: PathBuf },
    /// The rows of a linear map are no whole number of blocks.
    #[error("{map} cannot be quantised: its rows are no whole number of blocks of 32 values")]
    Blocks { map: String },
    /// No recipe of that name comes with the program.
    #[error("there is no recipe called `{name}`")]
    NoRecipe { name: String, near: Option<String> },
    /// A recipe would replace a file.
    #[error("{} exists", path.display())]
    RecipeExists { path: PathBuf },
    /// One of several models could not be evaluated.
    #[error("{model}: {source}")]
    OfModel { model: String, source: Box<RecipeError> },
    /// The run is done and its model is not on the Hub.
    #[error("the model is in {}, but it was not pushed: {source}", folder.display())]
    NotPushed { folder: PathBuf, command: String, source: Box<RecipeError> },
    #[error(transparent)]
    Push(#[from] PushError),
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

/// The first ten characters of a list, and how many more there are.
fn list(characters: &[char]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = characters.iter().take(SHOWN).map(|c| format!("{c:?}")).collect();
    match characters.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more characters", shown.join(", ")),
    }
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
            Self::OfModel { source, .. } | Self::NotPushed { source, .. } => Some(source.as_ref()),
            Self::Push(error) => Some(error),
            _ => None,
        }
    }
}

impl Diagnose for RecipeError {
    fn hint(&self) -> Option<String> {
        if let Self::Tensor(error) = self {
            return device::hint(
                error,
                "The model does not fit: `candlewick train --dry-run` estimates what a run takes; `beta = 0` saves the \
                 reference model.",
            );
        }
        if let Self::NotPushed { command, source, .. } = self {
            let first = source.hint().map_or_else(String::new, |hint| format!("{hint} "));
            return Some(format!("{first}Then: {command}"));
        }
        if let Self::NoRecipe { near: Some(near), .. } = self {
            return Some(format!("Did you mean `{near}`? `candlewick ls` lists all of them."));
        }
        let text = match self {
            Self::NoRecipe { .. } => "`candlewick ls` lists all of them.",
            Self::RecipeExists { .. } => "Name another file, or replace it with --force.",
            Self::NoRows { limit: PromptLimit::Context { .. }, .. } => {
                "Shorten the prompts, or take a model with a longer context."
            }
            Self::NoRows { limit: PromptLimit::Setting(_), .. } => "Raise `max_prompt_length`, or shorten the prompts.",
            Self::NoPairs { .. } => {
                "Raise `max_prompt_length` and `max_completion_length`, which bound prompt and completion together, or take a \
                 model with a longer context."
            }
            Self::NoExamples { .. } => "Raise `max_prompt_length` and `max_completion_length`.",
            Self::Vocabulary { .. } => "Take tokenizer and weights from the same model.",
            Self::Dtype { .. } => "Leave `dtype` at \"auto\", which is f32 on the CPU.",
            Self::BlockSize { .. } | Self::SamplePrompt { .. } => {
                "Set it to at most the context, or take a model with a longer one."
            }
            Self::TooShort { .. } => "Lower `block_size`, change `validation_fraction`, or give a longer text.",
            Self::MissingCharacters { .. } => {
                "Replace these characters, or take a model that has them (`tokenizer = \"byte\"` holds any text)."
            }
            Self::Conversation { .. } => "Set `tokenizer = \"byte\"` in `[architecture]`, and `chat_template`.",
            Self::ForeignFolder { .. } => "Choose another `output_dir`, or move what is there.",
            Self::OtherBase { .. } => "Use the settings and data of the checkpoint, or another `output_dir`.",
            Self::NoBase { .. } => "Add the folder or the Hub id of the model that it was trained beside.",
            Self::Base { source, .. } => {
                return source.hint().or(Some("Correct base_model_name_or_path in adapter_config.json.".to_owned()));
            }
            Self::AdapterGiven { .. } => {
                "Add a `[lora]` table to train it further, or merge it first (`candlewick merge`) to train all weights."
            }
            Self::OtherLora { .. } => "Leave the key out: an adapter that exists keeps what it was made with.",
            Self::NotAnAdapter { .. } => "Give the folder of an adapter; a model needs no merging.",
            Self::MergeOver { .. } => "Name another folder for the merged model.",
            Self::Blocks { .. } => "Leave `quantize_base` out of `[lora]`.",
            Self::NoChatTemplate { .. } => "Leave out --chat, or give a template with --chat-template.",
            _ => return self.inner().and_then(Diagnose::hint),
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoRows { .. }
            | Self::NoExamples { .. }
            | Self::NoPairs { .. }
            | Self::TooShort { .. }
            | Self::MissingCharacters { .. }
            | Self::Conversation { .. } => Exit::Data,
            Self::Dtype { .. }
            | Self::BlockSize { .. }
            | Self::SamplePrompt { .. }
            | Self::ForeignFolder { .. }
            | Self::OtherBase { .. }
            | Self::AdapterGiven { .. }
            | Self::OtherLora { .. }
            | Self::NotAnAdapter { .. }
            | Self::Blocks { .. }
            | Self::MergeOver { .. }
            | Self::NoRecipe { .. }
            | Self::RecipeExists { .. }
            | Self::NoChatTemplate { .. } => Exit::Usage,
            Self::Vocabulary { .. } | Self::NoBase { .. } => Exit::Model,
            Self::Base { source, .. } => source.exit(),
            _ => self.inner().map_or(Exit::Failed, Diagnose::exit),
        }
    }
}
