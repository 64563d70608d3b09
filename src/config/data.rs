//! From settings to where data come from and how they are read, and what can be wrong with those settings.

use super::checks::Problem;
use super::diagnostic::{ConfigError, Diagnostic, Place};
use super::run_config::RunConfig;
use crate::data::{AnswerRule, PromptTemplate, RowKind, RowsConfig, Slice, Source, SplitSource};
use serde::{Deserialize, Serialize};

/// One of several sources of training rows. It names a `file` or a `dataset_name`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixConfig {
    /// File with rows, as `train_file`. Default none: `dataset_name` says where they are.
    pub file: Option<String>,
    /// Data set on the Hub or in a folder, as the setting of this name. Default none: `file` says where the rows are.
    pub dataset_name: Option<String>,
    /// Its configuration. Default none: the only one, or the default one.
    pub dataset_config: Option<String>,
    /// Branch, tag or commit on the Hub. Default none: the main branch.
    pub dataset_revision: Option<String>,
    /// Its split, or a part of it such as `train[:500]`. Default none: `train`.
    pub dataset_split: Option<String>,
    /// Share of the rows that are drawn from this source, relative to the other weights, above 0.
    /// Default `1.0`: all sources alike, however long they are.
    pub weight: f64,
    /// Column with the prompt. Default none: the run's `prompt_column`.
    pub prompt_column: Option<String>,
    /// Prompt with columns in braces. Default none: the run's `prompt_template`, unless `prompt_column` is set here.
    pub prompt_template: Option<String>,
    /// Column with the answer; rewards find it under the name of the run's. Default none: the run's `answer_column`.
    pub answer_column: Option<String>,
    /// What of the answer column is the answer. Default none: the run's `answer_regex`, unless `answer_column` is set here.
    pub answer_regex: Option<String>,
    /// Column with the completion. Default none: the run's `completion_column`.
    pub completion_column: Option<String>,
    /// Column with the better completion of a pair. Default none: the run's `chosen_column`.
    pub chosen_column: Option<String>,
    /// Column with the worse completion of a pair. Default none: the run's `rejected_column`.
    pub rejected_column: Option<String>,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self {
            file: None,
            dataset_name: None,
            dataset_config: None,
            dataset_revision: None,
            dataset_split: None,
            weight: 1.0,
            prompt_column: None,
            prompt_template: None,
            answer_column: None,
            answer_regex: None,
            completion_column: None,
            chosen_column: None,
            rejected_column: None,
        }
    }
}

/// A source of training rows, how they are read, and how much of them there shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingSource {
    pub source: Source,
    pub rows: RowsConfig,
    pub weight: f64,
}

/// What is wrong with the value of a key, as the end of a sentence.
type Fault = (&'static str, String);

/// Every rule of the data settings that the configuration breaks.
pub(super) fn problems(config: &RunConfig) -> Vec<Problem> {
    let mut found: Vec<Problem> = Vec::new();
    let faults = rows_of(config, RowKind::Prompt).err().into_iter();
    let splits = [
        ("dataset_train_split", Some(&config.dataset_train_split)),
        ("dataset_test_split", config.dataset_test_split.as_ref()),
    ];
    let bad_splits = splits.into_iter().filter_map(|(key, text)| Some((key, Slice::parse(text?).err()?)));
    for (key, why) in faults.flatten().chain(bad_splits) {
        found.push(with_help(key, Problem::new(&[key], format!("`{key}` {why}"))));
    }
    for (index, mix) in config.train_mix.iter().enumerate() {
        for (key, why) in mix_faults(config, mix) {
            let problem = Problem::new(&["train_mix"], format!("source {} of `train_mix`: `{key}` {why}", index + 1));
            found.push(with_help(key, Problem { spot: Some(format!("train_mix[{index}].{key}")), ..problem }));
        }
    }
    found.extend(two_sources(config));
    found
}

fn with_help(key: &str, problem: Problem) -> Problem {
    match key {
        "prompt_template" => problem.help("name columns in braces: \"Question: {question}\\nAnswer:\""),
        "answer_regex" => problem.help("in TOML, 'single quotes' leave backslashes alone: '#### (-?[0-9,]+)'"),
        "dataset_train_split" | "dataset_test_split" | "dataset_split" => {
            problem.help("write \"train\", or a part of it such as \"train[:500]\" or \"train[10%:20%]\"")
        }
        "file" => problem.help("name a file, or a data set as `dataset_name`"),
        _ => problem,
    }
}

/// Two settings that say what the same thing is read from.
fn two_sources(config: &RunConfig) -> Vec<Problem> {
    let mut found = Vec::new();
    let only_trains = config.dataset_name.is_some() && config.dataset_test_split.is_none();
    if only_trains && !config.train_file.is_empty() {
        let message = "`train_file` and `dataset_name` both say what to train on";
        let help =
            "leave one out; beside a `train_file`, a `dataset_test_split` makes the data set that of evaluations";
        found.push(Problem::new(&["dataset_name", "train_file"], message).help(help));
    } else if only_trains && !config.train_mix.is_empty() {
        let message = "`train_mix` and `dataset_name` both say what to train on";
        let help = "make the data set a `[[train_mix]]` table of its own: `dataset_name` is a key there too";
        found.push(Problem::new(&["dataset_name", "train_mix"], message).help(help));
    }
    if config.eval_file.is_some() && config.dataset_test_split.is_some() {
        let message = "`eval_file` and `dataset_test_split` both say what to evaluate on";
        found.push(Problem::new(&["dataset_test_split", "eval_file"], message).help("leave one out"));
    }
    found
}

/// What is wrong with one source of several.
fn mix_faults(config: &RunConfig, mix: &MixConfig) -> Vec<Fault> {
    let mut found: Vec<Fault> = Vec::new();
    if !(mix.weight.is_finite() && mix.weight > 0.0) {
        found.push(("weight", format!("must be above 0 and finite, not {}", mix.weight)));
    }
    match (mix.file.as_deref(), mix.dataset_name.as_deref()) {
        (None, None) => found.push(("file", "is not set".to_owned())),
        (Some(_), Some(_)) => {
            found.push(("file", "is set, and so is `dataset_name`: a source has one of them".to_owned()));
        }
        (Some(name), None) | (None, Some(name)) if name.trim().is_empty() => {
            found.push(("file", "is empty".to_owned()));
        }
        _ => {}
    }
    if mix.file.is_some() {
        let of_dataset = [
            ("dataset_config", mix.dataset_config.is_some()),
            ("dataset_revision", mix.dataset_revision.is_some()),
            ("dataset_split", mix.dataset_split.is_some()),
        ];
        let set = of_dataset.into_iter().filter(|(_, is_set)| *is_set);
        found.extend(set.map(|(key, _)| (key, "has no effect on a `file`".to_owned())));
    }
    if mix.prompt_column.is_some() && mix.prompt_template.is_some() {
        found
            .push(("prompt_column", "has no effect with `prompt_template`, which names the columns itself".to_owned()));
    }
    if let Some(why) = mix.dataset_split.as_deref().and_then(|text| Slice::parse(text).err()) {
        found.push(("dataset_split", why));
    }
    let of_run = rows_of(config, RowKind::Prompt).err().unwrap_or_default();
    let own = rows_of(&as_run(config, mix), RowKind::Prompt).err().unwrap_or_default();
    // What is wrong with the run's own settings is told there.
    found.extend(own.into_iter().filter(|fault| !of_run.contains(fault)));
    found
}

/// The settings of the run as a source changes them.
fn as_run(config: &RunConfig, mix: &MixConfig) -> RunConfig {
    let or = |own: &Option<String>, of_run: &String| own.clone().unwrap_or_else(|| of_run.clone());
    let of_run = |own_column: &Option<String>, of_run: &Option<String>| {
        if own_column.is_some() { None } else { of_run.clone() }
    };
    RunConfig {
        prompt_column: or(&mix.prompt_column, &config.prompt_column),
        prompt_template: mix.prompt_template.clone().or_else(|| of_run(&mix.prompt_column, &config.prompt_template)),
        answer_column: or(&mix.answer_column, &config.answer_column),
        answer_regex: mix.answer_regex.clone().or_else(|| of_run(&mix.answer_column, &config.answer_regex)),
        completion_column: or(&mix.completion_column, &config.completion_column),
        chosen_column: or(&mix.chosen_column, &config.chosen_column),
        rejected_column: or(&mix.rejected_column, &config.rejected_column),
        ..config.clone()
    }
}

/// How the data files are read, or the keys whose values cannot be used.
fn rows_of(config: &RunConfig, kind: RowKind) -> Result<RowsConfig, Vec<Fault>> {
    let template = config.prompt_template.as_deref().map(PromptTemplate::parse).transpose();
    let pattern = config.answer_regex.as_deref().map(AnswerRule::pattern).transpose();
    let (prompt_template, pattern) = match (template, pattern) {
        (Ok(template), Ok(pattern)) => (template, pattern),
        (template, pattern) => {
            let template = template.err().map(|why| ("prompt_template", why));
            return Err(template.into_iter().chain(pattern.err().map(|why| ("answer_regex", why))).collect());
        }
    };
    let (column, name) = (config.answer_column.clone(), config.answer_column.clone());
    Ok(RowsConfig {
        prompt_column: config.prompt_column.clone(),
        prompt_template,
        answer: pattern.map(|pattern| AnswerRule { column, name, pattern: Some(pattern) }),
        completion_column: config.completion_column.clone(),
        chosen_column: config.chosen_column.clone(),
        rejected_column: config.rejected_column.clone(),
        on_bad_row: config.on_bad_row,
        kind,
        ..RowsConfig::default()
    })
}

fn invalid((key, why): Fault) -> ConfigError {
    let diagnostic = Diagnostic { message: format!("`{key}` {why}"), place: Place::Default, help: Vec::new() };
    ConfigError::Invalid { diagnostics: vec![diagnostic] }
}

fn slice(key: &'static str, text: &str) -> Result<Slice, ConfigError> {
    Slice::parse(text).map_err(|why| invalid((key, why)))
}

impl RunConfig {
    /// How the data files are read.
    ///
    /// # Errors
    /// The template or the pattern of the answer cannot be used.
    pub fn rows_config(&self, kind: RowKind) -> Result<RowsConfig, ConfigError> {
        rows_of(self, kind).map_err(|faults| match faults.into_iter().next() {
            Some(fault) => invalid(fault),
            None => ConfigError::Invalid { diagnostics: Vec::new() },
        })
    }

    /// Where the training rows come from: one source at least.
    ///
    /// # Errors
    /// A template, pattern or split cannot be used.
    pub fn training_sources(&self, kind: RowKind) -> Result<Vec<TrainingSource>, ConfigError> {
        if self.train_mix.is_empty() {
            let source = match &self.dataset_name {
                Some(_) if self.train_file.is_empty() => {
                    self.split("dataset_train_split", &self.dataset_train_split)?
                }
                _ => Source::File(self.train_file.clone().into()),
            };
            return Ok(vec![TrainingSource { source, rows: self.rows_config(kind)?, weight: 1.0 }]);
        }
        self.train_mix.iter().map(|mix| self.mixed(mix, kind)).collect()
    }

    fn mixed(&self, mix: &MixConfig, kind: RowKind) -> Result<TrainingSource, ConfigError> {
        let source = match (&mix.file, &mix.dataset_name) {
            (None, Some(name)) => Source::Split(SplitSource {
                name: name.clone(),
                config: mix.dataset_config.clone(),
                revision: mix.dataset_revision.clone(),
                slice: slice("dataset_split", mix.dataset_split.as_deref().unwrap_or("train"))?,
            }),
            (file, _) => Source::File(file.clone().unwrap_or_default().into()),
        };
        let mut rows = as_run(self, mix).rows_config(kind)?;
        // Rewards know the answer by one name, whatever a source calls it.
        if let Some(column) = mix.answer_column.clone().filter(|column| *column != self.answer_column) {
            let pattern = rows.answer.take().and_then(|rule| rule.pattern);
            rows.answer = Some(AnswerRule { column, name: self.answer_column.clone(), pattern });
        }
        Ok(TrainingSource { source, rows, weight: mix.weight })
    }

    /// Where the rows of evaluations come from, where there are any.
    ///
    /// # Errors
    /// The split cannot be used.
    pub fn eval_source(&self) -> Result<Option<Source>, ConfigError> {
        match (&self.eval_file, &self.dataset_test_split) {
            (Some(file), _) => Ok(Some(Source::File(file.into()))),
            (None, Some(split)) if self.dataset_name.is_some() => self.split("dataset_test_split", split).map(Some),
            (None, _) => Ok(None),
        }
    }

    /// Whether there are rows that evaluations measure on.
    #[must_use]
    pub fn has_eval_rows(&self) -> bool {
        self.eval_file.is_some() || (self.dataset_name.is_some() && self.dataset_test_split.is_some())
    }

    fn split(&self, key: &'static str, text: &str) -> Result<Source, ConfigError> {
        Ok(Source::Split(SplitSource {
            name: self.dataset_name.clone().unwrap_or_default(),
            config: self.dataset_config.clone(),
            revision: self.dataset_revision.clone(),
            slice: slice(key, text)?,
        }))
    }
}
