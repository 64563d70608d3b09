//! From settings to how data files are read, and what can be wrong with those settings.

use super::checks::Problem;
use super::diagnostic::{ConfigError, Diagnostic, Place};
use super::run_config::RunConfig;
use crate::data::{AnswerRule, PromptTemplate, RowKind, RowsConfig};

/// Every rule of the data settings that the configuration breaks.
pub(super) fn problems(config: &RunConfig) -> Vec<Problem> {
    let template = config.prompt_template.as_deref().map(PromptTemplate::parse).and_then(Result::err);
    let pattern = config.answer_regex.as_deref().map(AnswerRule::pattern).and_then(Result::err);
    let template = template.map(|why| {
        Problem::new(&["prompt_template"], format!("`prompt_template` {why}"))
            .help("name columns in braces: \"Question: {question}\\nAnswer:\"")
    });
    let pattern = pattern.map(|why| {
        Problem::new(&["answer_regex"], format!("`answer_regex` {why}"))
            .help("in TOML, 'single quotes' leave backslashes alone: '#### (-?[0-9,]+)'")
    });
    template.into_iter().chain(pattern).collect()
}

impl RunConfig {
    /// How the data files are read.
    ///
    /// # Errors
    /// The template or the pattern of the answer cannot be used.
    pub fn rows_config(&self, kind: RowKind) -> Result<RowsConfig, ConfigError> {
        let invalid = |key: &str, why: String| {
            let message = format!("`{key}` {why}");
            let diagnostic = Diagnostic { message, place: Place::Default, help: Vec::new() };
            ConfigError::Invalid { diagnostics: vec![diagnostic] }
        };
        let template = self.prompt_template.as_deref().map(PromptTemplate::parse).transpose();
        let pattern = self.answer_regex.as_deref().map(AnswerRule::pattern).transpose();
        let pattern = pattern.map_err(|why| invalid("answer_regex", why))?;
        let (column, name) = (self.answer_column.clone(), self.answer_column.clone());
        Ok(RowsConfig {
            prompt_column: self.prompt_column.clone(),
            prompt_template: template.map_err(|why| invalid("prompt_template", why))?,
            answer: pattern.map(|pattern| AnswerRule { column, name, pattern: Some(pattern) }),
            completion_column: self.completion_column.clone(),
            chosen_column: self.chosen_column.clone(),
            rejected_column: self.rejected_column.clone(),
            on_bad_row: self.on_bad_row,
            kind,
            ..RowsConfig::default()
        })
    }
}
