//! The tables of the README from the files of `results/`, which `scripts/results.sh` writes.
//!
//!     cargo run --release --example results_table                   prints all tables
//!     cargo run --release --example results_table -- fill README.md puts them between the file's markers
//!     cargo run --release --example results_table -- check README.md fails where the file shows something else
//!     cargo run --release --example results_table -- record FOLDER  prints the result of the run in a work folder
//!
//! A work folder holds `row`, `seed`, `recipe`, `version` and `threads` (one line each), `commands` (one a line),
//! `config.json` (`config show --json`), `parts` (the unix time at which each part of the run began), `eval.json` (`eval
//! --json` of the start model and the trained one), and the run itself in `run`.

mod record;
mod tables;

use record::record;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use tables::{RunResult, TABLES, disagreement, fill, load, table};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = match args[..] {
        [] => all_tables(&load(Path::new("results"))?),
        ["fill", path] => {
            let filled = fill(&fs::read_to_string(path)?, &load(Path::new("results"))?)?;
            fs::write(path, filled)?;
            String::new()
        }
        ["check", path] => match disagreement(&fs::read_to_string(path)?, &load(Path::new("results"))?) {
            None => String::new(),
            Some(difference) => return Err(format!("{path}: {difference}").into()),
        },
        ["record", folder] => format!("{:#}\n", serde_json::to_value(record(Path::new(folder))?)?),
        _ => return Err("the arguments are none, `fill FILE`, `check FILE` or `record FOLDER`".into()),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn all_tables(results: &[RunResult]) -> String {
    TABLES.iter().fold(String::new(), |mut text, name| {
        let table = table(name, results);
        if !table.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "## {name}\n\n{table}");
        }
        text
    })
}
