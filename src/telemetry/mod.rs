//! What a run reports: typed metrics, the files and trackers they go to, the terminal, and loud warnings.
//!
//! Owns the formats of `metrics.jsonl`, `completions.jsonl` and `metrics.csv`, TensorBoard's event files, what trackers
//! are told and what is drawn on stderr. It is told numbers and texts and computes none of them; the trainer decides when
//! to log.

mod bridge;
mod console;
mod csv;
mod jsonl;
mod metrics;
mod summary;
mod tensorboard;
mod transfer;
mod watch;

pub use bridge::{BridgeError, BridgeLimits, BridgeSettings, BridgeSink};
pub use console::{Console, LogWriter};
pub use csv::CsvSink;
pub use jsonl::{CompletionRecord, CompletionsSink, JsonlSink};
pub use metrics::StepMetrics;
pub use summary::{EvalFigures, Summary};
pub use tensorboard::TensorBoardSink;
pub use transfer::Transfer;
pub use watch::{NonFinite, StepFacts, Warning, Watch};

use crate::error::{Diagnose, Exit};
use crate::io::IoError;

/// Why something could not be reported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// A log file could not be written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A tracker could not be started.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

impl Diagnose for TelemetryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => error.hint(),
            Self::Bridge(error) => error.hint(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Io(error) => error.exit(),
            Self::Bridge(error) => error.exit(),
        }
    }
}

/// How a run ended, for those that show it.
#[derive(Debug, Clone, Copy)]
pub struct RunEnd<'a> {
    /// What the saved model was evaluated to, by the names of `metrics.jsonl`.
    pub results: Option<&'a StepMetrics>,
    /// The exit code of the process.
    pub exit_code: u8,
}

/// Somewhere that the metrics of each step go.
pub trait MetricSink {
    /// Takes the metrics of a step (1-based: the number of optimizer steps done).
    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TelemetryError>;

    /// Takes a completion that the run shows to people.
    fn completion(&mut self, record: &CompletionRecord<'_>) -> Result<(), TelemetryError> {
        let _ = record;
        Ok(())
    }

    /// Makes what was logged durable; called before a checkpoint is committed.
    fn flush(&mut self) -> Result<(), TelemetryError>;

    /// The run is over, finished or interrupted; nothing is logged after this.
    fn end(&mut self, end: &RunEnd<'_>) {
        let _ = end;
    }
}

/// The most memory that this process has had resident, in bytes; `None` where the system does not say.
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn peak_memory_is_plausible() {
        let bytes = super::peak_memory_bytes().unwrap();
        assert!((1 << 20..1 << 42).contains(&bytes), "{bytes}");
    }
}
