//! `metrics.csv`: the rows of `metrics.jsonl` as a table, for spreadsheets, pandas and `trackio.import_csv`.
//!
//! The table is a function of `metrics.jsonl`: cells are the texts of its numbers, and a run that goes on makes the table
//! anew from what its resumed log holds. A metric that appears late (`eval_...`) adds a column: the file is then written
//! again as a whole, so that it always has one header that fits every row.

use super::{MetricSink, StepMetrics, TelemetryError};
use crate::io::{IoError, write_atomic};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// `metrics.csv` beside a `metrics.jsonl`.
#[derive(Debug)]
pub struct CsvSink {
    path: PathBuf,
    log: PathBuf,
    /// How much of the log is in the table.
    log_bytes: u64,
    columns: Vec<String>,
    /// Open at its end; `None` before the first row.
    file: Option<File>,
}

impl CsvSink {
    /// Makes the table of what `log`, a `metrics.jsonl` that is already cut to its checkpoint, holds.
    pub fn open(path: &Path, log: &Path) -> Result<Self, TelemetryError> {
        let mut sink =
            Self { path: path.to_owned(), log: log.to_owned(), log_bytes: 0, columns: Vec::new(), file: None };
        sink.rewrite()?;
        Ok(sink)
    }

    /// Adds the rows that the log has got since the last call.
    fn follow(&mut self) -> Result<(), IoError> {
        let text = read_from(&self.log, self.log_bytes)?;
        let rows = rows(&text);
        let is_known = |name: &String| self.columns.contains(name);
        match &mut self.file {
            Some(file) if rows.iter().flatten().all(|(name, _)| is_known(name)) => {
                let lines: String = rows.iter().map(|row| line(&self.columns, row)).collect();
                file.write_all(lines.as_bytes()).map_err(IoError::of("write", &self.path))?;
                self.log_bytes += text.len() as u64;
                Ok(())
            }
            _ => self.rewrite(),
        }
    }

    fn rewrite(&mut self) -> Result<(), IoError> {
        let text = read_from(&self.log, 0)?;
        let rows = rows(&text);
        self.columns = vec!["step".to_owned(), TIMESTAMP.to_owned()];
        for (name, _) in rows.iter().flatten() {
            if !self.columns.contains(name) {
                self.columns.push(name.clone());
            }
        }
        write_atomic(&self.path, |file| {
            let header: Vec<String> = self.columns.iter().map(|name| cell(name)).collect();
            writeln!(file, "{}", header.join(","))?;
            rows.iter().try_for_each(|row| file.write_all(line(&self.columns, row).as_bytes()))
        })?;
        self.file = Some(File::options().append(true).open(&self.path).map_err(IoError::of("open", &self.path))?);
        self.log_bytes = text.len() as u64;
        Ok(())
    }
}

impl MetricSink for CsvSink {
    /// Takes over what `metrics.jsonl`, which comes first, has of the step: so both say the same to the digit.
    fn log(&mut self, _step: u64, _metrics: &StepMetrics) -> Result<(), TelemetryError> {
        Ok(self.follow()?)
    }

    fn flush(&mut self) -> Result<(), TelemetryError> {
        let Some(file) = &self.file else { return Ok(()) };
        Ok(file.sync_data().map_err(IoError::of("flush to disk", &self.path))?)
    }
}

/// The column of the time; `trackio.import_csv` knows this name.
const TIMESTAMP: &str = "timestamp";

/// The whole lines of the log after its first `bytes`; nothing where there is no log yet.
fn read_from(log: &Path, bytes: u64) -> Result<String, IoError> {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(bytes))?;
        file.read_to_end(&mut text)
    });
    match read {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(IoError::of("read", log)(error)),
        _ => {}
    }
    text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    Ok(String::from_utf8_lossy(&text).into_owned())
}

type Row = Vec<(String, String)>;

/// Names and texts of each line: `time` as a timestamp, null as nothing. A line that is no object has no row.
fn rows(text: &str) -> Vec<Row> {
    let parse = |line: &str| match serde_json::from_str::<Members>(line) {
        Ok(Members(members)) => Some(members.into_iter().map(|(name, value)| column(name, value.get())).collect()),
        Err(error) => {
            tracing::warn!("a line of metrics.jsonl cannot be read and is not in metrics.csv: {error}");
            None
        }
    };
    text.lines().filter_map(parse).collect()
}

fn column(name: String, value: &str) -> (String, String) {
    match (name.as_str(), value) {
        ("time", _) => (TIMESTAMP.to_owned(), timestamp(value)),
        (_, "null") => (name, String::new()),
        _ => (name, value.to_owned()),
    }
}

/// Unix seconds as RFC 3339, to the microsecond.
fn timestamp(secs: &str) -> String {
    let micros = secs.parse::<f64>().ok().map(|secs| (secs * 1e6).round() as i64);
    let time = micros.and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    time.map_or_else(String::new, |time| time.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string())
}

fn line(columns: &[String], row: &Row) -> String {
    let values: HashMap<&str, &str> = row.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let cells: Vec<String> =
        columns.iter().map(|name| values.get(name.as_str()).map_or_else(String::new, |value| cell(value))).collect();
    cells.join(",") + "\n"
}

/// Text as a cell, in quotes where a comma, a quote or a line break would be taken for the table's own (RFC 4180).
fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// The members of an object in order, the values as they are written: a number that is parsed may change its last digit.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::super::JsonlSink;
    use super::*;
    use std::fs::read_to_string;

    struct Place {
        dir: tempfile::TempDir,
        jsonl: JsonlSink,
        csv: CsvSink,
    }

    impl Place {
        fn new() -> Self {
            Self::reopen(tempfile::tempdir().unwrap(), 0)
        }

        /// As a run that goes on does it.
        fn reopen(dir: tempfile::TempDir, keep_bytes: u64) -> Self {
            let log = dir.path().join("metrics.jsonl");
            let jsonl = JsonlSink::open(&log, keep_bytes).unwrap();
            let csv = CsvSink::open(&dir.path().join("metrics.csv"), &log).unwrap();
            Self { dir, jsonl, csv }
        }

        fn log(&mut self, step: u64, values: &[(&str, f64)]) {
            let mut metrics = StepMetrics::new();
            for (name, value) in values {
                metrics.gauge(name, *value);
            }
            self.jsonl.log(step, &metrics).unwrap();
            self.csv.log(step, &metrics).unwrap();
        }

        /// The table without its times, which must be there.
        fn table(&self) -> Vec<String> {
            let text = read_to_string(self.dir.path().join("metrics.csv")).unwrap();
            assert!(text.ends_with('\n'));
            let without_time = |line: &str| {
                let mut cells: Vec<&str> = line.split(',').collect();
                let time = cells.remove(1);
                assert!(time == TIMESTAMP || time.ends_with("+00:00"), "{time}");
                cells.join(",")
            };
            text.lines().map(without_time).collect()
        }
    }

    #[test]
    fn a_late_column_is_in_the_header_and_empty_before() {
        let mut place = Place::new();
        assert_eq!(place.table(), ["step"]);
        place.log(1, &[("loss", 0.1 + 0.2)]);
        place.log(2, &[("loss", f64::NAN)]);
        place.log(3, &[("loss", 7.038_531e-26), ("eval_accuracy", 0.5)]);
        place.log(4, &[("eval_accuracy", 1.0)]);
        let expected = ["step,loss,eval_accuracy", "1,0.30000000000000004,", "2,,", "3,7.038531e-26,0.5", "4,,1.0"];
        assert_eq!(place.table(), expected);
        let header = read_to_string(place.dir.path().join("metrics.csv")).unwrap();
        assert!(header.starts_with("step,timestamp,loss,"), "{header}");
    }

    /// Killed in the middle of a row, and with steps that the checkpoint does not know.
    #[test]
    fn a_run_that_goes_on_has_the_table_of_its_log() {
        let mut place = Place::new();
        place.log(1, &[("loss", 1.0)]);
        let saved = place.jsonl.bytes();
        place.log(2, &[("loss", 9.0), ("kl", 9.0)]);
        let file = place.csv.file.as_mut().unwrap();
        file.write_all(b"3,2026-").unwrap();

        let mut place = Place::reopen(place.dir, saved);
        assert_eq!(place.table(), ["step,loss", "1,1.0"]);
        place.log(2, &[("loss", 0.5)]);
        assert_eq!(place.table(), ["step,loss", "1,1.0", "2,0.5"]);
    }

    #[test]
    fn names_may_hold_commas_and_quotes() {
        assert_eq!(cell("rewards/a, \"b\"/mean"), "\"rewards/a, \"\"b\"\"/mean\"");
        assert_eq!(timestamp("1795193412.25"), "2026-11-20T16:50:12.250000+00:00");
        assert_eq!(timestamp("null"), "");
    }
}
