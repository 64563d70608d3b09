//! JSON Lines: line by line, at most `max_line_bytes` of a line in memory.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use super::error::Fault;
use super::load::Rows;

/// Reads every line that is not blank as a row.
pub(super) fn read(path: &Arc<Path>, reader: &mut impl BufRead, rows: &mut Rows<'_>) -> std::io::Result<()> {
    let limit = rows.config.max_line_bytes;
    let mut lines = Lines { reader, line: 0, offset: 0, limit };
    let mut buffer = Vec::new();
    while let Some(read) = lines.next_line(&mut buffer)? {
        if (!read.too_long && buffer.iter().all(u8::is_ascii_whitespace)) || rows.passes_over() {
            continue;
        }
        if read.too_long {
            rows.push_fault(path, read.line, None, Fault::LineTooLong { limit }, &buffer);
            continue;
        }
        match std::str::from_utf8(&buffer) {
            Ok(text) => rows.push_text(path, read.line, text),
            Err(error) => {
                let at = error.valid_up_to();
                let fault = Fault::Utf8 { offset: read.offset + at as u64, byte: buffer[at] };
                rows.push_fault(path, read.line, Some(at + 1), fault, &buffer);
            }
        }
    }
    Ok(())
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
            self.offset += count as u64;
            self.reader.consume(count);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}
