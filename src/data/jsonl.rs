//! Reading JSON Lines: line by line, with every fault told by its place.
//!
//! Rows that are understood (the formats of TRL's `dataset_formats.md`):
//! `{"prompt": "text", ...}`, `{"prompt": [{"role", "content"}, ...], ...}`, `{"messages": [...], ...}` (the turns
//! before the last assistant turn are the prompt, that turn is the column `completion`), and for supervised fine-tuning
//! `{"prompt", "completion"}` and `{"text"}`, for preferences `{"prompt", "chosen", "rejected"}`.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::{DataError, Fault, RowFault};
use super::parse::parse_row;
use super::row::Row;
use crate::io::IoError;

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

/// How a JSONL file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonlConfig {
    /// The column with the prompt. Default: `prompt`. Rows without it may have `messages`.
    pub prompt_column: String,
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
    /// Longest line, in bytes. Default: 16 MiB, so that a file without line breaks is not read into memory whole.
    pub max_line_bytes: usize,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        Self {
            prompt_column: "prompt".to_string(),
            completion_column: "completion".to_string(),
            chosen_column: "chosen".to_string(),
            rejected_column: "rejected".to_string(),
            on_bad_row: OnBadRow::Stop,
            kind: RowKind::Prompt,
            max_line_bytes: 16 << 20,
        }
    }
}

/// The rows of a file. There is at least one.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub rows: Vec<Row>,
    /// Bad rows left out (`on_bad_row = "skip"`).
    pub skipped: usize,
    /// The first bad rows left out, for a warning.
    pub skipped_faults: Vec<RowFault>,
    /// SHA-256 of the file's bytes, in hex: a resumed run checks that its data did not change.
    pub sha256: String,
}

/// Reads a JSONL file.
///
/// # Errors
/// The file cannot be read, is something else than JSONL, has no row, or has bad rows (all are looked for, the first 20
/// are listed) unless those are skipped.
pub fn load_jsonl(path: &Path, config: &JsonlConfig) -> Result<Dataset, DataError> {
    let read_error = |source| IoError::of("read", path)(source);
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        // A pipe would block for ever, so it is refused before it is opened.
        let found = if metadata.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(DataError::NotAFile { path: path.to_path_buf(), found });
    }
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(read_error)?);
    if let Some(found) = foreign_format(reader.fill_buf().map_err(read_error)?) {
        return Err(DataError::WrongFormat { path: path.to_path_buf(), found });
    }

    let mut lines = Lines { reader, hasher: Sha256::new(), line: 0, offset: 0, limit: config.max_line_bytes };
    let (mut rows, mut faults, mut num_bad) = (Vec::new(), Vec::new(), 0usize);
    let (mut index, mut buffer) = (0u64, Vec::new());
    while let Some(read) = lines.next_line(&mut buffer).map_err(read_error)? {
        if !read.too_long && buffer.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match row_of(&buffer, &read, index, config) {
            Ok(row) => rows.push(row),
            Err(fault) => {
                num_bad += 1;
                if faults.len() < MAX_LISTED_FAULTS {
                    faults.push(fault);
                }
            }
        }
        index += 1;
    }

    let path = path.to_path_buf();
    if num_bad > 0 && config.on_bad_row == OnBadRow::Stop {
        return Err(DataError::BadRows { path, faults, total: num_bad });
    }
    if rows.is_empty() {
        return Err(match num_bad {
            0 => DataError::Empty { path },
            skipped => DataError::AllSkipped { path, skipped, faults },
        });
    }
    let mut sha256 = String::with_capacity(64);
    for byte in lines.hasher.finalize() {
        let _ = write!(sha256, "{byte:02x}");
    }
    Ok(Dataset { rows, skipped: num_bad, skipped_faults: faults, sha256 })
}

/// Recognises files of another kind than JSON Lines by their first bytes.
fn foreign_format(start: &[u8]) -> Option<&'static str> {
    let text = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    binary_format(start).or(is_array.then_some("one JSON array"))
}

/// Recognises files that are no UTF-8 text by their first bytes.
pub(super) fn binary_format(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1F, 0x8B, ..] => Some("gzip data"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [b'P', b'A', b'R', b'1', ..] => Some("a Parquet file"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16 text"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some("zstd data"),
        _ => None,
    }
}

/// Where a line stands, and whether it was cut.
struct LineInfo {
    line: usize,
    /// Of the first byte after a byte order mark, in the file.
    offset: u64,
    too_long: bool,
}

struct Lines<R> {
    reader: R,
    hasher: Sha256,
    line: usize,
    offset: u64,
    limit: usize,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line into `buffer`, without its line break; at most `limit` bytes of it are kept.
    fn next_line(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<Option<LineInfo>> {
        buffer.clear();
        let start = self.offset;
        let count = (&mut self.reader).take(self.limit as u64 + 2).read_until(b'\n', buffer)?;
        if count == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.hasher.update(&buffer[..]);
        self.offset += count as u64;
        let ended = buffer.last() == Some(&b'\n');
        let cut = !ended && count == self.limit + 2;
        while buffer.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            buffer.pop();
        }
        let too_long = cut || buffer.len() > self.limit;
        if cut {
            self.skip_line()?;
        }
        let mut info = LineInfo { line: self.line, offset: start, too_long };
        if self.line == 1 && buffer.starts_with(b"\xEF\xBB\xBF") {
            buffer.drain(..3);
            info.offset += 3;
        }
        Ok(Some(info))
    }

    /// Passes over the rest of a line that is too long, in constant memory.
    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                return Ok(());
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(chunk.len(), |at| at + 1);
            self.hasher.update(&chunk[..count]);
            self.offset += count as u64;
            self.reader.consume(count);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

fn row_of(bytes: &[u8], read: &LineInfo, index: u64, config: &JsonlConfig) -> Result<Row, RowFault> {
    let fault = |column: Option<usize>, fault: Fault| RowFault {
        line: read.line,
        column,
        fault,
        excerpt: excerpt(&String::from_utf8_lossy(&bytes[..bytes.len().min(1024)])),
    };
    if read.too_long {
        return Err(fault(None, Fault::LineTooLong { limit: config.max_line_bytes }));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        fault(Some(at + 1), Fault::Utf8 { offset: read.offset + at as u64, byte: bytes[at] })
    })?;
    let (prompt, columns) = parse_row(text, config).map_err(|(column, kind)| fault(column, kind))?;
    Ok(Row { index, line: read.line, prompt, columns })
}

/// The first 60 characters, control characters escaped.
fn excerpt(text: &str) -> String {
    crate::text::excerpt(text)
}
