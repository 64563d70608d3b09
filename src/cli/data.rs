//! `candlewick data`: make data files, and look at those of a run.

use super::settings::Settings;
use super::{Failure, print};
use candlewick::data::{ArithmeticConfig, Operator, Split, write_arithmetic, write_arithmetic_split};
use candlewick::recipe::preview;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make data files, and look at those of a run.
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
    #[command(after_help = "Examples:\n  candlewick data arithmetic sums.jsonl --rows 500 --split eval --seed 1\n  \
        candlewick data arithmetic train.jsonl --test-file test.jsonl --rows 64000 \\\n    \
        --digits 3 --zero-pad --operators + --prompt-template '{a}{op}{b}=' \\\n    \
        --completion-template '{answer}'\n  \
        candlewick data arithmetic pairs.jsonl --completion-template ' {answer}' --rejected-template ' {wrong}'")]
    Arithmetic(ArithmeticArgs),
    /// Show the first rows of a run as it would see them, and which rows it leaves out.
    ///
    /// The chat template is applied, tokens are counted, and rows come in the order in which the run draws them.
    #[command(after_help = "Example:\n  candlewick data preview configs/quickstart.toml --rows 2 --ids")]
    Preview(Box<PreviewArgs>),
}

#[derive(Debug, Args)]
struct PreviewArgs {
    #[command(flatten)]
    settings: Settings,
    /// Rows to show.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// Show token ids too.
    #[arg(long)]
    ids: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
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
    #[arg(long, value_enum, default_value = "train", conflicts_with = "test_file")]
    split: SplitName,
    /// Largest operand; the smallest is 0.
    #[arg(long, value_name = "N", default_value_t = 99)]
    max_operand: u32,
    /// The operands have up to this many digits: 3 is `--max-operand 999`.
    #[arg(long, value_name = "N", conflicts_with = "max_operand", value_parser = clap::value_parser!(u32).range(1..=9))]
    digits: Option<u32>,
    /// Write operands with leading zeros, as many digits as the largest has; answers stay as they are.
    #[arg(long)]
    zero_pad: bool,
    /// A second file, which gets a share of the rows; no pair of operands stands in both.
    #[arg(long, value_name = "FILE")]
    test_file: Option<PathBuf>,
    /// Share of the rows that the test file gets.
    #[arg(long, value_name = "X", default_value_t = 0.1, requires = "test_file")]
    test_fraction: f64,
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
    /// Text of a worse completion: rows are then pairs, with `chosen` and `rejected`. `{wrong}` is a wrong answer near the
    /// right one; of several templates each row gets one. Repeatable.
    #[arg(long = "rejected-template", value_name = "TEXT", requires = "completion_templates")]
    rejected_templates: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Eval,
}

/// Runs the verb.
pub fn run(args: DataArgs) -> Result<ExitCode, Failure> {
    match args.verb {
        DataVerb::Preview(args) => {
            let mut layers = args.settings.layers();
            layers.must_find_data = true;
            let preview = preview(&layers.resolve()?.config, args.rows)?;
            print(&if args.json { format!("{:#}\n", json!(preview)) } else { preview.render(args.ids) })?;
        }
        DataVerb::Arithmetic(args) => {
            let config = ArithmeticConfig {
                rows: args.rows,
                max_operand: args.digits.map_or(args.max_operand, |digits| 10_u32.pow(digits) - 1),
                zero_pad: args.zero_pad,
                operators: Operator::parse_all(&args.operators)?,
                split: match args.split {
                    SplitName::Train => Split::Train,
                    SplitName::Eval => Split::Eval,
                },
                seed: args.seed,
                repeat: args.repeat,
                prompt_template: args.prompt_template,
                completion_templates: args.completion_templates,
                rejected_templates: args.rejected_templates,
            };
            let Some(test_file) = args.test_file else {
                let rows = write_arithmetic(&args.path, &config)?;
                // What goes to stdout are the rows and nothing else.
                if !args.path.starts_with("/dev") {
                    print(&format!("{rows} rows written to {}\n", args.path.display()))?;
                }
                return Ok(ExitCode::SUCCESS);
            };
            let (train, test) = write_arithmetic_split(&args.path, &test_file, args.test_fraction, &config)?;
            print(&format!(
                "{train} rows written to {}\n{test} rows written to {}\n",
                args.path.display(),
                test_file.display()
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
