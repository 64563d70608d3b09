//! Reinforcement fine-tuning of Hugging Face language models, on candle.
//!
//! [`config::RunConfig`] holds every setting, [`recipe::train()`] carries a run out and leaves a Hugging Face folder,
//! [`recipe::evaluate()`] and [`recipe::generate()`] use one. A reward is a closure over the completion and the columns
//! of its row:
//!
//! ```
//! use candlewick::config::RunConfig;
//! use candlewick::recipe::{TrainOptions, train};
//! use candlewick::reward::{FnReward, WeightedRewards};
//!
//! # let scratch = tempfile::tempdir()?;
//! let settings = RunConfig {
//!     model: "tests/fixtures/hf/qwen2_tied".into(), // a folder, or a Hub id such as "Qwen/Qwen2.5-0.5B-Instruct"
//!     train_file: "data/math_tasks_train.jsonl".into(),
//!     output_dir: "output/exact".into(),
//!     max_completion_length: 8,
//!     max_steps: Some(2),
//!     ..RunConfig::default()
//! };
//! # let settings = RunConfig { output_dir: scratch.path().join("exact"), ..settings };
//! let exact = FnReward::new("exact", |input| {
//!     let answer = input.columns.text("answer").unwrap_or_default();
//!     f64::from(input.completion.trim() == answer)
//! });
//! let brief = FnReward::new("brief", |input| -(input.completion_ids.len() as f64));
//! let rewards = WeightedRewards::default().with(1.0, exact).with(0.01, brief);
//! let report = train(&settings, TrainOptions { rewards: Some(rewards), ..TrainOptions::default() })?;
//! println!("{} steps, the model is in {}", report.summary.steps, report.summary.model.display());
//! # let metrics = std::fs::read_to_string(scratch.path().join("exact/metrics.jsonl"))?;
//! # assert!(metrics.lines().count() == 2 && metrics.contains("rewards/brief/mean"));
//! # assert!(scratch.path().join("exact/model.safetensors").is_file());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A run can also be put together by hand: [`recipe`] shows how the parts fit.
//!
//! A module may use its own layer or a lower one; `tests/architecture.rs` keeps the order:
//! `cli` > `recipe`, `config`, `report` > `trainer`, `eval`, `checkpoint` > `algorithm`, `batch` > `rollout`, `reward`, `data`,
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
pub mod report;
pub mod reward;
pub mod rng;
pub mod rollout;
pub mod telemetry;
pub mod text;
pub mod trainer;
