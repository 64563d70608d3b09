//! The layers of the source tree: a module uses its own layer or a lower one.
//!
//! The check reads the paths that start with `crate`, `super` or (in the binary) `candlewick` out of the source text,
//! with comments and strings taken out. What it cannot see, such as a path inside a macro's expansion, is not checked.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module with its layer. `lib.rs` re-exports and has none.
const LAYERS: &[(&str, u8)] = &[
    ("main", 7),
    ("cli", 7),
    ("recipe", 6),
    ("config", 6),
    ("report", 6),
    ("trainer", 5),
    ("eval", 5),
    ("checkpoint", 5),
    ("algorithm", 4),
    ("batch", 4),
    ("rollout", 3),
    ("reward", 3),
    ("data", 3),
    ("telemetry", 3),
    ("model", 2),
    ("text", 2),
    ("hub", 2),
    ("optim", 1),
    ("ops", 1),
    ("error", 0),
    ("env", 0),
    ("rng", 0),
    ("io", 0),
    ("device", 1),
];

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

#[test]
fn modules_use_their_own_layer_or_a_lower_one() {
    let mut files = Vec::new();
    collect(Path::new("src"), &mut files);
    assert!(files.len() > 5, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix("src").unwrap().with_extension("");
        let mut module: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module[0] != "lib" {
            wrong.extend(violations(&module, &fs::read_to_string(&file).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry of the sources").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The upward arrows out of one file, each as a sentence.
fn violations(module: &[String], source: &str) -> Vec<String> {
    let name = module.join("::");
    let Some(own) = layer(&module[0]) else {
        return vec![format!("{name}: `{}` has no layer; give it one in tests/architecture.rs", module[0])];
    };
    let used = used_modules(module, source);
    used.into_iter()
        .filter_map(|(line, used)| match layer(&used) {
            Some(other) if other > own => {
                Some(format!("{name}, line {line}: layer {own} uses `{used}` of layer {other}"))
            }
            _ => None,
        })
        .collect()
}

/// The top-level modules that a file names, each with its line. Items of the crate's root come out too; they are no
/// modules of the table.
fn used_modules(module: &[String], source: &str) -> Vec<(usize, String)> {
    let tokens = tokens(&without_comments_and_strings(source));
    let mut found = Vec::new();
    // Inline modules that are open, with the brace depth outside of each: `super` counts from there.
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        let next = |offset: usize| tokens.get(at + offset).map_or("", |(_, token)| token.as_str());
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "mod" if next(2) == "{" => inline.push(depth),
            "crate" | "candlewick" if next(1) == "::" => {
                found.extend(heads(&tokens, at + 2).into_iter().map(|head| (*line, head)));
            }
            "super" if next(1) == "::" => {
                let mut supers = 1;
                while next(2 * supers) == "super" {
                    supers += 1;
                }
                // As many steps as the module is deep lead to the crate's root.
                if supers == module.len() + inline.len() {
                    found.extend(heads(&tokens, at + 2 * supers).into_iter().map(|head| (*line, head)));
                }
                at += 2 * supers - 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first names of the path or of each path of the group that starts at token `at`.
fn heads(tokens: &[(usize, String)], at: usize) -> Vec<String> {
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    if token(at) != "{" {
        return vec![token(at).to_owned()];
    }
    let (mut depth, mut found) = (0, Vec::new());
    for at in at..tokens.len() {
        match token(at) {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (token(at) == "{" || token(at) == ",") {
            found.push(token(at + 1).to_owned());
        }
    }
    found
}

/// Words, `::`, and single other characters, each with its line.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (index, text) in source.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            found.push((index + 1, rest[..length].to_owned()));
            rest = rest[length..].trim_start();
        }
    }
    found
}

/// The source with comments, strings and characters blanked out, lines kept.
fn without_comments_and_strings(source: &str) -> String {
    let mut clean = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            raw_string(rest)
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' {
            // A lifetime has no closing quote after one character.
            let is_char = rest[1..].starts_with('\\') || rest[1..].chars().nth(1) == Some('\'');
            if is_char { quoted(rest, '\'') } else { 1 }
        } else {
            clean.push(c);
            rest = &rest[c.len_utf8()..];
            // Not to take the `r` at the end of a word for the start of a raw string.
            if c.is_alphanumeric() || c == '_' {
                let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                clean.push_str(&rest[..word]);
                rest = &rest[word..];
            }
            continue;
        };
        clean.extend(rest[..length].chars().filter(|c| *c == '\n'));
        clean.push(' ');
        rest = &rest[length..];
    }
    clean
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    for (at, _) in text.char_indices() {
        if text[at..].starts_with("/*") {
            depth += 1;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            if depth == 0 {
                return at + 2;
            }
        }
    }
    text.len()
}

/// Length of the raw string at the start of `text`; of a raw identifier, that of its `r#`.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    if !text[1 + hashes..].starts_with('"') {
        return 1 + hashes;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    text[body..].find(&end).map_or(text.len(), |at| body + at + end.len())
}

fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !is_escaped {
            return at + 1;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

#[test]
fn an_upward_arrow_is_found_in_every_spelling() {
    let module = ["ops".to_owned(), "rope".to_owned()];
    for source in [
        "use crate::trainer::Trainer;",
        "use crate::{error::Exit, trainer};",
        "use crate::{\n    error::{Exit, Diagnose},\n    trainer::{self, Step},\n};",
        "use super::super::trainer;",
        "use super::super::{rng, trainer::Step};",
        "fn f() { let x: &'static str = \"}\"; crate::trainer::run(x) }",
        "mod tests {\n    use super::super::super::trainer::Step;\n}",
        "fn f() -> char { '\\'' }\nuse crate::trainer;",
        "const X: &str = r#\" \" \"#;\nuse crate :: trainer;",
    ] {
        let found = violations(&module, source);
        assert_eq!(found.len(), 1, "{source}: {found:?}");
        assert!(found[0].contains("layer 1 uses `trainer` of layer 5"), "{found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let module = ["ops".to_owned(), "rope".to_owned()];
    for source in [
        "use crate::optim::AdamW;",
        "use crate::{error::Exit, rng, trainer_like};",
        "use super::trainer;",
        "mod tests {\n    use super::super::trainer;\n}\n",
        "// use crate::trainer;\n/* crate::trainer /* nested */ crate::trainer */",
        "/// [`crate::trainer`]\nfn f() { g(\"crate::trainer\", r#\"crate::trainer \" \"#) }",
        "use std::trainer::crate_name;",
    ] {
        assert_eq!(violations(&module, source), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn a_module_without_a_layer_is_reported() {
    assert_eq!(violations(&["novel".to_owned()], "").len(), 1);
}
