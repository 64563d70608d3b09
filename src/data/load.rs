//! From files to rows: which format a file has, what a row must have, which rows count, what is done with bad ones.
//!
//! Rows that are understood (the formats of TRL's `dataset_formats.md`):
//! `{"prompt": "text", ...}`, `{"prompt": [{"role", "content"}, ...], ...}`, `{"messages": [...], ...}` (the turns
//! before the last assistant turn are the prompt, that turn is the column `completion`), and for supervised fine-tuning
//! `{"prompt", "completion"}` and `{"text"}`, for preferences `{"prompt", "chosen", "rejected"}`. A template makes the
//! prompt of any other columns.
//!
//! A file is Parquet, a JSON array of objects, or JSON Lines; its first bytes tell which. One row is in memory at a time
//! beside those that are kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::answer::AnswerRule;
use super::error::{DataError, Fault, RowFault};
use super::parse::{PlacedFault, parse_row};
use super::place::{RowAt, RowPlace};
use super::row::{Columns, Row};
use super::slice::Slice;
use super::template::PromptTemplate;
use super::{json_array, jsonl, parquet};
use crate::io::{IoError, hex, sha256_bytes, sha256_file};
use crate::text::{Prompt, excerpt};

/// Bad rows that a message lists; the rest is counted.
const MAX_LISTED_FAULTS: usize = 20;

/// What to do with a bad row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Stop, and list the bad rows.
    #[default]
    Stop,
    /// Leave them out, and count them.
    Skip,
}

/// What a row must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowKind {
    /// A prompt.
    #[default]
    Prompt,
    /// A prompt and a completion, or a text.
    Completion,
    /// A prompt, a better and a worse completion.
    Pair,
}

/// How data files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsConfig {
    /// The column with the prompt. Default: `prompt`. Rows without it may have `messages`.
    pub prompt_column: String,
    /// The prompt as a text with columns in it; `prompt_column` is a column like any other then. Default: none.
    pub prompt_template: Option<PromptTemplate>,
    /// Where the answer is taken from. Default: none, the columns stay as they are.
    pub answer: Option<AnswerRule>,
    /// The column with the completion; `Row::completion` returns it. Default: `completion`.
    pub completion_column: String,
    /// The column with the better completion of a pair; `Row::pair` returns it. Default: `chosen`.
    pub chosen_column: String,
    /// The column with the worse completion of a pair. Default: `rejected`.
    pub rejected_column: String,
    /// What to do with a bad row. Default: stop.
    pub on_bad_row: OnBadRow,
    /// What a row must have. Default: a prompt.
    pub kind: RowKind,
    /// Longest line of JSON Lines, in bytes. Default: 16 MiB, so that a file without line breaks is not read into memory
    /// whole.
    pub max_line_bytes: usize,
}

impl Default for RowsConfig {
    fn default() -> Self {
        Self {
            prompt_column: "prompt".to_string(),
            prompt_template: None,
            answer: None,
            completion_column: "completion".to_string(),
            chosen_column: "chosen".to_string(),
            rejected_column: "rejected".to_string(),
            on_bad_row: OnBadRow::Stop,
            kind: RowKind::Prompt,
            max_line_bytes: 16 << 20,
        }
    }
}

/// The rows of a file, or of the files of a data set. There is at least one.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file, or the data set as it was named, for messages.
    pub source: PathBuf,
    pub rows: Vec<Row>,
    /// Rows of the files, those included that are bad or do not count.
    pub num_rows: u64,
    /// Bad rows left out (`on_bad_row = "skip"`).
    pub skipped: usize,
    /// The first bad rows left out, for a warning.
    pub skipped_faults: Vec<RowFault>,
    /// SHA-256 of the file's bytes, in hex; of several files that of their hashes, a line each. A resumed run checks by
    /// it that its data did not change.
    pub sha256: String,
}

/// Reads a data file.
///
/// # Errors
/// The file cannot be read or is of another format, has no row, or has bad rows (all are looked for, the first 20 are
/// listed) unless those are skipped.
pub fn load_rows(path: &Path, config: &RowsConfig) -> Result<Dataset, DataError> {
    load_files(path.to_owned(), &[path.to_owned()], None, config)
}

/// Reads the files of a data set as one: rows are numbered through, and `slice` says which of them count. `source` is the
/// name of the whole in messages.
///
/// # Errors
/// As [`load_rows`].
pub fn load_files(
    source: PathBuf,
    files: &[PathBuf],
    slice: Option<&Slice>,
    config: &RowsConfig,
) -> Result<Dataset, DataError> {
    let range = match slice {
        None => 0..u64::MAX,
        Some(slice) => match slice.fixed_range() {
            Some(range) => range,
            None => slice.range(count(files, config)?),
        },
    };
    let mut rows = Rows::new(config, range);
    let hashes = files.iter().map(|file| read(file, &mut rows)).collect::<Result<Vec<String>, DataError>>()?;
    let Rows { kept, faults, num_bad, next: num_rows, .. } = rows;
    if num_bad > 0 && config.on_bad_row == OnBadRow::Stop {
        return Err(DataError::BadRows { path: source, faults, total: num_bad });
    }
    if kept.is_empty() {
        return Err(match num_bad {
            0 => DataError::Empty { path: source },
            skipped => DataError::AllSkipped { path: source, skipped, faults },
        });
    }
    let sha256 = match hashes.as_slice() {
        [one] => one.clone(),
        several => sha256_bytes(several.join("\n").as_bytes()),
    };
    Ok(Dataset { source, rows: kept, num_rows, skipped: num_bad, skipped_faults: faults, sha256 })
}

/// The rows of all files together, bad ones counted.
fn count(files: &[PathBuf], config: &RowsConfig) -> Result<u64, DataError> {
    let mut rows = Rows::new(config, 0..0);
    files.iter().try_for_each(|file| read(file, &mut rows).map(drop))?;
    Ok(rows.next)
}

/// Reads one file; returns the SHA-256 of its bytes.
fn read(path: &Path, rows: &mut Rows<'_>) -> Result<String, DataError> {
    let read_error = |source| IoError::of("read", path)(source);
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        // A pipe would block for ever, so it is refused before it is opened.
        let found = if metadata.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(DataError::NotAFile { path: path.to_path_buf(), found });
    }
    let file = File::open(path).map_err(read_error)?;
    let shared: Arc<Path> = path.into();
    let mut reader = BufReader::with_capacity(1 << 16, Hashing { inner: file, hasher: Sha256::new() });
    let start = reader.fill_buf().map_err(read_error)?;
    if start.starts_with(b"PAR1") {
        parquet::read(&shared, rows)?;
        return Ok(sha256_file(path)?.1);
    }
    if path.extension().is_some_and(|extension| extension == "parquet") {
        return Err(DataError::NotParquet { path: path.to_owned(), found: instead_of_parquet(start) });
    }
    if let Some(found) = binary_format(start) {
        return Err(DataError::WrongFormat { path: path.to_path_buf(), found });
    }
    if is_array(start) {
        reader = json_array::read(&shared, reader, rows)?;
    } else {
        jsonl::read(&shared, &mut reader, rows).map_err(read_error)?;
    }
    // What the parser left unread belongs to the file all the same.
    std::io::copy(&mut reader, &mut std::io::sink()).map_err(read_error)?;
    Ok(reader.into_inner().finish())
}

/// Hashes what is read.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    fn finish(self) -> String {
        hex(&self.hasher.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

fn is_array(start: &[u8]) -> bool {
    let text = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[')
}

/// Recognises files that are no UTF-8 text by their first bytes.
pub(super) fn binary_format(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1F, 0x8B, ..] => Some("gzip data"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [b'P', b'A', b'R', b'1', ..] => Some("a Parquet file"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16 text"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some("zstd data"),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Some("an Arrow file"),
        _ => None,
    }
}

/// What a file with the ending of Parquet is that does not begin as one.
fn instead_of_parquet(start: &[u8]) -> &'static str {
    match start {
        [] => "empty",
        [b'P', b'A', b'R', b'E', ..] => "encrypted Parquet",
        start if start.starts_with(b"version https://git-lfs") => "a pointer of Git LFS",
        start if start.trim_ascii_start().starts_with(b"<") => "a page of HTML or XML",
        start => binary_format(start).unwrap_or("something else"),
    }
}

/// The rows as they come in from the files.
pub(super) struct Rows<'a> {
    pub config: &'a RowsConfig,
    /// The numbers of the rows that count.
    range: Range<u64>,
    /// Number of the next row.
    next: u64,
    kept: Vec<Row>,
    faults: Vec<RowFault>,
    num_bad: usize,
}

impl<'a> Rows<'a> {
    fn new(config: &'a RowsConfig, range: Range<u64>) -> Self {
        Self { config, range, next: 0, kept: Vec::new(), faults: Vec::new(), num_bad: 0 }
    }

    /// Passes over the next row where it does not count; true if it did.
    pub fn passes_over(&mut self) -> bool {
        let is_wanted = self.range.contains(&self.next);
        self.next += u64::from(!is_wanted);
        !is_wanted
    }

    /// Passes over the next `count` rows where none of them counts; true if it did.
    pub fn passes_over_all(&mut self, count: u64) -> bool {
        let is_wanted = self.next < self.range.end && self.next.saturating_add(count) > self.range.start;
        self.next += if is_wanted { 0 } else { count };
        !is_wanted
    }

    /// Takes the next row, or what is wrong with it. `text` begins as its line does.
    pub fn push(&mut self, file: &Arc<Path>, at: RowAt, row: Result<(Prompt, Columns), PlacedFault>, text: &str) {
        let place = RowPlace { file: file.clone(), at };
        match row {
            Ok((prompt, columns)) => self.kept.push(Row { index: self.next, place, prompt, columns }),
            Err((column, fault)) => {
                self.num_bad += 1;
                if self.faults.len() < MAX_LISTED_FAULTS {
                    self.faults.push(RowFault { place, column, fault, excerpt: excerpt(text) });
                }
            }
        }
        self.next += 1;
    }

    /// Takes the next row of a text file.
    pub fn push_text(&mut self, file: &Arc<Path>, line: usize, text: &str) {
        let row = parse_row(text, self.config);
        self.push(file, RowAt::Line(line), row, text);
    }

    /// Takes a fault of the next row that keeps it from being read at all.
    pub fn push_fault(&mut self, file: &Arc<Path>, line: usize, column: Option<usize>, fault: Fault, bytes: &[u8]) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
        self.push(file, RowAt::Line(line), Err((column, fault)), &text);
    }
}
