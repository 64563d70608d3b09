//! What a run starts from: the model, named or made from nothing, and its training data.

use super::RecipeError;
use super::base::BaseFolder;
use super::corpus::Corpus;
use super::parts::{LoadedModel, load_model, load_model_as};
use super::rows::TrainingRows;
use crate::config::{Algorithm, DpoPairs, RunConfig, TokenizerKind};
use crate::data::{RowKind, TextFile, load_text};
use crate::model::Task;
use crate::text::Prompt;
use std::path::Path;

/// The training data as the algorithm takes them.
#[derive(Debug)]
pub(super) enum TrainingData {
    Rows(TrainingRows),
    Text(Corpus),
}

impl TrainingData {
    /// SHA-256 of the file, in hex; of several that of theirs.
    pub fn sha256(&self) -> String {
        match self {
            Self::Rows(rows) => rows.sha256(),
            Self::Text(corpus) => corpus.sha256.clone(),
        }
    }

    /// The commit of the data set, where it came from the Hub.
    pub fn revision(&self) -> Option<String> {
        match self {
            Self::Rows(rows) => rows.revision(),
            Self::Text(_) => None,
        }
    }
}

/// Model and training data.
#[derive(Debug)]
pub(super) struct Start {
    pub model: LoadedModel,
    pub data: TrainingData,
    /// The files of a model that is made from nothing; `model` is read from them.
    pub base: Option<BaseFolder>,
}

/// The file before it is tokenised.
enum File {
    Rows(TrainingRows),
    Text(TextFile),
}

impl Start {
    /// Finds or makes the model and reads the training file; no weights are read and nothing is written that stays.
    pub fn new(settings: &RunConfig) -> Result<Self, RecipeError> {
        let (model, file, base) = match &settings.architecture {
            None => {
                let model = find_model(settings)?;
                (model, read(settings)?, None)
            }
            Some(architecture) => {
                let file = read(settings)?;
                if architecture.tokenizer == Some(TokenizerKind::Char) {
                    require_plain(&file)?;
                }
                let base = BaseFolder::new(architecture, texts(&file))?;
                let folder = base.path().to_string_lossy().into_owned();
                let model = load_model(&folder, None, true, settings.chat_template.as_deref())?;
                (model, file, Some(base))
            }
        };
        let data = match file {
            File::Rows(rows) => TrainingData::Rows(rows),
            File::Text(text) => TrainingData::Text(Corpus::new(settings, &model, text)?),
        };
        Ok(Self { model, data, base })
    }
}

/// The start model that is named, without its weights.
pub(super) fn find_model(settings: &RunConfig) -> Result<LoadedModel, RecipeError> {
    let (revision, template) = (settings.revision.as_deref(), settings.chat_template.as_deref());
    // A reward model starts from a language model or from another reward model.
    let is_reward = settings.algorithm == Algorithm::Reward;
    let task = (!is_reward).then_some(Task::CausalLm);
    let mut model = load_model_as(&settings.model, revision, settings.offline, template, task)?;
    if is_reward {
        model.config.task = Task::SequenceClassification;
    }
    Ok(model)
}

fn read(settings: &RunConfig) -> Result<File, RecipeError> {
    let kind = match settings.algorithm {
        Algorithm::Pretrain => return Ok(File::Text(load_text(Path::new(&settings.train_file))?)),
        _ => row_kind(settings),
    };
    Ok(File::Rows(TrainingRows::load(settings, kind)?))
}

/// What a training row must have.
pub(super) fn row_kind(settings: &RunConfig) -> RowKind {
    match settings.algorithm {
        Algorithm::Sft => RowKind::Completion,
        Algorithm::Reward => RowKind::Pair,
        Algorithm::Dpo if settings.dpo_pairs == DpoPairs::File => RowKind::Pair,
        _ => RowKind::Prompt,
    }
}

/// Every text that the tokenizer must know.
fn texts(file: &File) -> Vec<&str> {
    match file {
        File::Text(file) => vec![&file.text],
        File::Rows(rows) => {
            let prompts = rows.all().filter_map(|row| match &row.prompt {
                Prompt::Text(text) => Some(text.as_str()),
                Prompt::Messages(_) => None,
            });
            prompts.chain(rows.all().filter_map(|row| row.completion())).collect()
        }
    }
}

/// A conversation is written out by a template, whose characters are not in the data.
fn require_plain(file: &File) -> Result<(), RecipeError> {
    let File::Rows(rows) = file else { return Ok(()) };
    match rows.all().find(|row| matches!(row.prompt, Prompt::Messages(_))) {
        None => Ok(()),
        Some(row) => Err(RecipeError::Conversation { place: row.place.clone().into() }),
    }
}
