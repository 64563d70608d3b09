//! May this checkpoint be continued with these settings? Lists what differs and refuses what cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CheckpointError;
use crate::io::sha256_bytes;

/// Settings that change neither the numbers of a run nor what it is: a difference is not worth a word.
const SILENT: &[&str] = &[
    "output_dir",
    "resume",
    "logging_steps",
    "threads",
    "report_to",
    "python",
    "project",
    "run_name",
    "offline",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
];
/// Settings that make another run of it.
const FATAL: [&str; 3] = ["algorithm", "model", "init"];
/// Tables of such settings: all of their keys, and the tables themselves.
const FATAL_TABLES: [&str; 2] = ["architecture", "lora"];
/// Settings that saved rollouts were made with (their shape, the temperature of their log-probs): fatal while such wait
/// to be used again.
const FATAL_WITH_ROLLOUTS: [&str; 5] = ["num_generations", "prompts_per_step", "num_iterations", "beta", "temperature"];

/// What a run is a run of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// The resolved settings, by dotted key, each value as JSON text.
    pub config: BTreeMap<String, String>,
    /// The base model as it was named.
    pub model: String,
    /// The commit of the base model, where it came from a hub.
    pub revision: Option<String>,
    /// SHA-256 of the weights of the base model, where they came from a folder.
    #[serde(default)]
    pub weights_sha256: Option<String>,
    /// SHA-256 of the tokenizer file.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template, where there is one.
    #[serde(default)]
    pub template_sha256: Option<String>,
    /// SHA-256 of the training data.
    pub data_sha256: String,
    /// The commits of the training data sets, where they came from a hub.
    #[serde(default)]
    pub data_revision: Option<String>,
    /// SHA-256 over names and shapes of the trained tensors, by [`RunIdentity::hash_shapes`].
    pub shapes_sha256: String,
}

impl RunIdentity {
    /// Settings by dotted key; each leaf (arrays included) as JSON text, which compares exactly.
    #[must_use]
    pub fn flatten(config: &Value) -> BTreeMap<String, String> {
        let mut flat = BTreeMap::new();
        let mut open = vec![(String::new(), config)];
        while let Some((key, value)) = open.pop() {
            if let Value::Object(members) = value {
                let prefix = if key.is_empty() { key } else { key + "." };
                open.extend(members.iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
            } else {
                flat.insert(key, value.to_string());
            }
        }
        flat
    }

    /// One hash over the names and shapes of tensors, in their order.
    #[must_use]
    pub fn hash_shapes<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> String {
        let lines: Vec<_> = tensors.into_iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
        sha256_bytes(lines.join("\n").as_bytes())
    }

    /// SHA-256 of the settings.
    #[must_use]
    pub fn config_sha256(&self) -> String {
        let lines: Vec<_> = self.config.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        sha256_bytes(lines.join("\n").as_bytes())
    }

    /// The facts that the manifest repeats.
    #[must_use]
    pub fn facts(&self) -> Value {
        serde_json::json!({
            "model": self.model,
            "revision": self.revision,
            "config_sha256": self.config_sha256(),
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "template_sha256": self.template_sha256,
            "data_sha256": self.data_sha256,
            "data_revision": self.data_revision,
            "shapes_sha256": self.shapes_sha256,
        })
    }
}

/// One thing that is not as it was when the checkpoint was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Dotted key of the setting, or the name of the fact.
    pub key: String,
    /// Value in the checkpoint.
    pub saved: String,
    /// Value now.
    pub current: String,
    /// Whether the run cannot go on with it.
    pub is_fatal: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in the checkpoint, {} now", self.key, self.saved, self.current)
    }
}

/// Lists what differs between a checkpoint's run and this one; settings that do not matter are left out.
///
/// `has_rollouts`: the checkpoint holds rollouts of an unfinished cycle of iterations.
#[must_use]
pub fn compare_identity(saved: &RunIdentity, current: &RunIdentity, has_rollouts: bool) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |key: &str, saved: &str, current: &str, is_fatal: bool| {
        if saved != current {
            let (key, saved, current) = (key.to_owned(), saved.to_owned(), current.to_owned());
            differences.push(Difference { key, saved, current, is_fatal });
        }
    };
    compare("shapes of the weights", &saved.shapes_sha256, &current.shapes_sha256, true);
    compare("tokenizer", &saved.tokenizer_sha256, &current.tokenizer_sha256, true);
    // The reference is read from the base model again, and so is the model beside an adapter.
    if let (Some(saved), Some(current)) = (&saved.weights_sha256, &current.weights_sha256) {
        compare("weights of the base model (SHA-256)", saved, current, true);
    }
    if let (Some(saved), Some(current)) = (&saved.template_sha256, &current.template_sha256) {
        compare("chat template (SHA-256)", saved, current, true);
    }
    let commit = |commit: &Option<String>| commit.clone().unwrap_or_else(|| "none".into());
    compare("commit of the model", &commit(&saved.revision), &commit(&current.revision), true);
    compare("commit of the data set", &commit(&saved.data_revision), &commit(&current.data_revision), false);
    compare("training data", &saved.data_sha256, &current.data_sha256, false);
    let keys: BTreeSet<_> = saved.config.keys().chain(current.config.keys()).collect();
    for key in keys {
        let name = key.rsplit('.').next().unwrap_or(key);
        if SILENT.contains(&name) {
            continue;
        }
        let is_fatal = FATAL.contains(&name)
            || FATAL_TABLES.contains(&key.split('.').next().unwrap_or(key))
            || (has_rollouts && FATAL_WITH_ROLLOUTS.contains(&name));
        // A setting that did not exist yet is one that was left out.
        let value = |identity: &RunIdentity| match identity.config.get(key).map(String::as_str) {
            None | Some("null") => "not set".to_owned(),
            Some(text) => text.to_owned(),
        };
        compare(key, &value(saved), &value(current), is_fatal);
    }
    differences
}

/// Refuses a checkpoint that cannot be continued; returns the differences to warn of otherwise.
///
/// # Errors
/// [`CheckpointError::Incompatible`] with the fatal differences.
pub fn require_compatible(
    folder: &Path,
    saved: &RunIdentity,
    current: &RunIdentity,
    has_rollouts: bool,
) -> Result<Vec<Difference>, CheckpointError> {
    let (fatal, rest): (Vec<_>, Vec<_>) =
        compare_identity(saved, current, has_rollouts).into_iter().partition(|difference| difference.is_fatal);
    if fatal.is_empty() {
        return Ok(rest);
    }
    Err(CheckpointError::Incompatible { folder: folder.to_owned(), differences: fatal })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Diagnose, Exit};
    use serde_json::json;

    fn identity(config: &Value) -> RunIdentity {
        RunIdentity { config: RunIdentity::flatten(config), ..RunIdentity::default() }
    }

    #[test]
    fn settings_that_may_change_are_listed_and_silent_ones_are_not() {
        let saved = identity(&json!({"optim": {"learning_rate": 1e-6}, "output_dir": "a", "seed": 1}));
        let current =
            identity(&json!({"optim": {"learning_rate": 2e-6}, "output_dir": "b", "seed": 1, "max_steps": 9}));
        let rest = require_compatible(Path::new("c"), &saved, &current, false).unwrap();
        let texts: Vec<_> = rest.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["max_steps: not set in the checkpoint, 9 now", "optim.learning_rate: 1e-6 in the checkpoint, 2e-6 now"]
        );
    }

    #[test]
    fn another_model_or_tokenizer_is_refused_with_all_fatal_differences() {
        let saved = identity(&json!({"model": "a/b", "learning_rate": 1}));
        let mut current = identity(&json!({"model": "c/d", "learning_rate": 2}));
        current.tokenizer_sha256 = "ff".into();
        current.shapes_sha256 = RunIdentity::hash_shapes([("w", &[1, 2][..])]);
        let error = require_compatible(Path::new("c"), &saved, &current, false).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        let text = error.to_string();
        for expected in ["shapes of the weights", "tokenizer: ", "model: \"a/b\" in the checkpoint, \"c/d\" now"] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("learning_rate"), "{text}");
    }

    #[test]
    fn the_batch_shape_is_fixed_only_while_rollouts_wait() {
        let (saved, current) = (identity(&json!({"num_generations": 8})), identity(&json!({"num_generations": 4})));
        assert!(require_compatible(Path::new("c"), &saved, &current, false).is_ok());
        assert!(require_compatible(Path::new("c"), &saved, &current, true).is_err());
    }

    #[test]
    fn other_weights_of_sources_and_another_commit_of_the_data_are_told() {
        let of = |weight: f64, commit: &str| RunIdentity {
            data_revision: Some(commit.to_owned()),
            ..identity(&json!({"train_mix": [{"file": "a.jsonl", "weight": weight}]}))
        };
        let rest = require_compatible(Path::new("c"), &of(1.0, "aa"), &of(2.0, "bb"), false).unwrap();
        let texts: Vec<_> = rest.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "commit of the data set: aa in the checkpoint, bb now");
        assert!(texts[1].starts_with("train_mix: ") && texts[1].contains("2.0"), "{texts:?}");
        // Checkpoints from before data sets had commits are still read.
        let mut old = serde_json::to_value(of(1.0, "aa")).unwrap();
        old.as_object_mut().unwrap().remove("data_revision");
        assert_eq!(serde_json::from_value::<RunIdentity>(old).unwrap().data_revision, None);
    }

    #[test]
    fn transposed_shapes_have_another_hash() {
        let hash = |shape: &[usize]| RunIdentity::hash_shapes([("w", shape)]);
        assert_ne!(hash(&[2, 3]), hash(&[3, 2]));
    }
}
