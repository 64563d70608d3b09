//! The parts that training, evaluation and generation have in common.

use super::RecipeError;
use crate::config::{Algorithm, ComputeDtype, EvalGrader, RunConfig};
use crate::device::{self, Compute};
use crate::eval::Grader;
use crate::hub::{Resolved, resolve};
use crate::model::adapter::{init_adapter, load_adapter};
use crate::model::peft::PEFT_CONFIG;
use crate::model::{
    Adapter, Decoder, ModelConfig, Param, Params, PeftConfig, SavedDtype, Task, init_weights, load_reward_weights,
    load_weights, load_weights_with,
};
use crate::ops::quantized::QuantFormat;
use crate::reward::{ExactMatch, LastInteger, WeightedRewards};
use crate::rollout::SamplingConfig;
use crate::text::{ChatTemplate, PromptRenderer, StopRules, Tokenizer, eos_set};
use crate::trainer::{ExampleConfig, PreparedPrompts};
use candle_core::DType;
use std::path::{Path, PathBuf};

/// A model folder without its weights: everything that is cheap to read and worth checking first.
#[derive(Debug)]
pub struct LoadedModel {
    /// The folder, and where it came from; of an adapter, those of its base model.
    pub resolved: Resolved,
    /// The adapter that was named, where it was one.
    pub adapter: Option<AdapterFolder>,
    /// What config.json says.
    pub config: ModelConfig,
    /// The tokenizer of the folder.
    pub tokenizer: Tokenizer,
    /// The chat template that was given, else the folder's own.
    pub template: Option<ChatTemplate>,
    /// Tokens that end a completion, sorted.
    pub eos_ids: Vec<u32>,
}

/// An adapter on this machine.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Where its weights are.
    pub folder: PathBuf,
    /// What its `adapter_config.json` says.
    pub config: PeftConfig,
}

/// Finds a model (a folder or a Hub id), or the base model of an adapter, and reads its configuration, tokenizer and chat template.
///
/// # Errors
/// Fails where the model cannot be found or is not one of the supported kind.
pub fn load_model(
    model: &str,
    revision: Option<&str>,
    offline: bool,
    chat_template: Option<&str>,
) -> Result<LoadedModel, RecipeError> {
    load_model_as(model, revision, offline, chat_template, Some(Task::CausalLm))
}

/// As [`load_model`], of a model for `task`; `None`: for any.
pub(super) fn load_model_as(
    model: &str,
    revision: Option<&str>,
    offline: bool,
    chat_template: Option<&str>,
    task: Option<Task>,
) -> Result<LoadedModel, RecipeError> {
    let find = |model: &str, revision| resolve(model, revision, offline, &|message| tracing::info!("{message}"));
    let mut resolved = find(model, revision)?;
    let mut adapter = None;
    if resolved.folder.join(PEFT_CONFIG).exists() {
        let (folder, config) = (resolved.folder.clone(), PeftConfig::load(&resolved.folder)?);
        let base = config.base_in(&folder).ok_or_else(|| RecipeError::NoBase { folder: folder.clone() })?;
        let failed = |source| {
            let (folder, base, source) = (folder.clone(), base.clone(), Box::new(source));
            RecipeError::Base { folder, base, source }
        };
        resolved = find(&base, config.revision.as_deref()).map_err(failed)?;
        adapter = Some(AdapterFolder { folder, config });
    }
    let config = ModelConfig::load_as(&resolved.folder, task)?;
    config.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    let tokenizer = Tokenizer::load(&resolved.folder)?;
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(RecipeError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: config.vocab_size });
    }
    let template = ChatTemplate::load(&resolved.folder, chat_template)?;
    let eos_ids = eos_set(&resolved.folder, &tokenizer)?;
    Ok(LoadedModel { resolved, adapter, config, tokenizer, template, eos_ids })
}

impl LoadedModel {
    /// Reads the weights, those of an adapter too. With `trainable` they get gradient buffers; of an adapted model only
    /// those of the adapter. Also the dtype that the model's weights were saved in.
    ///
    /// # Errors
    /// Fails where the weight files are damaged or not those of the configuration.
    pub fn decoder(&self, compute: &Compute, trainable: bool) -> Result<(Decoder, SavedDtype), RecipeError> {
        let Some(AdapterFolder { folder, config }) = &self.adapter else {
            let (tensors, saved) = load_weights(&self.resolved.folder, &self.config)?;
            let params = Params::new(tensors, compute, trainable)?;
            return Ok((Decoder::new(self.config.clone(), params)?, saved));
        };
        let (decoder, saved) = self.frozen_decoder(compute, None)?;
        let (maps, tensors) = load_adapter(folder, config, &self.config)?;
        let adapter = Adapter::new(config, maps, tensors, compute, trainable)?;
        Ok((decoder.with_adapter(adapter)?, saved))
    }

    /// The model that an adapter stands beside, its linear maps in `format` where one is given.
    fn frozen_decoder(
        &self,
        compute: &Compute,
        format: Option<QuantFormat>,
    ) -> Result<(Decoder, SavedDtype), RecipeError> {
        let convert = |tensor| Param::frozen(tensor, compute, format);
        let folder = &self.resolved.folder;
        let (params, saved): (Vec<_>, _) = if compute.device.is_cpu() {
            load_weights_with(folder, &self.config, convert)?
        } else {
            // A GPU is used from one thread.
            let (tensors, saved) = load_weights(folder, &self.config)?;
            (tensors.into_iter().map(convert).collect(), saved)
        };
        let params = Params::of(params.into_iter().collect::<Result<_, _>>()?);
        Ok((Decoder::new(self.config.clone(), params)?, saved))
    }

    /// Reads the weights, as they are or rounded to a format, and puts the adapter to train beside them, which alone is
    /// trainable: that of the folder, else a new one, drawn from the seed.
    ///
    /// # Errors
    /// As [`LoadedModel::decoder`]; [`crate::model::ModelError::TargetModules`].
    pub fn with_trained_adapter(
        &self,
        config: &PeftConfig,
        format: Option<QuantFormat>,
        seed: u64,
        compute: &Compute,
    ) -> Result<Decoder, RecipeError> {
        let (maps, tensors) = if let Some(AdapterFolder { folder, config }) = &self.adapter {
            load_adapter(folder, config, &self.config)?
        } else {
            let maps = config.maps(&self.config)?;
            let drawn = init_adapter(&maps, seed);
            (maps, drawn)
        };
        let adapter = Adapter::new(config, maps, tensors, compute, true)?;
        Ok(self.frozen_decoder(compute, format)?.0.with_adapter(adapter)?)
    }

    /// As [`LoadedModel::decoder`], of a reward model: a language model gets a score head drawn from the seed.
    ///
    /// # Errors
    /// As [`LoadedModel::decoder`].
    pub fn reward_decoder(&self, seed: u64, compute: &Compute) -> Result<(Decoder, SavedDtype), RecipeError> {
        let (tensors, saved) = load_reward_weights(&self.resolved.folder, seed)?;
        let params = Params::new(tensors, compute, true)?;
        Ok((Decoder::new(self.config.clone(), params)?, saved))
    }

    /// A decoder with weights drawn from the seed; with `trainable`, they get gradient buffers.
    ///
    /// # Errors
    /// Fails where the tensors cannot be allocated.
    pub fn random_decoder(&self, seed: u64, compute: &Compute, trainable: bool) -> Result<Decoder, RecipeError> {
        let params = Params::new(init_weights(&self.config, seed), compute, trainable)?;
        Ok(Decoder::new(self.config.clone(), params)?)
    }

    /// The renderer of prompts; `settings` bring the system prompt and the template's arguments.
    #[must_use]
    pub fn renderer(&self, settings: &RunConfig) -> PromptRenderer {
        PromptRenderer::new(self.tokenizer.clone(), self.template.clone())
            .with_system_prompt(settings.system_prompt.clone())
            .with_template_kwargs(settings.chat_template_kwargs.clone())
    }

    /// When completions end.
    #[must_use]
    pub fn stop_rules(&self, stop_strings: &[String], max_completion_length: usize) -> StopRules {
        StopRules { eos_ids: self.eos_ids.clone(), stop_strings: stop_strings.to_vec(), max_completion_length }
    }
}

/// How the settings say that tokens are drawn.
pub(super) fn sampling(settings: &RunConfig) -> SamplingConfig {
    SamplingConfig {
        temperature: settings.temperature as f32,
        top_p: settings.top_p as f32,
        top_k: settings.top_k,
        min_p: settings.min_p.map(|p| p as f32),
        repetition_penalty: settings.repetition_penalty as f32,
    }
}

/// What completions are scored with, and what counts as right: the caller's own rewards, where there are any, else
/// those that the settings name.
pub(super) fn graders(
    settings: &RunConfig,
    own: Option<&WeightedRewards>,
) -> Result<(WeightedRewards, Grader), RecipeError> {
    let rewards = own.map_or_else(|| settings.build_rewards(), |own| Ok(own.clone()))?;
    let answer_column = settings.answer_column.clone();
    let default = if own.is_some() { EvalGrader::Reward } else { EvalGrader::LastInteger };
    let grader = match settings.eval_grader.unwrap_or(default) {
        EvalGrader::LastInteger => Grader::LastInteger(LastInteger { answer_column, ..LastInteger::default() }),
        EvalGrader::ExactMatch => Grader::ExactMatch(ExactMatch { answer_column, ..ExactMatch::default() }),
        EvalGrader::Reward => Grader::FirstReward,
    };
    Ok((rewards, grader))
}

/// The longest prompt that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptLimit {
    /// `max_prompt_length`.
    Setting(usize),
    /// The model's context in tokens, of which at least one must be left for the completion.
    Context { tokens: usize },
}

impl PromptLimit {
    /// The tighter of the two limits.
    pub(super) fn new(settings: &RunConfig, model: &LoadedModel) -> Self {
        let tokens = model.config.max_position_embeddings;
        if settings.max_prompt_length < tokens {
            Self::Setting(settings.max_prompt_length)
        } else {
            Self::Context { tokens }
        }
    }

    /// Tokens that a prompt may have.
    pub(super) fn tokens(self) -> usize {
        match self {
            Self::Setting(tokens) => tokens,
            Self::Context { tokens } => tokens.saturating_sub(1),
        }
    }
}

impl std::fmt::Display for PromptLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setting(tokens) => write!(f, "max_prompt_length = {tokens}"),
            Self::Context { tokens } => {
                write!(f, "{} tokens, all but one of the model's context", tokens.saturating_sub(1))
            }
        }
    }
}

/// Renders the prompts of a file; those that are too long are left out with a warning.
pub(super) fn prepare(
    path: &Path,
    rows: Vec<crate::data::Row>,
    renderer: &PromptRenderer,
    limit: PromptLimit,
) -> Result<PreparedPrompts, RecipeError> {
    let num_rows = rows.len();
    let prepared = PreparedPrompts::new(rows, renderer, limit.tokens())?;
    let too_long = prepared.left_out.len();
    if prepared.prompts.is_empty() {
        let path = path.to_owned();
        return Err(RecipeError::NoRows { path, rows: num_rows, too_long, limit });
    }
    if too_long > 0 {
        tracing::warn!("{}: {too_long} prompts are longer than {limit} and were left out", path.display());
    }
    Ok(prepared)
}

/// Optimizer steps of a run over `rows` rows (at least 1).
pub(super) fn max_steps(settings: &RunConfig, rows: usize) -> u64 {
    let rounds = settings.num_train_epochs * rows as f64 / settings.prompts_per_optimizer_step() as f64;
    // One round of rollouts is `num_iterations` optimizer steps. The conversion of a float saturates.
    let uses_again = settings.samples_completions() && settings.algorithm != Algorithm::Dpo;
    let repeats = if uses_again { settings.num_iterations as u64 } else { 1 };
    settings.max_steps.unwrap_or_else(|| (rounds.ceil() as u64).max(1).saturating_mul(repeats))
}

/// Which examples are kept: those that fit the settings and the model's context.
pub(super) fn example_config(settings: &RunConfig, model: &LoadedModel) -> ExampleConfig {
    ExampleConfig {
        max_prompt_length: settings.max_prompt_length,
        max_completion_length: settings.max_completion_length,
        max_length: model.config.max_position_embeddings,
        completion_only_loss: settings.completion_only_loss,
    }
}

/// Refuses what the device cannot do.
pub(super) fn check_device(settings: &RunConfig) -> Result<Compute, RecipeError> {
    device::set_threads(settings.threads)?;
    let device = device::open(settings.device)?;
    let for_gpu = matches!(settings.dtype, ComputeDtype::Bf16 | ComputeDtype::Tf32);
    if for_gpu && device.is_cpu() {
        return Err(RecipeError::Dtype { dtype: settings.dtype.name() });
    }
    device::allow_tf32(settings.dtype == ComputeDtype::Tf32);
    let dtype = match settings.dtype {
        ComputeDtype::Auto if device.is_cpu() => DType::F32,
        ComputeDtype::Auto | ComputeDtype::Bf16 => DType::BF16,
        ComputeDtype::F32 | ComputeDtype::Tf32 => DType::F32,
    };
    Ok(Compute { device, dtype })
}
