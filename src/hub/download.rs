//! Fetching a model from the Hub into the cache, and telling a damaged download from a good one.
//!
//! The Hub client streams whatever body it gets into the cache without looking at its status or length. So each file is
//! checked against the size and hash that the repository lists, and for what its name promises, before the snapshot
//! counts; what fails is deleted. Files come one after the other, the weights last.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hf_hub::HFError;
use hf_hub::HFRepositorySync;
use hf_hub::progress::{ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use sha2::{Digest, Sha256};

use super::cache::{self, INDEX, WEIGHTS};
use super::{HubError, Request, Resolved};
use crate::model::header;

/// Attempts at a request that failed for a reason that may pass, and the first pause between them.
const ATTEMPTS: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A file of the repository as its listing describes it.
struct Listed {
    name: String,
    bytes: u64,
    sha256: Option<String>,
}

/// Fetches what is missing of a model, checks it, and points `refs/<revision>` at it.
pub(super) fn fetch(request: &Request, progress: &dyn Fn(&str)) -> Result<Resolved, HubError> {
    let repo = connect(request)?;
    let commit = commit(request, &repo)?;
    let snapshot = cache::repo_folder(request).join("snapshots").join(&commit);
    let mut listed = list(request, &repo, &commit)?;
    if !listed.iter().any(|file| file.name == "config.json") {
        return Err(HubError::MissingFile { repo: request.repo.into(), file: "config.json".into() });
    }
    // The index comes before the rest, because it names the shards.
    if let Some(at) = listed.iter().position(|file| file.name == INDEX) {
        let index = listed.remove(at);
        fetch_file(request, &repo, &commit, &snapshot, &index, progress)?;
        let shards = cache::shards(&snapshot.join(INDEX)).unwrap_or_default();
        if let Some(absent) = shards.iter().find(|shard| !listed.iter().any(|file| file.name == **shard)) {
            return Err(HubError::MissingFile { repo: request.repo.into(), file: absent.clone() });
        }
        listed.retain(|file| !is_weights(&file.name) || shards.contains(&file.name));
    } else if listed.iter().any(|file| file.name == WEIGHTS) {
        listed.retain(|file| !is_weights(&file.name) || file.name == WEIGHTS);
    } else {
        return Err(no_weights(request, &repo, &commit));
    }
    listed.sort_by_key(|file| is_weights(&file.name));
    for file in &listed {
        fetch_file(request, &repo, &commit, &snapshot, file, progress)?;
    }
    if !cache::is_commit(request.revision) {
        write_reference(request, &commit)?;
    }
    cache::find(request).map_err(|file| HubError::MissingFile { repo: request.repo.into(), file })
}

fn connect(request: &Request) -> Result<HFRepositorySync<RepoTypeModel>, HubError> {
    let env = request.env;
    let mut builder = hf_hub::HFClient::builder()
        .endpoint(&env.endpoint)
        .cache_dir(&env.cache)
        .user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(ATTEMPTS)
        .retry_base_delay(FIRST_PAUSE);
    if let Some(token) = &env.token {
        builder = builder.token(token.expose());
    }
    let client = builder.build_sync().map_err(|error| explain(request, &error))?;
    let (owner, name) = hf_hub::split_id(request.repo);
    Ok(client.model(owner, name))
}

/// The commit that the revision stands for today.
fn commit(request: &Request, repo: &HFRepositorySync<RepoTypeModel>) -> Result<String, HubError> {
    let asked = (request.revision != "main").then(|| request.revision.to_owned());
    let (repo, asked) = (repo.clone(), asked);
    let info = guarded(request, "the model's page", move |_| repo.info().maybe_revision(asked).send())?;
    info.sha.filter(|sha| cache::is_commit(sha)).ok_or_else(|| HubError::Protocol {
        repo: request.repo.into(),
        message: "no commit hash in the description of the model".into(),
    })
}

/// The files at the top of the repository that training needs; folders hold other formats.
fn list(request: &Request, repo: &HFRepositorySync<RepoTypeModel>, commit: &str) -> Result<Vec<Listed>, HubError> {
    let entries = tree(request, repo, commit)?;
    let files = entries.into_iter().filter_map(|entry| match entry {
        RepoTreeEntry::File { path, size, lfs, .. } if is_wanted(&path) => {
            Some(Listed { name: path, bytes: size, sha256: lfs.and_then(|lfs| lfs.sha256) })
        }
        _ => None,
    });
    Ok(files.collect())
}

fn tree(
    request: &Request,
    repo: &HFRepositorySync<RepoTypeModel>,
    commit: &str,
) -> Result<Vec<RepoTreeEntry>, HubError> {
    let (repo, commit) = (repo.clone(), commit.to_owned());
    guarded(request, "the list of files", move |_| repo.list_tree().revision(commit).send())
}

/// Whether a top-level file belongs to a model: settings, tokenizer, template, weights. Never a pickle.
fn is_wanted(name: &str) -> bool {
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) && !name.starts_with('.');
    let other_index = name.ends_with(".index.json") && name != INDEX;
    let kind = ["json", "safetensors", "jinja"].iter().any(|kind| has_extension(name, kind));
    let named = ["tokenizer.model", "merges.txt", "vocab.txt", "README.md"].contains(&name);
    plain && !other_index && (kind || named)
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

fn is_weights(name: &str) -> bool {
    has_extension(name, "safetensors")
}

/// Why a repository without safetensors weights cannot be used.
fn no_weights(request: &Request, repo: &HFRepositorySync<RepoTypeModel>, commit: &str) -> HubError {
    let pickle = tree(request, repo, commit).ok().and_then(|entries| {
        entries.into_iter().find_map(|entry| match entry {
            RepoTreeEntry::File { path, .. } if ["bin", "pt", "pth"].iter().any(|kind| has_extension(&path, kind)) => {
                Some(path)
            }
            _ => None,
        })
    });
    match pickle {
        Some(file) => HubError::Pickle { repo: request.repo.into(), file },
        None => HubError::MissingFile { repo: request.repo.into(), file: WEIGHTS.into() },
    }
}

/// Fetches one file unless it is there, and checks it.
fn fetch_file(
    request: &Request,
    repo: &HFRepositorySync<RepoTypeModel>,
    commit: &str,
    snapshot: &Path,
    listed: &Listed,
    progress: &dyn Fn(&str),
) -> Result<(), HubError> {
    let path = snapshot.join(&listed.name);
    let fresh = !path.exists();
    if fresh {
        progress(&format!("fetching {} of {} ({})", listed.name, request.repo, readable(listed.bytes)));
        let (repo, commit, name) = (repo.clone(), commit.to_owned(), listed.name.clone());
        guarded(request, &listed.name, move |alive| {
            repo.download_file().filename(name).revision(commit).progress(Heartbeat(alive)).send()
        })?;
    }
    // A hash is taken only of new files: their blob is named by it from then on.
    let Err(problem) = check(&path, listed, fresh) else { return Ok(()) };
    discard(&path);
    Err(HubError::Damaged { repo: request.repo.into(), file: listed.name.clone(), problem })
}

/// What is wrong with a downloaded file, if anything.
fn check(path: &Path, listed: &Listed, with_hash: bool) -> Result<(), String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes != listed.bytes {
        return Err(format!("{bytes} bytes instead of {}", listed.bytes));
    }
    if is_weights(&listed.name) {
        header::read(path).map_err(|error| error.to_string())?;
    } else if has_extension(&listed.name, "json") {
        let content = std::fs::read(path).map_err(|error| error.to_string())?;
        serde_json::from_slice::<serde::de::IgnoredAny>(&content).map_err(|error| format!("not JSON: {error}"))?;
    }
    // Large files are stored under their SHA-256; small ones under a git hash, which has 40 digits.
    let blob = std::fs::read_link(path).ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    let is_sha256 = |name: &String| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let expected = listed.sha256.clone().or(blob).filter(is_sha256);
    if let Some(expected) = expected.filter(|_| with_hash)
        && sha256(path).map_err(|error| error.to_string())? != expected.to_ascii_lowercase()
    {
        return Err("its SHA-256 is not the one that the Hub lists".into());
    }
    Ok(())
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(hasher.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")));
        }
        hasher.update(&piece[..read]);
    }
}

/// Deletes a bad file: the link in the snapshot and the blob behind it, so that the next run fetches it anew.
fn discard(path: &Path) {
    if let Ok(blob) = std::fs::canonicalize(path) {
        // A failure leaves a bad file behind, which the next run finds again by the same check.
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(path);
}

/// Points `refs/<revision>` at a snapshot that is complete.
fn write_reference(request: &Request, commit: &str) -> Result<(), HubError> {
    let path = cache::repo_folder(request).join("refs").join(request.revision);
    let folder: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&temporary, commit)?;
        std::fs::rename(temporary, &path)
    };
    write().map_err(|source| HubError::Io { path: path.clone(), source })
}

/// Tells the waiting thread that bytes arrive.
struct Heartbeat(Sender<()>);

impl ProgressHandler for Heartbeat {
    fn on_progress(&self, _: &ProgressEvent) {
        // The receiver is gone only where the wait was given up.
        let _ = self.0.send(());
    }
}

/// Runs a request on a thread of its own and gives it up when nothing arrives for the allowed time.
///
/// The Hub client has no timeouts. A thread that is given up ends with the process.
fn guarded<T: Send + 'static>(
    request: &Request,
    what: &str,
    work: impl FnOnce(Sender<()>) -> Result<T, HFError> + Send + 'static,
) -> Result<T, HubError> {
    let (alive, heartbeats) = channel();
    let (done, result) = channel();
    std::thread::spawn(move || {
        let answer = work(alive);
        // Dropping the handle's sender wakes the wait below.
        let _ = done.send(answer);
    });
    loop {
        match heartbeats.recv_timeout(request.env.download_timeout) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let (repo, file) = (request.repo.to_owned(), what.to_owned());
                return Err(HubError::Stalled { repo, file, secs: request.env.download_timeout.as_secs() });
            }
        }
    }
    match result.recv_timeout(request.env.download_timeout) {
        Ok(answer) => answer.map_err(|error| explain(request, &error)),
        Err(_) => Err(HubError::Stalled {
            repo: request.repo.to_owned(),
            file: what.to_owned(),
            secs: request.env.download_timeout.as_secs(),
        }),
    }
}

/// An error of the client in the words of this project, the token masked.
fn explain(request: &Request, error: &HFError) -> HubError {
    let (repo, endpoint) = (request.repo.to_owned(), request.env.endpoint.clone());
    let clean = |text: &str| request.env.token.as_ref().map_or(text.to_owned(), |token| token.redact(text));
    let is_repo = |code: &Option<String>| code.as_deref() == Some("RepoNotFound");
    match error {
        HFError::RepoNotFound { .. } => HubError::RepoNotFound { repo, endpoint },
        HFError::RevisionNotFound { context: Some(context), .. } if is_repo(&context.error_code) => {
            HubError::RepoNotFound { repo, endpoint }
        }
        HFError::RevisionNotFound { revision, .. } => HubError::RevisionNotFound { repo, revision: revision.clone() },
        HFError::EntryNotFound { path, .. } => HubError::MissingFile { repo, file: clean(path) },
        HFError::AuthRequired { .. } => HubError::Unauthorized { repo, endpoint, sent: request.env.token.is_some() },
        HFError::Forbidden { context } => {
            HubError::Forbidden { repo, message: clean(context.server_message.as_deref().unwrap_or_default()) }
        }
        HFError::RateLimited { .. } => HubError::RateLimited { repo, endpoint },
        HFError::Http { context } => HubError::Server {
            repo,
            endpoint,
            status: context.status.as_u16(),
            message: clean(context.server_message.as_deref().unwrap_or_default()),
        },
        HFError::Request { source, .. } => HubError::Network { endpoint, message: clean(&root_cause(source)) },
        HFError::Io(source) => HubError::Io {
            path: request.env.cache.clone(),
            source: std::io::Error::new(source.kind(), clean(&source.to_string())),
        },
        HFError::CacheLockTimeout { path } => HubError::Io {
            path: path.clone(),
            source: std::io::Error::new(std::io::ErrorKind::WouldBlock, "another process holds it"),
        },
        other => HubError::Protocol { repo, message: clean(&other.to_string()) },
    }
}

/// The innermost cause: "Connection refused" rather than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn readable(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
