//! What can be wrong with a data file, down to the line.

use std::fmt;
use std::path::{Path, PathBuf};

use super::place::RowPlace;
use crate::error::{Diagnose, Exit};
use crate::hub::HubError;
use crate::io::IoError;
use crate::text::nearest;

/// An error of the `data` area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{path} is {found}, not a file")]
    NotAFile { path: PathBuf, found: &'static str },
    #[error("{path} is {found}, not JSON Lines, a JSON array or Parquet")]
    WrongFormat { path: PathBuf, found: &'static str },
    #[error("{path} is {found}, not a Parquet file")]
    NotParquet { path: PathBuf, found: &'static str },
    #[error("{path} is damaged{}: {reason}", place_in(*row_group, *row))]
    Damaged { path: PathBuf, row_group: Option<usize>, row: Option<usize>, reason: String },
    #[error("{path}:{line}:{column}: not valid JSON: {reason}")]
    Syntax { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("{path}: {fault}")]
    WrongColumns { path: PathBuf, fault: Box<Fault> },
    #[error("{path} is {found}, not a text file")]
    NotText { path: PathBuf, found: &'static str },
    #[error("{path}:{line}: not valid UTF-8: byte {offset} of the file is 0x{byte:02x}")]
    Utf8 { path: PathBuf, line: usize, offset: usize, byte: u8 },
    #[error("{path} has no text")]
    EmptyText { path: PathBuf },
    #[error("{path} has no rows")]
    Empty { path: PathBuf },
    #[error("{path} has no usable row: all {skipped} rows are bad\n{}", list_faults(path, faults, *skipped))]
    AllSkipped { path: PathBuf, skipped: usize, faults: Vec<RowFault> },
    #[error("{}", list_faults(path, faults, *total))]
    BadRows { path: PathBuf, faults: Vec<RowFault>, total: usize },
    #[error("the README.md of {dataset}: {reason}")]
    BadCard { dataset: String, reason: String },
    #[error("{dataset} has no data file that can be read{}", some_of(found))]
    NoDataFiles { dataset: String, found: Vec<String> },
    #[error("{dataset} has several configurations: {}", list_names(available))]
    ConfigNeeded { dataset: String, available: Vec<String> },
    #[error("{dataset} has no configuration `{config}`; it has {}", list_names(available))]
    NoConfig { dataset: String, config: String, available: Vec<String> },
    #[error("{dataset} has no split `{split}` in the configuration `{config}`; it has {}", list_names(available))]
    NoSplit { dataset: String, config: String, split: String, available: Vec<String> },
    #[error("{dataset}: {file} is of a kind that is not read")]
    UnreadKind { dataset: String, file: String },
    #[error("{dataset}: {file} is missing")]
    MissingShard { dataset: String, file: String },
    #[error("{path} is a file, not the folder of a data set", path = path.display())]
    NotAFolder { path: PathBuf },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("{rows} rows asked for, but the {split} split has only {available} different questions")]
    TooFewQuestions { rows: usize, split: &'static str, available: usize },
    #[error("{what} cannot be {got}: {expected}")]
    BadSetting { what: &'static str, got: String, expected: &'static str },
}

impl Diagnose for DataError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::WrongFormat { found, .. } | Self::NotText { found, .. } if found.starts_with("gzip") => {
                "Unpack it first: gunzip FILE"
            }
            Self::WrongFormat { .. } => {
                "Give a Parquet file, or UTF-8 text: one JSON object a line, or one JSON array of objects"
            }
            Self::NotParquet { found, .. } if found.contains("LFS") => "Fetch the file itself: git lfs pull",
            Self::NotParquet { .. } => "Write or download it again; JSON Lines has the ending .jsonl",
            Self::Damaged { .. } => "Write or download it again",
            Self::Syntax { .. } => "Correct the file; if it was cut short, write or download it again",
            Self::WrongColumns { .. } => {
                "Name the columns of the file: `prompt_column`, `completion_column`, `answer_column`, or `prompt_template`"
            }
            Self::NotText { .. } => "Give a text file in UTF-8",
            Self::Utf8 { .. } => "Save the file as UTF-8: iconv -f LATIN1 -t UTF-8 FILE, if it is Latin-1",
            Self::EmptyText { .. } => "Give a file with some text to learn",
            Self::Empty { .. } => {
                "Give a file with at least one row such as {\"prompt\": \"12 + 7 =\", \"answer\": \"19\"}"
            }
            Self::BadRows { faults, .. }
                if faults.iter().all(|row| matches!(row.fault, Fault::MissingColumn { .. })) =>
            {
                "Name the columns of the file: `prompt_column`, `completion_column`, `answer_column`, or `prompt_template`"
            }
            Self::BadRows { .. } => "Correct these rows, or set `on_bad_row = \"skip\"` to leave them out",
            Self::AllSkipped { .. } => "Check `prompt_column` against the columns of the file",
            Self::BadCard { .. } => "Name the files yourself: `train_file` takes one of them",
            Self::NoDataFiles { .. } | Self::UnreadKind { .. } => {
                "Parquet, .jsonl and .json are read; in Python, `load_dataset(...).to_parquet(FILE)` writes one of them"
            }
            Self::ConfigNeeded { .. } => "Choose one: set `dataset_config`",
            Self::NoConfig { .. } => "Set `dataset_config` to one of them",
            Self::NoSplit { .. } => "Set `dataset_train_split` or `dataset_test_split` to one of them",
            Self::MissingShard { .. } => "Fetch the data set again, all of its files",
            Self::NotAFolder { .. } => "Name it as `train_file` or `eval_file`",
            Self::TooFewQuestions { .. } => "Ask for fewer rows, raise the largest operand, or allow repeats",
            Self::Io(error) => return error.hint(),
            Self::Hub(error) => return error.hint(),
            _ => return None,
        };
        Some(hint.to_string())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            Self::Hub(error) => error.exit(),
            Self::TooFewQuestions { .. }
            | Self::BadSetting { .. }
            | Self::ConfigNeeded { .. }
            | Self::NoConfig { .. }
            | Self::NoSplit { .. }
            | Self::NotAFolder { .. } => Exit::Usage,
            _ => Exit::Data,
        }
    }
}

/// One bad row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFault {
    /// File and line, or row.
    pub place: RowPlace,
    /// Byte in the line, from 1, where that is known.
    pub column: Option<usize>,
    pub fault: Fault,
    /// The first 60 characters of the line, or of the row as JSON.
    pub excerpt: String,
}

/// What is wrong with a row. Paths such as `messages[2].role` name the place inside the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("not valid JSON: {reason}")]
    Syntax { reason: String },
    #[error("not valid UTF-8: byte {offset} of the file is 0x{byte:02x}")]
    Utf8 { offset: u64, byte: u8 },
    #[error("expected an object, got {got}")]
    NotAnObject { got: &'static str },
    #[error("the key `{key}` stands there twice")]
    DuplicateKey { key: String },
    #[error("no column `{name}`; the row has {}{}", list_names(present), near.as_ref().map(|near| format!(": did you mean `{near}`?")).unwrap_or_default())]
    MissingColumn { name: String, present: Vec<String>, near: Option<String> },
    #[error("`{place}`: expected {expected}, got {got}")]
    WrongType { place: String, expected: &'static str, got: &'static str },
    #[error("`{place}`: {reason}")]
    BadValue { place: String, reason: String },
    #[error("`{chosen}` and `{rejected}` are equal: such a pair teaches nothing")]
    EqualPair { chosen: String, rejected: String },
    #[error("the line is longer than {limit} bytes")]
    LineTooLong { limit: usize },
}

impl Fault {
    /// A column that the row does not have, with the one that may have been meant.
    pub(super) fn missing_column(name: &str, present: Vec<String>) -> Self {
        // Any two names of one or two letters are near each other.
        let near = nearest(name, present.iter().map(String::as_str)).filter(|near| near.len() > 2 && name.len() > 2);
        let near = near.map(str::to_owned);
        Self::MissingColumn { name: name.to_owned(), present, near }
    }
}

/// ` in row group 0, row 3`, as far as it is known.
fn place_in(row_group: Option<usize>, row: Option<usize>) -> String {
    let row = row.map(|row| format!(", row {row}")).unwrap_or_default();
    row_group.map(|group| format!(" in row group {group}{row}")).unwrap_or_default()
}

/// `; it has a, b and 3 more`, where there is anything.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "; it is empty".to_owned(),
        0 => format!("; it has {shown}"),
        more => format!("; it has {shown} and {more} more"),
    }
}

fn list_names(names: &[String]) -> String {
    if names.is_empty() {
        return "no columns".to_string();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}\n    {}", self.fault, self.excerpt)
    }
}

fn list_faults(source: &Path, faults: &[RowFault], total: usize) -> String {
    let mut lines: Vec<String> = faults.iter().map(RowFault::to_string).collect();
    if total > faults.len() {
        lines.push(format!("... and {} more bad rows in {}", total - faults.len(), source.display()));
    }
    lines.join("\n")
}
