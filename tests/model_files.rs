//! Wrong model folders: what each one says. Nothing here may panic, and nothing may load.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/model_folder.rs"]
mod model_folder;

use std::fmt::Write;
use std::path::Path;

use candlewick::error::{Diagnose, Exit};
use candlewick::model::{ModelConfig, ModelError, SavedDtype, init_weights, load_weights};
use half::{bf16, f16};
use model_folder::{CONFIG, Stored, config, serialize, tensors};
use safetensors::tensor::Dtype;

/// An error as a person sees it, the folder's name left out.
fn shown(error: &ModelError, folder: &Path) -> String {
    assert_eq!(error.exit(), Exit::Model, "{error}");
    let mut text = error.to_string();
    if let Some(hint) = error.hint() {
        let _ = write!(text, "\n  hint: {hint}");
    }
    text.replace(&folder.display().to_string(), "MODEL")
}

/// Loads a folder that `prepare` has spoilt.
fn load(prepare: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    prepare(folder.path());
    let result = ModelConfig::load(folder.path()).and_then(|config| load_weights(folder.path(), &config));
    match result {
        Ok(_) => "loaded".into(),
        Err(error) => shown(&error, folder.path()),
    }
}

/// Loads a folder with the given `model.safetensors`.
fn load_file(bytes: &[u8]) -> String {
    load(|folder| std::fs::write(folder.join("model.safetensors"), bytes).unwrap())
}

/// A safetensors file with a header of the test's choice.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// One line for each case, in the order of the table.
fn report(cases: Vec<(&str, String)>) -> String {
    cases.into_iter().fold(String::new(), |text, (name, message)| text + "# " + name + "\n" + &message + "\n\n")
}

#[test]
fn damaged_safetensors_files() {
    let good = serialize(&tensors());
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{first}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{second}}}}}"#
        )
    };
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    let cases = vec![
        ("empty", load_file(b"")),
        ("seven bytes", load_file(&good[..7])),
        ("header cut", load_file(&good[..100])),
        ("data cut", load_file(&good[..good.len() - 1])),
        ("half", load_file(&good[..good.len() / 2])),
        ("trailing byte", load_file(&[&good[..], &[0]].concat())),
        ("header length 0", load_file(&[0; 16])),
        ("header length u64::MAX", load_file(&[0xff; 16])),
        ("header not UTF-8", load_file(&[&4u64.to_le_bytes()[..], b"{\xff\xfe}"].concat())),
        ("header not JSON", load_file(&file("{\"a\":", 0))),
        ("header not an object", load_file(&file("[]", 0))),
        ("deep nesting", load_file(&file(&"[".repeat(100_000), 0))),
        ("duplicate tensor", load_file(&file(&two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), 8))),
        ("overlap", load_file(&file(&two("[0,4]", "[0,4]"), 4))),
        ("hole", load_file(&file(&two("[0,4]", "[8,12]"), 12))),
        ("offsets reversed", load_file(&file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4))),
        ("negative offset", load_file(&file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}"#), 4))),
        ("wrong span", load_file(&file(&one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), 8))),
        (
            "shape overflow",
            load_file(&file(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}"#), 0)),
        ),
        (
            "huge offsets",
            load_file(&file(
                &one(r#"{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]}"#),
                4,
            )),
        ),
        ("unknown dtype", load_file(&file(&one(r#"{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}"#), 4))),
        ("missing key", load_file(&file(&one(r#"{"dtype":"F32","shape":[1]}"#), 4))),
        ("extra key", load_file(&file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#), 4))),
        ("NUL in a name", load_file(&file(r#"{"a\u0000b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4))),
        ("empty name", load_file(&file(r#"{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4))),
        ("metadata of numbers", load_file(&file(r#"{"__metadata__":{"a":1}}"#, 0))),
    ];
    insta::assert_snapshot!(report(cases));
}

/// No cut of a good file loads or panics.
#[test]
fn every_truncation_is_an_error() {
    let good = serialize(&tensors());
    let cuts = (0..64).chain((64..good.len()).step_by(97)).chain([good.len() - 1]);
    for cut in cuts {
        assert_ne!(load_file(&good[..cut]), "loaded", "cut at {cut}");
    }
    assert_eq!(load_file(&good), "loaded");
}

#[test]
fn other_formats() {
    let named = |name: &'static str| load(move |folder| std::fs::write(folder.join(name), b"x").unwrap());
    let cases = vec![
        ("pytorch_model.bin", named("pytorch_model.bin")),
        ("model.pt", named("model.pt")),
        ("model.pth", named("model.pth")),
        ("last.ckpt", named("last.ckpt")),
        ("weights.npz", named("weights.npz")),
        ("model.gguf", named("model.gguf")),
        ("adapter", named("adapter_model.safetensors")),
        ("nothing", load(|_| {})),
        ("pickle under a safetensors name", load_file(b"\x80\x02}q\x00(X\x03\x00\x00\x00abc")),
        ("zip under a safetensors name", load_file(b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl")),
        ("GGUF under a safetensors name", load_file(b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00")),
        ("Git LFS pointer", load_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")),
        ("web page", load_file(b"<!doctype html><html><body>404</body></html>")),
        ("a folder", load(|folder| std::fs::create_dir(folder.join("model.safetensors")).unwrap())),
    ];
    insta::assert_snapshot!(report(cases));
}

#[test]
fn tensors_that_do_not_fit() {
    let changed = |change: &dyn Fn(&mut Vec<Stored>)| {
        let mut stored = tensors();
        change(&mut stored);
        load_file(&serialize(&stored))
    };
    let stored = |name: &str, dtype, shape: &[usize], bytes: usize| Stored {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        data: vec![0; bytes],
    };
    let value = |stored: &mut Stored, at: usize, value: f32| {
        stored.data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    };
    let cases = vec![
        (
            "missing, mis-shaped and unexpected together",
            changed(&|t| {
                t[3].shape.reverse();
                t.remove(2);
                t.push(stored("model.layers.9.mlp.up_proj.weight", Dtype::F32, &[1], 4));
            }),
        ),
        ("transposed square is fine, transposed embedding is not", changed(&|t| t[0].shape.reverse())),
        ("whole numbers", changed(&|t| t[0].dtype = Dtype::I32)),
        (
            "8-bit floats",
            changed(&|t| {
                t[0].dtype = Dtype::F8_E4M3;
                t[0].data.truncate(11 * 12);
            }),
        ),
        ("adapter inside", changed(&|t| t.push(stored("base_model.lora_A.weight", Dtype::F32, &[1], 4)))),
        ("tied head that differs", changed(&|t| t.push(stored("lm_head.weight", Dtype::F32, &[11, 12], 11 * 12 * 4)))),
        ("NaN", changed(&|t| value(&mut t[3], 1, f32::NAN))),
        (
            "infinity twice",
            changed(&|t| {
                value(&mut t[5], 0, f32::INFINITY);
                value(&mut t[5], 1, f32::NEG_INFINITY);
            }),
        ),
    ];
    insta::assert_snapshot!(report(cases));
}

/// What transformers ignores is ignored here: old rotary buffers, a tied head that equals the embedding.
#[test]
fn harmless_extras_are_ignored() {
    let mut stored = tensors();
    let mut head = stored[0].clone();
    head.name = "lm_head.weight".into();
    stored.push(head);
    stored.push(Stored {
        name: "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        dtype: Dtype::F32,
        shape: vec![2],
        data: vec![0; 8],
    });
    assert_eq!(load_file(&serialize(&stored)), "loaded");
}

#[test]
fn indexes_and_shards() {
    let with_index = |index: &str| {
        load(|folder| {
            let stored = tensors();
            std::fs::write(folder.join("model-00001-of-00002.safetensors"), serialize(&stored[..9])).unwrap();
            std::fs::write(folder.join("model-00002-of-00002.safetensors"), serialize(&stored[9..])).unwrap();
            std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        })
    };
    let map = |shard_of: &dyn Fn(usize) -> String| {
        let entries: Vec<String> =
            tensors().iter().enumerate().map(|(i, t)| format!("{:?}: {:?}", t.name, shard_of(i))).collect();
        format!("{{\"metadata\": {{\"total_size\": 1}}, \"weight_map\": {{{}}}}}", entries.join(", "))
    };
    let shard = |i: usize| format!("model-0000{}-of-00002.safetensors", if i < 9 { 1 } else { 2 });
    assert_eq!(with_index(&map(&shard)), "loaded");
    let elsewhere = |name: &'static str| with_index(&map(&|i| if i == 3 { name.into() } else { shard(i) }));
    let cases = vec![
        ("not JSON", with_index("{")),
        ("no weight_map", with_index("{}")),
        ("weight_map of numbers", with_index(r#"{"weight_map": {"a": 1}}"#)),
        ("parent folder", elsewhere("../../x.safetensors")),
        ("absolute path", elsewhere("/etc/passwd")),
        ("inner parent", elsewhere("a/../b.safetensors")),
        ("drive letter", elsewhere("C:\\x.safetensors")),
        ("NUL", elsewhere("a\0.safetensors")),
        ("pickle", elsewhere("pytorch_model.bin")),
        ("absent shard", elsewhere("model-00003-of-00002.safetensors")),
        ("tensor in another shard", with_index(&map(&|i| shard(if i == 3 { 9 } else { i })))),
        ("all in one shard", with_index(&map(&|_| shard(0)))),
    ];
    insta::assert_snapshot!(report(cases));
}

#[test]
fn a_pipe_is_not_read() {
    let message = load(|folder| {
        let path = folder.join("model.safetensors");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    });
    assert_eq!(message, "MODEL/model.safetensors is not a plain file");
}

#[test]
fn wrong_configs() {
    let replaced = |from: &str, to: &str| {
        assert!(CONFIG.contains(from), "{from}");
        load(|folder| std::fs::write(folder.join("config.json"), CONFIG.replace(from, to)).unwrap())
    };
    let added = |keys: &str| replaced("{\n", &format!("{{\n  {keys},\n"));
    let cases = vec![
        ("not JSON", load(|folder| std::fs::write(folder.join("config.json"), "{\"a\": }").unwrap())),
        ("not UTF-8", load(|folder| std::fs::write(folder.join("config.json"), b"{\"a\": \"\xff\"}").unwrap())),
        ("a list", load(|folder| std::fs::write(folder.join("config.json"), "[]").unwrap())),
        ("empty object", load(|folder| std::fs::write(folder.join("config.json"), "{}").unwrap())),
        ("absent", load(|folder| std::fs::remove_file(folder.join("config.json")).unwrap())),
        (
            "family only",
            load(|folder| std::fs::write(folder.join("config.json"), r#"{"model_type": "qwen3"}"#).unwrap()),
        ),
        ("repeated key", added("\"vocab_size\": 12")),
        ("hidden 0", replaced("\"hidden_size\": 12", "\"hidden_size\": 0")),
        ("heads 0", replaced("\"num_attention_heads\": 3", "\"num_attention_heads\": 0")),
        ("hidden not divisible by heads", replaced("\"num_attention_heads\": 3", "\"num_attention_heads\": 5")),
        ("heads not divisible by kv heads", replaced("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2")),
        ("kv heads left out", replaced("  \"num_key_value_heads\": 1,\n", "")),
        ("odd head_dim", added("\"head_dim\": 3")),
        ("vocab 2^40", replaced("\"vocab_size\": 11", "\"vocab_size\": 1099511627776")),
        ("layers 10^9", replaced("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000")),
        (
            "possible sizes, impossible model",
            load(|folder| {
                let text = CONFIG.replace("\"hidden_size\": 12", "\"hidden_size\": 1048575, \"head_dim\": 128");
                let text = text
                    .replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4096")
                    .replace("\"intermediate_size\": 10", "\"intermediate_size\": 1048576");
                std::fs::write(folder.join("config.json"), text).unwrap();
            }),
        ),
        ("one head of a wide model", replaced("\"hidden_size\": 12", "\"hidden_size\": 1048575")),
        ("head_dim 0", added("\"head_dim\": 0")),
        ("negative", replaced("\"vocab_size\": 11", "\"vocab_size\": -1")),
        ("fraction", replaced("\"vocab_size\": 11", "\"vocab_size\": 11.5")),
        ("text", replaced("\"vocab_size\": 11", "\"vocab_size\": \"11\"")),
        ("theta 0", replaced("10000.0", "0")),
        ("theta NaN", replaced("10000.0", "NaN")),
        ("theta 1e400", replaced("10000.0", "1e400")),
        ("eps negative", replaced("1e-06", "-1.0")),
        ("other activation", replaced("silu", "gelu_new")),
        ("unknown architecture", replaced("Qwen2ForCausalLM", "BloomForCausalLM")),
        ("a classifier", replaced("Qwen2ForCausalLM", "Qwen2ForSequenceClassification")),
        ("remote code", replaced("Qwen2ForCausalLM", "MyModel\"], \"auto_map\": {\"AutoModel\": \"x.y\"}, \"x\": [\"")),
        ("contradiction", replaced("\"qwen2\"", "\"mistral\"")),
        ("quantized", added(r#""quantization_config": {"quant_method": "gptq", "bits": 4}"#)),
        ("yarn", added(r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#)),
        ("dynamic", added(r#""rope_scaling": {"type": "dynamic", "factor": 4.0}"#)),
        ("longrope", added(r#""rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}"#)),
        ("rotary settings a layer type", added(r#""rope_parameters": {"full_attention": {"rope_type": "default"}}"#)),
        ("partial rotary", added(r#""partial_rotary_factor": 0.5"#)),
        ("llama3 incomplete", added(r#""rope_scaling": {"rope_type": "llama3", "factor": 8.0}"#)),
        (
            "llama3 reversed",
            added(
                r#""rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}"#,
            ),
        ),
        ("layer types", added(r#""layer_types": ["linear_attention", "full_attention"]"#)),
        (
            "many at once",
            load(|folder| {
                let text = CONFIG.replace("\"hidden_size\": 12", "\"hidden_size\": null").replace("10000.0", "-1");
                std::fs::write(folder.join("config.json"), text.replace("silu", "relu").replace("true", "\"yes\""))
                    .unwrap();
            }),
        ),
    ];
    insta::assert_snapshot!(report(cases));
}

/// A file of another dtype gives the same values, rounded, and says what it was.
#[test]
fn half_precision_files_load_as_f32() {
    let config = config();
    let exact = init_weights(&config, 7);
    for dtype in [SavedDtype::F32, SavedDtype::Bf16, SavedDtype::F16] {
        let round = |value: f32| match dtype {
            SavedDtype::F32 => value,
            SavedDtype::Bf16 => bf16::from_f32(value).to_f32(),
            SavedDtype::F16 => f16::from_f32(value).to_f32(),
        };
        let bytes = |value: &f32| match dtype {
            SavedDtype::F32 => value.to_le_bytes().to_vec(),
            SavedDtype::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            SavedDtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        };
        let stored: Vec<Stored> = exact
            .iter()
            .map(|tensor| Stored {
                name: tensor.name.clone(),
                dtype: match dtype {
                    SavedDtype::F32 => Dtype::F32,
                    SavedDtype::Bf16 => Dtype::BF16,
                    SavedDtype::F16 => Dtype::F16,
                },
                shape: tensor.shape.clone(),
                data: tensor.data.iter().flat_map(bytes).collect(),
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), serialize(&stored)).unwrap();
        let (loaded, found) = load_weights(folder.path(), &config).unwrap();
        assert_eq!(found, dtype);
        assert_eq!(loaded.len(), exact.len());
        for (loaded, exact) in loaded.iter().zip(&exact) {
            assert_eq!((&loaded.name, &loaded.shape), (&exact.name, &exact.shape));
            assert_eq!(loaded.data, exact.data.iter().map(|value| round(*value)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn fresh_weights_are_reproducible_and_have_the_right_spread() {
    let config = config();
    let first = init_weights(&config, 1);
    assert_eq!(first, init_weights(&config, 1));
    assert_ne!(first[0].data, init_weights(&config, 2)[0].data);
    assert_ne!(first[1].data[..12], first[7].data[..12], "tensors have draws of their own");
    let normal: Vec<f64> =
        first.iter().filter(|t| t.shape.len() == 2).flat_map(|t| t.data.iter().map(|v| f64::from(*v))).collect();
    let n = normal.len() as f64;
    let std = (normal.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
    // Five standard errors of the spread of n draws.
    assert!((std / config.initializer_range - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{std}");
    assert!(first.iter().filter(|t| t.name.ends_with("bias")).all(|t| t.data.iter().all(|v| v.to_bits() == 0)));
    assert!(
        first
            .iter()
            .filter(|t| t.name.ends_with("norm.weight"))
            .all(|t| t.data.iter().all(|v| v.to_bits() == 1f32.to_bits()))
    );
}
