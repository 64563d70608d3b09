//! Ranges of single values, and settings that do not fit together.
//!
//! Pure over the typed configuration (but for [`missing_files`], which looks whether files exist): positions are
//! attached by `layers.rs`. No value is changed; a setting that would have no effect is named rather than ignored.

use super::diagnostic::{ConfigError, Diagnostic, Place};
use super::effects::{NoEffect, conditional_keys, no_effect};
use super::kinds::Algorithm;
use super::resolved::Resume;
use super::rewards;
use super::run_config::RunConfig;
use super::{algorithm_checks, architecture, data, lora};
use std::path::Path;

/// The most completions of an optimizer step: beyond what any machine samples, and far below what sizes can count.
const MAX_COMPLETIONS: usize = 1 << 24;

/// One rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The settings involved, the one to blame first.
    pub keys: Vec<&'static str>,
    /// Where inside of the first setting, such as `rewards[0].weight`; blamed where it was set itself.
    pub spot: Option<String>,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Problem {
    pub(super) fn new(keys: &[&'static str], message: impl Into<String>) -> Self {
        Self { keys: keys.to_vec(), spot: None, message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The diagnostic at the first of its keys that was set at all; where the others were set is told.
    pub(super) fn at(self, place: impl Fn(&str) -> Place) -> Diagnostic {
        let blamed = self.keys.iter().find(|key| place(key) != Place::Default).or(self.keys.first()).copied();
        let mut help: Vec<String> = self.help.into_iter().collect();
        for key in self.keys.iter().filter(|key| Some(**key) != blamed) {
            if let set @ (Place::File(_) | Place::Given(_)) = place(key) {
                help.push(format!("`{key}` is set at {set}"));
            }
        }
        let spot = self.spot.map(|spot| place(&spot)).filter(|spot| *spot != Place::Default);
        let place = spot.unwrap_or_else(|| blamed.map_or(Place::Default, &place));
        Diagnostic { message: self.message, place, help }
    }
}

impl RunConfig {
    /// Checks ranges and contradictions of a configuration that was built in code; files are checked as they are read.
    ///
    /// # Errors
    /// Everything that is wrong, all at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let diagnostics: Vec<_> =
            problems(self, &|_| false).into_iter().map(|problem| problem.at(|_| Place::Default)).collect();
        if diagnostics.is_empty() { Ok(()) } else { Err(ConfigError::Invalid { diagnostics }) }
    }
}

/// Every rule that the configuration breaks. `is_set` tells whether a setting was given a value by anyone.
pub(super) fn problems(config: &RunConfig, is_set: &dyn Fn(&str) -> bool) -> Vec<Problem> {
    let mut found = missing(config);
    found.extend(out_of_range(config));
    found.extend(contradictions(config));
    found.extend(algorithm_checks::contradictions(config));
    found.extend(architecture::problems(config));
    found.extend(lora::problems(config));
    found.extend(rewards::problems(config));
    found.extend(data::problems(config));
    found.extend(trackers(config));
    found.extend(pushing(config));
    found.extend(without_effect(config, is_set));
    found
}

fn missing(config: &RunConfig) -> Vec<Problem> {
    let mut found = Vec::new();
    let is_text = config.algorithm == Algorithm::Pretrain;
    if config.model.trim().is_empty() && config.architecture.is_none() {
        let help = if matches!(config.algorithm, Algorithm::Pretrain | Algorithm::Sft) {
            "name a model folder or a Hub id (`org/name`), or make a new model by an `[architecture]` table"
        } else {
            "name a model folder or a Hub id (`org/name`)"
        };
        found.push(Problem::new(&["model", "architecture"], "`model` is not set").help(help));
    }
    let has_other = !is_text && (config.dataset_name.is_some() || !config.train_mix.is_empty());
    if config.train_file.trim().is_empty() && !has_other {
        let help = if is_text {
            "name a text file"
        } else {
            "name a file with rows (JSON Lines, a JSON array or Parquet), or a data set as `dataset_name`"
        };
        // What is wrong with the others is told there.
        let keys: &[&'static str] =
            if is_text { &["train_file"] } else { &["train_file", "dataset_name", "train_mix"] };
        found.push(Problem::new(keys, "`train_file` is not set").help(help));
    }
    if config.eval_file.as_deref().is_some_and(|path| path.trim().is_empty()) {
        found.push(Problem::new(&["eval_file"], "`eval_file` is empty").help("name a file with rows, or leave it out"));
    }
    if config.output_dir.as_os_str().is_empty() {
        found.push(Problem::new(&["output_dir"], "`output_dir` is empty").help("name a folder, or leave it out"));
    }
    if config.resume.is_empty() {
        let help = "`never`, `auto` or the path of a checkpoint";
        found.push(Problem::new(&["resume"], "`resume` is empty").help(help));
    }
    found
}

/// Data files that are named but do not exist.
pub(super) fn missing_files(config: &RunConfig) -> Vec<Problem> {
    let named = [("train_file", Some(&config.train_file)), ("eval_file", config.eval_file.as_ref())];
    let named = named.into_iter().filter_map(|(key, path)| Some((key, path.filter(|path| !path.trim().is_empty())?)));
    let mixed = config.train_mix.iter().filter_map(|source| Some(("train_mix", source.file.as_ref()?)));
    named
        .chain(mixed)
        .filter(|(_, path)| !Path::new(path).is_file())
        .map(|(key, path)| {
            let problem = Problem::new(&[key], format!("`{key}` names {path}, which is no file"));
            match std::env::current_dir() {
                Ok(folder) if Path::new(path).is_relative() => {
                    problem.help(format!("paths are relative to the working directory, {}", folder.display()))
                }
                _ => problem,
            }
        })
        .collect()
}

/// The numbers that a setting accepts.
enum Range {
    /// 1 or more.
    Counts,
    /// Above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// Above 0, at most 1.
    Share,
    /// From 0 to 1.
    Unit,
    /// From 0 to below 1.
    Decay,
    /// From 0 to below one half.
    Minority,
    /// Above 0, below 1.
    Inside,
    /// Any number.
    Finite,
}

impl Range {
    fn holds(&self, x: f64) -> bool {
        x.is_finite()
            && match self {
                Self::Counts => x >= 1.0,
                Self::Positive => x > 0.0,
                Self::NotNegative => x >= 0.0,
                Self::Share => x > 0.0 && x <= 1.0,
                Self::Unit => (0.0..=1.0).contains(&x),
                Self::Decay => (0.0..1.0).contains(&x),
                Self::Minority => (0.0..0.5).contains(&x),
                Self::Inside => x > 0.0 && x < 1.0,
                Self::Finite => true,
            }
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Counts => "1 or more",
            Self::Positive => "above 0 and finite",
            Self::NotNegative => "0 or more and finite",
            Self::Share => "above 0 and at most 1",
            Self::Unit => "from 0 to 1",
            Self::Decay => "at least 0 and below 1",
            Self::Minority => "at least 0 and below 0.5",
            Self::Inside => "above 0 and below 1",
            Self::Finite => "finite",
        }
    }
}

fn out_of_range(config: &RunConfig) -> Vec<Problem> {
    use Range::{Counts, Decay, Finite, Inside, Minority, NotNegative, Positive, Share, Unit};
    let c = config;
    let count = |n: usize| Some(n as f64);
    let ranges: [(&'static str, Option<f64>, Range); 40] = [
        ("threads", c.threads.and_then(count), Counts),
        ("max_prompt_length", count(c.max_prompt_length), Counts),
        ("num_generations", count(c.num_generations), Counts),
        ("max_completion_length", count(c.max_completion_length), Counts),
        ("temperature", Some(c.temperature), Positive),
        ("top_p", Some(c.top_p), Share),
        ("min_p", c.min_p, Unit),
        ("repetition_penalty", Some(c.repetition_penalty), Positive),
        ("beta", c.beta, NotNegative),
        ("ref_model_mixup_alpha", Some(c.ref_model_mixup_alpha), Share),
        ("ref_model_sync_steps", Some(c.ref_model_sync_steps as f64), Counts),
        ("max_sampling_rounds", count(c.max_sampling_rounds), Counts),
        ("num_iterations", count(c.num_iterations), Counts),
        ("epsilon", Some(c.epsilon), Inside),
        ("epsilon_high", c.epsilon_high, Positive),
        ("delta", c.delta, Positive),
        ("sapo_temperature_pos", Some(c.sapo_temperature_pos), Positive),
        ("sapo_temperature_neg", Some(c.sapo_temperature_neg), Positive),
        ("gamma", Some(c.gamma), Share),
        ("block_size", count(c.block_size), Counts),
        ("validation_fraction", Some(c.validation_fraction), Decay),
        ("top_entropy_quantile", Some(c.top_entropy_quantile), Share),
        ("entropy_coef", Some(c.entropy_coef), NotNegative),
        ("raft_min_reward", c.raft_min_reward, Finite),
        ("label_smoothing", Some(c.label_smoothing), Minority),
        ("center_rewards_coefficient", c.center_rewards_coefficient, NotNegative),
        ("learning_rate", c.learning_rate, Positive),
        ("warmup_steps", Some(c.warmup_steps), NotNegative),
        ("adam_beta1", Some(c.adam_beta1), Decay),
        ("adam_beta2", Some(c.adam_beta2), Decay),
        ("adam_epsilon", Some(c.adam_epsilon), Positive),
        ("weight_decay", Some(c.weight_decay), NotNegative),
        ("max_grad_norm", Some(c.max_grad_norm), Positive),
        ("prompts_per_step", count(c.prompts_per_step), Counts),
        ("gradient_accumulation_steps", count(c.gradient_accumulation_steps), Counts),
        ("max_tokens_per_micro_batch", count(c.max_tokens_per_micro_batch), Counts),
        ("num_train_epochs", Some(c.num_train_epochs), Positive),
        ("max_steps", c.max_steps.map(|n| n as f64), Counts),
        ("eval_max_rows", c.eval_max_rows.and_then(count), Counts),
        ("logging_steps", Some(c.logging_steps as f64), Counts),
    ];
    let broken = ranges.into_iter().filter_map(|(key, value, range)| Some((key, value?, range)));
    broken
        .filter(|(_, value, range)| !range.holds(*value))
        .map(|(key, value, range)| Problem::new(&[key], format!("`{key}` must be {}, not {value}", range.words())))
        .collect()
}

fn contradictions(config: &RunConfig) -> Vec<Problem> {
    let c = config;
    let mut found = Vec::new();
    let rounds = if c.dynamic_sampling { c.max_sampling_rounds } else { 1 };
    let completions = c.prompts_per_optimizer_step().saturating_mul(c.completions_per_prompt());
    if completions.saturating_mul(rounds) > MAX_COMPLETIONS {
        let message = format!("an optimizer step would have more than {MAX_COMPLETIONS} completions");
        let help = "they are prompts_per_step x gradient_accumulation_steps x num_generations";
        let keys = ["prompts_per_step", "num_generations", "gradient_accumulation_steps"];
        found.push(Problem::new(&keys, message).help(help));
    }
    if c.warmup_steps >= 1.0 && c.warmup_steps.fract() > 0.0 {
        let message = format!("`warmup_steps` must be a whole number or below 1, not {}", c.warmup_steps);
        found.push(Problem::new(&["warmup_steps"], message));
    }
    if let Some(steps) = c.max_steps.filter(|steps| c.warmup_steps > *steps as f64) {
        let message = format!("`warmup_steps` ({}) is more than `max_steps` ({steps})", c.warmup_steps);
        let help = "the learning rate would never be reached; a value below 1 is a share of all steps";
        found.push(Problem::new(&["warmup_steps", "max_steps"], message).help(help));
    }
    let is_text = c.algorithm == Algorithm::Pretrain;
    if is_text && c.eval_steps > 0 && c.validation_fraction == 0.0 {
        let message = "`eval_steps` is set, but `validation_fraction` is 0: there is nothing to evaluate on";
        found.push(Problem::new(&["eval_steps", "validation_fraction"], message).help("set it to 0.1, say"));
    }
    if !is_text && !c.has_eval_rows() && c.eval_steps > 0 {
        let message = "`eval_steps` is set, but there is no `eval_file`";
        found.push(Problem::new(&["eval_steps", "eval_file"], message).help("name a file with rows to evaluate on"));
    }
    if let Resume::From(path) = c.resume_choice()
        && path.extension().is_some_and(|extension| extension == "toml")
    {
        let message = format!("`resume` names {}, which is a configuration and no checkpoint", path.display());
        found.push(Problem::new(&["resume"], message).help("write `--resume` after the files, or `--resume auto`"));
    }
    found
}

/// What `report_to` can name, besides `none`.
const TRACKERS: [&str; 4] = ["tensorboard", "csv", "wandb", "trackio"];

fn trackers(config: &RunConfig) -> Vec<Problem> {
    let unknown = config.report_to.iter().filter(|name| !TRACKERS.contains(&name.as_str()) && *name != "none");
    let mut found: Vec<Problem> = unknown
        .map(|name| {
            let message = format!("`report_to` names \"{name}\", which this version cannot write to");
            let help = "take any of \"tensorboard\", \"csv\", \"wandb\", \"trackio\", or leave it out: metrics.jsonl and \
                        completions.jsonl are always written";
            Problem::new(&["report_to"], message).help(help)
        })
        .collect();
    if config.python.is_empty() {
        let help = "name a Python interpreter, or remove it";
        found.push(Problem::new(&["python"], "`python` is empty".to_owned()).help(help));
    }
    found
}

fn pushing(config: &RunConfig) -> Vec<Problem> {
    let mut found = Vec::new();
    if config.push_to_hub && config.offline {
        let message = "`push_to_hub` needs the network, and `offline` forbids it";
        let help = "leave one of them out; `candlewick push` brings a model to the Hub at any time";
        found.push(Problem::new(&["push_to_hub", "offline"], message).help(help));
    }
    let id = config.push_id();
    if config.push_to_hub && !crate::hub::is_repo_id(&id) {
        let message = format!("\"{id}\" is not a name that the Hub allows");
        let help = "set `hub_model_id` to `org/name`, of letters, digits, `-`, `_` and `.`";
        found.push(Problem::new(&["hub_model_id", "output_dir", "push_to_hub"], message).help(help));
    }
    found
}

fn without_effect(config: &RunConfig, is_set: &dyn Fn(&str) -> bool) -> Vec<Problem> {
    let found = conditional_keys().filter(|key| is_set(key)).filter_map(|key| Some((key, no_effect(config, key)?)));
    found
        .map(|(key, NoEffect { decided_by, why, read_by })| {
            let problem = Problem::new(&[key, decided_by], format!("`{key}` has no effect {why}"));
            match read_by {
                Some(algorithms) => problem.help(format!("remove it; it is read by {algorithms}")),
                None => problem,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_built_in_code_is_checked_too() {
        let config = RunConfig { model: "m".into(), train_file: "t".into(), ..RunConfig::default() };
        config.check().unwrap();
        let wrong = RunConfig { top_p: f64::NAN, num_generations: 0, ..config };
        let ConfigError::Invalid { diagnostics } = wrong.check().unwrap_err();
        assert_eq!(diagnostics.len(), 2);
    }
}
