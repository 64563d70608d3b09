//! Reading a plain text: UTF-8, whole, as it is.

use super::error::DataError;
use super::load::binary_format;
use crate::io::{IoError, sha256_bytes};
use std::path::Path;

/// A text file in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// The text, without a byte order mark. There is at least one character.
    pub text: String,
    /// SHA-256 of the file's bytes, in hex: a resumed run checks that its data did not change.
    pub sha256: String,
}

/// Reads a text file.
///
/// # Errors
/// The file cannot be read, is no text in UTF-8 (with the line and the byte), or is empty.
pub fn load_text(path: &Path) -> Result<TextFile, DataError> {
    let read_error = |source| IoError::of("read", path)(source);
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        // A pipe would block for ever, so it is refused before it is opened.
        let found = if metadata.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(DataError::NotAFile { path: path.to_owned(), found });
    }
    let bytes = std::fs::read(path).map_err(read_error)?;
    if let Some(found) = binary_format(&bytes) {
        return Err(DataError::NotText { path: path.to_owned(), found });
    }
    let sha256 = sha256_bytes(&bytes);
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes[..offset].split(|byte| *byte == b'\n').count();
        DataError::Utf8 { path: path.to_owned(), line, offset, byte: bytes[offset] }
    })?;
    let text = text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text);
    if text.is_empty() {
        return Err(DataError::EmptyText { path: path.to_owned() });
    }
    Ok(TextFile { text, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Diagnose, Exit};

    fn load(bytes: &[u8]) -> Result<TextFile, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, bytes).unwrap();
        load_text(&path)
    }

    #[test]
    fn a_text_comes_as_it_is_but_for_a_byte_order_mark() {
        assert_eq!(load("[é\r\n\u{FEFF}".as_bytes()).unwrap().text, "[é\r\n\u{FEFF}");
        assert_eq!(load("\u{FEFF}a".as_bytes()).unwrap().text, "a");
        assert_eq!(load(b"abc").unwrap().sha256, sha256_bytes(b"abc"));
    }

    #[test]
    fn what_is_no_text_is_told_with_its_place() {
        for (bytes, message) in [
            (&b"one\ntwo \xe9t\xe9\n"[..], ":2: not valid UTF-8: byte 8 of the file is 0xe9"),
            (&b"cut \xe2\x82"[..], ":1: not valid UTF-8: byte 4 of the file is 0xe2"),
            (&b"\x1f\x8b\x08"[..], " is gzip data, not a text file"),
            (&b"\xff\xfea\0"[..], " is UTF-16 text, not a text file"),
            (&b""[..], " has no text"),
            (&b"\xef\xbb\xbf"[..], " has no text"),
        ] {
            let error = load(bytes).unwrap_err();
            assert!(error.to_string().ends_with(message), "{error}");
            assert_eq!(error.exit(), Exit::Data);
            assert!(error.hint().is_some(), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load_text(folder.path()), Err(DataError::NotAFile { found: "a folder", .. })));
    }
}
