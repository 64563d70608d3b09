//! `candlewick completions`: what a shell needs to complete arguments.

use super::{Cli, Failure, print};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::process::ExitCode;

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  source <(candlewick completions bash)\n  \
    candlewick completions fish > ~/.config/fish/completions/candlewick.fish")]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Runs the verb.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "candlewick", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
