//! The words that settings with a fixed set of values accept, one enum a setting.
//!
//! Owns only the words and their spelling in TOML; what each choice does is the business of the part that reads it.

use crate::model::Family;
use serde::{Deserialize, Serialize};

pub use crate::algorithm::{DpoLossType, ImportanceSamplingLevel, KlEstimator, LossType, ScaleRewards};
pub use crate::data::OnBadRow;
pub use crate::device::DeviceKind;
pub use crate::optim::LrSchedulerType;
pub use crate::reward::OnFailure;

/// How a run learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Group relative policy optimisation (arXiv:2402.03300): sample completions, score them, reinforce the better ones
    /// of each group.
    #[default]
    Grpo,
    /// REINFORCE leave-one-out (arXiv:2402.14740): each completion against the mean of the others of its group.
    Rloo,
    /// ReMax (arXiv:2310.10505): each completion against a greedy one.
    Remax,
    /// REINFORCE++-baseline (arXiv:2501.03262): as grpo, with advantages scaled over the batch.
    #[serde(rename = "reinforce++")]
    ReinforcePlusPlus,
    /// RAFT, best of n (arXiv:2304.06767): learn the best completion of each group.
    Raft,
    /// Direct preference optimization (arXiv:2305.18290): learn the better completion of a pair against the worse.
    Dpo,
    /// A reward model of pairs (Bradley-Terry): score the better completion of a pair above the worse.
    Reward,
    /// Supervised fine-tuning on given completions.
    Sft,
    /// Learning to predict a text, token by token.
    Pretrain,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 9] = [
        Self::Grpo,
        Self::Rloo,
        Self::Remax,
        Self::ReinforcePlusPlus,
        Self::Raft,
        Self::Dpo,
        Self::Reward,
        Self::Sft,
        Self::Pretrain,
    ];

    /// The word of the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::Rloo => "rloo",
            Self::Remax => "remax",
            Self::ReinforcePlusPlus => "reinforce++",
            Self::Raft => "raft",
            Self::Dpo => "dpo",
            Self::Reward => "reward",
            Self::Sft => "sft",
            Self::Pretrain => "pretrain",
        }
    }
}

/// Where the pairs of `dpo` come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoPairs {
    /// From the rows of the training file.
    #[default]
    File,
    /// The best and the worst of the completions that the policy samples, by their rewards.
    Sampled,
}

/// Where the first weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// From the safetensors files of the model.
    #[default]
    Pretrained,
    /// Drawn from the seed, by the shapes in the model folder's config.json.
    Random,
}

/// What counts as right in evaluations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalGrader {
    /// A completion that ends in the integer of the answer.
    LastInteger,
    /// A completion that is the answer.
    ExactMatch,
    /// A completion that the first of the rewards scores above 0.5.
    Reward,
}

/// Family of a model that is made from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// Without biases.
    #[default]
    Llama,
    /// Biases on queries, keys and values.
    Qwen2,
    /// Norms on queries and keys.
    Qwen3,
}

impl ModelType {
    /// The family.
    #[must_use]
    pub fn family(self) -> Family {
        match self {
            Self::Llama => Family::Llama,
            Self::Qwen2 => Family::Qwen2,
            Self::Qwen3 => Family::Qwen3,
        }
    }
}

/// What the tokenizer of a new model is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// The characters of the training data.
    Char,
    /// All 256 bytes.
    Byte,
}

/// Number format of forward and backward. Master weights are f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// f32 on the CPU, bf16 on CUDA.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 32-bit floats whose products round their operands to TF32.
    Tf32,
    /// bfloat16.
    Bf16,
}

impl ComputeDtype {
    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Number format of the weights in saved model folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// That of the model the run started from.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 16-bit floats.
    F16,
}
