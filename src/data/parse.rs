//! One row, as JSON text or as a JSON object, to a prompt and columns.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::error::Fault;
use super::load::{RowKind, RowsConfig};
use super::row::Columns;
use crate::text::Prompt;

/// A fault and the byte of the line (from 1) where it is.
pub(super) type PlacedFault = (Option<usize>, Fault);

/// The row of a line of JSON.
pub(super) fn parse_row(text: &str, config: &RowsConfig) -> Result<(Prompt, Columns), PlacedFault> {
    row_of(&parse_fields(text)?, config)
}

/// The row of an object that was read from elsewhere.
pub(super) fn parse_object(object: &Map<String, Value>, config: &RowsConfig) -> Result<(Prompt, Columns), PlacedFault> {
    let fields =
        object.iter().map(|(name, value)| Field { name: name.clone(), raw: None, value: value.clone(), column: None });
    row_of(&fields.collect::<Vec<_>>(), config)
}

fn row_of(fields: &[Field<'_>], config: &RowsConfig) -> Result<(Prompt, Columns), PlacedFault> {
    let Asked { prompt, completion, used } = asked(fields, config)?;
    if config.kind == RowKind::Completion && completion.is_none() {
        return Err((None, missing(&config.completion_column, fields)));
    }
    let pair = if config.kind == RowKind::Pair { Some(pair_texts(fields, config)?) } else { None };

    let mut columns = Columns::new();
    for field in fields {
        match &field.value {
            _ if Some(field.name.as_str()) == used => {}
            Value::String(text) => columns.set_text(&field.name, text.clone()),
            _ => columns.set_json(field.name.clone(), field.raw_value()?),
        }
    }
    if let Some(completion) = completion {
        columns.set_text("completion", completion);
    }
    if let Some((chosen, rejected)) = pair {
        columns.set_text("chosen", chosen);
        columns.set_text("rejected", rejected);
    }
    if let Some(rule) = &config.answer {
        rule.apply(&mut columns).map_err(|fault| (None, fault))?;
    }
    Ok((prompt, columns))
}

/// What the model is asked in a row.
struct Asked<'a> {
    prompt: Prompt,
    /// The completion that stands in the row.
    completion: Option<String>,
    /// The column that is the prompt, and no other column therefore.
    used: Option<&'a str>,
}

fn asked<'a>(fields: &'a [Field<'_>], config: &RowsConfig) -> Result<Asked<'a>, PlacedFault> {
    let find = |name: &str| fields.iter().find(|field| field.name == name);
    let given_completion = || match config.kind {
        RowKind::Completion => find(&config.completion_column).map(completion_text).transpose(),
        // To a reward, a completion is a column like any other.
        RowKind::Prompt | RowKind::Pair => Ok(None),
    };
    if let Some(template) = &config.prompt_template {
        let text = template.fill(|name| find(name).ok_or_else(|| (None, missing(name, fields)))?.text())?;
        return Ok(Asked { prompt: Prompt::Text(text), completion: given_completion()?, used: None });
    }
    let (prompt, completion, field) = if let Some(field) = find(&config.prompt_column) {
        let prompt = match &field.value {
            Value::String(text) => Prompt::Text(text.clone()),
            Value::Array(messages) => Prompt::Messages(checked_messages(field, messages)?),
            other => return Err(field.wrong_type("a string or a list of messages", other)),
        };
        (prompt, given_completion()?, field)
    } else if let (true, Some(field)) = (config.kind != RowKind::Pair, find("messages")) {
        let Value::Array(messages) = &field.value else {
            return Err(field.wrong_type("a list of messages", &field.value));
        };
        let (messages, completion) = split_messages(field, checked_messages(field, messages)?)?;
        (Prompt::Messages(messages), completion, field)
    } else if let (RowKind::Completion, Some(field)) = (config.kind, find("text")) {
        let Value::String(text) = &field.value else { return Err(field.wrong_type("a string", &field.value)) };
        (Prompt::Text(String::new()), Some(text.clone()), field)
    } else {
        return Err((None, missing(&config.prompt_column, fields)));
    };
    Ok(Asked { prompt, completion, used: Some(&field.name) })
}

/// A key of the row with its value, as text and parsed.
struct Field<'a> {
    name: String,
    /// As it is written, where the row is text.
    raw: Option<&'a RawValue>,
    value: Value,
    /// Byte of the value in the line, from 1, where the row is text.
    column: Option<usize>,
}

impl Field<'_> {
    /// The value as JSON text; as it is written where it is.
    fn raw_value(&self) -> Result<Box<RawValue>, PlacedFault> {
        match self.raw {
            Some(raw) => Ok(raw.to_owned()),
            None => to_raw_value(&self.value).map_err(|error| (None, syntax(&error))),
        }
    }

    /// The value as a part of a prompt: a string as it is, anything else as JSON.
    fn text(&self) -> Result<String, PlacedFault> {
        match &self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Null => Err(self.bad_value(self.name.clone(), "it is null, and the prompt needs it")),
            _ => Ok(self.raw_value()?.get().to_owned()),
        }
    }

    fn wrong_type(&self, expected: &'static str, got: &Value) -> PlacedFault {
        self.wrong_type_at(self.name.clone(), expected, got)
    }

    fn wrong_type_at(&self, place: String, expected: &'static str, got: &Value) -> PlacedFault {
        (self.column, Fault::WrongType { place, expected, got: type_name(got) })
    }

    fn bad_value(&self, place: String, reason: &str) -> PlacedFault {
        (self.column, Fault::BadValue { place, reason: reason.to_string() })
    }
}

fn parse_fields(text: &str) -> Result<Vec<Field<'_>>, PlacedFault> {
    let got = match text.trim_start().bytes().next() {
        Some(b'[') => Some("a list"),
        Some(b'"') => Some("a string"),
        Some(b'0'..=b'9' | b'-') => Some("a number"),
        Some(b't' | b'f') => Some("true or false"),
        Some(b'n') => Some("null"),
        _ => None,
    };
    if let Some(got) = got {
        return Err((Some(1), Fault::NotAnObject { got }));
    }
    let RawFields(raw_fields) = serde_json::from_str(text).map_err(|error| (Some(error.column()), syntax(&error)))?;
    let mut fields: Vec<Field<'_>> = Vec::with_capacity(raw_fields.len());
    for (name, raw) in raw_fields {
        let column = raw.get().as_ptr().addr() - text.as_ptr().addr() + 1;
        if fields.iter().any(|field| field.name == name) {
            return Err((Some(column), Fault::DuplicateKey { key: name }));
        }
        // Syntax inside the value (escapes, number range, depth) is only checked when it is parsed.
        let value = serde_json::from_str(raw.get())
            .map_err(|error| (Some(column + error.column().saturating_sub(1)), syntax(&error)))?;
        fields.push(Field { name, raw: Some(raw), value, column: Some(column) });
    }
    Ok(fields)
}

/// The key-value pairs of an object in their order, repeated keys included.
struct RawFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Pairs).map(RawFields)
    }
}

/// The message of a JSON error without its own position, which would count within one line.
fn syntax(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text).to_string();
    Fault::Syntax { reason }
}

fn missing(name: &str, fields: &[Field<'_>]) -> Fault {
    Fault::missing_column(name, fields.iter().map(|field| field.name.clone()).collect())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Messages are objects with a `role` string; what else they have is the template's business.
fn checked_messages(field: &Field<'_>, messages: &[Value]) -> Result<Vec<Value>, PlacedFault> {
    if messages.is_empty() {
        return Err(field.bad_value(field.name.clone(), "the list of messages is empty"));
    }
    for (i, message) in messages.iter().enumerate() {
        let place = format!("{}[{i}]", field.name);
        let Value::Object(object) = message else {
            return Err(field.wrong_type_at(place, "an object with `role` and `content`", message));
        };
        match object.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(field.wrong_type_at(format!("{place}.role"), "a string", other)),
            None => return Err(field.bad_value(place, "the message has no `role`")),
        }
        match object.get("content") {
            Some(Value::String(_) | Value::Array(_)) => {}
            // A turn of nothing but tool calls has no content.
            None | Some(Value::Null) if object.get("tool_calls").is_some_and(|calls| !calls.is_null()) => {}
            None => return Err(field.bad_value(place, "the message has no `content`")),
            Some(other) => return Err(field.wrong_type_at(format!("{place}.content"), "a string", other)),
        }
    }
    Ok(messages.to_vec())
}

/// The turns before the last assistant turn, and that turn's text. Without an assistant turn all is prompt.
fn split_messages(field: &Field<'_>, mut messages: Vec<Value>) -> Result<(Vec<Value>, Option<String>), PlacedFault> {
    let Some(last) = messages.iter().rposition(|message| message["role"] == "assistant") else {
        return Ok((messages, None));
    };
    if last == 0 {
        return Err(field.bad_value(field.name.clone(), "nothing stands before the assistant's turn"));
    }
    let completion = messages[last].get("content").and_then(Value::as_str).map(ToString::to_string);
    messages.truncate(last);
    Ok((messages, completion))
}

/// The better and the worse completion of a pair, which differ.
fn pair_texts(fields: &[Field<'_>], config: &RowsConfig) -> Result<(String, String), PlacedFault> {
    let text = |name: &str| match fields.iter().find(|field| field.name == name) {
        Some(field) => completion_text(field),
        None => Err((None, missing(name, fields))),
    };
    let (chosen, rejected) = (text(&config.chosen_column)?, text(&config.rejected_column)?);
    if chosen == rejected {
        let (chosen, rejected) = (config.chosen_column.clone(), config.rejected_column.clone());
        return Err((None, Fault::EqualPair { chosen, rejected }));
    }
    Ok((chosen, rejected))
}

/// A completion is a string or a list of one assistant message.
fn completion_text(field: &Field<'_>) -> Result<String, PlacedFault> {
    let text = match &field.value {
        Value::String(text) => Some(text),
        Value::Array(messages) => match messages.as_slice() {
            [Value::Object(message)] => match message.get("content") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    text.cloned().ok_or_else(|| field.wrong_type("a string or a list of one message", &field.value))
}
