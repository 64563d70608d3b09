//! One HTML page about one or several runs, from the files that they leave: curves, distributions, completions, settings.
//!
//! `run` reads a run's folder, `curves`, `distribution` and `texts` choose what of it goes onto the page,
//! `html` puts it together. The page is one file that loads nothing: its style and scripts (`page/`) are parts of this
//! program, its data is JSON inside it. It stays below 2 MB; what was left out for that is said on the page.

mod curves;
mod distribution;
mod error;
mod html;
mod run;
mod texts;

pub use error::ReportError;
pub use run::{Run, Status};

use crate::io::{IoError, create_dirs, parent_of, write_atomic};
use std::path::{Path, PathBuf};

/// A page that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What could not be read, run by run, as sentences.
    pub problems: Vec<String>,
}

/// Writes the page about `runs`, folders and their labels, to `output`; into a folder as `report.html`.
///
/// # Errors
/// [`ReportError`] where a folder is no run or has nothing to show, or the page cannot be written.
pub fn write_report(runs: &[(PathBuf, String)], output: &Path) -> Result<Report, ReportError> {
    let runs: Vec<Run> = runs.iter().map(|(folder, label)| Run::read(folder, label)).collect::<Result<_, _>>()?;
    let path = if output.is_dir() { output.join("report.html") } else { output.to_owned() };
    let page = page(&runs, &jiff::Zoned::now())?;
    create_dirs(parent_of(&path))?;
    write_atomic(&path, |file| file.write_all(page.as_bytes()))?;
    let problems = runs.iter().flat_map(|run| run.problems.iter().map(|text| format!("{}: {text}", run.label)));
    Ok(Report { path, bytes: page.len() as u64, problems: problems.collect() })
}

/// The page as text.
///
/// # Errors
/// Fails where the completions of a run can no longer be read.
pub fn page(runs: &[Run], now: &jiff::Zoned) -> Result<String, IoError> {
    let curves = curves::curves(runs);
    let distributions = distribution::distributions(runs);
    let texts = texts::texts(runs)?;
    let members = runs.iter().zip(curves).zip(distributions.runs).zip(texts);
    let runs: Vec<serde_json::Value> = members
        .map(|(((run, curves), distribution), texts)| {
            serde_json::json!({
                "label": run.label,
                "folder": run.folder,
                "status": run.status.words(),
                "problems": run.problems,
                "curves": curves,
                "distribution": distribution,
                "texts": texts,
                "config": run.config,
            })
        })
        .collect();
    Ok(html::page(&serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "written": now.strftime("%Y-%m-%d %H:%M %:z").to_string(),
        "bins": distributions.bins,
        "answers": distributions.answers,
        "ranges": distributions.ranges,
        "runs": runs,
    })))
}

#[cfg(test)]
mod tests;
