//! The model that a run trains: all of its weights, or an adapter beside them.

use super::RecipeError;
use super::memory::{Memory, longest_allowed_prompt};
use super::parts::LoadedModel;
use crate::checkpoint::{SHARD_BYTES, export_adapter, export_model};
use crate::config::{Algorithm, Init, LoraConfig, RunConfig, SaveDtype};
use crate::device::Compute;
use crate::model::{Decoder, Params, PeftConfig, SavedDtype};
use crate::optim::{AdamWConfig, LrSchedule, warmup_steps};
use crate::trainer::{ModelWriter, Policy, PolicyConfig, TrainError};
use std::borrow::Cow;
use std::path::Path;

/// The adapter that the settings ask for: a new one, or that of the start model, which must not be another.
pub(super) fn adapter(settings: &RunConfig, model: &LoadedModel) -> Result<Option<PeftConfig>, RecipeError> {
    let config = match (&settings.lora, &model.adapter) {
        (None, None) => return Ok(None),
        (None, Some(adapter)) => return Err(RecipeError::AdapterGiven { folder: adapter.folder.clone() }),
        (Some(lora), None) => lora.peft(),
        (Some(lora), Some(adapter)) => {
            if let Some((key, given, there)) = lora.difference(&adapter.config, &model.config)? {
                return Err(RecipeError::OtherLora { folder: adapter.folder.clone(), key, given, there });
            }
            adapter.config.clone()
        }
    };
    config.maps(&model.config)?;
    let resolved = &model.resolved;
    // A path is made absolute: the adapter's folder does not lie where this program was called.
    let folder = || std::path::absolute(&resolved.folder).unwrap_or_else(|_| resolved.folder.clone());
    let base_model = resolved.repo.clone().unwrap_or_else(|| folder().to_string_lossy().into_owned());
    Ok(Some(config.of_base(base_model, resolved.commit.clone())))
}

/// A linear map whose rows are no whole number of blocks of 32 values.
fn unquantizable(model: &LoadedModel) -> Option<String> {
    let maps = model.config.tensors().into_iter().filter(|spec| spec.name.ends_with("_proj.weight"));
    maps.into_iter().find(|spec| !spec.shape[1].is_multiple_of(32)).map(|spec| spec.name)
}

/// The model before the first step.
pub(super) struct StartPolicy {
    decoder: Decoder,
    /// The format that the start model was saved in.
    dtype: SavedDtype,
    gradient_checkpointing: bool,
    is_adapted: bool,
}

impl StartPolicy {
    /// Reads or draws the weights; warns where the run will not fit into the memory that is free.
    pub fn load(
        settings: &RunConfig,
        model: &LoadedModel,
        adapter: Option<&PeftConfig>,
        compute: &Compute,
    ) -> Result<Self, RecipeError> {
        // Before anything is loaded: what is free now must hold all of it.
        let longest_prompt = longest_allowed_prompt(settings, &model.config);
        let memory = Memory::of_run(settings, &model.config, compute, longest_prompt);
        if settings.gradient_checkpointing.is_none() && memory.gradient_checkpointing {
            tracing::info!("gradient_checkpointing is on: the memory that is free would not do without it");
        }
        if let Some(free) = compute.available_memory().filter(|free| memory.peak() > *free) {
            let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
            tracing::warn!(
                "the run is estimated at {:.1} GiB, and {:.1} GiB are free: lower `max_tokens_per_micro_batch` (activations, \
                 {:.1} GiB) or `rollout_slots` (sampling, {:.1} GiB), or take a smaller model",
                gib(memory.peak()),
                gib(free),
                gib(memory.activations),
                gib(memory.rollout())
            );
        }
        let (decoder, dtype) = match (adapter, settings.resolved_init()) {
            // Adapters are small and learn in f32, which is what PEFT saves them in, too.
            (Some(config), _) => {
                let format = settings.lora.as_ref().and_then(LoraConfig::quant_format);
                if let Some(map) = format.and_then(|_| unquantizable(model)) {
                    return Err(RecipeError::Blocks { map });
                }
                (model.with_trained_adapter(config, format, settings.seed, compute)?, SavedDtype::F32)
            }
            (None, Init::Pretrained) if settings.algorithm == Algorithm::Reward => {
                model.reward_decoder(settings.seed, compute)?
            }
            (None, Init::Pretrained) => model.decoder(compute, true)?,
            (None, Init::Random) => (model.random_decoder(settings.seed, compute, true)?, SavedDtype::F32),
        };
        let gradient_checkpointing = memory.gradient_checkpointing;
        Ok(Self { decoder, dtype, gradient_checkpointing, is_adapted: adapter.is_some() })
    }

    /// The model that the policy is held to: a second one with the same weights, or the one beside the adapter.
    pub fn reference(
        &self,
        settings: &RunConfig,
        model: &LoadedModel,
        compute: &Compute,
    ) -> Result<Decoder, RecipeError> {
        match settings.resolved_init() {
            _ if self.is_adapted => Ok(self.decoder.without_adapter()?),
            Init::Pretrained => Ok(model.decoder(compute, false)?.0),
            Init::Random => model.random_decoder(settings.seed, compute, false),
        }
    }

    /// Writes what is trained as a Hugging Face folder.
    pub fn writer(&self, settings: &RunConfig, model: &LoadedModel, adapter: Option<PeftConfig>) -> ModelWriter {
        let base = model.resolved.folder.clone();
        let dtype = match settings.save_dtype {
            SaveDtype::Auto => self.dtype,
            SaveDtype::F32 => SavedDtype::F32,
            SaveDtype::Bf16 => SavedDtype::Bf16,
            SaveDtype::F16 => SavedDtype::F16,
        };
        let config = adapter.map(|adapter| adapter.to_json());
        Box::new(move |folder: &Path, params: &Params| {
            let specs: Vec<(&str, &[usize])> =
                params.iter().map(|p| (p.name.as_str(), p.weight.value().dims())).collect();
            let values: Vec<_> = params.iter().map(|p| p.weight.master()).collect();
            let data = |index: usize| Ok::<_, TrainError>(Cow::Owned(values[index].flatten_all()?.to_vec1::<f32>()?));
            match &config {
                Some(config) => export_adapter(folder, &base, config, &specs, data, dtype),
                None => export_model(folder, &base, &specs, data, dtype, SHARD_BYTES),
            }
        })
    }

    /// The policy with its optimizer, for a run of `max_steps` updates.
    pub fn into_policy(self, settings: &RunConfig, max_steps: u64) -> Result<Policy, RecipeError> {
        let config = PolicyConfig {
            adamw: AdamWConfig {
                beta1: settings.adam_beta1,
                beta2: settings.adam_beta2,
                eps: settings.adam_epsilon,
                weight_decay: settings.weight_decay,
            },
            learning_rate: settings.resolved_learning_rate(),
            schedule: LrSchedule {
                kind: settings.lr_scheduler_type,
                warmup_steps: warmup_steps(settings.warmup_steps, max_steps),
                num_steps: max_steps,
            },
            max_grad_norm: Some(settings.max_grad_norm),
            gradient_checkpointing: self.gradient_checkpointing,
            seed: settings.seed,
        };
        Ok(Policy::new(self.decoder, config)?)
    }
}
