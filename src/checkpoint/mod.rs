//! Checkpoints: what a killed run continues from, and the folder that other tools load.
//!
//! A checkpoint `output_dir/checkpoint-{step}/` is complete or it does not exist: its files are written to a temporary
//! folder and flushed, `MANIFEST.json` with size and SHA-256 of every file is written last, and one rename makes it
//! visible. Discovery believes a folder only when its manifest does. Nothing here trains or knows a model's layers;
//! the trainer says what is saved.
//!
//! All functions that change an output directory expect the caller to hold its [`crate::io::DirLock`].

mod card;
mod classifier;
mod commit;
mod compatible;
mod export;
mod listing;
mod manifest;
mod rollouts;
mod rotation;
mod state;
mod tensors;
mod trainer_state;

pub use card::{CardFacts, CardResult, base_license, card_with_id, model_card};
pub use classifier::classifier_config;
pub use commit::{CheckpointDir, Found, Pending};
pub use compatible::{Difference, RunIdentity, compare_identity, require_compatible};
pub use export::{SHARD_BYTES, export_adapter, export_model};
pub use listing::{ListedCheckpoint, Verified, list_checkpoints, verify_all};
pub use manifest::{FileProblem, MANIFEST_FILE, Manifest, ManifestFile, unlisted_files, verify, wrong_files};
pub use rollouts::{ROLLOUTS_FILE, SavedCompletion, SavedGroup, SavedRollouts};
pub use rotation::{Keep, checkpoints_to_remove};
pub use state::{BestCheckpoint, FORMAT_VERSION, TRAINING_STATE_FILE, TrainingState};
pub use tensors::{NamedTensor, TensorView, read_tensors, write_tensors, write_tensors_with};
pub use trainer_state::{TRAINER_STATE_FILE, TrainerState};

use std::path::{Path, PathBuf};

use crate::error::{Diagnose, Exit};
use crate::io::IoError;

/// Why a checkpoint could not be written, found or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file is not what the manifest says, or not what its format demands.
    #[error("checkpoint {}: {file} {problem}", folder.display())]
    Corrupt {
        /// The checkpoint folder.
        folder: PathBuf,
        /// The file inside it.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight is not finite, or not in the dtype that the model is saved in.
    #[error("tensor {tensor} has values that {dtype} cannot hold")]
    NotRepresentable {
        /// Name of the tensor.
        tensor: String,
        /// The dtype's name.
        dtype: &'static str,
    },
    /// The checkpoint was written by a newer version of the program.
    #[error("checkpoint {}: {file} has format version {found}, this program knows up to {known}", folder.display())]
    FutureVersion {
        /// The checkpoint folder.
        folder: PathBuf,
        /// The file inside it.
        file: String,
        /// Version in the file.
        found: u64,
        /// Newest version that this program reads.
        known: u64,
    },
    /// There are checkpoints, and each is damaged.
    #[error("no valid checkpoint in {}:{}", output_dir.display(), list_skipped(skipped))]
    NoneValid {
        /// The output directory.
        output_dir: PathBuf,
        /// Each folder and what is wrong with it.
        skipped: Vec<(PathBuf, String)>,
    },
    /// Resuming was asked for and there is nothing to resume.
    #[error("there is no checkpoint in {}", output_dir.display())]
    NotFound {
        /// The output directory.
        output_dir: PathBuf,
    },
    /// A fresh run, or one that goes back to an earlier checkpoint, would overwrite these.
    #[error("{} already holds {}", output_dir.display(), list_names(folders))]
    WouldOverwrite {
        /// The output directory.
        output_dir: PathBuf,
        /// The checkpoints in the way.
        folders: Vec<PathBuf>,
    },
    /// A model that is written there would replace these.
    #[error("{} already holds {}, which the new model would replace", output_dir.display(), files.join(", "))]
    WouldReplace {
        /// The output directory.
        output_dir: PathBuf,
        /// Names of the files in the way.
        files: Vec<String>,
    },
    /// The checkpoint is from a run that cannot be continued with these settings.
    #[error("checkpoint {} does not fit this run:{}", folder.display(), list_differences(differences))]
    Incompatible {
        /// The checkpoint folder.
        folder: PathBuf,
        /// What differs, the fatal ones only.
        differences: Vec<Difference>,
    },
}

fn list_skipped(skipped: &[(PathBuf, String)]) -> String {
    indented(skipped.iter().map(|(folder, reason)| format!("{}: {reason}", folder.display())))
}

fn list_names(folders: &[PathBuf]) -> String {
    let names: Vec<_> =
        folders.iter().filter_map(|folder| folder.file_name()).map(|name| name.to_string_lossy()).collect();
    names.join(", ")
}

fn list_differences(differences: &[Difference]) -> String {
    indented(differences.iter().map(ToString::to_string))
}

/// Each text on a line of its own below the message.
fn indented(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |all, text| all + "\n  " + &text)
}

impl CheckpointError {
    /// A damaged file; the folder is the one that holds `path`.
    pub(crate) fn corrupt(path: &Path, problem: impl Into<String>) -> Self {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self::Corrupt { folder: crate::io::parent_of(path).to_owned(), file, problem: problem.into() }
    }
}

impl Diagnose for CheckpointError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => error.hint(),
            Self::Corrupt { .. } => Some("resume from an earlier checkpoint with --resume PATH".into()),
            Self::NotRepresentable { .. } => Some(
                "save in bfloat16 or float32; where the values are not finite, go back to an earlier checkpoint".into(),
            ),
            Self::FutureVersion { .. } => Some("use the version of candlewick that wrote it".into()),
            Self::NoneValid { .. } => Some(
                "restore one of them from a backup, or start anew with another output_dir; a run never starts over \
                 where checkpoints exist"
                    .into(),
            ),
            Self::NotFound { .. } => {
                Some("check the path; a run with --resume auto starts anew where there is none".into())
            }
            Self::WouldOverwrite { .. } => Some(
                "continue from the newest with --resume auto, choose another output_dir, or move these folders away"
                    .into(),
            ),
            Self::WouldReplace { .. } => Some("choose another folder, or move these files away".into()),
            Self::Incompatible { .. } => {
                Some("set these back to the saved values, or start a new run with another output_dir".into())
            }
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            Self::NotRepresentable { .. } => Exit::NonFinite,
            Self::Corrupt { .. } | Self::FutureVersion { .. } | Self::NoneValid { .. } => Exit::Io,
            Self::NotFound { .. }
            | Self::WouldOverwrite { .. }
            | Self::WouldReplace { .. }
            | Self::Incompatible { .. } => Exit::Usage,
        }
    }
}
