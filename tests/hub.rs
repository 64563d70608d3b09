//! Model names become folders, or an error that says what to do; the Hub is a server on the loopback device.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]
#![cfg(feature = "hub")]

#[path = "support/hub_server/mod.rs"]
mod hub_server;
#[path = "support/model_folder.rs"]
mod model_folder;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candlewick::env::{HubEnv, Secret};
use candlewick::error::{Diagnose, Exit};
use candlewick::hub::{HubError, Resolved, resolve_with};
use hub_server::wire::Answer;
use hub_server::{Failure, Hub, Settings, git_sha1, sha256};

const ID: &str = "org/tiny";
const REPO: &str = "models/org/tiny";
const CANARY: &str = "hf_CANARYcanaryCANARY";
const WEIGHTS: &str = "model.safetensors";

fn env(endpoint: &str, cache: &Path) -> HubEnv {
    HubEnv {
        cache: cache.to_owned(),
        token: Some(Secret::new(CANARY)),
        endpoint: endpoint.to_owned(),
        offline: false,
        progress: true,
        download_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(10),
    }
}

/// Resolves the model of the tests; whatever comes back, the token is not in it.
fn resolve(env: &HubEnv, revision: Option<&str>) -> Result<Resolved, HubError> {
    let messages = std::sync::Mutex::new(String::new());
    let result = resolve_with(env, ID, revision, false, &|line| *messages.lock().unwrap() += line);
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

fn weights() -> Vec<u8> {
    model_folder::serialize(&model_folder::tensors())
}

/// A Hub that serves a small model, whose weights lie in the storage, and two files that no one should fetch.
fn hub() -> Hub {
    let hub = Hub::start(Settings { page: 2, ..Settings::default() });
    let weights = weights();
    let files: [(&str, &[u8]); 6] = [
        ("config.json", model_folder::CONFIG.as_bytes()),
        ("generation_config.json", b"{}"),
        (WEIGHTS, &weights),
        ("onnx/model.onnx", b"other"),
        ("pytorch_model.bin", b"\x80\x02}"),
        ("tokenizer.json", b"{\"version\": \"1.0\"}"),
    ];
    hub.commit(REPO, "main", &files);
    hub
}

/// The file of the snapshot, the blob and what is unfinished of it.
fn traces(cache: &Path, name: &str, content: &[u8]) -> [PathBuf; 3] {
    let repo = cache.join("models--org--tiny");
    let hash = if name == WEIGHTS { sha256(content) } else { git_sha1(content) };
    let commit = std::fs::read_dir(repo.join("snapshots")).ok().and_then(|mut entries| entries.next()?.ok());
    let link = commit.map_or_else(|| repo.join("none"), |commit| commit.path().join(name));
    [link, repo.join("blobs").join(&hash), repo.join("blobs").join(format!("{hash}.incomplete"))]
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_hub() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&hub.endpoint, cache.path());
    let found = resolve(&env, None).unwrap();
    assert_eq!(found.repo.as_deref(), Some(ID));
    for (name, body) in hub.files(REPO, "main") {
        let is_wanted = !name.starts_with("onnx") && name != "pytorch_model.bin";
        assert_eq!(std::fs::read(found.folder.join(&name)).ok(), is_wanted.then_some(body), "{name}");
    }
    // As the Python client lays it out: links to blobs that are named by their hash.
    let [link, blob, partial] = traces(cache.path(), WEIGHTS, &weights());
    assert_eq!(std::fs::canonicalize(&link).unwrap(), std::fs::canonicalize(&blob).unwrap());
    assert!(std::fs::read_link(&link).unwrap().starts_with("../../blobs") && !partial.exists());
    // The storage is another origin, which the token is not for.
    for request in hub.seen() {
        let expected = (!request.is_storage).then(|| format!("Bearer {CANARY}"));
        assert_eq!(request.authorization, expected, "{request:?}");
    }
    assert!(hub.seen().iter().any(|request| request.is_storage));

    hub.forget();
    assert_eq!(resolve(&env, None).unwrap(), found);
    assert!(hub.seen().iter().all(|request| request.path.starts_with("/api/")), "{:?}", hub.seen());

    hub.forget();
    let commit = found.commit.clone().unwrap();
    assert_eq!(resolve(&env, Some(&commit)).unwrap(), found, "a commit needs no question");
    env.offline = true;
    assert_eq!(resolve(&env, None).unwrap(), found);
    assert_eq!(hub.seen().len(), 0);

    // The Hub is gone: the cached copy stands in.
    env.offline = false;
    env.endpoint = "http://127.0.0.1:1".into();
    assert_eq!(resolve(&env, None).unwrap(), found);
}

#[test]
fn another_revision_has_its_own_reference_and_shares_what_is_the_same() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&hub.endpoint, cache.path());
    let weights = weights();
    let model: [(&str, &[u8]); 3] =
        [("config.json", model_folder::CONFIG.as_bytes()), (WEIGHTS, &weights), ("tokenizer.json", b"{}")];
    hub.commit(REPO, "feature/x", &model);
    let found = resolve(&env, Some("feature/x")).unwrap();
    env.offline = true;
    assert_eq!(resolve(&env, Some("feature/x")).unwrap(), found);
    assert!(matches!(resolve(&env, None), Err(HubError::NotCached { .. })));

    env.offline = false;
    hub.forget();
    resolve(&env, None).unwrap();
    let fetched: Vec<String> = hub.seen().into_iter().map(|request| request.path).collect();
    assert!(!fetched.iter().any(|path| path.contains(WEIGHTS)), "{fetched:?}");
    assert!(fetched.iter().any(|path| path.ends_with("tokenizer.json")), "{fetched:?}");
}

#[test]
fn offline_opens_no_connection() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&hub.endpoint, cache.path());
    env.offline = true;
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == "refs/main"), "{error}");
    assert_eq!(error.exit(), Exit::Remote);
    let by_flag = resolve_with(&env, ID, None, true, &|_| {}).unwrap_err();
    assert!(matches!(by_flag, HubError::NotCached { .. }));
    assert_eq!(hub.seen().len(), 0);
}

#[test]
fn answers_of_the_hub_become_errors_with_a_hint() {
    type Check = fn(&HubError) -> bool;
    let gated = format!("gated; your token {CANARY} has no access");
    let cases: Vec<(Answer, &str, Check)> = vec![
        (Answer::error(404, "RepoNotFound", "Repository not found"), "org/tiny is not on http", |e| {
            matches!(e, HubError::RepoNotFound { .. })
        }),
        (
            Answer::error(404, "RevisionNotFound", "Invalid rev id"),
            "has no revision v9",
            |e| matches!(e, HubError::RevisionNotFound { revision, .. } if revision == "v9"),
        ),
        (Answer::error(401, "", "Invalid credentials"), "(HTTP 401: Invalid credentials); a token was sent", |e| {
            matches!(e, HubError::Unauthorized { sent: true, .. })
        }),
        (Answer::error(403, "GatedRepo", &gated), "gated; your token [token] has no access", |e| {
            matches!(e, HubError::Forbidden { writes: false, .. })
        }),
        (Answer::error(429, "", "slow down").header("retry-after", "3600"), "asks to wait 3600 seconds", |e| {
            matches!(e, HubError::RateLimited { .. })
        }),
        (Answer::new(418, "teapot"), "HTTP 418 to the page of the repository: teapot", |e| {
            matches!(e, HubError::Server { .. })
        }),
        (Answer::new(200, "<html>"), "is not JSON", |e| matches!(e, HubError::Protocol { .. })),
        (Answer::new(200, "{\"sha\": \"../..\"}"), "no commit hash", |e| matches!(e, HubError::Protocol { .. })),
    ];
    for (answer, words, check) in cases {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        hub.fail("GET", "/revision/v9", 1, Failure::Answer(answer));
        let error = resolve(&env(&hub.endpoint, cache.path()), Some("v9")).unwrap_err();
        assert!(check(&error) && error.to_string().contains(words), "{error} {error:?}");
        assert_eq!(error.exit(), Exit::Remote);
        assert!(error.hint().is_some());
        assert_eq!(hub.seen().len(), 1, "such an answer is final: {error}");
    }
}

/// What the Hub itself says of a name that is wrong, and of a model that is not for everyone.
#[test]
fn what_may_not_be_seen_is_told_with_and_without_a_token() {
    let settings = || Settings { token: Some(CANARY.into()), ..Settings::default() };
    let (hub, cache) = (Hub::start(settings()), tempfile::tempdir().unwrap());
    let mut env = env(&hub.endpoint, cache.path());
    assert!(matches!(resolve(&env, None).unwrap_err(), HubError::RepoNotFound { .. }));
    let weights = weights();
    hub.commit(REPO, "main", &[("config.json", model_folder::CONFIG.as_bytes()), (WEIGHTS, &weights)]);
    assert!(matches!(resolve(&env, Some("v2")).unwrap_err(), HubError::RevisionNotFound { .. }));
    env.token = None;
    for change in
        [|repo: &mut hub_server::Repo| repo.is_private = true, |repo: &mut hub_server::Repo| repo.is_gated = true]
    {
        hub.change(REPO, change);
        let error = resolve(&env, None).unwrap_err();
        assert!(matches!(error, HubError::Unauthorized { sent: false, .. }), "{error}");
        assert!(error.hint().unwrap().contains("HF_TOKEN"));
    }
    env.token = Some(Secret::new("hf_old"));
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(error, HubError::Unauthorized { sent: true, .. }), "{error}");
    assert!(error.hint().unwrap().contains("expired"));
}

#[test]
fn no_network_is_said_as_such() {
    let cache = tempfile::tempdir().unwrap();
    let error = resolve(&env("http://127.0.0.1:1", cache.path()), None).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
    assert!(error.to_string().starts_with("http://127.0.0.1:1 cannot be reached: Connection refused"), "{error}");
}

/// Wrong bytes, whatever is wrong with them, are fetched once more; then they are named and none of them is kept.
#[test]
fn a_wrong_byte_never_reaches_the_cache() {
    let good = weights();
    let cases: Vec<(&str, &str, Failure, &str)> = vec![
        (WEIGHTS, "/storage/", Failure::WrongByte(good.len() - 1), "SHA-256"),
        (WEIGHTS, "/storage/", Failure::Body(vec![b'<'; good.len()]), "SHA-256"),
        (WEIGHTS, "/storage/", Failure::Body(good[..good.len() - 5].to_vec()), "bytes instead of"),
        (WEIGHTS, "/storage/", Failure::Body([&good[..], b"more"].concat()), "bytes instead of"),
        ("config.json", "config.json", Failure::WrongByte(3), "git hash"),
        ("config.json", "config.json", Failure::Body(b"<html>".to_vec()), "6 bytes instead of"),
    ];
    for (name, path, failure, problem) in cases {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        let env = env(&hub.endpoint, cache.path());
        let content = hub.files(REPO, "main")[name].clone();
        hub.fail("GET", path, 2, failure.clone());
        let error = resolve(&env, None).unwrap_err();
        assert!(matches!(&error, HubError::Damaged { file, .. } if file == name), "{error:?}");
        assert!(error.to_string().contains(problem), "{error}");
        let traces = traces(cache.path(), name, &content);
        assert!(traces.iter().all(|trace| trace.symlink_metadata().is_err()), "{name}: {traces:?}");
        assert!(!cache.path().join("models--org--tiny/refs/main").exists());

        hub.fail("GET", path, 1, failure);
        let found = resolve(&env, None).unwrap();
        assert_eq!(std::fs::read(found.folder.join(name)).unwrap(), content);
        assert_eq!(hub.faults_left(), 0);
    }
}

/// A connection that breaks goes on where it broke, also after the program was killed; bytes that were left behind and
/// are wrong do not get through.
#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let env = env(&hub.endpoint, cache.path());
    let good = weights();
    let half = good.len() / 2;
    let ranges = |hub: &Hub| -> Vec<Option<String>> {
        let seen = hub.seen();
        seen.into_iter().filter(|request| request.is_storage).map(|request| request.range).collect()
    };
    hub.fail("GET", "/storage/", 1, Failure::CutAnswer(half));
    hub.fail("GET", "/storage/", 1, Failure::CutAnswer(0));
    resolve(&env, None).unwrap();
    let range = Some(format!("bytes={half}-"));
    assert_eq!(ranges(&hub), [None, range.clone(), range.clone()]);

    let [link, blob, partial] = traces(cache.path(), WEIGHTS, &good);
    for left in [good[..half].to_vec(), vec![7; half], [&good[..], b"x"].concat(), good.clone()] {
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&partial, &left).unwrap();
        hub.forget();
        resolve(&env, None).unwrap();
        assert_eq!(std::fs::read(&link).unwrap(), good);
        assert!(!partial.exists());
        let expected: &[Option<String>] = match left.len() {
            len if len == half && left == good[..half] => std::slice::from_ref(&range),
            len if len == half => &[range.clone(), None],
            len if len == good.len() => &[],
            _ => &[None],
        };
        assert_eq!(ranges(&hub), expected);
    }
    // A blob that was cut short later is not taken for whole.
    std::fs::write(&blob, &good[..half]).unwrap();
    let found = resolve(&env, None).unwrap();
    assert_eq!(std::fs::read(found.folder.join(WEIGHTS)).unwrap(), good);
}

/// Failures that pass are waited out, as long as the server asks to.
#[test]
fn passing_failures_are_waited_out() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.fail("GET", "/api/", 2, Failure::Answer(Answer::new(500, "oops")));
    hub.fail("GET", "/tree/", 1, Failure::Answer(Answer::new(429, "").header("retry-after", "1")));
    hub.fail("GET", "/resolve/", 1, Failure::Answer(Answer::new(503, "")));
    hub.fail("GET", "/storage/", 2, Failure::LoseAnswer);
    let started = Instant::now();
    resolve(&env(&hub.endpoint, cache.path()), None).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(hub.faults_left(), 0);

    let (hub, cache) = (self::hub(), tempfile::tempdir().unwrap());
    hub.fail("GET", "/resolve/", 100, Failure::Answer(Answer::new(502, "")));
    let error = resolve(&env(&hub.endpoint, cache.path()), None).unwrap_err();
    assert!(error.to_string().ends_with("answered HTTP 502 to config.json"), "{error}");
    assert_eq!(100 - hub.faults_left(), 5);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let env = env(&hub.endpoint, &cache.path().join("cache"));
    std::fs::write(cache.path().join("cache"), "a file").unwrap();
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(&error, HubError::Io { path, .. } if path.starts_with(&env.cache)), "{error}");
    assert_eq!(error.exit(), Exit::Io);
    let full = HubError::Io { path: env.cache.clone(), source: std::io::ErrorKind::StorageFull.into() };
    assert!(full.hint().unwrap().contains("HF_HUB_CACHE"));
}

#[test]
fn a_repository_of_pickles_is_refused_before_anything_is_fetched() {
    let (hub, cache) = (Hub::start(Settings::default()), tempfile::tempdir().unwrap());
    hub.commit(REPO, "main", &[("config.json", b"{}"), ("pytorch_model.bin", b"\x80\x02}")]);
    let error = resolve(&env(&hub.endpoint, cache.path()), None).unwrap_err();
    assert!(matches!(&error, HubError::Pickle { file, .. } if file == "pytorch_model.bin"), "{error:?}");
    assert!(hub.seen().iter().all(|request| request.path.starts_with("/api/")));
}

#[test]
fn a_list_cannot_name_files_outside_of_the_cache() {
    let (hub, cache) = (Hub::start(Settings::default()), tempfile::tempdir().unwrap());
    hub.commit(REPO, "main", &[("config.json", b"{}"), ("model.safetensors.index.json", b"{}")]);
    let tree = r#"[{"type": "file", "path": "config.json", "size": 2}, {"type": "file", "size": 2,
                   "path": "../../../../model.safetensors"}, {"type": "file", "path": "model.safetensors"}]"#;
    hub.fail("GET", "/tree/", 1, Failure::Answer(Answer::new(200, tree)));
    let error = resolve(&env(&hub.endpoint, cache.path()), None).unwrap_err();
    assert!(error.to_string().contains("has no path or no size"), "{error}");
}

#[test]
fn a_server_that_stalls_is_given_up() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.fail("GET", "/api/", 100, Failure::Stall(Duration::from_secs(5)));
    let mut env = env(&hub.endpoint, cache.path());
    env.download_timeout = Duration::from_millis(300);
    let error = resolve(&env, None).unwrap_err();
    assert!(matches!(error, HubError::Stalled { .. }), "{error:?}");
}

/// Two processes fetch one model: the second waits for the first, and both find it whole.
#[test]
fn two_at_once_fetch_each_file_once() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let env = env(&hub.endpoint, cache.path());
    let both = std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| resolve(&env, None).unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(both[0], both[1]);
    let fetched = hub.seen().iter().filter(|request| request.is_storage).count();
    assert_eq!(fetched, 1);
}
