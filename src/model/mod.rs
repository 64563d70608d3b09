//! The models: what a `config.json` describes, which tensors it asks for, and how they are read.
//!
//! A family is a configuration plus its weight names; there is one decoder for all of them. Files come from `hub`,
//! trained weights leave through `checkpoint`.

pub mod adapter;
pub mod config;
mod config_checks;
pub mod decoder;
mod decoding;
mod error;
pub mod header;
pub mod json;
pub mod params;
pub mod peft;
mod recorded;
mod scoring;
pub mod weights;

pub use adapter::Adapter;
pub use config::{Family, Init, ModelConfig, RopeScaling, Task, TensorSpec};
pub use decoder::{Decoder, KvCache, PackedTokens, Recorder};
pub use decoding::{DecodingModel, NewTokens};
pub use error::{ConfigProblem, HeaderProblem, ModelError, TensorProblem};
pub use params::{Param, Params};
pub use peft::{PeftConfig, TargetModules};
pub use recorded::RecordedModel;
pub use scoring::{ScoreBatch, score_groups};
pub use weights::{LoadedTensor, SavedDtype, init_weights, load_reward_weights, load_weights, load_weights_with};
