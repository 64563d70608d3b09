//! `config.json` of a reward model, made from that of the model it was trained from.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::CheckpointError;

/// The text of a `config.json` as that of a sequence classifier with one label, with the keys that transformers writes.
/// Everything else stays; an only label keeps its name. Without a padding token transformers scores one text at a time.
///
/// # Errors
/// [`CheckpointError::Corrupt`] where the text is no JSON object; `path` names it.
pub fn classifier_config(
    path: &Path,
    config: &str,
    architecture: &str,
    pad_token_id: Option<u32>,
) -> Result<String, CheckpointError> {
    let mut config: Map<String, Value> =
        serde_json::from_str(config).map_err(|error| CheckpointError::corrupt(path, error.to_string()))?;
    config.insert("architectures".into(), json!([architecture]));
    let is_single = config.get("id2label").and_then(Value::as_object).is_some_and(|labels| labels.len() == 1);
    if !is_single {
        config.insert("id2label".into(), json!({ "0": "LABEL_0" }));
        config.insert("label2id".into(), json!({ "LABEL_0": 0 }));
    }
    // It is what the labels say it is; a second count could only contradict them.
    config.shift_remove("num_labels");
    if let Some(id) = pad_token_id {
        config.insert("pad_token_id".into(), json!(id));
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_model_becomes_a_classifier_with_one_label() {
        let of =
            |text: &str, pad| classifier_config(Path::new("config.json"), text, "Qwen2ForSequenceClassification", pad);
        let base = r#"{"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-06, "num_labels": 2, "z": null}"#;
        let config: Value = serde_json::from_str(&of(base, Some(7)).unwrap()).unwrap();
        let expected = json!({
            "architectures": ["Qwen2ForSequenceClassification"], "rms_norm_eps": 1e-6, "z": null,
            "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": 7,
        });
        assert_eq!(config, expected);
        let named = r#"{"id2label": {"0": "good"}, "label2id": {"good": 0}, "pad_token_id": 3}"#;
        let config: Value = serde_json::from_str(&of(named, None).unwrap()).unwrap();
        assert_eq!((&config["id2label"]["0"], &config["pad_token_id"]), (&json!("good"), &json!(3)));
        assert!(of("[]", None).is_err());
    }
}
