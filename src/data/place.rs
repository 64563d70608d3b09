//! Where a row stands, for messages.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The file of a row and its place in it. Written as `file:line`, or `file: row group 0, row 7` where the file is Parquet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlace {
    /// The file; rows of one file share it.
    pub file: Arc<Path>,
    /// Where in the file.
    pub at: RowAt,
}

/// The place of a row in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAt {
    /// The line where it begins, from 1.
    Line(usize),
    /// A row of a Parquet file.
    Parquet {
        /// From 0.
        row_group: usize,
        /// Within the row group, from 0.
        row: usize,
        /// Within the file, from 1.
        number: usize,
    },
}

impl RowPlace {
    /// A line of a file, from 1.
    #[must_use]
    pub fn line(file: &Path, line: usize) -> Self {
        Self { file: file.into(), at: RowAt::Line(line) }
    }

    /// The line from 1, or the number of a Parquet file's row from 1.
    #[must_use]
    pub fn number(&self) -> usize {
        match self.at {
            RowAt::Line(line) => line,
            RowAt::Parquet { number, .. } => number,
        }
    }
}

impl fmt::Display for RowPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.at {
            RowAt::Line(line) => write!(f, "{file}:{line}"),
            RowAt::Parquet { row_group, row, .. } => write!(f, "{file}: row group {row_group}, row {row}"),
        }
    }
}
