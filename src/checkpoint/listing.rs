//! The checkpoints of a run as a person wants to see them: which are there, which can be used, which are damaged.
//!
//! Reads only, and takes no lock: it may look at a run that goes on.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::manifest::{FileProblem, MANIFEST_FILE, Manifest, files_below, unlisted_files, wrong_files};
use super::{CheckpointDir, CheckpointError, TrainingState};
use crate::io::IoError;

/// A checkpoint of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedCheckpoint {
    pub folder: PathBuf,
    /// Optimizer steps done in it.
    pub step: u64,
    /// When it was finished: RFC 3339, UTC.
    pub saved: Option<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Why it cannot be continued from; `None` where every file is there in the right size.
    pub problem: Option<String>,
    /// Whether its evaluation was the best so far.
    pub is_best: bool,
    /// Whether it is the newest that can be continued from.
    pub is_last: bool,
}

/// What the verification of a checkpoint found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub folder: PathBuf,
    /// Files that the manifest lists.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that are not what was written.
    pub problems: Vec<FileProblem>,
    /// Files that the manifest does not know.
    pub unlisted: Vec<String>,
}

impl Verified {
    /// Whether every file is what was written.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The checkpoints of the run in `output_dir`, oldest first. Sizes are compared; [`verify_all`] reads the contents.
///
/// # Errors
/// [`CheckpointError::NotFound`] where there is no such folder.
pub fn list_checkpoints(output_dir: &Path) -> Result<Vec<ListedCheckpoint>, CheckpointError> {
    if !output_dir.is_dir() {
        return Err(CheckpointError::NotFound { output_dir: output_dir.to_owned() });
    }
    let mut found = Vec::new();
    for (step, folder) in CheckpointDir::new(output_dir).list()? {
        let problem = problem_of(&folder, step)?;
        let saved = saved_at(&folder);
        let bytes = bytes_below(&folder)?;
        found.push(ListedCheckpoint { folder, step, saved, bytes, problem, is_best: false, is_last: false });
    }
    if let Some(last) = found.iter_mut().rfind(|checkpoint| checkpoint.problem.is_none()) {
        last.is_last = true;
        let best = TrainingState::load(&last.folder).ok().and_then(|state| state.best).map(|best| best.step);
        for checkpoint in &mut found {
            checkpoint.is_best = Some(checkpoint.step) == best;
        }
    }
    Ok(found)
}

/// Reads every file of the checkpoints and holds it against its manifest. A run's folder without a model of its own stands
/// for all of its checkpoints.
///
/// # Errors
/// [`CheckpointError::NotFound`] where a folder does not exist; read errors. Damage is no error but what was asked for.
pub fn verify_all(folders: &[PathBuf]) -> Result<Vec<Verified>, CheckpointError> {
    let mut found = Vec::new();
    for folder in folders {
        if !folder.is_dir() {
            return Err(CheckpointError::NotFound { output_dir: folder.clone() });
        }
        let inside = CheckpointDir::new(folder).list()?;
        if folder.join(MANIFEST_FILE).exists() || inside.is_empty() {
            found.push(verify_one(folder, inside.is_empty())?);
        } else {
            for (_, folder) in inside {
                found.push(verify_one(&folder, true)?);
            }
        }
    }
    Ok(found)
}

/// `is_closed`: whether nothing but the checkpoint belongs into the folder.
fn verify_one(folder: &Path, is_closed: bool) -> Result<Verified, CheckpointError> {
    let mut verified =
        Verified { folder: folder.to_owned(), files: 0, bytes: 0, problems: Vec::new(), unlisted: Vec::new() };
    match Manifest::read(folder) {
        Ok(manifest) => {
            verified.files = manifest.files.len();
            verified.bytes = manifest.files.values().map(|file| file.bytes).sum();
            verified.problems = wrong_files(folder, &manifest, true)?;
            let has_steps = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("checkpoint-"));
            if is_closed && has_steps {
                verified.unlisted = unlisted_files(folder, &manifest)?;
            }
        }
        Err(CheckpointError::Corrupt { file, problem, .. }) => verified.problems.push(FileProblem { file, problem }),
        Err(other) => return Err(other),
    }
    Ok(verified)
}

/// Why a checkpoint cannot be continued from, as far as names and sizes tell.
fn problem_of(folder: &Path, step: u64) -> Result<Option<String>, CheckpointError> {
    match Manifest::read(folder) {
        Ok(manifest) if manifest.step != step => Ok(Some(format!("{MANIFEST_FILE} is that of step {}", manifest.step))),
        Ok(manifest) => {
            let wrong = wrong_files(folder, &manifest, false)?;
            Ok(wrong.first().map(|FileProblem { file, problem }| format!("{file} {problem}")))
        }
        Err(CheckpointError::Corrupt { file, problem, .. }) => Ok(Some(format!("{file} {problem}"))),
        Err(CheckpointError::Io(error)) => Err(error.into()),
        Err(other) => Ok(Some(other.to_string())),
    }
}

fn saved_at(folder: &Path) -> Option<String> {
    let modified = fs::metadata(folder.join(MANIFEST_FILE)).ok()?.modified().ok()?;
    let time = Timestamp::try_from(modified).ok()?.round(Unit::Second).ok()?;
    Some(time.to_string())
}

/// Bytes of all files below a folder.
pub(super) fn bytes_below(folder: &Path) -> Result<u64, IoError> {
    let sizes = files_below(folder)?.into_iter().map(|name| {
        let path = folder.join(name);
        fs::symlink_metadata(&path).map(|found| found.len()).map_err(IoError::of("read", &path))
    });
    sizes.sum()
}
