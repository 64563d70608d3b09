//! What settings amount to where they leave a choice to the algorithm or to each other.

use super::kinds::{Algorithm, DpoPairs, Init, LossType};
use super::run_config::RunConfig;
use std::path::PathBuf;

/// What `resume` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Start afresh.
    Never,
    /// Continue from the newest valid checkpoint of the output folder, or start afresh where there is none.
    Auto,
    /// Continue from this checkpoint folder.
    From(PathBuf),
}

impl RunConfig {
    /// The learning rate that is used: the one set, else the algorithm's default, ten times as much for an adapter.
    #[must_use]
    pub fn resolved_learning_rate(&self) -> f64 {
        // Adapters want about ten times the rate (Schulman et al., "LoRA Without Regret", 2025).
        let of = |full: f64, adapter: f64| if self.lora.is_some() { adapter } else { full };
        self.learning_rate.unwrap_or(match self.algorithm {
            Algorithm::Sft => of(2e-5, 2e-4),
            Algorithm::Reward => 1e-4,
            Algorithm::Pretrain => of(1e-3, 1e-3),
            _ => of(1e-6, 1e-5),
        })
    }

    /// The weight of the KL divergence that is used: the one set, else the algorithm's default.
    #[must_use]
    pub fn resolved_beta(&self) -> f64 {
        self.beta.unwrap_or(match self.algorithm {
            Algorithm::Grpo | Algorithm::ReinforcePlusPlus => 0.04,
            Algorithm::Rloo => 0.05,
            Algorithm::Dpo => 0.1,
            Algorithm::Remax | Algorithm::Raft | Algorithm::Reward | Algorithm::Sft | Algorithm::Pretrain => 0.0,
        })
    }

    /// Whether a step samples completions of its prompts.
    #[must_use]
    pub fn samples_completions(&self) -> bool {
        match self.algorithm {
            Algorithm::Reward | Algorithm::Sft | Algorithm::Pretrain => false,
            Algorithm::Dpo => self.dpo_pairs == DpoPairs::Sampled,
            _ => true,
        }
    }

    /// Completions of a prompt in a step: `num_generations`, or where nothing is sampled 1, and 2 of a pair.
    #[must_use]
    pub fn completions_per_prompt(&self) -> usize {
        match self.algorithm {
            _ if self.samples_completions() => self.num_generations,
            Algorithm::Dpo | Algorithm::Reward => 2,
            _ => 1,
        }
    }

    /// Where the first weights come from: a new architecture has none that could be read.
    #[must_use]
    pub fn resolved_init(&self) -> Init {
        if self.architecture.is_some() { Init::Random } else { self.init }
    }

    /// The upper clip bound that is used: `epsilon_high`, else `epsilon`, or with `cispo` the cap 5.
    #[must_use]
    pub fn resolved_epsilon_high(&self) -> f64 {
        // ScaleRL's value (arXiv:2510.13786), which TRL recommends.
        let default = if self.loss_type == LossType::Cispo { 5.0 } else { self.epsilon };
        self.epsilon_high.unwrap_or(default)
    }

    /// Prompts that one optimizer step covers (`sft`, `reward`: rows; `pretrain`: blocks).
    #[must_use]
    pub fn prompts_per_optimizer_step(&self) -> usize {
        self.prompts_per_step.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The rows P*G of an optimizer step where `gradient_accumulation_steps` is 1.
    #[must_use]
    pub fn completions_per_step(&self) -> usize {
        self.prompts_per_step.saturating_mul(self.num_generations)
    }

    /// The repository of a push: `hub_model_id`, else the name of `output_dir`.
    #[must_use]
    pub fn push_id(&self) -> String {
        let name = || self.output_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.hub_model_id.clone().unwrap_or_else(name)
    }

    /// `resume` as a choice.
    #[must_use]
    pub fn resume_choice(&self) -> Resume {
        match self.resume.as_str() {
            "never" => Resume::Never,
            "auto" => Resume::Auto,
            path => Resume::From(PathBuf::from(path)),
        }
    }
}
