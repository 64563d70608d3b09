//! Large files into the Hub's storage, by the LFS batch protocol with the transfers `basic` and `multipart`.
//!
//! What is stored already is not sent. <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>

use serde_json::{Map, Value, json};

use super::http::{Ask, Client, Payload, origin};
use super::{HubError, PushEvent, PushFile, PushSource};

/// Objects of one question.
const BATCH_OBJECTS: usize = 100;
const LFS_JSON: &str = "application/vnd.git-lfs+json";
/// The address that a mirror's answers may still name.
const OFFICIAL: &str = "https://huggingface.co";

/// A file for the storage.
pub(super) struct Object<'a> {
    pub file: &'a PushFile,
    pub sha256: String,
}

/// Uploads what the storage does not have.
pub(super) fn upload(
    client: &Client<'_>,
    revision: &str,
    objects: &[Object<'_>],
    progress: &dyn Fn(PushEvent),
) -> Result<(), HubError> {
    let mut missing = Vec::new();
    for chunk in objects.chunks(BATCH_OBJECTS) {
        missing.extend(ask(client, revision, chunk)?);
    }
    let total = missing.iter().map(|(object, _)| object.file.bytes).sum();
    progress(PushEvent::Begin { files: missing.len(), bytes: total });
    let mut done = 0;
    for (object, actions) in missing {
        let sent = |bytes: u64| progress(PushEvent::Sent { file: object.file.path.clone(), bytes: done + bytes });
        match send(client, object, &actions, &sent) {
            // The address of an upload is good for a while only.
            Err(
                HubError::Server { status: 400..500, .. } | HubError::Forbidden { .. } | HubError::Unauthorized { .. },
            ) => {
                if let Some((object, actions)) = ask(client, revision, std::slice::from_ref(object))?.pop() {
                    send(client, object, &actions, &sent)?;
                }
            }
            other => other?,
        }
        sent(object.file.bytes);
        done += object.file.bytes;
    }
    Ok(())
}

/// Asks which objects are missing in the storage, and how each is to be uploaded.
fn ask<'o, 'a>(
    client: &Client<'_>,
    revision: &str,
    objects: &'o [Object<'a>],
) -> Result<Vec<(&'o Object<'a>, Value)>, HubError> {
    let described: Vec<Value> =
        objects.iter().map(|object| json!({ "oid": object.sha256, "size": object.file.bytes })).collect();
    let asked = json!({
        "operation": "upload", "transfers": ["basic", "multipart"], "objects": described, "hash_algo": "sha256",
        "ref": { "name": revision },
    });
    let url = client.url(&format!("{}.git/info/lfs/objects/batch", client.repo));
    let ask = Ask::post(url, &asked, "the question what to upload").header("accept", LFS_JSON);
    let answer = client.json(&ask.header("content-type", LFS_JSON))?;
    let answers = answer["objects"].as_array().map_or(&[][..], Vec::as_slice);
    let mut missing: Vec<(&Object<'_>, Value)> = Vec::new();
    for object in objects {
        let about = answers.iter().find(|about| about["oid"] == object.sha256.as_str());
        let about = about.ok_or_else(|| client.protocol(&format!("nothing is said of {}", object.file.path)))?;
        if let Some(error) = about.get("error") {
            return Err(HubError::Rejected {
                repo: client.repo.into(),
                file: object.file.path.clone(),
                message: error["message"].as_str().unwrap_or("no reason given").to_owned(),
            });
        }
        let is_new = !missing.iter().any(|(other, _)| other.sha256 == object.sha256);
        if let Some(actions) = about.get("actions").filter(|actions| is_new && actions["upload"].is_object()) {
            missing.push((object, actions.clone()));
        }
    }
    Ok(missing)
}

fn send(client: &Client<'_>, object: &Object<'_>, actions: &Value, sent: &dyn Fn(u64)) -> Result<(), HubError> {
    let upload = &actions["upload"];
    let empty = Map::new();
    let header = upload["header"].as_object().unwrap_or(&empty);
    let url = address(client, upload)?;
    match header.get("chunk_size") {
        None => {
            let ask = put(object, url, 0, object.file.bytes);
            client.send_watched(&with_headers(ask, header), sent)?;
        }
        Some(size) => {
            let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0);
            let size = size.ok_or_else(|| client.protocol("an upload in parts has no size of a part"))?;
            send_parts(client, object, header, size, url, sent)?;
        }
    }
    if let Some(verify) = actions.get("verify").filter(|verify| verify.is_object()) {
        let asked = json!({ "oid": object.sha256, "size": object.file.bytes });
        let ask = Ask::post(address(client, verify)?, &asked, &object.file.path);
        client.send(&with_headers(ask, verify["header"].as_object().unwrap_or(&empty)))?;
    }
    Ok(())
}

/// Uploads the parts one after the other, then says that they are all.
fn send_parts(
    client: &Client<'_>,
    object: &Object<'_>,
    header: &Map<String, Value>,
    size: u64,
    url: String,
    sent: &dyn Fn(u64),
) -> Result<(), HubError> {
    let mut urls: Vec<(u64, &str)> =
        header.iter().filter_map(|(number, url)| Some((number.parse().ok()?, url.as_str()?))).collect();
    urls.sort_unstable();
    if urls.len() as u64 != object.file.bytes.div_ceil(size) {
        let message = format!("{} parts of {size} bytes for {} bytes", urls.len(), object.file.bytes);
        return Err(client.protocol(&message));
    }
    let mut parts = Vec::new();
    for (index, (number, url)) in urls.into_iter().enumerate() {
        let start = index as u64 * size;
        let ask = put(object, url.to_owned(), start, size.min(object.file.bytes - start));
        let reply = client.send_watched(&ask, &|bytes| sent(start + bytes))?;
        let etag = reply.header("etag").filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| client.protocol(&format!("part {number} of an upload has no etag")))?;
        parts.push(json!({ "partNumber": number, "etag": etag }));
    }
    let ask = Ask::post(url, &json!({ "oid": object.sha256, "parts": parts }), &object.file.path);
    client.send(&ask.header("content-type", LFS_JSON).header("accept", LFS_JSON))?;
    Ok(())
}

fn put(object: &Object<'_>, url: String, start: u64, bytes: u64) -> Ask {
    let payload = match &object.file.source {
        PushSource::File(path) => Payload::Part { path: path.clone(), start, bytes },
        PushSource::Text(text) => Payload::Bytes(text.as_bytes()[start as usize..(start + bytes) as usize].to_vec()),
    };
    Ask { method: "PUT", url, headers: Vec::new(), payload, what: object.file.path.clone() }
}

/// The headers that the storage wants to see; never those that belong to the connection.
fn with_headers(ask: Ask, header: &Map<String, Value>) -> Ask {
    let ours = ["content-length", "transfer-encoding", "host", "chunk_size"];
    let wanted = header.iter().filter(|(name, _)| !ours.iter().any(|ours| name.eq_ignore_ascii_case(ours)));
    wanted.fold(ask, |ask, (name, value)| match value.as_str() {
        Some(value) => ask.header(name, value),
        None => ask,
    })
}

/// Where an action leads; what a mirror says of the official Hub is meant for the mirror.
fn address(client: &Client<'_>, action: &Value) -> Result<String, HubError> {
    let href = action["href"].as_str().ok_or_else(|| client.protocol("an upload has no address"))?;
    Ok(match href.strip_prefix(OFFICIAL) {
        Some(path) if origin(href) == OFFICIAL => format!("{}{path}", client.env.endpoint),
        _ => href.to_owned(),
    })
}
