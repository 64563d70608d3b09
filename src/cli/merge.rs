//! `candlewick merge`: an adapter and its base model become one model folder.

use super::Failure;
use candlewick::model::SavedDtype;
use candlewick::recipe::merge;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Merge a LoRA adapter into its base model.
///
/// The result is a full model folder; the adapter and the base model stay as they are.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  candlewick merge output/lora merged")]
pub struct MergeArgs {
    /// The adapter: a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) or a Hub id.
    adapter: String,
    /// The folder to write.
    #[arg(value_name = "FOLDER")]
    output: PathBuf,
    /// Number format of the merged weights; that of the base model if left out.
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Use no network: the base model comes from a folder or the local Hub cache.
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

pub fn run(args: &MergeArgs) -> Result<ExitCode, Failure> {
    let dtype = args.dtype.map(|dtype| match dtype {
        Dtype::F32 => SavedDtype::F32,
        Dtype::Bf16 => SavedDtype::Bf16,
        Dtype::F16 => SavedDtype::F16,
    });
    merge(&args.adapter, &args.output, dtype, args.offline)?;
    tracing::info!("the merged model is in {}", args.output.display());
    Ok(ExitCode::SUCCESS)
}
