//! `config.json` of Hugging Face -> [`ModelConfig`]: what the decoder, the weights and the KV cache are built from.
//!
//! Reads both layouts of the rotary settings (`rope_theta` + `rope_scaling`, and `rope_parameters`) and applies the
//! defaults of the families' configuration classes. Everything is checked before anything is allocated; all problems
//! of a file are reported together. Says which tensors a model has, but reads none (`weights`).

use std::path::Path;

use super::config_checks::Reader;
use super::error::{ConfigProblem, ModelError};

/// The largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A supported model family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    /// Every family, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The name in `architectures`.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name in `model_type`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How the rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth blend between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// How a tensor starts when a model is trained from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// N(0, `initializer_range`^2).
    Normal,
    Ones,
    Zeros,
}

/// One tensor of a model: its literal Hugging Face name, its shape, its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

/// The numbers that define a decoder.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a yes or no of its own in config.json")]
pub struct ModelConfig {
    pub family: Family,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K; H is a multiple of it.
    pub num_key_value_heads: usize,
    /// E; even.
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// The longest sequence, in tokens: the model's limit, or its sliding window where one is in force and shorter.
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Biases on `q_proj`, `k_proj`, `v_proj`.
    pub qkv_bias: bool,
    /// Bias on `o_proj`.
    pub out_bias: bool,
    /// Biases on `gate_proj`, `up_proj`, `down_proj`.
    pub mlp_bias: bool,
    /// RMS norm over each head's q and k before the rotation.
    pub qk_norm: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// What a person should be told about this model: settings that are cut down or not used.
    pub notices: Vec<String>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::NotAFolder`], [`ModelError::MissingFile`], [`ModelError::Json`], or [`ModelError::Config`] with
    /// every problem of the file.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        if !folder.is_dir() {
            return Err(ModelError::NotAFolder { path: folder.to_owned() });
        }
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(ModelError::MissingFile { folder: folder.to_owned(), file: "config.json".into() });
        }
        Self::parse(&super::json::read_text(&path, MAX_CONFIG_BYTES)?, &path)
    }

    /// Reads the text of a `config.json`; `path` only names it in messages.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let value = super::json::parse(text)
            .map_err(|error| ModelError::Json { path: path.to_owned(), message: error.to_string() })?;
        let failed = |problems| ModelError::Config { path: path.to_owned(), problems };
        let Some(object) = value.as_object() else {
            return Err(failed(vec![ConfigProblem::NotAnObject]));
        };
        Reader::new(object).read().map_err(failed)
    }

    /// The rotary frequencies of a head, in radians a position, in f32 as transformers has them.
    ///
    /// They equal torch's to the last bit or its neighbour: torch rounds its vectorised power a little differently.
    ///
    /// Default: `theta^(-2i/E)`. Llama 3: section "Llama3" of transformers' `modeling_rope_utils.py`.
    ///
    /// # Shapes
    /// `[E/2]`
    #[must_use]
    pub fn rope_inv_freq(&self) -> Vec<f32> {
        let base = self.rope_theta as f32;
        let frequencies = (0..self.head_dim).step_by(2).map(|i| {
            let exponent = i as f32 / self.head_dim as f32;
            // The power is taken in f64 and rounded once: the f32 value nearest to the true one.
            1.0 / (f64::from(base).powf(f64::from(exponent)) as f32)
        });
        match self.rope_scaling {
            RopeScaling::None => frequencies.collect(),
            RopeScaling::Linear { factor } => frequencies.map(|frequency| frequency / factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let context = original_max_position_embeddings as f64;
                let longest = (context / low_freq_factor) as f32;
                let shortest = (context / high_freq_factor) as f32;
                frequencies
                    .map(|frequency| {
                        let wavelength = std::f64::consts::TAU as f32 / frequency;
                        if wavelength > longest {
                            return frequency / factor as f32;
                        }
                        if wavelength < shortest {
                            return frequency;
                        }
                        let smooth = (context as f32 / wavelength - low_freq_factor as f32)
                            / (high_freq_factor - low_freq_factor) as f32;
                        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                    })
                    .collect()
            }
        }
    }

    /// Every tensor of the model in checkpoint order: the embedding, the layers, the norm, the head unless it is tied.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut specs = Vec::new();
        let mut add =
            |name: String, shape: &[usize], init| specs.push(TensorSpec { name, shape: shape.to_vec(), init });
        add("model.embed_tokens.weight".into(), &[self.vocab_size, hidden], Init::Normal);
        for layer in 0..self.num_hidden_layers {
            let mut linear = |name: &str, outputs: usize, inputs: usize, bias: bool| {
                add(format!("model.layers.{layer}.{name}.weight"), &[outputs, inputs], Init::Normal);
                if bias {
                    add(format!("model.layers.{layer}.{name}.bias"), &[outputs], Init::Zeros);
                }
            };
            linear("self_attn.q_proj", queries, hidden, self.qkv_bias);
            linear("self_attn.k_proj", keys, hidden, self.qkv_bias);
            linear("self_attn.v_proj", keys, hidden, self.qkv_bias);
            linear("self_attn.o_proj", hidden, queries, self.out_bias);
            linear("mlp.gate_proj", inner, hidden, self.mlp_bias);
            linear("mlp.up_proj", inner, hidden, self.mlp_bias);
            linear("mlp.down_proj", hidden, inner, self.mlp_bias);
            let mut norm = |name: &str, width| {
                add(format!("model.layers.{layer}.{name}.weight"), &[width], Init::Ones);
            };
            if self.qk_norm {
                norm("self_attn.q_norm", self.head_dim);
                norm("self_attn.k_norm", self.head_dim);
            }
            norm("input_layernorm", hidden);
            norm("post_attention_layernorm", hidden);
        }
        add("model.norm.weight".into(), &[hidden], Init::Ones);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Normal);
        }
        specs
    }

    /// The number of trainable values; a tied head counts once.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum()
    }
}
