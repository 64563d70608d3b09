//! `candlewick config`: what a run would use, and what can be set.

use super::settings::Settings;
use super::{Failure, print};
use candlewick::config::reference_page;
use clap::{Args, Subcommand};
use std::process::ExitCode;

/// Show a configuration, or all that can be configured.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check a configuration and print it in full, with the source of each value.
    #[command(after_help = "Example:\n  candlewick config show configs/quickstart.toml --set beta=0.01")]
    Show(Box<ShowArgs>),
    /// Print the page that describes every setting, in Markdown.
    #[command(after_help = "Example:\n  candlewick config reference | less")]
    Reference,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    settings: Settings,
    /// Print one JSON object: a value and its source for each setting.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &ConfigArgs) -> Result<ExitCode, Failure> {
    match &args.verb {
        ConfigVerb::Show(args) => {
            let resolved = args.settings.layers().resolve()?;
            print(&if args.json { format!("{:#}\n", resolved.to_json()) } else { resolved.to_toml() })?;
        }
        ConfigVerb::Reference => print(&reference_page())?,
    }
    Ok(ExitCode::SUCCESS)
}
