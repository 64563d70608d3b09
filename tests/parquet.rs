//! Claims: Parquet files that `datasets` and pyarrow write are read row for row as Python reads them; a JSON array gives
//! the rows that the same objects give as lines; what is wrong with such a file is told with file, row group and row.
//! The fixtures and what Python reads in them are made by `scripts/make_data_fixtures.py`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::data::{
    AnswerRule, Dataset, OnBadRow, PromptTemplate, RowKind, RowsConfig, Slice, load_files, load_rows,
};
use candlewick::error::Diagnose;
use candlewick::text::Prompt;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

/// The rows of a fixture as Python reads them.
fn expected(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap();
    all[name].as_array().unwrap().clone()
}

/// A row as the object it came from.
fn objects(dataset: &Dataset, prompt_column: &str) -> Vec<Value> {
    let object = |row: &candlewick::data::Row| {
        let mut object = serde_json::to_value(&row.columns).unwrap();
        object[prompt_column] = match &row.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Messages(messages) => json!(messages),
        };
        object
    };
    dataset.rows.iter().map(object).collect()
}

fn template(text: &str) -> RowsConfig {
    RowsConfig { prompt_template: Some(PromptTemplate::parse(text).unwrap()), ..RowsConfig::default() }
}

fn answer_of_gsm8k() -> AnswerRule {
    let pattern = Some(AnswerRule::pattern("#### (-?[0-9,]+)").unwrap());
    AnswerRule { column: "answer".into(), name: "answer".into(), pattern }
}

/// The message with its hint and exit code, the folder left out.
fn failure(path: &Path, config: &RowsConfig) -> String {
    let error = load_rows(path, config).unwrap_err();
    let text = format!("exit {}: {error}\nhint: {}", error.exit() as u8, error.hint().unwrap_or_default());
    text.replace(path.parent().unwrap().to_str().unwrap(), "")
}

#[test]
fn every_kind_of_value_comes_as_python_reads_it() {
    let dataset = load_rows(&fixture("kinds.zstd.parquet"), &RowsConfig::default()).unwrap();
    assert_eq!(objects(&dataset, "prompt"), expected("kinds.zstd.parquet"));
    let places: Vec<String> = dataset.rows.iter().map(|row| row.place.to_string()).collect();
    assert!(places[3].ends_with("kinds.zstd.parquet: row group 1, row 1"), "{}", places[3]);
    assert_eq!(dataset.rows[3].place.number(), 4);
    // Numbers beyond 53 bits stay exact.
    assert_eq!(dataset.rows[0].columns.text("unsigned"), Some("18446744073709551615"));
    assert_eq!(dataset.rows[1].columns.text("single"), None);
}

#[test]
fn nested_messages_are_prompt_and_completion() {
    let path = fixture("chats.parquet");
    let config = RowsConfig { kind: RowKind::Completion, ..RowsConfig::default() };
    let dataset = load_rows(&path, &config).unwrap();
    for (row, expected) in dataset.rows.iter().zip(expected("chats.parquet")) {
        let mut messages = expected["messages"].as_array().unwrap().clone();
        let answer = messages.pop().unwrap();
        assert_eq!(row.completion(), answer["content"].as_str());
        assert_eq!(row.prompt, Prompt::Messages(messages));
    }
    // As the prompt of a run that samples, with the answer taken from the assistant's turn.
    let pattern = Some(AnswerRule::pattern("is ([0-9]+)").unwrap());
    let answer = Some(AnswerRule { column: "completion".into(), name: "completion".into(), pattern });
    let dataset = load_rows(&path, &RowsConfig { answer, ..RowsConfig::default() }).unwrap();
    let answers: Vec<_> = dataset.rows.iter().map(|row| row.columns.text("completion").unwrap()).collect();
    assert_eq!(answers, ["0", "2", "4", "6", "8", "10", "12"]);
}

#[test]
fn a_template_and_a_pattern_make_questions_and_answers() {
    let config = RowsConfig { answer: Some(answer_of_gsm8k()), ..template("Question: {question}\nAnswer:") };
    let dataset = load_rows(&fixture("gsm8k_like.parquet"), &config).unwrap();
    let first = &dataset.rows[0];
    assert_eq!(first.prompt.last_text(), "Question: Each of 2 boxes holds 1,000 pens. How many?\nAnswer:");
    assert_eq!(first.columns.text("answer"), Some("2,000"));
    assert!(first.columns.text("question").unwrap().starts_with("Each of 2"), "every column reaches the rewards");

    // Values that are no text are written as the file has them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, "{\"a\": 12345678901234567890123, \"b\": [1, \"x\"]}\n{\"a\": null, \"b\": 1}\n{\"b\": 1}\n")
        .unwrap();
    let skip = RowsConfig { on_bad_row: OnBadRow::Skip, ..template("{a} {b}") };
    let dataset = load_rows(&path, &skip).unwrap();
    assert_eq!(dataset.rows[0].prompt.last_text(), "12345678901234567890123 [1, \"x\"]");
    insta::assert_snapshot!(failure(&path, &template("{a} {b}")));
}

#[test]
fn rows_without_an_answer_are_bad_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let rows = ["\"so\\n#### 1,234\"", "\"no result\"", "null", "17"]
        .map(|answer| format!("{{\"prompt\": \"a\", \"answer\": {answer}}}\n"));
    fs::write(&path, rows.concat() + "{\"prompt\": \"a\", \"anser\": \"#### 1\"}\n").unwrap();
    let config = RowsConfig { answer: Some(answer_of_gsm8k()), ..RowsConfig::default() };
    insta::assert_snapshot!(failure(&path, &config));
    let skip = RowsConfig { on_bad_row: OnBadRow::Skip, ..config };
    let dataset = load_rows(&path, &skip).unwrap();
    assert_eq!((dataset.rows.len(), dataset.skipped), (1, 4));
    assert_eq!(dataset.rows[0].columns.text("answer"), Some("1,234"));
}

#[test]
fn faulty_parquet_files() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(fixture("chats.parquet")).unwrap();
    let mut flipped = good.clone();
    flipped[60] ^= 0xFF;
    let mut swapped = good.clone();
    let at = good.len() - 8;
    swapped[at..at + 4].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0x7F]);
    let cases: [(&str, &[u8]); 8] = [
        ("cut_short.parquet", &good[..good.len() - 100]),
        ("head_only.parquet", &good[..4]),
        ("flipped.parquet", &flipped),
        ("absurd_footer.parquet", &swapped),
        ("empty.parquet", b""),
        ("page.parquet", b"<!doctype html><html>"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        ("lines.parquet", b"{\"prompt\": \"a\"}\n"),
    ];
    let mut out = Vec::new();
    for (name, bytes) in cases {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        out.push(failure(&path, &RowsConfig::default()));
    }
    out.push(failure(&fixture("no_rows.parquet"), &RowsConfig::default()));
    out.push(failure(&fixture("gsm8k_like.parquet"), &RowsConfig::default()));
    out.push(failure(&fixture("gsm8k_like.parquet"), &template("{qestion}")));
    let column = RowsConfig { prompt_column: "flag".into(), ..RowsConfig::default() };
    out.push(failure(&fixture("kinds.zstd.parquet"), &column));
    insta::assert_snapshot!(out.join("\n\n"));
}

/// Damage anywhere gives rows or an error, and never ends the program.
#[test]
fn no_flipped_byte_of_a_parquet_file_is_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for name in ["chats.parquet", "kinds.zstd.parquet"] {
        let good = fs::read(fixture(name)).unwrap();
        let mut num_errors = 0;
        for at in (4..good.len()).step_by(29) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            fs::write(&path, &bad).unwrap();
            num_errors += usize::from(load_rows(&path, &RowsConfig::default()).is_err());
        }
        assert!(num_errors > 0, "{name}");
    }
}

#[test]
fn an_array_gives_the_rows_of_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, array) = (folder.path().join("rows.jsonl"), folder.path().join("rows.json"));
    let rows = expected("kinds.zstd.parquet");
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(&lines, text.join("\n")).unwrap();
    let of_lines = load_rows(&lines, &RowsConfig::default()).unwrap();
    for written in [
        format!("[{}]", text.join(",")),
        format!("\u{FEFF}[\n{}\n]\n", text.join(",\n")),
        serde_json::to_string_pretty(&rows).unwrap(),
    ] {
        fs::write(&array, &written).unwrap();
        let of_array = load_rows(&array, &RowsConfig::default()).unwrap();
        assert_eq!(objects(&of_array, "prompt"), objects(&of_lines, "prompt"));
        assert_eq!(of_array.sha256, candlewick::io::sha256_file(&array).unwrap().1);
    }
    // Numbers of any size stay as they are written, and the place is the line where a row begins.
    fs::write(
        &array,
        "[\n  {\"prompt\": \"a\",\n   \"n\": 123456789012345678901234567890},\n\n {\"prompt\": \"b\"}\n]",
    )
    .unwrap();
    let dataset = load_rows(&array, &RowsConfig::default()).unwrap();
    assert_eq!(dataset.rows[0].columns.text("n"), Some("123456789012345678901234567890"));
    assert_eq!(dataset.rows.iter().map(|row| row.place.number()).collect::<Vec<_>>(), [2, 5]);
}

#[test]
fn faulty_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.json");
    let mut out = Vec::new();
    for content in [
        "[]",
        "[{\"prompt\": \"a\"},\n {\"prompt\": \"b\"",
        "[{\"prompt\": \"a\"}\n {\"prompt\": \"b\"}]",
        "[{\"prompt\": \"a\"}]\n[]",
        "[\n12\n,\n\"x\",\n{\"question\": \"a\",\n\"answer\": 1}]",
        "[{\"prompt\": \"\\ud800\"}]",
    ] {
        fs::write(&path, content).unwrap();
        out.push(failure(&path, &RowsConfig::default()));
    }
    insta::assert_snapshot!(out.join("\n\n"));
}

/// Shards are one data set: rows are numbered through them, and a slice is one of the whole.
#[test]
fn files_are_read_as_one() {
    let files = [fixture("kinds.zstd.parquet"), fixture("chats.parquet")];
    let load = |slice: Option<&str>| {
        let slice = slice.map(|text| Slice::parse(text).unwrap());
        load_files("org/name".into(), &files, slice.as_ref(), &RowsConfig::default())
    };
    let whole = load(None).unwrap();
    assert_eq!(whole.rows.iter().map(|row| row.index).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    for (slice, expected) in [("t[:3]", 0..3), ("t[-2:]", 10..12), ("t[25%:75%]", 3..9), ("t[4:7]", 4..7)] {
        let part = load(Some(slice)).unwrap();
        let rows = &whole.rows[expected];
        let described = |rows: &[candlewick::data::Row]| {
            rows.iter().map(|row| (row.index, row.place.clone(), row.prompt.clone())).collect::<Vec<_>>()
        };
        assert_eq!(described(&part.rows), described(rows), "{slice}");
        assert_eq!(part.sha256, whole.sha256);
    }
    assert_eq!(load(Some("t[12:]")).unwrap_err().to_string(), "org/name has no rows");
}
