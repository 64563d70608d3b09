//! What can go wrong between a model name and its files.

use std::path::PathBuf;

use crate::error::{Diagnose, Exit};

/// A model that could not be found or fetched. No variant ever holds the access token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    #[error("there is no folder {model}, and it is not an org/name of the Hub")]
    NoSuchFolder { model: String },
    #[error("{repo}: {revision:?} is not a branch, tag or commit name")]
    Revision { repo: String, revision: String },
    #[error("{repo} is not on {endpoint}")]
    RepoNotFound { repo: String, endpoint: String },
    #[error("{repo} has no revision {revision}")]
    RevisionNotFound { repo: String, revision: String },
    #[error("{repo}: {endpoint} asks for a login (HTTP 401); a token was {}", if *.sent { "sent" } else { "not sent" })]
    Unauthorized { repo: String, endpoint: String, sent: bool },
    #[error("{repo}: access denied (HTTP 403){}", detail(message))]
    Forbidden { repo: String, message: String },
    #[error("{repo}: {endpoint} limits the rate of requests (HTTP 429)")]
    RateLimited { repo: String, endpoint: String },
    #[error("{repo}: {endpoint} answered HTTP {status}{}", detail(message))]
    Server { repo: String, endpoint: String, status: u16, message: String },
    #[error("{endpoint} cannot be reached: {message}")]
    Network { endpoint: String, message: String },
    #[error("{repo}: no byte of {file} arrived for {secs} seconds")]
    Stalled { repo: String, file: String, secs: u64 },
    #[error("{repo}@{revision} is not complete in {cache} ({missing} is missing), and the Hub may not be asked", cache = cache.display())]
    NotCached { repo: String, revision: String, missing: String, cache: PathBuf },
    #[error("{repo} has no {file}")]
    MissingFile { repo: String, file: String },
    #[error("{repo} has pickled weights only ({file}); only safetensors weights are read")]
    Pickle { repo: String, file: String },
    #[error("{repo}: the download of {file} is damaged: {problem}")]
    Damaged { repo: String, file: String, problem: String },
    #[error("{repo}: unexpected answer of the Hub: {message}")]
    Protocol { repo: String, message: String },
    #[error("cannot use {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{repo} is not in the cache, and this program was built without Hub access")]
    BuiltWithoutHub { repo: String },
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl HubError {
    /// Whether the Hub could not be asked at all, so that a cached copy may stand in.
    #[cfg(feature = "hub")]
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } | Self::RateLimited { .. } => true,
            Self::Server { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

impl Diagnose for HubError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoSuchFolder { .. } => "Check the path, or give a Hub id such as Qwen/Qwen2.5-0.5B-Instruct.",
            Self::RepoNotFound { .. } => "Check the spelling of the id; for a private model, set HF_TOKEN.",
            Self::Revision { .. } | Self::RevisionNotFound { .. } => {
                "Look up the branches and tags of the model on the Hub, or leave `revision` out for main."
            }
            Self::Unauthorized { sent: false, .. } => {
                "The id may be misspelled, or the model private or gated: accept its terms on its page and set HF_TOKEN."
            }
            Self::Unauthorized { sent: true, .. } => {
                "Check the token in HF_TOKEN (or `hf auth login`); it may have expired."
            }
            Self::Forbidden { .. } => {
                "Accept the model's terms on its page with the account of the token, and give the token read access."
            }
            Self::RateLimited { .. } => "Wait a few minutes; with HF_TOKEN set the limits are higher.",
            Self::Server { .. } | Self::Stalled { .. } => {
                "Try again later; files that are complete are not fetched again."
            }
            Self::Network { .. } => {
                "Check the connection and HF_ENDPOINT; a model in the cache or in a folder needs no network."
            }
            Self::NotCached { .. } => "Run once without --offline and HF_HUB_OFFLINE, or give a model folder.",
            Self::MissingFile { .. } => "Choose a repository that holds a whole transformers model.",
            Self::Pickle { .. } => {
                "Look for a safetensors revision (often `refs/pr/1`), or convert the model in Python where you trust it."
            }
            Self::Damaged { .. } => "The bad file was deleted; run again to fetch it anew.",
            Self::Protocol { .. } => "Check that HF_ENDPOINT is a Hugging Face Hub or a mirror of it.",
            Self::Io { .. } => "Check the space and the permissions of the cache folder (HF_HUB_CACHE).",
            Self::BuiltWithoutHub { .. } => "Build with the feature `hub`, or give a model folder.",
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoSuchFolder { .. } | Self::Revision { .. } => Exit::Usage,
            Self::Io { .. } => Exit::Io,
            _ => Exit::Remote,
        }
    }
}
