//! Writes the scores that a reward model gives here, for `scripts/check_reward_model.py` to compare with what
//! transformers gives.
//!
//!     cargo run --release --example score_texts -- MODEL_FOLDER TEXTS.jsonl [DEVICE] > scores.json
//!
//! Each line of the file has a `prompt` (a text, or a list of messages) and a `completion`. `DEVICE` is cpu (the default)
//! or cuda; everything is computed in f32.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use candle_core::DType;
use candlewick::data::{RowKind, RowsConfig, load_rows};
use candlewick::device::{self, Compute, DeviceKind};
use candlewick::reward::{ModelReward, RewardInput};
use candlewick::text::Prompt;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, texts, rest @ ..] = arguments.as_slice() else {
        return Err("usage: score_texts MODEL_FOLDER TEXTS.jsonl [DEVICE]".into());
    };
    let device = match rest.first().map(String::as_str) {
        Some("cuda") => device::open(DeviceKind::Cuda)?,
        _ => device::open(DeviceKind::Cpu)?,
    };
    let reward = ModelReward::load(Path::new(folder), &Compute { device, dtype: DType::F32 })?;
    let rows = load_rows(Path::new(texts), &RowsConfig { kind: RowKind::Completion, ..RowsConfig::default() })?.rows;
    let inputs = rows.iter().map(|row| RewardInput {
        prompt: row.prompt.last_text(),
        messages: match &row.prompt {
            Prompt::Messages(messages) => Some(messages),
            Prompt::Text(_) => None,
        },
        completion: row.completion().unwrap_or_default(),
        completion_ids: &[],
        columns: &row.columns,
        line: row.place.number(),
    });
    let scores = reward.score_all(&inputs.collect::<Vec<_>>())?;
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &scores)?;
    writeln!(stdout)?;
    Ok(())
}
