//! The command line: one file a verb, each a clap struct and a library call.
//!
//! Owns arguments, help texts and what goes to stdout and stderr. Data goes to stdout, everything else to stderr. No
//! verb has logic of its own: what one can do, a library user can.

mod checkpoint;
mod completions;
mod config;
mod data;
mod doctor;
mod eval;
mod failure;
mod generate;
mod merge;
mod push;
mod recipes;
mod report;
mod sampling;
mod settings;
mod train;
mod validate;

pub use failure::Failure;

use candlewick::env::{log_filter, wants_color};
use candlewick::telemetry::LogWriter;
use clap::{ArgAction, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Fine-tune Hugging Face language models by reinforcement, on candle.
#[derive(Debug, Parser)]
#[command(name = "candlewick", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log warnings and errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Train(Box<train::TrainArgs>),
    Eval(Box<eval::EvalArgs>),
    Generate(generate::GenerateArgs),
    Merge(merge::MergeArgs),
    Push(push::PushArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    #[command(name = "ls")]
    List(recipes::ListArgs),
    #[command(name = "cp")]
    Copy(recipes::CopyArgs),
    Validate(validate::ValidateArgs),
    Report(report::ReportArgs),
    Config(config::ConfigArgs),
    Data(data::DataArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
}

/// Parses the arguments and runs the verb.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Failure> {
    let cli = match Cli::try_parse_from(with_dashes(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed pipe is no reason to complain.
            let _ = error.print();
            return Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)));
        }
    };
    start_logging(cli.verbose, cli.quiet);
    match cli.verb {
        Verb::Train(args) => train::run(&args),
        Verb::Eval(args) => eval::run(&args),
        Verb::Generate(args) => generate::run(&args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Push(args) => push::run(&args),
        Verb::Checkpoint(args) => checkpoint::run(&args),
        Verb::List(args) => recipes::list(&args),
        Verb::Copy(args) => recipes::copy(&args),
        Verb::Validate(args) => validate::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Config(args) => config::run(&args),
        Verb::Data(args) => data::run(args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Completions(args) => completions::run(&args),
    }
}

/// Flags written as settings are (`--learning_rate`), the way other trainers spell them, become `--learning-rate`.
fn with_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_flag = true;
    let spelled = args.into_iter().map(|arg| match arg.to_str() {
        Some("--") => {
            is_flag = false;
            arg
        }
        Some(text) if is_flag && text.starts_with("--") => match text.split_once('=') {
            Some((flag, value)) => format!("{}={value}", flag.replace('_', "-")).into(),
            None => text.replace('_', "-").into(),
        },
        _ => arg,
    });
    spelled.collect()
}

/// Log lines go to stderr. `RUST_LOG` wins over `-v` and `-q`.
fn start_logging(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (_, 0) => "candlewick=info,warn",
        (_, 1) => "candlewick=debug,info",
        _ => "trace",
    };
    // At its lowest levels the HTTP client dumps what goes over the wire, and with it the access token.
    let filter = log_filter().unwrap_or_else(|| level.to_owned()) + ",ureq=warn,ureq_proto=warn";
    let filter = EnvFilter::new(filter);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(LogWriter);
    // Fails only where a subscriber is set already, which is as good.
    let _ = log.without_time().with_target(false).with_ansi(wants_color(std::io::stderr().is_terminal())).try_init();
}

/// Writes `text` to stdout.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_in_flags_are_dashes_but_values_are_left_alone() {
        let args = ["x", "--learning_rate", "a_b", "--set=a_b=c_d", "--", "--x_y"].map(OsString::from);
        let expected = ["x", "--learning-rate", "a_b", "--set=a_b=c_d", "--", "--x_y"].map(OsString::from);
        assert_eq!(with_dashes(args), expected);
    }
}
