//! Writes what candlewick computes from a model folder, for `scripts/check_checkpoint.py` and `scripts/check_folder.py`
//! to compare with what the Hugging Face packages compute from the same folder.
//!
//!     cargo run --release --example dump_outputs -- MODEL_FOLDER DATA.jsonl [NUM_PROMPTS] [DEVICE] > stored.json
//!
//! The folder may be an adapter's, whose base model is found as it says. `DEVICE` is cpu (the default) or cuda; everything is computed in f32.
//!
//! The prompts are the first `NUM_PROMPTS` (20) rows of the data file, read as plain text. Each is prefilled and
//! decoded greedily through the key-value cache, one token at a time, up to 32 tokens or an EOS.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use candle_core::DType;
use candlewick::data::{RowsConfig, load_rows};
use candlewick::device::{self, Compute, DeviceKind};
use candlewick::model::{Decoder, LoadedTensor, load_weights};
use candlewick::ops::attention::Context;
use candlewick::ops::head::logits;
use candlewick::recipe::load_model;
use candlewick::text::{Prompt, PromptRenderer};
use serde_json::{Map, Value, json};

const MAX_NEW_TOKENS: usize = 32;

/// Shape and sums of every tensor, in f64.
fn summarize(tensors: &[LoadedTensor]) -> Map<String, Value> {
    let sum = |tensor: &LoadedTensor, power: i32| tensor.data.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>();
    tensors
        .iter()
        .map(|tensor| {
            let numbers = json!({"shape": tensor.shape, "sum": sum(tensor, 1), "sum_squares": sum(tensor, 2)});
            (tensor.name.clone(), numbers)
        })
        .collect()
}

/// The index of the largest logit; the first of equals, as transformers takes it.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The logits after the prompt's last token, and the greedy completion.
fn complete(model: &Decoder, prompt: &[u32], eos_ids: &[u32]) -> candle_core::Result<(Vec<f32>, Vec<u32>)> {
    let mut cache = model.new_cache(prompt.len() + MAX_NEW_TOKENS)?;
    let mut new_ids = prompt.to_vec();
    let mut completion = Vec::new();
    let mut first_logits = Vec::new();
    let mut position = 0;
    while completion.len() < MAX_NEW_TOKENS {
        let end = position + new_ids.len();
        // Token i of the sequence lives in row i of the cache and sees the rows up to its own.
        let rows: Vec<u32> = (position as u32..end as u32).collect();
        let contexts: Vec<Context> = (position..end).map(|row| Context { prefix: 0..0, own: 0..row + 1 }).collect();
        let hidden = model.forward_cached(&new_ids, &rows, &mut cache, &rows, &contexts)?; // [n, D]
        let last = hidden.narrow(0, new_ids.len() - 1, 1)?.contiguous()?; // [1, D]
        let row = logits(&last, model.head())?.flatten_all()?.to_vec1::<f32>()?; // [V]
        let id = argmax(&row);
        if first_logits.is_empty() {
            first_logits = row;
        }
        completion.push(id);
        if eos_ids.contains(&id) {
            break;
        }
        position = end;
        new_ids = vec![id];
    }
    Ok((first_logits, completion))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, data, rest @ ..] = arguments.as_slice() else {
        return Err("usage: dump_outputs MODEL_FOLDER DATA.jsonl [NUM_PROMPTS] [DEVICE]".into());
    };
    let num_prompts: usize = rest.first().map_or(Ok(20), |text| text.parse())?;
    let device = match rest.get(1).map(String::as_str) {
        Some("cuda") => device::open(DeviceKind::Cuda)?,
        _ => device::open(DeviceKind::Cpu)?,
    };
    let compute = Compute { device, dtype: DType::F32 };
    let loaded = load_model(folder, None, true, None)?;
    let sums = summarize(&load_weights(&loaded.resolved.folder, &loaded.config)?.0);
    let (model, _) = loaded.decoder(&compute, false)?;
    let (tokenizer, eos_ids) = (loaded.tokenizer, loaded.eos_ids);
    let renderer = PromptRenderer::new(tokenizer.clone(), None);

    let mut columns: [Vec<Value>; 5] = Default::default();
    for row in load_rows(Path::new(data), &RowsConfig::default())?.rows.iter().take(num_prompts) {
        let prompt = renderer.render(&Prompt::Text(row.prompt.last_text().to_string()))?;
        let (logits, completion) = complete(&model, &prompt.ids, &eos_ids)?;
        let text = tokenizer.decode(&completion)?;
        let values = [json!(prompt.text), json!(prompt.ids), json!(logits), json!(completion), json!(text)];
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    let [prompts, token_ids, logits_last, greedy_ids, greedy_text] = columns;
    let outputs = json!({
        "prompts": prompts, "token_ids": token_ids, "logits_last": logits_last,
        "greedy_ids": greedy_ids, "greedy_text": greedy_text, "max_new_tokens": MAX_NEW_TOKENS, "tensors": sums,
    });
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &outputs)?;
    writeln!(stdout)?;
    Ok(())
}
