//! The `[architecture]` table: a model that does not exist yet.
//!
//! Owns its keys, their defaults and what must hold between them; the comments make its part of the reference page. The
//! files of such a model are written by `recipe`.

use super::checks::Problem;
use super::kinds::{Algorithm, ModelType, TokenizerKind};
use super::run_config::RunConfig;
use serde::{Deserialize, Serialize};

/// The shape of a model that is made from nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArchitectureConfig {
    /// Family of the model: `llama`, `qwen2` (biases on queries, keys and values) or `qwen3` (norms on queries and
    /// keys). Default `"llama"`: read by the most programs.
    pub model_type: ModelType,
    /// Width of the hidden states, a multiple of twice `num_attention_heads`, 1 or more.
    /// Default `128`: with the other defaults 0.8 million parameters.
    pub hidden_size: usize,
    /// Width inside the feed-forward part, 1 or more. Default `384`: three times the default `hidden_size`.
    pub intermediate_size: usize,
    /// Layers, 1 or more. Default `4`: small enough for a CPU.
    pub num_hidden_layers: usize,
    /// Attention heads, 1 or more. Default `4`: 32 values a head.
    pub num_attention_heads: usize,
    /// Heads of keys and values, a divisor of `num_attention_heads`.
    /// Default none: as many as `num_attention_heads`.
    pub num_key_value_heads: Option<usize>,
    /// Longest sequence, in tokens, 1 or more. Default `256`: as `block_size`.
    pub max_position_embeddings: usize,
    /// Use the embedding as the output weight too. Default `true`: in a small model it is a large part.
    pub tie_word_embeddings: bool,
    /// Base of the rotary frequencies, above 0. Default `10000.0`: as Llama.
    pub rope_theta: f64,
    /// Standard deviation of the first weights, above 0. Small models often learn faster from more, such as 0.05.
    /// Default `0.02`: as transformers.
    pub initializer_range: f64,
    /// Where the tokenizer comes from: `char` (a token for each character in the training data; one outside ASCII is
    /// the tokens of its bytes in UTF-8) or `byte` (a token for each of the 256 bytes, so that it holds any text). Both
    /// have `<|endoftext|>` besides, which ends a text. Required.
    /// Default none: `char` is smaller, `byte` can be used with other texts later.
    pub tokenizer: Option<TokenizerKind>,
}

impl Default for ArchitectureConfig {
    fn default() -> Self {
        Self {
            model_type: ModelType::default(),
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: None,
            max_position_embeddings: 256,
            tie_word_embeddings: true,
            rope_theta: 10_000.0,
            initializer_range: 0.02,
            tokenizer: None,
        }
    }
}

impl ArchitectureConfig {
    /// The heads of keys and values that are used: `num_key_value_heads`, else `num_attention_heads`.
    #[must_use]
    pub fn resolved_key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
}

/// What is wrong with the table, and with what stands beside it.
pub(super) fn problems(config: &RunConfig) -> Vec<Problem> {
    let Some(architecture) = &config.architecture else { return Vec::new() };
    let mut found = surroundings(config, architecture);
    found.extend(sizes(architecture).into_iter().map(|text| Problem::new(&["architecture"], text)));
    found
}

/// Contradictions with other settings.
fn surroundings(config: &RunConfig, architecture: &ArchitectureConfig) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |keys: &[&'static str], message: &str, help: &str| {
        found.push(Problem::new(keys, message).help(help));
    };
    if !config.model.trim().is_empty() {
        let message = "`model` and `[architecture]` are both set: the one names a model, the other makes one";
        add(&["model", "architecture"], message, "remove one of them");
    }
    if !matches!(config.algorithm, Algorithm::Pretrain | Algorithm::Sft) {
        let message = format!("`[architecture]` cannot be trained with `algorithm = \"{}\"`", config.algorithm.name());
        let help = "train it with `pretrain` or `sft` first, then name the result as `model`";
        add(&["architecture", "algorithm"], &message, help);
    }
    match architecture.tokenizer {
        None => {
            let message = "`[architecture]` has no `tokenizer`";
            let help = "add `tokenizer = \"char\"` (the characters of the training data) or `tokenizer = \"byte\"` \
                        (all bytes)";
            add(&["architecture"], message, help);
        }
        Some(TokenizerKind::Char) if config.system_prompt.is_some() || config.chat_template.is_some() => {
            let message = "`tokenizer = \"char\"` knows the characters of the training data only, not those of a chat \
                           template or a system prompt";
            let help = "set `tokenizer = \"byte\"` in `[architecture]`";
            add(&["architecture", "chat_template", "system_prompt"], message, help);
        }
        Some(_) => {}
    }
    let context = architecture.max_position_embeddings;
    if config.algorithm == Algorithm::Pretrain && config.block_size > context {
        let message =
            format!("`block_size` ({}) is more than `max_position_embeddings` ({context})", config.block_size);
        add(&["block_size", "architecture"], &message, "a block is one sequence: lower the one or raise the other");
    }
    found
}

/// What is wrong with the sizes among themselves, a sentence each.
fn sizes(a: &ArchitectureConfig) -> Vec<String> {
    let sizes = [
        ("hidden_size", a.hidden_size),
        ("intermediate_size", a.intermediate_size),
        ("num_hidden_layers", a.num_hidden_layers),
        ("num_attention_heads", a.num_attention_heads),
        ("num_key_value_heads", a.resolved_key_value_heads()),
        ("max_position_embeddings", a.max_position_embeddings),
    ];
    let mut found: Vec<String> = sizes
        .into_iter()
        .filter(|(_, size)| *size == 0)
        .map(|(key, _)| format!("`{key}` of `[architecture]` must be 1 or more, not 0"))
        .collect();
    for (key, value) in [("rope_theta", a.rope_theta), ("initializer_range", a.initializer_range)] {
        if !(value.is_finite() && value > 0.0) {
            found.push(format!("`{key}` of `[architecture]` must be above 0 and finite, not {value}"));
        }
    }
    if a.initializer_range > 1.0 {
        found.push(format!("`initializer_range` of `[architecture]` must be at most 1, not {}", a.initializer_range));
    }
    if !found.is_empty() {
        return found;
    }
    let (hidden, heads, kv_heads) = (a.hidden_size, a.num_attention_heads, a.resolved_key_value_heads());
    if !hidden.is_multiple_of(heads) {
        let below = (hidden - hidden % heads).max(heads);
        found.push(format!(
            "`hidden_size` ({hidden}) is not a multiple of `num_attention_heads` ({heads}); {below} would be"
        ));
    } else if !(hidden / heads).is_multiple_of(2) {
        found.push(format!(
            "a head has `hidden_size` / `num_attention_heads` = {} values, which must be an even number",
            hidden / heads
        ));
    }
    if !heads.is_multiple_of(kv_heads) {
        found.push(format!("`num_attention_heads` ({heads}) is not a multiple of `num_key_value_heads` ({kv_heads})"));
    }
    found
}
