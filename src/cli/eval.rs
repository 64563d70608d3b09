//! `candlewick eval`: a model on a JSONL set.

use super::sampling::SamplingArgs;
use super::{Failure, print};
use candlewick::eval::Estimate;
use candlewick::recipe::{EvaluateOptions, Evaluation, evaluate};
use candlewick::rollout::{Observer, RolloutProgress};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Evaluate a model on a JSONL set.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick eval output/quickstart --data data/math_tasks_eval.jsonl\n  \
    candlewick eval Qwen/Qwen2.5-0.5B-Instruct --data my.jsonl --num-samples 8 --temperature 1 --output results")]
pub struct EvalArgs {
    /// Model folder or Hub id.
    model: String,
    /// JSONL file with the rows.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Completions of each prompt; above 1, pass@k is computed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_samples: u32,
    /// Evaluate the first N rows only.
    #[arg(long, value_name = "N")]
    num_rows: Option<NonZeroUsize>,
    /// Write a results file and the samples into this folder.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Column with the prompt.
    #[arg(long, value_name = "NAME", default_value = "prompt")]
    prompt_column: String,
    /// Column with the answer.
    #[arg(long, value_name = "NAME", default_value = "answer")]
    answer_column: String,
    /// Completions that decode together; 0: as many as fit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    slots: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
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
    let mut settings = args.sampling.settings(&args.model);
    settings.prompt_column.clone_from(&args.prompt_column);
    settings.answer_column.clone_from(&args.answer_column);
    settings.rollout_slots = args.slots;
    let options = EvaluateOptions {
        data: args.data.clone(),
        num_samples: args.num_samples as usize,
        num_rows: args.num_rows.map(NonZeroUsize::get),
        output: args.output.clone(),
        rewards: None,
    };
    candlewick::device::join_threads(settings.threads)?;
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} completions, {eta} left") {
        bar.set_style(style);
    }
    let evaluation = evaluate(&settings, &options, &mut Bar(bar.clone()));
    bar.finish_and_clear();
    let evaluation = evaluation?;
    let text = if args.json { format!("{:#}\n", object(&evaluation)) } else { table(args, &evaluation) };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn object(evaluation: &Evaluation) -> serde_json::Value {
    let figures = &evaluation.figures;
    let by_k = |values: &[(usize, Estimate)]| {
        values.iter().map(|(k, estimate)| (k.to_string(), json!(estimate.value))).collect::<serde_json::Map<_, _>>()
    };
    json!({
        "accuracy": figures.accuracy.value,
        "accuracy_stderr": figures.accuracy.stderr,
        "mean_reward": figures.mean_reward.map(|estimate| estimate.value),
        "num_samples": figures.num_samples,
        "num_prompts": figures.num_prompts,
        "pass_at_k": by_k(&figures.pass_at_k),
        "pass_hat_k": by_k(&figures.pass_hat_k),
        "mean_completion_tokens": figures.mean_completion_tokens,
        "clipped_ratio": figures.clipped_ratio,
        "results": evaluation.files.as_ref().map(|files| &files.results),
        "samples": evaluation.files.as_ref().map(|files| &files.samples),
    })
}

fn table(args: &EvalArgs, evaluation: &Evaluation) -> String {
    let figures = &evaluation.figures;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let shown = |estimate: &Estimate| match estimate.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", estimate.value),
        None => format!("{:.4}", estimate.value),
    };
    line("model", args.model.clone());
    line("samples", format!("{} of {} prompts", figures.num_samples, figures.num_prompts));
    line("accuracy", shown(&figures.accuracy));
    if let Some(reward) = &figures.mean_reward {
        line("mean reward", shown(reward));
    }
    for (k, estimate) in figures.pass_at_k.iter().skip(1) {
        line(&format!("pass@{k}"), shown(estimate));
    }
    line("length", format!("{:.1} tokens on average", figures.mean_completion_tokens));
    line("cut", format!("{:.1} % by the length limit", 100.0 * figures.clipped_ratio));
    if let Some(files) = &evaluation.files {
        line("results", files.results.display().to_string());
        line("samples", files.samples.display().to_string());
    }
    text
}
