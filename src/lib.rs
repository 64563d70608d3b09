//! Reinforcement fine-tuning of Hugging Face language models, on candle.
//!
//! A module may use its own layer or a lower one; `tests/architecture.rs` keeps the order:
//! `cli` > `recipe`, `config` > `trainer`, `eval`, `checkpoint` > `algorithm`, `batch` > `rollout`, `reward`, `data`,
//! `telemetry` > `model` > `text`, `hub` > `optim`, `ops` > `error`, `env`, `rng`, `io`, `device`.

pub mod algorithm;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod device;
pub mod env;
pub mod error;
pub mod eval;
pub mod hub;
pub mod io;
pub mod model;
pub mod ops;
pub mod optim;
pub mod recipe;
pub mod reward;
pub mod rng;
pub mod rollout;
pub mod telemetry;
pub mod text;
pub mod trainer;
