//! `candlewick generate`: continue a prompt.

use super::sampling::SamplingArgs;
use super::{Failure, print};
use candlewick::config::RunConfig;
use candlewick::recipe::{GenerateOptions, generate};
use clap::Args;
use std::process::ExitCode;

/// Continue a prompt; the text streams to standard output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  candlewick generate output/quickstart \"12 + 7 =\"\n  \
    candlewick generate TinyLlama/TinyLlama-1.1B-Chat-v1.0 --chat \"What is 12 + 7?\" --temperature 0.7")]
pub struct GenerateArgs {
    /// Model folder or Hub id.
    model: String,
    /// The prompt.
    prompt: String,
    /// Put the prompt into the model's chat template as a user's turn.
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the verb.
pub fn run(args: &GenerateArgs) -> Result<ExitCode, Failure> {
    let options = GenerateOptions { prompt: args.prompt.clone(), chat: args.chat };
    let mut broken = None;
    let mut show = |text: &str| {
        if broken.is_none() {
            broken = print(text).err();
        }
    };
    let settings = args.sampling.settings(&args.model, RunConfig::default());
    candlewick::device::join_threads(settings.threads)?;
    generate(&settings, &options, &mut show)?;
    match broken {
        Some(failure) => Err(failure),
        None => print("\n").map(|()| ExitCode::SUCCESS),
    }
}
