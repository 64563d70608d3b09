//! From settings to parts: the only place that wires the types together.
//!
//! [`train()`] is a whole run; [`evaluate()`], [`perplexity()`], those of several models and [`generate()`] use
//! finished models, [`merge()`] makes one of a model and its adapter, [`push()`] brings one to the Hub; [`plan()`] says
//! what a run would do, [`preview()`] shows its first rows, [`validate()`] checks its settings, and [`shipped_recipes`] are
//! those that come with the program. What the command line can do, a library user can do through these functions, and with
//! rewards of their own. What the parts do is not decided here.

mod base;
mod card;
mod corpus;
mod doctor;
mod error;
mod evaluate;
mod evaluator;
mod generate;
mod inspect;
mod memory;
mod merge;
mod method;
mod parts;
mod plan;
mod policy;
mod preview;
mod push;
mod push_error;
mod resume;
mod reward_model;
mod rows;
mod shipped;
mod start;
mod trackers;
mod train;
mod validate;

pub use corpus::{PerplexityOptions, perplexity};
pub use doctor::Doctor;
pub use error::RecipeError;
pub use evaluate::{EvaluateOptions, Evaluation, Perplexities, evaluate, evaluate_models, perplexities};
pub use generate::{GenerateOptions, generate};
pub use inspect::{CheckpointSummary, inspect};
pub use merge::merge;
pub use parts::{AdapterFolder, LoadedModel, PromptLimit, load_model};
pub use plan::{Plan, plan};
pub use preview::{Preview, PreviewLeftOut, PreviewRow, PreviewSource, PreviewText, preview};
pub use push::{LeftOut, PushPlan, plan_push, push};
pub use push_error::PushError;
pub use resume::require_room;
pub use shipped::{CopiedRecipe, Need, ShippedRecipe, copy_recipe, shipped_recipes};
pub use train::{TrainOptions, TrainReport, train};
pub use validate::{Validation, validate};
