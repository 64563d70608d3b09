//! One row of a data file.

use serde_json::Value;
use serde_json::value::RawValue;

use super::place::RowPlace;
use crate::text::Prompt;

/// A prompt and the other columns of its line.
#[derive(Debug, Clone)]
pub struct Row {
    /// Number of the row in its file, or through the files of its data set, from 0, blank lines not counted. It names the
    /// prompt in the randomness of a run, so it stays the same whether bad rows are skipped or not.
    pub index: u64,
    /// Where it stands, for messages.
    pub place: RowPlace,
    /// What the model is asked.
    pub prompt: Prompt,
    /// Every column except the prompt's.
    pub columns: Columns,
}

impl Row {
    /// The completion given by the data: `completion`, the last assistant turn of a `messages` row, or the whole of a
    /// `text` row.
    #[must_use]
    pub fn completion(&self) -> Option<&str> {
        self.columns.text("completion")
    }

    /// The better and the worse completion of a row that was read as a pair.
    #[must_use]
    pub fn pair(&self) -> Option<(&str, &str)> {
        Some((self.columns.text("chosen")?, self.columns.text("rejected")?))
    }
}

/// The columns of a row, in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    entries: Vec<(String, Column)>,
}

#[derive(Debug, Clone)]
enum Column {
    Text(String),
    /// Anything but a string, as written: numbers of any size stay exact.
    Json(Box<RawValue>),
}

impl Columns {
    /// No columns.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The content of a string column, or the JSON text of any other column as the file has it (`19`, `true`,
    /// `[1,2]`). None where the column is missing or null.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.column(name)? {
            Column::Text(text) => Some(text),
            Column::Json(raw) if raw.get() == "null" => None,
            Column::Json(raw) => Some(raw.get()),
        }
    }

    /// A column as a JSON value. Numbers beyond 64 bits become floats; `text` keeps them exact.
    #[must_use]
    pub fn json(&self, name: &str) -> Option<Value> {
        match self.column(name)? {
            Column::Text(text) => Some(Value::String(text.clone())),
            Column::Json(raw) => serde_json::from_str(raw.get()).ok(),
        }
    }

    /// Names of the columns, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Sets a column to a text; a column of that name is replaced.
    pub fn set_text(&mut self, name: &str, text: impl Into<String>) {
        self.set(name.to_string(), Column::Text(text.into()));
    }

    pub(super) fn set_json(&mut self, name: String, raw: Box<RawValue>) {
        self.set(name, Column::Json(raw));
    }

    fn set(&mut self, name: String, column: Column) {
        match self.entries.iter_mut().find(|(other, _)| *other == name) {
            Some(entry) => entry.1 = column,
            None => self.entries.push((name, column)),
        }
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.entries.iter().find(|(other, _)| other == name).map(|(_, column)| column)
    }
}

/// Columns of text, for callers that build rows themselves.
impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Columns {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut columns = Self::new();
        for (name, text) in pairs {
            columns.set(name.into(), Column::Text(text.into()));
        }
        columns
    }
}

impl serde::Serialize for Columns {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for (name, column) in &self.entries {
            match column {
                Column::Text(text) => map.serialize_entry(name, text)?,
                Column::Json(raw) => map.serialize_entry(name, raw)?,
            }
        }
        map.end()
    }
}
