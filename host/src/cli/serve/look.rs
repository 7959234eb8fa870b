//! Whether a file has changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's clock for files is coarse: what was written this shortly before a look may be written again unnoticed.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// What a file looked like. Taken before it is read, so what changes while it is read is noticed by the next look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// None: it could not be looked at.
    seen: Option<[i64; 6]>,
    /// A later change would look different.
    settled: bool,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Self {
        let Ok(found) = std::fs::metadata(path) else { return Self { seen: None, settled: true } };
        let changed = UNIX_EPOCH
            + Duration::new(found.ctime().try_into().unwrap_or(0), found.ctime_nsec().try_into().unwrap_or(0));
        let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLES_WITHIN);
        let size = found.size().cast_signed();
        let file = found.ino().cast_signed();
        let seen = [size, file, found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        Self { seen: Some(seen), settled }
    }

    /// Whether this is surely the file that it was.
    pub(super) fn is_same(&self, before: &Stamp) -> bool {
        self.seen == before.seen && before.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let missing = Stamp::of(&path);
        assert!(Stamp::of(&path).is_same(&missing));
        std::fs::write(&path, "one").unwrap();
        let fresh = Stamp::of(&path);
        assert!(!fresh.is_same(&missing));
        // It may be written again at what the kernel takes for the same moment.
        assert!(!Stamp::of(&path).is_same(&fresh));
        let settled = Stamp { settled: true, ..fresh };
        assert!(Stamp::of(&path).is_same(&settled));
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        std::fs::write(&path, "two").unwrap();
        assert!(!Stamp::of(&path).is_same(&settled));
    }
}
