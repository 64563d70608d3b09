//! Checks a configuration without running it: everything that a dry run checks, as far as it is on this machine.

use super::RecipeError;
use super::parts::graders;
use super::plan::{Plan, plan};
use super::rows::{TrainingRows, eval_rows};
use super::start::{find_model, row_kind};
use crate::config::{Algorithm, RunConfig};
use crate::data::{DataError, load_text};
use crate::hub::HubError;
use crate::reward::RewardError;
use std::error::Error;
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
    match of_hub(&error) {
        Some(HubError::NotCached { repo, .. }) => Ok(format!("{repo} was not looked at: it is not on this machine")),
        _ => Err(error),
    }
}

/// What the Hub or its cache said, wherever it was asked.
fn of_hub(error: &RecipeError) -> Option<&HubError> {
    match error {
        RecipeError::Hub(error) | RecipeError::Data(DataError::Hub(error)) => Some(error),
        RecipeError::Base { source, .. } => Some(source),
        RecipeError::Reward(RewardError::Model { reason, .. }) => {
            let reason: &(dyn Error + 'static) = reason.as_ref();
            reason.downcast_ref()
        }
        _ => None,
    }
}

fn check_model(settings: &RunConfig) -> Result<(), RecipeError> {
    if settings.architecture.is_some() {
        return Ok(());
    }
    find_model(settings).map(drop)
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
    let Some(data) = eval_rows(settings)? else { return Ok(()) };
    // A reward model is not graded: it ranks pairs.
    if settings.algorithm == Algorithm::Reward {
        return Ok(());
    }
    let (rewards, grader) = graders(settings, None)?;
    rewards.check_rows(&data.rows)?;
    grader.check_rows(&data.rows)?;
    Ok(())
}
