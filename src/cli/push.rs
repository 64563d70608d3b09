//! `candlewick push`: a model folder becomes a commit on the Hugging Face Hub.

use super::{Failure, print};
use candlewick::env::HubEnv;
use candlewick::hub::{PushEvent, PushTarget, Pushed};
use candlewick::recipe::{PushPlan, plan_push, push};
use candlewick::telemetry::Transfer;
use clap::Args;
use serde_json::json;
use std::cell::RefCell;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Push a model folder to the Hugging Face Hub
///
/// The repository and the branch are made where they are missing. All files come in one commit, and only those that
/// differ are sent: a push that was cut off is made again by the same command. The access token is that of
/// `HF_TOKEN` or of `hf auth login`; it is never an argument.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(after_help = "Examples:\n  candlewick push output/quickstart me/quickstart --private\n  \
    candlewick push output/quickstart/checkpoint-40 me/quickstart --revision step-40\n  \
    candlewick push output/quickstart me/quickstart --dry-run")]
pub struct PushArgs {
    /// The output folder of a run, a checkpoint, or any folder with a model or an adapter.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Repository: `org/name`, or `name` for the account of the token.
    #[arg(value_name = "ORG/NAME")]
    repo: String,
    /// Branch to push to; a missing one is made from main.
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// Make a repository that is missing private.
    #[arg(long)]
    private: bool,
    /// First line of the commit's message.
    #[arg(long, value_name = "TEXT", default_value = "Upload model with candlewick")]
    commit_message: String,
    /// Push optimizer, logs and the other state of the training, too.
    #[arg(long)]
    include_training_state: bool,
    /// List the files with their sizes, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &PushArgs) -> Result<ExitCode, Failure> {
    let plan = plan_push(&args.folder, &args.repo, args.include_training_state)?;
    if args.dry_run {
        return print(&if args.json { plan_json(&plan) } else { plan_text(&plan, &args.repo) })
            .map(|()| ExitCode::SUCCESS);
    }
    for left_out in &plan.left_out {
        tracing::info!("not pushed: {} ({})", left_out.path, left_out.why);
    }
    let target =
        PushTarget { repo: args.repo.clone(), revision: args.revision.clone(), message: args.commit_message.clone() };
    let env = HubEnv::read();
    let transfer = RefCell::new(None);
    let told = |event: PushEvent| match event {
        PushEvent::Step(step) => tracing::info!("{step}"),
        PushEvent::Begin { bytes, .. } => *transfer.borrow_mut() = env.progress.then(|| Transfer::new(bytes)),
        PushEvent::Sent { file, bytes } => {
            if let Some(transfer) = transfer.borrow_mut().as_mut() {
                transfer.at(&file, bytes);
            }
        }
    };
    let is_private = args.private.then_some(true);
    let pushed = push(&env, &args.folder, &target, is_private, args.include_training_state, &told);
    transfer.borrow_mut().take();
    let pushed = pushed?;
    print(&if args.json { format!("{:#}\n", json!(pushed)) } else { pushed_text(&pushed) })?;
    Ok(ExitCode::SUCCESS)
}

fn plan_json(plan: &PushPlan) -> String {
    let files: Vec<_> = plan.files.iter().map(|file| json!({ "path": file.path, "bytes": file.bytes })).collect();
    format!("{:#}\n", json!({ "files": files, "bytes": plan.bytes(), "left_out": plan.left_out }))
}

fn plan_text(plan: &PushPlan, repo: &str) -> String {
    let mut text = format!("{} files, {} bytes, would be pushed to {repo}:\n", plan.files.len(), plan.bytes());
    for file in &plan.files {
        let note = if plan.has_new_card && file.path == "README.md" { "  (made by this push)" } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {:>14}  {}{note}", file.bytes, file.path);
    }
    if !plan.left_out.is_empty() {
        text.push_str("left out:\n");
    }
    for left_out in &plan.left_out {
        let _ = writeln!(text, "  {}  ({})", left_out.path, left_out.why);
    }
    text
}

fn pushed_text(pushed: &Pushed) -> String {
    let mut text = format!("{}\ncommit {}", pushed.url, pushed.commit);
    let (new, same) = (pushed.files.len(), pushed.num_unchanged);
    let _ = match new {
        0 => write!(text, ", which has all {same} files already"),
        _ => write!(text, ", {new} files new or changed, {same} as they were"),
    };
    text.push('\n');
    for file in &pushed.deleted {
        let _ = writeln!(text, "removed {file}, weights of an earlier push");
    }
    for file in &pushed.ignored {
        let _ = writeln!(text, "not pushed: {file} (the repository's .gitignore)");
    }
    text
}
