//! The words that settings with a fixed set of values accept, one enum a setting.
//!
//! Owns only the words and their spelling in TOML; what each choice does is the business of the part that reads it.

use serde::{Deserialize, Serialize};

/// What a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Group relative policy optimisation: sample completions, score them, reinforce the better ones of each group.
    #[default]
    Grpo,
    /// Supervised fine-tuning on given completions.
    Sft,
}

impl Algorithm {
    /// The word of the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpo => "grpo",
            Self::Sft => "sft",
        }
    }
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

/// What happens to a row of a data file that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// The run stops and names the row.
    #[default]
    Stop,
    /// The row is left out and counted.
    Skip,
}

/// Estimator of the per-token KL divergence to the reference policy, u = `ref_logprobs` - logprobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// -u.
    K1,
    /// u^2 / 2.
    K2,
    /// e^u - u - 1 (arXiv:2402.03300 eq. 4).
    #[default]
    K3,
}

/// How the per-token objective is averaged to one loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over tokens of each completion, then mean over completions.
    Grpo,
    /// Sum over tokens / number of tokens of the micro-batch.
    Bnpo,
    /// Sum over tokens / (completions * `max_completion_length`).
    DrGrpo,
    /// Sum over tokens / number of tokens of the whole step.
    #[default]
    Dapo,
}

/// What the centred rewards are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group.
    #[default]
    Group,
    /// The standard deviation of the whole step.
    Batch,
    /// Nothing.
    None,
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// Stays.
    Constant,
    /// Falls in a straight line to 0.
    #[default]
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

/// Where tensors live and kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// CUDA where the program is built with it and a GPU answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
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
    /// bfloat16.
    Bf16,
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
