//! Two small tokenizers for the unit tests of this area, written to a temporary folder and loaded as a user's would be.

use std::fs;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::byte_level::byte_char;

fn load(tokenizer: &Value, config: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// One token a byte (ids 0..256 by byte value), then `</s>` and `<|im_end|>`.
pub(super) fn byte_level() -> Tokenizer {
    let mut vocab: Map<String, Value> = (0..=255u8).map(|byte| (byte_char(byte).to_string(), json!(byte))).collect();
    vocab.insert("</s>".into(), json!(256));
    vocab.insert("<|im_end|>".into(), json!(257));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    load(
        &json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "!"},
            "added_tokens": [special(256, "</s>"), special(257, "<|im_end|>")],
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                      "merges": []},
        }),
        &json!({"eos_token": {"content": "</s>"}}),
    )
}

/// The decoder of Llama 2: a space marker, byte fallback, a first space that is dropped; `<s>` in front, `</s>` behind.
pub(super) fn sentencepiece_like() -> Tokenizer {
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "▁b": 4, "▁": 261, "a": 262, "b": 263});
    for byte in 0..=255u16 {
        vocab[format!("<0x{byte:02X}>")] = json!(5 + byte);
    }
    load(
        &json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                                   "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                      "merges": ["▁ a", "▁ b"]},
        }),
        &json!({"bos_token": "<s>", "eos_token": "</s>"}),
    )
}
