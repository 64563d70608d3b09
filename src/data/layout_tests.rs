//! What `datasets` finds is found here; `scripts/check_dataset_layout.py` asks it the same questions.

use super::*;
use crate::error::{Diagnose, Exit};

fn layout(paths: &[&str], card: Option<&str>) -> Layout {
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    Layout::new("org/name", &paths, card).unwrap()
}

/// Each split with its files.
fn splits(paths: &[&str]) -> Vec<(String, Vec<String>)> {
    let layout = layout(paths, None);
    assert_eq!(layout.configs.len(), 1, "{layout:?}");
    layout.configs[0].splits.clone()
}

fn owned(splits: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let files = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect();
    splits.iter().map(|(split, names)| ((*split).to_owned(), files(names))).collect()
}

#[test]
fn splits_are_told_by_names() {
    for (paths, expected) in [
        (
            &[
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ][..],
            &[
                ("test", &["data/test-00000-of-00001.parquet"][..]),
                ("train", &["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
            ][..],
        ),
        (&["data/train_sft-00000-of-00001.parquet"], &[("train_sft", &["data/train_sft-00000-of-00001.parquet"])]),
        (&["train.jsonl", "test.jsonl"], &[("train", &["train.jsonl"]), ("test", &["test.jsonl"])]),
        (&["my_train_file.jsonl", "eval.json"], &[("train", &["my_train_file.jsonl"]), ("test", &["eval.json"])]),
        (
            &["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"],
            &[("train", &["train/a.jsonl", "train/b.jsonl"]), ("validation", &["dev/a.jsonl"])],
        ),
        (&["rows.jsonl", "README.md", "script.py"], &[("train", &["rows.jsonl"])]),
        (&["a.jsonl", "b.parquet", ".cache/c.jsonl", "dataset_infos.json"], &[("train", &["a.jsonl", "b.parquet"])]),
        (&["training-set.jsonl", "constrained.jsonl"], &[("train", &["training-set.jsonl"])]),
    ] {
        assert_eq!(splits(paths), owned(expected), "{paths:?}");
    }
}

const TWO: [&str; 4] = [
    "main/train-00000-of-00001.parquet",
    "main/test-00000-of-00001.parquet",
    "socratic/train-00000-of-00001.parquet",
    "socratic/test-00000-of-00001.parquet",
];

#[test]
fn folders_are_configurations() {
    let layout = layout(&TWO, None);
    assert_eq!(layout.files("n", Some("main"), "train").unwrap(), ["main/train-00000-of-00001.parquet"]);
    assert_eq!(layout.files("n", Some("socratic"), "test").unwrap(), ["socratic/test-00000-of-00001.parquet"]);
    let message = |config: Option<&str>, split: &str| layout.files("org/name", config, split).unwrap_err();
    let needed = message(None, "train");
    assert_eq!(needed.to_string(), "org/name has several configurations: `main`, `socratic`");
    assert!(needed.exit() == Exit::Usage && needed.hint().unwrap().contains("dataset_config"));
    assert_eq!(
        message(Some("mian"), "train").to_string(),
        "org/name has no configuration `mian`; it has `main`, `socratic`"
    );
    assert_eq!(
        message(Some("main"), "dev").to_string(),
        "org/name has no split `dev` in the configuration `main`; it has `test`, `train`"
    );
    assert_eq!(message(Some("main"), "dev").exit(), Exit::Usage);
}

#[test]
fn the_card_says_which_files() {
    let card = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    \
                path:\n    - main/test-*\n- config_name: both\n  default: true\n  data_files: \"*/train-*.parquet\"\n\
                - config_name: folder\n  data_dir: socratic\n---\n# Card\n";
    let layout = layout(&TWO, Some(card));
    let files = |config: Option<&str>, split: &str| layout.files("n", config, split).unwrap().to_vec();
    assert_eq!(files(Some("main"), "test"), ["main/test-00000-of-00001.parquet"]);
    assert_eq!(files(None, "train"), [TWO[0], TWO[2]]);
    assert_eq!(files(Some("folder"), "test"), [TWO[3]]);
    // A card without configurations leaves it to the names.
    assert!(super::of_card("---\nlicense: mit\n---\n", &TWO).unwrap().is_empty());
    assert!(super::of_card("# no head\n", &TWO).unwrap().is_empty());
}

/// The time grows with the number of shards, not with its third power.
#[test]
fn many_shards_are_looked_through_at_once() {
    let paths: Vec<String> = (0..10_000).map(|shard| format!("data/train-{shard:05}-of-10000.parquet")).collect();
    assert_eq!(Layout::new("n", &paths, None).unwrap().files("n", None, "train").unwrap().len(), 10_000);
}

#[test]
fn what_cannot_be_used_is_named() {
    let paths = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let failure = |names: &[&str], card: Option<&str>| {
        let error = match Layout::new("org/name", &paths(names), card) {
            Ok(layout) => layout.files("org/name", None, "train").unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.exit(), Exit::Data, "{error}");
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    };
    assert_eq!(
        failure(&["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"], None),
        "org/name: data/train-00001-of-00003.parquet is missing"
    );
    assert_eq!(
        failure(&["train.csv", "README.md"], None),
        "org/name has no data file that can be read; it has README.md, train.csv"
    );
    let csv = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n---\n";
    assert_eq!(failure(&["train.csv"], Some(csv)), "org/name: train.csv is of a kind that is not read");
    let odd = "---\nconfigs:\n- config_name: default\n  data_files: 3\n---\n";
    assert_eq!(
        failure(&["train.jsonl"], Some(odd)),
        "the README.md of org/name: the `data_files` of its configuration `default` are not understood"
    );
    assert!(failure(&["train.jsonl"], Some("---\na: [\n---\n")).contains("its YAML head cannot be read"));
}
