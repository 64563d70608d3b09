//! Claims: every fault of a data file is told with file, line, column and the start of the line; well-formed files of
//! every accepted kind give the rows they should; nothing panics. A table of files and what they give.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use candlewick::data::{Dataset, OnBadRow, RowKind, RowsConfig, load_rows};
use candlewick::error::Diagnose;
use candlewick::reward::{LastInteger, WeightedRewards};
use candlewick::text::Prompt;
use proptest::prelude::*;
use serde_json::json;

struct TestFile {
    folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(content: impl AsRef<[u8]>) -> TestFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, content).unwrap();
    TestFile { folder, path }
}

/// The rows, or the message with its hint, of a file.
fn outcome(content: impl AsRef<[u8]>, config: &RowsConfig) -> String {
    let file = file(content);
    match load_rows(&file.path, config) {
        Ok(dataset) => describe(&dataset),
        Err(error) => {
            let hint = error.hint().map_or_else(String::new, |hint| format!("\nhint: {hint}"));
            format!("exit {}: {error}{hint}", error.exit() as u8).replace(file.folder.path().to_str().unwrap(), "")
        }
    }
}

fn describe(dataset: &Dataset) -> String {
    let mut out = String::new();
    for row in &dataset.rows {
        let prompt = match &row.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Messages(messages) => json!(messages),
        };
        let columns = serde_json::to_string(&row.columns).unwrap();
        writeln!(out, "row {} line {}: {prompt} {columns}", row.index, row.place.number()).unwrap();
    }
    if dataset.skipped > 0 {
        writeln!(out, "skipped {}", dataset.skipped).unwrap();
    }
    out
}

/// One snapshot with a paragraph for each named content.
fn table(cases: &[(&str, &[u8])], config: &RowsConfig) -> String {
    let paragraph = |(name, content): &(&str, &[u8])| format!("## {name}\n{}", outcome(content, config).trim_end());
    cases.iter().map(paragraph).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn faulty_files() {
    let deep = format!("{{\"prompt\": \"a\", \"x\": {}{}}}", "[".repeat(200), "]".repeat(200));
    let cases: &[(&str, &[u8])] = &[
        ("empty file", b""),
        ("blank lines only", b"\n  \r\n\n"),
        ("byte order mark only", b"\xEF\xBB\xBF"),
        ("gzip", b"\x1f\x8b\x08\x00\x00"),
        ("Parquet", b"PAR1\x15\x04"),
        ("zip", b"PK\x03\x04rest"),
        ("UTF-16", b"\xFF\xFE{\x00"),
        ("a JSON array", b"\n [{\"prompt\": \"a\"}]"),
        ("cut off", b"{\"prompt\": \"a\"}\n{\"prompt\": \"b"),
        ("single quotes", b"{'prompt': 'a'}"),
        ("two objects on a line", b"{\"prompt\": \"a\"} {\"prompt\": \"b\"}"),
        ("an object over two lines", b"{\"prompt\":\n\"a\"}"),
        ("not objects", b"{\"prompt\": \"a\"}\n\"text\"\n12\nnull\ntrue\n"),
        ("NUL", b"{\"prompt\": \"a\x00b\"}"),
        ("invalid UTF-8", b"{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\xffc\"}"),
        ("invalid UTF-8 after a byte order mark", b"\xEF\xBB\xBF{\"prompt\": \"\xe2\x82\"}"),
        ("lone surrogate", b"{\"answer\": 1, \"prompt\": \"a\\ud800b\"}"),
        ("lone surrogate in another column", b"{\"prompt\": \"a\", \"x\": [\"\\ud800\"]}"),
        ("NaN", b"{\"prompt\": \"a\", \"answer\": NaN}"),
        ("number out of range", b"{\"prompt\": \"a\", \"answer\": 1e400}"),
        ("repeated key", b"{\"prompt\": \"a\", \"answer\": 1, \"prompt\": \"b\"}"),
        ("too deep", deep.as_bytes()),
        ("missing column", b"{\"question\": \"a\", \"answer\": 1}\n{}"),
        ("null prompt", b"{\"prompt\": null}"),
        ("number as prompt", b"{\"prompt\": 12}"),
        ("object as prompt", b"{\"prompt\": {\"role\": \"user\"}}"),
        ("no messages", b"{\"prompt\": []}"),
        ("text among messages", b"{\"prompt\": [\"a\"]}"),
        ("message without role", b"{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}, {\"content\": \"b\"}]}"),
        ("role of another type", b"{\"prompt\": [{\"role\": 1, \"content\": \"a\"}]}"),
        ("message without content", b"{\"messages\": [{\"role\": \"user\"}]}"),
        ("null content", b"{\"messages\": [{\"role\": \"user\", \"content\": null}]}"),
        ("messages of another type", b"{\"messages\": \"a\"}"),
        ("assistant only", b"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}"),
    ];
    insta::assert_snapshot!(table(cases, &RowsConfig::default()));
}

#[test]
fn good_files() {
    let cases: &[(&str, &[u8])] = &[
        ("plain", b"{\"prompt\": \"12 + 7 =\", \"answer\": \"19\"}\n{\"answer\": 20, \"prompt\": \"\"}\n"),
        (
            "byte order mark, CRLF, blank lines, no final newline",
            b"\xEF\xBB\xBF{\"prompt\":\"a\"}\r\n\r\n \n{\"prompt\":\"b\"}",
        ),
        (
            "other columns stay as they are",
            b"{\"prompt\":\"a\",\"n\":123456789012345678901234567890,\"l\":[1, 2],\"z\":null}",
        ),
        ("escapes", "{\"prompt\": \"\\u00e9\\ud83e\\udd80\\n€\"}".as_bytes()),
        ("conversation", b"{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"answer\": 1}"),
        (
            "messages",
            b"{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"a\"}, \
              {\"role\": \"assistant\", \"content\": \"b\"}], \"id\": \"x\"}",
        ),
        ("messages without an answer", b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}"),
        (
            "tool call without content",
            b"{\"prompt\": [{\"role\": \"assistant\", \"tool_calls\": []}, {\"role\": \"tool\", \"content\": \"1\"}]}",
        ),
    ];
    insta::assert_snapshot!(table(cases, &RowsConfig::default()));
}

#[test]
fn files_for_supervised_fine_tuning() {
    let config = RowsConfig { kind: RowKind::Completion, ..RowsConfig::default() };
    let cases: &[(&str, &[u8])] = &[
        ("prompt and completion", b"{\"prompt\": \"a\", \"completion\": \"b\", \"answer\": 1}"),
        ("text", b"{\"text\": \"all of it\", \"id\": 7}"),
        (
            "conversational completion",
            b"{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \
              \"completion\": [{\"role\": \"assistant\", \"content\": \"b\"}]}",
        ),
        (
            "messages",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}",
        ),
        ("no completion", b"{\"prompt\": \"a\"}"),
        ("messages without an answer", b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}"),
        ("text of another type", b"{\"text\": 1}"),
        ("completion of another type", b"{\"prompt\": \"a\", \"completion\": 1}"),
    ];
    insta::assert_snapshot!(table(cases, &config));
}

#[test]
fn only_the_first_bad_rows_are_listed() {
    let content = "{\"prompt\": \"good\"}\n".to_string() + &"{\"question\": \"bad\"}\n".repeat(50);
    let message = outcome(&content, &RowsConfig::default());
    assert_eq!(message.matches("no column `prompt`; the row has `question`").count(), 20);
    assert!(message.contains("... and 30 more bad rows in /rows.jsonl"), "{message}");
    let skip = RowsConfig { on_bad_row: OnBadRow::Skip, ..RowsConfig::default() };
    assert_eq!(outcome(&content, &skip), "row 0 line 1: \"good\" {}\nskipped 50\n");
}

#[test]
fn skipping_does_not_rename_the_rows_behind() {
    let skip = RowsConfig { on_bad_row: OnBadRow::Skip, ..RowsConfig::default() };
    insta::assert_snapshot!(outcome("{\"prompt\": \"a\"}\n\noops\n{\"prompt\": \"b\"}\n", &skip), @r#"
    row 0 line 1: "a" {}
    row 2 line 4: "b" {}
    skipped 1
    "#);
    insta::assert_snapshot!(outcome("oops\n", &skip), @r"
    exit 3: /rows.jsonl has no usable row: all 1 rows are bad
    /rows.jsonl:1:1: not valid JSON: expected value
        oops
    hint: Check `prompt_column` against the columns of the file
    ");
}

#[test]
fn long_lines_are_cut_off_at_the_limit() {
    let config = RowsConfig { max_line_bytes: 20, on_bad_row: OnBadRow::Skip, ..RowsConfig::default() };
    let fitting = "{\"prompt\": \"12345\"} ";
    assert_eq!(fitting.len(), 20);
    for end in ["\n", "\r\n", ""] {
        let long = format!("{fitting}\r\n{fitting} \n{{\"prompt\": \"{}\"}}\n{fitting}{end}", "x".repeat(200_000));
        assert_eq!(outcome(&long, &config), "row 0 line 1: \"12345\" {}\nrow 3 line 4: \"12345\" {}\nskipped 2\n");
    }
    let strict = RowsConfig { max_line_bytes: 20, ..RowsConfig::default() };
    insta::assert_snapshot!(outcome("{\"prompt\": \"123456789 123456789\"}", &strict), @r#"
    exit 3: /rows.jsonl:1: the line is longer than 20 bytes
        {"prompt": "123456789 
    hint: Correct these rows, or set `on_bad_row = "skip"` to leave them out
    "#);
}

#[test]
fn what_is_not_a_file_is_told() {
    let file = file("");
    let message = |path: &Path| load_rows(path, &RowsConfig::default()).unwrap_err().to_string();
    assert!(message(file.folder.path()).ends_with(" is a folder, not a file"));
    assert!(message(Path::new("/dev/null")).ends_with(" is a device or pipe, not a file"));
    insta::assert_snapshot!(message(Path::new("no/such.jsonl")), @"cannot read no/such.jsonl: No such file or directory (os error 2)");
}

#[test]
fn the_hash_is_that_of_the_file() {
    let dataset = load_rows(&file("{\"prompt\":\"a\"}\n").path, &RowsConfig::default()).unwrap();
    // printf '{"prompt":"a"}\n' | sha256sum
    assert_eq!(dataset.sha256, "d58848abfa8d5c3e7eb0e57acde0449d54e48f69e6204a6db3208a1b78a1eaa9");
}

#[test]
fn a_gold_answer_without_an_integer_is_told_with_its_line() {
    let file = file("{\"prompt\": \"a\", \"answer\": 1}\n\n{\"prompt\": \"b\", \"answer\": \"one\"}\n");
    let dataset = load_rows(&file.path, &RowsConfig::default()).unwrap();
    let rewards = WeightedRewards::single(LastInteger::default());
    let error = rewards.check_rows(&dataset.rows).unwrap_err();
    insta::assert_snapshot!(error.to_string().replace(file.folder.path().to_str().unwrap(), ""), @"/rows.jsonl:3: the reward `last_integer` cannot use this row: `answer` does not end in an integer: `one`");
    assert_eq!(error.exit() as u8, 3);
}

#[test]
fn the_shipped_sums_are_right_and_their_splits_disjoint() {
    let mut pairs: Vec<Vec<(u32, u32)>> = Vec::new();
    for (name, at_least) in [("train", 2000), ("eval", 500)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/math_tasks_{name}.jsonl"));
        let dataset = load_rows(&path, &RowsConfig::default()).unwrap();
        assert!(dataset.rows.len() >= at_least);
        let mut of_split = Vec::new();
        for row in &dataset.rows {
            let words: Vec<&str> = row.prompt.last_text().split(' ').collect();
            let [a, operator, b, "="] = words[..] else { panic!("{words:?}") };
            let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
            assert!(a <= 99 && b <= 99);
            let answer = if operator == "+" { i64::from(a) + i64::from(b) } else { i64::from(a) - i64::from(b) };
            assert_eq!(row.columns.text("answer"), Some(answer.to_string().as_str()));
            of_split.push((a.min(b), a.max(b)));
        }
        pairs.push(of_split);
    }
    assert!(pairs[0].iter().all(|pair| !pairs[1].contains(pair)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any bytes give rows or an error, and every non-blank line is accounted for.
    #[test]
    fn any_bytes_are_taken(lines in proptest::collection::vec("(\\{\"prompt\": )?[\\x00-\\x7f]{0,12}\"?\\}?", 0..6), tail: Vec<u8>) {
        let mut content = lines.join("\n").into_bytes();
        content.extend(tail);
        // One array is no rows by the line.
        prop_assume!(content.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'['));
        let config = RowsConfig { on_bad_row: OnBadRow::Skip, ..RowsConfig::default() };
        if let Ok(dataset) = load_rows(&file(&content).path, &config) {
            let num_lines = content.split(|&b| b == b'\n').filter(|l| !l.iter().all(u8::is_ascii_whitespace)).count();
            prop_assert_eq!(dataset.rows.len() + dataset.skipped, num_lines);
        }
    }
}

/// The files in the repository are what the command in their description writes.
#[test]
fn the_shipped_sums_are_made_by_the_command() {
    let folder = tempfile::tempdir().unwrap();
    for (split, rows) in [("train", "4096"), ("eval", "512")] {
        let output = folder.path().join(split);
        assert_cmd::Command::new(env!("CARGO_BIN_EXE_candlewick"))
            .args(["data", "arithmetic", "--rows", rows, "--split", split])
            .arg(&output)
            .assert()
            .success();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/math_tasks_{split}.jsonl"));
        assert_eq!(fs::read(output).unwrap(), fs::read(shipped).unwrap());
    }
}

/// 64,000 sums of three digits, nine tenths to train on and one to test on, are one command; the seed decides them.
#[test]
fn one_command_writes_sums_to_train_and_to_test_on() {
    let folder = tempfile::tempdir().unwrap();
    let make = |seed: &str| {
        let (train, test) = (folder.path().join(format!("train{seed}")), folder.path().join(format!("test{seed}")));
        let args = ["--rows", "64000", "--digits", "3", "--zero-pad", "--operators", "+", "--seed", seed];
        let made = assert_cmd::Command::new(env!("CARGO_BIN_EXE_candlewick"))
            .args(["data", "arithmetic"])
            .args(args)
            .args(["--prompt-template", "{a}{op}{b}="])
            .args([train.as_os_str(), "--test-file".as_ref(), test.as_os_str()])
            .output()
            .unwrap();
        let (train_name, test_name) = (train.display(), test.display());
        let said = format!("57600 rows written to {train_name}\n6400 rows written to {test_name}\n");
        assert_eq!(String::from_utf8(made.stdout).unwrap(), said);
        (fs::read_to_string(train).unwrap(), fs::read_to_string(test).unwrap())
    };
    let (train, test) = make("7");
    assert_eq!((train.clone(), test.clone()), make("7"));
    assert_ne!(test, make("8").1);
    let rows: HashSet<&str> = train.lines().chain(test.lines()).collect();
    assert_eq!(rows.len(), 64_000, "no row stands twice");
    assert!(test.contains(r#"{"prompt":"0"#), "zeros stand in front");
    for line in test.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let (a, b) = row["prompt"].as_str().unwrap().strip_suffix('=').unwrap().split_once('+').unwrap();
        assert_eq!((a.len(), b.len()), (3, 3));
        let sum = a.parse::<u32>().unwrap() + b.parse::<u32>().unwrap();
        assert_eq!(row["answer"], sum.to_string());
    }
}

#[test]
fn impossible_sums_are_told() {
    let message = |args: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_candlewick"));
        command.args(["data", "arithmetic", "/no/such/folder/rows.jsonl"]).args(args);
        let output = command.output().unwrap();
        format!("exit {}\n{}", output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    insta::assert_snapshot!(message(&["--rows", "9", "--max-operand", "0"]), @r"
    exit 2
    error: 9 rows asked for, but the train split has only 2 different questions

    hint: Ask for fewer rows, raise the largest operand, or allow repeats
    ");
    insta::assert_snapshot!(message(&["--rows", "9", "--operators", "*"]), @r"
    exit 2
    error: the operators cannot be `*`: they are `+` and `-`
    ");
    insta::assert_snapshot!(message(&["--rows", "0"]), @r"
    exit 2
    error: the number of rows cannot be 0: it is at least 1
    ");
    insta::assert_snapshot!(message(&["--rows", "4", "--test-file", "/no/test.jsonl"]), @r"
    exit 2
    error: the test fraction cannot be 0.1 of 4 rows: both files need at least one row
    ");
    insta::assert_snapshot!(message(&["--test-file", "/no/such/folder/rows.jsonl"]), @r"
    exit 2
    error: the test file cannot be `/no/such/folder/rows.jsonl`: the training rows go there
    ");
    insta::assert_snapshot!(message(&["--rows", "1", "--prompt-template", "{a}"]), @r"
    exit 2
    error: the prompt template cannot be `{a}`: it needs `{a}` and `{b}`
    ");
}
