//! What a run reports: typed metrics, the files they go to, the terminal, and loud warnings.
//!
//! Owns the formats of `metrics.jsonl` and `completions.jsonl`, TensorBoard's event files and what is drawn on stderr. It is told numbers and
//! texts and computes none of them; the trainer decides when to log.

mod console;
mod jsonl;
mod metrics;
mod summary;
mod tensorboard;
mod transfer;
mod watch;

pub use console::{Console, LogWriter};
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
}

impl Diagnose for TelemetryError {
    fn hint(&self) -> Option<String> {
        let Self::Io(error) = self;
        error.hint()
    }

    fn exit(&self) -> Exit {
        let Self::Io(error) = self;
        error.exit()
    }
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
