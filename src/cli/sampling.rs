//! The arguments of the verbs that sample from a finished model.

use candlewick::config::{DeviceKind, RunConfig};
use clap::Args;

/// How tokens are drawn, and where the model runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Sampling temperature; 0 takes the most likely token.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative, allow_negative_numbers = true)]
    temperature: f64,
    /// Keep the most likely tokens whose probabilities add up to this much.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true)]
    top_p: f64,
    /// Keep this many of the most likely tokens; 0 keeps all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Keep tokens at least this likely relative to the most likely one.
    #[arg(long, value_name = "X", value_parser = unit, allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Make tokens that occurred already less likely; 1 is off.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// Longest completion, in tokens, 1 or more [default: 512].
    #[arg(long, value_name = "N")]
    max_completion_length: Option<usize>,
    /// A text that ends a completion. May be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Names every random draw [default: 42].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A system message in front of the prompt; it goes through the chat template.
    #[arg(long = "system", value_name = "TEXT")]
    system_prompt: Option<String>,
    /// Chat template: the path of a Jinja file, or the template itself; the model's own where it is left out.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<String>,
    /// Branch, tag or commit of a Hub id.
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// auto, cpu or cuda [default: auto].
    #[arg(long, value_name = "NAME", value_parser = device)]
    device: Option<DeviceKind>,
    /// CPU threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Allow no network access.
    #[arg(long)]
    offline: bool,
}

fn device(name: &str) -> Result<DeviceKind, String> {
    match name {
        "auto" => Ok(DeviceKind::Auto),
        "cpu" => Ok(DeviceKind::Cpu),
        "cuda" => Ok(DeviceKind::Cuda),
        _ => Err("expected auto, cpu or cuda".into()),
    }
}

/// A finite number for which `holds` is true.
fn number(text: &str, holds: impl Fn(f64) -> bool, range: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && holds(*value));
    value.ok_or_else(|| format!("expected a number {range}"))
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "from 0 up")
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "above 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "above 0 and at most 1")
}

fn unit(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "from 0 to 1")
}

impl SamplingArgs {
    /// The arguments as settings of `model`; what they leave open is as in `base`. How tokens are drawn is said by the
    /// arguments alone, since training samples in another way than a finished model is used.
    pub fn settings(&self, model: &str, base: RunConfig) -> RunConfig {
        RunConfig {
            model: model.to_owned(),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            max_completion_length: self.max_completion_length.unwrap_or(base.max_completion_length).max(1),
            // Prompts are bounded by the model's context alone.
            max_prompt_length: usize::MAX,
            stop: if self.stop.is_empty() { base.stop } else { self.stop.clone() },
            seed: self.seed.unwrap_or(base.seed),
            system_prompt: self.system_prompt.clone().or(base.system_prompt),
            chat_template: self.chat_template.clone().or(base.chat_template),
            revision: self.revision.clone(),
            device: self.device.unwrap_or(base.device),
            threads: self.threads.map(usize::from).or(base.threads),
            offline: self.offline || base.offline,
            ..base
        }
    }
}
