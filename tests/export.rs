//! An exported model is a Hugging Face folder: the base's files to the byte, new weights, loaded back exactly.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/model_folder.rs"]
mod model_folder;

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use candlewick::checkpoint::{CheckpointError, SHARD_BYTES, export_model};
use candlewick::model::{LoadedTensor, ModelConfig, SavedDtype, init_weights, load_weights};
use half::{bf16, f16};
use model_folder::{CONFIG, config};

const OTHERS: &[(&str, &[u8])] = &[
    ("generation_config.json", b"{\"eos_token_id\": [1, 2]}"),
    ("tokenizer.json", b"{ }\n"),
    ("tokenizer_config.json", b"{\r\n}"),
    ("chat_template.jinja", b"{{ x }}"),
];

fn base() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    for (name, content) in OTHERS {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    std::fs::write(folder.path().join("pytorch_model.bin"), "not copied").unwrap();
    folder
}

fn export(
    out: &Path,
    base: &Path,
    tensors: &[LoadedTensor],
    dtype: SavedDtype,
    shard_bytes: u64,
) -> Result<(), CheckpointError> {
    let specs: Vec<(&str, &[usize])> = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    export_model(
        out,
        base,
        &specs,
        |i| Ok::<_, CheckpointError>(Cow::Borrowed(&tensors[i].data[..])),
        dtype,
        shard_bytes,
    )
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_export_loads_back_in_every_dtype() {
    let (base, tensors) = (base(), init_weights(&config(), 3));
    for dtype in [SavedDtype::F32, SavedDtype::Bf16, SavedDtype::F16] {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("new/model");
        export(&out, base.path(), &tensors, dtype, SHARD_BYTES).unwrap();
        for (name, content) in OTHERS {
            assert_eq!(std::fs::read(out.join(name)).unwrap(), *content, "{name}");
        }
        let text = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert_eq!(text, CONFIG.replace("float32", dtype.torch_name()));
        assert!(!out.join("pytorch_model.bin").exists());

        let loaded_config = ModelConfig::load(&out).unwrap();
        assert_eq!(loaded_config, config());
        let (loaded, found) = load_weights(&out, &loaded_config).unwrap();
        assert_eq!(found, dtype);
        for (loaded, exact) in loaded.iter().zip(&tensors) {
            let round = |value: &f32| match dtype {
                SavedDtype::F32 => *value,
                SavedDtype::Bf16 => bf16::from_f32(*value).to_f32(),
                SavedDtype::F16 => f16::from_f32(*value).to_f32(),
            };
            assert_eq!(loaded.data, exact.data.iter().map(round).collect::<Vec<_>>(), "{}", exact.name);
        }
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert!(metadata.tensors().keys().all(|name| name != "lm_head.weight"), "the tied head is written once");
    }
}

#[test]
fn files_have_the_mode_of_any_new_file() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let reference = out.path().join("reference");
    std::fs::write(&reference, "").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    export(out.path(), base.path(), &init_weights(&config(), 3), SavedDtype::Bf16, 1000).unwrap();
    for name in names(out.path()) {
        assert_eq!(mode(&out.path().join(&name)), mode(&reference), "{name}");
    }
}

#[test]
fn shards_come_with_an_index_and_leave_nothing_stale() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let tensors = init_weights(&config(), 3);
    let weights = || names(out.path()).into_iter().filter(|name| name.starts_with("model")).collect::<Vec<_>>();
    export(out.path(), base.path(), &tensors, SavedDtype::F32, 2000).unwrap();
    let sharded = weights();
    assert!(sharded.len() > 3, "{sharded:?}");
    assert_eq!(sharded[0], format!("model-00001-of-{:05}.safetensors", sharded.len() - 1));
    assert_eq!(load_weights(out.path(), &config()).unwrap().0, tensors);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], config().num_parameters() * 4);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors.len());

    export(out.path(), base.path(), &tensors, SavedDtype::F32, 4000).unwrap();
    assert!(weights().len() < sharded.len());
    assert_eq!(load_weights(out.path(), &config()).unwrap().0, tensors);
    export(out.path(), base.path(), &tensors, SavedDtype::F32, SHARD_BYTES).unwrap();
    assert_eq!(weights(), ["model.safetensors"]);

    // A model may be exported over its own base.
    export(out.path(), out.path(), &tensors, SavedDtype::Bf16, SHARD_BYTES).unwrap();
    assert_eq!(std::fs::read(out.path().join("tokenizer.json")).unwrap(), b"{ }\n");
}

#[test]
fn values_that_the_dtype_cannot_hold_are_errors() {
    let base = base();
    for (value, dtype, fits) in [
        (65504.0, SavedDtype::F16, true),
        (70000.0, SavedDtype::F16, false),
        (70000.0, SavedDtype::Bf16, true),
        (f32::MAX, SavedDtype::Bf16, false),
        (f32::MAX, SavedDtype::F32, true),
        (f32::NAN, SavedDtype::F32, false),
    ] {
        let out = tempfile::tempdir().unwrap();
        let mut tensors = init_weights(&config(), 3);
        tensors[4].data[1] = value;
        let result = export(out.path(), base.path(), &tensors, dtype, SHARD_BYTES);
        match result {
            Ok(()) => assert!(fits, "{value} {dtype:?}"),
            Err(CheckpointError::NotRepresentable { tensor, .. }) => {
                assert!(!fits, "{value} {dtype:?}");
                assert_eq!(tensor, tensors[4].name);
                assert!(!out.path().join("model.safetensors").exists());
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn errors_of_the_data_come_through() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let mut tensors = init_weights(&config(), 3);
    tensors[2].data.pop();
    let error = export(out.path(), base.path(), &tensors, SavedDtype::F32, SHARD_BYTES).unwrap_err();
    assert!(error.to_string().contains("was given 11 elements"), "{error}");
    let error = export(out.path(), &out.path().join("none"), &init_weights(&config(), 3), SavedDtype::F32, SHARD_BYTES);
    assert!(matches!(error, Err(CheckpointError::Io(_))));
}
