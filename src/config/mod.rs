//! The configuration of a run: what can be set, from where, and whether it makes sense.
//!
//! One flat table of settings ([`RunConfig`]), filled from defaults, files, environment and command line ([`Layers`]),
//! checked as a whole, and shown with the source of each value ([`Resolved`]). The settings are only stored here:
//! the recipe hands them to the components, which own what they mean.

mod algorithm_checks;
mod architecture;
mod checks;
mod data;
mod diagnostic;
mod effects;
mod kinds;
mod layers;
mod lora;
mod names;
mod outside_rewards;
mod reference;
mod resolved;
mod reward_config;
mod reward_kinds;
mod rewards;
mod run_config;
mod schema;
mod show;

pub use architecture::ArchitectureConfig;
pub use data::{MixConfig, TrainingSource};
pub use diagnostic::{ConfigError, Diagnostic, FilePlace, Place};
pub use kinds::{
    Algorithm, ComputeDtype, DeviceKind, DpoLossType, DpoPairs, EvalGrader, ImportanceSamplingLevel, Init, KlEstimator,
    LossType, LrSchedulerType, ModelType, OnBadRow, OnFailure, SaveDtype, ScaleRewards, TokenizerKind,
};
pub use layers::{ENV_PREFIX, Layers, Override, Resolved};
pub use lora::{BaseFormat, LoraConfig, Targets};
pub use reference::reference_page;
pub use resolved::Resume;
pub use reward_config::RewardConfig;
pub use run_config::RunConfig;
pub use schema::words_of;
