//! What can be wrong with a data file, down to the line.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Diagnose, Exit};
use crate::io::IoError;

/// An error of the `data` area.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{path} is {found}, not a file")]
    NotAFile { path: PathBuf, found: &'static str },
    #[error("{path} is {found}, not JSON Lines")]
    WrongFormat { path: PathBuf, found: &'static str },
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
            Self::WrongFormat { found, .. } if found.starts_with("one JSON array") => {
                "Write one object a line: jq -c '.[]' FILE > FILE.jsonl"
            }
            Self::WrongFormat { .. } => "Give a UTF-8 text file with one JSON object a line",
            Self::NotText { .. } => "Give a text file in UTF-8",
            Self::Utf8 { .. } => "Save the file as UTF-8: iconv -f LATIN1 -t UTF-8 FILE, if it is Latin-1",
            Self::EmptyText { .. } => "Give a file with some text to learn",
            Self::Empty { .. } => {
                "Give a file with at least one row such as {\"prompt\": \"12 + 7 =\", \"answer\": \"19\"}"
            }
            Self::BadRows { .. } => "Correct these rows, or set `on_bad_row = \"skip\"` to leave them out",
            Self::AllSkipped { .. } => "Check `prompt_column` against the columns of the file",
            Self::TooFewQuestions { .. } => "Ask for fewer rows, raise the largest operand, or allow repeats",
            Self::Io(error) => return error.hint(),
            _ => return None,
        };
        Some(hint.to_string())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            Self::TooFewQuestions { .. } | Self::BadSetting { .. } => Exit::Usage,
            _ => Exit::Data,
        }
    }
}

/// One bad row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFault {
    /// Line in the file, from 1.
    pub line: usize,
    /// Byte in the line, from 1, where that is known.
    pub column: Option<usize>,
    pub fault: Fault,
    /// The first 60 characters of the line.
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
    #[error("no column `{name}`; the row has {}", list_names(present))]
    MissingColumn { name: String, present: Vec<String> },
    #[error("`{place}`: expected {expected}, got {got}")]
    WrongType { place: String, expected: &'static str, got: &'static str },
    #[error("`{place}`: {reason}")]
    BadValue { place: String, reason: String },
    #[error("`{chosen}` and `{rejected}` are equal: such a pair teaches nothing")]
    EqualPair { chosen: String, rejected: String },
    #[error("the line is longer than {limit} bytes")]
    LineTooLong { limit: usize },
}

fn list_names(names: &[String]) -> String {
    if names.is_empty() {
        return "no columns".to_string();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

struct Located<'a>(&'a PathBuf, &'a RowFault);

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, row) = self;
        write!(f, "{}:{}", path.display(), row.line)?;
        if let Some(column) = row.column {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}\n    {}", row.fault, row.excerpt)
    }
}

fn list_faults(path: &PathBuf, faults: &[RowFault], total: usize) -> String {
    let mut lines: Vec<String> = faults.iter().map(|fault| Located(path, fault).to_string()).collect();
    if total > faults.len() {
        lines.push(format!("... and {} more bad rows in {}", total - faults.len(), path.display()));
    }
    lines.join("\n")
}
