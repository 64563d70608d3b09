//! The Hub cache on disk: `models--org--name/{refs/<revision>, snapshots/<commit>/<file>, blobs/<hash>}`, of data sets
//! `datasets--org--name`.
//!
//! Reading needs no Hub client and opens no connection. Whether a snapshot is complete is decided by its weights: they
//! are fetched last.

use std::path::PathBuf;

use serde_json::Value;

use super::{Request, Resolved};

/// The single weight file and the index of several, as every transformers model names them.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// What makes a repository that of an adapter, as transformers sees it.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(super) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Folder of a repository in the cache.
pub(super) fn repo_folder(request: &Request) -> PathBuf {
    request.env.cache.join(format!("{}--{}", request.kind.plural(), request.repo.replace('/', "--")))
}

/// Whether a revision is a whole commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path that a repository lists stays inside of its folder.
pub(super) fn is_inside(name: &str) -> bool {
    !name.is_empty() && !name.contains(['\\', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The commit that a revision stood for when it was fetched last, or what is missing.
pub(super) fn commit_of(request: &Request) -> Result<String, String> {
    if is_commit(request.revision) {
        return Ok(request.revision.to_owned());
    }
    let reference = repo_folder(request).join("refs").join(request.revision);
    let text = std::fs::read_to_string(&reference).map_err(|_| format!("refs/{}", request.revision))?;
    let commit = text.trim().to_owned();
    if is_commit(&commit) { Ok(commit) } else { Err(format!("a commit in refs/{}", request.revision)) }
}

/// The complete snapshot of a request, or the first thing that is missing from it.
pub(super) fn find(request: &Request) -> Result<Resolved, String> {
    let root = repo_folder(request);
    let commit = commit_of(request)?;
    let folder = root.join("snapshots").join(&commit);
    let need = |file: &str| if folder.join(file).exists() { Ok(()) } else { Err(file.to_owned()) };
    if need(ADAPTER_CONFIG).is_ok() {
        need(ADAPTER_WEIGHTS)?;
        return Ok(Resolved { folder, repo: Some(request.repo.to_owned()), commit: Some(commit) });
    }
    need("config.json")?;
    if need(INDEX).is_ok() {
        for shard in shards(&folder.join(INDEX)).ok_or_else(|| INDEX.to_owned())? {
            need(&shard)?;
        }
    } else {
        need(WEIGHTS)?;
    }
    Ok(Resolved { folder, repo: Some(request.repo.to_owned()), commit: Some(commit) })
}

/// The files that a shard index names, each once; none where the index cannot be read.
pub(super) fn shards(index: &std::path::Path) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let mut names: Vec<String> =
        value.get("weight_map")?.as_object()?.values().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    Some(names)
}
