//! The table at the end of a run: accuracy before and after, where the model is, what to do next.

use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one evaluation found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalFigures {
    /// Share of samples that are right, 0 to 1.
    #[serde(with = "crate::io::exact_f64")]
    pub accuracy: f64,
    /// Mean reward over the samples.
    #[serde(with = "crate::io::exact_f64")]
    pub mean_reward: f64,
    /// How many samples.
    pub num_samples: usize,
}

/// What the last screen of a run shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Evaluation before the first step, where there was one.
    pub before: Option<EvalFigures>,
    /// Evaluation of the saved model, where there was one.
    pub after: Option<EvalFigures>,
    /// Optimizer steps done.
    pub steps: u64,
    /// Duration of this process' part of the run.
    pub secs: f64,
    /// The folder with the final model.
    pub model: PathBuf,
    /// The next command worth trying.
    pub next_command: Option<String>,
}

impl Summary {
    /// The table as text, with a newline at the end of each line.
    #[must_use]
    pub fn render(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let percent = |figures: &EvalFigures| format!("{:.1} %", figures.accuracy * 100.0);
        let reward = |figures: &EvalFigures| format!("{:.3}", figures.mean_reward);
        if let Some(text) = self.change(percent) {
            rows.push(("accuracy", text));
        }
        if let Some(text) = self.change(reward) {
            rows.push(("mean reward", text));
        }
        if let Some(figures) = self.after.or(self.before) {
            rows.push(("evaluated on", format!("{} samples", figures.num_samples)));
        }
        rows.push(("steps", format!("{} in {}", self.steps, duration(self.secs))));
        rows.push(("model", self.model.display().to_string()));
        if let Some(command) = &self.next_command {
            rows.push(("try next", command.clone()));
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        rows.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<width$}  {value}");
            text
        })
    }

    fn change(&self, show: impl Fn(&EvalFigures) -> String) -> Option<String> {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => Some(format!("{} -> {}", show(before), show(after))),
            (Some(before), None) => Some(format!("{} (before)", show(before))),
            (None, Some(after)) => Some(show(after)),
            (None, None) => None,
        }
    }
}

/// A duration in the two largest units that matter: `42s`, `3m 05s`, `2h 07m`.
pub(super) fn duration(secs: f64) -> String {
    let secs = if secs.is_finite() { secs.max(0.0).round() as u64 } else { 0 };
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m {:02}s", secs / 60, secs % 60),
        _ => format!("{}h {:02}m", secs / 3600, secs / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_before_and_after() {
        let before = EvalFigures { accuracy: 0.512, mean_reward: 0.512, num_samples: 500 };
        let summary = Summary {
            before: Some(before),
            after: Some(EvalFigures { accuracy: 0.98, mean_reward: 0.98, ..before }),
            steps: 60,
            secs: 125.4,
            model: "output/quickstart".into(),
            next_command: Some("candlewick generate output/quickstart \"12 + 7 =\"".into()),
        };
        let expected = "  accuracy      51.2 % -> 98.0 %
  mean reward   0.512 -> 0.980
  evaluated on  500 samples
  steps         60 in 2m 05s
  model         output/quickstart
  try next      candlewick generate output/quickstart \"12 + 7 =\"
";
        assert_eq!(summary.render(), expected);
    }

    #[test]
    fn durations_are_short() {
        let cases = [(0.2, "0s"), (59.4, "59s"), (60.0, "1m 00s"), (7620.0, "2h 07m"), (f64::NAN, "0s")];
        for (secs, expected) in cases {
            assert_eq!(duration(secs), expected);
        }
    }
}
