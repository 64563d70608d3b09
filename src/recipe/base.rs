//! The folder of a model that an `[architecture]` table describes: configuration and tokenizer, no weights.
//!
//! It is built in a temporary folder, so that looking at a plan writes nothing, and installed as `base` in the output
//! folder when a run starts; every model that the run saves copies its files.

use super::RecipeError;
use crate::config::{ArchitectureConfig, TokenizerKind};
use crate::io::{IoError, create_dirs, remove_stale_temps, write_atomic};
use crate::model::ModelConfig;
use crate::text::{byte_level_tokenizer, bytes_of};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the folder inside the output folder.
const FOLDER: &str = "base";

/// A model folder without weights.
#[derive(Debug)]
pub(super) struct BaseFolder {
    /// Names and contents.
    files: [(&'static str, String); 4],
    temp: tempfile::TempDir,
}

impl BaseFolder {
    /// The folder of `architecture`, with a tokenizer that knows the `texts`.
    pub fn new<'a>(
        architecture: &ArchitectureConfig,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RecipeError> {
        let bytes = match architecture.tokenizer {
            Some(TokenizerKind::Char) => bytes_of(texts),
            Some(TokenizerKind::Byte) | None => (0..=u8::MAX).collect(),
        };
        let tokenizer = byte_level_tokenizer(&bytes, architecture.max_position_embeddings);
        let config = text(&model_config(architecture, tokenizer.vocab_size));
        // Sizes that are too large are told by the name of the table, not of a temporary file.
        ModelConfig::parse(&config, Path::new("[architecture]"))?;
        let files = [
            ("config.json", config),
            ("generation_config.json", text(&generation_config())),
            ("tokenizer.json", tokenizer.tokenizer),
            ("tokenizer_config.json", tokenizer.config),
        ];
        let temp = tempfile::tempdir().map_err(IoError::of("create a folder in", &std::env::temp_dir()))?;
        for (name, content) in &files {
            let path = temp.path().join(name);
            fs::write(&path, content).map_err(IoError::of("write", &path))?;
        }
        Ok(Self { files, temp })
    }

    /// Where the files lie until they are installed.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Puts the files into the folder `base` of `output_dir`; a run that goes on must find there what it began with.
    pub fn install(&self, output_dir: &Path, is_resumed: bool) -> Result<PathBuf, RecipeError> {
        let folder = output_dir.join(FOLDER);
        create_dirs(&folder)?;
        remove_stale_temps(&folder)?;
        for entry in fs::read_dir(&folder).map_err(IoError::of("list", &folder))? {
            let name = entry.map_err(IoError::of("list", &folder))?.file_name();
            if !self.files.iter().any(|(file, _)| name == *file) {
                let file = name.to_string_lossy().into_owned();
                return Err(RecipeError::ForeignFolder { folder, file });
            }
        }
        for (name, content) in &self.files {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(found) if found == content.as_bytes() => {}
                Ok(_) if is_resumed => return Err(RecipeError::OtherBase { path }),
                _ => write_atomic(&path, |writer| writer.write_all(content.as_bytes()))?,
            }
        }
        Ok(folder)
    }
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// `config.json` with the keys that transformers writes for the family.
fn model_config(a: &ArchitectureConfig, vocab_size: usize) -> Value {
    let family = a.model_type.family();
    json!({
        "architectures": [family.architecture()],
        "model_type": family.model_type(),
        "vocab_size": vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.resolved_key_value_heads(),
        // Qwen3's own default is 128, whatever the other sizes are.
        "head_dim": a.hidden_size / a.num_attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": a.max_position_embeddings,
        "initializer_range": a.initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_theta": a.rope_theta,
        "tie_word_embeddings": a.tie_word_embeddings,
        "attention_dropout": 0.0,
        "use_cache": true,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    })
}

fn generation_config() -> Value {
    json!({ "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelType;
    use crate::error::{Diagnose, Exit};
    use crate::recipe::load_model;

    fn architecture(model_type: ModelType) -> ArchitectureConfig {
        ArchitectureConfig { model_type, tokenizer: Some(TokenizerKind::Char), ..ArchitectureConfig::default() }
    }

    #[test]
    fn each_family_is_read_back_as_it_was_described() {
        for model_type in [ModelType::Llama, ModelType::Qwen2, ModelType::Qwen3] {
            let described = ArchitectureConfig {
                hidden_size: 48,
                num_attention_heads: 4,
                num_key_value_heads: Some(2),
                rope_theta: 500.0,
                tie_word_embeddings: false,
                ..architecture(model_type)
            };
            let base = BaseFolder::new(&described, ["ab", "b c"]).unwrap();
            let model = load_model(&base.path().to_string_lossy(), None, true, None).unwrap();
            let config = &model.config;
            assert_eq!(config.family, model_type.family());
            assert_eq!((config.vocab_size, config.hidden_size, config.head_dim), (5, 48, 12));
            assert_eq!((config.num_attention_heads, config.num_key_value_heads), (4, 2));
            assert_eq!((config.rope_theta, config.tie_word_embeddings), (500.0, false));
            assert_eq!((config.max_position_embeddings, config.notices.len()), (256, 0));
            assert_eq!((model.eos_ids.as_slice(), model.tokenizer.vocab_size()), (&[0][..], 5));
        }
    }

    #[test]
    fn an_absurd_size_is_refused_by_name() {
        let absurd = ArchitectureConfig { hidden_size: 1 << 30, ..architecture(ModelType::Llama) };
        let error = BaseFolder::new(&absurd, ["a"]).unwrap_err();
        assert!(error.to_string().contains("[architecture]") && error.to_string().contains("hidden_size"), "{error}");
    }

    #[test]
    fn a_run_that_goes_on_must_find_what_it_began_with() {
        let output = tempfile::tempdir().unwrap();
        let base = BaseFolder::new(&architecture(ModelType::Llama), ["ab"]).unwrap();
        let folder = base.install(output.path(), false).unwrap();
        assert_eq!(base.install(output.path(), true).unwrap(), folder);
        fs::remove_file(folder.join("config.json")).unwrap();
        base.install(output.path(), true).unwrap();
        assert!(folder.join("config.json").is_file(), "a file that is gone is written again");

        let other = BaseFolder::new(&architecture(ModelType::Llama), ["abc"]).unwrap();
        let error = other.install(output.path(), true).unwrap_err();
        assert!(matches!(&error, RecipeError::OtherBase { path } if path.ends_with("base/config.json")), "{error}");
        other.install(output.path(), false).unwrap();

        fs::write(folder.join("model.safetensors"), "mine").unwrap();
        let error = base.install(output.path(), false).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.hint().is_some() && error.to_string().contains("model.safetensors"), "{error}");
    }
}
