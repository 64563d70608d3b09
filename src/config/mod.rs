//! The configuration of a run.

mod kinds;
mod run_config;

pub use kinds::{
    Algorithm, ComputeDtype, DeviceKind, Init, KlEstimator, LossType, LrSchedulerType, OnBadRow, SaveDtype,
    ScaleRewards,
};
pub use run_config::{Resume, RewardConfig, RunConfig};
