//! Pushing files to a model repository: one commit that is there whole or not at all.
//!
//! Large files go to the Hub's storage first, where they change nothing that anyone sees; the commit then names them. So
//! a push that is cut off anywhere can be made again: what is stored already is not sent again. The commit says which
//! state it was made for. Where its answer gets lost, the second try is therefore refused, and a look at the repository
//! tells whether the first had come through.
//!
//! Files are streamed; none is held in memory but those that the Hub keeps in git itself. Xet is not spoken.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::content::{git_sha1, sha256};
use super::http::{Ask, Client, Payload};
use super::lfs::{self, Object};
use super::listing::{ContentHash, commit_of, list};
use super::retry::ATTEMPTS;
use super::{HubError, PushEvent, PushFile, PushSource, PushTarget, Pushed, RepoType, cache, encode, is_repo_id};
use crate::env::HubEnv;

/// Files that the Hub is asked about at a time.
const PREUPLOAD_FILES: usize = 256;
/// Bytes of a file by which the Hub tells text from binary.
const SAMPLE_BYTES: u64 = 512;
/// From this size on a file goes to the storage, whatever the server says: git is not made for it.
const LARGE_FROM: u64 = 10_000_000;
/// Commits that are tried where others push at the same time.
const ROUNDS: usize = 3;

/// A file with what the Hub says of it.
struct Prepared<'a> {
    file: &'a PushFile,
    hash: ContentHash,
    /// Whether the repository has this content under this path.
    is_there: bool,
}

impl Prepared<'_> {
    fn is_large(&self) -> bool {
        matches!(self.hash, ContentHash::Sha256(_))
    }
}

/// Pushes `files` to a repository that is there, making the branch where it is missing.
pub(super) fn push(
    env: &HubEnv,
    target: &PushTarget,
    files: &[PushFile],
    progress: &dyn Fn(PushEvent),
) -> Result<Pushed, HubError> {
    require_access(env, &target.repo)?;
    let client = Client::new(env, &target.repo, true);
    let revision = target.revision.as_deref().unwrap_or("main");
    let mut parent = ensure_branch(&client, revision)?;
    let (mut conflict, mut hashes) = (None, HashMap::new());
    for _ in 0..ROUNDS {
        progress(PushEvent::Step("comparing with the Hub"));
        let (prepared, ignored) = prepare(&client, revision, files, &mut hashes)?;
        let stale = stale_weights(&client, parent.as_deref(), files)?;
        let changed: Vec<&Prepared> = prepared.iter().filter(|file| !file.is_there).collect();
        let pushed = |commit: String| Pushed {
            url: page_of(&client, revision),
            repo: target.repo.clone(),
            revision: revision.to_owned(),
            commit,
            files: changed.iter().map(|file| file.file.path.clone()).collect(),
            num_unchanged: prepared.len() - changed.len(),
            deleted: stale.clone(),
            ignored: ignored.clone(),
        };
        if let Some(parent) = parent.as_ref().filter(|_| changed.is_empty() && stale.is_empty()) {
            return Ok(pushed(parent.clone()));
        }
        let large: Vec<Object<'_>> = changed.iter().filter(|file| file.is_large()).map(|file| object(file)).collect();
        lfs::upload(&client, revision, &large, progress)?;
        progress(PushEvent::Step("committing"));
        match commit(&client, revision, &target.message, parent.as_deref(), &changed, &stale) {
            Ok(commit) => return Ok(pushed(commit)),
            Err(error @ HubError::Conflict { .. }) => {
                parent = commit_of(&client, RepoType::Model, revision)?;
                if let Some(head) = &parent
                    && holds(&client, head, &changed, &stale)?
                {
                    return Ok(pushed(head.clone()));
                }
                conflict = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(conflict.unwrap_or_else(|| client.protocol("no commit was made")))
}

/// Makes a model repository where there is none; returns its whole id, `org/name`.
pub(super) fn ensure_repo(env: &HubEnv, id: &str, is_private: Option<bool>) -> Result<String, HubError> {
    require_access(env, id)?;
    let client = Client::new(env, id, true);
    let id = if id.contains('/') {
        id.to_owned()
    } else {
        let account = client.json(&Ask::get(client.url("api/whoami-v2"), "the account of the token"))?;
        let name = account["name"].as_str().ok_or_else(|| client.protocol("the account has no name"))?;
        format!("{name}/{id}")
    };
    let client = Client::new(env, &id, true);
    let (owner, name) = id.split_once('/').unwrap_or_default();
    let mut asked = json!({ "name": name, "organization": owner, "type": "model" });
    if let Some(is_private) = is_private {
        asked["visibility"] = json!(if is_private { "private" } else { "public" });
    }
    let ask = Ask::post(client.url("api/repos/create"), &asked, "the new repository");
    let mut tries = 1;
    loop {
        return match client.send(&ask) {
            // Two repositories of an account are not made at the same time.
            Err(HubError::Conflict { message, .. }) if tries < ATTEMPTS && message.contains("another conflicting") => {
                std::thread::sleep(env.first_pause * tries);
                tries += 1;
                continue;
            }
            Ok(_) | Err(HubError::Conflict { .. }) => Ok(id),
            // A token may be allowed to write to repositories but not to make them.
            Err(error @ (HubError::Unauthorized { .. } | HubError::Forbidden { .. })) => {
                commit_of(&client, RepoType::Model, "main").map_or(Err(error), |_| Ok(id.clone()))
            }
            Err(error) => Err(error),
        };
    }
}

/// What is known without asking.
fn require_access(env: &HubEnv, id: &str) -> Result<(), HubError> {
    let repo = id.to_owned();
    if !is_repo_id(id) {
        return Err(HubError::Id { id: repo });
    }
    if env.offline {
        return Err(HubError::Offline { repo });
    }
    if env.token.is_none() {
        return Err(HubError::NoToken { repo });
    }
    Ok(())
}

/// The newest commit of a branch, which is made from `main` where it is missing.
fn ensure_branch(client: &Client<'_>, revision: &str) -> Result<Option<String>, HubError> {
    if !super::is_revision(revision) || cache::is_commit(revision) {
        return Err(HubError::Revision { repo: client.repo.into(), revision: revision.into() });
    }
    match commit_of(client, RepoType::Model, revision) {
        Err(HubError::RevisionNotFound { .. }) if !revision.starts_with("refs/") => {
            let url = client.url(&format!("api/models/{}/branch/{}", client.repo, encode(revision)));
            match client.send(&Ask::post(url, &json!({}), "the new branch")) {
                Ok(_) | Err(HubError::Conflict { .. }) => commit_of(client, RepoType::Model, revision),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}

fn page_of(client: &Client<'_>, revision: &str) -> String {
    let page = client.url(client.repo);
    if revision == "main" { page } else { format!("{page}/tree/{}", encode(revision)) }
}

fn object<'a>(file: &Prepared<'a>) -> Object<'a> {
    Object { file: file.file, sha256: file.hash.hex().to_owned() }
}

/// Asks where each file belongs and whether it is there already; those that the repository ignores are named apart.
fn prepare<'a>(
    client: &Client<'_>,
    revision: &str,
    files: &'a [PushFile],
    hashes: &mut HashMap<&'a str, ContentHash>,
) -> Result<(Vec<Prepared<'a>>, Vec<String>), HubError> {
    let url = client.url(&format!("api/models/{}/preupload/{}", client.repo, encode(revision)));
    let (mut prepared, mut ignored) = (Vec::new(), Vec::new());
    for chunk in files.chunks(PREUPLOAD_FILES) {
        let described = chunk.iter().map(|file| {
            let sample = STANDARD.encode(file.start(SAMPLE_BYTES)?);
            Ok(json!({ "path": file.path, "sample": sample, "size": file.bytes }))
        });
        let described: Vec<Value> = described.collect::<Result<_, HubError>>()?;
        let ask = Ask::post(url.clone(), &json!({ "files": described }), "the question how to upload");
        let answer = client.json(&ask)?;
        let answers = answer["files"].as_array().map_or(&[][..], Vec::as_slice);
        for file in chunk {
            let about = answers.iter().find(|about| about["path"] == file.path.as_str());
            let about = about.ok_or_else(|| client.protocol(&format!("nothing is said of {}", file.path)))?;
            if about["shouldIgnore"] == true {
                ignored.push(file.path.clone());
                continue;
            }
            // An empty file has no place in the storage.
            let is_large = file.bytes > 0 && (about["uploadMode"] == "lfs" || file.bytes >= LARGE_FROM);
            // A file is read once for its hash, however often the Hub is asked.
            let known = hashes.get(file.path.as_str()).cloned();
            let hash = match known.filter(|hash| matches!(hash, ContentHash::Sha256(_)) == is_large) {
                Some(hash) => hash,
                None => file.hash(is_large)?,
            };
            hashes.insert(&file.path, hash.clone());
            let is_there = about["oid"].as_str() == Some(hash.hex());
            prepared.push(Prepared { file, hash, is_there });
        }
    }
    Ok((prepared, ignored))
}

/// Weight files of an earlier push that this one does not have: a loader would take them for the model.
fn stale_weights(client: &Client<'_>, parent: Option<&str>, files: &[PushFile]) -> Result<Vec<String>, HubError> {
    let Some(parent) = parent.filter(|_| files.iter().any(|file| is_model_weights(&file.path))) else {
        return Ok(Vec::new());
    };
    let there = list(client, RepoType::Model, parent, false)?;
    let is_stale = |name: &String| is_model_weights(name) && !files.iter().any(|file| file.path == *name);
    Ok(there.into_iter().map(|file| file.name).filter(is_stale).collect())
}

/// The names that loaders look for: one file, or shards with their index.
fn is_model_weights(name: &str) -> bool {
    name == cache::WEIGHTS
        || name == cache::INDEX
        || name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(|numbers| {
            numbers.split_once("-of-").is_some_and(|(n, of)| [n, of].iter().all(|n| n.parse::<u32>().is_ok()))
        })
}

/// Makes the commit; returns its hash.
fn commit(
    client: &Client<'_>,
    revision: &str,
    message: &str,
    parent: Option<&str>,
    changed: &[&Prepared<'_>],
    stale: &[String],
) -> Result<String, HubError> {
    let mut header = json!({ "summary": message, "description": "" });
    if let Some(parent) = parent {
        header["parentCommit"] = json!(parent);
    }
    let mut lines = vec![json!({ "key": "header", "value": header })];
    for Prepared { file, hash, .. } in changed {
        lines.push(match hash {
            ContentHash::Git(_) => {
                let content = STANDARD.encode(file.start(u64::MAX)?);
                json!({ "key": "file", "value": { "content": content, "path": file.path, "encoding": "base64" } })
            }
            ContentHash::Sha256(oid) => json!({
                "key": "lfsFile",
                "value": { "path": file.path, "algo": "sha256", "oid": oid, "size": file.bytes },
            }),
        });
    }
    lines.extend(stale.iter().map(|path| json!({ "key": "deletedFile", "value": { "path": path } })));
    let body = lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n");
    let url = client.url(&format!("api/models/{}/commit/{}", client.repo, encode(revision)));
    let mut ask = Ask::post(url, &Value::Null, "the commit").header("content-type", "application/x-ndjson");
    ask.payload = Payload::Bytes(body.into_bytes());
    let answer = client.json(&ask)?;
    let commit = answer["commitOid"].as_str().filter(|commit| cache::is_commit(commit));
    commit.map(str::to_owned).ok_or_else(|| client.protocol("the answer to the commit names no commit"))
}

/// Whether a commit has all that this push brings.
fn holds(client: &Client<'_>, commit: &str, changed: &[&Prepared<'_>], stale: &[String]) -> Result<bool, HubError> {
    let there = list(client, RepoType::Model, commit, true)?;
    let has = |file: &&Prepared| there.iter().any(|t| t.name == file.file.path && t.hash.as_ref() == Some(&file.hash));
    Ok(changed.iter().all(has) && !there.iter().any(|file| stale.contains(&file.name)))
}

impl PushFile {
    fn open(&self) -> Result<Box<dyn Read + '_>, HubError> {
        Ok(match &self.source {
            PushSource::File(path) => Box::new(std::fs::File::open(path).map_err(|source| self.unreadable(source))?),
            PushSource::Text(text) => Box::new(text.as_bytes()),
        })
    }

    fn hash(&self, is_large: bool) -> Result<ContentHash, HubError> {
        if let Some(known) = self.sha256.as_ref().filter(|_| is_large) {
            return Ok(ContentHash::Sha256(known.clone()));
        }
        let content = self.open()?;
        let hash = if is_large {
            sha256(content).map(ContentHash::Sha256)
        } else {
            git_sha1(self.bytes, content).map(ContentHash::Git)
        };
        hash.map_err(|source| self.unreadable(source))
    }

    /// The first bytes.
    fn start(&self, bytes: u64) -> Result<Vec<u8>, HubError> {
        let mut start = Vec::new();
        let read = self.open()?.take(bytes).read_to_end(&mut start);
        read.map_err(|source| self.unreadable(source))?;
        Ok(start)
    }

    fn unreadable(&self, source: std::io::Error) -> HubError {
        let path = match &self.source {
            PushSource::File(path) => path.clone(),
            PushSource::Text(_) => PathBuf::from(&self.path),
        };
        HubError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_from_other_files_by_their_names() {
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"] {
            assert!(is_model_weights(name), "{name}");
        }
        for name in
            ["my.safetensors", "model-best.safetensors", "adapter_model.safetensors", "model-1-of-x.safetensors"]
        {
            assert!(!is_model_weights(name), "{name}");
        }
    }
}
