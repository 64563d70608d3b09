//! Why a folder is not pushed.

use crate::error::{Diagnose, Exit};
use std::path::PathBuf;

/// Why a folder is not pushed; nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    #[error("there is no folder {}", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("{} is no model: it has neither config.json nor adapter_config.json", folder.display())]
    NoModel { folder: PathBuf },
    #[error("{} has no {file}: the model in it is not whole", folder.display())]
    NoWeights { folder: PathBuf, file: String },
    #[error("{} points to nothing", path.display())]
    BrokenLink { path: PathBuf },
    #[error("{} has a name that a repository cannot hold", path.display())]
    Name { path: PathBuf },
    #[error("{} has {:.1} GB, and the Hub takes files of up to {:.0} GB", path.display(), *.bytes as f64 / 1e9, *.limit as f64 / 1e9)]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{} has {found} files, and the Hub takes up to {limit}", folder.display())]
    TooMany { folder: PathBuf, found: usize, limit: usize },
}

impl Diagnose for PushError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoFolder { .. } => "Give the output_dir of a run, or one of its checkpoints.",
            Self::NoModel { .. } | Self::NoWeights { .. } => {
                "Push the output_dir of a run that has ended, or one of its checkpoint folders."
            }
            Self::BrokenLink { .. } => "Remove the link, or put the file back.",
            Self::Name { .. } => "Rename it: names are UTF-8 without `\\` and control characters.",
            Self::TooLarge { .. } => "Save the model in shards, or move the file away.",
            Self::TooMany { .. } => "Push the folder of the model itself, without what lies around it.",
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoFolder { .. } => Exit::Usage,
            Self::NoModel { .. } | Self::NoWeights { .. } => Exit::Model,
            Self::BrokenLink { .. } | Self::Name { .. } | Self::TooLarge { .. } | Self::TooMany { .. } => Exit::Io,
        }
    }
}
