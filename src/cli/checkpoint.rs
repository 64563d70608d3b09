//! `candlewick checkpoint`: what a run has saved, what is in a checkpoint, and whether it is as it was written.

use super::{Failure, print};
use candlewick::checkpoint::{ListedCheckpoint, Verified, list_checkpoints, verify_all};
use candlewick::error::Exit;
use candlewick::recipe::{CheckpointSummary, inspect};
use clap::{Args, Subcommand};
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// List, inspect and verify the checkpoints of runs
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    verb: CheckpointVerb,
}

#[derive(Debug, Subcommand)]
enum CheckpointVerb {
    /// List the checkpoints of a run: step, time, size, complete or why not, best and last.
    #[command(after_help = "Example:\n  candlewick checkpoint ls output/quickstart")]
    Ls {
        /// The output folder of a run.
        #[arg(value_name = "RUN")]
        run: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Say what is in a checkpoint: model, progress, optimizer, rollouts, settings.
    #[command(after_help = "Example:\n  candlewick checkpoint inspect output/quickstart/checkpoint-40")]
    Inspect {
        /// A checkpoint folder.
        #[arg(value_name = "CHECKPOINT")]
        checkpoint: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hold every file of checkpoints against the size and the SHA-256 with which it was written.
    ///
    /// The final model in an output folder is verified, too. Exit code 4 where a file is not what was written.
    #[command(after_help = "Example:\n  candlewick checkpoint verify output/quickstart/checkpoint-*")]
    Verify {
        /// Checkpoint folders.
        #[arg(value_name = "CHECKPOINT", required = true)]
        checkpoints: Vec<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
pub fn run(args: &CheckpointArgs) -> Result<ExitCode, Failure> {
    match &args.verb {
        CheckpointVerb::Ls { run, json } => {
            let found = list_checkpoints(run)?;
            print(&if *json { format!("{:#}\n", json!({ "checkpoints": found })) } else { listing(run, &found) })?;
        }
        CheckpointVerb::Inspect { checkpoint, json } => {
            let found = inspect(checkpoint)?;
            print(&if *json { format!("{:#}\n", json!(found)) } else { summary(&found) })?;
        }
        CheckpointVerb::Verify { checkpoints, json } => {
            let found = verify_all(checkpoints)?;
            print(&if *json { format!("{:#}\n", json!({ "checkpoints": found })) } else { verdicts(&found) })?;
            if found.iter().any(|checkpoint| !checkpoint.is_whole()) {
                return Ok(ExitCode::from(Exit::Model as u8));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn listing(run: &Path, found: &[ListedCheckpoint]) -> String {
    if found.is_empty() {
        return format!("{} holds no checkpoint\n", run.display());
    }
    let mut text = format!("{:>8}  {:<20}  {:>9}  state\n", "step", "saved", "size");
    for checkpoint in found {
        let marks = [(checkpoint.is_best, " best"), (checkpoint.is_last, " last")];
        let marks: String = marks.iter().filter(|(is_it, _)| *is_it).map(|(_, word)| *word).collect();
        let state = checkpoint.problem.as_deref().unwrap_or("complete");
        let time = checkpoint.saved.as_deref().unwrap_or("unknown");
        // Writing to a String does not fail.
        let _ = writeln!(text, "{:>8}  {time:<20}  {:>9}  {state}{marks}", checkpoint.step, size(checkpoint.bytes));
    }
    text
}

fn summary(found: &CheckpointSummary) -> String {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut rows = vec![
        ("checkpoint", found.folder.display().to_string()),
        ("written by", format!("candlewick {}", found.candlewick_version)),
        ("step", found.max_steps.map_or_else(|| found.step.to_string(), |max| format!("{} of {max}", found.step))),
        ("algorithm", known(&found.algorithm)),
        ("start model", found.start_model.clone()),
        ("model", format!("{}, {}", known(&found.model_type), found.shape)),
        ("parameters", format!("{} in {} tensors, {}", found.parameters, found.tensors, found.dtype)),
        ("tokens seen", found.num_tokens.to_string()),
        ("rows drawn", format!("{} ({:.2} epochs)", found.rows_drawn, found.epoch)),
        ("optimizer", found.optimizer.clone()),
        ("reference", if found.has_reference { "saved: it has moved".into() } else { "none: the start model".into() }),
        (
            "rollouts",
            match found.saved_rollouts {
                Some(count) => format!("{count} completions wait to be used again"),
                None => "none".to_owned(),
            },
        ),
    ];
    if let Some((step, metric)) = found.best {
        rows.push(("best so far", format!("step {step}, {metric:.4}")));
    }
    let files: Vec<String> = found.files.iter().map(|(name, bytes)| format!("{name} {}", size(*bytes))).collect();
    rows.push(("files", format!("{} in all: {}", size(found.bytes), files.join(", "))));
    if !found.unlisted.is_empty() {
        rows.push(("not its own", found.unlisted.join(", ")));
    }
    let changed: Vec<String> = found.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    rows.push(("settings", format!("{} differ from the defaults", changed.len())));
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for line in changed {
        let _ = writeln!(text, "  {line}");
    }
    text
}

fn verdicts(found: &[Verified]) -> String {
    let mut text = String::new();
    for checkpoint in found {
        let folder = checkpoint.folder.display();
        if checkpoint.is_whole() {
            let _ = writeln!(text, "{folder}: {} files, {}, all as written", checkpoint.files, size(checkpoint.bytes));
        }
        for problem in &checkpoint.problems {
            let _ = writeln!(text, "{folder}: {} {}", problem.file, problem.problem);
        }
        for file in &checkpoint.unlisted {
            let _ = writeln!(text, "{folder}: {file} is no part of it");
        }
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
