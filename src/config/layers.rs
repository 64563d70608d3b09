//! Defaults < files < environment < command line, and where each value came from.
//!
//! Owns reading the layers and merging them (figment does the merge). Each layer is checked on its own first, with
//! the positions that the TOML parser knows and figment forgets; all that is wrong is reported at once.

use super::checks;
use super::diagnostic::{ConfigError, Diagnostic, FilePlace, Place, holds_secret};
use super::run_config::RunConfig;
use super::schema::{Source, usable_keys};
use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Environment variables of this prefix, followed by a setting's name in capitals, set it.
pub const ENV_PREFIX: &str = "CANDLEWICK_";

/// A setting on the command line, as `--set key=value` or as a flag of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// What the user wrote, for messages: `--learning-rate 1e-6`.
    pub written: String,
    /// The key, dotted for a key of a table.
    pub key: String,
    /// The value as text: TOML, or else a string.
    pub value: String,
}

impl Override {
    /// Reads `key=value`, the argument of `--set`. A text without `=` is reported by [`Layers::resolve`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (key, value) = text.split_once('=').unwrap_or_default();
        Self { written: format!("--set {text}"), key: key.trim().to_owned(), value: value.trim().to_owned() }
    }
}

/// Everything a configuration is made of, lowest layer first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// TOML files; a later one wins over an earlier one.
    pub files: Vec<PathBuf>,
    /// Environment variables that start with [`ENV_PREFIX`]: name and value.
    pub env: Vec<(String, String)>,
    /// The command line; a later one wins over an earlier one.
    pub overrides: Vec<Override>,
    /// Whether the data files that the settings name must exist: a run needs them, a look at the settings does not.
    pub must_find_data: bool,
}

/// A configuration that can be used, with the source of each value.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The values.
    pub config: RunConfig,
    /// Where each value that is not a default was set.
    places: BTreeMap<String, Place>,
}

impl Resolved {
    /// Where the value of a setting was set last.
    #[must_use]
    pub fn place(&self, key: &str) -> &Place {
        self.places.get(key).unwrap_or(&Place::Default)
    }
}

/// One layer's usable values, for figment.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    layers: Vec<Layer>,
    places: BTreeMap<String, Place>,
    diagnostics: Vec<Diagnostic>,
    /// A file could not be read or parsed: what it would have set is not known.
    is_incomplete: bool,
}

impl Layers {
    /// Files only, as a library user wants them: neither environment nor command line.
    #[must_use]
    pub fn from_files<P: Into<PathBuf>>(files: impl IntoIterator<Item = P>) -> Self {
        Self { files: files.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Adds the variables of this process's environment that start with [`ENV_PREFIX`].
    #[must_use]
    pub fn with_process_env(mut self) -> Self {
        let variables = std::env::vars_os();
        let text = variables.map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()));
        self.env = text.filter(|(name, _): &(String, String)| name.starts_with(ENV_PREFIX)).collect();
        self.env.sort();
        self
    }

    /// Merges the layers and checks the result.
    ///
    /// # Errors
    /// All that is wrong with them: files that cannot be read, syntax, unknown keys, wrong types, values out of range,
    /// settings that contradict each other.
    pub fn resolve(&self) -> Result<Resolved, ConfigError> {
        let mut reading = Reading::default();
        for path in &self.files {
            reading.read_file(path);
        }
        for (name, value) in &self.env {
            // An empty variable is how shells and job files switch one off.
            if !value.is_empty() {
                let key = name.strip_prefix(ENV_PREFIX).unwrap_or(name).to_lowercase();
                reading.read_given(&key, value, &format!("environment variable {name}={value}"));
            }
        }
        for Override { written, key, value } in &self.overrides {
            reading.read_given(key, value, written);
        }
        reading.finish(self.must_find_data)
    }
}

impl Reading {
    fn read_file(&mut self, path: &Path) {
        let text = match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => return self.unreadable(path, "is not UTF-8 text"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return self.unreadable(path, "does not exist");
            }
            Err(error) => return self.unreadable(path, &format!("cannot be read: {error}")),
        };
        let place = |span: &Range<usize>| Place::File(FilePlace::locate(path, &text, span));
        let (readable, mut found) = syntax_errors(&text, &place);
        self.is_incomplete |= !found.is_empty();
        // The lines that do not parse are blank here: what is left stands where it stood, so positions still hold.
        let (table, _) = DeTable::parse_recoverable(&readable);
        self.add(&path.display().to_string(), table.get_ref(), &Source { text: &text, place: &place }, &mut found);
        found.sort_by_key(|diagnostic| match &diagnostic.place {
            Place::File(at) => (at.line, at.column),
            _ => (0, 0),
        });
        self.diagnostics.extend(found);
    }

    fn unreadable(&mut self, path: &Path, why: &str) {
        self.is_incomplete = true;
        self.diagnostics.push(Diagnostic {
            message: format!("configuration file {} {why}", path.display()),
            place: Place::File(FilePlace::whole(path)),
            help: Vec::new(),
        });
    }

    /// A value from outside a file: TOML where it reads as that and fits the setting, else a string.
    fn read_given(&mut self, key: &str, value: &str, written: &str) {
        let written = if holds_secret(&format!("{key}={value}")) {
            written.split_once(value).map_or(key, |(name, _)| name.trim_end_matches([' ', '=']))
        } else {
            written
        };
        let place = |_: &Range<usize>| Place::Given(written.to_owned());
        if key.is_empty() {
            self.diagnostics.push(Diagnostic {
                message: "a setting is given as KEY=VALUE".to_owned(),
                place: place(&(0..0)),
                help: vec!["as in `--set learning_rate=1e-6`".to_owned()],
            });
            return;
        }
        // `.5` is no number in TOML, but on a command line nobody means anything else.
        let number = value.parse::<f64>().ok().filter(|number| number.is_finite() && value.contains('.'));
        let readings =
            [Some(value.to_owned()), number.map(|n| format!("{n:?}")), Some(toml::Value::from(value).to_string())];
        let mut first = None;
        for text in readings.into_iter().flatten().map(|reading| format!("{key} = {reading}")) {
            let Ok(table) = DeTable::parse(&text) else { continue };
            // A value with line breaks must not smuggle in further keys.
            if table.get_ref().len() != 1 {
                continue;
            }
            let mut found = Vec::new();
            self.add(written, table.get_ref(), &Source { text: &text, place: &place }, &mut found);
            if found.is_empty() {
                return;
            }
            first.get_or_insert(found);
        }
        self.diagnostics.extend(first.unwrap_or_else(|| {
            vec![Diagnostic { message: format!("`{key}` is not a key"), place: place(&(0..0)), help: Vec::new() }]
        }));
    }

    fn add(&mut self, name: &str, table: &DeTable<'_>, source: &Source<'_>, found: &mut Vec<Diagnostic>) {
        let mut values = Dict::new();
        for key in usable_keys(table, source, found) {
            let Some(value) = table.get(key.as_str()) else { continue };
            match <Value as Deserialize>::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(plain) => {
                    self.places.insert(key.clone(), (source.place)(&value.span()));
                    self.add_places_inside(&key, value.get_ref(), source);
                    values.insert(key, plain);
                }
                Err(error) => found.push(Diagnostic {
                    message: format!("`{key}`: {}", error.message()),
                    place: (source.place)(&value.span()),
                    help: Vec::new(),
                }),
            }
        }
        self.layers.push(Layer { name: name.to_owned(), values });
    }

    /// The places of the keys of a list's tables, as `rewards[0].weight`; those of an earlier layer's list are gone.
    fn add_places_inside(&mut self, key: &str, value: &DeValue<'_>, source: &Source<'_>) {
        let head = format!("{key}[");
        self.places.retain(|key, _| !key.starts_with(&head));
        for (index, element) in value.as_array().into_iter().flatten().enumerate() {
            for (inner, value) in element.get_ref().as_table().into_iter().flatten() {
                self.places.insert(format!("{head}{index}].{}", inner.get_ref()), (source.place)(&value.span()));
            }
        }
    }

    fn finish(self, must_find_data: bool) -> Result<Resolved, ConfigError> {
        let Self { layers, places, mut diagnostics, is_incomplete } = self;
        let mut figment = Figment::from(Serialized::defaults(RunConfig::default()));
        for layer in layers {
            figment = figment.merge(layer);
        }
        let config: RunConfig = match figment.extract() {
            Ok(config) => config,
            Err(error) => {
                diagnostics.extend(error.into_iter().map(|error| Diagnostic {
                    message: error.to_string(),
                    place: Place::Default,
                    help: Vec::new(),
                }));
                return Err(ConfigError::Invalid { diagnostics });
            }
        };
        let resolved = Resolved { config, places };
        let is_set = |key: &str| resolved.places.contains_key(key);
        // A key that only ever had a wrong value is still a default here: nothing follows from that.
        let is_known = |key: &str| is_set(key) || !(is_incomplete || diagnostics.iter().any(|d| d.names(key)));
        let mut problems = checks::problems(&resolved.config, &is_set);
        if must_find_data {
            problems.extend(checks::missing_files(&resolved.config));
        }
        let problems: Vec<_> =
            problems.into_iter().filter(|problem| problem.keys.iter().all(|key| is_known(key))).collect();
        diagnostics.extend(problems.into_iter().map(|problem| problem.at(|key| resolved.place(key).clone())));
        if diagnostics.is_empty() { Ok(resolved) } else { Err(ConfigError::Invalid { diagnostics }) }
    }
}

/// The syntax errors of a file, one a line, and the text with those lines blanked out.
///
/// The parser gives up on the rest of the file after some errors; it is asked again without the line at fault.
fn syntax_errors(text: &str, place: &dyn Fn(&Range<usize>) -> Place) -> (String, Vec<Diagnostic>) {
    const MAX_ROUNDS: usize = 32;
    let (mut readable, mut found) = (text.to_owned(), Vec::new());
    for _ in 0..MAX_ROUNDS {
        let (_, mut errors) = DeTable::parse_recoverable(&readable);
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut blanked = Vec::new();
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let is_in_line = |line: &Range<usize>| line.start <= at && at <= line.end;
            if blanked.iter().any(is_in_line) {
                continue;
            }
            let bytes = text.as_bytes();
            let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
            let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |newline| at + newline);
            blanked.push(start..end);
            let place = place(&error.span().unwrap_or(at..at));
            found.push(Diagnostic { message: error.message().to_owned(), place, help: syntax_help(&text[start..end]) });
        }
        if blanked.iter().all(|line| readable[line.clone()].trim().is_empty()) {
            break;
        }
        for line in blanked {
            readable.replace_range(line.clone(), &" ".repeat(line.len()));
        }
    }
    (readable, found)
}

/// What to do about a line that is not TOML but looks like something else.
fn syntax_help(line: &str) -> Vec<String> {
    let line = line.trim();
    let help = match line.split_once([':', '=']) {
        _ if line.starts_with('{') => Some("this looks like JSON; settings are written as TOML: `key = value`"),
        Some((key, _)) if line[key.len()..].starts_with(':') => {
            Some("this looks like YAML; settings are written as TOML: `key = value`")
        }
        Some((_, value)) => match value.trim() {
            "True" | "False" => Some("TOML writes `true` and `false`"),
            "None" | "null" => Some("a setting without a value is left out"),
            value if value.starts_with(|c: char| c.is_alphabetic()) => Some("strings stand in quotes"),
            value if value.starts_with('.') || value.ends_with('.') => Some("numbers have digits around the point"),
            _ => None,
        },
        None => None,
    };
    help.map(str::to_owned).into_iter().collect()
}
