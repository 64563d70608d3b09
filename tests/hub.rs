//! Model names become folders, or an error that says what to do; the Hub is a server on the loopback device.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]
#![cfg(feature = "hub")]

#[path = "support/http_server.rs"]
mod http_server;
#[path = "support/model_folder.rs"]
mod model_folder;

use std::path::Path;
use std::time::Duration;

use candlewick::env::{HubEnv, Secret};
use candlewick::error::{Diagnose, Exit};
use candlewick::hub::{HubError, Resolved, resolve_with};
use http_server::{Answer, Server};
use sha2::{Digest, Sha256};

const REPO: &str = "org/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CANARY: &str = "hf_CANARYcanaryCANARY";

fn env(endpoint: &str, cache: &Path) -> HubEnv {
    HubEnv {
        cache: cache.to_owned(),
        token: Some(Secret::new(CANARY)),
        endpoint: endpoint.to_owned(),
        offline: false,
        progress: true,
        download_timeout: Duration::from_secs(20),
    }
}

/// Resolves the model of the tests; whatever comes back, the token is not in it.
fn resolve(env: &HubEnv, revision: Option<&str>) -> Result<Resolved, HubError> {
    let messages = std::sync::Mutex::new(String::new());
    let result = resolve_with(env, REPO, revision, false, &|line| *messages.lock().unwrap() += line);
    let mut texts = vec![messages.into_inner().unwrap(), format!("{result:?} {env:?}")];
    if let Err(error) = &result {
        texts.push(format!("{error} {:?}", error.hint()));
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(error) = cause {
            texts.push(format!("{error} {error:?}"));
            cause = error.source();
        }
    }
    assert!(!texts.concat().contains("CANARY"), "the token leaked: {texts:?}");
    result
}

/// The files of a model with the Hub's name for each blob.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", model_folder::CONFIG.into()),
        ("generation_config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
        ("model.safetensors", model_folder::serialize(&model_folder::tensors())),
    ]
}

fn sha256(body: &[u8]) -> String {
    Sha256::digest(body).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A Hub that serves [`files`], and two files that no one should fetch.
fn hub() -> Server {
    let server = Server::start();
    let info = format!(r#"{{"_id": "1", "id": "{REPO}", "sha": "{COMMIT}"}}"#);
    server.answer(&format!("/api/models/{REPO}"), Answer::new(200, info.clone()));
    server.answer(&format!("/api/models/{REPO}/revision/v1"), Answer::new(200, info));
    let mut tree = vec![
        r#"{"type": "file", "path": "pytorch_model.bin", "size": 10, "oid": "aa"}"#.to_owned(),
        r#"{"type": "directory", "path": "onnx", "oid": "ab"}"#.to_owned(),
    ];
    for (name, body) in files() {
        tree.push(format!(
            r#"{{"type": "file", "path": "{name}", "size": {}, "oid": "{}"}}"#,
            body.len(),
            sha256(name.as_bytes())
        ));
        serve(&server, name, body.clone(), &sha256(&body));
    }
    server.answer(&format!("/api/models/{REPO}/tree/{COMMIT}"), Answer::new(200, format!("[{}]", tree.join(","))));
    server
}

fn serve(server: &Server, name: &str, body: Vec<u8>, etag: &str) {
    let answer = Answer::new(200, body).header("etag", &format!("\"{etag}\"")).header("x-repo-commit", COMMIT);
    server.answer(&format!("/{REPO}/resolve/{COMMIT}/{name}"), answer);
}

/// What is left in the cache of a file: links and blobs.
fn traces(cache: &Path, name: &str, etag: &str) -> (bool, bool) {
    let repo = cache.join("models--org--tiny");
    let link = repo.join("snapshots").join(COMMIT).join(name);
    (link.symlink_metadata().is_ok(), repo.join("blobs").join(etag).exists())
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_hub() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&server.endpoint, cache.path());
    let found = resolve(&env, None).unwrap();
    assert_eq!(found.commit.as_deref(), Some(COMMIT));
    assert_eq!(found.repo.as_deref(), Some(REPO));
    for (name, body) in files() {
        assert_eq!(std::fs::read(found.folder.join(name)).unwrap(), body, "{name}");
    }
    assert!(!found.folder.join("pytorch_model.bin").exists());
    let seen = server.seen();
    assert!(seen.iter().all(|request| request.authorization.as_deref() == Some(&format!("Bearer {CANARY}"))));
    assert!(seen.iter().all(|request| Path::new(&request.path).extension().is_none_or(|extension| extension != "bin")));

    server.forget();
    assert_eq!(resolve(&env, None).unwrap(), found);
    assert!(server.seen().iter().all(|request| request.path.starts_with("/api/")), "{:?}", server.seen());

    server.forget();
    assert_eq!(resolve(&env, Some(COMMIT)).unwrap(), found, "a commit needs no question");
    env.offline = true;
    assert_eq!(resolve(&env, None).unwrap(), found);
    assert_eq!(server.seen().len(), 0);

    // The Hub is gone: the cached copy stands in.
    env.offline = false;
    env.endpoint = "http://127.0.0.1:1".into();
    assert_eq!(resolve(&env, None).unwrap(), found);
}

#[test]
fn other_revisions_have_their_own_reference() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&server.endpoint, cache.path());
    let found = resolve(&env, Some("v1")).unwrap();
    env.offline = true;
    assert_eq!(resolve(&env, Some("v1")).unwrap(), found);
    assert!(matches!(resolve(&env, None), Err(HubError::NotCached { .. })));
}

#[test]
fn offline_opens_no_connection() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&server.endpoint, cache.path());
    env.offline = true;
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == "refs/main"), "{error}");
    assert_eq!(error.exit(), Exit::Remote);
    let by_flag = resolve_with(&env, REPO, None, true, &|_| {}).unwrap_err();
    assert!(matches!(by_flag, HubError::NotCached { .. }));
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn answers_of_the_hub_become_errors_with_a_hint() {
    type Check = fn(&HubError) -> bool;
    let page = format!("/api/models/{REPO}");
    let revision = format!("{page}/revision/v9");
    let cases: &[(&str, Option<&str>, Answer, Check)] = &[
        (&page, None, Answer::new(404, "{}").header("x-error-code", "RepoNotFound"), |e| {
            matches!(e, HubError::RepoNotFound { .. })
        }),
        (&revision, Some("v9"), Answer::new(404, "{}").header("x-error-code", "RepoNotFound"), |e| {
            matches!(e, HubError::RepoNotFound { .. })
        }),
        (&revision, Some("v9"), Answer::new(404, "{}").header("x-error-code", "RevisionNotFound"), |e| {
            matches!(e, HubError::RevisionNotFound { .. })
        }),
        (&page, None, Answer::new(401, "{}"), |e| matches!(e, HubError::Unauthorized { sent: true, .. })),
        (
            &page,
            None,
            Answer::new(403, format!(r#"{{"error": "gated; your token {CANARY} has no access"}}"#)),
            |e| matches!(e, HubError::Forbidden { message, .. } if message.contains("gated; your token [token]")),
        ),
        (&page, None, Answer::new(418, "teapot"), |e| matches!(e, HubError::Server { status: 418, .. })),
        (&page, None, Answer::new(200, "<html>"), |e| {
            matches!(e, HubError::Network { .. } | HubError::Protocol { .. })
        }),
    ];
    for (path, revision, answer, check) in cases {
        let (server, cache) = (hub(), tempfile::tempdir().unwrap());
        server.answer(path, answer.clone());
        let error = resolve(&env(&server.endpoint, cache.path()), *revision).unwrap_err();
        assert!(check(&error), "{error:?}");
        assert_eq!(error.exit(), Exit::Remote);
        assert!(error.hint().is_some());
    }
}

#[test]
fn no_network_is_said_as_such() {
    let cache = tempfile::tempdir().unwrap();
    let error = resolve(&env("http://127.0.0.1:1", cache.path()), None).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
    assert!(error.to_string().starts_with("http://127.0.0.1:1 cannot be reached: Connection refused"), "{error}");
}

/// Each bad download is named, deleted, and fetched anew once the server is well again.
#[test]
fn damaged_downloads_do_not_stay_in_the_cache() {
    let weights = model_folder::serialize(&model_folder::tensors());
    let page = vec![b' '; model_folder::CONFIG.len() - 6];
    let page = [b"<html>".to_vec(), page].concat();
    let mut flipped = weights.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("config.json", page, "not JSON"),
        ("config.json", b"{}".to_vec(), "2 bytes instead of"),
        ("model.safetensors", weights[..weights.len() - 5].to_vec(), "bytes instead of"),
        ("model.safetensors", flipped, "SHA-256"),
        ("model.safetensors", vec![b'<'; weights.len()], "header length"),
    ];
    for (name, body, problem) in cases {
        let (server, cache) = (hub(), tempfile::tempdir().unwrap());
        let good = files().into_iter().find(|(file, _)| file == name).unwrap().1;
        let etag = sha256(&good);
        serve(&server, name, body.clone(), &etag);
        let env = env(&server.endpoint, cache.path());
        let error = resolve(&env, None).unwrap_err();
        assert!(matches!(&error, HubError::Damaged { file, .. } if file == name), "{error:?}");
        assert!(error.to_string().contains(problem), "{error}");
        assert_eq!(traces(cache.path(), name, &etag), (false, false), "{name}");
        assert!(!cache.path().join("models--org--tiny/refs/main").exists());

        serve(&server, name, good, &etag);
        resolve(&env, None).unwrap();
    }
}

#[test]
fn a_repository_of_pickles_is_refused_before_anything_is_fetched() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let tree = r#"[{"type": "file", "path": "config.json", "size": 2, "oid": "a"},
                   {"type": "file", "path": "pytorch_model.bin", "size": 9, "oid": "b"}]"#;
    server.answer(&format!("/api/models/{REPO}/tree/{COMMIT}"), Answer::new(200, tree));
    let error = resolve(&env(&server.endpoint, cache.path()), None).unwrap_err();
    assert!(matches!(&error, HubError::Pickle { file, .. } if file == "pytorch_model.bin"), "{error:?}");
    assert!(server.seen().iter().all(|request| request.path.starts_with("/api/")));
}

#[test]
fn a_server_that_stalls_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    // Bound, never accepted: the connection opens and nothing comes back.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut env = env(&endpoint, cache.path());
    env.download_timeout = Duration::from_millis(300);
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(error, HubError::Stalled { .. }), "{error:?}");
}
