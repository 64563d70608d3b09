//! A tokenizer made from data: one token a byte, nothing merged.
//!
//! What is written is BPE without merges over the byte-level alphabet of GPT-2 (a space is `Ġ`, a line break `Ċ`), which
//! transformers, its Rust library and the converters read unchanged, whatever the model's family. A character of ASCII
//! is one token, any other one as many as it has bytes in UTF-8. Reading tokenizers is `tokenizer.rs`'s.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The token that ends a text, id 0. Where this string stands in a text, it is that token.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The two files of a tokenizer, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// Content of `tokenizer.json`.
    pub tokenizer: String,
    /// Content of `tokenizer_config.json`.
    pub config: String,
    /// Number of tokens, [`END_OF_TEXT`] included.
    pub vocab_size: usize,
}

/// The bytes that texts consist of.
#[must_use]
pub fn bytes_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<u8> {
    let mut seen = [false; 256];
    for text in texts {
        text.bytes().for_each(|byte| seen[usize::from(byte)] = true);
    }
    (0..=u8::MAX).filter(|byte| seen[usize::from(*byte)]).collect()
}

/// The tokenizer with a token for each of `bytes` (ids from 1, by value), for sequences of at most `max_length` tokens.
///
/// ```
/// use candlewick::text::{byte_level_tokenizer, bytes_of};
///
/// let files = byte_level_tokenizer(&bytes_of(["a cab"]), 128);
/// assert_eq!(files.vocab_size, 5);
/// ```
#[must_use]
pub fn byte_level_tokenizer(bytes: &BTreeSet<u8>, max_length: usize) -> TokenizerFiles {
    let tokens = std::iter::once(END_OF_TEXT.to_owned()).chain(bytes.iter().map(|byte| byte_char(*byte).to_string()));
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let vocab_size = vocab.len();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_length,
    });
    TokenizerFiles { tokenizer: pretty(&tokenizer), config: pretty(&config), vocab_size }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The printable character that byte-level vocabularies write for a byte (GPT-2's `bytes_to_unicode`).
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u32| (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
    let byte = u32::from(byte);
    let code = if printable(byte) { byte } else { 256 + (0..byte).filter(|&b| !printable(b)).count() as u32 };
    // Both ranges, 0x21..=0xFF and 0x100..=0x143, are characters.
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;

    fn load(files: &TokenizerFiles) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), &files.tokenizer).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), &files.config).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    }

    /// Every byte has a printable character of its own, and the two that conventions name have theirs.
    #[test]
    fn the_alphabet_is_that_of_gpt2() {
        let all: BTreeSet<char> = (0..=u8::MAX).map(byte_char).collect();
        assert_eq!(all.len(), 256);
        assert!(all.iter().all(|c| !c.is_control() && !c.is_whitespace()));
        assert_eq!([b' ', b'\n', b'A'].map(byte_char), ['Ġ', 'Ċ', 'A']);
    }

    #[test]
    fn texts_come_back_and_each_byte_is_a_token() {
        let text = "A fox,\r\n\tsaid \"Ünï\" & 3.\n\n";
        let tokenizer = load(&byte_level_tokenizer(&bytes_of([text]), 64));
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!((tokenizer.eos_id(), tokenizer.vocab_size()), (Some(0), bytes_of([text]).len() + 1));
        let ended = tokenizer.encode("A<|endoftext|>A", false).unwrap();
        assert_eq!((ended.len(), ended[1]), (3, 0), "the end token stands for itself");
        assert_eq!(tokenizer.missing_characters("A fox of 4 ö"), ['4', 'ö']);
    }

    #[test]
    fn all_bytes_hold_any_text() {
        let tokenizer = load(&byte_level_tokenizer(&(0..=u8::MAX).collect(), 64));
        let text: String = (0..0x300).chain([0x20AC, 0x1F600, 0xFFFD]).filter_map(char::from_u32).collect();
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()).unwrap(), text);
        assert!(tokenizer.missing_characters(&text).is_empty());
    }
}
