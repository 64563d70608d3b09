//! `candlewick report`: a page about runs.

use super::{Failure, print};
use candlewick::error::{Diagnose, Exit};
use candlewick::eval::labels;
use candlewick::report::write_report;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write one HTML page about runs: curves, distributions, completions, settings.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick report output/quickstart\n  \
    candlewick report output/seed1 output/seed2 --label \"seed 1\" --label \"seed 2\" --output compare.html")]
pub struct ReportArgs {
    /// Folders of runs (their `output_dir`); they may still be going.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page: a file, or a folder that gets a report.html.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Name of a run on the page, one a run in their order [default: the folder's].
    #[arg(long = "label", value_name = "NAME")]
    labels: Vec<String>,
}

/// Arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{labels} labels for {runs} runs")]
struct LabelsError {
    labels: usize,
    runs: usize,
}

impl Diagnose for LabelsError {
    fn hint(&self) -> Option<String> {
        Some("Give --label once for each run, in their order, or leave it out.".into())
    }

    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// Runs the verb.
pub fn run(args: &ReportArgs) -> Result<ExitCode, Failure> {
    let names: Vec<String> = args.runs.iter().map(|run| run.to_string_lossy().into_owned()).collect();
    let labels = match &args.labels[..] {
        [] => labels(&names),
        given if given.len() == names.len() => given.to_vec(),
        given => return Err(LabelsError { labels: given.len(), runs: names.len() }.into()),
    };
    let runs: Vec<(PathBuf, String)> = args.runs.iter().cloned().zip(labels).collect();
    let report = write_report(&runs, &args.output)?;
    report.problems.iter().for_each(|problem| tracing::warn!("{problem}"));
    let kib = report.bytes.div_ceil(1024);
    print(&format!(
        "{} ({kib} KiB, {} run{})\n",
        report.path.display(),
        runs.len(),
        if runs.len() == 1 { "" } else { "s" }
    ))?;
    Ok(ExitCode::SUCCESS)
}
