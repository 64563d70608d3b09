//! `candlewick ls` and `candlewick cp`: the recipes that come with the program.

use super::{Failure, print};
use candlewick::recipe::{copy_recipe, shipped_recipes};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// List the recipes that come with the program.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  candlewick ls")]
pub struct ListArgs {
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

/// Copy a recipe that comes with the program, to change it and train with it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick cp quickstart\n  candlewick cp addition/grpo my.toml")]
pub struct CopyArgs {
    /// Its name, as `candlewick ls` prints it.
    #[arg(value_name = "RECIPE")]
    name: String,
    /// The new file, or a folder for it [default: a file of the recipe's name here].
    #[arg(value_name = "FILE")]
    to: Option<PathBuf>,
    /// Replace a file that exists.
    #[arg(long)]
    force: bool,
}

/// Runs `ls`.
pub fn list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let recipes: Vec<_> = shipped_recipes().collect();
    let text = if args.json {
        let entry = |recipe: &candlewick::recipe::ShippedRecipe| json!({ "name": recipe.name, "description": recipe.description(), "needs": recipe.needs() });
        format!("{:#}\n", json!(recipes.iter().map(entry).collect::<Vec<_>>()))
    } else {
        let width = recipes.iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
        recipes.iter().fold(String::new(), |mut text, recipe| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:<width$}  {}", recipe.name, recipe.description());
            text
        })
    };
    print(&text).map(|()| ExitCode::SUCCESS)
}

/// Runs `cp`.
pub fn copy(args: &CopyArgs) -> Result<ExitCode, Failure> {
    let copied = copy_recipe(&args.name, args.to.as_deref(), args.force)?;
    let mut text = format!("{}\n", copied.path.display());
    for need in &copied.needs {
        let _ = writeln!(text, "  needs {} ({}), which is not here: {}", need.path, need.key, need.origin);
    }
    print(&text).map(|()| ExitCode::SUCCESS)
}
