//! The checkpoints of one output directory: commit, discovery, rotation, and the final model.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;
use super::manifest::{MANIFEST_FILE, Manifest, files_below, verify};
use super::rotation::{Keep, checkpoints_to_remove};
use crate::io::{self, IoError};

const PREFIX: &str = "checkpoint-";
/// Marks a folder that is being written or removed; one of a dead run is removed at the next start.
const TEMP_MARK: &str = ".tmp.";
/// A damaged checkpoint is renamed to this after its name, to be looked at by a person.
const INVALID_MARK: &str = ".invalid";
const FINAL_PREFIX: &str = "final";

/// The checkpoints below one output directory. Holds no state: the file system is the truth.
///
/// ```
/// use candlewick::checkpoint::{CheckpointDir, Keep};
/// use candlewick::io::DirLock;
///
/// # let temp = tempfile::tempdir()?;
/// # let output_dir = temp.path();
/// let _lock = DirLock::acquire(output_dir)?;
/// let checkpoints = CheckpointDir::new(output_dir);
/// checkpoints.remove_stale()?;
/// let found = checkpoints.newest_valid()?;
/// checkpoints.make_way(found.as_ref().map(|found| found.step), found.as_ref().map_or(&[], |found| &found.skipped))?;
///
/// let pending = checkpoints.begin(5)?;
/// std::fs::write(pending.path().join("config.json"), "{}")?;
/// let folder = pending.commit(serde_json::json!({}))?;
/// checkpoints.rotate(Keep { limit: 3, best: None })?;
/// assert_eq!(folder, output_dir.join("checkpoint-5"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CheckpointDir {
    output_dir: PathBuf,
}

/// The checkpoint to resume from.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Optimizer steps done in it.
    pub step: u64,
    /// Its verified manifest.
    pub manifest: Manifest,
    /// Newer folders that are damaged, newest first, with what is wrong.
    pub skipped: Vec<(PathBuf, String)>,
}

impl CheckpointDir {
    /// The checkpoints of `output_dir`, which need not exist yet.
    #[must_use]
    pub fn new(output_dir: &Path) -> Self {
        Self { output_dir: output_dir.to_owned() }
    }

    /// Where the checkpoint of `step` is, or would be.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.output_dir.join(format!("{PREFIX}{step}"))
    }

    /// Steps and folders named like checkpoints, valid or not, oldest first.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let entries = match fs::read_dir(&self.output_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(IoError::of("list", &self.output_dir))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(IoError::of("list", &self.output_dir))?.path();
            if let Some(step) = path.file_name().and_then(step_of)
                && path.is_dir()
            {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest checkpoint that passes [`verify`]; `None` where there is no checkpoint at all.
    ///
    /// # Errors
    /// [`CheckpointError::NoneValid`] where there are checkpoints and every one is damaged.
    pub fn newest_valid(&self) -> Result<Option<Found>, CheckpointError> {
        let mut skipped = Vec::new();
        for (step, path) in self.list()?.into_iter().rev() {
            match verify(&path) {
                Ok(manifest) if manifest.step == step => return Ok(Some(Found { path, step, manifest, skipped })),
                Ok(manifest) => skipped.push((path, format!("{MANIFEST_FILE} is that of step {}", manifest.step))),
                // What the operating system refuses is no verdict on the checkpoint: better stop than fall back.
                Err(CheckpointError::Io(error)) => return Err(error.into()),
                // The folder is named beside it.
                Err(CheckpointError::Corrupt { file, problem, .. }) => {
                    skipped.push((path, format!("{file} {problem}")));
                }
                Err(error) => skipped.push((path, error.to_string())),
            }
        }
        if skipped.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneValid { output_dir: self.output_dir.clone(), skipped })
    }

    /// Makes way for a run that continues after `step` (`None`: a fresh run).
    ///
    /// The `skipped` (damaged) folders are renamed to `checkpoint-N.invalid`.
    ///
    /// # Errors
    /// [`CheckpointError::WouldOverwrite`] where other checkpoints of later steps are there: they belong to a run
    /// that went on, and the two must not be mixed.
    pub fn make_way(&self, step: Option<u64>, skipped: &[(PathBuf, String)]) -> Result<(), CheckpointError> {
        let in_the_way: Vec<PathBuf> = self
            .list()?
            .into_iter()
            .filter(|(other, path)| step.is_none_or(|step| *other > step) && !skipped.iter().any(|(p, _)| p == path))
            .map(|(_, path)| path)
            .collect();
        if !in_the_way.is_empty() {
            return Err(CheckpointError::WouldOverwrite { output_dir: self.output_dir.clone(), folders: in_the_way });
        }
        for (path, _) in skipped {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut target = path.with_file_name(format!("{name}{INVALID_MARK}"));
            let mut number = 1;
            while target.exists() {
                number += 1;
                target = path.with_file_name(format!("{name}{INVALID_MARK}-{number}"));
            }
            io::rename_durably(path, &target)?;
        }
        Ok(())
    }

    /// Refuses an output directory that holds a model or a card: another model would replace them.
    ///
    /// # Errors
    /// [`CheckpointError::WouldReplace`] with the files.
    pub fn require_no_model(&self) -> Result<(), CheckpointError> {
        let taken = |name: &&str| self.output_dir.join(name).symlink_metadata().is_ok();
        let files: Vec<String> = FINAL_FILES.into_iter().filter(taken).map(str::to_owned).collect();
        if files.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::WouldReplace { output_dir: self.output_dir.clone(), files })
    }

    /// Removes what a killed run left half-written. Call it once at the start, under the lock.
    pub fn remove_stale(&self) -> Result<(), CheckpointError> {
        io::remove_stale_temps(&self.output_dir)?;
        for entry in fs::read_dir(&self.output_dir).map_err(IoError::of("list", &self.output_dir))? {
            let path = entry.map_err(IoError::of("list", &self.output_dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_ours = name.starts_with(PREFIX) || name.starts_with(FINAL_PREFIX);
            if is_ours && name.contains(TEMP_MARK) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(IoError::of("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Starts the checkpoint of `step`: an empty temporary folder to write files into.
    pub fn begin(&self, step: u64) -> Result<Pending, CheckpointError> {
        self.pending(format!("{PREFIX}{step}{TEMP_MARK}{}", std::process::id()), step)
    }

    /// Starts the final model, whose files will lie in the output directory itself; end it with [`Pending::publish`].
    pub fn begin_final(&self, step: u64) -> Result<Pending, CheckpointError> {
        self.pending(format!("{FINAL_PREFIX}{TEMP_MARK}{}", std::process::id()), step)
    }

    fn pending(&self, name: String, step: u64) -> Result<Pending, CheckpointError> {
        let path = self.output_dir.join(name);
        io::create_dirs(&self.output_dir)?;
        if path.exists() {
            fs::remove_dir_all(&path).map_err(IoError::of("remove", &path))?;
        }
        fs::create_dir(&path).map_err(IoError::of("create folder", &path))?;
        Ok(Pending { output_dir: self.output_dir.clone(), path, step, is_done: false })
    }

    /// Removes the checkpoints that `keep` does not keep; returns their folders. Call it after a commit, and when a run
    /// resumes: the one before may have been killed between its commit and this.
    ///
    /// Each is renamed before it is emptied, so that no half-removed folder ever bears a checkpoint's name.
    pub fn rotate(&self, keep: Keep) -> Result<Vec<PathBuf>, CheckpointError> {
        let listed = self.list()?;
        let steps: Vec<u64> = listed.iter().map(|(step, _)| *step).collect();
        let remove = checkpoints_to_remove(&steps, keep);
        let mut removed = Vec::new();
        for (_, path) in listed.into_iter().filter(|(step, _)| remove.contains(step)) {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!("{TEMP_MARK}{}.old", std::process::id()));
            let doomed = path.with_file_name(name);
            io::rename_durably(&path, &doomed)?;
            fs::remove_dir_all(&doomed).map_err(IoError::of("remove", &doomed))?;
            removed.push(path);
        }
        Ok(removed)
    }
}

/// Files by which the final model of any run is known.
const FINAL_FILES: [&str; 4] = [MANIFEST_FILE, "config.json", "adapter_config.json", "README.md"];

/// The step of a folder name `checkpoint-{digits}`; a number with leading zeros is somebody else's folder.
fn step_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_prefix(PREFIX)?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

/// A folder that is being written. Dropped without [`Pending::commit`] or [`Pending::publish`], it is removed.
#[derive(Debug)]
pub struct Pending {
    output_dir: PathBuf,
    path: PathBuf,
    step: u64,
    is_done: bool,
}

impl Pending {
    /// The temporary folder; write the files of the checkpoint here.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder durable, then visible as `checkpoint-{step}`, and returns its path.
    ///
    /// `facts` go into the manifest as they are.
    pub fn commit(mut self, facts: Value) -> Result<PathBuf, CheckpointError> {
        let target = self.output_dir.join(format!("{PREFIX}{}", self.step));
        if target.exists() {
            let folders = vec![target];
            return Err(CheckpointError::WouldOverwrite { output_dir: self.output_dir.clone(), folders });
        }
        self.seal(facts)?;
        io::rename_durably(&self.path, &target)?;
        self.is_done = true;
        Ok(target)
    }

    /// Moves the files into the output directory itself, its manifest last.
    ///
    /// A manifest of an earlier final model goes first, with the files that only it lists: whenever there is a valid
    /// manifest in the output directory, the model beside it is whole. A run killed in between publishes again.
    pub fn publish(mut self, facts: Value) -> Result<(), CheckpointError> {
        let names = self.seal(facts)?;
        let old_manifest = self.output_dir.join(MANIFEST_FILE);
        if old_manifest.exists() {
            let listed = Manifest::read(&self.output_dir).map(|manifest| manifest.files).unwrap_or_default();
            fs::remove_file(&old_manifest).map_err(IoError::of("remove", &old_manifest))?;
            io::fsync_dir(&self.output_dir)?;
            for name in listed.keys().filter(|name| !names.contains(name)) {
                match fs::remove_file(self.output_dir.join(name)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(IoError::of("remove", &self.output_dir.join(name))(error).into());
                    }
                    _ => {}
                }
            }
        }
        for name in &names {
            let target = self.output_dir.join(name);
            io::create_dirs(io::parent_of(&target))?;
            fs::rename(self.path.join(name), &target).map_err(IoError::of("rename into place", &target))?;
        }
        io::fsync_dir(&self.output_dir)?;
        io::rename_durably(&self.path.join(MANIFEST_FILE), &old_manifest)?;
        Ok(())
        // Dropping removes the temporary folder, by now empty.
    }

    /// Flushes every file, writes and flushes the manifest, flushes the folders; returns the names of the files.
    fn seal(&mut self, facts: Value) -> Result<Vec<String>, CheckpointError> {
        let names = files_below(&self.path)?;
        for name in &names {
            io::fsync_file(&self.path.join(name))?;
        }
        let path = self.path.join(MANIFEST_FILE);
        let text = Manifest::of_files(&self.path, self.step, &names, facts)?
            .seal()
            .map_err(|error| IoError::of("write", &path)(error.into()))?;
        let mut file = fs::File::create(&path).map_err(IoError::of("create", &path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(IoError::of("write", &path))?;
        let mut folders: Vec<_> = names.iter().map(|name| io::parent_of(&self.path.join(name)).to_owned()).collect();
        folders.push(self.path.clone());
        folders.sort_unstable();
        folders.dedup();
        folders.iter().try_for_each(|folder| io::fsync_dir(folder))?;
        Ok(names)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done {
            // The error that led here is the one to report; what stays is removed at the next start.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
