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

    /// The name in `architectures` of a model for a task.
    #[must_use]
    pub fn architecture_for(self, task: Task) -> &'static str {
        match (task, self) {
            (Task::CausalLm, family) => family.architecture(),
            (Task::SequenceClassification, Self::Llama) => "LlamaForSequenceClassification",
            (Task::SequenceClassification, Self::Mistral) => "MistralForSequenceClassification",
            (Task::SequenceClassification, Self::Qwen2) => "Qwen2ForSequenceClassification",
            (Task::SequenceClassification, Self::Qwen3) => "Qwen3ForSequenceClassification",
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

/// What the head of a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Task {
    /// The log-probs of the next token: `...ForCausalLM`.
    #[default]
    CausalLm,
    /// One score of a text, read at its last token: `...ForSequenceClassification` with one label, a reward model.
    SequenceClassification,
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
    pub task: Task,
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
    /// Reads `config.json` of a language model's folder.
    ///
    /// # Errors
    /// [`ModelError::NotAFolder`], [`ModelError::MissingFile`], [`ModelError::Json`], or [`ModelError::Config`] with
    /// every problem of the file.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        Self::load_as(folder, Some(Task::CausalLm))
    }

    /// Reads `config.json` of the folder of a model for `task`; `None`: for any task that is known.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn load_as(folder: &Path, task: Option<Task>) -> Result<Self, ModelError> {
        if !folder.is_dir() {
            return Err(ModelError::NotAFolder { path: folder.to_owned() });
        }
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(ModelError::MissingFile { folder: folder.to_owned(), file: "config.json".into() });
        }
        Self::parse_as(&super::json::read_text(&path, MAX_CONFIG_BYTES)?, &path, task)
    }

    /// Reads the text of a language model's `config.json`; `path` only names it in messages.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        Self::parse_as(text, path, Some(Task::CausalLm))
    }

    /// As [`ModelConfig::parse`], of a model for `task`; `None`: for any task that is known.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn parse_as(text: &str, path: &Path, task: Option<Task>) -> Result<Self, ModelError> {
        let value = super::json::parse(text)
            .map_err(|error| ModelError::Json { path: path.to_owned(), message: error.to_string() })?;
        let failed = |problems| ModelError::Config { path: path.to_owned(), problems };
        let Some(object) = value.as_object() else {
            return Err(failed(vec![ConfigProblem::NotAnObject]));
        };
        Reader::new(object, task).read().map_err(failed)
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

    /// Every tensor of the model in checkpoint order: the embedding, the layers, the norm, the head unless it is tied to
    /// the embedding; a score has a head of its own.
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
        match self.task {
            Task::SequenceClassification => add("score.weight".into(), &[1, hidden], Init::Normal),
            Task::CausalLm if self.tie_word_embeddings => {}
            Task::CausalLm => add("lm_head.weight".into(), &[self.vocab_size, hidden], Init::Normal),
        }
        specs
    }

    /// The number of trainable values; a tied head counts once.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ModelConfig {
        ModelConfig::parse(text, Path::new("config.json")).unwrap()
    }

    /// A config of `architecture` with more `keys`.
    fn with(architecture: &str, keys: &str) -> ModelConfig {
        parse(&format!(
            r#"{{"architectures": ["{architecture}"], "vocab_size": 60, "hidden_size": 28, "intermediate_size": 30,
                "num_hidden_layers": 2, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 6{keys}}}"#
        ))
    }

    fn assert_inv_freq(config: &ModelConfig, expected: &[(usize, f32)]) {
        let found = config.rope_inv_freq();
        assert_eq!(found.len(), config.head_dim / 2);
        for (at, value) in expected {
            let distance = found[*at].to_bits().abs_diff(value.to_bits());
            assert!(distance <= 1, "frequency {at}: {} instead of {value}", found[*at]);
        }
    }

    /// The numbers are those of `LlamaRotaryEmbedding(config).inv_freq`, transformers 5.23.0 on torch 2.15.0.
    #[test]
    fn rotary_frequencies_are_those_of_transformers() {
        let llama = |keys: &str| {
            parse(&format!(
                r#"{{"model_type": "llama", "vocab_size": 60, "hidden_size": 256, "intermediate_size": 30,
                    "num_hidden_layers": 2, "num_attention_heads": 2, {keys}}}"#
            ))
        };
        let config = llama(r#""head_dim": 6, "rope_theta": 10000.0"#);
        assert_inv_freq(&config, &[(0, 1.0), (1, 0.046_415_884), (2, 0.002_154_434_3)]);
        let config = llama(r#""rope_theta": 1000000.0"#);
        let far = [(36, 0.000_421_696_5), (37, 0.000_339_820_84), (38, 0.000_273_841_96), (63, 1.240_937_8e-6)];
        assert_inv_freq(&config, &[(0, 1.0), (1, 0.805_842_2), (2, 0.649_381_64)]);
        assert_inv_freq(&config, &far);
        let config = llama(
            r#""head_dim": 16, "rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}"#,
        );
        let near = [(0, 1.0), (1, 0.193_922_76), (2, 0.037_606_03), (3, 0.007_292_665)];
        let far = [(4, 0.000_429_556_7), (5, 8.570_256e-6), (6, 1.661_967_4e-6), (7, 3.222_933e-7)];
        assert_inv_freq(&config, &near);
        assert_inv_freq(&config, &far);
        let config = llama(r#""head_dim": 8, "rope_scaling": {"type": "linear", "factor": 3.0}"#);
        assert_inv_freq(&config, &[(0, 0.333_333_34), (1, 0.033_333_335), (2, 0.003_333_333_2), (3, 0.000_333_333_36)]);
    }

    #[test]
    fn both_layouts_of_the_rotary_settings_mean_the_same() {
        let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64"#;
        let old = with(
            "LlamaForCausalLM",
            &format!(r#", "rope_theta": 500000.0, "rope_scaling": {{"rope_type": "llama3", {scaling}}}"#),
        );
        let new = with(
            "LlamaForCausalLM",
            &format!(r#", "rope_parameters": {{"rope_type": "llama3", "rope_theta": 500000.0, {scaling}}}"#),
        );
        assert_eq!(old, new);
        assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { original_max_position_embeddings: 64, .. }));
        let default = with("Qwen2ForCausalLM", r#", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}"#);
        assert_eq!((default.rope_theta, default.rope_scaling), (1e6, RopeScaling::None));
        let without = with("Qwen2ForCausalLM", r#", "rope_scaling": null"#);
        assert_eq!((without.rope_theta, without.rope_scaling), (10_000.0, RopeScaling::None));
    }

    #[test]
    fn families_differ_in_biases_norms_and_defaults() {
        let llama = with("LlamaForCausalLM", "");
        assert_eq!((llama.qkv_bias, llama.out_bias, llama.mlp_bias, llama.qk_norm), (false, false, false, false));
        assert_eq!((llama.max_position_embeddings, llama.tie_word_embeddings), (2048, false));
        let biased = with("LlamaForCausalLM", r#", "attention_bias": true, "mlp_bias": true"#);
        assert_eq!((biased.qkv_bias, biased.out_bias, biased.mlp_bias), (true, true, true));
        let qwen2 = with("Qwen2ForCausalLM", r#", "attention_bias": true, "tie_word_embeddings": true"#);
        assert_eq!((qwen2.qkv_bias, qwen2.out_bias, qwen2.tie_word_embeddings), (true, false, true));
        let qwen3 = with("Qwen3ForCausalLM", "");
        assert_eq!((qwen3.qkv_bias, qwen3.out_bias, qwen3.qk_norm), (false, false, true));
        let mistral = with("MistralForCausalLM", r#", "attention_bias": true"#);
        assert_eq!((mistral.qkv_bias, mistral.out_bias), (false, false));
    }

    #[test]
    fn sliding_windows_limit_the_length_where_they_are_in_force() {
        let limit = |architecture, keys| {
            let config = with(architecture, keys);
            (config.max_position_embeddings, config.notices.len())
        };
        assert_eq!(limit("MistralForCausalLM", ""), (4096, 1));
        assert_eq!(limit("MistralForCausalLM", r#", "sliding_window": null"#), (4096 * 32, 0));
        assert_eq!(limit("MistralForCausalLM", r#", "sliding_window": 100, "max_position_embeddings": 50"#), (50, 0));
        assert_eq!(limit("Qwen2ForCausalLM", r#", "sliding_window": 100"#), (32768, 0));
        let on = r#", "sliding_window": 100, "use_sliding_window": true"#;
        assert_eq!(limit("Qwen2ForCausalLM", on), (32768, 0), "two layers are below max_window_layers");
        let all = r#", "sliding_window": 100, "use_sliding_window": true, "max_window_layers": 0"#;
        assert_eq!(limit("Qwen2ForCausalLM", all), (100, 1));
        let listed = r#", "sliding_window": 100, "use_sliding_window": true,
                        "layer_types": ["full_attention", "sliding_attention"]"#;
        assert_eq!(limit("Qwen3ForCausalLM", listed), (100, 1));
    }

    /// The parameter counts that the model cards give.
    #[test]
    fn real_models_have_their_published_size() {
        let cases = [
            (
                r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
                "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
                "num_hidden_layers": 22, "vocab_size": 32000, "rope_scaling": null, "torch_dtype": "bfloat16"}"#,
                1_100_048_384, // TinyLlama-1.1B
            ),
            (
                r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
                "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
                "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": true, "rope_theta": 1000000.0,
                "sliding_window": 32768, "use_sliding_window": false, "max_window_layers": 21}"#,
                494_032_768, // Qwen2.5-0.5B
            ),
            (
                r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "head_dim": 128,
                "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
                "num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": true, "attention_bias": false}"#,
                596_049_920, // Qwen3-0.6B
            ),
        ];
        for (text, expected) in cases {
            let config = parse(text);
            assert_eq!(config.num_parameters(), expected);
            assert_eq!(config.notices, Vec::<String>::new());
        }
    }
}
