//! A data set of the Hub: which files a commit has, and those of them that are wanted, in the cache.
//!
//! Which files make up a split is the business of `data`: it is handed the list, and asks for files by name. The list of a
//! commit is kept beside its snapshot, so that a cached data set can be told from a part of one without the Hub.

use std::path::PathBuf;

use serde_json::Value;

use super::{HubError, RepoType, Request, cache, is_repo_id, is_revision};
use crate::env::HubEnv;

/// A commit of a data set.
pub struct DatasetSnapshot<'a> {
    request: &'a Request<'a>,
    commit: String,
    folder: PathBuf,
    files: Vec<String>,
    #[cfg(feature = "hub")]
    remote: Option<(&'a super::download::Snapshot<'a>, Vec<super::listing::Listed>)>,
}

impl DatasetSnapshot<'_> {
    /// The commit that the revision stands for.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The files of the commit, by their paths with `/` from the top.
    #[must_use]
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The path of a file on this machine; it is fetched where it is not there and the Hub may be asked.
    ///
    /// # Errors
    /// The file is not in the cache, or cannot be fetched.
    pub fn fetch(&self, file: &str) -> Result<PathBuf, HubError> {
        #[cfg(feature = "hub")]
        if let Some((snapshot, listed)) = &self.remote
            && let Some(listed) = listed.iter().find(|listed| listed.name == file)
        {
            return snapshot.fetch(listed);
        }
        let path = self.folder.join(file);
        if path.is_file() { Ok(path) } else { Err(not_cached(self.request, file)) }
    }
}

/// Finds a commit of the data set `repo` (`org/name`) and hands it to `work`, which asks for the files it needs. First
/// without the Hub, where it need not or may not be asked.
///
/// `revision` is a branch, tag or commit (default `main`); `offline` allows no connection, as `HF_HUB_OFFLINE` does;
/// `progress` receives one line of text for each file that is fetched, and warnings.
///
/// # Errors
/// No such data set, no access, no network; or those of `work`.
pub fn with_dataset<T, E: From<HubError>>(
    env: &HubEnv,
    repo: &str,
    revision: Option<&str>,
    offline: bool,
    progress: &dyn Fn(&str),
    work: impl Fn(&DatasetSnapshot<'_>) -> Result<T, E>,
) -> Result<T, E> {
    if !is_repo_id(repo) {
        return Err(HubError::NoSuchFolder { model: repo.to_owned() }.into());
    }
    let request = Request { env, kind: RepoType::Dataset, repo, revision: revision.unwrap_or("main") };
    if !is_revision(request.revision) {
        return Err(HubError::Revision { repo: repo.to_owned(), revision: request.revision.to_owned() }.into());
    }
    let offline = offline || env.offline;
    // A commit never changes, so a complete copy of what is asked for needs no question to the Hub.
    if offline || cache::is_commit(request.revision) {
        match (cached(&request), offline) {
            (Ok(snapshot), true) => return work(&snapshot),
            (Err(missing), true) => return Err(not_cached(&request, &missing).into()),
            (Ok(snapshot), false) => {
                if let Ok(done) = work(&snapshot) {
                    return Ok(done);
                }
            }
            (Err(_), false) => {}
        }
    }
    remote(&request, progress, work)
}

#[cfg(feature = "hub")]
fn remote<T, E: From<HubError>>(
    request: &Request<'_>,
    progress: &dyn Fn(&str),
    work: impl Fn(&DatasetSnapshot<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let silent = |_: &str| {};
    let progress = if request.env.progress { progress } else { &silent };
    let opened = super::download::Snapshot::open(request, progress)
        .and_then(|snapshot| snapshot.list(true).map(|listed| (snapshot, listed)));
    let (snapshot, listed) = match (opened, cached(request)) {
        (Ok(opened), _) => opened,
        (Err(error), Ok(cached)) if error.is_unreachable() => {
            progress(&format!("{error}; using the cached copy in {}", cached.folder.display()));
            return work(&cached);
        }
        (Err(error), _) => return Err(error.into()),
    };
    let files: Vec<String> = listed.iter().map(|file| file.name.clone()).collect();
    let done = work(&DatasetSnapshot {
        request,
        commit: snapshot.commit.clone(),
        folder: snapshot.folder.clone(),
        files: files.clone(),
        remote: Some((&snapshot, listed)),
    })?;
    write_list(request, &snapshot.commit, &files)?;
    snapshot.complete()?;
    Ok(done)
}

#[cfg(not(feature = "hub"))]
fn remote<T, E: From<HubError>>(
    request: &Request<'_>,
    _: &dyn Fn(&str),
    work: impl Fn(&DatasetSnapshot<'_>) -> Result<T, E>,
) -> Result<T, E> {
    match cached(request) {
        Ok(snapshot) => work(&snapshot),
        Err(_) => Err(HubError::BuiltWithoutHub { repo: request.repo.to_owned() }.into()),
    }
}

fn not_cached(request: &Request<'_>, missing: &str) -> HubError {
    HubError::NotCached {
        repo: request.repo.to_owned(),
        revision: request.revision.to_owned(),
        missing: missing.to_owned(),
        cache: request.env.cache.clone(),
    }
}

/// The snapshot in the cache with the list of the commit's files, or the first thing that is missing.
fn cached<'a>(request: &'a Request<'a>) -> Result<DatasetSnapshot<'a>, String> {
    let commit = cache::commit_of(request)?;
    let root = cache::repo_folder(request);
    let folder = root.join("snapshots").join(&commit);
    if !folder.is_dir() {
        return Err(format!("snapshots/{commit}"));
    }
    let trees = root.join("trees");
    // huggingface_hub keeps a list, too, where it has made one.
    let ours = read_list(&trees.join(format!("{commit}.names.json")));
    let files = ours.or_else(|| read_list(&trees.join(format!("{commit}.json"))));
    let files = files.ok_or_else(|| "the list of its files".to_owned())?;
    Ok(DatasetSnapshot {
        request,
        commit,
        folder,
        files,
        #[cfg(feature = "hub")]
        remote: None,
    })
}

/// The names of a stored list: an array, or the keys of an object.
fn read_list(path: &std::path::Path) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let names = match &value["files"] {
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()?,
        Value::Object(entries) => entries.keys().cloned().collect(),
        _ => return None,
    };
    // The names become paths below the snapshot.
    names.iter().all(|name| cache::is_inside(name)).then_some(names)
}

/// Keeps the list of a commit's files beside its snapshot.
#[cfg(feature = "hub")]
fn write_list(request: &Request<'_>, commit: &str, files: &[String]) -> Result<(), HubError> {
    let folder = cache::repo_folder(request).join("trees");
    let path = folder.join(format!("{commit}.names.json"));
    let text = serde_json::json!({ "files": files }).to_string();
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        let temporary = folder.join(format!(".{}.tmp", std::process::id()));
        std::fs::write(&temporary, &text)?;
        std::fs::rename(temporary, &path)
    };
    write().map_err(|source| HubError::Io { path: path.clone(), source })
}
