//! `candlewick validate`: are these configurations fit to be run?

use super::{Failure, print};
use candlewick::config::Layers;
use candlewick::error::{Diagnose, Exit};
use candlewick::recipe::{RecipeError, Validation, validate};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check configurations without running them: settings, data, model configuration, tokenizer, rewards.
///
/// Each file is one configuration. No weights are read, nothing is fetched and nothing is written.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  candlewick validate configs/quickstart.toml\n  candlewick validate configs/*.toml --json"
)]
pub struct ValidateArgs {
    /// Configuration files (TOML).
    #[arg(value_name = "CONFIG", required = true)]
    files: Vec<PathBuf>,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

/// Runs the verb; 2 where a configuration is not fit.
pub fn run(args: &ValidateArgs) -> Result<ExitCode, Failure> {
    let (mut objects, mut are_all_valid) = (Vec::new(), true);
    for file in &args.files {
        let found = check(file);
        are_all_valid &= found.is_ok();
        match (found, args.json) {
            (found, true) => objects.push(object(file, &found)),
            (Ok(found), false) => print(&line(file, &found))?,
            (Err(error), false) => {
                print(&format!("{}: not valid\n", file.display()))?;
                // The text; the code of a single error is not that of this verb.
                let _ = Failure::from(error).report();
            }
        }
    }
    if args.json {
        print(&format!("{:#}\n", Value::Array(objects)))?;
    }
    Ok(if are_all_valid { ExitCode::SUCCESS } else { ExitCode::from(Exit::Usage as u8) })
}

fn check(file: &Path) -> Result<Validation, RecipeError> {
    let mut layers = Layers::from_files([file]).with_process_env();
    layers.must_find_data = true;
    validate(&layers.resolve()?.config)
}

fn line(file: &Path, found: &Validation) -> String {
    let plan = found.plan.as_ref().map(|plan| {
        format!(
            " ({}, {} rows, {} steps of {} prompts)",
            plan.algorithm, plan.rows, plan.max_steps, plan.prompts_per_step
        )
    });
    let mut text = format!("{}: valid{}\n", file.display(), plan.unwrap_or_default());
    for sentence in &found.unchecked {
        text.extend(["  ", sentence, "\n"]);
    }
    text
}

fn object(file: &Path, found: &Result<Validation, RecipeError>) -> Value {
    match found {
        Ok(found) => json!({
            "config": file,
            "valid": true,
            "unchecked": found.unchecked,
            "plan": found.plan,
        }),
        Err(error) => json!({
            "config": file,
            "valid": false,
            "error": error.to_string(),
            "hint": error.hint(),
            "exit_code": error.exit() as u8,
        }),
    }
}
