//! One wrong setting, shown where it stands: `file:line:column`, the source line, a caret.
//!
//! Owns the text of configuration errors. Finding them is the work of `layers.rs` and `checks.rs`.

use crate::error::{Diagnose, Exit};
use regex::Regex;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Errors that are printed before the rest is only counted: a file in another language has one on every line.
const MAX_PRINTED: usize = 20;
/// Characters of a source line that are shown.
const MAX_LINE: usize = 100;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Everything that is wrong with it, in the order of the layers.
    #[error("{}", report(.diagnostics))]
    Invalid {
        /// At least one.
        diagnostics: Vec<Diagnostic>,
    },
}

impl Diagnose for ConfigError {
    fn hint(&self) -> Option<String> {
        Some("`candlewick config reference` describes every setting".to_owned())
    }

    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where it stands.
    pub place: Place,
    /// What to write instead, or where the other half of a contradiction stands.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// Whether it speaks of this setting, or of this table.
    pub(super) fn names(&self, key: &str) -> bool {
        let spellings = [format!("`{key}`"), format!("`[{key}]`"), format!("`[[{key}]]`")];
        let speaks = |text: &String| spellings.iter().any(|spelling| text.contains(spelling));
        speaks(&self.message) || self.help.iter().any(speaks)
    }
}

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a TOML file.
    File(FilePlace),
    /// In an environment variable or on the command line, as it was written there.
    Given(String),
    /// Nowhere: it is a default, or missing.
    Default,
}

/// A stretch of one line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlace {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters that the caret underlines, 1 or more.
    pub width: usize,
    /// The line itself; empty where it holds a key or a password.
    pub text: String,
}

impl FilePlace {
    /// The whole file, where no line of it is to blame.
    pub(super) fn whole(path: &Path) -> Self {
        Self { path: path.to_owned(), line: 0, column: 1, width: 1, text: String::new() }
    }

    /// The byte range `span` of `source`; what lies beyond the first line of it is not underlined.
    pub(super) fn locate(path: &Path, source: &str, span: &Range<usize>) -> Self {
        let start = floor_char_boundary(source, span.start);
        let end = floor_char_boundary(source, span.end).max(start);
        let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
        let line = source[line_start..line_end].trim_end();
        Self {
            path: path.to_owned(),
            line: source[..start].matches('\n').count() + 1,
            column: source[line_start..start].chars().count() + 1,
            width: source[start..end.min(line_end)].trim_end().chars().count().max(1),
            text: if holds_secret(line) { String::new() } else { line.to_owned() },
        }
    }
}

/// Whether a setting as it is written holds a password, or a key where only the name of a variable belongs.
///
/// The whole text is looked at: in an inline table a fault elsewhere would show it as well.
pub(super) fn holds_secret(text: &str) -> bool {
    const USER_NAME: &str = r#"(?:://|base_url["']?\s*=\s*["']*)[^\s"']*@"#;
    const KEY: &str = r#"(?i)(?:api_?key\w*|password|secret|token)["']?\s*=\s*["']*([^"',}\]\s]+)"#;
    static KEYS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(KEY).ok());
    static USER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(USER_NAME).ok());
    let has_user = USER.as_ref().is_some_and(|user| user.is_match(text));
    has_user || KEYS.as_ref().is_some_and(|keys| keys.captures_iter(text).any(|found| !is_variable_name(&found[1])))
}

/// Whether a text is the name of an environment variable, in capitals.
pub(super) fn is_variable_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(is_part) && text.starts_with(|c: char| !c.is_ascii_digit())
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(place) if place.line == 0 => write!(f, "{}", place.path.display()),
            Self::File(place) => write!(f, "{}:{}", place.path.display(), place.line),
            Self::Given(text) => f.write_str(text),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.message))?;
        let gutter = match &self.place {
            Place::File(place) if place.line > 0 => place.line.to_string().len(),
            _ => 0,
        };
        match &self.place {
            Place::File(place) if place.line > 0 => write_snippet(f, place, gutter)?,
            Place::Default => {}
            place => write!(f, "\n --> {}", printable(&place.to_string()))?,
        }
        for help in &self.help {
            write!(f, "\n{:gutter$} = help: {}", "", printable(help))?;
        }
        Ok(())
    }
}

/// The place, its line (if it may be shown) and the caret. Of a long line only the part around the caret is shown.
fn write_snippet(f: &mut fmt::Formatter<'_>, place: &FilePlace, gutter: usize) -> fmt::Result {
    let line: Vec<char> = place.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let caret = place.column - 1;
    let first = if line.len() <= MAX_LINE { 0 } else { caret.saturating_sub(MAX_LINE / 2).min(line.len()) };
    let last = line.len().min(first + MAX_LINE);
    let shown: String = line[first..last].iter().collect();
    let width = place.width.min(last.saturating_sub(caret)).max(1);
    write!(f, "\n{:gutter$}--> {}:{}:{}", "", place.path.display(), place.line, place.column)?;
    if line.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{:gutter$} |", "")?;
    writeln!(f, "{} | {shown}", place.line)?;
    write!(f, "{:gutter$} | {:indent$}{}", "", "", "^".repeat(width), indent = caret - first)
}

/// The text without control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

fn report(diagnostics: &[Diagnostic]) -> String {
    let mut text = match diagnostics.len() {
        1 => "the configuration has an error".to_owned(),
        n => format!("the configuration has {n} errors"),
    };
    for diagnostic in diagnostics.iter().take(MAX_PRINTED) {
        text.push_str("\n\n");
        text.push_str(&diagnostic.to_string());
    }
    if diagnostics.len() > MAX_PRINTED {
        let _ = write!(text, "\n\n... and {} more", diagnostics.len() - MAX_PRINTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_span_also_after_wide_characters() {
        let source = "a = 1\nname = \"äöü\" # x\n";
        let start = source.find('"').unwrap();
        let place = FilePlace::locate(Path::new("c.toml"), source, &(start..start + 8));
        assert_eq!((place.line, place.column, place.width), (2, 8, 5));
    }

    #[test]
    fn spans_outside_the_text_or_inside_a_character_do_not_panic() {
        for source in ["", "ä", "a\r\nb"] {
            for start in 0..6 {
                for end in 0..6 {
                    let place = FilePlace::locate(Path::new("c.toml"), source, &(start..end));
                    let shown = Diagnostic { message: "m".into(), place: Place::File(place), help: vec![] };
                    assert!(shown.to_string().contains("c.toml"));
                }
            }
        }
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let source = format!("x = \"{}\"", "y".repeat(5000));
        let place = FilePlace::locate(Path::new("c.toml"), &source, &(3000..3010));
        let shown = Diagnostic { message: "m".into(), place: Place::File(place), help: vec![] }.to_string();
        assert!(shown.lines().all(|line| line.chars().count() < 130), "{shown}");
        assert!(shown.contains("^^^^^^^^^^"));
    }
}
