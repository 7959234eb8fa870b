//! What a power cut leaves of the files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;

use crate::record::{Change, Namings, Record, in_sector, overwrite};

/// What is still there, after a power cut, of the operations that no sync had made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Nothing; but deletions, which are durable at once here. A file that was created and never synced isn't there.
    Synced,
    /// All of it: what a process leaves that dies while the machine goes on.
    Everything,
    /// Of each file a share by chance, which is drawn from this seed, as is each 512-byte sector of each write and each
    /// truncation. Writes survive in any order. What a directory names goes back in order: to before a deletion that
    /// was not synced, and then to the file as it was synced last, or to before a creation.
    Random(u64),
}

/// The files of an image by name: their bytes, or nothing where the name is gone.
pub(crate) type Files = BTreeMap<OsString, Option<Vec<u8>>>;

/// The recorded files directly in `from` after a power cut.
pub(crate) fn of(record: &Record, from: &Path, survivors: Survivors) -> io::Result<Files> {
    if let Some(reason) = record.incomplete() {
        return Err(io::Error::other(reason));
    }
    let mut chance = SplitMix(if let Survivors::Random(seed) = survivors { seed } else { 0 });
    let mut files = Files::new();
    for (path, namings) in record.within(from) {
        let Some(name) = path.file_name().filter(|name| !is_shared_memory(name)) else { continue };
        let content = match survivors {
            Survivors::Synced => synced(namings),
            Survivors::Everything => everything(namings),
            Survivors::Random(_) => random(namings, &mut chance),
        };
        files.insert(name.to_owned(), content);
    }
    Ok(files)
}

fn synced(namings: &Namings) -> Option<Vec<u8>> {
    match namings.as_slice() {
        [Some(inode)] => Some(inode.content().durable.clone()),
        // Deleted; or created, for a sync would have left no other naming.
        _ => None,
    }
}

fn everything(namings: &Namings) -> Option<Vec<u8>> {
    let inode = namings.last()?.as_ref()?;
    Some(inode.content().current.clone())
}

fn random(namings: &Namings, chance: &mut SplitMix) -> Option<Vec<u8>> {
    // The file system's journal keeps creations and deletions in order, so any prefix of them may have survived.
    let inode = namings.get(chance.below(namings.len()))?.as_ref()?;
    let content = inode.content();
    let mut bytes = content.durable.clone();
    // With one half for all, no image of many sectors would be nearly complete or nearly empty.
    let share = chance.next();
    let mut survives = || chance.next() <= share;
    for change in &content.pending {
        match change {
            Change::Write { at, bytes: written } => {
                let (mut at, mut rest) = (*at, written.as_slice());
                while let Some((sector, after)) = rest.split_at_checked(in_sector(at, rest.len()))
                    && !sector.is_empty()
                {
                    if survives() {
                        overwrite(&mut bytes, at, sector);
                    }
                    at = at.saturating_add(sector.len());
                    rest = after;
                }
            }
            Change::Resize(_) if survives() => change.apply(&mut bytes),
            Change::Resize(_) => {}
        }
    }
    Some(bytes)
}

/// Writes an image into `to`, with copies of the files in `from` that it doesn't speak of.
pub(crate) fn write(files: &Files, from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    // A log left from an earlier image would be recovered into this one.
    if fs::read_dir(to)?.next().is_some() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a crash image needs an empty directory"));
    }
    for (name, content) in files {
        if let Some(content) = content {
            fs::write(to.join(name), content)?;
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        // A recorded file isn't even opened: closing it would release the locks that this process has on it.
        if files.contains_key(&name) || is_shared_memory(&name) || !entry.file_type()?.is_file() {
            continue;
        }
        fs::copy(entry.path(), to.join(&name))?;
    }
    Ok(())
}

fn is_shared_memory(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(b"-shm")
}

/// Steele, Lea and Flood's SplitMix64: the same images from the same seed, whatever a crate's generator does next year.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, or 0. Not quite evenly, which no image notices.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SECTOR_BYTES;

    #[test]
    fn chance_takes_or_leaves_whole_sectors() {
        const SECTORS: usize = 8;
        let mut record = Record::default();
        let path = Path::new("/store/file");
        let inode = record.created(path);
        record.synced(path, &inode);
        record.written(&inode, 0, &[1; SECTORS * SECTOR_BYTES]);
        let mut counts = [0; SECTORS + 1];
        for seed in 0..500 {
            let files = of(&record, Path::new("/store"), Survivors::Random(seed)).unwrap();
            let bytes = files[OsStr::new("file")].as_ref().unwrap();
            let survived = bytes.chunks(SECTOR_BYTES).filter(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                sector[0] == 1
            });
            counts[survived.count()] += 1;
        }
        // All, none, and whatever is between.
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}
