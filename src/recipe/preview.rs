//! The first rows as a run would see them: rendered, tokenised, in the order in which they are drawn; and what is left out.

use super::RecipeError;
use super::parts::{LoadedModel, PromptLimit, check_device, example_config};
use super::reward_model;
use super::rows::TrainingRows;
use super::start::{Start, TrainingData};
use crate::batch::blocks;
use crate::config::{Algorithm, RunConfig};
use crate::data::{Row, RowOrder};
use crate::text::{PromptRenderer, ScoredRenderer};
use crate::trainer::{LeftOut, PreparedPrompts, prepare_examples, prepare_pairs, prepare_ranked_pairs};
use serde::Serialize;
use std::fmt::Write;

/// Rows left out that are listed; the rest is counted.
const MAX_LISTED: usize = 20;

/// The first rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The word of the setting.
    pub algorithm: &'static str,
    /// Where the rows are from.
    pub sources: Vec<PreviewSource>,
    /// Rows, or blocks of a text, that the run uses.
    pub num_rows: usize,
    /// The first of them, in the order in which the run draws them.
    pub rows: Vec<PreviewRow>,
    /// How many rows are left out.
    pub num_left_out: usize,
    /// The first of those, with the reason.
    pub left_out: Vec<PreviewLeftOut>,
}

/// A source of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewSource {
    /// The file, or the data set with its split.
    pub name: String,
    /// The commit of the Hub.
    pub commit: Option<String>,
    /// Rows of it that the run uses.
    pub num_rows: usize,
    pub weight: f64,
}

/// A row as the run sees it. What an algorithm does not know is None.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PreviewRow {
    /// File and line, or row.
    pub place: String,
    /// The text that the model reads; of `reward` empty: it reads the prompt as the beginning of each text of a pair.
    pub prompt: String,
    pub prompt_tokens: usize,
    pub prompt_ids: Vec<u32>,
    /// The answer column, as rewards see it.
    pub answer: Option<String>,
    /// What is learned.
    pub completion: Option<PreviewText>,
    /// The better completion of a pair; of `reward` with its prompt.
    pub chosen: Option<PreviewText>,
    /// The worse completion of a pair; of `reward` with its prompt.
    pub rejected: Option<PreviewText>,
}

/// A text and its tokens, the end token included.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewText {
    pub text: String,
    pub tokens: usize,
    pub ids: Vec<u32>,
}

/// A row that the run does not use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewLeftOut {
    pub place: String,
    pub reason: String,
}

/// Looks at the training data as a run would, and shows the first `num_rows` rows. No weights are read.
///
/// # Errors
/// Whatever is wrong with the settings, the model's configuration and tokenizer, or the data.
pub fn preview(settings: &RunConfig, num_rows: usize) -> Result<Preview, RecipeError> {
    settings.check()?;
    // What cannot be computed cannot be trained either, and says so in the same words.
    check_device(settings)?;
    let Start { model, data, .. } = Start::new(settings)?;
    match data {
        TrainingData::Rows(rows) => of_rows(settings, &model, rows, num_rows),
        TrainingData::Text(corpus) => {
            let all: Vec<&[u32]> = blocks(&corpus.train, settings.block_size).collect();
            let mut order = RowOrder::new(settings.seed, all.len(), settings.shuffle);
            let show = |position: usize| {
                let ids = all[order.row_at(position as u64)];
                let (place, prompt) = (settings.train_file.clone(), model.tokenizer.decode_with_special(ids)?);
                let (prompt_tokens, prompt_ids) = (ids.len(), ids.to_vec());
                Ok(PreviewRow { place, prompt, prompt_tokens, prompt_ids, ..PreviewRow::default() })
            };
            let rows = (0..num_rows.min(all.len())).map(show).collect::<Result<Vec<_>, RecipeError>>()?;
            let (name, num_rows) = (settings.train_file.clone(), all.len());
            Ok(Preview {
                algorithm: settings.algorithm.name(),
                sources: vec![PreviewSource { name, commit: None, num_rows, weight: 1.0 }],
                num_rows,
                rows,
                num_left_out: 0,
                left_out: Vec::new(),
            })
        }
    }
}

fn of_rows(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingRows,
    num_shown: usize,
) -> Result<Preview, RecipeError> {
    let is_ranked = settings.algorithm == Algorithm::Reward;
    let ranked = is_ranked.then(|| reward_model::reading(settings, model)).transpose()?;
    let viewer = Viewer { settings, model, renderer: model.renderer(settings), ranked };
    let (mut kept, mut sizes, mut sources) = (Vec::new(), Vec::new(), Vec::new());
    let (mut left_out, mut num_left_out) = (Vec::new(), 0);
    for part in data.parts {
        let before = kept.len();
        num_left_out += part.data.skipped;
        let skipped = part.data.skipped_faults.into_iter();
        left_out
            .extend(skipped.map(|bad| PreviewLeftOut { place: bad.place.to_string(), reason: bad.fault.to_string() }));
        for row in part.data.rows {
            match viewer.view(&row)? {
                Ok(seen) => kept.push(seen),
                Err(LeftOut { place, why }) => {
                    num_left_out += 1;
                    left_out.push(PreviewLeftOut { place: place.to_string(), reason: why.to_string() });
                }
            }
        }
        let num_rows = kept.len() - before;
        sizes.push((num_rows, part.weight));
        let name = part.data.source.display().to_string();
        sources.push(PreviewSource { name, commit: part.commit, num_rows, weight: part.weight });
    }
    left_out.truncate(MAX_LISTED);
    // A run refuses a source of which nothing is left; here the rest is shown.
    sizes.retain(|(rows, _)| *rows > 0);
    let num_rows = kept.len();
    let mut order = RowOrder::mixed(settings.seed, &sizes, settings.shuffle);
    let shown = (0..num_shown.min(num_rows) as u64).map(|position| kept[order.row_at(position)].clone());
    let algorithm = settings.algorithm.name();
    Ok(Preview { algorithm, sources, num_rows, rows: shown.collect(), num_left_out, left_out })
}

/// Sees single rows as the algorithm does.
struct Viewer<'a> {
    settings: &'a RunConfig,
    model: &'a LoadedModel,
    renderer: PromptRenderer,
    /// How the pairs of a reward model are read, where one is trained.
    ranked: Option<(ScoredRenderer, usize)>,
}

impl Viewer<'_> {
    /// The row as the run sees it, or why it is left out.
    fn view(&self, row: &Row) -> Result<Result<PreviewRow, LeftOut>, RecipeError> {
        let limits = || example_config(self.settings, self.model);
        let seen = PreviewRow {
            place: row.place.to_string(),
            answer: row.columns.text(&self.settings.answer_column).map(str::to_owned),
            ..PreviewRow::default()
        };
        let one = std::slice::from_ref(row);
        if self.settings.samples_completions() {
            let limit = PromptLimit::new(self.settings, self.model).tokens();
            let mut prepared = PreparedPrompts::new(one.to_vec(), &self.renderer, limit)?;
            return Ok(match prepared.prompts.pop() {
                Some(prompt) => Ok(PreviewRow {
                    prompt: prompt.text,
                    prompt_tokens: prompt.ids.len(),
                    prompt_ids: prompt.ids,
                    ..seen
                }),
                None => Err(left_out(prepared.left_out, row)),
            });
        }
        if let Some((renderer, max_length)) = &self.ranked {
            let (mut pairs, out) = prepare_ranked_pairs(one, renderer, *max_length)?;
            return Ok(match pairs.pop() {
                Some(pair) => Ok(PreviewRow {
                    chosen: Some(self.text(pair.chosen_ids)?),
                    rejected: Some(self.text(pair.rejected_ids)?),
                    ..seen
                }),
                None => Err(left_out(out, row)),
            });
        }
        if self.settings.algorithm == Algorithm::Dpo {
            let (mut pairs, out) = prepare_pairs(one, &self.renderer, limits())?;
            return Ok(match pairs.pop() {
                Some(pair) => Ok(PreviewRow {
                    chosen: Some(self.text(pair.chosen_ids)?),
                    rejected: Some(self.text(pair.rejected_ids)?),
                    ..self.with_prompt(seen, pair.prompt_ids)?
                }),
                None => Err(left_out(out, row)),
            });
        }
        let (mut examples, out) = prepare_examples(one, &self.renderer, limits())?;
        Ok(match examples.pop() {
            Some(example) => Ok(PreviewRow {
                completion: Some(self.text(example.completion_ids)?),
                ..self.with_prompt(seen, example.prompt_ids)?
            }),
            None => Err(left_out(out, row)),
        })
    }

    fn with_prompt(&self, seen: PreviewRow, ids: Vec<u32>) -> Result<PreviewRow, RecipeError> {
        let PreviewText { text: prompt, tokens: prompt_tokens, ids: prompt_ids } = self.text(ids)?;
        Ok(PreviewRow { prompt, prompt_tokens, prompt_ids, ..seen })
    }

    fn text(&self, ids: Vec<u32>) -> Result<PreviewText, RecipeError> {
        Ok(PreviewText { text: self.model.tokenizer.decode_with_special(&ids)?, tokens: ids.len(), ids })
    }
}

/// The reason for the one row that was looked at.
fn left_out(mut reasons: Vec<LeftOut>, row: &Row) -> LeftOut {
    let unknown = || LeftOut { place: row.place.clone(), why: crate::trainer::Misfit::NothingToLearn };
    reasons.pop().unwrap_or_else(unknown)
}

impl Preview {
    /// The preview for people; token ids with `ids`.
    #[must_use]
    pub fn render(&self, ids: bool) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for source in &self.sources {
            let commit = source.commit.as_ref().map(|commit| format!(" at {commit}")).unwrap_or_default();
            let _ = writeln!(text, "{}{commit}: {} rows, weight {}", source.name, source.num_rows, source.weight);
        }
        for (number, row) in self.rows.iter().enumerate() {
            let _ = writeln!(text, "\n{} {}", number + 1, row.place);
            let is_block = row.completion.is_none() && row.chosen.is_none() && self.algorithm == "pretrain";
            let mut line = |name: &str, content: &str, tokens: Option<(usize, &[u32])>| {
                let count = tokens.map(|(count, _)| format!("  ({count} tokens)")).unwrap_or_default();
                let _ = writeln!(text, "  {name:<11}{content:?}{count}");
                if let Some((_, list)) = tokens.filter(|_| ids) {
                    let _ = writeln!(text, "  {:<11}{list:?}", "");
                }
            };
            let name = if is_block { "block" } else { "prompt" };
            // The pairs of a reward model hold their prompt.
            if self.algorithm != "reward" {
                line(name, &row.prompt, Some((row.prompt_tokens, &row.prompt_ids)));
            }
            if let Some(answer) = &row.answer {
                line("answer", answer, None);
            }
            for (name, shown) in [("completion", &row.completion), ("chosen", &row.chosen), ("rejected", &row.rejected)]
            {
                if let Some(shown) = shown {
                    line(name, &shown.text, Some((shown.tokens, &shown.ids)));
                }
            }
        }
        if self.num_left_out > 0 {
            let _ = writeln!(text, "\nleft out: {} rows", self.num_left_out);
            for row in &self.left_out {
                let _ = writeln!(text, "  {}: {}", row.place, row.reason);
            }
            if self.num_left_out > self.left_out.len() {
                let _ = writeln!(text, "  ... and {} more", self.num_left_out - self.left_out.len());
            }
        }
        text
    }
}
