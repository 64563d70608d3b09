//! The tokenizer of a model folder: text to ids and back, special tokens, the EOS set.
//!
//! A thin wrapper over the `tokenizers` library. It owns what transformers does around that library: padding and
//! truncation stored in tokenizer.json are ignored, and special tokens named in `tokenizer_config.json` are skipped in
//! decoding.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper};

use super::error::{TextError, excerpt};
use crate::io::IoError;

/// The named special tokens of a tokenizer (`bos_token`, `eos_token`, ...), as chat templates see them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    tokens: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// Special tokens by name, for templates that are rendered without a tokenizer.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { tokens: pairs.into_iter().map(|(name, token)| (name.into(), token.into())).collect() }
    }

    /// The text of the special token `name` (`eos_token`, say).
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.tokens.get(name).map(String::as_str)
    }

    /// Names and texts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tokens.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }
}

/// A tokenizer. Cloning is cheap; it can be shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special: SpecialTokens,
    vocab_size: usize,
    eos_id: Option<u32>,
    unk_id: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model folder, with the special tokens that `tokenizer_config.json` and
    /// `special_tokens_map.json` name.
    ///
    /// # Errors
    /// The file is missing or malformed, or the EOS token is named but not in the vocabulary.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(TextError::NoTokenizer { folder: folder.to_path_buf() });
        }
        let bytes = fs::read(&path).map_err(IoError::of("read", &path))?;
        let bad = |reason: String| TextError::BadTokenizer { path: path.clone(), reason };
        // Third-party parser on a file from outside: a panic in it must not take the run down.
        let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&bytes)))
            .map_err(|_| bad("the library panicked".to_string()))?;
        let mut tokenizer = parsed.map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(error.to_string()))?;

        let special = load_special_tokens(folder)?;
        register_special(&mut tokenizer, &special).map_err(|error| bad(error.to_string()))?;
        let eos_id = match special.text("eos_token") {
            None => None,
            Some(token) => Some(tokenizer.token_to_id(token).ok_or_else(|| TextError::UnknownSpecialToken {
                path: folder.join("tokenizer_config.json"),
                key: "eos_token".to_string(),
                token: token.to_string(),
            })?),
        };
        let unk_id = special.text("unk_token").map(str::to_owned).or_else(|| own_unk_token(&tokenizer));
        let unk_id = unk_id.and_then(|token| tokenizer.token_to_id(&token));
        let vocab_size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(Self { inner: Arc::new(Inner { tokenizer, special, vocab_size, eos_id, unk_id }) })
    }

    /// Token ids of a text. `add_special_tokens` lets the tokenizer add its own (`<s>`, say).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, add_special_tokens)
            .map_err(|error| TextError::Encode { excerpt: excerpt(text), reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids; special tokens are left out, spaces stay as they are.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_ids(ids, true)
    }

    /// Text of token ids, special tokens included.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_ids(ids, false)
    }

    fn decode_ids(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.inner
            .tokenizer
            .decode(ids, skip_special_tokens)
            .map_err(|error| TextError::Decode { count: ids.len(), reason: error.to_string() })
    }

    /// The characters of a text that are lost in it: those that become no token, the unknown token, or tokens that do not
    /// spell them. Each once, in the order of their first place.
    #[must_use]
    pub fn missing_characters(&self, text: &str) -> Vec<char> {
        let mut seen = std::collections::HashSet::new();
        let is_lost = |c: &char| {
            let Ok(ids) = self.encode(c.encode_utf8(&mut [0; 4]), false) else { return true };
            let is_unknown = self.inner.unk_id.is_some_and(|unk| ids.contains(&unk));
            let is_torn = || self.decode(&ids).is_ok_and(|text| text.contains(char::REPLACEMENT_CHARACTER));
            ids.is_empty() || is_unknown || (*c != char::REPLACEMENT_CHARACTER && is_torn())
        };
        text.chars().filter(|c| seen.insert(*c)).filter(is_lost).collect()
    }

    /// The highest token id plus one, added tokens included. A model may have more embedding rows than that.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The id of `eos_token`, where the tokenizer names one.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.eos_id
    }

    /// The id of a token, as the vocabulary spells it.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The named special tokens.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special
    }
}

/// Every token that ends a completion: `eos_token_id` of `generation_config.json` and `config.json` (a number or a list)
/// and the tokenizer's `eos_token`; sorted, each once. Empty if the folder names none.
pub fn eos_set(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
    let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    for file in ["generation_config.json", "config.json"] {
        let path = folder.join(file);
        let Some(config) = read_object(&path)? else { continue };
        let bad = |value: &Value| TextError::BadField {
            path: path.clone(),
            key: "eos_token_id".to_string(),
            expected: "a token id or a list of token ids",
            got: excerpt(&value.to_string()),
        };
        let id_of = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| bad(value));
        match config.get("eos_token_id") {
            None | Some(Value::Null) => {}
            Some(Value::Array(values)) => {
                for value in values {
                    ids.push(id_of(value)?);
                }
            }
            Some(value) => ids.push(id_of(value)?),
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Reads a JSON object from a file that may be absent.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(IoError::of("read", path))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| TextError::BadJson {
        path: path.to_path_buf(),
        line: error.line(),
        column: error.column(),
        reason: error.to_string().split(" at line ").next().unwrap_or_default().to_string(),
    })?;
    match value {
        Value::Object(object) => Ok(Some(object)),
        other => Err(TextError::BadJson {
            path: path.to_path_buf(),
            line: 1,
            column: 1,
            reason: format!("expected an object, got `{}`", excerpt(&other.to_string())),
        }),
    }
}

/// The unknown token of a BPE vocabulary, which `tokenizer_config.json` need not name.
fn own_unk_token(tokenizer: &tokenizers::Tokenizer) -> Option<String> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.unk_token.clone(),
        _ => None,
    }
}

const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

fn load_special_tokens(folder: &Path) -> Result<SpecialTokens, TextError> {
    let mut tokens = BTreeMap::new();
    // tokenizer_config.json is read last, so that it wins: transformers 5 writes only that one.
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = folder.join(file);
        let Some(config) = read_object(&path)? else { continue };
        for name in NAMED_TOKENS {
            let token = match config.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::String(token)) => token.clone(),
                Some(Value::Object(added)) if added.get("content").is_some_and(Value::is_string) => {
                    added["content"].as_str().unwrap_or_default().to_string()
                }
                Some(other) => {
                    return Err(TextError::BadField {
                        path,
                        key: name.to_string(),
                        expected: "a string or an object with a `content` string",
                        got: excerpt(&other.to_string()),
                    });
                }
            };
            tokens.insert(name.to_string(), token);
        }
    }
    Ok(SpecialTokens { tokens })
}

/// Marks named tokens as special where tokenizer.json has them as ordinary vocabulary, as transformers does.
fn register_special(tokenizer: &mut tokenizers::Tokenizer, special: &SpecialTokens) -> tokenizers::Result<()> {
    let added = tokenizer.get_added_tokens_decoder();
    let missing: Vec<AddedToken> = special
        .iter()
        .map(|(_, token)| token)
        .filter(|&token| tokenizer.token_to_id(token).is_some() && !added.values().any(|a| a.content == token))
        .map(|token| AddedToken::from(token, true))
        .collect();
    if !missing.is_empty() {
        tokenizer.add_special_tokens(missing)?;
    }
    Ok(())
}
