//! `candlewick eval`: models on a JSONL set, side by side.

use super::sampling::SamplingArgs;
use super::{Failure, print};
use candlewick::config::{Layers, Override, RunConfig};
use candlewick::data::Source;
use candlewick::error::{Diagnose, Exit};
use candlewick::eval::{Column, CompareOptions, Comparison, Estimate, Evaluated, Perplexity, compare, labels};
use candlewick::recipe::{EvaluateOptions, Perplexities, evaluate_models, perplexities};
use candlewick::rollout::{Observer, RolloutProgress};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Evaluate models on a JSONL set, side by side.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick eval output/quickstart --data data/math_tasks_eval.jsonl\n  \
    candlewick eval data/starter output/quickstart --config configs/quickstart.toml\n  \
    candlewick eval Qwen/Qwen2.5-0.5B-Instruct --data my.jsonl --num-samples 8 --temperature 1 --output results")]
pub struct EvalArgs {
    /// Model folders or Hub ids.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// File with the rows: JSON Lines, JSON array or Parquet [default: the rows that the configuration evaluates on].
    #[arg(long, value_name = "FILE", required_unless_present_any = ["config", "text"])]
    data: Option<PathBuf>,
    /// Text file whose perplexity is told; without rows, that alone.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Configuration files of a run (TOML), for its rewards, columns, system prompt, lengths; other arguments win.
    /// How a run draws its tokens is not taken over.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// A setting in place of the configuration's: KEY=VALUE, as in `eval_grader=reward`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Name of a model in the table, one a model in their order [default: the folder's].
    #[arg(long = "label", value_name = "NAME")]
    labels: Vec<String>,
    /// Completions of each prompt; above 1, pass@k is computed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_samples: u32,
    /// Evaluate the first N rows only.
    #[arg(long, value_name = "N")]
    num_rows: Option<NonZeroUsize>,
    /// Show the first N prompts with the first completion of each model.
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
    /// Tell the share of this character in the completions.
    #[arg(long, value_name = "CHAR")]
    letter: Option<char>,
    /// Write a results file and the samples of each model into this folder.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Column with the prompt [default: prompt].
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// Column with the answer [default: answer].
    #[arg(long, value_name = "NAME")]
    answer_column: Option<String>,
    /// Completions that decode together; 0: as many as fit [default: 0].
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
enum EvalArgsError {
    #[error("{labels} labels for {models} models")]
    Labels { labels: usize, models: usize },
    #[error("{}: there is no `eval_file` to evaluate on", config.display())]
    NoData { config: PathBuf },
}

impl Diagnose for EvalArgsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Labels { .. } => "Give --label once for each model, in their order, or leave it out.".into(),
            Self::NoData { .. } => "Name a JSONL file with --data.".into(),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// A bar over the completions, where stderr is a terminal.
struct Bar(ProgressBar);

impl Observer for Bar {
    fn progress(&mut self, progress: RolloutProgress) {
        self.0.set_length(progress.completions as u64);
        self.0.set_position(progress.completions_done as u64);
    }
}

/// Runs the verb.
pub fn run(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let settings = settings(args)?;
    let labels = match (&args.labels[..], &args.models[..]) {
        // One model needs no short name.
        ([], [model]) => vec![model.clone()],
        ([], models) => labels(models),
        (given, models) if given.len() == models.len() => given.to_vec(),
        (given, models) => return Err(EvalArgsError::Labels { labels: given.len(), models: models.len() }.into()),
    };
    let data = match (&args.data, settings.eval_source()?, &args.text) {
        (Some(data), ..) => Some(data.into()),
        (None, Some(source), _) => Some(source),
        (None, None, Some(_)) => None,
        (None, None, None) => {
            return Err(EvalArgsError::NoData { config: args.config.last().cloned().unwrap_or_default() }.into());
        }
    };
    candlewick::device::join_threads(settings.threads)?;
    // The quick part first: what is wrong with the text shows before the completions are sampled.
    let perplexities = match &args.text {
        Some(text) => Some(perplexities(&settings, &args.models, text)?),
        None => None,
    };
    let comparison = match &data {
        Some(data) => Some(comparison(args, &settings, data, &labels)?),
        None => None,
    };
    let text = if args.json {
        format!("{:#}\n", object(args, &labels, comparison.as_ref(), perplexities.as_ref()))
    } else {
        let mut text = comparison.map_or_else(String::new, |comparison| comparison.render());
        if let (Some(path), Some(perplexities)) = (&args.text, &perplexities) {
            text.push_str(if text.is_empty() { "" } else { "\n" });
            text.push_str(&render_perplexities(path, &labels, perplexities));
        }
        text
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Evaluates the models on the rows of `data`.
fn comparison(args: &EvalArgs, settings: &RunConfig, data: &Source, labels: &[String]) -> Result<Comparison, Failure> {
    let options = EvaluateOptions {
        data: data.clone(),
        num_samples: args.num_samples as usize,
        num_rows: args.num_rows.map(NonZeroUsize::get),
        output: args.output.clone(),
        rewards: None,
    };
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} completions, {eta} left") {
        bar.set_style(style);
    }
    let evaluations = evaluate_models(settings, &args.models, &options, &mut Bar(bar.clone()));
    bar.finish_and_clear();
    let evaluations = evaluations?;
    let evaluated: Vec<Evaluated<'_>> = evaluations
        .iter()
        .zip(labels)
        .map(|(evaluation, label)| Evaluated {
            label,
            figures: &evaluation.figures,
            samples: &evaluation.samples,
            files: evaluation.files.as_ref(),
        })
        .collect();
    Ok(compare(&evaluated, CompareOptions { num_shown: args.show, letter: args.letter }))
}

/// The perplexity of each model, a line each.
fn render_perplexities(path: &Path, labels: &[String], found: &Perplexities) -> String {
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut text = format!("perplexity of {}\n", path.display());
    for (label, of_model) in labels.iter().zip(&found.of_models) {
        let Perplexity { perplexity, loss, num_tokens } = of_model;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {label:<width$}  {perplexity:.3} (loss {loss:.4} over {num_tokens} tokens)");
    }
    if found.tokenizers_differ {
        text.push_str("  the tokenizers differ: these figures do not compare\n");
    }
    text
}

/// The settings of the configuration files, where there are any, with the arguments over them.
fn settings(args: &EvalArgs) -> Result<RunConfig, Failure> {
    let base = if args.config.is_empty() {
        RunConfig::default()
    } else {
        let mut layers = Layers::from_files(args.config.iter().cloned());
        layers.overrides = args.set.iter().map(|text| Override::parse(text)).collect();
        layers.resolve()?.config
    };
    let mut settings = args.sampling.settings(args.models.first().map_or("", String::as_str), base);
    if let Some(column) = &args.prompt_column {
        settings.prompt_column.clone_from(column);
    }
    if let Some(column) = &args.answer_column {
        settings.answer_column.clone_from(column);
    }
    settings.rollout_slots = args.slots.unwrap_or(settings.rollout_slots);
    Ok(settings)
}

/// One model's object; of several, one object with all of them.
fn object(
    args: &EvalArgs,
    labels: &[String],
    comparison: Option<&Comparison>,
    perplexities: Option<&Perplexities>,
) -> Value {
    let one = |i: usize| {
        let mut object = Map::new();
        object.insert("model".into(), json!(args.models[i]));
        object.insert("label".into(), json!(labels[i]));
        if let Some(comparison) = comparison {
            object.extend(model_members(i, comparison));
        }
        if let Some(perplexities) = perplexities {
            let Perplexity { perplexity, loss, num_tokens } = perplexities.of_models[i];
            object.insert("perplexity".into(), json!(perplexity));
            object.insert("perplexity_loss".into(), json!(loss));
            object.insert("perplexity_tokens".into(), json!(num_tokens));
        }
        Value::Object(object)
    };
    let mut objects: Vec<Value> = (0..labels.len()).map(one).collect();
    if objects.len() == 1 {
        return objects.remove(0);
    }
    json!({ "models": objects, "tokenizers_differ": perplexities.map(|found| found.tokenizers_differ) })
}

/// What was found of a model, as members of its object.
fn model_members(index: usize, comparison: &Comparison) -> Map<String, Value> {
    let column = &comparison.columns[index];
    let figures = &column.figures;
    let by_k = |values: &[(usize, Estimate)]| {
        values.iter().map(|(k, estimate)| (k.to_string(), json!(estimate.value))).collect::<Map<_, _>>()
    };
    let rewards: Map<String, Value> = figures.rewards.iter().map(|(name, mean)| (name.clone(), json!(mean))).collect();
    let shown = comparison.shown.iter().map(|shown| {
        let completion = shown.completions[index].as_ref();
        json!({
            "prompt": shown.prompt,
            "completion": completion.map(|shown| &shown.completion),
            "is_correct": completion.map(|shown| shown.is_correct),
        })
    });
    let members = json!({
        "accuracy": figures.accuracy.value,
        "accuracy_stderr": figures.accuracy.stderr,
        "mean_reward": figures.mean_reward.map(|estimate| estimate.value),
        "mean_reward_stderr": figures.mean_reward.and_then(|estimate| estimate.stderr),
        "rewards": rewards,
        "num_samples": figures.num_samples,
        "num_prompts": figures.num_prompts,
        "pass_at_k": by_k(&figures.pass_at_k),
        "pass_hat_k": by_k(&figures.pass_hat_k),
        "mean_completion_tokens": figures.mean_completion_tokens,
        "clipped_ratio": figures.clipped_ratio,
        "reward_distribution": reward_distribution(comparison, column),
        "answers": answers(column),
        "text": column.text,
        "shown": shown.collect::<Vec<_>>(),
        "results": column.files.as_ref().map(|files| &files.results),
        "samples": column.files.as_ref().map(|files| &files.samples),
    });
    members.as_object().cloned().unwrap_or_default()
}

fn reward_distribution(comparison: &Comparison, column: &Column) -> Value {
    let bins = comparison.bins.iter().zip(&column.reward_counts);
    let bins = bins.map(|(bin, count)| json!({ "low": bin.low, "high": bin.high, "count": count }));
    json!({ "bins": bins.collect::<Vec<_>>(), "none": column.num_unscored })
}

fn answers(column: &Column) -> Value {
    let common = column.answers.common.iter().map(|(answer, count)| json!({ "answer": answer, "count": count }));
    json!({
        "common": common.collect::<Vec<_>>(),
        "different": column.answers.num_distinct,
        "none": column.answers.num_none,
    })
}
