//! Checks a configuration without running it: everything that a dry run checks, as far as it is on this machine.

use super::RecipeError;
use super::parts::{graders, load_model};
use super::plan::{Plan, plan};
use super::rows::{TrainingRows, load_source};
use super::start::row_kind;
use crate::config::{Algorithm, RunConfig};
use crate::data::{DataError, RowKind, load_text};
use crate::hub::HubError;
use std::path::Path;

/// What was found to be right.
#[derive(Debug, Clone)]
pub struct Validation {
    /// What the run would do; None where the model or the data are not on this machine.
    pub plan: Option<Plan>,
    /// What was not looked at, a sentence each.
    pub unchecked: Vec<String>,
}

/// Checks settings, data, model configuration, tokenizer and rewards. No weights are read, nothing is fetched or written:
/// of what is not on this machine it is said that it was not looked at.
///
/// # Errors
/// Whatever the run would fail with before its first step, damaged weight files and the output directory apart.
pub fn validate(settings: &RunConfig) -> Result<Validation, RecipeError> {
    settings.check()?;
    // A run that pushes is not offline, and nothing is pushed here.
    let settings = RunConfig { offline: true, push_to_hub: false, ..settings.clone() };
    let error = match plan(&settings) {
        Ok(plan) => return Ok(Validation { plan: Some(plan), unchecked: Vec::new() }),
        Err(error) => error,
    };
    let mut unchecked = vec![absent(error)?];
    // What comes after the part that is not here was not looked at by the plan.
    for check in [check_model, check_data, check_eval_data] {
        if let Err(error) = check(&settings) {
            unchecked.push(absent(error)?);
        }
    }
    unchecked.sort();
    unchecked.dedup();
    Ok(Validation { plan: None, unchecked })
}

/// The sentence about something that would have to be fetched; any other error stays one.
fn absent(error: RecipeError) -> Result<String, RecipeError> {
    match error {
        RecipeError::Hub(HubError::NotCached { repo, .. })
        | RecipeError::Data(DataError::Hub(HubError::NotCached { repo, .. })) => {
            Ok(format!("{repo} was not looked at: it is not on this machine"))
        }
        error => Err(error),
    }
}

fn check_model(settings: &RunConfig) -> Result<(), RecipeError> {
    if settings.architecture.is_some() {
        return Ok(());
    }
    let (revision, template) = (settings.revision.as_deref(), settings.chat_template.as_deref());
    load_model(&settings.model, revision, true, template).map(drop)
}

fn check_data(settings: &RunConfig) -> Result<(), RecipeError> {
    if settings.algorithm == Algorithm::Pretrain {
        load_text(Path::new(&settings.train_file))?;
        return Ok(());
    }
    let rows = TrainingRows::load(settings, row_kind(settings))?;
    if settings.samples_completions() {
        let (rewards, _) = graders(settings, None)?;
        rows.parts.iter().try_for_each(|part| rewards.check_rows(&part.data.rows))?;
    }
    Ok(())
}

fn check_eval_data(settings: &RunConfig) -> Result<(), RecipeError> {
    let Some(source) = settings.eval_source()? else { return Ok(()) };
    let mut data = load_source(&source, &settings.rows_config(RowKind::Prompt)?, true)?.dataset;
    data.rows.truncate(settings.eval_max_rows.unwrap_or(usize::MAX));
    let (rewards, grader) = graders(settings, None)?;
    rewards.check_rows(&data.rows)?;
    grader.check_rows(&data.rows)?;
    Ok(())
}
