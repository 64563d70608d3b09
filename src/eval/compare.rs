//! Several models on the same data, side by side: the figures and distributions of each, and the table of them.

use std::fmt::Write;

use super::distribution::{
    AnswerCounts, Bin, TextStatistics, count_answers, count_rewards, reward_bins, text_statistics,
};
use super::{Estimate, EvalFigures, EvalSample, ResultPaths};

/// Answers listed for each model.
const NUM_ANSWERS: usize = 5;
/// Longest piece of a prompt or completion that is shown, in characters.
const EXCERPT: usize = 160;
/// Longest bar of a distribution, in characters.
const BAR: usize = 20;

/// What is compared: one model's evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated<'a> {
    /// The head of its column.
    pub label: &'a str,
    /// Its figures.
    pub figures: &'a EvalFigures,
    /// Its samples; those of a prompt stand together.
    pub samples: &'a [EvalSample],
    /// Its result files, where there are any.
    pub files: Option<&'a ResultPaths>,
}

/// What is shown beside the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompareOptions {
    /// Prompts shown with the first completion of each model.
    pub num_shown: usize,
    /// A character whose share of the text is given.
    pub letter: Option<char>,
}

/// One model's part of a [`Comparison`].
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The head of the column.
    pub label: String,
    /// Accuracy, rewards, pass@k.
    pub figures: EvalFigures,
    /// Samples in each of the comparison's reward bins.
    pub reward_counts: Vec<usize>,
    /// Samples without a reward.
    pub num_unscored: usize,
    /// What the grader read.
    pub answers: AnswerCounts,
    /// The characters of the completions.
    pub text: TextStatistics,
    /// The result files.
    pub files: Option<ResultPaths>,
}

/// A completion among those of other models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCompletion {
    /// The text.
    pub completion: String,
    /// Whether it is right.
    pub is_correct: bool,
}

/// A prompt with the first completion of each model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownPrompt {
    /// The prompt as the first model read it.
    pub prompt: String,
    /// One completion a model; none where its samples lack the row.
    pub completions: Vec<Option<ShownCompletion>>,
}

/// Models side by side. Rewards are counted in the same bins for all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The bins of the reward distributions.
    pub bins: Vec<Bin>,
    /// One a model, in the order given.
    pub columns: Vec<Column>,
    /// The first prompts.
    pub shown: Vec<ShownPrompt>,
    /// Whether there are answers to read at all, by the grader or the data.
    pub has_answers: bool,
    /// The character whose share is given.
    pub letter: Option<char>,
}

/// Puts evaluations side by side.
#[must_use]
pub fn compare(models: &[Evaluated<'_>], options: CompareOptions) -> Comparison {
    let all = || models.iter().flat_map(|model| model.samples);
    let bins = reward_bins(all());
    let columns = models
        .iter()
        .map(|model| {
            let (reward_counts, num_unscored) = count_rewards(model.samples, &bins);
            let texts = model.samples.iter().map(|sample| sample.completion.as_str());
            Column {
                label: model.label.to_owned(),
                figures: model.figures.clone(),
                reward_counts,
                num_unscored,
                answers: count_answers(model.samples, NUM_ANSWERS),
                text: text_statistics(texts, options.letter),
                files: model.files.cloned(),
            }
        })
        .collect();
    Comparison {
        bins,
        columns,
        shown: shown(models, options.num_shown),
        has_answers: all().any(|sample| sample.extracted.is_some() || sample.target.is_some()),
        letter: options.letter,
    }
}

fn shown(models: &[Evaluated<'_>], num_shown: usize) -> Vec<ShownPrompt> {
    let Some(first) = models.first() else { return Vec::new() };
    let of_row = |model: &Evaluated<'_>, row: u64| {
        model
            .samples
            .iter()
            .find(|sample| sample.row_index == row)
            .map(|sample| ShownCompletion { completion: sample.completion.clone(), is_correct: sample.is_correct })
    };
    first
        .samples
        .chunk_by(|a, b| a.row_index == b.row_index)
        .take(num_shown)
        .map(|group| ShownPrompt {
            prompt: group[0].prompt.clone(),
            completions: models.iter().map(|model| of_row(model, group[0].row_index)).collect(),
        })
        .collect()
}

impl Comparison {
    /// The comparison as text, a column a model, with a newline at the end of each line.
    #[must_use]
    pub fn render(&self) -> String {
        let mut rows = self.figure_rows();
        rows.extend(self.text_rows());
        rows.extend(self.reward_rows());
        if self.has_answers {
            rows.extend(self.answer_rows());
        }
        let mut text = aligned(&rows);
        self.write_shown(&mut text);
        text
    }

    fn row(&self, name: impl Into<String>, value: impl Fn(&Column) -> String) -> Row {
        Row { name: name.into(), values: self.columns.iter().map(value).collect() }
    }

    fn figure_rows(&self) -> Vec<Row> {
        let mut rows = vec![self.row("model", |column| column.label.clone())];
        rows.push(self.row("samples", |column| {
            format!("{} of {} prompts", column.figures.num_samples, column.figures.num_prompts)
        }));
        rows.push(self.row("accuracy", |column| shown_estimate(&column.figures.accuracy)));
        if self.columns.iter().any(|column| column.figures.mean_reward.is_some()) {
            rows.push(
                self.row("mean reward", |column| column.figures.mean_reward.as_ref().map_or_else(none, shown_estimate)),
            );
        }
        // A single reward is the mean reward, up to its weight.
        let names = self.columns.first().map_or(&[][..], |column| &column.figures.rewards);
        for (i, (name, _)) in names.iter().enumerate().filter(|_| names.len() > 1) {
            let value = |column: &Column| column.figures.rewards.get(i).and_then(|(_, mean)| *mean);
            rows.push(self.row(format!("  {name}"), |column| value(column).map_or_else(none, |v| format!("{v:.4}"))));
        }
        let ks = self.columns.first().map_or(&[][..], |column| &column.figures.pass_at_k);
        for (k, _) in ks.iter().skip(1) {
            rows.push(self.row(format!("pass@{k}"), |column| {
                let found = column.figures.pass_at_k.iter().find(|(other, _)| other == k);
                found.map_or_else(none, |(_, estimate)| shown_estimate(estimate))
            }));
        }
        rows.push(
            self.row("length", |column| format!("{:.1} tokens on average", column.figures.mean_completion_tokens)),
        );
        rows.push(
            self.row("cut", |column| format!("{:.1} % by the length limit", 100.0 * column.figures.clipped_ratio)),
        );
        if self.columns.iter().any(|column| column.files.is_some()) {
            let path = |value: fn(&ResultPaths) -> &std::path::Path| {
                move |column: &Column| {
                    column.files.as_ref().map_or_else(none, |files| value(files).display().to_string())
                }
            };
            rows.push(self.row("results", path(|files| &files.results)));
            rows.push(self.row("samples", path(|files| &files.samples)));
        }
        rows
    }

    fn text_rows(&self) -> Vec<Row> {
        let percent = |share: Option<f64>, of: &str| {
            share.map_or_else(none, |share| format!("{:.1} % of the {of}", 100.0 * share))
        };
        let mut rows = vec![
            self.row("letters", |column| percent(column.text.letter_share, "characters")),
            self.row("uppercase", |column| percent(column.text.uppercase_share, "letters")),
        ];
        if let Some(letter) = self.letter {
            rows.push(self.row(format!("\"{letter}\""), |column| percent(column.text.given_share, "characters")));
        }
        rows.push(self.row("entropy", |column| {
            column.text.entropy_bits.map_or_else(none, |bits| format!("{bits:.2} bits a character"))
        }));
        rows
    }

    fn reward_rows(&self) -> Vec<Row> {
        let mut rows = vec![heading("reward", self.columns.len())];
        for (i, bin) in self.bins.iter().enumerate() {
            rows.push(self.row(format!("  {}", bin_name(bin)), |column| {
                bar(column.reward_counts[i], column.figures.num_samples)
            }));
        }
        if self.columns.iter().any(|column| column.num_unscored > 0) {
            rows.push(self.row("  none", |column| bar(column.num_unscored, column.figures.num_samples)));
        }
        rows
    }

    fn answer_rows(&self) -> Vec<Row> {
        let mut rows = vec![heading("answers", self.columns.len())];
        let listed = self.columns.iter().map(|column| column.answers.common.len()).max().unwrap_or(0);
        for i in 0..listed {
            rows.push(self.row(format!("  {}", i + 1), |column| {
                column.answers.common.get(i).map_or_else(
                    || format!("{:>5}", none()),
                    |(answer, count)| format!("{count:>5} {}", one_line(answer)),
                )
            }));
        }
        rows.push(self.row("  different", |column| format!("{:>5}", column.answers.num_distinct)));
        rows.push(self.row("  none found", |column| format!("{:>5}", column.answers.num_none)));
        rows
    }

    fn write_shown(&self, text: &mut String) {
        let labels: Vec<&str> = self.columns.iter().map(|column| column.label.as_str()).collect();
        // A single model needs no name here.
        let name = |i: usize| if labels.len() == 1 { "completion" } else { labels[i] };
        let width = (0..labels.len()).map(|i| name(i).chars().count()).max().unwrap_or(0).max("prompt".len());
        for shown in &self.shown {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\n{:<width$}  {:?}", "prompt", excerpt(&shown.prompt, EXCERPT));
            for (i, completion) in shown.completions.iter().enumerate() {
                let value = match completion {
                    Some(completion) => {
                        let verdict = if completion.is_correct { "right" } else { "wrong" };
                        format!("{:?} {verdict}", excerpt(&completion.completion, EXCERPT))
                    }
                    None => none(),
                };
                let _ = writeln!(text, "{:<width$}  {value}", name(i));
            }
        }
    }
}

/// A line of the table: a name, and a value for each model. A heading has a line of space above.
struct Row {
    name: String,
    values: Vec<String>,
}

fn heading(name: &str, columns: usize) -> Row {
    Row { name: format!("\n{name}"), values: vec![String::new(); columns] }
}

/// The rows with their values one below the other.
fn aligned(rows: &[Row]) -> String {
    // As wide as the table of one model always was.
    let name_width = rows.iter().map(|row| row.name.trim_start_matches('\n').chars().count()).max().unwrap_or(0);
    let name_width = (name_width + 2).max(14);
    let columns = rows.iter().map(|row| row.values.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|i| rows.iter().filter_map(|row| row.values.get(i)).map(|value| value.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let name = row.name.trim_start_matches('\n');
        if name.len() < row.name.len() {
            text.push('\n');
        }
        let mut line = format!("{name:<name_width$}");
        for (value, width) in row.values.iter().zip(&widths) {
            let _ = write!(line, "{value:<width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn none() -> String {
    "-".to_owned()
}

fn shown_estimate(estimate: &Estimate) -> String {
    match estimate.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", estimate.value),
        None => format!("{:.4}", estimate.value),
    }
}

fn bin_name(bin: &Bin) -> String {
    let number = |value: f64| format!("{:.3}", value + 0.0).trim_end_matches('0').trim_end_matches('.').to_owned();
    if bin.low.total_cmp(&bin.high).is_eq() {
        number(bin.low)
    } else {
        format!("{} to {}", number(bin.low), number(bin.high))
    }
}

fn bar(count: usize, total: usize) -> String {
    let length = (BAR * count).checked_div(total).unwrap_or(0);
    // What is there shows.
    let length = if count > 0 { length.max(1) } else { 0 };
    format!("{count:>5} {}", "#".repeat(length)).trim_end().to_owned()
}

/// An answer in a cell of the table: without line breaks, and short.
fn one_line(answer: &str) -> String {
    excerpt(&answer.escape_debug().to_string(), 24)
}

/// The first characters of a text; a cut one ends in an ellipsis.
fn excerpt(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compute_figures;
    use super::super::tests::sample;
    use super::*;
    use crate::text::FinishReason;

    fn answering(row: u64, completion: &str, answer: Option<&str>, is_correct: bool) -> EvalSample {
        let cut = if completion.len() > 20 { FinishReason::Length } else { FinishReason::Stop };
        EvalSample {
            prompt: format!("{row} + 1 ="),
            completion: completion.to_owned(),
            extracted: answer.map(str::to_owned),
            finish_reason: cut,
            ..sample(row, is_correct)
        }
    }

    fn baseline() -> Vec<EvalSample> {
        vec![
            answering(0, " 1, since 0 + 1", Some("1"), true),
            answering(0, " One", None, false),
            answering(1, " 2, since 1 + 1 and that is all", Some("1"), false),
            answering(1, " 2", Some("2"), true),
        ]
    }

    fn rendered(models: &[(&str, Vec<EvalSample>)], options: CompareOptions) -> String {
        let names = ["last_integer".to_string()];
        let figures: Vec<_> = models.iter().map(|(_, samples)| compute_figures(samples, &names).unwrap()).collect();
        let evaluated: Vec<_> = models
            .iter()
            .zip(&figures)
            .map(|((label, samples), figures)| Evaluated { label, figures, samples, files: None })
            .collect();
        compare(&evaluated, options).render()
    }

    #[test]
    fn two_models_stand_side_by_side() {
        let tuned = (0..4).map(|i| answering(i / 2, &format!(" {}", i / 2 + 1), Some("2"), true)).collect();
        let options = CompareOptions { num_shown: 2, letter: Some('e') };
        insta::assert_snapshot!(rendered(&[("starter", baseline()), ("tuned", tuned)], options));
    }

    #[test]
    fn one_model_has_its_figures_first() {
        insta::assert_snapshot!(rendered(&[("data/starter", baseline())], CompareOptions::default()));
    }

    #[test]
    fn what_is_missing_is_a_dash() {
        let silent = |row| EvalSample {
            completion: String::new(),
            reward: None,
            rewards: vec![None],
            extracted: None,
            target: None,
            ..sample(row, false)
        };
        let wide = |i| EvalSample { reward: Some(i as f64 / 7.0), extracted: None, target: None, ..sample(i, true) };
        let models = [("silent", vec![silent(0)]), ("wide", (0..15).map(wide).collect())];
        insta::assert_snapshot!(rendered(&models, CompareOptions { num_shown: 1, letter: None }));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(excerpt("abc", 3), "abc");
        assert_eq!(excerpt("äöü", 2), "äö…");
        assert_eq!(one_line("a\nb"), "a\\nb");
    }
}
