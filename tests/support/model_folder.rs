//! Small model folders made on the spot.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;

use candlewick::model::{ModelConfig, init_weights};
use safetensors::tensor::{Dtype, TensorView};

/// A Qwen2-type model of two layers with 2,024 parameters; the head is tied.
pub const CONFIG: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2",
  "vocab_size": 11,
  "hidden_size": 12,
  "intermediate_size": 10,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "num_key_value_heads": 1,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000.0,
  "tie_word_embeddings": true,
  "hidden_act": "silu",
  "torch_dtype": "float32"
}
"#;

/// One tensor as bytes in a file.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

pub fn config() -> ModelConfig {
    ModelConfig::parse(CONFIG, Path::new("config.json")).unwrap()
}

/// The f32 tensors of [`CONFIG`].
pub fn tensors() -> Vec<Stored> {
    init_weights(&config(), 7)
        .into_iter()
        .map(|tensor| Stored {
            name: tensor.name,
            dtype: Dtype::F32,
            shape: tensor.shape,
            data: tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
        .collect()
}

/// The bytes of a safetensors file.
pub fn serialize(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors.iter().map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}
