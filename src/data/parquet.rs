//! Parquet files, row by row, one row group at a time.
//!
//! A row becomes the JSON object that the same row of a JSONL file would be: lists and structs nest, maps are objects,
//! times and decimals are text, bytes are base64; what is no number (NaN, infinities) is null.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde_json::Value;

use super::error::{DataError, Fault};
use super::load::Rows;
use super::parse::parse_object;
use super::place::RowAt;
use crate::io::IoError;

/// Reads every row of the file.
pub(super) fn read(path: &Arc<Path>, rows: &mut Rows<'_>) -> Result<(), DataError> {
    // The library is known to panic on some damaged files; a file of the user's must not end the program that way.
    catch_unwind(AssertUnwindSafe(|| read_groups(path, rows))).unwrap_or_else(|_| {
        let reason = "the Parquet reader gave up on it".to_owned();
        Err(DataError::Damaged { path: path.to_path_buf(), row_group: None, row: None, reason })
    })
}

fn read_groups(path: &Arc<Path>, rows: &mut Rows<'_>) -> Result<(), DataError> {
    let file = File::open(path).map_err(IoError::of("read", path))?;
    let reader = SerializedFileReader::new(file).map_err(damaged(path, None, None))?;
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let num_rows = usize::try_from(reader.metadata().row_group(group).num_rows()).unwrap_or(0);
        if rows.passes_over_all(num_rows as u64) {
            number += num_rows;
            continue;
        }
        let group_reader = reader.get_row_group(group).map_err(damaged(path, Some(group), None))?;
        read_group(path, group_reader.as_ref(), Place { group, num_rows, before: number }, rows)?;
        number += num_rows;
    }
    Ok(())
}

/// Which row group is read.
struct Place {
    group: usize,
    num_rows: usize,
    /// Rows of the file before it.
    before: usize,
}

fn read_group(
    path: &Arc<Path>,
    reader: &dyn RowGroupReader,
    Place { group, num_rows, before }: Place,
    rows: &mut Rows<'_>,
) -> Result<(), DataError> {
    let mut found = 0;
    for (row, record) in reader.get_row_iter(None).map_err(damaged(path, Some(group), None))?.enumerate() {
        found += 1;
        let record = record.map_err(damaged(path, Some(group), Some(row)))?;
        if rows.passes_over() {
            continue;
        }
        let value = record.to_json_value();
        let Value::Object(object) = &value else { continue };
        let row_of = parse_object(object, rows.config);
        // Every row of a file has the same columns, so that the first one tells of all.
        if let Err((_, fault @ Fault::MissingColumn { .. })) = row_of {
            return Err(DataError::WrongColumns { path: path.to_path_buf(), fault: fault.into() });
        }
        let at = RowAt::Parquet { row_group: group, row, number: before + row + 1 };
        let text = if row_of.is_err() { value.to_string() } else { String::new() };
        rows.push(path, at, row_of, &text);
    }
    if found == num_rows {
        return Ok(());
    }
    let reason = format!("{found} rows instead of {num_rows}");
    Err(DataError::Damaged { path: path.to_path_buf(), row_group: Some(group), row: None, reason })
}

fn damaged(path: &Path, row_group: Option<usize>, row: Option<usize>) -> impl FnOnce(ParquetError) -> DataError {
    move |error| {
        let text = error.to_string();
        let reason = text.strip_prefix("Parquet error: ").unwrap_or(&text).to_owned();
        DataError::Damaged { path: path.to_owned(), row_group, row, reason }
    }
}
