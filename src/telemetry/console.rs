//! What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere. All of it on stderr.
//!
//! A closed or full stderr never disturbs the run: what cannot be shown is dropped.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use super::summary::duration;
use super::{MetricSink, StepMetrics, TelemetryError};
use crate::env;

/// The bars of the process. Log lines go through the same object, so that they do not tear the bars apart.
pub(super) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Writes to stderr above any live bar; give it to `tracing_subscriber`'s `with_writer`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bars().suspend(|| {
            // A log line that nobody can read is no reason to stop a run.
            let _ = io::stderr().write_all(bytes);
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Shows the progress of a run.
#[derive(Debug)]
pub struct Console {
    total_steps: u64,
    logging_steps: u64,
    first_step: u64,
    started: Instant,
    /// `None` where stderr is no terminal.
    bars: Option<Bars>,
}

#[derive(Debug)]
struct Bars {
    steps: ProgressBar,
    rollout: ProgressBar,
}

impl Console {
    /// For a run of `total_steps` steps that starts (or resumes) after `steps_done`. A terminal gets a bar; anything
    /// else one line each `logging_steps` steps.
    #[must_use]
    pub fn new(total_steps: u64, steps_done: u64, logging_steps: u64) -> Self {
        let is_terminal = io::stderr().is_terminal() && env::can_redraw();
        let bars = is_terminal.then(|| Bars::new(total_steps, steps_done));
        Self { total_steps, logging_steps: logging_steps.max(1), first_step: steps_done, started: Instant::now(), bars }
    }

    /// Shows how many of the step's completions are done, where there is a terminal.
    pub fn rollout(&self, done: u64, total: u64) {
        if let Some(bars) = &self.bars {
            bars.rollout.set_length(total);
            bars.rollout.set_position(done);
        }
    }

    /// Prints a text on a line of its own, above the bars.
    pub fn message(&self, text: &str) {
        // `LogWriter` never fails.
        let _ = LogWriter.write_all(format!("{text}\n").as_bytes());
    }

    /// Prints a text that the model wrote after `step`, above the bars.
    pub fn sample(&self, step: u64, text: &str) {
        self.message(&quoted(step, text));
    }

    /// Takes the bars off the screen.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.rollout.finish_and_clear();
            bars.steps.finish_and_clear();
        }
    }

    fn eta_secs(&self, step: u64) -> Option<f64> {
        let done = step.saturating_sub(self.first_step);
        let left = self.total_steps.saturating_sub(step);
        (done > 0).then(|| self.started.elapsed().as_secs_f64() / done as f64 * left as f64)
    }
}

impl MetricSink for Console {
    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TelemetryError> {
        if let Some(bars) = &self.bars {
            bars.steps.set_position(step);
            bars.steps.set_message(figures(metrics) + &eta(self.eta_secs(step)));
            bars.rollout.reset();
        } else if step.is_multiple_of(self.logging_steps) || step == self.total_steps {
            self.message(&line(step, self.total_steps, metrics, self.eta_secs(step)));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TelemetryError> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Bars {
    fn new(total_steps: u64, steps_done: u64) -> Self {
        let steps = bars().add(ProgressBar::new(total_steps).with_position(steps_done));
        steps.set_style(style("{bar:30} step {pos}/{len}  {msg}"));
        steps.enable_steady_tick(Duration::from_millis(500));
        let rollout = bars().add(ProgressBar::new(0));
        rollout.set_style(style("{bar:30} completions {pos}/{len}"));
        Self { steps, rollout }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; the default is only for a mistake in them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The few numbers that tell how a run goes, by the metric names of `metrics.jsonl`.
fn figures(metrics: &StepMetrics) -> String {
    let shown: [(&str, &str, usize, &str); 9] = [
        ("reward", "reward", 3, ""),
        ("completions/mean_length", "length", 1, ""),
        ("loss", "loss", 4, ""),
        ("accuracy", "accuracy", 3, ""),
        ("kl", "kl", 4, ""),
        ("grad_norm", "grad_norm", 3, ""),
        ("eval_accuracy", "eval_accuracy", 3, ""),
        ("eval_loss", "eval_loss", 4, ""),
        ("perf/tokens_per_sec", "", 0, " tok/s"),
    ];
    let parts = shown.iter().filter_map(|(name, label, digits, unit)| {
        let value = metrics.value(name)?;
        Some(format!("{label} {value:.digits$}{unit}").trim().to_owned())
    });
    parts.collect::<Vec<_>>().join("  ")
}

/// A text with a bar before each line. Control characters are escaped: a model may write any of them.
fn quoted(step: u64, text: &str) -> String {
    let mut shown = format!("after step {step} the model writes:\n  | ");
    for c in text.trim_matches('\n').chars() {
        match c {
            '\n' => shown.push_str("\n  | "),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// One readable line for logs without a terminal.
fn line(step: u64, total_steps: u64, metrics: &StepMetrics, eta_secs: Option<f64>) -> String {
    format!("step {step}/{total_steps}  {}{}", figures(metrics), eta(eta_secs))
}

/// The time left; nothing before the first step of this process, when there is nothing to judge by.
fn eta(secs: Option<f64>) -> String {
    secs.map_or_else(String::new, |secs| format!("  eta {}", duration(secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_the_figures_that_there_are() {
        let mut metrics = StepMetrics::new();
        metrics.gauge("perf/tokens_per_sec", 1234.4);
        metrics.gauge("reward", 0.53125);
        metrics.gauge("completions/mean_length", 18.25);
        metrics.gauge("loss", f64::NAN);
        let text = line(12, 40, &metrics, Some(83.0));
        assert_eq!(text, "step 12/40  reward 0.531  length 18.2  loss NaN  1234 tok/s  eta 1m 23s");
    }

    #[test]
    fn a_sample_cannot_steer_the_terminal() {
        assert_eq!(quoted(7, "\na\n\u{1b}[2Jb\rc"), "after step 7 the model writes:\n  | a\n  | \\u{1b}[2Jb\\rc");
    }
}
