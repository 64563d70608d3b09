//! Claims: a data set of the Hub or of a folder gives the rows of the configuration and split that were asked for; what is
//! not there is named with what is; without the Hub the cache is enough; several sources are mixed by their weights, and a
//! run over them goes on in the same bits; a preview shows what a run sees. The Hub is a server on the loopback device.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![cfg(feature = "hub")]

#[path = "support/hub_server/mod.rs"]
mod hub_server;
#[path = "support/small_run.rs"]
mod small_run;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candlewick::config::{Algorithm, MixConfig, RunConfig};
use candlewick::data::{Access, AnswerRule, DataError, Loaded, PromptTemplate, RowsConfig, Slice, Source, SplitSource};
use candlewick::env::HubEnv;
use candlewick::error::{Diagnose, Exit};
use candlewick::hub::HubError;
use candlewick::recipe::{PreviewText, plan, preview};
use hub_server::{Hub, Settings};
use small_run::{Place, assert_same_run, copy_until, digits, finish};

const REPO: &str = "datasets/org/sums";

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)).unwrap()
}

/// Two configurations by folder: `main` is Parquet as GSM8K has it, its training split in two shards; `easy` is JSON Lines.
fn hub() -> Hub {
    let hub = Hub::start(Settings { page: 2, ..Settings::default() });
    let shard = fixture("gsm8k_like.parquet");
    let files: [(&str, &[u8]); 7] = [
        ("main/train-00000-of-00002.parquet", &shard),
        ("main/train-00001-of-00002.parquet", &shard),
        ("main/test-00000-of-00001.parquet", &shard),
        ("easy/train.jsonl", b"{\"question\": \"1 + 1\", \"answer\": \"#### 2\"}\n"),
        ("easy/test.jsonl", b"{\"question\": \"2 + 1\", \"answer\": \"#### 3\"}\n"),
        ("notes/sketch.png", b"\x89PNG"),
        ("README.md", b"---\nlicense: mit\n---\n# Sums\n"),
    ];
    hub.commit(REPO, "main", &files);
    hub
}

fn env(endpoint: &str, cache: &Path) -> HubEnv {
    HubEnv {
        cache: cache.to_owned(),
        token: None,
        endpoint: endpoint.to_owned(),
        offline: false,
        progress: true,
        download_timeout: Duration::from_secs(20),
        first_pause: Duration::from_millis(10),
    }
}

fn questions() -> RowsConfig {
    let pattern = Some(AnswerRule::pattern("#### (-?[0-9,]+)").unwrap());
    RowsConfig {
        prompt_template: Some(PromptTemplate::parse("Question: {question}\nAnswer:").unwrap()),
        answer: Some(AnswerRule { column: "answer".into(), name: "answer".into(), pattern }),
        ..RowsConfig::default()
    }
}

fn split(name: &str, config: Option<&str>, split: &str) -> SplitSource {
    let slice = Slice::parse(split).unwrap();
    SplitSource { name: name.into(), config: config.map(str::to_owned), revision: None, slice }
}

fn load(env: &HubEnv, source: SplitSource) -> Result<Loaded, DataError> {
    Source::Split(source).load(&questions(), Access { env, offline: false, progress: &|_| {} })
}

fn answers(loaded: &Loaded) -> Vec<&str> {
    loaded.dataset.rows.iter().map(|row| row.columns.text("answer").unwrap()).collect()
}

const SHARD: [&str; 6] = ["2,000", "3,000", "4,000", "5,000", "6,000", "7,000"];

#[test]
fn a_split_of_the_hub_is_its_shards_in_their_order() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let mut env = env(&hub.endpoint, cache.path());
    let main = || split("org/sums", Some("main"), "train");
    let loaded = load(&env, main()).unwrap();
    assert_eq!(answers(&loaded), [SHARD, SHARD].concat());
    assert_eq!(loaded.dataset.rows.iter().map(|row| row.index).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    let first = &loaded.dataset.rows[6];
    assert_eq!(first.prompt.last_text(), "Question: Each of 2 boxes holds 1,000 pens. How many?\nAnswer:");
    assert!(first.place.to_string().ends_with("main/train-00001-of-00002.parquet: row group 0, row 0"));
    let head = hub.repo(REPO).unwrap().branches["main"].last().cloned();
    assert_eq!(loaded.commit, head);
    // Nothing else was fetched: not the other configuration, not the other split.
    let fetched: Vec<String> =
        hub.seen().into_iter().map(|seen| seen.path).filter(|path| path.contains("/resolve/")).collect();
    assert!(fetched.iter().all(|path| path.contains("main/train-") || path.ends_with("README.md")), "{fetched:?}");
    // As the Python client lays it out.
    let snapshot = cache.path().join("datasets--org--sums/snapshots").join(head.as_deref().unwrap());
    assert!(fs::read_link(snapshot.join("main/train-00000-of-00002.parquet")).unwrap().starts_with("../../../blobs"));
    assert_eq!(fs::read_to_string(cache.path().join("datasets--org--sums/refs/main")).ok(), head);

    // Without the Hub what was fetched is enough, and what was not is told.
    env.offline = true;
    hub.forget();
    assert_eq!(answers(&load(&env, main()).unwrap()), [SHARD, SHARD].concat());
    let error = load(&env, split("org/sums", Some("main"), "test")).unwrap_err();
    let is_told =
        matches!(&error, DataError::Hub(HubError::NotCached { missing, .. }) if missing.contains("main/test-"));
    assert!(is_told, "{error}");
    assert_eq!(hub.seen().len(), 0);
    env.offline = false;
    env.endpoint = "http://127.0.0.1:1".into();
    assert_eq!(answers(&load(&env, main()).unwrap()).len(), 12, "the cached copy stands in");

    // A commit that is here needs no question.
    let exact = SplitSource { revision: head, ..main() };
    assert_eq!(answers(&load(&env, exact).unwrap()).len(), 12);
}

#[test]
fn slices_and_cards_are_followed() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let env = env(&hub.endpoint, cache.path());
    let part = load(&env, split("org/sums", Some("main"), "train[5:8]")).unwrap();
    assert_eq!(answers(&part), ["7,000", "2,000", "3,000"]);
    assert_eq!(part.dataset.rows[0].index, 5);
    assert_eq!(part.dataset.source, PathBuf::from("org/sums (main, train[5:8])"));

    let card = "---\nconfigs:\n- config_name: both\n  default: true\n  data_files:\n  - split: practice\n    path: [easy/train.jsonl, main/test-*]\n---\n";
    hub.commit(REPO, "main", &[("README.md", card.as_bytes())]);
    let loaded = load(&env, split("org/sums", None, "practice")).unwrap();
    assert_eq!(answers(&loaded), [&["2"][..], &SHARD].concat());
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let env = env(&hub.endpoint, cache.path());
    let failure = |name: &str, config: Option<&str>, of: &str| {
        let error = load(&env, split(name, config, of)).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        (error.to_string(), error.exit())
    };
    let needed = ("org/sums has several configurations: `easy`, `main`".to_owned(), Exit::Usage);
    assert_eq!(failure("org/sums", None, "train"), needed);
    let config = ("org/sums has no configuration `hard`; it has `easy`, `main`".to_owned(), Exit::Usage);
    assert_eq!(failure("org/sums", Some("hard"), "train"), config);
    let no_split = "org/sums has no split `dev` in the configuration `main`; it has `test`, `train`".to_owned();
    assert_eq!(failure("org/sums", Some("main"), "dev"), (no_split, Exit::Usage));
    let absent = failure("org/none", None, "train");
    assert!(absent.0.starts_with("org/none is not on ") && absent.1 == Exit::Remote, "{absent:?}");
    assert_eq!(failure("no/such/folder", None, "train").1, Exit::Usage);

    let broken = SplitSource { revision: Some("v9".into()), ..split("org/sums", Some("main"), "train") };
    let error = load(&env, broken).unwrap_err();
    assert!(matches!(error, DataError::Hub(HubError::RevisionNotFound { .. })), "{error}");
}

#[test]
fn a_folder_is_a_data_set_too() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    for (name, body) in hub.files(REPO, "main") {
        fs::create_dir_all(folder.path().join(&name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(&name), body).unwrap();
    }
    let env = env("http://127.0.0.1:1", folder.path());
    let name = folder.path().to_str().unwrap();
    let loaded = load(&env, split(name, Some("main"), "train")).unwrap();
    assert_eq!((answers(&loaded), loaded.commit.as_deref()), ([SHARD, SHARD].concat(), None));
    fs::remove_file(folder.path().join("main/train-00001-of-00002.parquet")).unwrap();
    let error = load(&env, split(name, Some("main"), "train")).unwrap_err();
    assert!(error.to_string().ends_with("main/train-00001-of-00002.parquet is missing"), "{error}");
    let file = folder.path().join("easy/train.jsonl");
    let error = load(&env, split(file.to_str().unwrap(), None, "train")).unwrap_err();
    assert!(matches!(error, DataError::NotAFolder { .. }), "{error}");
}

/// A run over two sources, the second one in another shape; 6 + 3 rows.
fn mixed(place: &Place, output: &str) -> RunConfig {
    let row = |i: usize| format!("{{\"prompt\": \"{i}+1=\", \"answer\": {}}}\n", i + 1);
    place.write("sums.jsonl", &(0..6).map(row).collect::<String>());
    let rows = (0..3).map(|i| format!("{{\"q\": \"{i}-0\", \"a\": \"#### {i}\"}}")).collect::<Vec<_>>();
    place.write("questions.json", &format!("[{}]", rows.join(",\n")));
    let text = |name: &str| Some(place.path(name).to_string_lossy().into_owned());
    let sums = MixConfig { file: text("sums.jsonl"), weight: 2.0, ..MixConfig::default() };
    let questions = MixConfig {
        file: text("questions.json"),
        prompt_template: Some("{q}=".into()),
        answer_column: Some("a".into()),
        answer_regex: Some("#### ([0-9]+)".into()),
        ..MixConfig::default()
    };
    RunConfig {
        train_file: String::new(),
        train_mix: vec![sums, questions],
        num_generations: 4,
        prompts_per_step: 3,
        max_steps: Some(8),
        save_steps: 1,
        save_total_limit: 0,
        ..place.settings(output, Algorithm::Grpo)
    }
}

/// The answer column of the other source goes by the run's name, and each source gets its share.
#[test]
fn a_preview_shows_the_mixture_as_a_run_draws_it() {
    let place = Place::new();
    let settings = mixed(&place, "out");
    let seen = preview(&settings, 9).unwrap();
    assert_eq!(seen.num_rows, 9);
    assert_eq!(seen.sources.iter().map(|source| source.num_rows).collect::<Vec<_>>(), [6, 3]);
    let of_questions = seen.rows.iter().filter(|row| row.prompt.contains('-')).count();
    assert_eq!(of_questions, 3);
    for row in &seen.rows {
        let digit: usize = row.prompt[..1].parse().unwrap();
        let expected = if row.prompt.contains('-') { digit } else { digit + 1 };
        assert_eq!(row.answer.as_deref(), Some(expected.to_string().as_str()), "{row:?}");
        assert_eq!((row.prompt_tokens, row.prompt_ids.len()), (row.prompt_ids.len(), row.prompt_tokens));
    }
    assert!(seen.render(true).contains("questions.json:"));
    assert_eq!(plan(&settings).unwrap().rows, 9);

    // Rows that do not fit are named, with the reason.
    let short = RunConfig { max_prompt_length: 3, ..settings };
    place.write("sums.jsonl", "{\"prompt\": \"1+1=\", \"answer\": 2}\n{\"prompt\": \"1=\", \"answer\": 1}\n");
    let seen = preview(&short, 9).unwrap();
    assert_eq!((seen.rows.len(), seen.num_left_out), (1, 4));
    assert!(seen.left_out[0].place.ends_with("sums.jsonl:1"), "{seen:?}");
    assert_eq!(seen.left_out[0].reason, "the prompt has 4 tokens, and 3 are allowed");
}

#[test]
fn previews_know_every_algorithm() {
    let place = Place::new();
    place.write("pairs.jsonl", "{\"prompt\": \"1+1=\", \"chosen\": \"2\", \"rejected\": \"3\"}\n");
    place.write("learn.jsonl", "{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n");
    place.write("text.txt", &"1+1=2\n".repeat(20));
    for algorithm in Algorithm::ALL {
        let file = match algorithm {
            Algorithm::Dpo | Algorithm::Reward => "pairs.jsonl",
            Algorithm::Sft => "learn.jsonl",
            Algorithm::Pretrain => "text.txt",
            _ => "prompts.jsonl",
        };
        let train_file = place.path(file).to_string_lossy().into_owned();
        let settings = RunConfig { train_file, block_size: 8, ..place.settings("out", algorithm) };
        let seen = preview(&settings, 2).unwrap();
        assert_eq!(seen.num_left_out, 0, "{seen:?}");
        let row = &seen.rows[0];
        let begins =
            |shown: &Option<PreviewText>| shown.as_ref().map(|shown| shown.text[..5.min(shown.text.len())].to_owned());
        let found = [&row.completion, &row.chosen, &row.rejected].map(begins);
        let expected = match algorithm {
            Algorithm::Dpo => [None, Some("2"), Some("3")],
            // The text that is scored, its prompt included.
            Algorithm::Reward => [None, Some("1+1=2"), Some("1+1=3")],
            Algorithm::Sft => [Some("2"), None, None],
            _ => [None, None, None],
        };
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.is_some(), expected.is_some(), "{seen:?}");
            assert!(found.as_deref().unwrap_or_default().starts_with(expected.unwrap_or_default()), "{seen:?}");
        }
        assert_eq!(row.prompt_tokens == 0, algorithm == Algorithm::Reward, "{seen:?}");
        assert_eq!(
            seen.render(false).contains("  prompt "),
            !matches!(algorithm, Algorithm::Reward | Algorithm::Pretrain)
        );
    }
}

#[test]
fn a_mixed_run_goes_on_in_the_same_bits() {
    let place = Place::new();
    finish(&mixed(&place, "whole"), digits());
    // In the middle of an epoch of nine rows, and after its end.
    for step in [2, 5] {
        let name = format!("from-{step}");
        copy_until(&place.path("whole"), &place.path(&name), step);
        finish(&RunConfig { resume: "auto".into(), ..mixed(&place, &name) }, digits());
        assert_same_run(&place.path("whole"), &place.path(&name), "checkpoint-8");
    }
    // Other weights are another run, and a checkpoint sees them.
    let state = fs::read_to_string(place.path("whole/checkpoint-8/training_state.json")).unwrap();
    assert!(
        state.contains("train_mix") && state.contains("questions.json"),
        "the sources are part of the run's identity"
    );
    let mut other = mixed(&place, "other");
    other.train_mix[0].weight = 0.5;
    finish(&other, digits());
    let rewards = |output: &str| place.metrics(output).iter().map(|line| line["reward"].clone()).collect::<Vec<_>>();
    assert_ne!(rewards("whole"), rewards("other"));
}
