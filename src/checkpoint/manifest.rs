//! `MANIFEST.json`: size and SHA-256 of every file of a finished folder, and of itself.
//!
//! Its last member, `manifest_sha256`, is the hash of the file's own bytes with 64 zeros in the place of that hash,
//! so that a damaged manifest is told from a damaged file that it lists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CheckpointError;
use crate::io::{self, IoError};

/// Name of the manifest inside a finished folder.
pub const MANIFEST_FILE: &str = "MANIFEST.json";

const VERSION: u64 = 1;
/// What the text ends with, around the 64 hex digits of its hash.
const HASH_BEFORE: &str = "  \"manifest_sha256\": \"";
const HASH_AFTER: &str = "\"\n}\n";
const HASH_LENGTH: usize = 64;

/// What the manifest says of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// The content of `MANIFEST.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub manifest_version: u64,
    /// Version of the program that wrote the folder.
    pub candlewick_version: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Every file of the folder but this one, by its path with `/`, relative to the folder.
    pub files: BTreeMap<String, ManifestFile>,
    /// Facts of the run that a reader may want without opening the files: hashes of config, tokenizer, base model.
    pub facts: Value,
    /// SHA-256 of this file with zeros here.
    pub manifest_sha256: String,
}

impl Manifest {
    /// Hashes the files `names` in `folder`.
    pub(super) fn of_files(folder: &Path, step: u64, names: &[String], facts: Value) -> Result<Self, CheckpointError> {
        let files = names
            .par_iter()
            .map(|name| {
                let (bytes, sha256) = io::sha256_file(&folder.join(name))?;
                Ok((name.clone(), ManifestFile { bytes, sha256 }))
            })
            .collect::<Result<_, IoError>>()?;
        Ok(Self {
            manifest_version: VERSION,
            candlewick_version: env!("CARGO_PKG_VERSION").to_owned(),
            step,
            files,
            facts,
            manifest_sha256: "0".repeat(HASH_LENGTH),
        })
    }

    /// The text of the file, with its own hash filled in.
    pub(super) fn seal(mut self) -> Result<String, serde_json::Error> {
        self.manifest_sha256 = "0".repeat(HASH_LENGTH);
        let mut text = serde_json::to_string_pretty(&self)? + "\n";
        let hash = io::sha256_bytes(text.as_bytes());
        let start = text.len() - HASH_AFTER.len() - HASH_LENGTH;
        text.replace_range(start..start + HASH_LENGTH, &hash);
        Ok(text)
    }

    /// Reads and checks `folder/MANIFEST.json` itself, not the files that it lists.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let corrupt = |problem: &str| CheckpointError::corrupt(&path, problem);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt("is missing: the folder was not written to its end, or not by this program"));
            }
            other => other.map_err(IoError::of("read", &path))?,
        };
        let mut text = String::from_utf8(bytes).map_err(|_| corrupt("is damaged (not UTF-8)"))?;
        let hash = text
            .strip_suffix(HASH_AFTER)
            .and_then(|head| head.split_at_checked(head.len().checked_sub(HASH_LENGTH)?))
            .filter(|(head, _)| head.ends_with(HASH_BEFORE))
            .map(|(_, hash)| hash.to_owned())
            .ok_or_else(|| corrupt("is damaged (its own hash is not at its end)"))?;
        let start = text.len() - HASH_AFTER.len() - HASH_LENGTH;
        text.replace_range(start..start + HASH_LENGTH, &"0".repeat(HASH_LENGTH));
        if io::sha256_bytes(text.as_bytes()) != hash {
            return Err(corrupt("is damaged (it does not have its own hash)"));
        }
        let mut manifest: Self =
            serde_json::from_str(&text).map_err(|error| corrupt(&format!("cannot be read: {error}")))?;
        manifest.manifest_sha256 = hash;
        if manifest.manifest_version > VERSION {
            return Err(CheckpointError::FutureVersion {
                folder: folder.to_owned(),
                file: MANIFEST_FILE.into(),
                found: manifest.manifest_version,
                known: VERSION,
            });
        }
        if let Some(name) = manifest.files.keys().find(|name| !is_inside(name)) {
            return Err(corrupt(&format!("lists {name:?}, which is not inside the folder")));
        }
        Ok(manifest)
    }
}

fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Checks that every file of a finished folder is, byte for byte, the one that was written.
///
/// # Errors
/// [`CheckpointError::Corrupt`] names the first bad file: sizes are compared first, then hashes, in the manifest's
/// order. [`CheckpointError::FutureVersion`] where the manifest is newer than this program.
pub fn verify(folder: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = Manifest::read(folder)?;
    for with_hashes in [false, true] {
        if let Some(FileProblem { file, problem }) = wrong_files(folder, &manifest, with_hashes)?.into_iter().next() {
            return Err(CheckpointError::Corrupt { folder: folder.to_owned(), file, problem });
        }
    }
    Ok(manifest)
}

/// What is wrong with a file of a finished folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileProblem {
    /// Its path as in the manifest.
    pub file: String,
    /// The end of a sentence that begins with the file.
    pub problem: String,
}

/// Every file that is not the one that was written, in the manifest's order: sizes are compared and, `with_hashes`, the
/// hashes of those whose size is right.
///
/// # Errors
/// [`CheckpointError::Io`] where the operating system refuses to read: that says nothing about a file.
pub fn wrong_files(folder: &Path, manifest: &Manifest, with_hashes: bool) -> Result<Vec<FileProblem>, CheckpointError> {
    let entries: Vec<_> = manifest.files.iter().collect();
    let found = entries.par_iter().map(|(name, expected)| {
        let problem = match problem_of_size(&folder.join(name), expected)? {
            None if with_hashes => {
                let (bytes, sha256) = io::sha256_file(&folder.join(name))?;
                let is_right = bytes == expected.bytes && sha256 == expected.sha256;
                (!is_right).then(|| "is damaged (its SHA-256 is not that of the manifest)".to_owned())
            }
            problem => problem,
        };
        Ok(problem.map(|problem| FileProblem { file: (*name).clone(), problem }))
    });
    let found: Vec<Result<Option<FileProblem>, CheckpointError>> = found.collect();
    found.into_iter().filter_map(Result::transpose).collect()
}

fn problem_of_size(path: &Path, expected: &ManifestFile) -> Result<Option<String>, CheckpointError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Ok(Some("is not a regular file".into())),
        Ok(found) if found.len() != expected.bytes => {
            Ok(Some(format!("has {} bytes, the manifest says {}", found.len(), expected.bytes)))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some("is missing".into())),
        Err(error) => Err(IoError::of("read", path)(error).into()),
    }
}

/// The files of `folder` that the manifest does not list, sorted; they are no part of the checkpoint.
pub fn unlisted_files(folder: &Path, manifest: &Manifest) -> Result<Vec<String>, CheckpointError> {
    let names = files_below(folder)?;
    Ok(names.into_iter().filter(|name| name != MANIFEST_FILE && !manifest.files.contains_key(name)).collect())
}

/// Paths of all files below `folder`, relative to it and with `/`, sorted.
pub(super) fn files_below(folder: &Path) -> Result<Vec<String>, IoError> {
    let mut names = Vec::new();
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((dir, prefix)) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(IoError::of("list", &dir))? {
            let entry = entry.map_err(IoError::of("list", &dir))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(IoError::of("read", &entry.path()))?;
            if kind.is_dir() {
                open.push((entry.path(), name + "/"));
            } else {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}
