//! The checks behind [`ModelConfig::parse`]: one pass over the JSON object that collects every problem.
//!
//! Defaults are those of the configuration classes of transformers 5.23 for each family. Sizes are bounded so that
//! no later product overflows and no absurd file makes the program allocate.

use serde_json::{Map, Value};

use super::config::{Family, ModelConfig, RopeScaling, Task};
use super::error::ConfigProblem;

/// The largest value of each size, far above any real model, far below an overflow of the products.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 31;
const MAX_PARAMETERS: u128 = 1 << 41;

/// Reads the keys of one `config.json`, noting what is wrong and going on with a stand-in.
pub(super) struct Reader<'a> {
    object: &'a Map<String, Value>,
    /// What the model is wanted for; `None`: for any task.
    wanted: Option<Task>,
    problems: Vec<ConfigProblem>,
    notices: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, wanted: Option<Task>) -> Self {
        Self { object, wanted, problems: Vec::new(), notices: Vec::new() }
    }

    /// The configuration, or everything that is wrong with it.
    pub(super) fn read(mut self) -> Result<ModelConfig, Vec<ConfigProblem>> {
        self.check_quantization();
        // Nothing else is worth saying about a model of a family that is not known.
        let Some((family, task)) = self.family() else {
            return Err(self.problems);
        };
        self.check_labels(task);
        self.check_unsupported();
        let vocab_size = self.required("vocab_size", MAX_VOCAB);
        let hidden_size = self.required("hidden_size", MAX_WIDTH);
        let intermediate_size = self.required("intermediate_size", MAX_WIDTH);
        let num_hidden_layers = self.required("num_hidden_layers", MAX_LAYERS);
        let num_attention_heads = self.required("num_attention_heads", MAX_HEADS);
        let num_key_value_heads = self.key_value_heads(family, num_attention_heads);
        let head_dim = self.head_dim(family, hidden_size, num_attention_heads);
        let max_position_embeddings = self.max_positions(family, num_hidden_layers);
        let (rope_theta, rope_scaling) = self.rope();
        let attention_bias = matches!(family, Family::Llama | Family::Qwen3) && self.flag("attention_bias", false);
        let config = ModelConfig {
            family,
            task,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: self.float("rms_norm_eps", 1e-6, 0.0..=1.0),
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tie_word_embeddings: self.flag("tie_word_embeddings", false),
            qkv_bias: family == Family::Qwen2 || attention_bias,
            out_bias: attention_bias,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias", false),
            qk_norm: family == Family::Qwen3,
            initializer_range: self.float("initializer_range", 0.02, 0.0..=1.0),
            notices: self.notices,
        };
        if self.problems.is_empty() {
            check_total(&config, &mut self.problems);
        }
        if self.problems.is_empty() { Ok(config) } else { Err(self.problems) }
    }

    /// A key that is present and not null.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong_type(&mut self, key: &str, expected: &'static str, found: &Value) {
        self.problems.push(ConfigProblem::Type { key: key.into(), expected, found: brief(found) });
    }

    /// A size in `1..=max` that the file must have.
    fn required(&mut self, key: &str, max: usize) -> usize {
        if self.value(key).is_none() {
            self.problems.push(ConfigProblem::Missing { key: key.into() });
            return 1;
        }
        self.size(key, 1, max)
    }

    /// A size in `1..=max`, or `default` where the key is absent or null.
    fn size(&mut self, key: &str, default: usize, max: usize) -> usize {
        self.value(key).map_or(default, |value| self.size_of(key, value, max).unwrap_or(1))
    }

    fn size_of(&mut self, key: &str, value: &Value, max: usize) -> Option<usize> {
        // Python writes sizes as integers only; a float or a string here means a damaged file.
        if !value.is_i64() && !value.is_u64() {
            self.wrong_type(key, "a whole number", value);
            return None;
        }
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| (1..=max).contains(size));
        if size.is_none() {
            let range = format!("1 to {max}");
            self.problems.push(ConfigProblem::Range { key: key.into(), value: brief(value), range });
        }
        size
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong_type(key, "true or false", other);
                default
            }
        }
    }

    fn float(&mut self, key: &str, default: f64, range: std::ops::RangeInclusive<f64>) -> f64 {
        self.value(key).map_or(default, |value| self.float_of(key, value, range).unwrap_or(default))
    }

    fn float_of(&mut self, key: &str, value: &Value, range: std::ops::RangeInclusive<f64>) -> Option<f64> {
        let Some(number) = value.as_f64() else {
            self.wrong_type(key, "a number", value);
            return None;
        };
        if !range.contains(&number) {
            let range = format!("{:?} to {:?}", range.start(), range.end());
            self.problems.push(ConfigProblem::Range { key: key.into(), value: brief(value), range });
            return None;
        }
        Some(number)
    }

    fn check_quantization(&mut self) {
        let Some(settings) = self.value("quantization_config") else { return };
        let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
        self.problems.push(ConfigProblem::Quantized { method: method.to_owned() });
    }

    /// Family and task by `architectures` and `model_type`, which must not contradict each other.
    fn family(&mut self) -> Option<(Family, Task)> {
        let usual = self.wanted.unwrap_or_default();
        let supported = || Family::ALL.map(|family| family.architecture_for(usual)).join(", ");
        let names: Vec<&str> = match self.value("architectures") {
            None => Vec::new(),
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                names.iter().filter_map(Value::as_str).collect()
            }
            Some(other) => {
                self.wrong_type("architectures", "a list of names", other);
                return None;
            }
        };
        let model_type = match self.value("model_type") {
            None => None,
            Some(Value::String(name)) => Some(name.as_str()),
            Some(other) => {
                self.wrong_type("model_type", "a name", other);
                return None;
            }
        };
        let unknown = |found: String| ConfigProblem::Architecture { found, supported: supported() };
        let (family, task) = if names.is_empty() {
            let Some(name) = model_type else {
                self.problems.push(ConfigProblem::Missing { key: "architectures".into() });
                return None;
            };
            let family = Family::ALL.into_iter().find(|family| family.model_type() == name);
            if family.is_none() {
                self.problems.push(unknown(format!("of model_type {name:?}")));
            }
            (family?, usual)
        } else {
            let tasks = [Task::CausalLm, Task::SequenceClassification].into_iter();
            let mut known = tasks.flat_map(|task| Family::ALL.map(|family| (family, task)));
            let found = known.find(|(family, task)| names.contains(&family.architecture_for(*task)));
            if found.is_none() {
                self.problems.push(unknown(names.join(", ")));
            }
            found?
        };
        if self.wanted.is_some_and(|wanted| wanted != task) {
            let (found, wanted) = (family.architecture_for(task), family.architecture_for(usual));
            self.problems.push(ConfigProblem::OtherTask { found, wanted });
            return None;
        }
        if let Some(model_type) = model_type
            && model_type != family.model_type()
        {
            let architecture = family.architecture_for(task).to_owned();
            self.problems.push(ConfigProblem::Conflict { architecture, model_type: model_type.to_owned() });
        }
        if self.value("auto_map").is_some() {
            self.notices.push(format!(
                "config.json names code of its own (auto_map); it is not run, the built-in {} is used",
                family.architecture_for(task)
            ));
        }
        Some((family, task))
    }

    /// A score is one number. Where the file does not count the labels, the shape of the head will tell.
    fn check_labels(&mut self, task: Task) {
        if task != Task::SequenceClassification {
            return;
        }
        let named = self.value("id2label").and_then(Value::as_object).map(|labels| labels.len() as u64);
        let counted = self.value("num_labels").and_then(Value::as_u64);
        if let Some(labels) = [named, counted].into_iter().flatten().find(|labels| *labels != 1) {
            self.problems.push(ConfigProblem::Labels { labels });
        }
    }

    /// Settings that would change the forward pass and are not implemented.
    fn check_unsupported(&mut self) {
        if let Some(activation) = self.value("hidden_act")
            && !matches!(activation.as_str(), Some("silu" | "swish"))
        {
            self.unsupported("hidden_act", activation, "silu");
        }
        if let Some(factor) = self.value("partial_rotary_factor")
            && factor.as_f64() != Some(1.0)
        {
            self.unsupported("partial_rotary_factor", factor, "1.0");
        }
        if self.value("attention_dropout").is_some_and(|rate| rate.as_f64() != Some(0.0)) {
            self.notices.push("attention_dropout of config.json is not applied: training runs without dropout".into());
        }
    }

    fn unsupported(&mut self, key: &str, value: &Value, supported: &str) {
        let (key, value, supported) = (key.to_owned(), brief(value), supported.to_owned());
        self.problems.push(ConfigProblem::Unsupported { key, value, supported });
    }

    fn key_value_heads(&mut self, family: Family, heads: usize) -> usize {
        let key = "num_key_value_heads";
        let default = match (family, self.object.contains_key(key)) {
            // An absent key takes the class default, an explicit null means one kv head a head.
            (Family::Mistral, false) => 8,
            (Family::Qwen2 | Family::Qwen3, false) => 32,
            _ => heads,
        };
        let kv_heads = self.size(key, default, MAX_HEADS);
        if !heads.is_multiple_of(kv_heads) && !self.stood_in() {
            self.problems.push(ConfigProblem::NotDivisible {
                key: "num_attention_heads".into(),
                value: heads,
                by_key: key.into(),
                by: kv_heads,
            });
        }
        kv_heads
    }

    fn head_dim(&mut self, family: Family, hidden: usize, heads: usize) -> usize {
        let head_dim = match self.value("head_dim") {
            Some(value) => self.size_of("head_dim", value, MAX_HEAD_DIM).unwrap_or(2),
            None if family == Family::Qwen3 => 128,
            None if self.stood_in() => 2,
            None if !hidden.is_multiple_of(heads) => {
                self.problems.push(ConfigProblem::NotDivisible {
                    key: "hidden_size".into(),
                    value: hidden,
                    by_key: "num_attention_heads".into(),
                    by: heads,
                });
                2
            }
            None => hidden / heads,
        };
        if head_dim > MAX_HEAD_DIM {
            let range = format!("1 to {MAX_HEAD_DIM}");
            self.problems.push(ConfigProblem::Range { key: "head_dim".into(), value: head_dim.to_string(), range });
        }
        if head_dim % 2 == 1 {
            let range = "the rotary embedding needs an even number".to_owned();
            self.problems.push(ConfigProblem::Range { key: "head_dim".into(), value: head_dim.to_string(), range });
        }
        head_dim
    }

    /// Whether a stand-in took the place of a size that is missing or wrong, so that what follows from it means nothing.
    fn stood_in(&self) -> bool {
        self.problems.iter().any(|problem| match problem {
            ConfigProblem::Missing { key } | ConfigProblem::Type { key, .. } | ConfigProblem::Range { key, .. } => {
                matches!(key.as_str(), "hidden_size" | "num_attention_heads" | "num_key_value_heads")
            }
            _ => false,
        })
    }

    /// The longest sequence; within a sliding window, windowed and full attention are the same.
    fn max_positions(&mut self, family: Family, num_layers: usize) -> usize {
        let default = match family {
            Family::Llama => 2048,
            Family::Mistral => 4096 * 32,
            Family::Qwen2 | Family::Qwen3 => 32768,
        };
        let positions = self.size("max_position_embeddings", default, MAX_POSITIONS);
        match self.sliding_window(family, num_layers) {
            Some(window) if window < positions => {
                self.notices.push(format!(
                    "sliding_window = {window} is in force: sequences are limited to {window} tokens instead of \
                     {positions}, where windowed and full attention agree"
                ));
                window
            }
            _ => positions,
        }
    }

    fn sliding_window(&mut self, family: Family, num_layers: usize) -> Option<usize> {
        let in_force = match family {
            Family::Llama => false,
            Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => self.has_sliding_layers(num_layers),
        };
        // The class default of 4096 holds only where the key is absent; null switches the window off.
        if !in_force || self.object.get("sliding_window").is_some_and(Value::is_null) {
            return None;
        }
        Some(self.size("sliding_window", 4096, MAX_POSITIONS))
    }

    fn has_sliding_layers(&mut self, num_layers: usize) -> bool {
        let enabled = self.flag("use_sliding_window", false);
        let Some(types) = self.value("layer_types") else {
            // 0 is a meaningful value here: every layer slides.
            let first = self.value("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
            return enabled && (num_layers as u64) > first;
        };
        let names = types.as_array().map(|names| names.iter().map(Value::as_str).collect::<Vec<_>>());
        let known = |name: Option<&str>| matches!(name, Some("full_attention" | "sliding_attention"));
        match names {
            Some(names) if names.iter().copied().all(known) => enabled && names.contains(&Some("sliding_attention")),
            _ => {
                self.unsupported("layer_types", types, "full_attention, sliding_attention");
                false
            }
        }
    }

    /// The rotary base and scaling, from `rope_scaling` + `rope_theta` or from `rope_parameters`.
    fn rope(&mut self) -> (f64, RopeScaling) {
        let theta_range = 1e-3..=1e15;
        let mut theta = self.float("rope_theta", 10_000.0, theta_range.clone());
        // transformers lets a non-empty rope_scaling win over rope_parameters.
        let chosen = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| {
            let value = self.value(key)?;
            (value.as_object().is_none_or(|object| !object.is_empty())).then_some((key, value))
        });
        let Some((key, value)) = chosen else {
            return (theta, RopeScaling::None);
        };
        let Some(settings) = value.as_object() else {
            self.wrong_type(key, "an object", value);
            return (theta, RopeScaling::None);
        };
        if let Some(value) = present(settings, "rope_theta") {
            theta = self.float_of(&format!("{key}.rope_theta"), value, theta_range).unwrap_or(theta);
        }
        if let Some(factor) = present(settings, "partial_rotary_factor")
            && factor.as_f64() != Some(1.0)
        {
            self.unsupported(&format!("{key}.partial_rotary_factor"), factor, "1.0");
        }
        if let Some((layer_type, nested)) = settings.iter().find(|(_, value)| value.is_object()) {
            self.unsupported(&format!("{key}.{layer_type}"), nested, "one set of rotary settings for all layers");
            return (theta, RopeScaling::None);
        }
        let kind = present(settings, "rope_type").or_else(|| present(settings, "type"));
        let scaling = match kind.map(|kind| kind.as_str().ok_or(kind)) {
            None | Some(Ok("default")) => RopeScaling::None,
            Some(Ok("linear")) => RopeScaling::Linear { factor: self.rope_number(key, settings, "factor") },
            Some(Ok("llama3")) => self.llama3(key, settings),
            Some(Ok(_) | Err(_)) => {
                let value = kind.cloned().unwrap_or_default();
                self.unsupported(&format!("{key}.rope_type"), &value, "default, linear, llama3");
                RopeScaling::None
            }
        };
        (theta, scaling)
    }

    fn rope_number(&mut self, prefix: &str, settings: &Map<String, Value>, key: &str) -> f64 {
        let full = format!("{prefix}.{key}");
        let Some(value) = present(settings, key) else {
            self.problems.push(ConfigProblem::Missing { key: full });
            return 1.0;
        };
        self.float_of(&full, value, 1e-6..=1e9).unwrap_or(1.0)
    }

    fn llama3(&mut self, prefix: &str, settings: &Map<String, Value>) -> RopeScaling {
        let factor = self.rope_number(prefix, settings, "factor");
        let before = self.problems.len();
        let low_freq_factor = self.rope_number(prefix, settings, "low_freq_factor");
        let high_freq_factor = self.rope_number(prefix, settings, "high_freq_factor");
        if self.problems.len() == before && high_freq_factor <= low_freq_factor {
            self.problems.push(ConfigProblem::Range {
                key: format!("{prefix}.high_freq_factor"),
                value: high_freq_factor.to_string(),
                range: format!("above low_freq_factor = {low_freq_factor}"),
            });
        }
        let key = "original_max_position_embeddings";
        // A value beside the rotary settings wins over one inside them, as in transformers; the model's limit is last.
        let original = self.value(key).or_else(|| present(settings, key)).or(self.value("max_position_embeddings"));
        let original_max_position_embeddings = match original {
            Some(value) => self.size_of(&format!("{prefix}.{key}"), value, MAX_POSITIONS).unwrap_or(1),
            None => 2048,
        };
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }
    }
}

/// Refuses a model whose sizes are each possible but that no machine holds.
fn check_total(config: &ModelConfig, problems: &mut Vec<ConfigProblem>) {
    let wide = |value: usize| value as u128;
    let attention = 2 * wide(config.head_dim) * (wide(config.num_attention_heads) + wide(config.num_key_value_heads));
    let layer = wide(config.hidden_size) * (attention + 3 * wide(config.intermediate_size));
    let total = wide(config.num_hidden_layers) * layer + 2 * wide(config.vocab_size) * wide(config.hidden_size);
    if total > MAX_PARAMETERS {
        problems.push(ConfigProblem::Range {
            key: "the number of parameters".into(),
            value: total.to_string(),
            range: format!("at most {MAX_PARAMETERS}"),
        });
    }
}

fn present<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// A value as it stands in the file, cut to a readable length.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
