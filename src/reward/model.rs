//! The score of a learned reward model: a Hugging Face sequence classifier with one label.
//!
//! The folder has a tokenizer and maybe a chat template of its own; a text is read as TRL's GRPO trainer reads it (see
//! [`ScoredRenderer`]). The model is found and read by [`Reward::prepare`], before a run's first step.

use super::error::RewardError;
use super::{Reward, RewardInput};
use crate::device::Compute;
use crate::error::Diagnose;
use crate::hub::resolve;
use crate::model::{Decoder, ModelConfig, Params, Task, load_weights, score_groups};
use crate::text::{ChatTemplate, Prompt, PromptRenderer, ScoredRenderer, TextError, Tokenizer, pad_id};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which reward model, and how it is run.
#[derive(Debug, Clone, Default)]
pub struct ModelRewardConfig {
    /// A folder or a Hub id.
    pub model: String,
    /// Branch, tag or commit of a Hub id.
    pub revision: Option<String>,
    /// No network access.
    pub offline: bool,
    /// Further variables of the model's chat template.
    pub chat_template_kwargs: Map<String, Value>,
    /// Tokens that are run at once.
    pub max_tokens: usize,
}

/// A reward model. Scores have no bounds; of two completions of a prompt the better one has the higher score.
#[derive(Debug)]
pub struct ModelReward {
    config: ModelRewardConfig,
    loaded: OnceLock<Loaded>,
    has_warned: AtomicBool,
}

#[derive(Debug)]
struct Loaded {
    decoder: Decoder,
    renderer: ScoredRenderer,
}

/// Everything of a reward model but its weights.
struct Opened {
    folder: PathBuf,
    config: ModelConfig,
    renderer: ScoredRenderer,
}

const NAME: &str = "model";

impl ModelReward {
    /// The reward of a model that [`Reward::prepare`] is to find and read.
    #[must_use]
    pub fn new(config: ModelRewardConfig) -> Self {
        Self { config, loaded: OnceLock::new(), has_warned: AtomicBool::new(false) }
    }

    /// The reward of the model in `folder`, read at once.
    ///
    /// # Errors
    /// Fails where the folder holds no reward model, or its files are damaged.
    pub fn load(folder: &Path, compute: &Compute) -> Result<Self, RewardError> {
        let model = folder.to_string_lossy().into_owned();
        let config = ModelRewardConfig { model, offline: true, max_tokens: 4096, ..ModelRewardConfig::default() };
        let reward = Self::new(config);
        reward.prepare(compute)?;
        Ok(reward)
    }

    /// Scores completions; those of a prompt stand together. A score depends on its completion alone.
    ///
    /// # Errors
    /// The model was not prepared, a completion cannot be rendered or run, or has no tokens.
    pub fn score_all(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<f64>, RewardError> {
        let Some(loaded) = self.loaded.get() else {
            let (reason, line) = ("it was not prepared".to_owned(), inputs.first().map_or(0, |input| input.line));
            return Err(RewardError::Failed { reward: NAME.to_owned(), line, reason });
        };
        let texts = inputs.iter().map(|input| self.read(loaded, input)).collect::<Result<Vec<_>, _>>()?;
        let mut groups: Vec<Vec<&[u32]>> = Vec::new();
        let mut prompt = None;
        for (input, text) in inputs.iter().zip(&texts) {
            if prompt != Some(input.prompt) || groups.is_empty() {
                groups.push(Vec::new());
                prompt = Some(input.prompt);
            }
            if let Some(group) = groups.last_mut() {
                group.push(text);
            }
        }
        score_groups(&loaded.decoder, &groups, self.config.max_tokens).map_err(|error| {
            let (reason, line) = (error.to_string(), inputs.first().map_or(0, |input| input.line));
            RewardError::Failed { reward: NAME.to_owned(), line, reason }
        })
    }

    /// The tokens that are scored: of a text beyond the model's context the last ones, which hold the completion.
    fn read(&self, loaded: &Loaded, input: &RewardInput<'_>) -> Result<Vec<u32>, RewardError> {
        let failed = |reason: String| RewardError::Failed { reward: NAME.to_owned(), line: input.line, reason };
        let prompt = match input.messages {
            Some(messages) => Prompt::Messages(messages.to_vec()),
            None => Prompt::Text(input.prompt.to_owned()),
        };
        let mut ids = loaded.renderer.render(&prompt, input.completion).map_err(|error| match error {
            TextError::NoChatTemplate => RewardError::NoTemplate { model: self.config.model.clone(), line: input.line },
            other => failed(other.to_string()),
        })?;
        if ids.is_empty() {
            return Err(failed("prompt and completion have no tokens together".to_owned()));
        }
        let limit = loaded.decoder.config().max_position_embeddings;
        if ids.len() > limit {
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the reward model {} reads {limit} tokens: of longer texts it sees the end (line {} has {})",
                    self.config.model,
                    input.line,
                    ids.len()
                );
            }
            ids.drain(..ids.len() - limit);
        }
        Ok(ids)
    }

    fn open(&self) -> Result<Opened, RewardError> {
        let ModelRewardConfig { model, revision, offline, chat_template_kwargs, .. } = &self.config;
        let found = resolve(model, revision.as_deref(), *offline, &|message| tracing::info!("{message}"));
        let folder = found.map_err(|error| self.of_model(error))?.folder;
        let config = ModelConfig::load_as(&folder, Some(Task::SequenceClassification));
        let config = config.map_err(|error| self.of_model(error))?;
        config.notices.iter().for_each(|notice| tracing::warn!("{model}: {notice}"));
        let tokenizer = Tokenizer::load(&folder).map_err(|error| self.of_model(error))?;
        if tokenizer.vocab_size() > config.vocab_size {
            let (tokenizer, rows) = (tokenizer.vocab_size(), config.vocab_size);
            return Err(RewardError::Vocabulary { model: model.clone(), tokenizer, rows });
        }
        let template = ChatTemplate::load(&folder, None).map_err(|error| self.of_model(error))?;
        let pad_id = pad_id(&folder, &tokenizer).map_err(|error| self.of_model(error))?;
        let renderer = PromptRenderer::new(tokenizer, template).with_template_kwargs(chat_template_kwargs.clone());
        Ok(Opened { folder, config, renderer: ScoredRenderer::new(renderer, pad_id) })
    }

    fn of_model(&self, reason: impl Diagnose) -> RewardError {
        RewardError::Model { model: self.config.model.clone(), reason: Box::new(reason) }
    }
}

impl Reward for ModelReward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self) -> Result<(), RewardError> {
        if self.loaded.get().is_some() { Ok(()) } else { self.open().map(drop) }
    }

    fn prepare(&self, compute: &Compute) -> Result<(), RewardError> {
        if self.loaded.get().is_some() {
            return Ok(());
        }
        let Opened { folder, config, renderer } = self.open()?;
        let (tensors, _) = load_weights(&folder, &config).map_err(|error| self.of_model(error))?;
        let params = Params::new(tensors, compute, false)
            .map_err(|error| RewardError::Memory { model: self.config.model.clone(), reason: error.to_string() })?;
        let decoder = Decoder::new(config, params).map_err(|error| self.of_model(error))?;
        // Whoever came first has read the same files.
        let _ = self.loaded.set(Loaded { decoder, renderer });
        Ok(())
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(self.score_all(std::slice::from_ref(input))?.into_iter().next())
    }

    fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(self.score_all(inputs)?.into_iter().map(Some).collect())
    }
}
