//! One JSON array of objects, as `datasets` and many tools write it: element by element.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::DataError;
use super::load::{Hashing, Rows};
use super::parse::parse_row;
use super::place::RowAt;
use crate::io::IoError;

type Reader = BufReader<Hashing<File>>;

/// Reads every element as a row. Its place is the line where it begins.
pub(super) fn read(path: &Arc<Path>, mut reader: Reader, rows: &mut Rows<'_>) -> Result<Reader, DataError> {
    let io_error = |source| IoError::of("read", path)(source);
    if reader.fill_buf().map_err(io_error)?.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    let consumed = Rc::new(Consumed::default());
    let mut counted = Counted { reader, consumed: consumed.clone() };
    let mut json = serde_json::Deserializer::from_reader(&mut counted);
    let elements = Elements { path, consumed, rows };
    match elements.deserialize(&mut json).and_then(|()| json.end()) {
        Ok(()) => Ok(counted.reader),
        Err(error) if error.is_io() => Err(io_error(error.into()).into()),
        Err(error) => {
            let text = error.to_string();
            let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
            Err(DataError::Syntax { path: path.to_path_buf(), line: error.line(), column: error.column(), reason })
        }
    }
}

/// How far the parser has read.
#[derive(Default)]
struct Consumed {
    newlines: Cell<usize>,
    last: Cell<u8>,
}

/// Counts lines for the parser, which takes single bytes.
struct Counted<R> {
    reader: R,
    consumed: Rc<Consumed>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let read = &buffer[..count];
        let newlines: usize = read.iter().map(|byte| usize::from(*byte == b'\n')).sum();
        self.consumed.newlines.set(self.consumed.newlines.get() + newlines);
        if let Some(last) = read.last() {
            self.consumed.last.set(*last);
        }
        Ok(count)
    }
}

struct Elements<'a, 'c> {
    path: &'a Arc<Path>,
    consumed: Rc<Consumed>,
    rows: &'a mut Rows<'c>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(raw) = elements.next_element::<Box<RawValue>>()? {
            let text = raw.get();
            if self.rows.passes_over() {
                continue;
            }
            // To know where a number ends, the parser reads one byte more.
            let ahead = text.ends_with(|c: char| c.is_ascii_digit()) && self.consumed.last.get() == b'\n';
            let newlines = text.matches('\n').count() + usize::from(ahead);
            let line = 1 + self.consumed.newlines.get().saturating_sub(newlines);
            // Bytes are counted within the element, which need not begin its line: only the line is told.
            let row = parse_row(text, self.rows.config).map_err(|(_, fault)| (None, fault));
            self.rows.push(self.path, RowAt::Line(line), row, text);
        }
        Ok(())
    }
}
