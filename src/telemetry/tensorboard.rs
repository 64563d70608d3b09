//! TensorBoard event files: scalars, texts of completions, histograms of their rewards.
//!
//! A file is a row of records (`tensorboard/compat/proto` and the TFRecord format): the length as a little-endian u64,
//! its masked CRC-32C, an `Event` as a protocol buffer, its masked CRC-32C. A run that goes on opens a further file;
//! its first event makes TensorBoard forget the steps that are made again.

use super::{CompletionRecord, MetricSink, StepMetrics, TelemetryError};
use crate::io::{IoError, unix_time};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Field numbers of the messages, from TensorFlow's `event.proto` and `summary.proto`.
mod field {
    pub const WALL_TIME: u32 = 1;
    pub const STEP: u32 = 2;
    pub const FILE_VERSION: u32 = 3;
    pub const SUMMARY: u32 = 5;
    pub const SESSION_LOG: u32 = 7;
    /// `SessionLog.status`
    pub const STATUS: u32 = 1;
    /// `Summary.value`
    pub const VALUE: u32 = 1;
    /// `Summary.Value`
    pub const TAG: u32 = 1;
    pub const SIMPLE_VALUE: u32 = 2;
    pub const HISTO: u32 = 5;
    pub const TENSOR: u32 = 8;
    pub const METADATA: u32 = 9;
    /// `SummaryMetadata.plugin_data`, `PluginData.plugin_name`
    pub const PLUGIN_DATA: u32 = 1;
    pub const PLUGIN_NAME: u32 = 1;
    /// `TensorProto`
    pub const DTYPE: u32 = 1;
    pub const TENSOR_SHAPE: u32 = 2;
    pub const STRING_VAL: u32 = 8;
    /// `TensorShapeProto.dim`, `Dim.size`
    pub const DIM: u32 = 2;
    pub const SIZE: u32 = 1;
}

/// `SessionLog.START`
const START: u64 = 1;
/// `DT_STRING`
const STRING: u64 = 7;
/// Bars of a histogram.
const BARS: usize = 20;

/// A protocol buffer that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn number(mut self, field: u32, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn doubles(self, field: u32, values: &[f64]) -> Self {
        let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.bytes(field, &packed)
    }

    fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// An event file of a run.
#[derive(Debug)]
pub struct TensorBoardSink {
    path: PathBuf,
    file: File,
    /// Rewards of the step that completions were last logged for.
    rewards: Option<(u64, Vec<f64>)>,
}

impl TensorBoardSink {
    /// Opens a new event file in `folder` for a run that has made `step` steps.
    ///
    /// # Errors
    /// Fails where it cannot be written.
    pub fn open(folder: &Path, step: u64) -> Result<Self, TelemetryError> {
        std::fs::create_dir_all(folder).map_err(IoError::of("create", folder))?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
        let path =
            folder.join(format!("events.out.tfevents.{:010}.{host}.{}.0", unix_time() as u64, std::process::id()));
        let file = File::create(&path).map_err(IoError::of("create", &path))?;
        let mut sink = Self { path, file, rewards: None };
        sink.write(&event(0).bytes(field::FILE_VERSION, b"brain.Event:2"))?;
        if step > 0 {
            let start = Message::default().number(field::STATUS, START);
            sink.write(&event(step + 1).message(field::SESSION_LOG, &start))?;
        }
        Ok(sink)
    }

    fn write(&mut self, event: &Message) -> Result<(), TelemetryError> {
        let length = (event.0.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.0.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event.0);
        record.extend(masked_crc(&event.0).to_le_bytes());
        Ok(self.file.write_all(&record).map_err(IoError::of("write", &self.path))?)
    }

    fn write_value(&mut self, step: u64, value: &Message) -> Result<(), TelemetryError> {
        let summary = Message::default().message(field::VALUE, value);
        self.write(&event(step).message(field::SUMMARY, &summary))
    }

    /// The histogram of the rewards that were gathered, once their step is over.
    fn write_rewards(&mut self) -> Result<(), TelemetryError> {
        let Some((step, rewards)) = self.rewards.take() else { return Ok(()) };
        let value = Message::default().bytes(field::TAG, b"completions/rewards");
        self.write_value(step, &value.message(field::HISTO, &histogram(&rewards)))
    }
}

impl MetricSink for TensorBoardSink {
    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TelemetryError> {
        self.write_rewards()?;
        let mut summary = Message::default();
        // TensorBoard shows a value that is not finite as a mark.
        for (name, value) in metrics.iter().filter_map(|(name, value)| Some((name, value?))) {
            let value = Message::default().bytes(field::TAG, name.as_bytes()).float(field::SIMPLE_VALUE, value as f32);
            summary = summary.message(field::VALUE, &value);
        }
        self.write(&event(step).message(field::SUMMARY, &summary))
    }

    fn completion(&mut self, record: &CompletionRecord<'_>) -> Result<(), TelemetryError> {
        if self.rewards.as_ref().is_some_and(|(step, _)| *step != record.step) {
            self.write_rewards()?;
        }
        let first = self.rewards.is_none();
        self.rewards.get_or_insert((record.step, Vec::new())).1.extend(record.reward);
        if !first {
            return Ok(());
        }
        // One text a step, the first; Markdown, as TensorBoard reads it.
        let reward = record.reward.map_or_else(|| "none".to_owned(), |reward| reward.to_string());
        let text = format!("{} {}\n\nreward: {reward}", quoted(record.prompt), quoted(record.completion));
        let plugin = Message::default().bytes(field::PLUGIN_NAME, b"text");
        let metadata = Message::default().message(field::PLUGIN_DATA, &plugin);
        let shape = Message::default().message(field::DIM, &Message::default().number(field::SIZE, 1));
        let tensor = Message::default()
            .number(field::DTYPE, STRING)
            .message(field::TENSOR_SHAPE, &shape)
            .bytes(field::STRING_VAL, text.as_bytes());
        let value = Message::default()
            .bytes(field::TAG, b"completions/text")
            .message(field::METADATA, &metadata)
            .message(field::TENSOR, &tensor);
        self.write_value(record.step, &value)
    }

    fn flush(&mut self) -> Result<(), TelemetryError> {
        self.write_rewards()?;
        Ok(self.file.sync_data().map_err(IoError::of("flush to disk", &self.path))?)
    }
}

fn event(step: u64) -> Message {
    Message::default().double(field::WALL_TIME, unix_time()).number(field::STEP, step)
}

/// The text as Markdown code, so that nothing in it is read as a mark.
fn quoted(text: &str) -> String {
    format!("`{}`", text.replace('`', "'").replace('\n', "⏎"))
}

/// The CRC-32C of a part of a record, rotated and shifted, so that a checksum of data with checksums in it is none.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A `HistogramProto`: smallest and largest value, count, sum, sum of squares, upper limits of the bars, their counts.
fn histogram(values: &[f64]) -> Message {
    let fold = |start: f64, join: fn(f64, f64) -> f64| values.iter().copied().fold(start, join);
    let (low, high) = (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max));
    let (limits, counts) = if values.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        let width = ((high - low) / BARS as f64).max(f64::EPSILON * low.abs().max(1.0));
        let mut counts = vec![0.0; BARS];
        for value in values {
            counts[(((value - low) / width) as usize).min(BARS - 1)] += 1.0;
        }
        ((1..=BARS).map(|bar| low + width * bar as f64).collect(), counts)
    };
    Message::default()
        .double(1, if values.is_empty() { 0.0 } else { low })
        .double(2, if values.is_empty() { 0.0 } else { high })
        .double(3, values.len() as f64)
        .double(4, values.iter().sum())
        .double(5, values.iter().map(|value| value * value).sum())
        .doubles(6, &limits)
        .doubles(7, &counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of an event file, their checksums checked.
    fn records(folder: &Path) -> Vec<Vec<u8>> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let bytes: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked_crc(&bytes[at..at + 8]));
            let event = &bytes[at + 12..at + 12 + length];
            assert_eq!(word(at + 12 + length), masked_crc(event));
            found.push(event.to_vec());
            at += 16 + length;
        }
        found
    }

    /// The checksum of the CRC catalogue's check value, masked as TensorFlow does it.
    #[test]
    fn checksums_are_masked_castagnoli() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn varints_have_seven_bits_a_byte() {
        let message = Message::default().number(1, 300).float(2, 0.5);
        assert_eq!(message.0, [0x08, 0xac, 0x02, 0x15, 0, 0, 0, 0x3f]);
    }

    #[test]
    fn a_run_that_goes_on_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", 0.25);
        let mut sink = TensorBoardSink::open(dir.path(), 7).unwrap();
        sink.log(8, &metrics).unwrap();
        sink.flush().unwrap();
        let found = records(dir.path());
        assert_eq!(found.len(), 3);
        assert!(found[0].windows(13).any(|part| part == b"brain.Event:2"));
        // Step 8, then SessionLog { status: START }.
        assert!(found[1].ends_with(&[0x10, 8, 0x3a, 2, 0x08, 1]));
        assert!(found[2].windows(4).any(|part| part == b"loss"));
    }

    #[test]
    fn rewards_of_a_step_are_counted_in_bars() {
        let message = histogram(&[0.0, 1.0, 1.0, 0.5]);
        let counts: f64 = message.0[message.0.len() - 8 * BARS..]
            .chunks(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()))
            .sum();
        assert!((counts - 4.0).abs() < f64::EPSILON);
        assert!(histogram(&[]).0.len() < 60);
    }
}
