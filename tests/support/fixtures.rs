//! The tiny models of `tests/fixtures/hf` and folders made from them.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::path::{Path, PathBuf};

/// One folder of each family, GQA ratios, head sizes and rotary scalings.
pub const FAMILIES: [&str; 6] = ["llama_gqa7", "llama3_scaled", "mistral", "qwen2_tied", "qwen2_untied", "qwen3"];

/// A model with random weights, kept small so that training it takes milliseconds. The vocabulary is that of the
/// fixtures' tokenizer and a few ids more.
pub const TINY_CONFIG: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2",
  "vocab_size": 57,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0,
  "tie_word_embeddings": true,
  "initializer_range": 0.1,
  "hidden_act": "silu",
  "torch_dtype": "float32"
}
"#;

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
}

/// Copies a whole model folder of the fixtures.
pub fn copy_model(name: &str, to: &Path) {
    copy_files(name, to, &["config.json", "generation_config.json", "model.safetensors"]);
    copy_files(name, to, TOKENIZER);
}

/// A folder with [`TINY_CONFIG`] and the fixtures' tokenizer, without weights.
pub fn write_tiny(to: &Path) {
    copy_files("qwen2_tied", to, TOKENIZER);
    fs::write(to.join("config.json"), TINY_CONFIG).unwrap();
}

const TOKENIZER: &[&str] = &["tokenizer.json", "tokenizer_config.json"];

fn copy_files(name: &str, to: &Path, files: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for file in files {
        // Read and write, since a copy would keep a mode that forbids to spoil the file.
        fs::write(to.join(file), fs::read(folder(name).join(file)).unwrap()).unwrap();
    }
}
