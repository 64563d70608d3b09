//! A text as tokens: what is learned of it, what is kept for evaluation, how well a model predicts it.

use super::RecipeError;
use super::parts::{LoadedModel, check_device, load_model};
use crate::config::RunConfig;
use crate::data::{TextFile, load_text};
use crate::eval::{Perplexity, compute_perplexity};
use crate::text::Tokenizer;
use std::path::{Path, PathBuf};

/// The longest block where [`perplexity`] is left to choose: attention costs the square of it.
pub(super) const MAX_DEFAULT_BLOCK: usize = 1024;

/// The tokens of a training text.
#[derive(Debug, Clone)]
pub(super) struct Corpus {
    /// What is learned.
    pub train: Vec<u32>,
    /// The end of the text, which is not learned. Empty where `validation_fraction` is 0.
    pub validation: Vec<u32>,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

impl Corpus {
    /// Tokenises the text of `train_file` and splits it; each part holds a block at least.
    pub fn new(settings: &RunConfig, model: &LoadedModel, file: TextFile) -> Result<Self, RecipeError> {
        let (path, block_size) = (Path::new(&settings.train_file), settings.block_size);
        check_block_size(block_size, model)?;
        let mut train = tokenize(path, &file.text, &model.tokenizer)?;
        let share = (train.len() as f64 * settings.validation_fraction).ceil() as usize;
        let validation = train.split_off(train.len() - share.min(train.len()));
        let parts = [("training", &train), ("validation", &validation)];
        for (part, ids) in parts.into_iter().filter(|(part, _)| *part == "training" || share > 0) {
            if ids.len() <= block_size {
                return Err(RecipeError::TooShort { path: path.to_owned(), part, tokens: ids.len(), block_size });
            }
        }
        Ok(Self { train, validation, sha256: file.sha256 })
    }
}

fn check_block_size(block_size: usize, model: &LoadedModel) -> Result<(), RecipeError> {
    let context = model.config.max_position_embeddings;
    if block_size <= context { Ok(()) } else { Err(RecipeError::BlockSize { block_size, context }) }
}

/// The tokens of a text, which must spell all of it.
fn tokenize(path: &Path, text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, RecipeError> {
    let missing = tokenizer.missing_characters(text);
    let Some(first) = missing.first() else { return Ok(tokenizer.encode(text, false)?) };
    let line = text.split(*first).next().unwrap_or_default().matches('\n').count() + 1;
    Err(RecipeError::MissingCharacters { place: format!("{}:{line}", path.display()), characters: missing })
}

/// The tokens that samples begin with.
pub(super) fn sample_prompt(
    prompt: &str,
    tokenizer: &Tokenizer,
    training_text: &[u32],
) -> Result<Vec<u32>, RecipeError> {
    let missing = tokenizer.missing_characters(prompt);
    if !missing.is_empty() {
        return Err(RecipeError::MissingCharacters { place: "`sample_prompt`".to_owned(), characters: missing });
    }
    let mut ids = tokenizer.encode(if prompt.is_empty() { "\n" } else { prompt }, false)?;
    if ids.is_empty() {
        ids.extend(training_text.first());
    }
    Ok(ids)
}

/// What [`perplexity`] measures on.
#[derive(Debug, Clone)]
pub struct PerplexityOptions {
    /// A text file in UTF-8.
    pub data: PathBuf,
    /// Tokens of a block; `None`: the model's context, at most 1024. Longer blocks give lower figures, so compare models
    /// at the same one.
    pub block_size: Option<usize>,
}

/// How well a model predicts a text, of which every token but the first counts.
///
/// Of `settings` those of the model are read, and `max_tokens_per_micro_batch`, which bounds the memory.
///
/// # Errors
/// Fails where model or text cannot be read, where the model's tokenizer lacks characters of the text, and for blocks
/// beyond its context.
pub fn perplexity(settings: &RunConfig, options: &PerplexityOptions) -> Result<Perplexity, RecipeError> {
    let compute = check_device(settings)?;
    let model = load_model(&settings.model, settings.revision.as_deref(), settings.offline, None)?;
    let context = model.config.max_position_embeddings;
    let block_size = options.block_size.unwrap_or(context.min(MAX_DEFAULT_BLOCK));
    check_block_size(block_size, &model)?;
    let ids = tokenize(&options.data, &load_text(&options.data)?.text, &model.tokenizer)?;
    let (decoder, _) = model.decoder(&compute, false)?;
    let found = compute_perplexity(&decoder, &ids, block_size, settings.max_tokens_per_micro_batch)?;
    let (path, tokens) = (options.data.clone(), ids.len());
    found.ok_or(RecipeError::TooShort { path, part: "evaluated", tokens, block_size: 1 })
}
