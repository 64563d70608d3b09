//! JSON from strangers: objects that name a key twice are refused instead of keeping the last value.
//!
//! Used for `config.json`, shard indexes and safetensors headers, where a second value for a key means that two
//! readers may disagree about the file. Depth is bounded by `serde_json` (128).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::ModelError;

/// Parses `text` as one JSON value; a repeated key is an error with its line and column.
///
/// # Errors
/// What `serde_json` finds wrong, or the first repeated key.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Strict>(text).map(|strict| strict.0)
}

/// Opens a plain file (or a link to one) for reading; a pipe or a folder is refused before it can block.
///
/// # Errors
/// [`ModelError::NotAFile`], [`ModelError::Read`].
pub fn open_plain(path: &Path) -> Result<(File, u64), ModelError> {
    let read_error = |source| ModelError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(ModelError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(read_error)?;
    let bytes = file.metadata().map_err(read_error)?.len();
    Ok((file, bytes))
}

/// The text of a small file of at most `limit` bytes.
///
/// # Errors
/// As [`open_plain`], [`ModelError::TooLarge`], or [`ModelError::Json`] where the text is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, ModelError> {
    let (file, bytes) = open_plain(path)?;
    if bytes > limit {
        return Err(ModelError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    let mut content = Vec::new();
    // The file may grow meanwhile; the limit holds for what is read.
    file.take(limit).read_to_end(&mut content).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    String::from_utf8(content).map_err(|error| ModelError::Json {
        path: path.to_owned(),
        message: format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
    })
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} appears twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn repeated_keys_are_refused_at_any_depth() {
        assert!(parse(r#"{"a": 1, "b": [{"a": 2}]}"#).is_ok());
        let error = parse("{\"a\": [\n{\"x\": 1, \"x\": 2}]}").unwrap_err();
        assert_eq!(error.to_string(), "the key \"x\" appears twice at line 2 column 12");
    }

    #[test]
    fn values_survive_unchanged() {
        let text = r#"{"z":null,"a":[true,-3,18446744073709551615,1.5,"é\n"]}"#;
        assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
    }
}
