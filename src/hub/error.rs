//! What can go wrong between a model on the Hub and its files here, in either direction.

use std::path::{Path, PathBuf};

use crate::error::{Diagnose, Exit};

/// A repository that could not be found, fetched or pushed to. No variant ever holds the access token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    #[error("there is no folder {model}, and it is not an org/name of the Hub")]
    NoSuchFolder { model: String },
    /// A path whose last part is missing looks like an id.
    #[error("there is no folder {model}, and as an id of the Hub: {source}")]
    NeitherFolderNorRepo { model: String, source: Box<HubError> },
    #[error("{id:?} is not a name that the Hub allows")]
    Id { id: String },
    #[error("{repo}: {revision:?} is not a branch, tag or commit name")]
    Revision { repo: String, revision: String },
    #[error("{repo} is not on {endpoint}")]
    RepoNotFound { repo: String, endpoint: String },
    #[error("{repo} has no revision {revision}")]
    RevisionNotFound { repo: String, revision: String },
    #[error("{repo}: there is no access token, and pushing needs one")]
    NoToken { repo: String },
    #[error("{repo}: {endpoint} asks for a login (HTTP 401{}); a token was {}", detail(message), if *.sent { "sent" } else { "not sent" })]
    Unauthorized { repo: String, endpoint: String, sent: bool, message: String },
    #[error("{repo}: access denied (HTTP 403){}", detail(message))]
    Forbidden { repo: String, message: String, writes: bool },
    #[error("{repo}: {endpoint} limits the rate of requests (HTTP 429){}", wait(*secs))]
    RateLimited { repo: String, endpoint: String, secs: Option<u64> },
    #[error("{repo}: {endpoint} answered HTTP {status} to {what}{}", detail(message))]
    Server { repo: String, endpoint: String, what: String, status: u16, message: String },
    #[error("{repo}: the Hub has another state than this push began with{}", detail(message))]
    Conflict { repo: String, message: String },
    #[error("{endpoint} cannot be reached: {message}")]
    Network { endpoint: String, message: String },
    #[error("{repo}: no byte of {file} went through for {secs} seconds")]
    Stalled { repo: String, file: String, secs: u64 },
    #[error("{repo}@{revision} is not complete in {cache} ({missing} is missing), and the Hub may not be asked", cache = cache.display())]
    NotCached { repo: String, revision: String, missing: String, cache: PathBuf },
    #[error("{repo} has no {file}")]
    MissingFile { repo: String, file: String },
    #[error("{repo} has pickled weights only ({file}); only safetensors weights are read")]
    Pickle { repo: String, file: String },
    #[error("{repo}: the download of {file} is damaged: {problem}")]
    Damaged { repo: String, file: String, problem: String },
    #[error("{repo}: the Hub does not take {file}: {message}")]
    Rejected { repo: String, file: String, message: String },
    #[error("{repo}: unexpected answer of the Hub: {message}")]
    Protocol { repo: String, message: String },
    #[error("cannot use {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{repo} may not be pushed to: no network access is allowed")]
    Offline { repo: String },
    #[error("{repo} is not in the cache, and this program was built without Hub access")]
    BuiltWithoutHub { repo: String },
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn wait(secs: Option<u64>) -> String {
    secs.map_or_else(String::new, |secs| format!(" and asks to wait {secs} seconds"))
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

    /// Whether the same request may succeed a little later.
    #[cfg(feature = "hub")]
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Server { status: 408, .. } => true,
            Self::Network { message, .. } => !is_about_trust(message),
            other => other.is_unreachable(),
        }
    }
}

/// Whether a connection failed because the other side's certificate is not believed.
fn is_about_trust(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("certificate") || message.contains("certs")
}

impl Diagnose for HubError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NeitherFolderNorRepo { model, source } => {
                let parent = Path::new(model).parent().unwrap_or(Path::new(".")).display();
                let of_hub = source.hint().map(|hint| format!(" If it is an id: {hint}")).unwrap_or_default();
                return Some(format!(
                    "Check the path: the folder {parent} is there, what is named in it is not.{of_hub}"
                ));
            }
            Self::NoSuchFolder { .. } => "Check the path, or give a Hub id such as Qwen/Qwen2.5-0.5B-Instruct.",
            Self::Id { .. } => {
                "An id is `name` or `org/name` of letters, digits, `-`, `_` and `.`; neither starts or ends with `-` or `.`."
            }
            Self::RepoNotFound { .. } => "Check the spelling of the id; for a private one, set HF_TOKEN.",
            Self::Revision { .. } | Self::RevisionNotFound { .. } => {
                "Look up its branches and tags on the Hub, or leave `revision` out for main."
            }
            Self::NoToken { .. } | Self::Unauthorized { sent: true, .. } => {
                "Set HF_TOKEN to a token that is valid (https://huggingface.co/settings/tokens), or run `hf auth login`; \
                 one that was valid may have expired."
            }
            Self::Unauthorized { sent: false, .. } => {
                "The id may be misspelled, or the model private or gated: accept its terms on its page and set HF_TOKEN."
            }
            Self::Forbidden { writes: false, .. } => {
                "Accept the model's terms on its page with the account of the token, and give the token read access."
            }
            Self::Forbidden { writes: true, .. } => {
                "Push to a name of your own or of an organization that you are in, with a token that has write access."
            }
            Self::RateLimited { .. } => "Wait, then run again; with HF_TOKEN set the limits are higher.",
            Self::Server { status: 400..500, .. } | Self::Rejected { .. } => {
                "Change what the Hub objects to; what was uploaded is kept and not sent again."
            }
            Self::Server { .. } | Self::Stalled { .. } => {
                "Try again later; files that are complete are not sent again."
            }
            Self::Conflict { .. } => "Somebody else pushed at the same time: run again.",
            Self::Network { message, .. } if is_about_trust(message) => {
                "Install the system's certificates (`ca-certificates`), or name a file of those to trust in SSL_CERT_FILE."
            }
            Self::Network { .. } => {
                "Check the connection and HF_ENDPOINT; a model in the cache or in a folder needs no network."
            }
            Self::NotCached { .. } => "Run once without --offline and HF_HUB_OFFLINE, or give a model folder.",
            Self::Offline { .. } => "Leave out `offline` and unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE.",
            Self::MissingFile { .. } => "Choose a repository that holds a whole transformers model.",
            Self::Pickle { .. } => {
                "Look for a safetensors revision (often `refs/pr/1`), or convert the model in Python where you trust it."
            }
            Self::Damaged { .. } => {
                "The bad bytes were deleted; run again to fetch them anew. If it stays so, the repository or the mirror \
                 in HF_ENDPOINT is damaged."
            }
            Self::Protocol { .. } => "Check that HF_ENDPOINT is a Hugging Face Hub or a mirror of it.",
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "Free space there, or choose another cache folder (HF_HUB_CACHE); what was fetched so far is kept."
            }
            Self::Io { .. } => "Check the file's permissions, and those of the cache folder (HF_HUB_CACHE).",
            Self::BuiltWithoutHub { .. } => "Build with the feature `hub`, or give a model folder.",
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoSuchFolder { .. } | Self::Id { .. } | Self::Revision { .. } | Self::Offline { .. } => Exit::Usage,
            Self::Io { .. } => Exit::Io,
            Self::NeitherFolderNorRepo { source, .. } => source.exit(),
            _ => Exit::Remote,
        }
    }
}
