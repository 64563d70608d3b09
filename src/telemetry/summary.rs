//! The table at the end of a run: what was evaluated before and after, where the model is, what to do next.

use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one evaluation found. Completions are graded, a text is predicted: what does not apply is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalFigures {
    /// Share of samples that are right, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::io::exact_f64::optional")]
    pub accuracy: Option<f64>,
    /// Mean reward over the samples.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::io::exact_f64::optional")]
    pub mean_reward: Option<f64>,
    /// Mean negative log-likelihood of a token, nats.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::io::exact_f64::optional")]
    pub loss: Option<f64>,
    /// How many samples, or tokens of the text.
    pub num_samples: usize,
}

impl EvalFigures {
    /// Of graded completions.
    #[must_use]
    pub fn graded(accuracy: f64, mean_reward: f64, num_samples: usize) -> Self {
        Self { accuracy: Some(accuracy), mean_reward: Some(mean_reward), num_samples, ..Self::default() }
    }

    /// Of pairs, of which the share `accuracy` was ranked right.
    #[must_use]
    pub fn ranked(accuracy: f64, num_pairs: usize) -> Self {
        Self { accuracy: Some(accuracy), num_samples: num_pairs, ..Self::default() }
    }

    /// Of a text whose `num_tokens` tokens were predicted.
    #[must_use]
    pub fn of_text(loss: f64, num_tokens: usize) -> Self {
        Self { loss: Some(loss), num_samples: num_tokens, ..Self::default() }
    }

    /// `exp(loss)`.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        self.loss.map(f64::exp)
    }

    /// The figure by which checkpoints are compared: the mean reward, else the loss, else the accuracy.
    #[must_use]
    pub fn metric(&self) -> Option<f64> {
        self.mean_reward.or(self.loss).or(self.accuracy)
    }

    /// Whether this is better than an evaluation of the same kind whose [`EvalFigures::metric`] was `other`.
    #[must_use]
    pub fn is_better_than(&self, other: f64) -> bool {
        match (self.mean_reward, self.loss) {
            (Some(reward), _) => reward > other,
            (None, Some(loss)) => loss < other,
            (None, None) => self.accuracy.is_some_and(|accuracy| accuracy > other),
        }
    }
}

/// How a figure is written, where there is one.
type Show = fn(&EvalFigures) -> Option<String>;

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
    /// The folder with the final model, or of a run that was stopped with the last checkpoint.
    pub model: PathBuf,
    /// The next command worth trying.
    pub next_command: Option<String>,
}

impl Summary {
    /// The table as text, with a newline at the end of each line.
    #[must_use]
    pub fn render(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let shown: [(&str, Show); 4] = [
            ("accuracy", |figures| Some(format!("{:.1} %", figures.accuracy? * 100.0))),
            ("mean reward", |figures| Some(format!("{:.3}", figures.mean_reward?))),
            ("validation loss", |figures| Some(format!("{:.4}", figures.loss?))),
            ("perplexity", |figures| Some(format!("{:.3}", figures.perplexity()?))),
        ];
        rows.extend(shown.into_iter().filter_map(|(name, show)| Some((name, self.change(show)?))));
        if let Some(figures) = self.after.or(self.before) {
            let what = if figures.loss.is_some() { "tokens" } else { "samples" };
            rows.push(("evaluated on", format!("{} {what}", figures.num_samples)));
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

    fn change(&self, show: Show) -> Option<String> {
        match (self.before.as_ref().and_then(show), self.after.as_ref().and_then(show)) {
            (Some(before), Some(after)) => Some(format!("{before} -> {after}")),
            (Some(before), None) => Some(format!("{before} (before)")),
            (None, after) => after,
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
        let summary = Summary {
            before: Some(EvalFigures::graded(0.512, 0.512, 500)),
            after: Some(EvalFigures::graded(0.98, 0.98, 500)),
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
    fn the_table_of_a_text_has_losses_in_place_of_accuracies() {
        let mut summary = Summary {
            before: Some(EvalFigures::of_text(8f64.ln(), 4000)),
            after: Some(EvalFigures::of_text(2f64.ln(), 4000)),
            steps: 3,
            secs: 1.0,
            model: "out".into(),
            next_command: None,
        };
        let expected = "  validation loss  2.0794 -> 0.6931
  perplexity       8.000 -> 2.000
  evaluated on     4000 tokens
  steps            3 in 1s
  model            out
";
        assert_eq!(summary.render(), expected);
        summary.after = None;
        assert!(summary.render().contains("perplexity       8.000 (before)\n"), "{}", summary.render());
    }

    #[test]
    fn more_reward_and_less_loss_are_better() {
        assert!(EvalFigures::graded(0.0, 0.5, 1).is_better_than(0.4));
        assert!(!EvalFigures::graded(1.0, 0.5, 1).is_better_than(0.5));
        assert!(EvalFigures::of_text(0.5, 1).is_better_than(0.6));
        assert!(!EvalFigures::of_text(f64::NAN, 1).is_better_than(0.6));
        assert!(
            EvalFigures::ranked(0.75, 4).is_better_than(0.5) && EvalFigures::ranked(0.75, 4).metric() == Some(0.75)
        );
        assert!(!EvalFigures::default().is_better_than(0.0));
    }

    /// What a version before wrote is read, and graded figures are written as that version wrote them.
    #[test]
    fn saved_figures_keep_their_form() {
        let saved = r#"{"accuracy":0.5,"mean_reward":0.25,"num_samples":8}"#;
        let figures: EvalFigures = serde_json::from_str(saved).unwrap();
        assert_eq!(figures, EvalFigures::graded(0.5, 0.25, 8));
        assert_eq!(serde_json::to_string(&figures).unwrap(), saved);
        let text = serde_json::to_string(&EvalFigures::of_text(0.1 + 0.2, 8)).unwrap();
        assert_eq!(text, r#"{"loss":0.30000000000000004,"num_samples":8}"#);
        assert_eq!(serde_json::from_str::<EvalFigures>(&text).unwrap(), EvalFigures::of_text(0.1 + 0.2, 8));
    }

    #[test]
    fn durations_are_short() {
        let cases = [(0.2, "0s"), (59.4, "59s"), (60.0, "1m 00s"), (7620.0, "2h 07m"), (f64::NAN, "0s")];
        for (secs, expected) in cases {
            assert_eq!(duration(secs), expected);
        }
    }
}
