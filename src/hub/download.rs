//! Fetching files of the Hub into the cache: a file is linked into a snapshot only once its bytes are known to be right.
//!
//! What has arrived of a file lies in `blobs/<hash>.incomplete`. A connection that breaks goes on where it broke, in the
//! same run or in a later one. The whole is then held against the size and the hash that the repository lists, flushed
//! to the disk and renamed to its blob. Files come one after the other, the weights last.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS};
use super::content::{git_sha1, has_hash};
use super::http::{Ask, Client};
use super::listing::{ContentHash, Listed, commit_of, list};
use super::retry::{ATTEMPTS, pause_before};
use super::{HubError, Request, Resolved, encode};
use crate::io::has_extension;
use crate::model::header;

const PIECE: usize = 1 << 18;

/// A commit of a repository, and where its files go.
pub(super) struct Snapshot<'a> {
    request: &'a Request<'a>,
    client: Client<'a>,
    pub commit: String,
    pub folder: PathBuf,
    progress: &'a dyn Fn(&str),
}

/// Fetches what is missing of a model or an adapter, checks it, and points `refs/<revision>` at it.
pub(super) fn fetch(request: &Request, progress: &dyn Fn(&str)) -> Result<Resolved, HubError> {
    let snapshot = Snapshot::open(request, progress)?;
    let all = snapshot.list(false)?;
    let missing = |file: &str| HubError::MissingFile { repo: request.repo.into(), file: file.into() };
    let mut wanted: Vec<Listed> = all.iter().filter(|file| is_wanted(&file.name)).cloned().collect();
    let has = |name: &str| wanted.iter().any(|file| file.name == name);
    let is_pickle = |name: &str| ["bin", "pt", "pth"].iter().any(|kind| has_extension(name, kind));
    let no_weights = |name: &str| match all.iter().find(|file| is_pickle(&file.name)) {
        Some(file) => HubError::Pickle { repo: request.repo.into(), file: file.name.clone() },
        None => missing(name),
    };
    if has(ADAPTER_CONFIG) {
        if !has(ADAPTER_WEIGHTS) {
            return Err(no_weights(ADAPTER_WEIGHTS));
        }
        wanted.retain(|file| !is_weights(&file.name) || file.name == ADAPTER_WEIGHTS);
        return finish(&snapshot, wanted);
    }
    if !has("config.json") {
        return Err(missing("config.json"));
    }
    // The index comes before the rest, because it names the shards.
    if let Some(at) = wanted.iter().position(|file| file.name == INDEX) {
        snapshot.fetch(&wanted.remove(at))?;
        let shards = cache::shards(&snapshot.folder.join(INDEX)).unwrap_or_default();
        if let Some(absent) = shards.iter().find(|shard| !wanted.iter().any(|file| file.name == **shard)) {
            return Err(missing(absent));
        }
        wanted.retain(|file| !is_weights(&file.name) || shards.contains(&file.name));
    } else if wanted.iter().any(|file| file.name == WEIGHTS) {
        wanted.retain(|file| !is_weights(&file.name) || file.name == WEIGHTS);
    } else {
        return Err(no_weights(WEIGHTS));
    }
    finish(&snapshot, wanted)
}

/// Fetches the files of a snapshot, the weights last, and points the revision at it.
fn finish(snapshot: &Snapshot, mut wanted: Vec<Listed>) -> Result<Resolved, HubError> {
    wanted.sort_by_key(|file| is_weights(&file.name));
    wanted.iter().try_for_each(|file| snapshot.fetch(file).map(drop))?;
    snapshot.complete()?;
    let request = snapshot.request;
    cache::find(request).map_err(|file| HubError::MissingFile { repo: request.repo.into(), file })
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

fn is_weights(name: &str) -> bool {
    has_extension(name, "safetensors")
}

impl<'a> Snapshot<'a> {
    /// Asks the Hub which commit the revision stands for.
    pub fn open(request: &'a Request<'a>, progress: &'a dyn Fn(&str)) -> Result<Self, HubError> {
        let client = Client::new(request.env, request.repo, false);
        let commit = commit_of(&client, request.kind, request.revision)?
            .ok_or_else(|| client.protocol("no commit hash in the description of the repository"))?;
        let folder = cache::repo_folder(request).join("snapshots").join(&commit);
        Ok(Self { request, client, commit, folder, progress })
    }

    /// The files of the commit; `is_recursive`: those in folders, too.
    pub fn list(&self, is_recursive: bool) -> Result<Vec<Listed>, HubError> {
        list(&self.client, self.request.kind, &self.commit, is_recursive)
    }

    /// Points `refs/<revision>` at this snapshot, in which every file is that is needed.
    pub fn complete(&self) -> Result<(), HubError> {
        let revision = self.request.revision;
        if cache::is_commit(revision) {
            return Ok(());
        }
        let path = cache::repo_folder(self.request).join("refs").join(revision);
        let write = || {
            fs::create_dir_all(parent(&path))?;
            let temporary = temporary_in(parent(&path));
            fs::write(&temporary, &self.commit)?;
            fs::rename(temporary, &path)
        };
        write().map_err(io_error(&path))
    }

    /// Fetches one file unless it is there; returns its path in the snapshot.
    ///
    /// # Errors
    /// [`HubError::Damaged`] where the Hub gives other bytes than it lists, twice; they are deleted.
    pub fn fetch(&self, file: &Listed) -> Result<PathBuf, HubError> {
        let link = self.folder.join(&file.name);
        if !cache::is_inside(&file.name) {
            let message = format!("the list of files names {:?}, which is outside of the repository", file.name);
            return Err(self.client.protocol(&message));
        }
        match fs::metadata(&link) {
            Ok(found) if found.len() == file.bytes => return Ok(link),
            // A blob that somebody cut short: it and the link are fetched anew.
            Ok(_) => discard(&link).map_err(io_error(&link))?,
            Err(_) => {}
        }
        let root = cache::repo_folder(self.request);
        // Without a hash the content has no name yet; the place is one for this file of this commit.
        let known = file.hash.as_ref().map(|hash| hash.hex().to_owned());
        let key = known.unwrap_or_else(|| format!("{}-{}", self.commit, file.name.replace('/', "-")));
        let _lock = self.lock(&key)?;
        let blob = root.join("blobs").join(&key);
        let is_there = fs::metadata(&blob).is_ok_and(|found| found.len() == file.bytes);
        let blob = if is_there && file.hash.is_some() { blob } else { self.fetch_blob(file, &root, &key)? };
        link_to(&blob, &link).map_err(io_error(&link))?;
        Ok(link)
    }

    /// Holds a content for this process. The lock is the one that the Python client takes.
    fn lock(&self, key: &str) -> Result<File, HubError> {
        let name = cache::repo_folder(self.request).file_name().unwrap_or_default().to_owned();
        let path = self.request.env.cache.join(".locks").join(name).join(format!("{key}.lock"));
        let open = || {
            fs::create_dir_all(parent(&path))?;
            File::options().write(true).create(true).truncate(false).open(&path)
        };
        let file = open().map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                (self.progress)(&format!(
                    "another process is fetching the same file of {}: waiting",
                    self.request.repo
                ));
                file.lock().map_err(io_error(&path))?;
                Ok(file)
            }
            Err(fs::TryLockError::Error(source)) => Err(io_error(&path)(source)),
        }
    }

    /// Fetches a content into its blob.
    fn fetch_blob(&self, file: &Listed, root: &Path, key: &str) -> Result<PathBuf, HubError> {
        let partial = root.join("blobs").join(format!("{key}.incomplete"));
        fs::create_dir_all(parent(&partial)).map_err(io_error(&partial))?;
        let mut problem = String::new();
        // Bytes that an earlier run left may be what is wrong: the second try begins with none.
        for _ in 0..2 {
            let etag = self.receive(file, &partial)?;
            let expected = file.hash.clone().or_else(|| ContentHash::parse(&etag?));
            match check(&partial, file, expected.as_ref()).map_err(io_error(&partial))? {
                None => {
                    let read = || File::open(&partial);
                    let name = match &expected {
                        Some(hash) => hash.hex().to_owned(),
                        None => read().and_then(|f| git_sha1(file.bytes, f)).map_err(io_error(&partial))?,
                    };
                    let blob = root.join("blobs").join(name);
                    let place = || read()?.sync_all().and_then(|()| fs::rename(&partial, &blob));
                    place().map_err(io_error(&blob))?;
                    return Ok(blob);
                }
                Some(found) => {
                    fs::remove_file(&partial).map_err(io_error(&partial))?;
                    problem = found;
                }
            }
        }
        Err(HubError::Damaged { repo: self.request.repo.into(), file: file.name.clone(), problem })
    }

    /// Receives what is missing of a content, however often the connection breaks; returns the hash that came along.
    fn receive(&self, file: &Listed, partial: &Path) -> Result<Option<String>, HubError> {
        let (mut tries, mut etag) = (1, None);
        loop {
            let before = fs::metadata(partial).map_or(0, |found| found.len());
            if before == file.bytes && (before > 0 || tries > 1) {
                return Ok(etag);
            }
            let so_far = if before > 0 && before < file.bytes { ", of which some is here" } else { "" };
            let (name, repo) = (&file.name, self.request.repo);
            (self.progress)(&format!("fetching {name} of {repo} ({}{so_far})", super::readable(file.bytes)));
            let error = match self.receive_once(file, partial, before, &mut etag) {
                Ok(None) => return Ok(etag),
                Ok(Some(error)) => error,
                Err(HubError::Server { status: 416, .. }) if before > 0 => {
                    // What is here is not a beginning of what is there.
                    fs::remove_file(partial).map_err(io_error(partial))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // As long as bytes arrive, going on is no failed try.
            let after = fs::metadata(partial).map_or(0, |found| found.len());
            if after > before && after < file.bytes {
                tries = 1;
            }
            let pause = pause_before(tries, None, self.request.env.first_pause).filter(|_| error.may_pass());
            let Some(pause) = pause.filter(|_| tries < ATTEMPTS) else { return Err(error) };
            tracing::debug!("{error}; going on after {after} of {} bytes in {pause:?}", file.bytes);
            std::thread::sleep(pause);
            tries += 1;
        }
    }

    /// One request for the bytes from `start` on; what broke the answer off, if anything did.
    fn receive_once(
        &self,
        file: &Listed,
        partial: &Path,
        start: u64,
        etag: &mut Option<String>,
    ) -> Result<Option<HubError>, HubError> {
        let start = if start < file.bytes { start } else { 0 };
        let (kind, commit) = (self.request.kind, &self.commit);
        let path = format!("{}{}/resolve/{commit}/{}", kind.prefix(), self.request.repo, encode_path(&file.name));
        let mut ask = Ask::get(self.client.url(&path), &file.name);
        if start > 0 {
            ask = ask.header("range", &format!("bytes={start}-"));
        }
        let reply = self.client.send(&ask)?;
        if reply.etag.is_some() {
            etag.clone_from(&reply.etag);
        }
        let goes_on = reply.status() == 206
            && reply.header("content-range").is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        let open = || {
            let mut out = File::options().write(true).create(true).truncate(false).open(partial)?;
            let from = if goes_on { start } else { 0 };
            out.set_len(from)?;
            out.seek(SeekFrom::Start(from)).map(|_| (out, from))
        };
        let (mut out, mut written) = open().map_err(io_error(partial))?;
        let mut body = reply.response.into_body().into_reader();
        let mut piece = vec![0u8; PIECE];
        loop {
            let read = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(self.client.broken(&ask, &error))),
            };
            out.write_all(&piece[..read]).map_err(io_error(partial))?;
            written += read as u64;
            // What is too long is wrong, and need not fill the disk.
            if written > file.bytes {
                break;
            }
        }
        Ok(None)
    }
}

/// What is wrong with a received file, if anything: its size, its hash, or, where no hash is known, what its name
/// promises.
fn check(path: &Path, file: &Listed, expected: Option<&ContentHash>) -> std::io::Result<Option<String>> {
    let bytes = fs::metadata(path)?.len();
    if bytes != file.bytes {
        return Ok(Some(format!("{bytes} bytes instead of {}", file.bytes)));
    }
    if let Some(expected) = expected {
        let name = if matches!(expected, ContentHash::Sha256(_)) { "SHA-256" } else { "git hash" };
        let is_right = has_hash(path, expected)?;
        return Ok((!is_right).then(|| format!("its {name} is not the one that the Hub lists")));
    }
    if is_weights(&file.name) {
        return Ok(header::read(path).err().map(|error| error.to_string()));
    }
    if has_extension(&file.name, "json") {
        let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(&fs::read(path)?);
        return Ok(parsed.err().map(|error| format!("not JSON: {error}")));
    }
    Ok(None)
}

/// Puts a file into a snapshot: a relative link, as the Python client makes it.
fn link_to(blob: &Path, link: &Path) -> std::io::Result<()> {
    let folder = parent(link);
    fs::create_dir_all(folder)?;
    // From the link's folder up to the folder of the repository, which holds `blobs`.
    let root = parent(parent(blob));
    let depth = folder.strip_prefix(root).map_or(0, |inner| inner.components().count());
    let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
    target.extend([Path::new("blobs"), Path::new(blob.file_name().unwrap_or_default())]);
    let temporary = temporary_in(folder);
    std::os::unix::fs::symlink(target, &temporary)?;
    fs::rename(temporary, link)
}

/// A path that no other thread and no other process that lives takes.
fn temporary_in(folder: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let path = folder.join(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    // One of a process that was killed, whose number has come round again.
    let _ = fs::remove_file(&path);
    path
}

/// Deletes a bad file: the link in the snapshot and the blob behind it.
fn discard(link: &Path) -> std::io::Result<()> {
    if let Ok(blob) = fs::canonicalize(link) {
        fs::remove_file(blob)?;
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

fn parent(path: &Path) -> &Path {
    crate::io::parent_of(path)
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + use<> {
    let path = path.to_owned();
    move |source| HubError::Io { path, source }
}
