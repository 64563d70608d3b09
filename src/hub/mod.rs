//! A model name -> a folder on this machine: a path, the Hub cache, or a download into that cache.
//!
//! The cache has the layout of `huggingface_hub`, so that models are shared with Python. A `refs/` entry is written only
//! after every file of the snapshot was checked. The content of the files is `model`'s and `text`'s business; only what
//! tells a damaged download is looked at here.

mod cache;
#[cfg(feature = "hub")]
mod download;
mod error;

use std::path::{Path, PathBuf};

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
    let request = Request { env, repo: model, revision: revision.unwrap_or("main") };
    if !is_revision(request.revision) {
        return Err(HubError::Revision { repo: model.to_owned(), revision: request.revision.to_owned() });
    }
    let cached = cache::find(&request);
    // A commit never changes, so a complete copy of it needs no question to the Hub.
    if let Ok(found) = &cached
        && cache::is_commit(request.revision)
    {
        return Ok(found.clone());
    }
    if offline || env.offline {
        return cached.map_err(|missing| HubError::NotCached {
            repo: model.to_owned(),
            revision: request.revision.to_owned(),
            missing,
            cache: env.cache.clone(),
        });
    }
    fetch(&request, cached.ok(), progress)
}

/// One model asked for.
struct Request<'a> {
    env: &'a HubEnv,
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

/// `name` or `org/name` of letters, digits, `-`, `_` and `.`, as the Hub allows; never a way out of a folder.
fn is_repo_id(id: &str) -> bool {
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
