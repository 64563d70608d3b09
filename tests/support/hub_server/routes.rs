//! What the server answers: each address of the Hub that the clients use.

use base64::Engine;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::wire::{Answer, Request};
use super::{Files, Repo, State, Stored, git_sha1, sha256};

/// Carries a request out.
pub fn answer(request: &Request, body: &[u8], state: &mut State, storage: &str) -> Answer {
    let parts: Vec<String> = request
        .path
        .trim_matches('/')
        .split('/')
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let known = state.settings.token.clone();
    let is_known = known.is_none_or(|token| request.header("authorization") == Some(&format!("Bearer {token}")));
    if request.header("authorization").is_some() && !is_known && parts[0] != "storage" {
        return Answer::error(401, "", "Invalid credentials in Authorization header");
    }
    match (request.method.as_str(), parts.as_slice()) {
        (_, ["storage", rest @ ..]) => stored(request, rest, body, state),
        ("GET", ["api", "whoami-v2"]) if is_known => {
            Answer::json(&json!({ "type": "user", "name": state.settings.user, "orgs": [] }))
        }
        ("POST", ["api", "validate-yaml"]) => Answer::json(&json!({ "errors": [], "warnings": [] })),
        ("POST", _) if !is_known => Answer::error(401, "", "Invalid username or password."),
        ("POST", ["api", "repos", "create"]) => create(state, &parse(body)),
        ("POST", [owner, name, "info", "lfs", "objects", "batch"]) => {
            let is_there = state.repos.contains_key(&format!("models/{owner}/{}", name.trim_end_matches(".git")));
            if is_there { batch(state, &parse(body), storage) } else { not_found() }
        }
        (_, ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
            match visible(state, &format!("{kind}/{owner}/{name}"), is_known) {
                Ok(repo) => api(request, rest, body, state, &repo),
                Err(answer) => answer,
            }
        }
        ("GET" | "HEAD", [owner, name, "resolve", revision, file @ ..]) => {
            match visible(state, &format!("models/{owner}/{name}"), is_known) {
                Ok(repo) => resolve(&state.repos[&repo], revision, &file.join("/"), storage),
                Err(answer) => answer,
            }
        }
        ("GET" | "HEAD", ["datasets", owner, name, "resolve", revision, file @ ..]) => {
            match visible(state, &format!("datasets/{owner}/{name}"), is_known) {
                Ok(repo) => resolve(&state.repos[&repo], revision, &file.join("/"), storage),
                Err(answer) => answer,
            }
        }
        _ => Answer::error(404, "", "no such address"),
    }
}

fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

fn not_found() -> Answer {
    Answer::error(404, "RepoNotFound", "Repository not found")
}

fn no_revision(revision: &str) -> Answer {
    Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))
}

/// The key of a repository that may be seen.
fn visible(state: &State, key: &str, is_known: bool) -> Result<String, Answer> {
    let repo = state.repos.get(key);
    match repo {
        Some(repo) if repo.is_gated && !is_known => Err(Answer::error(401, "GatedRepo", "Access is restricted")),
        Some(repo) if !repo.is_private || is_known => Ok(key.to_owned()),
        // Whether there is such a repository is not told to everyone.
        _ if !is_known => Err(Answer::error(401, "RepoNotFound", "Invalid username or password.")),
        _ => Err(not_found()),
    }
}

fn create(state: &mut State, asked: &Value) -> Answer {
    let owner = asked["organization"].as_str().unwrap_or(&state.settings.user).to_owned();
    let id = format!("{owner}/{}", asked["name"].as_str().unwrap_or_default());
    let kind = format!("{}s", asked["type"].as_str().unwrap_or("model"));
    let answer = json!({ "url": format!("{}/{id}", state.endpoint), "name": id, "id": "1" });
    let key = format!("{kind}/{id}");
    if state.repos.contains_key(&key) {
        return Answer { status: 409, ..Answer::json(&answer) };
    }
    let is_private = asked["visibility"] == "private" || asked["private"] == true;
    let mut repo = Repo { is_private, ..Repo::default() };
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    repo.push("main", Files::from([(".gitattributes".into(), Stored::Git(attributes.into()))]));
    state.repos.insert(key, repo);
    Answer::json(&answer)
}

/// What stands below `/api/models/org/name`.
fn api(request: &Request, rest: &[&str], body: &[u8], state: &mut State, key: &str) -> Answer {
    let repo = &state.repos[key];
    match (request.method.as_str(), rest) {
        ("GET", []) => page(key, repo, "main"),
        ("GET", ["revision", revision]) => page(key, repo, revision),
        ("GET", ["refs"]) => {
            let branches: Vec<Value> = repo
                .branches
                .iter()
                .map(|(name, commits)| {
                    json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commits.last() })
                })
                .collect();
            Answer::json(&json!({ "branches": branches, "tags": [], "converts": [] }))
        }
        ("GET", ["tree", revision, folder @ ..]) => {
            tree(request, repo, revision, &folder.join("/"), state.settings.page)
        }
        ("POST", ["branch", branch]) => {
            let Some((commit, _)) = repo.resolve(parse(body)["startingPoint"].as_str().unwrap_or("main")) else {
                return no_revision("startingPoint");
            };
            let repo = state.repos.get_mut(key).unwrap();
            if repo.branches.contains_key(*branch) {
                return Answer::error(409, "", "Reference already exists");
            }
            repo.branches.insert((*branch).to_owned(), vec![commit]);
            Answer::json(&json!({}))
        }
        ("POST", ["preupload", revision]) => match repo.resolve(revision) {
            Some((_, files)) => preupload(repo, files, &parse(body), state.settings.large_from),
            None => no_revision(revision),
        },
        ("POST", ["commit", branch]) => commit(state, key, branch, body),
        _ => Answer::error(404, "", "no such address"),
    }
}

fn page(key: &str, repo: &Repo, revision: &str) -> Answer {
    let id = key.split_once('/').unwrap().1;
    let Some((commit, files)) = repo.resolve(revision) else { return no_revision(revision) };
    let siblings: Vec<Value> = files.keys().map(|name| json!({ "rfilename": name })).collect();
    Answer::json(&json!({
        "_id": "1", "id": id, "modelId": id, "sha": commit, "private": repo.is_private, "siblings": siblings,
        "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
    }))
}

fn tree(request: &Request, repo: &Repo, revision: &str, folder: &str, page: usize) -> Answer {
    let Some((_, files)) = repo.resolve(revision) else { return no_revision(revision) };
    let is_recursive = request.asked("recursive").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries: Vec<Value> = Vec::new();
    for (path, stored) in files {
        let Some(inner) = path.strip_prefix(&prefix) else { continue };
        match inner.split_once('/') {
            Some((first, _)) if !is_recursive => {
                let entry = json!({ "type": "directory", "path": format!("{prefix}{first}"), "size": 0, "oid": "0" });
                if entries.last() != Some(&entry) {
                    entries.push(entry);
                }
            }
            _ => entries.push(entry(path, stored)),
        }
    }
    let start: usize = request.asked("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let end = (start + page).min(entries.len());
    let answer = Answer::json(&json!(entries[start.min(end)..end]));
    if end == entries.len() {
        return answer;
    }
    let host = request.header("host").unwrap_or_default();
    let next = format!("<http://{host}{}?recursive={is_recursive}&cursor={end}>; rel=\"next\"", request.path);
    answer.header("link", &next)
}

fn entry(path: &str, stored: &Stored) -> Value {
    match stored {
        Stored::Git(bytes) => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": git_sha1(bytes) }),
        Stored::Large(oid, bytes) => json!({
            "type": "file", "path": path, "size": bytes, "oid": git_sha1(oid.as_bytes()),
            "lfs": { "oid": oid, "size": bytes, "pointerSize": 134 },
        }),
    }
}

fn preupload(repo: &Repo, files: &Files, asked: &Value, large_from: usize) -> Answer {
    let answers = asked["files"].as_array().into_iter().flatten().map(|file| {
        let path = file["path"].as_str().unwrap_or_default();
        let is_large = file["size"].as_u64().unwrap_or(0) as usize >= large_from || path.ends_with(".safetensors");
        let oid = files.get(path).map(|stored| match stored {
            Stored::Git(bytes) => git_sha1(bytes),
            Stored::Large(oid, _) => oid.clone(),
        });
        let mode = if is_large { "lfs" } else { "regular" };
        json!({ "path": path, "uploadMode": mode, "shouldIgnore": repo.gitignore.iter().any(|name| name == path), "oid": oid })
    });
    Answer::json(&json!({ "files": answers.collect::<Vec<_>>() }))
}

fn batch(state: &State, asked: &Value, storage: &str) -> Answer {
    let part = state.settings.part_bytes;
    let objects = asked["objects"].as_array().into_iter().flatten().map(|object| {
        let (oid, size) = (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64().unwrap_or(0) as usize);
        if state.large.contains_key(oid) {
            return json!({ "oid": oid, "size": size });
        }
        let verify = json!({ "href": format!("{storage}/storage/verify") });
        let upload = if size <= part {
            json!({ "href": format!("{storage}/storage/{oid}") })
        } else {
            let mut header = serde_json::Map::from_iter([("chunk_size".to_owned(), json!(part.to_string()))]);
            for number in 1..=size.div_ceil(part) {
                header.insert(number.to_string(), json!(format!("{storage}/storage/{oid}/{number}")));
            }
            json!({ "href": format!("{storage}/storage/{oid}/complete"), "header": header })
        };
        json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
    });
    Answer::json(&json!({ "transfer": "basic", "objects": objects.collect::<Vec<_>>() }))
}

/// The storage of large files: uploads whole or in parts, and downloads.
fn stored(request: &Request, rest: &[&str], body: &[u8], state: &mut State) -> Answer {
    match (request.method.as_str(), rest) {
        ("PUT", [oid]) => keep(state, oid, body.to_vec()),
        ("PUT", [oid, number]) => {
            let number = number.parse().unwrap_or(0);
            state.parts.insert(((*oid).to_owned(), number), body.to_vec());
            Answer::new(200, "").header("etag", &format!("\"{}\"", sha256(body)))
        }
        ("POST", [oid, "complete"]) => {
            let mut whole = Vec::new();
            for part in parse(body)["parts"].as_array().into_iter().flatten() {
                let number = part["partNumber"].as_u64().unwrap_or(0) as usize;
                let Some(content) = state.parts.get(&((*oid).to_owned(), number)) else {
                    return Answer::new(400, "a part is missing");
                };
                if part["etag"].as_str().is_none_or(|etag| etag.trim_matches('"') != sha256(content)) {
                    return Answer::new(400, "a part has another etag");
                }
                whole.extend_from_slice(content);
            }
            keep(state, oid, whole)
        }
        ("POST", ["verify"]) => {
            let asked = parse(body);
            let found = state.large.get(asked["oid"].as_str().unwrap_or_default());
            match found.filter(|content| Some(content.len() as u64) == asked["size"].as_u64()) {
                Some(_) => Answer::json(&json!({})),
                None => Answer::new(404, "not uploaded"),
            }
        }
        ("GET" | "HEAD", [oid]) => match state.large.get(*oid) {
            Some(content) => ranged(request, content).header("etag", &format!("\"{oid}\"")),
            None => Answer::new(404, "no such content"),
        },
        _ => Answer::new(404, "no such address"),
    }
}

/// A content counts only under the hash that it has.
fn keep(state: &mut State, oid: &str, content: Vec<u8>) -> Answer {
    if sha256(&content) != oid {
        return Answer::new(400, "the content has another SHA-256");
    }
    state.large.insert(oid.to_owned(), content);
    Answer::new(200, "")
}

fn ranged(request: &Request, content: &[u8]) -> Answer {
    let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => Answer::new(200, content),
        Some(start) if start >= content.len() => Answer::new(416, ""),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Answer::new(206, &content[start..]).header("content-range", &range)
        }
    }
}

fn resolve(repo: &Repo, revision: &str, file: &str, storage: &str) -> Answer {
    let Some((commit, files)) = repo.resolve(revision) else { return no_revision(revision) };
    let answer = match files.get(file) {
        None => return Answer::error(404, "EntryNotFound", "Entry not found").header("x-repo-commit", &commit),
        Some(Stored::Git(bytes)) => Answer::new(200, bytes.clone()).header("etag", &format!("\"{}\"", git_sha1(bytes))),
        Some(Stored::Large(oid, bytes)) => Answer::new(302, "")
            .header("location", &format!("{storage}/storage/{oid}"))
            .header("x-linked-etag", &format!("\"{oid}\""))
            .header("x-linked-size", &bytes.to_string()),
    };
    answer.header("x-repo-commit", &commit)
}

/// Makes a commit of NDJSON operations, all of them or none.
fn commit(state: &mut State, key: &str, branch: &str, body: &[u8]) -> Answer {
    let Some(head) = state.repos[key].branches.get(branch).and_then(|commits| commits.last().cloned()) else {
        return no_revision(branch);
    };
    let mut files = state.repos[key].commits[&head].clone();
    let Ok(text) = std::str::from_utf8(body) else { return Answer::error(400, "", "not UTF-8") };
    for line in text.lines() {
        let operation = parse(line.as_bytes());
        let value = &operation["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match operation["key"].as_str() {
            Some("header") => {
                if value["parentCommit"].as_str().is_some_and(|parent| parent != head) {
                    return Answer::error(412, "", "A commit has happened since. Please refresh and try again.");
                }
                if value["summary"].as_str().is_none_or(str::is_empty) {
                    return Answer::error(400, "", "a commit needs a summary");
                }
            }
            Some("file") => {
                let content = value["content"].as_str().unwrap_or_default();
                let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(content) else {
                    return Answer::error(400, "", "not base64");
                };
                files.insert(path, Stored::Git(bytes));
            }
            Some("lfsFile") => {
                let oid = value["oid"].as_str().unwrap_or_default().to_owned();
                let Some(content) = state.large.get(&oid) else {
                    return Answer::error(400, "", &format!("{path} was not uploaded"));
                };
                let bytes = content.len();
                files.insert(path, Stored::Large(oid, bytes));
            }
            Some("deletedFile") if files.remove(&path).is_some() => {}
            _ => return Answer::error(400, "", &format!("cannot do {line:.60}")),
        }
    }
    let id = key.split_once('/').unwrap().1.to_owned();
    let oid = state.repos.get_mut(key).unwrap().push(branch, files);
    let url = format!("{}/{id}/commit/{oid}", state.endpoint);
    Answer::json(&json!({ "success": true, "commitOid": oid, "commitUrl": url, "hookOutput": "" }))
}
