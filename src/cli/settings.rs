//! The arguments that make a configuration: files, `--set`, and flags for the common settings.

use candlewick::config::{Layers, Override, words_of};
use clap::Args;
use std::path::PathBuf;

/// Declares one optional flag a setting, and the list of those that were given.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident: $value:literal),* $(,)?) => {
        /// Common settings as flags; the others are given by `--set`.
        #[derive(Debug, Args)]
        #[command(next_help_heading = "Settings")]
        pub struct Flags {
            $($(#[$doc])* #[arg(long, value_name = $value, allow_negative_numbers = true)] $name: Option<String>,)*
            /// Continue from a checkpoint: its path, or the newest valid one.
            #[arg(long, value_name = "PATH|auto", num_args = 0..=1, default_missing_value = "auto")]
            resume: Option<String>,
            /// Allow no network access.
            #[arg(long)]
            offline: bool,
        }

        impl Flags {
            fn overrides(&self) -> Vec<Override> {
                let mut given = Vec::new();
                $(if let Some(value) = &self.$name { given.push(flag(stringify!($name), value)); })*
                if let Some(value) = &self.resume {
                    given.push(flag("resume", value));
                }
                if self.offline {
                    given.push(Override { written: "--offline".into(), key: "offline".into(), value: "true".into() });
                }
                given
            }
        }
    };
}

flags! {
    #[arg(help = choice("How the model learns", "algorithm"))]
    algorithm: "NAME",
    /// Model folder or Hub id.
    model: "MODEL",
    /// Branch, tag or commit of a Hub id.
    revision: "REV",
    /// File of the training rows: JSON Lines, JSON array or Parquet; of pretrain a text file.
    train_file: "FILE",
    /// File of the evaluation rows.
    eval_file: "FILE",
    /// Data set on the Hub or in a folder, in place of files.
    dataset_name: "NAME",
    /// Configuration of the data set.
    dataset_config: "NAME",
    /// Split to train on, or a part of it: train[:500].
    dataset_train_split: "SPLIT",
    /// Split to evaluate on.
    dataset_test_split: "SPLIT",
    /// Folder for checkpoints, metrics and the final model.
    output_dir: "DIR",
    /// Names every random draw.
    seed: "N",
    #[arg(help = choice("Where it computes", "device"))]
    device: "NAME",
    #[arg(help = choice("Number format of the computation", "dtype"))]
    dtype: "NAME",
    /// CPU threads.
    threads: "N",
    /// Step size of the optimizer.
    learning_rate: "X",
    /// Weight of the KL divergence to the start model.
    beta: "X",
    /// Sampling temperature.
    temperature: "X",
    /// Completions a prompt.
    num_generations: "N",
    /// Prompts of an optimizer step.
    prompts_per_step: "N",
    /// Longest prompt, in tokens.
    max_prompt_length: "N",
    /// Longest completion, in tokens.
    max_completion_length: "N",
    /// Optimizer steps.
    max_steps: "N",
    /// Passes over the training rows.
    num_train_epochs: "X",
    /// Optimizer steps between checkpoints.
    save_steps: "N",
    /// Optimizer steps between evaluations.
    eval_steps: "N",
    /// Name of the run.
    run_name: "NAME",
}

/// The help of a setting that is a choice of words.
fn choice(meaning: &str, setting: &str) -> String {
    format!("{meaning}: {}", words_of(setting).join(", "))
}

fn flag(name: &str, value: &str) -> Override {
    let written = format!("--{} {value}", name.replace('_', "-"));
    Override { written, key: name.to_owned(), value: value.to_owned() }
}

/// Where the settings of a run come from.
#[derive(Debug, Args)]
pub struct Settings {
    /// Configuration files (TOML); a later one wins over an earlier one.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Any setting: KEY=VALUE, the value as TOML or plain text. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    flags: Flags,
}

impl Settings {
    /// The layers, with this process's environment between files and arguments.
    pub fn layers(&self) -> Layers {
        let mut layers = Layers::from_files(self.files.iter().cloned()).with_process_env();
        layers.overrides = self.set.iter().map(|text| Override::parse(text)).collect();
        layers.overrides.extend(self.flags.overrides());
        layers
    }
}
