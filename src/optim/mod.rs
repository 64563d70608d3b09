//! The optimizer: AdamW on slices, learning-rate schedules, gradient clipping.
//!
//! Knows nothing of models or tensors: parameters are `f32` slices in a fixed order, whatever their compute dtype is
//! elsewhere. Every result is the same bits for every number of threads.

pub mod adamw;
pub mod clip;
pub mod schedule;

pub use adamw::{AdamW, AdamWConfig, AdamWStep, adamw_update, has_weight_decay};
pub use clip::{clip_factor, compute_grad_norm, sum_of_squares};
pub use schedule::{LrSchedule, LrSchedulerType, warmup_steps};

/// Elements a thread works on at a time: large enough to amortise the hand-over, and the fixed unit in which sums are
/// formed, so that the number of threads does not show in the result.
const CHUNK: usize = 1 << 15;
