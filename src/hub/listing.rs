//! What a repository holds: the commit of a revision, and the files of a commit with their sizes and hashes.

use serde_json::Value;

use super::cache::is_commit;
use super::http::{Ask, Client};
use super::{HubError, RepoType, encode};

/// A file of a repository as its listing describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Path with `/`, from the top of the repository.
    pub name: String,
    pub bytes: u64,
    /// What its content hashes to, where the Hub says so.
    pub hash: Option<ContentHash>,
}

/// How the Hub names a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContentHash {
    /// SHA-256 of the bytes: large files.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes: files that are stored in git itself.
    Git(String),
}

impl ContentHash {
    /// Reads a hash by its length; anything else is a name that says nothing of the content.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text)),
            40 if is_hex => Some(Self::Git(text)),
            _ => None,
        }
    }

    /// The digits, which are the name of the blob in the cache.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

/// The commit that a branch or tag stands for now; `None` for a repository without any.
pub(super) fn commit_of(client: &Client<'_>, kind: RepoType, revision: &str) -> Result<Option<String>, HubError> {
    let of = if revision == "main" { String::new() } else { format!("/revision/{}", encode(revision)) };
    let path = format!("api/{}/{}{of}", kind.plural(), client.repo);
    let info = client.json(&Ask::get(client.url(&path), "the page of the repository"))?;
    match info.get("sha").and_then(Value::as_str) {
        Some(sha) if is_commit(sha) => Ok(Some(sha.to_owned())),
        Some(_) => Err(client.protocol("the description of the repository has no commit hash")),
        None => Ok(None),
    }
}

/// The files of a commit, those in folders too where `is_recursive`.
pub(super) fn list(
    client: &Client<'_>,
    kind: RepoType,
    commit: &str,
    is_recursive: bool,
) -> Result<Vec<Listed>, HubError> {
    let query = if is_recursive { "?recursive=true" } else { "" };
    let path = format!("api/{}/{}/tree/{}{query}", kind.plural(), client.repo, encode(commit));
    let mut next = Some(client.url(&path));
    let mut files = Vec::new();
    while let Some(url) = next {
        let (page, following) = client.json_page(&Ask::get(url, "the list of files"))?;
        let entries = page.as_array().ok_or_else(|| client.protocol("the list of files is no list"))?;
        for entry in entries.iter().filter(|entry| entry["type"] == "file") {
            files.push(listed(entry).ok_or_else(|| client.protocol("a file of the list has no path or no size"))?);
        }
        next = following;
    }
    Ok(files)
}

fn listed(entry: &Value) -> Option<Listed> {
    let text = |value: &Value| value.as_str().and_then(ContentHash::parse);
    let lfs = &entry["lfs"];
    let hash = text(&lfs["oid"]).or_else(|| text(&lfs["sha256"]));
    // The `oid` of a large file is that of its pointer in git.
    let hash = if lfs.is_object() { hash } else { text(&entry["oid"]) };
    Some(Listed { name: entry["path"].as_str()?.to_owned(), bytes: entry["size"].as_u64()?, hash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_of_a_large_file_is_not_that_of_its_pointer() {
        let (git, sha) = ("0123456789abcdef0123456789abcdef01234567", "ab".repeat(32));
        let small = json!({ "type": "file", "path": "a.json", "size": 2, "oid": git });
        assert_eq!(listed(&small).unwrap().hash, Some(ContentHash::Git(git.into())));
        let large = json!({ "path": "a", "size": 2, "oid": git, "lfs": { "oid": sha, "size": 2, "pointerSize": 120 } });
        assert_eq!(listed(&large).unwrap().hash, Some(ContentHash::Sha256(sha)));
        let unknown = json!({ "path": "a", "size": 2, "oid": git, "lfs": {} });
        assert_eq!(listed(&unknown).unwrap().hash, None);
        assert_eq!(listed(&json!({ "path": "a" })), None);
    }
}
