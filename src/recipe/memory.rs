//! How much memory a run will take, and what is done where that is more than there is.

use crate::config::{Algorithm, RunConfig};
use crate::device::Compute;
use crate::model::{KvCache, ModelConfig};
use crate::rollout::CacheShape;
use serde::Serialize;

/// Estimated bytes of a run's large parts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// The weights, trained or frozen beside an adapter.
    pub weights: usize,
    /// Gradients of those that are trained.
    pub gradients: usize,
    /// Both moments of Adam.
    pub moments: usize,
    /// The frozen reference policy; 0 where beta is 0, or the model beside an adapter.
    pub reference: usize,
    /// The weights as sampling lays them out, while it runs.
    pub packed_weights: usize,
    /// Keys and values of a rollout.
    pub kv_cache: usize,
    /// What a micro-batch keeps for its backward pass.
    pub activations: usize,
    /// Whether that is only the input of each layer, and the rest computed again.
    pub gradient_checkpointing: bool,
}

impl Memory {
    /// The estimate of a run whose longest prompt has `longest_prompt` tokens. Where the settings leave
    /// `gradient_checkpointing` open, it is on if the memory that is free now would not do without it; it changes no
    /// result.
    #[must_use]
    pub fn of_run(settings: &RunConfig, config: &ModelConfig, compute: &Compute, longest_prompt: usize) -> Self {
        let tokens = max_tokens_per_step(settings, config, longest_prompt).min(settings.max_tokens_per_micro_batch);
        let estimate =
            |checkpointing| Self::estimate(settings, config, compute, (tokens, longest_prompt), checkpointing);
        let chosen = settings.gradient_checkpointing.unwrap_or_else(|| {
            let free = compute.available_memory().unwrap_or(usize::MAX);
            estimate(false).peak() > free
        });
        estimate(chosen)
    }

    /// Masters, gradients and moments are f32; the rest has the format that the model computes in.
    fn estimate(
        settings: &RunConfig,
        config: &ModelConfig,
        compute: &Compute,
        (tokens, longest_prompt): (usize, usize),
        gradient_checkpointing: bool,
    ) -> Self {
        const F32: usize = 4;
        let size = compute.dtype.size_in_bytes();
        let trained = num_trained(settings, config);
        let masters = F32 * trained;
        let rounded = if size == F32 { 0 } else { size * trained };
        // What is frozen beside an adapter, and is the reference too.
        let (frozen, packed) = match &settings.lora {
            None => (0, F32 * trained),
            Some(lora) => {
                let of_maps = config.tensors().into_iter().filter(|spec| spec.name.ends_with("_proj.weight"));
                let in_maps: usize = of_maps.map(|spec| spec.shape.iter().product::<usize>()).sum();
                let others = config.num_parameters() - in_maps;
                // Weights in few bits are read where they are.
                match lora.quant_format() {
                    None => (size * config.num_parameters(), F32 * config.num_parameters()),
                    Some(format) => (size * others + format.bytes(in_maps), F32 * others),
                }
            }
        };
        let has_reference = settings.resolved_beta() > 0.0 && settings.lora.is_none();
        let kv_width = config.num_key_value_heads * config.head_dim;
        let q_width = config.num_attention_heads * config.head_dim;
        let prompts = settings.prompts_per_optimizer_step();
        let counts = (prompts, prompts.saturating_mul(settings.num_generations));
        let limit = settings.max_completion_length;
        let cache = CacheShape::new((config, compute.dtype), settings.rollout_slots, counts, longest_prompt, limit);
        // What a layer keeps for its backward pass: its input, the sum after attention, q, k, v, the attended values,
        // the gate and up projections.
        let layer = 2 * config.hidden_size + 2 * q_width + 2 * kv_width + 2 * config.intermediate_size;
        let kept = if gradient_checkpointing {
            config.num_hidden_layers * config.hidden_size + 2 * layer
        } else {
            config.num_hidden_layers * layer + layer
        };
        let samples = settings.samples_completions();
        Self {
            weights: masters + rounded + frozen,
            gradients: masters,
            moments: 2 * masters,
            reference: if has_reference { size * config.num_parameters() } else { 0 },
            packed_weights: if samples && compute.device.is_cpu() { packed } else { 0 },
            kv_cache: if samples { KvCache::bytes(config, compute.dtype, cache.rows()) } else { 0 },
            activations: (size * kept).saturating_mul(tokens),
            gradient_checkpointing,
        }
    }

    /// What sampling takes while it runs.
    #[must_use]
    pub fn rollout(&self) -> usize {
        self.packed_weights.saturating_add(self.kv_cache)
    }

    /// The peak: what sampling takes and the activations are never there at one time.
    #[must_use]
    pub fn peak(&self) -> usize {
        (self.weights + self.gradients + self.moments + self.reference)
            .saturating_add(self.rollout().max(self.activations))
    }
}

/// The most tokens that a step can run through the model in training.
pub(super) fn max_tokens_per_step(settings: &RunConfig, config: &ModelConfig, longest_prompt: usize) -> usize {
    let longest_completion = match settings.algorithm {
        // A block's last token is not run.
        Algorithm::Pretrain => settings.block_size.saturating_sub(1),
        // Whole texts: one stands for the longest prompt, the other for its completion.
        Algorithm::Reward => longest_prompt,
        _ => settings.max_completion_length.min(config.max_position_embeddings),
    };
    // A pair is all that is learned of a group.
    let num_learned = match settings.algorithm {
        Algorithm::Dpo => 2,
        Algorithm::Reward => 1,
        _ => settings.completions_per_prompt(),
    };
    let of_prompt = longest_prompt.saturating_add(num_learned.saturating_mul(longest_completion));
    settings.prompts_per_optimizer_step().saturating_mul(of_prompt)
}

/// Tokens of the longest prompt (or whole text, for `algorithm = "reward"`) that the settings let through, before the
/// data are known.
pub(super) fn longest_allowed_prompt(settings: &RunConfig, config: &ModelConfig) -> usize {
    let allowed = match settings.algorithm {
        Algorithm::Pretrain => 1,
        Algorithm::Reward => settings.max_prompt_length.saturating_add(settings.max_completion_length),
        _ => settings.max_prompt_length,
    };
    allowed.min(config.max_position_embeddings)
}

/// The values that training changes.
fn num_trained(settings: &RunConfig, config: &ModelConfig) -> usize {
    let Some(lora) = &settings.lora else { return config.num_parameters() };
    // Targets that the model does not have are told where the run begins.
    let maps = lora.peft().maps(config).unwrap_or_default();
    maps.iter().map(|map| map.rank * (map.inputs + map.outputs)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Left open, recomputing is chosen where the free memory would not do, and is then the smaller estimate; a setting
    /// is a setting.
    #[test]
    fn recomputes_where_memory_is_short() {
        let path = Path::new("data/starter/config.json");
        let config = ModelConfig::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap();
        // The tokens of a micro-batch are those of the step at most, so the step must be large, too.
        let of_run = |gradient_checkpointing, tokens| {
            let settings = RunConfig {
                gradient_checkpointing,
                prompts_per_step: tokens,
                max_tokens_per_micro_batch: tokens,
                rollout_slots: 1,
                ..RunConfig::default()
            };
            Memory::of_run(&settings, &config, &Compute::cpu(), 64)
        };
        assert!(!of_run(None, 1).gradient_checkpointing);
        let (few, many) = (of_run(None, 1 << 40), of_run(Some(false), 1 << 40));
        assert!(few.gradient_checkpointing && !many.gradient_checkpointing);
        assert!(few.peak() < many.peak());
        assert!(of_run(Some(true), 1).gradient_checkpointing);
    }

    /// A budget that no step can fill takes no memory, and no size overflows.
    #[test]
    fn what_a_step_does_not_have_is_not_counted() {
        let path = Path::new("data/starter/config.json");
        let config = ModelConfig::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap();
        let of_run = |settings: &RunConfig| Memory::of_run(settings, &config, &Compute::cpu(), 64);
        let settings = RunConfig::default();
        let tokens = max_tokens_per_step(&settings, &config, 64);
        let filled = of_run(&RunConfig { max_tokens_per_micro_batch: tokens, ..settings.clone() });
        let wide = RunConfig { max_tokens_per_micro_batch: usize::MAX, ..settings.clone() };
        assert_eq!(of_run(&wide).activations, filled.activations);
        let huge = RunConfig {
            max_prompt_length: usize::MAX,
            max_completion_length: usize::MAX,
            prompts_per_step: usize::MAX,
            num_generations: usize::MAX,
            rollout_slots: usize::MAX,
            ..wide
        };
        assert_eq!(longest_allowed_prompt(&huge, &config), config.max_position_embeddings);
        assert_eq!(of_run(&huge).peak(), usize::MAX);
    }
}
