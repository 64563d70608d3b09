//! The `[lora]` table: a low-rank adapter is trained in place of the model.
//!
//! Owns its keys, their defaults and what must hold between them; the comments make its part of the reference page.

use super::checks::Problem;
use super::kinds::{Algorithm, Init};
use super::run_config::RunConfig;
use crate::model::{PeftConfig, TargetModules};
use crate::ops::quantized::QuantFormat;
use serde::{Deserialize, Serialize};

const R: usize = 16;
const ALPHA: f64 = 32.0;

/// An adapter beside a frozen model. A start model that is an adapter itself keeps what it was made with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the adapters, 1 or more: the larger, the more they can learn and the more memory they take.
    /// Default none: 16, as TRL.
    pub r: Option<usize>,
    /// The adapters' results are multiplied by `alpha` / `r`, above 0. Default none: 32, as TRL.
    pub alpha: Option<f64>,
    /// Probability that a value of an adapter's input is left out in training, 0 to below 1. Completions are sampled
    /// without: above 0 the trainer's log-probs are no longer the sampler's.
    /// Default none: 0, so that what is sampled is what is trained.
    pub dropout: Option<f64>,
    /// The linear maps that get an adapter: a list of names or ends of names (`q_proj`, `k_proj`, `v_proj`, `o_proj`,
    /// `gate_proj`, `up_proj`, `down_proj`, `layers.0.mlp.up_proj`), a regular expression for whole names, or
    /// `"all-linear"`. Default none: `["q_proj", "v_proj"]`, as PEFT for these families.
    pub target_modules: Option<Targets>,
    /// Multiply by `alpha` / sqrt(`r`) instead, which keeps high ranks learning (rsLoRA).
    /// Default none: `false`, as PEFT.
    pub use_rslora: Option<bool>,
    /// Keep the linear maps of the frozen model in few bits: `q8_0` (8.5 bits a weight) or `q4_0` (4.5), rounded when
    /// they are read. Saves memory and costs time. What is saved belongs to the unrounded model, with
    /// which it is evaluated at the end. Default none: as they are.
    pub quantize_base: Option<BaseFormat>,
}

/// The formats that a frozen model can be kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseFormat {
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Names, or one pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

impl LoraConfig {
    /// The adapter that the table describes.
    #[must_use]
    pub fn peft(&self) -> PeftConfig {
        let target_modules = match &self.target_modules {
            None => TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]),
            Some(Targets::Pattern(all)) if all == "all-linear" => TargetModules::AllLinear,
            Some(Targets::Pattern(pattern)) => TargetModules::Pattern(pattern.clone()),
            Some(Targets::Names(names)) => TargetModules::Names(names.clone()),
        };
        let (r, alpha) = (self.r.unwrap_or(R), self.alpha.unwrap_or(ALPHA));
        PeftConfig::new(r, alpha, self.dropout.unwrap_or(0.0), self.use_rslora.unwrap_or(false), target_modules)
    }

    /// The format that the frozen model is rounded to.
    #[must_use]
    pub fn quant_format(&self) -> Option<QuantFormat> {
        self.quantize_base.map(|format| match format {
            BaseFormat::Q8_0 => QuantFormat::Q8_0,
            BaseFormat::Q4_0 => QuantFormat::Q4_0,
        })
    }

    /// The first key whose value is not that of an adapter that exists, with both values.
    #[must_use]
    pub fn difference(&self, existing: &PeftConfig) -> Option<(&'static str, String, String)> {
        let differs = |key, given: Option<f64>, there: f64| {
            let given = given.filter(|given| given.total_cmp(&there).is_ne())?;
            Some((key, given.to_string(), there.to_string()))
        };
        let targets = || {
            self.target_modules.as_ref()?;
            let (given, there) = (self.peft().target_modules, &existing.target_modules);
            (given != *there).then(|| ("target_modules", format!("{given:?}"), format!("{there:?}")))
        };
        differs("r", self.r.map(|r| r as f64), existing.r as f64)
            .or_else(|| differs("alpha", self.alpha, existing.lora_alpha))
            .or_else(|| differs("dropout", self.dropout, existing.lora_dropout))
            .or_else(|| differs("use_rslora", self.use_rslora.map(f64::from), f64::from(existing.use_rslora)))
            .or_else(targets)
    }
}

/// What is wrong with the table, and with what stands beside it.
pub(super) fn problems(config: &RunConfig) -> Vec<Problem> {
    let Some(lora) = &config.lora else { return Vec::new() };
    let mut found = Vec::new();
    if lora.r.is_some_and(|r| !(1..=1 << 16).contains(&r)) {
        found.push(Problem::new(&["lora"], "`r` of `[lora]` must be from 1 to 65536"));
    }
    if let Some(alpha) = lora.alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
        found.push(Problem::new(&["lora"], format!("`alpha` of `[lora]` must be above 0 and finite, not {alpha}")));
    }
    if let Some(dropout) = lora.dropout.filter(|dropout| !(0.0..1.0).contains(dropout)) {
        let message = format!("`dropout` of `[lora]` must be from 0 to below 1, not {dropout}");
        found.push(Problem::new(&["lora"], message));
    }
    if matches!(&lora.target_modules, Some(Targets::Names(names)) if names.is_empty()) {
        let problem = Problem::new(&["lora"], "`target_modules` of `[lora]` is empty: nothing would be trained");
        found.push(problem.help("name some maps, such as `[\"q_proj\", \"v_proj\"]`, or `\"all-linear\"`"));
    }
    if config.resolved_init() == Init::Random {
        let message = "`[lora]` adapts a trained model, and the weights of this one are drawn at random";
        found.push(Problem::new(&["lora", "architecture", "init"], message).help("train the model itself first"));
    }
    if config.algorithm == Algorithm::Reward {
        let message = "`[lora]` cannot be used with `algorithm = \"reward\"`: the score head is no part of an adapter";
        found
            .push(Problem::new(&["lora", "algorithm"], message).help("leave out `[lora]`: the whole model is trained"));
    }
    if config.sync_ref_model {
        let message = "`sync_ref_model` moves the reference, which with `[lora]` is the frozen model itself";
        found.push(Problem::new(&["sync_ref_model", "lora"], message).help("remove one of them"));
    }
    found
}
