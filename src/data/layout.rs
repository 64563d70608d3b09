//! Which files of a data set are which split, as `datasets` finds them: by the `configs` in the card's YAML where there are
//! any, else by the names of folders and files.
//!
//! Pure over a list of paths (with `/`, from the top of the data set) and the text of README.md; the same for a folder and
//! for a repository of the Hub. Without a card, a folder of splits is a configuration of its name.

use std::collections::HashSet;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;
use yaml_rust2::{Yaml, YamlLoader};

use super::error::DataError;

/// What is read; other files of a data set are left alone.
const KINDS: [&str; 3] = ["parquet", "jsonl", "json"];

/// Files that describe a data set and are none of its data.
const NOT_DATA: [&str; 6] =
    ["README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// The words for each split in the names of files and folders.
const SPLITS: [(&str, &str); 3] =
    [("train", "train|training"), ("validation", "validation|valid|dev|val"), ("test", "test|testing|eval|evaluation")];

/// The configurations of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    configs: Vec<Config>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Config {
    name: String,
    is_default: bool,
    /// Name and files of each split, the files in the order of their names.
    splits: Vec<(String, Vec<String>)>,
}

impl Layout {
    /// Finds the configurations and splits of the data set `name` among its `paths`.
    ///
    /// # Errors
    /// The card cannot be read, or there are no files of a kind that is read.
    pub fn new(name: &str, paths: &[String], card: Option<&str>) -> Result<Self, DataError> {
        let mut paths: Vec<&str> = paths.iter().map(String::as_str).filter(|path| !is_hidden(path)).collect();
        paths.sort_unstable();
        let bad_card = |reason: String| DataError::BadCard { dataset: name.to_owned(), reason };
        let described = card.map(|card| of_card(card, &paths)).transpose().map_err(bad_card)?.unwrap_or_default();
        let configs = if described.is_empty() { of_names(&paths) } else { described };
        if configs.iter().all(|config| config.splits.iter().all(|(_, files)| files.is_empty())) {
            let found = paths.iter().map(|path| (*path).to_owned()).collect();
            return Err(DataError::NoDataFiles { dataset: name.to_owned(), found });
        }
        Ok(Self { configs })
    }

    /// The files of a split.
    ///
    /// # Errors
    /// There is no such configuration or split (with those that there are), one must be named, a shard is missing, or a
    /// file is of a kind that is not read.
    pub fn files(&self, name: &str, config: Option<&str>, split: &str) -> Result<&[String], DataError> {
        let dataset = || name.to_owned();
        let names = || self.configs.iter().map(|config| config.name.clone()).collect::<Vec<_>>();
        let found = match (config, self.configs.as_slice()) {
            (Some(asked), configs) => configs.iter().find(|config| config.name == asked).ok_or_else(|| {
                DataError::NoConfig { dataset: dataset(), config: asked.to_owned(), available: names() }
            })?,
            (None, [only]) => only,
            (None, configs) => configs
                .iter()
                .find(|config| config.is_default)
                .ok_or_else(|| DataError::ConfigNeeded { dataset: dataset(), available: names() })?,
        };
        let files = found.splits.iter().find(|(of, _)| of == split).map(|(_, files)| files.as_slice());
        let files = files.filter(|files| !files.is_empty()).ok_or_else(|| DataError::NoSplit {
            dataset: dataset(),
            config: found.name.clone(),
            split: split.to_owned(),
            available: found.splits.iter().map(|(split, _)| split.clone()).collect(),
        })?;
        if let Some(file) = files.iter().find(|file| !is_data(file)) {
            return Err(DataError::UnreadKind { dataset: dataset(), file: file.clone() });
        }
        match missing_shard(files) {
            Some(file) => Err(DataError::MissingShard { dataset: dataset(), file }),
            None => Ok(files),
        }
    }
}

/// Files and folders that begin with a dot or two underscores are none of a data set's.
fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.') || part.starts_with("__"))
}

fn is_data(path: &str) -> bool {
    let file = Path::new(path);
    let is_kind = file.extension().is_some_and(|kind| KINDS.iter().any(|known| kind == *known));
    is_kind && !NOT_DATA.iter().any(|name| file.file_name().is_some_and(|file| file == *name))
}

/// The first shard that the others of its name ask for and that is not there: `x-00001-of-00003.parquet`.
fn missing_shard(files: &[String]) -> Option<String> {
    let pattern = Regex::new(r"^(.*-)\d{5}(-of-(\d{5}).*)$").ok()?;
    let present: HashSet<&str> = files.iter().map(String::as_str).collect();
    let mut seen = HashSet::new();
    for file in files {
        let Some((_, [head, tail, count])) = pattern.captures(file).map(|parts| parts.extract()) else { continue };
        // The shards of one name are looked for once.
        if !seen.insert((head, tail)) {
            continue;
        }
        let count: usize = count.parse().ok()?;
        let name = |shard: usize| format!("{head}{shard:05}{tail}");
        if let Some(absent) = (0..count).map(name).find(|name| !present.contains(name.as_str())) {
            return Some(absent);
        }
    }
    None
}

/// The `configs` of a card's YAML head; none where it has none.
fn of_card(card: &str, paths: &[&str]) -> Result<Vec<Config>, String> {
    let Some(head) = front_matter(card) else { return Ok(Vec::new()) };
    let documents =
        YamlLoader::load_from_str(head).map_err(|error| format!("its YAML head cannot be read: {error}"))?;
    let Some(configs) = documents.first().and_then(|head| head["configs"].as_vec()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in configs {
        let name = entry["config_name"].as_str().unwrap_or("default").to_owned();
        let folder = entry["data_dir"].as_str().unwrap_or("").trim_matches('/');
        let splits = match &entry["data_files"] {
            Yaml::BadValue => splits_of_names(&inside(paths, folder), folder),
            files => patterns(files)
                .ok_or_else(|| format!("the `data_files` of its configuration `{name}` are not understood"))?
                .into_iter()
                .map(|(split, globs)| Ok((split, matching(paths, folder, &globs)?)))
                .collect::<Result<Vec<_>, String>>()?,
        };
        let is_default = name == "default" || entry["default"].as_bool() == Some(true);
        found.push(Config { name, is_default, splits });
    }
    // A configuration that says so wins over one that is only called so.
    if found.iter().any(|config: &Config| config.is_default && config.name != "default") {
        for config in &mut found {
            config.is_default &= config.name != "default";
        }
    }
    Ok(found)
}

/// The text between the first two lines of `---`.
fn front_matter(card: &str) -> Option<&str> {
    let rest = card.trim_start_matches('\u{FEFF}').strip_prefix("---")?;
    let rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n'))?;
    rest.split_once("\n---").map(|(head, _)| head)
}

/// `data_files` as it may be written: a pattern, a list of patterns, or a list of splits with theirs.
fn patterns(files: &Yaml) -> Option<Vec<(String, Vec<String>)>> {
    let several = |value: &Yaml| match value {
        Yaml::String(one) => Some(vec![one.clone()]),
        Yaml::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let of_split = |entry: &Yaml| Some((entry["split"].as_str()?.to_owned(), several(&entry["path"])?));
    match files {
        Yaml::Array(entries) if entries.iter().all(|entry| entry.as_hash().is_some()) => {
            entries.iter().map(of_split).collect()
        }
        Yaml::Hash(by_split) => {
            by_split.iter().map(|(split, paths)| Some((split.as_str()?.to_owned(), several(paths)?))).collect()
        }
        other => Some(vec![("train".to_owned(), several(other)?)]),
    }
}

/// The paths that one of the patterns matches, each once. A `*` stays within a folder, `**` does not.
fn matching(paths: &[&str], folder: &str, globs: &[String]) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    for pattern in globs {
        let pattern = pattern.trim_start_matches("./");
        let pattern = if folder.is_empty() { pattern.to_owned() } else { format!("{folder}/{pattern}") };
        let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
        let matcher: GlobMatcher =
            glob.map_err(|error| format!("a pattern of files is wrong: {error}"))?.compile_matcher();
        let is_new = |path: &&&str| matcher.is_match(path) && !found.iter().any(|other| other == *path);
        let more: Vec<String> = paths.iter().filter(is_new).map(|path| (*path).to_owned()).collect();
        found.extend(more);
    }
    Ok(found)
}

/// The paths below a folder.
fn inside<'a>(paths: &[&'a str], folder: &str) -> Vec<&'a str> {
    let head = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    paths.iter().copied().filter(|path| path.starts_with(&head)).collect()
}

/// Configurations by the names of folders: each folder at the top that has splits of its own; else one of all files.
fn of_names(paths: &[&str]) -> Vec<Config> {
    let data: Vec<&str> = paths.iter().copied().filter(|path| is_data(path)).collect();
    let mut folders: Vec<&str> = data.iter().filter_map(|path| Some(path.split_once('/')?.0)).collect();
    folders.dedup();
    let is_split =
        |folder: &&str| *folder == "data" || SPLITS.iter().any(|(_, words)| names_split(folder, words, true));
    let candidates: Vec<&str> = folders.into_iter().filter(|folder| !is_split(folder)).collect();
    let mut configs: Vec<Config> = Vec::new();
    for folder in candidates {
        let splits = explicit_splits(&inside(&data, folder), folder);
        if !splits.is_empty() {
            configs.push(Config { name: folder.to_owned(), is_default: false, splits });
        }
    }
    let is_of_config = |path: &&str| configs.iter().any(|config| path.starts_with(&format!("{}/", config.name)));
    let rest: Vec<&str> = data.iter().copied().filter(|path| !is_of_config(path)).collect();
    if !rest.is_empty() {
        let splits = splits_of_names(&rest, "");
        configs.insert(0, Config { name: "default".to_owned(), is_default: true, splits });
    }
    configs
}

/// The splits that names tell; where they tell none, all files are `train`.
fn splits_of_names(paths: &[&str], folder: &str) -> Vec<(String, Vec<String>)> {
    let data: Vec<&str> = paths.iter().copied().filter(|path| is_data(path)).collect();
    let splits = explicit_splits(&data, folder);
    if splits.is_empty() && !data.is_empty() {
        return vec![("train".to_owned(), data.iter().map(|path| (*path).to_owned()).collect())];
    }
    splits
}

/// The splits that names tell, in the order in which `datasets` asks: shards `data/<split>-00000-of-00001.parquet` (in the
/// folder of a configuration without `data/`), then words in the names of folders, then words in the names of files.
fn explicit_splits(paths: &[&str], folder: &str) -> Vec<(String, Vec<String>)> {
    let tail = |path: &str| path.strip_prefix(folder).unwrap_or(path).trim_start_matches('/').to_owned();
    let place = if folder.is_empty() { "data/" } else { "(?:data/)?" };
    let pattern = Regex::new(&format!(r"^{place}(\w+(?:\.\w+)*)-\d{{5}}-of-\d{{5}}[^/]*\.[^/]*$"));
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    for path in paths {
        let tail = tail(path);
        if let Some(split) =
            pattern.as_ref().ok().and_then(|pattern| pattern.captures(&tail)).map(|found| found[1].to_owned())
        {
            match splits.iter_mut().find(|(name, _)| *name == split) {
                Some((_, files)) => files.push((*path).to_owned()),
                None => splits.push((split, vec![(*path).to_owned()])),
            }
        }
    }
    if !splits.is_empty() {
        return splits;
    }
    for in_folder in [true, false] {
        let of_split = |words: &str| {
            let matches = |path: &&&str| {
                let tail = tail(path);
                let (folders, file) = tail.rsplit_once('/').unwrap_or(("", &tail));
                if in_folder {
                    folders.split('/').any(|part| names_split(part, words, true))
                } else {
                    names_split(file, words, false)
                }
            };
            paths.iter().filter(matches).map(|path| (*path).to_owned()).collect::<Vec<_>>()
        };
        let found = SPLITS.iter().map(|(name, words)| ((*name).to_owned(), of_split(words)));
        let found: Vec<_> = found.filter(|(_, files)| !files.is_empty()).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// Whether one of the words stands in a name between its ends, `-`, `_`, `.`, blanks and digits. A file goes on after it.
fn names_split(name: &str, words: &str, is_folder: bool) -> bool {
    let end = if is_folder { "(?:[-._ 0-9]|$)" } else { "[-._ 0-9]" };
    Regex::new(&format!("(?:^|[-._ 0-9])(?:{words}){end}")).is_ok_and(|pattern| pattern.is_match(name))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
