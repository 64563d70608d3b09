//! The reward `judge` against a loopback service that answers well, badly, late or not at all.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

#[path = "support/judge_server.rs"]
mod judge_server;
#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use candlewick::config::{RewardConfig, RunConfig};
use candlewick::data::Columns;
use candlewick::error::{Diagnose, Exit};
use candlewick::reward::{OnFailure, RewardError, RewardInput, WeightedRewards, extract_last_integer};
use judge_server::{Asked, JudgeServer, Reply};
use tiny_run::{Bench, assert_same_run};

/// A judge that is asked `{completion}|{answer}` and says `Score: N`.
fn table(server: &JudgeServer) -> RewardConfig {
    RewardConfig {
        name: "judge".into(),
        base_url: Some(server.base_url.clone()),
        judge_model: Some("tiny".into()),
        prompt_template: Some("{completion}|{answer}".into()),
        score_pattern: Some(r"Score: *(\S+)".into()),
        max_retries: Some(2),
        timeout_secs: Some(2.0),
        ..RewardConfig::default()
    }
}

fn judge(table: RewardConfig) -> WeightedRewards {
    RunConfig { rewards: vec![table], ..RunConfig::default() }.build_rewards().unwrap()
}

/// Scores these completions of a row whose answer is 19.
fn scores(table: RewardConfig, completions: &[&str]) -> Result<Vec<Option<f64>>, RewardError> {
    let columns = Columns::from_iter([("answer", "19")]);
    let input = |completion: &&'static str| RewardInput {
        prompt: "",
        messages: None,
        completion,
        completion_ids: &[],
        columns: &columns,
        line: 7,
    };
    let completions: Vec<&'static str> = completions.iter().map(|text| &*text.to_string().leak()).collect();
    let inputs: Vec<_> = completions.iter().map(input).collect();
    Ok(judge(table).score_batch(&inputs)?.into_iter().map(|scored| scored.total).collect())
}

/// Length of the completion as score.
fn length(asked: &Asked) -> Reply {
    Reply::Says(format!("I say: Score: {}", asked.message().split('|').next().unwrap().len()))
}

#[test]
fn questions_are_asked_side_by_side_and_equal_ones_once() {
    let server = JudgeServer::start(|asked, _| match length(asked) {
        Reply::Says(text) => Reply::Late(Duration::from_millis(300), text),
        other => other,
    });
    let started = Instant::now();
    let completions = ["a", "bb", "a", "ccc", "", "dddd", "bb", "eeeee", "ffffff", "ggggggg"];
    let table = RewardConfig { concurrency: Some(8), ..table(&server) };
    let found = scores(table, &completions).unwrap();
    assert_eq!(found, completions.map(|completion| Some(completion.len() as f64)));
    assert!(started.elapsed() < Duration::from_millis(8 * 300), "{:?}", started.elapsed());
    let asked = server.asked();
    assert_eq!(asked.len(), 8);
    for request in &asked {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.body["model"], "tiny");
        assert_eq!(request.body["temperature"], 0.0);
        assert_eq!(request.body["messages"][0]["role"], "user");
        assert!(request.message().ends_with("|19"), "{}", request.message());
        assert_eq!(request.authorization, None);
    }
    assert_eq!(scores(self::table(&server), &[]).unwrap(), []);
}

#[test]
fn scores_are_read_by_key_and_put_on_a_scale() {
    let replies =
        ["```json\n{\"reason\": \"fine\", \"score\": 4}\n```", "{\"score\": 1}", "{\"score\": 9}", "no score at all"];
    let server = JudgeServer::start(move |asked, _| {
        let which: usize = asked.message().split('|').next().unwrap().parse().unwrap();
        Reply::Says(replies[which].to_owned())
    });
    let table = RewardConfig {
        score_pattern: None,
        score_key: Some("score".into()),
        min_score: Some(1.0),
        max_score: Some(5.0),
        on_failure: Some(OnFailure::None),
        ..table(&server)
    };
    assert_eq!(scores(table, &["0", "1", "2", "3"]).unwrap(), [Some(0.75), Some(0.0), None, None]);
    // What has no score is asked for again, as often as may be.
    assert_eq!(server.asked().len(), 2 + 2 * 3);
}

/// What may pass is tried again, after as long as the service says; then the scores are as if nothing had been.
#[test]
fn what_may_pass_is_tried_again() {
    let busy = |head| Reply::Answer(429, head, "{\"error\":{\"message\":\"too fast\"}}".into());
    let troubles = [
        (busy("retry-after: 0\r\n"), Duration::ZERO),
        (busy("retry-after: 1\r\n"), Duration::from_secs(1)),
        (busy("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n"), Duration::ZERO),
        (busy(""), Duration::from_millis(250)),
        (Reply::Answer(500, "", "oops".into()), Duration::from_millis(250)),
        (Reply::Answer(503, "retry-after: 1\r\n", String::new()), Duration::from_secs(1)),
        (Reply::Close, Duration::from_millis(250)),
        (Reply::Cut, Duration::from_millis(250)),
        (Reply::Late(Duration::from_secs(4), "Score: 9".into()), Duration::from_secs(2)),
        (Reply::Says("well".into()), Duration::ZERO),
    ];
    std::thread::scope(|scope| {
        for (trouble, least) in troubles {
            scope.spawn(move || {
                let first = trouble.clone();
                let server = JudgeServer::start(move |asked, n| if n == 0 { first.clone() } else { length(asked) });
                let started = Instant::now();
                assert_eq!(scores(table(&server), &["abc"]).unwrap(), [Some(3.0)], "{trouble:?}");
                assert!(started.elapsed() >= least, "{trouble:?}: {:?}", started.elapsed());
                assert!(started.elapsed() < least + Duration::from_secs(3), "{trouble:?}: {:?}", started.elapsed());
                assert_eq!(server.asked().len(), 2, "{trouble:?}");
            });
        }
    });
}

/// What does not pass is told with the service's own words, after as many tries as make sense.
#[test]
fn what_does_not_pass_is_told() {
    let answer = |status, head, body: &str| Reply::Answer(status, head, body.to_owned());
    let cases = [
        (
            answer(500, "", "oops"),
            3,
            "after 3 tries: HTTP 500 Internal Server Error: oops",
            "Check that the service runs",
        ),
        (
            answer(429, "retry-after: 86400\r\n", ""),
            1,
            "gave no answer: HTTP 429 Too Many Requests",
            "Lower `concurrency`",
        ),
        (
            answer(401, "", "{\"error\":{\"message\":\"bad key\"}}"),
            1,
            "HTTP 401 Unauthorized: bad key",
            "Check the key",
        ),
        (answer(404, "", "{\"detail\":\"Not Found\"}"), 1, "HTTP 404 Not Found: Not Found", "Check `base_url`"),
        (answer(400, "", "{\"error\":\"no such model\"}"), 1, "HTTP 400 Bad Request: no such model", "`judge_model`"),
        (answer(301, "location: https://other/v1\r\n", ""), 1, "moved to https://other/v1", "Check `base_url`"),
        (
            answer(200, "", "<html>hello</html>"),
            1,
            "not a chat completion: <html>hello</html>",
            "Check that the service",
        ),
        (Reply::Close, 3, "after 3 tries: ", "Check that the service runs"),
        (
            Reply::Says("I would rather not".into()),
            3,
            "gave no score for a completion of line 7: \"I would rather not\"",
            "on_failure",
        ),
    ];
    std::thread::scope(|scope| {
        for (reply, tries, message, hint) in cases {
            scope.spawn(move || {
                let always = reply.clone();
                let server = JudgeServer::start(move |_, _| always.clone());
                let error = scores(table(&server), &["abc"]).unwrap_err();
                assert_eq!(error.exit(), Exit::Remote);
                assert!(error.to_string().contains(message), "{error}");
                assert!(error.hint().unwrap().contains(hint), "{error}: {:?}", error.hint());
                assert_eq!(server.asked().len(), tries, "{reply:?}");
                let address = server.base_url.trim_start_matches("http://");
                assert!(matches!(error, RewardError::NoVerdict { .. }) || error.to_string().contains(address));
            });
        }
    });
    // Nobody listens.
    let server = JudgeServer::start(|_, _| Reply::Close);
    let nobody = RewardConfig { base_url: Some("http://127.0.0.1:1".into()), max_retries: Some(0), ..table(&server) };
    let error = scores(nobody, &["abc"]).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

/// One question that fails for good ends the batch: the others are not asked to the end.
#[test]
fn a_failure_ends_the_batch() {
    let server = JudgeServer::start(|_, _| Reply::Answer(403, "", String::new()));
    let completions: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    let completions: Vec<&str> = completions.iter().map(String::as_str).collect();
    scores(RewardConfig { concurrency: Some(2), ..table(&server) }, &completions).unwrap_err();
    assert!(server.asked().len() <= 4, "{}", server.asked().len());
}

/// The settings of a tiny run with this judge.
fn run_settings(server: &JudgeServer, keys: &str) -> String {
    format!(
        "max_steps = 4\nsave_steps = 2\nsave_total_limit = 0\n[[rewards]]\nname = \"judge\"\nlabel = \"last_integer\"\n\
         base_url = {:?}\njudge_model = \"tiny\"\nprompt_template = \"{{completion}}|{{answer}}\"\n\
         score_pattern = 'Score: *(\\S+)'\n{keys}\n",
        server.base_url
    )
}

/// Judges as `last_integer` does.
fn last_integer(asked: &Asked) -> Reply {
    let (completion, answer) = asked.message().rsplit_once('|').unwrap();
    let is_right = extract_last_integer(completion).as_deref() == Some(answer);
    Reply::Says(format!("Score: {}", u8::from(is_right)))
}

/// A judge that thinks as the built-in reward does trains the same model, also where it stumbles now and then.
#[test]
fn a_judge_that_scores_as_the_built_in_reward_trains_the_same_model() {
    let expected = Bench::new("max_steps = 4\nsave_steps = 2\nsave_total_limit = 0");
    expected.run_well("run", "never", &[]);
    let server = JudgeServer::start(|asked, n| match n % 20 {
        7 => Reply::Answer(429, "retry-after: 0\r\n", String::new()),
        13 => Reply::Says("hm".into()),
        _ => last_integer(asked),
    });
    let bench = Bench::new(&run_settings(&server, ""));
    bench.run_well("run", "never", &[]);
    assert_same_run(&expected.output_dir("run"), &bench.output_dir("run"), "checkpoint-4");
}

/// A service that goes away ends the run with exit code 8 and its state; the run goes on when it is back.
#[test]
fn a_service_that_goes_away_costs_no_step() {
    let is_away = std::sync::Arc::new(Mutex::new(true));
    let shared = std::sync::Arc::clone(&is_away);
    let server = JudgeServer::start(move |asked, n| {
        if n >= 200 && *shared.lock().unwrap() { Reply::Answer(502, "", "gone".into()) } else { last_integer(asked) }
    });
    let bench = Bench::new(&run_settings(&server, "max_retries = 1"));
    let (code, text) = bench.run("run", "never", &[]);
    assert_eq!(code, Some(8), "{text}");
    assert!(text.contains("the judge of the reward `last_integer` at http://127.0.0.1"), "{text}");
    let steps = fs::read_to_string(bench.output_dir("run").join("metrics.jsonl")).unwrap().lines().count();
    assert!(steps >= 1, "{text}");
    assert!(bench.output_dir("run").join(format!("checkpoint-{steps}/MANIFEST.json")).is_file(), "{text}");
    *is_away.lock().unwrap() = false;
    bench.run_well("run", "auto", &[]);
    let expected = Bench::new("max_steps = 4\nsave_steps = 2\nsave_total_limit = 0");
    expected.run_well("run", "never", &[]);
    let weights = |bench: &Bench| fs::read(bench.output_dir("run").join("model.safetensors")).unwrap();
    assert!(weights(&expected) == weights(&bench));
}

/// With `on_failure = "none"` a completion without a score is counted and warned of, and the run goes on.
#[test]
fn completions_without_a_score_are_counted() {
    let server = JudgeServer::start(|asked, _| {
        if asked.message().starts_with('=') { Reply::Says("cannot tell".into()) } else { last_integer(asked) }
    });
    let bench = Bench::new(&run_settings(&server, "on_failure = \"none\"\nmax_retries = 0"));
    let text = bench.run_well("run", "never", &[]);
    assert!(text.contains("of 128 completions; the judge answered \"cannot tell\""), "{text}");
    let metrics = fs::read_to_string(bench.output_dir("run").join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"rewards/last_integer/num_unscored\":"), "{metrics}");
    let completions = fs::read_to_string(bench.output_dir("run").join("completions.jsonl")).unwrap();
    assert!(completions.lines().any(|line| line.contains("null")) || !completions.contains("\"completion\":\"="));
}

/// Ctrl-C while the judge hangs, in the middle of a step or in the evaluation before the first or after the last: the
/// request that is out may take its time, nothing is tried again, the state is kept and the run goes on from it.
#[test]
fn a_signal_ends_a_run_whose_judge_hangs() {
    for (from_question, from_checkpoint) in [(200, None), (0, None), (usize::MAX, Some("checkpoint-4"))] {
        let (folder, hung) = (Arc::new(OnceLock::<PathBuf>::new()), Arc::new(AtomicBool::new(false)));
        let (seen_folder, seen_hung) = (Arc::clone(&folder), Arc::clone(&hung));
        let server = JudgeServer::start(move |asked, n| {
            let is_there = |name: &str| seen_folder.get().is_some_and(|folder| folder.join(name).exists());
            if n < from_question && !from_checkpoint.is_some_and(is_there) {
                return last_integer(asked);
            }
            seen_hung.store(true, Ordering::Relaxed);
            Reply::Late(Duration::from_secs(600), String::new())
        });
        let bench = Bench::new(&run_settings(&server, "timeout_secs = 3"));
        let run = bench.output_dir("run");
        folder.set(run.clone()).unwrap();
        let eval = format!("eval_file={:?}", run.with_file_name("train.jsonl"));
        let mut running = bench.start("run", "never", &[&eval, "eval_max_rows=4"]);
        let started = Instant::now();
        while !hung.load(Ordering::Relaxed) {
            assert!(started.elapsed() < Duration::from_secs(60), "{} questions", server.asked().len());
            std::thread::sleep(Duration::from_millis(10));
        }
        let sent = Instant::now();
        running.signal("INT");
        assert_eq!(running.wait().code(), Some(130), "{}", running.text());
        assert!(sent.elapsed() < Duration::from_secs(5), "{:?}", sent.elapsed());
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let steps = metrics.lines().filter(|line| !line.starts_with("{\"step\":0,")).count();
        assert!(run.join(format!("checkpoint-{steps}/MANIFEST.json")).is_file(), "{steps}: {}", running.text());
        assert!(!run.join("MANIFEST.json").exists(), "no model is published unevaluated");
    }
}

const KEY: &str = "sk-canary-1234567890";

fn with_key(bench: &Bench, key: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.arg("train").arg(bench.output_dir("run.toml")).arg("--output-dir").arg(bench.output_dir("run"));
    command.env("RUST_LOG", "trace").env("NO_COLOR", "1").env_remove("TEST_JUDGE_KEY");
    if let Some(key) = key {
        command.env("TEST_JUDGE_KEY", key);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code(), text)
}

fn files_with(folder: &Path, text: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, text, found);
        } else if fs::read(&path).unwrap().windows(text.len()).any(|part| part == text) {
            found.push(path.display().to_string());
        }
    }
}

/// The key goes to the service and nowhere else: not into a file of the run, not into the log at its loudest, not into
/// an error in which the service repeats it.
#[test]
fn the_key_is_sent_and_never_shown() {
    let server = JudgeServer::start(|asked, _| last_integer(asked));
    let bench = Bench::new(&run_settings(&server, "api_key_env = \"TEST_JUDGE_KEY\""));
    let (code, text) = with_key(&bench, None);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("the environment variable TEST_JUDGE_KEY has none"), "{text}");
    assert!(!bench.output_dir("run").exists());
    let (code, text) = with_key(&bench, Some(KEY));
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains(KEY), "the log shows the key");
    let mut found = Vec::new();
    files_with(&bench.output_dir("."), KEY.as_bytes(), &mut found);
    assert!(found.is_empty(), "{found:?}");
    let config = fs::read_to_string(bench.output_dir("run/checkpoint-4/run_config.toml")).unwrap();
    assert!(config.contains("TEST_JUDGE_KEY"), "{config}");
    assert!(server.asked().iter().all(|asked| asked.authorization.as_deref() == Some("Bearer sk-canary-1234567890")));

    for body in ["{\"error\":{\"message\":\"bad key sk-canary-1234567890\"}}", "sk-canary-1234567890"] {
        for status in [401, 200] {
            let server = JudgeServer::start(move |_, _| Reply::Answer(status, "", body.into()));
            let bench = Bench::new(&run_settings(&server, "api_key_env = \"TEST_JUDGE_KEY\""));
            let (code, text) = with_key(&bench, Some(KEY));
            assert_eq!(code, Some(8), "{text}");
            assert!(text.contains("[token]") && !text.contains(KEY), "{text}");
        }
    }
    let server = JudgeServer::start(|_, _| Reply::Says(format!("your key is {KEY}")));
    let keys = "api_key_env = \"TEST_JUDGE_KEY\"\nmax_retries = 0";
    let (code, text) = with_key(&Bench::new(&run_settings(&server, keys)), Some(KEY));
    assert_eq!(code, Some(8), "{text}");
    assert!(text.contains("gave no score") && !text.contains(KEY), "{text}");
}

/// A row without a column that the question names is told before anything is sampled.
#[test]
fn a_row_without_a_column_of_the_question_is_told_first() {
    let server = JudgeServer::start(|asked, _| last_integer(asked));
    let settings = run_settings(&server, "").replace("{answer}", "{solution}");
    let bench = Bench::new(&settings);
    let (code, text) = bench.run("run", "never", &[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("train.jsonl:1") && text.contains("`prompt_template` names {solution}"), "{text}");
    assert!(server.asked().is_empty());
}
