//! The Hugging Face Hub: a model name -> a folder on this machine, and a folder -> a commit on the Hub.
//!
//! The cache has the layout of `huggingface_hub`, so that models are shared with Python. A file stands in a snapshot only
//! after its bytes were checked, and a `refs/` entry is written only after every file. The content of the files is
//! `model`'s and `text`'s business; only what tells a damaged download is looked at here.

mod cache;
#[cfg(feature = "hub")]
mod content;
mod dataset;
#[cfg(feature = "hub")]
mod download;
mod error;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod lfs;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
mod retry;

use std::path::{Path, PathBuf};

pub use dataset::{DatasetSnapshot, with_dataset};
pub use error::HubError;

use crate::env::HubEnv;

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub folder: PathBuf,
    /// `org/name`, where the model came from the Hub.
    pub repo: Option<String>,
    /// The commit that a revision stood for, where the model came from the Hub.
    pub commit: Option<String>,
}

/// What kind of repository an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RepoType {
    Model,
    Dataset,
}

impl RepoType {
    /// The word in the Hub's addresses and in the names of the cache's folders.
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before an id in the address of a file.
    #[cfg(feature = "hub")]
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// Finds the folder of `model`: a path that exists wins, `org/name` is looked up in the cache and on the Hub.
///
/// `revision` is a branch, tag or commit (default `main`); `offline` allows no connection, as `HF_HUB_OFFLINE` does;
/// `progress` receives one line of text for each file that is fetched, and warnings.
///
/// # Errors
/// [`HubError`]: no such model, no access, no network, or a download that is damaged.
pub fn resolve(
    model: &str,
    revision: Option<&str>,
    offline: bool,
    progress: &dyn Fn(&str),
) -> Result<Resolved, HubError> {
    resolve_with(&HubEnv::read(), model, revision, offline, progress)
}

/// [`resolve`] with a given environment instead of that of the process.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(
    env: &HubEnv,
    model: &str,
    revision: Option<&str>,
    offline: bool,
    progress: &dyn Fn(&str),
) -> Result<Resolved, HubError> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(Resolved { folder: path.to_owned(), repo: None, commit: None });
    }
    if !is_repo_id(model) {
        return Err(HubError::NoSuchFolder { model: model.to_owned() });
    }
    let request = Request { env, kind: RepoType::Model, repo: model, revision: revision.unwrap_or("main") };
    let is_in_folder = path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir());
    find_repo(&request, offline, progress).map_err(|error| match error {
        error if is_in_folder => HubError::NeitherFolderNorRepo { model: model.to_owned(), source: Box::new(error) },
        error => error,
    })
}

/// A model of the Hub, from the cache or by asking.
fn find_repo(request: &Request<'_>, offline: bool, progress: &dyn Fn(&str)) -> Result<Resolved, HubError> {
    let Request { env, repo, revision, .. } = *request;
    if !is_revision(revision) {
        return Err(HubError::Revision { repo: repo.to_owned(), revision: revision.to_owned() });
    }
    let cached = cache::find(request);
    // A commit never changes, so a complete copy of it needs no question to the Hub.
    if let Ok(found) = &cached
        && cache::is_commit(revision)
    {
        return Ok(found.clone());
    }
    if offline || env.offline {
        return cached.map_err(|missing| HubError::NotCached {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            missing,
            cache: env.cache.clone(),
        });
    }
    fetch(request, cached.ok(), progress)
}

/// Where a push goes.
#[derive(Debug, Clone, Default)]
pub struct PushTarget {
    /// `org/name`, as [`ensure_repo`] returns it.
    pub repo: String,
    /// The branch; `None` is `main`. One that is missing is made from `main`.
    pub revision: Option<String>,
    /// First line of the commit's message.
    pub message: String,
}

/// A file to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// Its path in the repository, with `/`.
    pub path: String,
    pub bytes: u64,
    pub source: PushSource,
    /// SHA-256 of its content in lower-case hex, where it is known already.
    pub sha256: Option<String>,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushSource {
    File(PathBuf),
    Text(String),
}

/// What a push tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// Something that takes a while begins.
    Step(&'static str),
    /// Large files are sent: so many, of so many bytes together.
    Begin { files: usize, bytes: u64 },
    /// Bytes of them that were sent so far; fewer than before where a file is sent again.
    Sent { file: String, bytes: u64 },
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// `org/name`.
    pub repo: String,
    /// The branch.
    pub revision: String,
    /// The page of the model.
    pub url: String,
    /// The commit with the files: a new one, or the one that has them already.
    pub commit: String,
    /// Paths of the files that are new or changed.
    pub files: Vec<String>,
    /// Files that the repository had already.
    pub num_unchanged: usize,
    /// Weight files of an earlier push that were removed.
    pub deleted: Vec<String>,
    /// Files that the repository's own `.gitignore` leaves out.
    pub ignored: Vec<String>,
}

/// Pushes files to a model repository of the Hub in one commit; [`ensure_repo`] makes one.
///
/// What the repository has already is not sent, and a push that failed half-way can be made again: nobody sees any of it
/// before the commit. Weight files of an earlier push that are not among `files` are removed by the same commit.
///
/// # Errors
/// [`HubError`]: no token, no permission, no network, or a file that cannot be read.
pub fn push(
    env: &HubEnv,
    target: &PushTarget,
    files: &[PushFile],
    progress: &dyn Fn(PushEvent),
) -> Result<Pushed, HubError> {
    #[cfg(feature = "hub")]
    return push::push(env, target, files, progress);
    #[cfg(not(feature = "hub"))]
    {
        let _ = (env, files, progress);
        Err(HubError::BuiltWithoutHub { repo: target.repo.clone() })
    }
}

/// Makes the model repository `repo` where there is none, and so finds out whether the token may push; returns its id.
///
/// A `name` without an owner is that of the token's account. `is_private` is for a repository that is made: one that
/// exists stays as it is, and `None` leaves it to the account's settings.
///
/// # Errors
/// As [`push`].
pub fn ensure_repo(env: &HubEnv, repo: &str, is_private: Option<bool>) -> Result<String, HubError> {
    #[cfg(feature = "hub")]
    return push::ensure_repo(env, repo, is_private);
    #[cfg(not(feature = "hub"))]
    {
        let _ = (env, is_private);
        Err(HubError::BuiltWithoutHub { repo: repo.to_owned() })
    }
}

/// A revision of a repository that is asked for.
struct Request<'a> {
    env: &'a HubEnv,
    kind: RepoType,
    repo: &'a str,
    revision: &'a str,
}

#[cfg(feature = "hub")]
fn fetch(request: &Request, cached: Option<Resolved>, progress: &dyn Fn(&str)) -> Result<Resolved, HubError> {
    let silent = |_: &str| {};
    let progress = if request.env.progress { progress } else { &silent };
    match (download::fetch(request, progress), cached) {
        (Err(error), Some(cached)) if error.is_unreachable() => {
            progress(&format!("{error}; using the cached copy in {}", cached.folder.display()));
            Ok(cached)
        }
        (result, _) => result,
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(request: &Request, cached: Option<Resolved>, _: &dyn Fn(&str)) -> Result<Resolved, HubError> {
    cached.ok_or_else(|| HubError::BuiltWithoutHub { repo: request.repo.to_owned() })
}

/// A text as one part of an address.
#[cfg(feature = "hub")]
fn encode(text: &str) -> String {
    const PLAIN: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(text, PLAIN).to_string()
}

/// A size for people.
#[cfg(feature = "hub")]
fn readable(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `name` or `org/name` of letters, digits, `-`, `_` and `.`, as the Hub allows; never a way out of a folder.
pub(crate) fn is_repo_id(id: &str) -> bool {
    let part = |part: &str| {
        (1..=96).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part)
}

/// A branch, tag, commit or `refs/pr/1`: it becomes a path in the cache, so no part of it may be `..` or empty.
fn is_revision(revision: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | ':' | '?' | '*' | '[' | '~' | '^');
    (1..=250).contains(&revision.len())
        && revision.chars().all(plain)
        && revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_revisions_cannot_leave_the_cache() {
        for id in ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "a/b_c.d"] {
            assert!(is_repo_id(id), "{id}");
        }
        for id in ["", "/", "a/", "/a", "../a", "a/..", "a/b/c", "a b", "./a", "a/b\0", "a--b/c", "https://x/y"] {
            assert!(!is_repo_id(id), "{id}");
        }
        for revision in ["main", "v1.0", "refs/pr/1", "feature/x"] {
            assert!(is_revision(revision), "{revision}");
        }
        for revision in ["", "..", "a/../b", "/a", "a//b", "a b", "a\0"] {
            assert!(!is_revision(revision), "{revision}");
        }
    }

    #[test]
    fn a_path_that_exists_wins() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().to_str().unwrap();
        let found = resolve(model, None, true, &|_| {}).unwrap();
        assert_eq!(found, Resolved { folder: folder.path().to_owned(), repo: None, commit: None });
        let error = resolve("./no/such/folder", None, true, &|_| {}).unwrap_err();
        assert_eq!(error.to_string(), "there is no folder ./no/such/folder, and it is not an org/name of the Hub");
    }
}
