//! `adapter_config.json` as PEFT writes it: what an adapter is, whichever program made it.
//!
//! Only plain LoRA is supported; whatever else changes the result is refused by name. Keys that are not known here are
//! kept when the file is written again.

use super::ModelError;
use super::config::ModelConfig;
use super::json::{parse, read_text};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// The file's name.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// The largest `adapter_config.json` that is read.
const MAX_BYTES: u64 = 16 << 20;

/// The maps of a layer that can have an adapter, with their last names.
const MAPS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Which maps have an adapter, in PEFT's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Every map of every layer.
    AllLinear,
    /// Those whose name is, or ends in `.` and, one of these.
    Names(Vec<String>),
    /// Those whose whole name matches a regular expression.
    Pattern(String),
}

/// As a user writes them in TOML.
impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str("\"all-linear\""),
            Self::Names(names) => write!(f, "{names:?}"),
            Self::Pattern(pattern) => write!(f, "{pattern:?}"),
        }
    }
}

/// What `adapter_config.json` says.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    /// Rank of the maps that `rank_pattern` does not name.
    pub r: usize,
    /// Alpha of the maps that `alpha_pattern` does not name.
    pub lora_alpha: f64,
    /// Probability that a value of an adapter's input is left out in training.
    pub lora_dropout: f64,
    /// Scale by alpha / sqrt(r) instead of alpha / r.
    pub use_rslora: bool,
    pub target_modules: TargetModules,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// The base model: a folder or a Hub id.
    pub base_model: Option<String>,
    /// The commit of the base model.
    pub revision: Option<String>,
    /// The whole file.
    json: Map<String, Value>,
}

/// A map that has an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedMap {
    /// Its name in the model, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: usize,
    pub outputs: usize,
    pub rank: usize,
    pub scale: f32,
}

impl PeftConfig {
    /// A new adapter's.
    #[must_use]
    pub fn new(r: usize, lora_alpha: f64, lora_dropout: f64, use_rslora: bool, target_modules: TargetModules) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout,
            use_rslora,
            target_modules,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: None,
            revision: None,
            json: Map::new(),
        }
    }

    /// The same for an adapter of `base_model`, at the commit `revision` where it came from a hub.
    #[must_use]
    pub fn of_base(self, base_model: String, revision: Option<String>) -> Self {
        Self { base_model: Some(base_model), revision, ..self }
    }

    /// The file of an adapter folder.
    ///
    /// # Errors
    /// [`ModelError::Json`], [`ModelError::AdapterConfig`] for what is no plain LoRA adapter of a causal LM.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(PEFT_CONFIG);
        let text = read_text(&path, MAX_BYTES)?;
        let value = parse(&text).map_err(|e| ModelError::Json { path: path.clone(), message: e.to_string() })?;
        let Value::Object(json) = value else {
            return Err(ModelError::AdapterConfig { path, message: "the file does not hold a JSON object".into() });
        };
        Self::of_json(json).map_err(|message| ModelError::AdapterConfig { path, message })
    }

    fn of_json(json: Map<String, Value>) -> Result<Self, String> {
        require_plain(&json)?;
        let number = |key: &str, default: f64| match json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| format!("{key} must be a number, not {value}")),
        };
        let r = rank(json.get("r").unwrap_or(&json!(8)), "r")?;
        let lora_dropout = number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&lora_dropout) {
            return Err(format!("lora_dropout must be from 0 to below 1, not {lora_dropout}"));
        }
        let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
        let pattern = |(key, value): (&String, &Value)| Ok::<_, String>((module_pattern(key)?, value.clone()));
        let patterns = |key: &str| match json.get(key) {
            Some(Value::Object(members)) => members.iter().map(pattern).collect::<Result<Vec<_>, _>>(),
            _ => Ok(Vec::new()),
        };
        let ranks =
            patterns("rank_pattern")?.into_iter().map(|(regex, value)| Ok((regex, rank(&value, "rank_pattern")?)));
        let alphas = patterns("alpha_pattern")?.into_iter().map(|(regex, value)| {
            let alpha = value.as_f64().ok_or_else(|| format!("alpha_pattern: {value} is no number"))?;
            Ok::<_, String>((regex, alpha))
        });
        Ok(Self {
            r,
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout,
            use_rslora: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            target_modules: targets(json.get("target_modules"))?,
            rank_pattern: ranks.collect::<Result<_, String>>()?,
            alpha_pattern: alphas.collect::<Result<_, String>>()?,
            base_model: text("base_model_name_or_path"),
            revision: text("revision"),
            json,
        })
    }

    /// The text of the file: what was read, with what PEFT needs.
    #[must_use]
    pub fn to_json(&self) -> String {
        let targets = match &self.target_modules {
            TargetModules::AllLinear => json!(MAPS.map(last_name)),
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
        };
        let mut all = json!({
            "alpha_pattern": {},
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "modules_to_save": null,
            "rank_pattern": {},
            "use_dora": false,
        });
        let set = json!({
            "base_model_name_or_path": self.base_model,
            "inference_mode": true,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "peft_type": "LORA",
            "r": self.r,
            "revision": self.revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": self.use_rslora,
        });
        if let (Value::Object(all), Value::Object(set)) = (&mut all, set) {
            all.extend(self.json.clone());
            all.extend(set);
            all.sort_keys();
        }
        format!("{all:#}\n")
    }

    /// The maps of a model that have an adapter, in checkpoint order.
    ///
    /// # Errors
    /// [`ModelError::TargetModules`] for a name that is that of no map.
    pub fn maps(&self, config: &ModelConfig) -> Result<Vec<AdaptedMap>, ModelError> {
        let all = all_maps(config);
        let unknown = |target: &str| ModelError::TargetModules {
            target: target.to_owned(),
            known: MAPS.map(last_name).join(", "),
        };
        let is_named =
            |map: &str, name: &str| map == name || map.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
        let chosen: Vec<_> = match &self.target_modules {
            TargetModules::AllLinear => all,
            TargetModules::Names(names) => {
                if let Some(name) = names.iter().find(|name| !all.iter().any(|(map, ..)| is_named(map, name))) {
                    return Err(unknown(name));
                }
                all.into_iter().filter(|(map, ..)| names.iter().any(|name| is_named(map, name))).collect()
            }
            TargetModules::Pattern(pattern) => {
                let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|_| unknown(pattern))?;
                all.into_iter().filter(|(map, ..)| regex.is_match(map)).collect()
            }
        };
        if chosen.is_empty() {
            return Err(unknown(match &self.target_modules {
                TargetModules::Pattern(pattern) => pattern,
                TargetModules::AllLinear | TargetModules::Names(_) => "",
            }));
        }
        Ok(chosen.into_iter().map(|(name, outputs, inputs)| self.adapted(name, outputs, inputs)).collect())
    }

    /// A map with the rank and the scale that the file gives it.
    fn adapted(&self, name: String, outputs: usize, inputs: usize) -> AdaptedMap {
        let rank = self.rank_pattern.iter().find(|(regex, _)| regex.is_match(&name)).map_or(self.r, |(_, rank)| *rank);
        let alpha = self.alpha_pattern.iter().find(|(regex, _)| regex.is_match(&name));
        let alpha = alpha.map_or(self.lora_alpha, |(_, alpha)| *alpha);
        let by = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        AdaptedMap { name, inputs, outputs, rank, scale: (alpha / by) as f32 }
    }

    /// Where the base model is: as the file names it, or beside the adapter's folder.
    #[must_use]
    pub fn base_in(&self, folder: &Path) -> Option<String> {
        let base = self.base_model.as_ref()?;
        let beside: PathBuf = folder.join(base);
        let is_relative = !Path::new(base).exists() && beside.is_dir();
        Some(if is_relative { beside.to_string_lossy().into_owned() } else { base.clone() })
    }
}

/// `(name, outputs, inputs)` of every map that can have an adapter, in checkpoint order.
fn all_maps(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let linear = config.tensors().into_iter().filter_map(|spec| {
        let name = spec.name.strip_suffix(".weight")?;
        let is_map = MAPS.iter().any(|map| name.ends_with(map));
        is_map.then(|| (name.to_owned(), spec.shape[0], spec.shape[1]))
    });
    linear.collect()
}

fn last_name(map: &str) -> &str {
    map.rsplit('.').next().unwrap_or(map)
}

/// As PEFT matches the keys of `rank_pattern` and `alpha_pattern`: the end of a name, from a dot on.
fn module_pattern(key: &str) -> Result<Regex, String> {
    Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|_| format!("{key:?} is no regular expression"))
}

fn rank(value: &Value, key: &str) -> Result<usize, String> {
    let rank = value.as_u64().filter(|rank| (1..=1 << 16).contains(rank));
    rank.map(|rank| rank as usize).ok_or_else(|| format!("{key} must be a whole number from 1 on, not {value}"))
}

fn targets(value: Option<&Value>) -> Result<TargetModules, String> {
    match value {
        Some(Value::String(all)) if all == "all-linear" => Ok(TargetModules::AllLinear),
        Some(Value::String(pattern)) => Ok(TargetModules::Pattern(pattern.clone())),
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            names.map(TargetModules::Names).ok_or_else(|| "target_modules must be a list of names".to_owned())
        }
        // PEFT's choice for these families.
        None | Some(Value::Null) => Ok(TargetModules::Names(vec!["q_proj".into(), "v_proj".into()])),
        Some(other) => Err(format!("target_modules must be a list of names, not {other}")),
    }
}

/// Refuses what is more than `s B A x` beside a frozen map.
fn require_plain(json: &Map<String, Value>) -> Result<(), String> {
    let get = |key: &str| json.get(key).unwrap_or(&Value::Null);
    if get("peft_type") != "LORA" {
        return Err(format!("peft_type is {}, not \"LORA\"", get("peft_type")));
    }
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    let switches = [
        "use_dora",
        "fan_in_fan_out",
        "modules_to_save",
        "layer_replication",
        "lora_bias",
        "trainable_token_indices",
        "target_parameters",
        "use_qalora",
        "alora_invocation_tokens",
    ];
    // Variants come with a table of their own; that of EVA says how weights were drawn.
    let tables = json.keys().map(String::as_str).filter(|key| key.ends_with("_config") && *key != "eva_config");
    if let Some(key) = switches.into_iter().chain(tables).find(|key| !is_off(get(key))) {
        return Err(format!("{key} = {} is not supported", get(key)));
    }
    if !(get("bias").is_null() || get("bias") == "none") {
        return Err(format!("bias = {} is not supported, only \"none\"", get("bias")));
    }
    if !(get("task_type").is_null() || get("task_type") == "CAUSAL_LM") {
        return Err(format!("task_type = {} is not supported, only \"CAUSAL_LM\"", get("task_type")));
    }
    // These change the base model, so that the adapter does not fit the one that is named.
    let changes_base =
        |init: &str| ["pissa", "olora", "loftq", "corda", "lora_ga"].iter().any(|kind| init.starts_with(kind));
    match get("init_lora_weights").as_str() {
        Some(init) if changes_base(&init.to_lowercase()) => {
            Err(format!("init_lora_weights = {init:?} is not supported: it changes the base model"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let path = Path::new("data/starter/config.json");
        ModelConfig::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap()
    }

    fn parsed(value: Value) -> Result<PeftConfig, String> {
        let Value::Object(json) = value else { panic!("an object") };
        PeftConfig::of_json(json)
    }

    #[test]
    fn targets_are_chosen_as_peft_does() {
        let names = |targets: Value| -> Vec<String> {
            let config_of = parsed(json!({ "peft_type": "LORA", "target_modules": targets })).unwrap();
            config_of.maps(&config()).unwrap().into_iter().map(|map| map.name).collect()
        };
        let layers = config().num_hidden_layers;
        assert_eq!(names(json!(["q_proj", "v_proj"])).len(), 2 * layers);
        assert_eq!(names(json!("all-linear")).len(), 7 * layers);
        assert_eq!(names(json!(["layers.0.mlp.up_proj"])), ["model.layers.0.mlp.up_proj"]);
        assert_eq!(names(json!(r".*\.1\.self_attn\.[qk]_proj")).len(), 2);
        let wrong = parsed(json!({ "peft_type": "LORA", "target_modules": ["q_proj", "proj"] })).unwrap();
        let error = wrong.maps(&config()).unwrap_err().to_string();
        assert!(error.contains("\"proj\"") && error.contains("down_proj"), "{error}");
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns() {
        let config_of = |rslora: bool| {
            parsed(json!({
                "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": rslora, "target_modules": ["q_proj", "v_proj"],
                "rank_pattern": { "layers.1.self_attn.v_proj": 16 }, "alpha_pattern": { "q_proj": 2.0 },
            }))
        };
        let of = |rslora: bool, name: &str| {
            let maps = config_of(rslora).unwrap().maps(&config()).unwrap();
            let map = maps.into_iter().find(|map| map.name.ends_with(name)).unwrap();
            (map.rank, map.scale)
        };
        assert_eq!(of(false, "0.self_attn.v_proj"), (4, 2.0));
        assert_eq!(of(false, "1.self_attn.v_proj"), (16, 0.5));
        assert_eq!(of(false, "1.self_attn.q_proj"), (4, 0.5));
        assert_eq!(of(true, "1.self_attn.v_proj"), (16, 2.0));
    }

    #[test]
    fn what_is_not_plain_lora_is_refused_by_name() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("task_type", json!("SEQ_CLS")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("r", json!(0)),
            ("lora_dropout", json!(1.0)),
            ("kasa_config", json!({ "beta": 1e-4 })),
            ("target_modules", json!(3)),
            ("rank_pattern", json!({ "(": 1 })),
        ] {
            let mut object = json!({ "peft_type": "LORA" });
            object[key] = value;
            let error = parsed(object).unwrap_err();
            assert!(error.contains(key) || key == "rank_pattern", "{key}: {error}");
        }
    }

    #[test]
    fn what_was_read_is_written_again() {
        let read = parsed(json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 32, "from_the_future": [1] })).unwrap();
        let written: Value = serde_json::from_str(&read.to_json()).unwrap();
        assert_eq!((&written["from_the_future"], &written["r"]), (&json!([1]), &json!(4)));
        assert_eq!(written["target_modules"], json!(["q_proj", "v_proj"]));
        assert_eq!(parsed(written).unwrap().to_json(), read.to_json());
    }
}
