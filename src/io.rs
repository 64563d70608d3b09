//! Durable files: atomic writes, hashes, the lock of an output directory.
//!
//! Everything that must survive a killed process or a full disk is written through this module. It knows nothing of
//! what the files mean; the commit protocol of a whole checkpoint folder lives in `checkpoint`.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::error::{Diagnose, Exit};

/// Prefix of the temporary files of [`write_atomic`]; a leftover one belongs to a run that was killed.
const TEMP_PREFIX: &str = ".candlewick-";
const TEMP_SUFFIX: &str = ".tmp";
/// The file inside an output directory that a run keeps locked.
const LOCK_FILE: &str = ".lock";

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Failed {
        /// What was tried, as a verb that `path` follows.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The answer of the operating system.
        source: io::Error,
    },
    /// Another process holds the lock of the output directory.
    #[error("output directory {} is in use by another run ({holder})", dir.display())]
    Locked {
        /// The output directory.
        dir: PathBuf,
        /// Process and host of the other run, as it wrote them down.
        holder: String,
    },
}

impl IoError {
    /// Wraps `source`; made to be used as `.map_err(IoError::of("read", path))`.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Failed { action, path, source }
    }
}

impl Diagnose for IoError {
    fn hint(&self) -> Option<String> {
        let (path, source) = match self {
            Self::Failed { path, source, .. } => (path, source),
            Self::Locked { .. } => {
                return Some("wait for the other run to end, or give this one its own output_dir".into());
            }
        };
        let path = path.display();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(format!(
                "free space on the file system of {path}, or choose another folder; a run takes less of it with a lower \
                 save_total_limit, and goes on with --resume auto"
            )),
            ErrorKind::PermissionDenied => Some(format!("check the owner and permissions of {path}")),
            ErrorKind::ReadOnlyFilesystem => {
                Some(format!("the file system of {path} is read-only: choose another folder"))
            }
            ErrorKind::NotFound => Some(format!("check the path {path}")),
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                Some(format!("a file stands where a folder is needed on the way to {path}: move it or choose another"))
            }
            _ => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Failed { .. } => Exit::Io,
            Self::Locked { .. } => Exit::Locked,
        }
    }
}

/// Seconds since 1970 by the wall clock, for logs only.
#[must_use]
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Creates a folder and its parents; an existing folder is fine.
pub fn create_dirs(path: &Path) -> Result<(), IoError> {
    fs::create_dir_all(path).map_err(IoError::of("create folder", path))
}

/// Reads a whole text file.
pub fn read_text(path: &Path) -> Result<String, IoError> {
    fs::read_to_string(path).map_err(IoError::of("read", path))
}

/// Flushes a file's content and size to the disk.
pub fn fsync_file(path: &Path) -> Result<(), IoError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(IoError::of("flush to disk", path))
}

/// Flushes a folder's entries to the disk, so that a rename or a new file in it survives a power cut.
pub fn fsync_dir(path: &Path) -> Result<(), IoError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(IoError::of("flush folder", path))
}

/// Renames `from` to `to` and flushes the folder of `to`.
pub fn rename_durably(from: &Path, to: &Path) -> Result<(), IoError> {
    fs::rename(from, to).map_err(IoError::of("rename into place", to))?;
    fsync_dir(parent_of(to))
}

/// The folder that holds `path`; `.` for a bare name.
#[must_use]
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file so that `path` holds either its old content or all of the new one, whatever happens.
///
/// The content goes to a temporary file in the same folder, is flushed to disk and renamed into place; then the folder
/// is flushed. The mode follows the umask, as for any new file. A link stays one: what it points to is written. What is
/// no file, a pipe or a device, is written to as it stands.
///
/// # Errors
/// [`IoError::Failed`] from any step, or from `write` itself; `path` is untouched then.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), IoError> {
    // Also where it is a file: whoever opened that goes on writing to it.
    if matches!(path.to_str(), Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1")) {
        let mut stdout = io::stdout().lock();
        return write(&mut stdout).and_then(|()| stdout.flush()).map_err(IoError::of("write", path));
    }
    let facts = fs::metadata(path);
    if facts.as_ref().is_ok_and(|facts| !facts.is_file() && !facts.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(IoError::of("open", path))?;
        return write(&mut file).and_then(|()| file.flush()).map_err(IoError::of("write", path));
    }
    let real = if facts.is_ok() { fs::canonicalize(path).map_err(IoError::of("find", path))? } else { path.to_owned() };
    let path = real.as_path();
    let dir = parent_of(path);
    // A fixed prefix, not the file's own name: that may already be as long as a name can be.
    let temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .suffix(TEMP_SUFFIX)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(IoError::of("create a temporary file in", dir))?;
    let mut writer = BufWriter::with_capacity(1 << 16, temp);
    write(&mut writer).map_err(IoError::of("write", path))?;
    let temp = writer.into_inner().map_err(|error| IoError::of("write", path)(error.into_error()))?;
    temp.as_file().sync_all().map_err(IoError::of("flush to disk", path))?;
    temp.persist(path).map_err(|error| IoError::of("rename into place", path)(error.error))?;
    fsync_dir(dir)
}

/// Makes a folder where there is none, and sees whether files can be written there.
pub fn require_writable(dir: &Path) -> Result<(), IoError> {
    create_dirs(dir)?;
    tempfile::tempfile_in(dir).map(drop).map_err(IoError::of("write files in", dir))
}

/// Removes temporary files that [`write_atomic`] left in `dir` when its process was killed. Call it under the lock.
pub fn remove_stale_temps(dir: &Path) -> Result<(), IoError> {
    for entry in fs::read_dir(dir).map_err(IoError::of("list", dir))? {
        let entry = entry.map_err(IoError::of("list", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMP_PREFIX) && name.ends_with(TEMP_SUFFIX) {
            fs::remove_file(entry.path()).map_err(IoError::of("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Whether a file of this name is of the kind that the extension says.
#[must_use]
pub fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

/// SHA-256 of some bytes, in lower-case hex.
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size in bytes and SHA-256 in lower-case hex of a file, read as a stream.
pub fn sha256_file(path: &Path) -> Result<(u64, String), IoError> {
    let mut file = File::open(path).map_err(IoError::of("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut size = 0u64;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hex(&hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(IoError::of("read", path)(error)),
        }
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('?'));
        }
        text
    })
}

/// The exclusive right to write into an output directory.
///
/// The kernel frees the lock when the process ends, however it ends, so there is never a stale lock to remove. The
/// file itself stays: removing it would let two runs hold two different locks.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    // Held open for its lock; closing it frees the lock.
    _file: File,
}

impl DirLock {
    /// Creates `dir` if needed and locks it.
    ///
    /// # Errors
    /// [`IoError::Locked`], with the other run's process and host, when another process holds the lock.
    pub fn acquire(dir: &Path) -> Result<Self, IoError> {
        create_dirs(dir)?;
        let path = dir.join(LOCK_FILE);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(IoError::of("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The text only serves the message; the lock itself has already answered.
                let _ = file.take(256).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "no details".to_owned(),
                    text => text.to_owned(),
                };
                return Err(IoError::Locked { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(IoError::of("lock", &path)(source)),
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = format!("process {} on host {}\n", std::process::id(), host.trim());
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(IoError::of("write", &path))?;
        Ok(Self { dir: dir.to_owned(), _file: file })
    }

    /// The locked directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// JSON for an `f64` that must come back to the bit: for `#[serde(with = "crate::io::exact_f64")]`.
///
/// The writer prints the shortest digits that name the value; the fast parser of the JSON library may be off by one
/// unit in the last place, so the digits are parsed by the standard library. NaN and infinities become null and come
/// back as NaN.
pub mod exact_f64 {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};
    use serde_json::value::RawValue;

    /// Writes the value.
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    /// Reads it back.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        match raw.get() {
            "null" => Ok(f64::NAN),
            text => text.parse().map_err(|_| D::Error::custom(format!("{text} is not a number"))),
        }
    }

    /// The same for a value that may be absent. The field must be left out then (`skip_serializing_if`, `default`):
    /// null is NaN.
    pub mod optional {
        use serde::de::Deserializer;
        use serde::ser::{Serialize, Serializer};

        /// Writes the value.
        pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
            value.serialize(serializer)
        }

        /// Reads it back.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.txt");
        write_atomic(&path, |w| w.write_all(b"one")).unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(b"two")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.hint().unwrap().contains("free space"), "{error}");
        assert_eq!(error.exit(), Exit::Io);
        assert_eq!(read_text(&path).unwrap(), "one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        write_atomic(&path, |w| w.write_all(b"two")).unwrap();
        assert_eq!(read_text(&path).unwrap(), "two");
    }

    /// A link is followed, a pipe is written to: neither is replaced.
    #[test]
    fn what_is_no_file_of_its_own_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link, pipe) = (dir.path().join("real"), dir.path().join("link"), dir.path().join("pipe"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write_atomic(&link, |w| w.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(read_text(&real).unwrap(), "new");

        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || read_text(&pipe).unwrap()
        });
        write_atomic(&pipe, |w| w.write_all(b"through")).unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(!pipe.is_file());
    }

    #[test]
    fn written_files_have_the_mode_of_any_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        write_atomic(&ours, |w| w.write_all(b"x")).unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn names_may_be_as_long_as_the_file_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("é x".repeat(63));
        write_atomic(&path, |w| w.write_all(b"x")).unwrap();
        assert_eq!(read_text(&path).unwrap(), "x");
    }

    #[test]
    fn hashes_match_the_published_vectors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&path).unwrap(), (3, expected.to_owned()));
        assert_eq!(sha256_bytes(b"abc"), expected);
    }

    #[test]
    fn stale_temporary_files_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".candlewick-abc.tmp"), b"").unwrap();
        fs::write(dir.path().join("mine.tmp"), b"").unwrap();
        remove_stale_temps(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["mine.tmp"]);
    }

    /// A second handle on the same file is what a second process has: `flock` belongs to the open file.
    #[test]
    fn a_second_lock_is_refused_until_the_first_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err();
        assert_eq!(error.exit(), Exit::Locked);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_an_error_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"").unwrap();
        let error = DirLock::acquire(&path).unwrap_err();
        assert_eq!(error.exit(), Exit::Io);
        assert!(error.hint().is_some(), "{error}");
    }
}
