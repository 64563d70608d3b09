//! Hashes of contents as the Hub computes them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::listing::ContentHash;
use crate::io::hex;

const PIECE: usize = 1 << 20;

/// Whether a file has the content that `expected` names.
pub(super) fn has_hash(path: &Path, expected: &ContentHash) -> std::io::Result<bool> {
    let found = match expected {
        ContentHash::Sha256(_) => sha256(File::open(path)?)?,
        ContentHash::Git(_) => git_sha1(std::fs::metadata(path)?.len(), File::open(path)?)?,
    };
    Ok(found == expected.hex())
}

/// SHA-256 in lower-case hex.
pub(super) fn sha256(content: impl Read) -> std::io::Result<String> {
    digest(Sha256::new(), content)
}

/// The name that git gives a content of `bytes` bytes.
pub(super) fn git_sha1(bytes: u64, content: impl Read) -> std::io::Result<String> {
    digest(Sha1::new().chain_update(format!("blob {bytes}\0")), content)
}

fn digest(mut hasher: impl Digest, mut content: impl Read) -> std::io::Result<String> {
    let mut piece = vec![0u8; PIECE];
    loop {
        match content.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => hasher.update(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `sha256sum` and `git hash-object` print.
    #[test]
    fn hashes_are_those_of_the_usual_tools() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&b"abc"[..]).unwrap(), abc);
        assert_eq!(git_sha1(0, &b""[..]).unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(git_sha1(6, &b"hello\n"[..]).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
