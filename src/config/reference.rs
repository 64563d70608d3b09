//! The reference page of the settings, made from their doc comments.
//!
//! Owns the page's form only; its words are those of `run_config.rs` and `names.rs`. The page in `configs/` is kept
//! equal to this by a test.

use super::names::{ARCHITECTURE_FIELDS, FOREIGN, Field, LORA_FIELDS, MIX_FIELDS, REWARD_FIELDS, RUN_FIELDS};
use super::reward_kinds::KINDS;
use crate::env::VARIABLES;
use std::fmt::Write as _;

/// The page in Markdown.
#[must_use]
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         Made by `candlewick config reference > configs/REFERENCE.md` from the comments in `src/config/run_config.rs`;\n\
         edit those.\n\n\
         A setting is a key of a TOML file, an environment variable (`CANDLEWICK_LEARNING_RATE=1e-6`) or an argument\n\
         (`--set learning_rate=1e-6`; common ones are flags: `--learning-rate 1e-6`). Arguments win over the environment,\n\
         the environment over files, later files over earlier ones, all over the defaults. Outside of files a value is\n\
         read as TOML where that makes sense, else as a string. Lists are replaced, tables are merged.\n\
         `candlewick config show FILE...` prints what a run would use and where each value comes from.\n",
    );
    let mut section = "";
    for field in RUN_FIELDS.iter() {
        if field.section != section {
            section = &field.section;
            let _ = write!(page, "\n## {section}\n\n| setting | type | meaning |\n|---|---|---|\n");
        }
        write_row(&mut page, field);
        if field.name == "rewards" {
            page.push_str("\nKeys of a `[[rewards]]` table:\n\n| key | type | meaning |\n|---|---|---|\n");
            REWARD_FIELDS.iter().for_each(|field| write_row(&mut page, field));
            page.push_str(
                "\nThe reward functions:\n\n| name | score | keys beside `name`, `label`, `weight` |\n|---|---|---|\n",
            );
            for kind in KINDS {
                let keys = kind.keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                let _ = writeln!(page, "| `{}` | {} | {keys} |", kind.name, cell(kind.score));
            }
        }
        if field.name == "train_mix" {
            page.push_str("\nKeys of a `[[train_mix]]` table:\n\n| key | type | meaning |\n|---|---|---|\n");
            MIX_FIELDS.iter().for_each(|field| write_row(&mut page, field));
            page.push_str("\nFurther settings of the data:\n\n| setting | type | meaning |\n|---|---|---|\n");
        }
        if field.name == "architecture" {
            page.push_str("\nKeys of the `[architecture]` table:\n\n| key | type | meaning |\n|---|---|---|\n");
            ARCHITECTURE_FIELDS.iter().for_each(|field| write_row(&mut page, field));
        }
        if field.name == "lora" {
            page.push_str("\nKeys of the `[lora]` table:\n\n| key | type | meaning |\n|---|---|---|\n");
            LORA_FIELDS.iter().for_each(|field| write_row(&mut page, field));
        }
    }
    page.push_str(
        "\n## Names used elsewhere\n\n\
         They are not accepted; the error says the name to use.\n\n\
         | elsewhere | here | note |\n|---|---|---|\n",
    );
    for foreign in FOREIGN {
        let ours = if foreign.ours.is_empty() { String::new() } else { format!("`{}`", foreign.ours) };
        let _ = writeln!(page, "| `{}` | {ours} | {} |", foreign.name, cell(foreign.note));
    }
    page.push_str(
        "\n## Environment\n\n\
         Besides `CANDLEWICK_...`, these variables that other tools share are read:\n\n\
         | variable | meaning |\n|---|---|\n",
    );
    for (name, meaning) in VARIABLES {
        let _ = writeln!(page, "| `{name}` | {} |", cell(meaning));
    }
    page
}

fn write_row(page: &mut String, field: &Field) {
    let _ = writeln!(page, "| `{}` | {} | {} |", field.name, kind(&field.kind), cell(&field.doc));
}

/// The type of a field in the words of TOML.
fn kind(rust: &str) -> &'static str {
    match rust.trim_start_matches("Option<").trim_end_matches('>') {
        "usize" | "u64" => "integer",
        "f64" => "number",
        "bool" => "boolean",
        "String" | "PathBuf" => "string",
        "Vec<String" => "list of strings",
        "Vec<RewardConfig" | "Vec<MixConfig" => "list of tables",
        "ArchitectureConfig" | "LoraConfig" => "table",
        "Targets" => "string or list of strings",
        kind if kind.starts_with("serde_json") => "table",
        _ => "word",
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::schema::words_of;
    use super::super::show::toml_value;
    use super::*;
    use crate::config::{ArchitectureConfig, LoraConfig, MixConfig, RewardConfig, RunConfig};
    use serde_json::Value;

    /// What is called a word is a choice of words.
    #[test]
    fn words_are_told_from_tables_and_lists() {
        for field in RUN_FIELDS.iter().filter(|field| kind(&field.kind) == "word") {
            assert!(!words_of(&field.name).is_empty(), "{}", field.name);
        }
        assert_eq!(kind("Option<Targets>"), "string or list of strings");
    }

    /// The comments are prose, but the default they state is a value that the code knows too.
    #[test]
    fn each_comment_states_the_default_and_the_reason() {
        let tables = [
            (&RUN_FIELDS, serde_json::to_value(RunConfig::default()).unwrap()),
            (&REWARD_FIELDS, serde_json::to_value(RewardConfig::default()).unwrap()),
            (&ARCHITECTURE_FIELDS, serde_json::to_value(ArchitectureConfig::default()).unwrap()),
            (&LORA_FIELDS, serde_json::to_value(LoraConfig::default()).unwrap()),
            (&MIX_FIELDS, serde_json::to_value(MixConfig::default()).unwrap()),
        ];
        for (fields, defaults) in tables {
            for field in fields.iter() {
                let stated = match &defaults[&field.name] {
                    Value::Null => "Default none: ".to_owned(),
                    value => format!("Default `{}`: ", toml_value(value)),
                };
                assert!(field.doc.contains(&stated), "{}: {:?} has no {stated:?}", field.name, field.doc);
                assert!(field.doc.ends_with('.'), "{}", field.name);
            }
        }
    }
}
