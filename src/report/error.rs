//! Why there is no page.

use crate::error::{Diagnose, Exit};
use crate::io::IoError;
use std::path::PathBuf;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Not the folder of a run.
    #[error("{} is not the folder of a run: {}", path.display(), if *exists { "it holds no metrics.jsonl" } else { "it does not exist" })]
    NotARun { path: PathBuf, exists: bool, below: Vec<PathBuf> },
    /// A run that has logged nothing.
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
    /// A log without one line that could be read.
    #[error("{}:{line}: not a line of metrics: {problem}; nor is any other of its {num_lines} lines", path.display())]
    Unreadable { path: PathBuf, line: usize, num_lines: usize, problem: String },
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Diagnose for ReportError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotARun { below, .. } if !below.is_empty() => {
                let names: Vec<String> = below.iter().map(|path| path.display().to_string()).collect();
                format!("name the runs in it: candlewick report {}", names.join(" "))
            }
            Self::NotARun { .. } => "name the `output_dir` of a run: the folder with its metrics.jsonl".into(),
            Self::Empty { .. } => "the run has not finished a step: wait, or look at what it printed".into(),
            Self::Unreadable { .. } => "each line must be one JSON object with a `step`, as a run writes it".into(),
            Self::Io(error) => return error.hint(),
        })
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            _ => Exit::Data,
        }
    }
}
