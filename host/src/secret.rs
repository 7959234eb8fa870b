//! Keys that a home makes for itself.
//!
//! Invariant: a key is made once, by one process, with mode 0600, and never overwritten; nobody reads half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A key's file is never larger (bytes).
const FILE_BYTES_MAX: u64 = 4096;
/// A symmetric key (bytes).
const KEY_BYTES: usize = 32;

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the key `{}`: {error}", path.display())]
pub struct SecretError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// A random key in a file, made if there is none.
pub(crate) fn load_or_create(path: &Path) -> Result<Vec<u8>, SecretError> {
    let key = create(path, || random().map(Vec::from))
        .and_then(|()| read(path))
        .and_then(|key| if key.len() == KEY_BYTES { Ok(key) } else { Err(io::Error::other("it is not a key")) });
    key.map_err(|error| SecretError { path: path.to_owned(), error })
}

/// From the operating system.
pub(crate) fn random() -> io::Result<[u8; KEY_BYTES]> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Puts a secret where there is none. Other processes see none of it or all of it.
pub(crate) fn create(path: &Path, content: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    // Made with `O_EXCL` and 0600 under another name, and linked to its own, which fails if somebody was faster.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&content()?)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
        _ => {}
    }
    File::open(folder)?.sync_all()
}

/// Reads a secret that nobody else can read.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(no_links).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is not a key"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "other users may read it. If nobody has, make it 0600; otherwise put another in its place",
        ));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
