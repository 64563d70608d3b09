//! The `[lora]` table: a low-rank adapter is trained in place of the model.
//!
//! Owns its keys, their defaults and what must hold between them; the comments make its part of the reference page.

use super::checks::Problem;
use super::kinds::{Algorithm, Init};
use super::run_config::RunConfig;
use crate::model::{ModelConfig, ModelError, PeftConfig, TargetModules};
use crate::ops::quantized::QuantFormat;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

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

    /// The first key whose value is not that of an adapter of `model` that exists, with both values as they are written.
    /// Targets are equal where they name the same maps.
    ///
    /// # Errors
    /// [`ModelError::TargetModules`] for a target that is none of the model's maps.
    pub fn difference(
        &self,
        existing: &PeftConfig,
        model: &ModelConfig,
    ) -> Result<Option<(&'static str, String, String)>, ModelError> {
        fn differs<T: PartialEq + Display>(
            key: &'static str,
            given: Option<T>,
            there: &T,
        ) -> Option<(&'static str, String, String)> {
            let given = given.filter(|given| given != there)?;
            Some((key, given.to_string(), there.to_string()))
        }
        let value = differs("r", self.r, &existing.r)
            .or_else(|| differs("alpha", self.alpha, &existing.lora_alpha))
            .or_else(|| differs("dropout", self.dropout, &existing.lora_dropout))
            .or_else(|| differs("use_rslora", self.use_rslora, &existing.use_rslora));
        if value.is_some() || self.target_modules.is_none() {
            return Ok(value);
        }
        let names = |config: &PeftConfig| -> Result<Vec<String>, ModelError> {
            Ok(config.maps(model)?.into_iter().map(|map| map.name).collect())
        };
        let given = self.peft();
        Ok((names(&given)? != names(existing)?)
            .then(|| ("target_modules", given.target_modules.to_string(), existing.target_modules.to_string())))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn an_adapter_differs_by_values_and_by_maps_not_by_how_they_are_named() {
        let path = Path::new("data/starter/config.json");
        let model = ModelConfig::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all = ["down_proj", "up_proj", "gate_proj", "o_proj", "v_proj", "k_proj", "q_proj"];
        let existing = |targets| PeftConfig::new(4, 8.0, 0.0, false, targets);
        let table = |targets| LoraConfig { target_modules: Some(targets), ..LoraConfig::default() };
        let all_linear = table(Targets::Pattern("all-linear".into()));
        let of_names = existing(TargetModules::Names(names(&all)));
        assert_eq!(all_linear.difference(&of_names, &model).unwrap(), None);
        let reversed = table(Targets::Names(names(&["v_proj", "q_proj"])));
        let of_two = existing(TargetModules::Names(names(&["q_proj", "v_proj"])));
        assert_eq!(reversed.difference(&of_two, &model).unwrap(), None);
        let found = all_linear.difference(&of_two, &model).unwrap();
        assert_eq!(found, Some(("target_modules", "\"all-linear\"".into(), "[\"q_proj\", \"v_proj\"]".into())));
        let scaled = LoraConfig { use_rslora: Some(true), ..LoraConfig::default() };
        assert_eq!(scaled.difference(&of_two, &model).unwrap(), Some(("use_rslora", "true".into(), "false".into())));
    }
}
