//! `candlewick data`: make data files.

use super::{Failure, print};
use candlewick::data::{ArithmeticConfig, Operator, Split, write_arithmetic};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Make data files.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Debug, Subcommand)]
enum DataVerb {
    /// Write sums with their answers, one JSON object a line.
    ///
    /// The splits `train` and `eval` share no pair of operands, whatever the other arguments are.
    #[command(after_help = "Example:\n  candlewick data arithmetic sums.jsonl --rows 500 --split eval --seed 1")]
    Arithmetic(ArithmeticArgs),
}

#[derive(Debug, Args)]
struct ArithmeticArgs {
    /// The file to write; one that exists is replaced.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Number of rows.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rows: usize,
    /// Which of the two disjoint parts of all questions.
    #[arg(long, value_enum, default_value = "train")]
    split: SplitName,
    /// Largest operand; the smallest is 0.
    #[arg(long, value_name = "N", default_value_t = 99)]
    max_operand: u32,
    /// The operators: `+`, `-` or both.
    #[arg(long, value_name = "OPS", default_value = "+-", allow_hyphen_values = true)]
    operators: String,
    /// Decides which questions are drawn, and their order.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draw questions again once all have been drawn.
    #[arg(long)]
    repeat: bool,
    /// Text of a prompt.
    #[arg(long, value_name = "TEXT", default_value = "{a} {op} {b} =")]
    prompt_template: String,
    /// Text of a completion, with `{answer}`, for supervised fine-tuning; of several each row gets one. Repeatable.
    #[arg(long = "completion-template", value_name = "TEXT")]
    completion_templates: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Eval,
}

/// Runs the verb.
pub fn run(args: DataArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        DataVerb::Arithmetic(args) => {
            let config = ArithmeticConfig {
                rows: args.rows,
                max_operand: args.max_operand,
                operators: Operator::parse_all(&args.operators)?,
                split: match args.split {
                    SplitName::Train => Split::Train,
                    SplitName::Eval => Split::Eval,
                },
                seed: args.seed,
                repeat: args.repeat,
                prompt_template: args.prompt_template,
                completion_templates: args.completion_templates,
            };
            let rows = write_arithmetic(&args.path, &config)?;
            print(&format!("{rows} rows written to {}\n", args.path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
