//! Checks one TOML table key by key, so that one wrong value does not hide the next.
//!
//! serde stops at the first error; here each key is read as if it were the only one. Owns the wording of unknown keys
//! and wrong types. Whether values fit together is not looked at here.

use super::architecture::ArchitectureConfig;
use super::data::MixConfig;
use super::diagnostic::{Diagnostic, Place, holds_secret};
use super::lora::LoraConfig;
use super::names::{ARCHITECTURE_FIELDS, Field, LORA_FIELDS, MIX_FIELDS, REWARD_FIELDS, RUN_FIELDS, foreign, nearest};
use super::reward_config::RewardConfig;
use super::run_config::RunConfig;
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

type Table<'i> = DeTable<'i>;

/// The text a table was read from, and how a byte range of it is shown to the user.
pub(super) struct Source<'a> {
    /// All of it.
    pub text: &'a str,
    /// Where a range of it stands.
    pub place: &'a dyn Fn(&Range<usize>) -> Place,
}

/// Which table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Run,
    Reward,
    Architecture,
    Lora,
    Mix,
}

impl Kind {
    fn fields(self) -> &'static [Field] {
        match self {
            Self::Run => &RUN_FIELDS,
            Self::Reward => &REWARD_FIELDS,
            Self::Architecture => &ARCHITECTURE_FIELDS,
            Self::Lora => &LORA_FIELDS,
            Self::Mix => &MIX_FIELDS,
        }
    }

    /// The kind of the table that a setting is, if it is one.
    fn of(setting: &str) -> Option<Self> {
        match setting {
            "architecture" => Some(Self::Architecture),
            "lora" => Some(Self::Lora),
            _ => None,
        }
    }

    /// How messages call a key of it.
    fn owner(self) -> &'static str {
        match self {
            Self::Run | Self::Reward => "",
            Self::Architecture => " of `[architecture]`",
            Self::Lora => " of `[lora]`",
            Self::Mix => " of `[[train_mix]]`",
        }
    }

    fn read(self, table: Table<'_>) -> Result<(), Error> {
        let table = Deserializer::from(Spanned::new(0..0, table));
        match self {
            Self::Run => RunConfig::deserialize(table).map(drop),
            Self::Reward => RewardConfig::deserialize(table).map(drop),
            Self::Architecture => ArchitectureConfig::deserialize(table).map(drop),
            Self::Lora => LoraConfig::deserialize(table).map(drop),
            Self::Mix => MixConfig::deserialize(table).map(drop),
        }
    }
}

/// The keys of the table that can be used; whatever is wrong with the others is added to `diagnostics`.
pub(super) fn usable_keys(table: &Table<'_>, source: &Source<'_>, diagnostics: &mut Vec<Diagnostic>) -> Vec<String> {
    check_table(Kind::Run, table, source, diagnostics)
}

fn check_table(kind: Kind, table: &Table<'_>, source: &Source<'_>, found: &mut Vec<Diagnostic>) -> Vec<String> {
    let mut usable = Vec::new();
    for (key, value) in table {
        let name: &str = key.get_ref();
        let Some(field) = kind.fields().iter().find(|field| field.name == name) else {
            found.push(unknown(kind, name, value.get_ref(), (source.place)(&key.span())));
            continue;
        };
        let before = found.len();
        let element_kind = match name {
            "rewards" => Some(Kind::Reward),
            "train_mix" => Some(Kind::Mix),
            _ => None,
        };
        if let (Some(of_element), Some(elements)) = (element_kind, value.get_ref().as_array()) {
            for element in elements {
                match element.get_ref().as_table() {
                    Some(table) => drop(check_table(of_element, table, source, found)),
                    None => found.push(wrong_type(kind, field, &element.span(), source)),
                }
            }
        } else if let Some(inner) = Kind::of(name)
            && let Some(table) = value.get_ref().as_table()
        {
            check_table(inner, table, source, found);
        } else {
            let mut alone = Table::new();
            alone.insert(key.clone(), value.clone());
            if let Err(error) = kind.read(alone) {
                let span = error.span().filter(|span| *span != (0..0)).unwrap_or_else(|| value.span());
                found.push(wrong_type(kind, field, &span, source));
            }
        }
        if found.len() == before {
            usable.push(name.to_owned());
        }
    }
    usable
}

fn unknown(kind: Kind, name: &str, value: &DeValue<'_>, place: Place) -> Diagnostic {
    let names = kind.fields().iter().map(|field| field.name.as_str());
    let mut help = Vec::new();
    let elsewhere = foreign(name).filter(|_| kind == Kind::Run);
    if let Some(foreign) = elsewhere {
        help.push(match (foreign.ours, foreign.note) {
            ("", note) => format!("there is no such setting here: {note}"),
            (ours, "") => format!("`{name}` is called `{ours}` here"),
            (ours, note) => format!("`{name}` is called `{ours}` here ({note})"),
        });
    } else if let Some(near) = nearest(name, names.clone()) {
        help.push(format!("did you mean `{near}`?"));
    } else if value.is_table() && kind == Kind::Run {
        help.push("settings are one flat table: write the keys without a section head".to_owned());
    } else if kind == Kind::Reward {
        help.push(format!("a reward has {}", list(names, "and")));
    } else if kind == Kind::Architecture {
        help.push(format!("an architecture has {}", list(names, "and")));
    } else if kind == Kind::Lora {
        help.push(format!("an adapter has {}", list(names, "and")));
    } else if kind == Kind::Mix {
        help.push(format!("a source has {}", list(names, "and")));
    }
    let what = match kind {
        Kind::Run => "unknown setting",
        Kind::Reward => "unknown key of a reward",
        Kind::Architecture => "unknown key of `[architecture]`",
        Kind::Lora => "unknown key of `[lora]`",
        Kind::Mix => "unknown key of `[[train_mix]]`",
    };
    Diagnostic { message: format!("{what} `{name}`"), place, help }
}

fn wrong_type(kind: Kind, field: &Field, span: &Range<usize>, source: &Source<'_>) -> Diagnostic {
    let written = source.text.get(span.clone()).unwrap_or_default().trim();
    let words = words(kind, &field.name);
    let expected = match field.kind.trim_start_matches("Option<").trim_end_matches('>') {
        "usize" | "u64" => "a whole number, 0 or more".to_owned(),
        "f64" => "a number".to_owned(),
        "bool" => "`true` or `false`".to_owned(),
        "String" | "PathBuf" => "a string".to_owned(),
        "Vec<String" => "a list of strings".to_owned(),
        "Vec<RewardConfig" => "a list of tables, each under the head `[[rewards]]`".to_owned(),
        "Vec<MixConfig" => "a list of tables, each under the head `[[train_mix]]`".to_owned(),
        "ArchitectureConfig" => "a table, under the head `[architecture]`".to_owned(),
        "LoraConfig" => "a table, under the head `[lora]`".to_owned(),
        "Targets" => "a list of names, or \"all-linear\"".to_owned(),
        kind if kind.starts_with("serde_json") => "a table".to_owned(),
        _ => list(words.iter().map(String::as_str), "or"),
    };
    let bare = written.trim_matches(['"', '\'']);
    // Of a value that must not be shown not even its beginning is.
    let got = if holds_secret(&format!("{}={written}", field.name)) { "this".to_owned() } else { shorten(written) };
    let near = nearest(bare, words.iter().map(String::as_str)).map(|word| format!("did you mean \"{word}\"?"));
    Diagnostic {
        message: format!("`{}`{} must be {expected}, not {got}", field.name, kind.owner()),
        place: (source.place)(span),
        help: near.into_iter().collect(),
    }
}

/// The words that a setting accepts; none where it is no choice of words.
#[must_use]
pub fn words_of(setting: &str) -> Vec<String> {
    words(Kind::Run, setting)
}

/// The words that a setting accepts, if it accepts words only: serde lists them when it is given another one.
fn words(kind: Kind, name: &str) -> Vec<String> {
    let mut table = Table::new();
    table.insert(Spanned::new(0..0, name.into()), Spanned::new(0..0, DeValue::String("?".into())));
    match kind.read(table) {
        Err(error) if error.message().starts_with("unknown variant") => {
            error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

fn list<'a>(words: impl Iterator<Item = &'a str>, last: &str) -> String {
    let mut words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    match words.pop() {
        Some(end) if !words.is_empty() => format!("{} {last} {end}", words.join(", ")),
        end => end.unwrap_or_default(),
    }
}

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        "empty".to_owned()
    } else if line.chars().count() > 40 || line.len() < text.len() {
        format!("`{}...`", line.chars().take(40).collect::<String>())
    } else {
        format!("`{line}`")
    }
}
