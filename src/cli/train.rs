//! `candlewick train`: a run from settings to a checkpoint.

use super::settings::Settings;
use super::{Failure, print};
use candlewick::io::IoError;
use candlewick::recipe::{TrainOptions, plan, require_room, train};
use candlewick::trainer::{Outcome, stop::StopSignal};
use clap::Args;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Train a model.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick train configs/quickstart.toml\n  \
    candlewick train configs/quickstart.toml --learning-rate 1e-4 --set epsilon=0.1 --output-dir output/other\n  \
    candlewick train configs/quickstart.toml --resume auto")]
pub struct TrainArgs {
    #[command(flatten)]
    settings: Settings,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object at the end instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &TrainArgs) -> Result<ExitCode, Failure> {
    let mut layers = args.settings.layers();
    layers.must_find_data = true;
    let resolved = layers.resolve()?;
    if args.dry_run {
        let plan = plan(&resolved.config)?;
        require_room(&resolved.config)?;
        let text = if args.json { format!("{:#}\n", json!(plan)) } else { plan.render() };
        return print(&text).map(|()| ExitCode::SUCCESS);
    }
    candlewick::device::join_threads(resolved.config.threads)?;
    let stop = StopSignal::install().map_err(IoError::of("handle signals of", Path::new("this process")))?;
    let options = TrainOptions { stop, run_config: Some(resolved.to_toml()), rewards: None };
    let report = train(&resolved.config, options)?;
    let summary = &report.summary;
    let text = if args.json {
        let figures = |figures: Option<candlewick::telemetry::EvalFigures>| json!(figures);
        let object = json!({
            "before": figures(summary.before),
            "after": figures(summary.after),
            "steps": summary.steps,
            "seconds": summary.secs,
            "model": summary.model,
            "pushed": report.pushed.as_ref().and_then(|pushed| pushed.as_ref().ok()),
        });
        format!("{object:#}\n")
    } else {
        summary.render()
    };
    print(&text)?;
    if let Some(pushed) = report.pushed {
        let pushed = pushed?;
        tracing::info!("pushed to {} as {}", pushed.url, pushed.commit);
    }
    Ok(match report.outcome {
        Outcome::Finished => ExitCode::SUCCESS,
        Outcome::Interrupted(exit) => ExitCode::from(exit as u8),
    })
}
