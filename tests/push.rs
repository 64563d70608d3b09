//! A folder becomes one commit on the Hub, whole or not at all; the Hub is a server on the loopback device.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]
#![cfg(feature = "hub")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/hub_server/mod.rs"]
mod hub_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use candlewick::env::{HubEnv, Secret};
use candlewick::error::{Diagnose, Exit};
use candlewick::hub::{HubError, PushEvent, PushTarget, Pushed, resolve_with};
use candlewick::recipe::{PushError, RecipeError, plan_push, push};
use hub_server::wire::Answer;
use hub_server::{Failure, Hub, Settings, Stored};

const ID: &str = "org/tiny";
const REPO: &str = "models/org/tiny";
const TOKEN: &str = "hf_CANARYcanaryCANARY";

fn hub() -> Hub {
    Hub::start(Settings { token: Some(TOKEN.into()), ..Settings::default() })
}

fn env(hub: &Hub) -> HubEnv {
    HubEnv {
        cache: PathBuf::from("/nowhere"),
        token: Some(Secret::new(TOKEN)),
        endpoint: hub.endpoint.clone(),
        offline: false,
        progress: true,
        download_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(10),
    }
}

fn target() -> PushTarget {
    PushTarget { repo: ID.into(), message: "A model".into(), ..PushTarget::default() }
}

/// A model with some things beside it that should stay here.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fixtures::copy_model("qwen2_tied", folder.path());
    for left in [".cache", "optimizer.safetensors", "completions.jsonl", "run_config.toml", "wandb.log"] {
        fs::write(folder.path().join(left), left).unwrap();
    }
    let inner = [
        ("checkpoint-5", "model.safetensors"),
        ("runs/run", "events"),
        (".git", "HEAD"),
        ("other_run", "metrics.jsonl"),
        ("other_run", "model.safetensors"),
        ("found", "samples_sums_2026.jsonl"),
        ("found/old/checkpoint-1", "model.safetensors"),
    ];
    for (inner, file) in inner {
        fs::create_dir_all(folder.path().join(inner)).unwrap();
        fs::write(folder.path().join(inner).join(file), "x").unwrap();
    }
    folder
}

const PUSHED: [&str; 6] = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Pushes; whatever comes back, the token is not in it.
fn push_it(env: &HubEnv, folder: &Path, target: &PushTarget) -> Result<Pushed, RecipeError> {
    let events = std::sync::Mutex::new(Vec::<PushEvent>::new());
    let result = push(env, folder, target, Some(true), false, &|event| events.lock().unwrap().push(event));
    let text = format!("{result:?} {:?}", events.lock().unwrap());
    assert!(!text.contains("CANARY"), "the token leaked: {text}");
    if let Err(error) = &result {
        assert!(!format!("{error} {:?}", error.hint()).contains("CANARY"));
    }
    result
}

/// Fails unless the branch has the files of the folder, byte for byte, with a card that names the model.
fn assert_pushed(hub: &Hub, branch: &str, folder: &Path) {
    let files = hub.files(REPO, branch);
    let names: Vec<&str> = files.keys().map(String::as_str).filter(|name| *name != ".gitattributes").collect();
    assert_eq!(names, PUSHED);
    for name in &PUSHED[1..] {
        assert!(files[*name] == fs::read(folder.join(name)).unwrap(), "{name}");
    }
    let card = String::from_utf8(files["README.md"].clone()).unwrap();
    assert!(card.contains("model=\"org/tiny\"") && card.contains("library_name: transformers"), "{card}");
}

fn hub_error(error: RecipeError) -> HubError {
    match error {
        RecipeError::Hub(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_becomes_one_commit_and_what_is_there_is_not_sent_again() {
    let (hub, folder) = (hub(), folder());
    let target = target();
    let pushed = push_it(&env(&hub), folder.path(), &target).unwrap();
    assert_pushed(&hub, "main", folder.path());
    assert_eq!((pushed.files.len(), pushed.num_unchanged), (6, 0));
    assert_eq!(pushed.url, format!("{}/org/tiny", hub.endpoint));
    let repo = hub.repo(REPO).unwrap();
    assert!(repo.is_private);
    assert_eq!(repo.branches["main"].last(), Some(&pushed.commit));
    assert_eq!(hub.num_commits(REPO, "main"), 2, "the Hub's own, and one");

    // Large files go to the storage, whole and once, without the token, and not through the commit.
    let weights = fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as usize;
    let large = fs::metadata(folder.path().join("tokenizer.json")).unwrap().len() as usize;
    let seen = hub.seen();
    let mut puts: Vec<usize> = seen.iter().filter(|r| r.method == "PUT").map(|r| r.bytes).collect();
    puts.sort_unstable();
    assert!(weights > 1000 && large > 1000);
    assert!(puts.contains(&weights) && puts.contains(&large), "{puts:?}");
    assert!(seen.iter().find(|r| r.path.contains("/commit/")).unwrap().bytes < weights);
    assert!(matches!(repo.head("main").unwrap()["model.safetensors"], Stored::Large(..)));
    for request in &seen {
        let expected = (!request.is_storage).then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.authorization, expected, "{request:?}");
    }

    hub.forget();
    let again = push_it(&env(&hub), folder.path(), &target).unwrap();
    assert_eq!((again.commit, again.files.len(), again.num_unchanged), (pushed.commit, 0, 6));
    assert!(hub.seen().iter().all(|r| r.method != "PUT" && !r.path.contains("/commit/")));

    fs::write(folder.path().join("generation_config.json"), "{\"new\": true}").unwrap();
    let changed = push_it(&env(&hub), folder.path(), &target).unwrap();
    assert_eq!((changed.files, changed.num_unchanged), (vec!["generation_config.json".to_owned()], 5));
    assert_pushed(&hub, "main", folder.path());
    assert_eq!(hub.num_commits(REPO, "main"), 3);
}

#[test]
fn files_in_parts_arrive_whole() {
    let hub = Hub::start(Settings { part_bytes: 1024, token: Some(TOKEN.into()), ..Settings::default() });
    let folder = folder();
    hub.fail("PUT", "/2", 1, Failure::CutRequest(100));
    hub.fail("PUT", "/3", 1, Failure::Answer(Answer::new(500, "")));
    hub.fail("POST", "/complete", 1, Failure::LoseAnswer);
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_pushed(&hub, "main", folder.path());
    assert_eq!(hub.faults_left(), 0);
    assert!(hub.seen().iter().filter(|r| r.method == "PUT").all(|r| r.bytes <= 1024));
}

/// Each request may fail in each way that passes, alone: the push ends in one whole commit.
#[test]
fn every_failure_that_passes_is_survived_by_exactly_one_commit() {
    let requests = [
        ("POST", "/api/repos/create"),
        ("GET", "/api/models/org/tiny"),
        ("POST", "/preupload/"),
        ("GET", "/tree/"),
        ("POST", "/objects/batch"),
        ("PUT", "/storage/"),
        ("POST", "/storage/verify"),
        ("POST", "/commit/"),
    ];
    let failures = [
        Failure::Answer(Answer::new(500, "oops")),
        Failure::Answer(Answer::new(429, "").header("retry-after", "0")),
        Failure::CutRequest(10),
        Failure::LoseAnswer,
    ];
    for (method, path) in requests {
        for failure in &failures {
            let (hub, folder) = (hub(), folder());
            hub.fail(method, path, 2, failure.clone());
            let pushed = push_it(&env(&hub), folder.path(), &target());
            let pushed = pushed.unwrap_or_else(|error| panic!("{method} {path} {failure:?}: {error}"));
            assert_pushed(&hub, "main", folder.path());
            assert_eq!(hub.num_commits(REPO, "main"), 2, "{method} {path} {failure:?}");
            assert_eq!(hub.repo(REPO).unwrap().branches["main"][1], pushed.commit);
            assert_eq!(hub.faults_left(), 0, "{method} {path} {failure:?}");
        }
    }
}

/// A push that was given up shows nothing of itself, and the next one sends only what is missing.
#[test]
fn a_push_that_failed_half_way_is_made_whole_by_the_next() {
    let (hub, folder) = (hub(), folder());
    hub.fail("PUT", "/storage/", 1, Failure::CutRequest(u64::MAX));
    hub.fail("POST", "/commit/", 5, Failure::CutRequest(100));
    let error = hub_error(push_it(&env(&hub), folder.path(), &target()).unwrap_err());
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Remote);
    assert_eq!(hub.files(REPO, "main").keys().collect::<Vec<_>>(), [".gitattributes"]);

    hub.forget();
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_pushed(&hub, "main", folder.path());
    assert!(hub.seen().iter().all(|r| r.method != "PUT"), "what is stored is not sent again");
}

/// `kill -9` at many moments of a push: nothing partial is ever visible, and the next push completes it.
#[test]
fn a_killed_push_leaves_nothing_partial() {
    for (method, path) in [("POST", "/preupload/"), ("PUT", "/storage/"), ("POST", "/verify"), ("POST", "/commit/")] {
        let (hub, folder) = (hub(), folder());
        hub.fail(method, path, 1, Failure::Stall(Duration::from_secs(60)));
        let mut child = program(&hub).args(["push", folder.path().to_str().unwrap(), ID]).spawn().unwrap();
        let started = Instant::now();
        while hub.faults_left() > 0 && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(hub.num_commits(REPO, "main"), 1, "{path}");
        push_it(&env(&hub), folder.path(), &target()).unwrap();
        assert_pushed(&hub, "main", folder.path());
        assert_eq!(hub.num_commits(REPO, "main"), 2, "{path}");
    }
}

#[test]
fn branches_are_made_and_names_completed() {
    let (hub, folder) = (hub(), folder());
    let branch = PushTarget { revision: Some("step/5".into()), ..target() };
    let pushed = push_it(&env(&hub), folder.path(), &branch).unwrap();
    assert_pushed(&hub, "step/5", folder.path());
    assert_eq!(hub.num_commits(REPO, "main"), 1);
    assert!(pushed.url.ends_with("/org/tiny/tree/step%2F5"), "{}", pushed.url);

    let bare = PushTarget { repo: "mine".into(), ..target() };
    assert_eq!(push_it(&env(&hub), folder.path(), &bare).unwrap().repo, "me/mine");
    let card = hub.files("models/me/mine", "main")["README.md"].clone();
    assert!(String::from_utf8(card).unwrap().contains("model=\"me/mine\""));
}

/// A loader takes `model.safetensors` before shards: what an earlier push left must not be taken for the model.
#[test]
fn weights_of_an_earlier_push_go() {
    let (hub, folder) = (hub(), folder());
    let old: [(&str, &[u8]); 4] = [
        ("model.safetensors.index.json", b"{}"),
        ("model-00001-of-00002.safetensors", b"old"),
        ("model-best.safetensors", b"mine"),
        ("notes.md", b"mine"),
    ];
    hub.commit(REPO, "main", &old);
    let pushed = push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_eq!(pushed.deleted, ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]);
    let left: Vec<String> =
        hub.files(REPO, "main").into_keys().filter(|name| !PUSHED.contains(&name.as_str())).collect();
    assert_eq!(left, ["model-best.safetensors", "notes.md"]);
}

#[test]
fn what_the_repository_ignores_is_named() {
    let (hub, folder) = (hub(), folder());
    hub.commit(REPO, "main", &[(".gitignore", b"generation_config.json")]);
    hub.change(REPO, |repo| repo.gitignore = vec!["generation_config.json".into()]);
    let pushed = push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_eq!(pushed.ignored, ["generation_config.json"]);
    assert!(!hub.files(REPO, "main").contains_key("generation_config.json"));
}

/// Somebody else commits in between: the push is made anew for the new state, and takes nothing of theirs away.
#[test]
fn a_commit_of_somebody_else_is_no_loss() {
    let (hub, folder) = (hub(), folder());
    hub.fail("POST", "/commit/", 1, Failure::Answer(Answer::error(412, "", "A commit has happened since.")));
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_pushed(&hub, "main", folder.path());
    hub.fail("POST", "/commit/", 9, Failure::Answer(Answer::error(412, "", "A commit has happened since.")));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let error = hub_error(push_it(&env(&hub), folder.path(), &target()).unwrap_err());
    assert!(matches!(error, HubError::Conflict { .. }), "{error}");
}

#[test]
fn who_may_not_push_is_told_what_to_do() {
    type Change = fn(&mut HubEnv);
    let folder = folder();
    let cases: [(Change, Option<Answer>, Exit, &str); 6] = [
        (|env| env.token = None, None, Exit::Remote, "there is no access token"),
        (|env| env.token = Some(Secret::new("hf_old")), None, Exit::Remote, "HTTP 401"),
        (|env| env.offline = true, None, Exit::Usage, "no network access is allowed"),
        (|_| {}, Some(Answer::error(403, "", "You don't have the rights")), Exit::Remote, "You don't have the rights"),
        (|_| {}, Some(Answer::error(400, "", "Invalid metadata in README.md")), Exit::Remote, "Invalid metadata"),
        (|_| {}, Some(Answer::new(429, "").header("retry-after", "900")), Exit::Remote, "wait 900 seconds"),
    ];
    for (change, answer, exit, words) in cases {
        let hub = hub();
        let mut env = env(&hub);
        change(&mut env);
        if let Some(answer) = answer {
            hub.fail("POST", "/api/repos/create", 1, Failure::Answer(answer));
        }
        let error = push_it(&env, folder.path(), &target()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.exit(), exit, "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert!(hub.repo(REPO).is_none());
    }
    let hub = hub();
    for id in ["a/b/c", "../x", "org/", "a b"] {
        let error = push_it(&env(&hub), folder.path(), &PushTarget { repo: id.into(), ..target() }).unwrap_err();
        assert!(matches!(error, RecipeError::Hub(HubError::Id { .. })), "{error}");
    }
    for revision in ["a//b", "0123456789abcdef0123456789abcdef01234567"] {
        let target = PushTarget { revision: Some(revision.into()), ..target() };
        let error = push_it(&env(&hub), folder.path(), &target).unwrap_err();
        assert!(matches!(error, RecipeError::Hub(HubError::Revision { .. })), "{error}");
    }
}

/// A token that may write but not make repositories is enough where there is one.
#[test]
fn a_repository_that_exists_need_not_be_made() {
    let (hub, folder) = (hub(), folder());
    hub.commit(REPO, "main", &[("old.txt", b"x")]);
    let busy = "Cannot create repo: another conflicting operation is in progress";
    hub.fail("POST", "/api/repos/create", 2, Failure::Answer(Answer::error(409, "", busy)));
    hub.fail("POST", "/api/repos/create", 1, Failure::Answer(Answer::error(403, "", "no")));
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert!(hub.files(REPO, "main").contains_key("model.safetensors"));
}

/// An address of the storage that is no longer good is asked for anew.
#[test]
fn an_upload_whose_address_has_expired_gets_another() {
    let (hub, folder) = (hub(), folder());
    hub.fail("PUT", "/storage/", 1, Failure::Answer(Answer::new(403, "Request has expired")));
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_pushed(&hub, "main", folder.path());
}

#[test]
fn folders_without_a_whole_model_are_refused() {
    let (hub, folder) = (hub(), folder());
    let path = |name: &str| folder.path().join(name);
    let refuse = || match push_it(&env(&hub), folder.path(), &target()).unwrap_err() {
        RecipeError::Push(error) => error,
        other => panic!("{other}"),
    };
    std::os::unix::fs::symlink("nowhere", path("linked.txt")).unwrap();
    assert!(matches!(refuse(), PushError::BrokenLink { .. }));
    fs::remove_file(path("linked.txt")).unwrap();

    fs::rename(path("model.safetensors"), path(".hidden")).unwrap();
    let error = refuse();
    assert!(matches!(&error, PushError::NoWeights { file, .. } if file == "model.safetensors"), "{error}");
    assert_eq!(error.exit(), Exit::Model);
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    fs::write(path("model.safetensors.index.json"), index).unwrap();
    assert!(matches!(refuse(), PushError::NoWeights { file, .. } if file == "model-00001-of-00002.safetensors"));
    fs::remove_file(path("config.json")).unwrap();
    assert!(matches!(refuse(), PushError::NoModel { .. }));
    assert!(hub.seen().is_empty(), "nothing was asked");
    let nowhere = push_it(&env(&hub), &path("nowhere"), &target()).unwrap_err();
    assert_eq!(nowhere.exit(), Exit::Usage);
}

/// A link is the file that it points to, as in the Hub's own cache; sizes are those of the content.
#[test]
fn links_are_followed() {
    let (hub, folder, elsewhere) = (hub(), folder(), tempfile::tempdir().unwrap());
    let weights = folder.path().join("model.safetensors");
    fs::rename(&weights, elsewhere.path().join("blob")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("blob"), &weights).unwrap();
    push_it(&env(&hub), folder.path(), &target()).unwrap();
    assert_pushed(&hub, "main", folder.path());
}

#[test]
fn an_own_card_stays_and_the_state_goes_along_on_demand() {
    let folder = folder();
    fs::write(folder.path().join("README.md"), "# mine\nPATH_OR_ID\n").unwrap();
    let plan = plan_push(folder.path(), ID, false).unwrap();
    assert!(!plan.has_new_card);
    let left: BTreeMap<&str, &str> = plan.left_out.iter().map(|left| (left.path.as_str(), left.why)).collect();
    let names = [
        ".cache",
        ".git",
        "checkpoint-5",
        "completions.jsonl",
        "found/old/checkpoint-1",
        "found/samples_sums_2026.jsonl",
        "optimizer.safetensors",
        "other_run",
        "run_config.toml",
        "runs",
        "wandb.log",
    ];
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), names);
    let with_state = plan_push(folder.path(), ID, true).unwrap();
    let files: Vec<&str> = with_state.files.iter().map(|file| file.path.as_str()).collect();
    assert!(files.contains(&"optimizer.safetensors") && files.contains(&"runs/run/events"), "{files:?}");
    assert_eq!(with_state.left_out.len(), 5, "hidden files and other checkpoints and runs stay");
}

/// The program with the Hub's address and token in its environment.
fn program(hub: &Hub) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CANDLEWICK_") || name.starts_with("HF_") || name.starts_with("RUST_LOG") {
            command.env_remove(name);
        }
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", TOKEN).env("HF_HOME", "/nowhere");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a command wrote; the token is not in it.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(!stdout.contains("CANARY") && !stderr.contains("CANARY"), "{stdout}{stderr}");
    (status.code(), stdout, stderr)
}

#[test]
fn the_command_lists_pushes_and_never_takes_a_token() {
    let (hub, folder) = (hub(), folder());
    let path = folder.path().to_str().unwrap();
    let (code, listed, _) = run(program(&hub).args(["push", path, ID, "--dry-run"]));
    assert_eq!(code, Some(0));
    let size = fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    assert!(listed.contains(&format!("{size}  model.safetensors\n")), "{listed}");
    assert!(listed.contains("README.md  (made by this push)") && listed.contains("  checkpoint-5  ("), "{listed}");
    assert!(hub.seen().is_empty());

    let token = format!("--token={TOKEN}");
    let (code, _, _) = run(program(&hub).args(["push", path, ID, &token]));
    assert_eq!(code, Some(2));

    let (code, stdout, stderr) = run(program(&hub).args(["push", path, ID, "--private", "--json", "-vv"]));
    assert_eq!(code, Some(0), "{stderr}");
    let pushed: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(pushed["url"], format!("{}/org/tiny", hub.endpoint));
    assert_eq!(pushed["commit"], hub.repo(REPO).unwrap().branches["main"][1].as_str());
    assert!(stderr.contains("not pushed: optimizer.safetensors"), "{stderr}");
    assert_pushed(&hub, "main", folder.path());

    let (code, stdout, _) = run(program(&hub).args(["push", path, ID]));
    assert_eq!((code, stdout.contains("which has all 6 files already")), (Some(0), true), "{stdout}");
    let (code, _, stderr) = run(program(&hub).args(["push", path, ID]).env_remove("HF_TOKEN"));
    assert_eq!(code, Some(8));
    assert!(stderr.contains("HF_TOKEN"), "{stderr}");
}

/// A run that is to be pushed: refused before it begins where it could not be, pushed at its end, and where that fails
/// nothing is lost and the command to repeat it is named.
#[test]
fn a_run_is_pushed_at_its_end() {
    let place = tempfile::tempdir().unwrap();
    let (model, output) = (place.path().join("model"), place.path().join("run"));
    fixtures::write_tiny(&model);
    let row = |i: u32| format!("{{\"prompt\": \"{i}+1=\", \"answer\": {}}}\n", i + 1);
    let rows: String = (0..8).map(row).collect();
    fs::write(place.path().join("train.jsonl"), rows).unwrap();
    let train = |hub: &Hub, more: &[&str]| {
        let mut command = program(hub);
        command.args(["train", "--device", "cpu", "--max-steps", "1", "--max-completion-length", "4"]);
        command.arg("--model").arg(&model).arg("--train-file").arg(place.path().join("train.jsonl"));
        command.arg("--output-dir").arg(&output).args(["--set", "init=random", "--set", "push_to_hub=true"]);
        command.args(more);
        command
    };
    let hub = hub();
    let id = ["--set", "hub_model_id=org/tiny", "--set", "hub_private_repo=true"];
    let (code, _, stderr) = run(train(&hub, &id).env_remove("HF_TOKEN"));
    assert_eq!(code, Some(8), "{stderr}");
    assert!(!output.join("metrics.jsonl").exists(), "nothing has begun");
    let (code, _, stderr) = run(&mut train(&hub, &["--offline"]));
    assert_eq!((code, stderr.contains("`push_to_hub` needs the network")), (Some(2), true), "{stderr}");

    let (code, _, stderr) = run(train(&hub, &id).args(["--train-file", "nowhere.jsonl"]));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(hub.seen().is_empty(), "a run that cannot begin makes no repository");

    hub.fail("POST", "/commit/", 1, Failure::Answer(Answer::error(403, "", "no more")));
    let (code, stdout, stderr) = run(&mut train(&hub, &id));
    assert_eq!(code, Some(8), "{stderr}");
    assert!(stdout.contains("steps"), "the table is shown: {stdout}");
    let command = format!("candlewick push {} org/tiny", output.display());
    assert!(stderr.contains("it was not pushed") && stderr.contains(&command), "{stderr}");
    assert!(output.join("model.safetensors").is_file() && output.join("checkpoint-1").is_dir());

    let (code, _, stderr) = run(program(&hub).args(command.split(' ').skip(1)));
    assert_eq!(code, Some(0), "{stderr}");
    let files = hub.files(REPO, "main");
    assert!(files["model.safetensors"] == fs::read(output.join("model.safetensors")).unwrap());
    let card = String::from_utf8(files["README.md"].clone()).unwrap();
    assert!(card.contains("introduced in [DeepSeekMath") && card.contains("model=\"org/tiny\""), "{card}");
    assert!(hub.repo(REPO).unwrap().is_private);

    // The end of a run that is done is pushed again: there is nothing to do.
    let (code, _, stderr) = run(&mut train(&hub, &["--resume", "auto", id[0], id[1]]));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(hub.num_commits(REPO, "main"), 2);

    // A checkpoint gets its card from what is saved with it; damaged weights stay here.
    let checkpoint = output.join("checkpoint-1");
    let branch = PushTarget { revision: Some("step-1".into()), ..target() };
    push_it(&env(&hub), &checkpoint, &branch).unwrap();
    let files = hub.files(REPO, "step-1");
    assert!(!files.contains_key("optimizer.safetensors") && !files.contains_key("run_config.toml"));
    let card = String::from_utf8(files["README.md"].clone()).unwrap();
    assert!(card.contains("1 optimizer steps were done") && card.contains("| num_generations | 8 |"), "{card}");
    let weights = checkpoint.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let error = push_it(&env(&hub), &checkpoint, &branch).unwrap_err();
    assert!(error.to_string().contains("model.safetensors is damaged"), "{error}");
}

/// An adapter goes to the Hub and comes back, and its weights are demanded as a model's are.
#[test]
fn an_adapter_is_pushed_and_found() {
    let (hub, folder, cache) = (hub(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    for name in files {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/qwen2_tied").join(name);
        fs::write(folder.path().join(name), fs::read(fixture).unwrap()).unwrap();
    }
    let pushed = push_it(&env(&hub), folder.path(), &target()).unwrap();
    let env = HubEnv { cache: cache.path().to_owned(), ..env(&hub) };
    let found = resolve_with(&env, ID, None, false, &|_| {}).unwrap();
    assert_eq!(found.commit, Some(pushed.commit));
    for name in files {
        assert!(fs::read(found.folder.join(name)).unwrap() == fs::read(folder.path().join(name)).unwrap(), "{name}");
    }
    assert_eq!(resolve_with(&env, ID, None, true, &|_| {}).unwrap(), found);
    fs::remove_file(found.folder.join("adapter_model.safetensors")).unwrap();
    let error = resolve_with(&env, ID, None, true, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

/// A second witness: the Rust client of Hugging Face downloads what was pushed, byte for byte, and its cache serves here.
#[test]
fn hf_hub_finds_what_was_pushed() {
    let (hub, folder, cache) = (hub(), folder(), tempfile::tempdir().unwrap());
    let pushed = push_it(&env(&hub), folder.path(), &target()).unwrap();
    let client = hf_hub::HFClient::builder().endpoint(&hub.endpoint).cache_dir(cache.path()).token(TOKEN);
    let repo = client.build_sync().unwrap().model("org", "tiny");
    for name in PUSHED.iter().filter(|name| **name != "README.md") {
        let path = repo.download_file().filename(*name).send().unwrap();
        assert!(fs::read(path).unwrap() == fs::read(folder.path().join(name)).unwrap(), "{name}");
    }
    let env = HubEnv { cache: cache.path().to_owned(), ..env(&hub) };
    let found = resolve_with(&env, ID, None, true, &|_| {}).unwrap();
    assert_eq!(found.commit, Some(pushed.commit));
}
