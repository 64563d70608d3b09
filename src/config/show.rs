//! A configuration as text: TOML that reads back to the same values, with the source of each one beside it.

use super::effects::no_effect;
use super::layers::Resolved;
use super::names::RUN_FIELDS;
use super::run_config::RunConfig;
use serde_json::{Map, Value};
use std::fmt::Write as _;

impl RunConfig {
    /// The settings as a TOML file that reads back to the same values. Left out are those without a value, and those
    /// that have no effect (to set them is an error).
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (key, value) in settings(self) {
            if !value.is_null() && no_effect(self, &key).is_none() {
                let _ = writeln!(text, "{key} = {}", toml_value(&value));
            }
        }
        text
    }
}

impl Resolved {
    /// As [`RunConfig::to_toml`], with the source of each value as a comment; what is left out there is a comment here.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for (field, (key, value)) in RUN_FIELDS.iter().zip(settings(&self.config)) {
            if field.section != section {
                section = &field.section;
                let _ = writeln!(text, "{}# {section}", if text.is_empty() { "" } else { "\n" });
            }
            let unread = no_effect(&self.config, &key);
            let line = match (&value, key.as_str()) {
                (Value::Null, _) if unread.is_some() => format!("# {key}  # not set"),
                (Value::Null, "learning_rate") => {
                    let rate = self.config.resolved_learning_rate();
                    format!("# learning_rate = {rate:e}  # default of {}", self.config.algorithm.name())
                }
                (Value::Null, "beta") => {
                    let (beta, algorithm) = (self.config.resolved_beta(), self.config.algorithm.name());
                    format!("# beta = {beta}  # default of {algorithm}")
                }
                (Value::Null, "epsilon_high") => {
                    format!("# epsilon_high = {}  # default", self.config.resolved_epsilon_high())
                }
                (Value::Null, _) => format!("# {key}  # not set"),
                (value, _) => match unread {
                    Some(unread) => format!("# {key} = {}  # not read {}", toml_value(value), unread.why),
                    None => {
                        format!("{key} = {}  # {}", toml_value(value), one_line(&self.place(&key).to_string()))
                    }
                },
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// One object a setting: its `value` and its `source`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let entries = settings(&self.config).into_iter().map(|(key, value)| {
            let source = self.place(&key).to_string();
            (key, serde_json::json!({ "value": value, "source": source }))
        });
        Value::Object(entries.collect())
    }
}

/// The settings in the order of their declaration.
fn settings(config: &RunConfig) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(settings)) => settings,
        // A struct of plain values becomes an object; only a path that is not UTF-8 has no JSON.
        _ => Map::new(),
    }
}

/// A value in TOML, on one line.
pub(super) fn toml_value(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::from(text.as_str()).to_string(),
        Value::Array(values) => format!("[{}]", values.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Object(entries) => {
            // A key without a value is left out: TOML has no null.
            let given = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<_> =
                given.map(|(key, value)| format!("{} = {}", quoted(key), toml_value(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        // Numbers, booleans: TOML and JSON write them alike.
        other => other.to_string(),
    }
}

fn quoted(key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_bare { key.to_owned() } else { toml_value(&Value::from(key)) }
}

/// Comments end with their line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
