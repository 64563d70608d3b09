//! Where rows come from: a file, or a split of a data set that is a folder or a repository of the Hub.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::layout::Layout;
use super::load::{Dataset, RowsConfig, load_files, load_rows};
use super::slice::Slice;
use crate::env::HubEnv;
use crate::hub::{DatasetSnapshot, with_dataset};
use crate::io::{IoError, read_text};

/// The file that describes a data set.
const CARD: &str = "README.md";

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// One file: Parquet, JSON Lines or a JSON array.
    File(PathBuf),
    /// A split of a data set.
    Split(SplitSource),
}

/// A split of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSource {
    /// A folder, or `org/name` on the Hub; a folder that exists wins.
    pub name: String,
    /// The configuration; None: the only one, or the default one.
    pub config: Option<String>,
    /// Branch, tag or commit on the Hub; None: the main branch.
    pub revision: Option<String>,
    /// The split and the rows of it that count.
    pub slice: Slice,
}

/// The rows of a source.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub dataset: Dataset,
    /// The commit of the Hub that they are from.
    pub commit: Option<String>,
}

/// How the Hub may be asked.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// Addresses, cache and token.
    pub env: &'a HubEnv,
    /// Open no connection: only what is in the cache counts.
    pub offline: bool,
    /// Receives a line of text for each file that is fetched.
    pub progress: &'a dyn Fn(&str),
}

impl Source {
    /// Reads the rows, and fetches their files from the Hub first where they are not here.
    ///
    /// # Errors
    /// No such file, data set, configuration or split; whatever goes wrong with the Hub; what is wrong with the files.
    pub fn load(&self, config: &RowsConfig, access: Access<'_>) -> Result<Loaded, DataError> {
        match self {
            Self::File(path) => Ok(Loaded { dataset: load_rows(path, config)?, commit: None }),
            Self::Split(split) => split.load(config, access),
        }
    }
}

impl Source {
    /// The file's name without its ending, or the last part of the data set's.
    #[must_use]
    pub fn short_name(&self) -> String {
        let name = match self {
            Self::File(path) => path.file_stem(),
            Self::Split(split) => Path::new(&split.name).file_name(),
        };
        name.unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl SplitSource {
    fn load(&self, config: &RowsConfig, access: Access<'_>) -> Result<Loaded, DataError> {
        let folder = Path::new(&self.name);
        if folder.is_file() {
            return Err(DataError::NotAFolder { path: folder.to_owned() });
        }
        let (files, commit): (Vec<PathBuf>, Option<String>) = if folder.is_dir() {
            let card = folder.join(CARD);
            let card = if card.is_file() { Some(read_text(&card)?) } else { None };
            let layout = Layout::new(&self.name, &files_below(folder)?, card.as_deref())?;
            let chosen = layout.files(&self.name, self.config.as_deref(), &self.slice.split)?;
            (chosen.iter().map(|file| folder.join(file)).collect(), None)
        } else {
            let Access { env, offline, progress } = access;
            let work = |snapshot: &DatasetSnapshot<'_>| -> Result<_, DataError> {
                Ok((self.fetch(snapshot)?, Some(snapshot.commit().to_owned())))
            };
            with_dataset(env, &self.name, self.revision.as_deref(), offline, progress, work)?
        };
        let dataset = load_files(self.to_string().into(), &files, Some(&self.slice), config)?;
        Ok(Loaded { dataset, commit })
    }

    /// The files of the split, fetched where they are not here.
    fn fetch(&self, snapshot: &DatasetSnapshot<'_>) -> Result<Vec<PathBuf>, DataError> {
        let has_card = snapshot.files().iter().any(|file| file == CARD);
        let card = if has_card { Some(read_text(&snapshot.fetch(CARD)?)?) } else { None };
        let layout = Layout::new(&self.name, snapshot.files(), card.as_deref())?;
        let chosen = layout.files(&self.name, self.config.as_deref(), &self.slice.split)?;
        Ok(chosen.iter().map(|file| snapshot.fetch(file)).collect::<Result<Vec<_>, _>>()?)
    }
}

/// The files below a folder, by their paths with `/` from there. Hidden folders are not entered.
fn files_below(folder: &Path) -> Result<Vec<String>, DataError> {
    let (mut open, mut files) = (vec![(folder.to_owned(), String::new())], Vec::new());
    while let Some((folder, prefix)) = open.pop() {
        let list_error = |source| IoError::of("list", &folder)(source);
        for entry in std::fs::read_dir(&folder).map_err(list_error)? {
            let entry = entry.map_err(list_error)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            // A link counts as what it leads to, but a folder of links is not followed into another tree for ever.
            match std::fs::metadata(entry.path()) {
                Ok(found) if found.is_dir() && !entry.path().is_symlink() => open.push((entry.path(), path + "/")),
                Ok(found) if found.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    Ok(files)
}

impl fmt::Display for SplitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.config {
            Some(config) => write!(f, "{} ({config}, {})", self.name, self.slice),
            None => write!(f, "{} ({})", self.name, self.slice),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Split(split) => split.fmt(f),
        }
    }
}

impl<T: Into<PathBuf>> From<T> for Source {
    fn from(path: T) -> Self {
        Self::File(path.into())
    }
}
