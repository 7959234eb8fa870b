//! Compiled components on disk, so that each is compiled once for a machine and not once for a process.
//!
//! Invariants:
//! - Machine code is run only if this home wrote it: every file carries a MAC, by a key that only the home's owner can
//!   read, over everything that it was made from. It is checked on the bytes in memory that are then used, never on a file
//!   that could change in between.
//! - A file appears whole or not at all, and is never changed. What is damaged, foreign or of another configuration is
//!   compiled anew.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::component::Component as Compiled;
use wasmtime::{Engine, Precompiled};

use super::Digest;
use super::trusted::{self, Trusted};
use crate::engine;
use crate::secret::{self, SecretError};
use crate::tools::Hex;

/// All files together (bytes); the ones that were not used for the longest time go first.
const CACHE_BYTES_MAX: u64 = 512 << 20;
/// One file (bytes): the machine code of the largest component that is let in, and more.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// The key, in the home.
const KEY_FILE: &str = "cache-key";
/// At the beginning of every file; the number changes with what is in it.
const MAGIC: &[u8; 16] = b"estop compiled 1";
const MAC_BYTES: usize = 32;
const EXTENSION: &str = "cwasm";

/// The cache of a home.
pub(crate) struct Cache {
    folder: PathBuf,
    key: Vec<u8>,
    bytes_max: u64,
}

/// What is known of a component beside its code.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// Of the component as it was given.
    component: Digest,
    /// By Wasmtime: its version, the machine, and every setting that machine code depends on.
    configuration: String,
    /// Of what is done to a component before it is compiled.
    admission: String,
    imports: Vec<String>,
}

/// A component that was found.
pub(crate) struct Found {
    pub(crate) compiled: Compiled,
    pub(crate) imports: Vec<String>,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it was not written by this home, or was damaged")]
    Mac,
    #[error("it is no compiled component of this version")]
    Format,
    #[error("Wasmtime does not take it: {0}")]
    Wasmtime(String),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Cache {
    /// The cache in a folder of a home, with the key that stands in the home.
    pub(crate) fn open(home: &Path, folder: PathBuf) -> Result<Self, SecretError> {
        Ok(Self { folder, key: secret::load_or_create(&home.join(KEY_FILE))?, bytes_max: CACHE_BYTES_MAX })
    }

    /// A component that was compiled before. `Err`: there is a file, and it is not to be trusted; it is gone now.
    pub(crate) fn get(&self, engine: &Engine, component: Digest) -> Result<Option<Found>, Unusable> {
        let facts = facts(engine, component, Vec::new());
        let path = self.path(&facts);
        let found = match self.read(&path) {
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.and_then(|bytes| self.parse(engine, &facts, &bytes)),
        };
        match &found {
            // The oldest go first, and it has just been used. That a clock cannot be set is no reason to fail.
            Ok(_) => drop(File::open(&path).and_then(|file| file.set_modified(SystemTime::now()))),
            Err(_) => drop(fs::remove_file(&path)),
        }
        found.map(Some)
    }

    /// Keeps a component for the next process. What goes wrong costs time only, and is said.
    pub(crate) fn put(&self, engine: &Engine, component: Digest, imports: &[String], compiled: &Compiled) {
        let facts = facts(engine, component, imports.to_vec());
        let kept = compiled.serialize().map_err(io::Error::other).and_then(|code| self.write(&facts, &code));
        if let Err(error) = kept {
            tracing::warn!(%component, %error, "a compiled component could not be kept");
        }
        if let Err(error) = self.evict() {
            tracing::warn!(folder = %self.folder.display(), %error, "the cache could not be cleared up");
        }
    }

    fn path(&self, facts: &Facts) -> PathBuf {
        let mut name = Sha256::new();
        for part in [&facts.component.to_string(), &facts.configuration, &facts.admission] {
            name.update((part.len() as u64).to_le_bytes());
            name.update(part);
        }
        let name: [u8; 32] = name.finalize().into();
        self.folder.join(Hex::of(&name).as_str()).with_extension(EXTENSION)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, Unusable> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        if !found.is_file() || found.len() > FILE_BYTES_MAX {
            return Err(Unusable::Format);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A file is: magic, MAC of all that follows, length of the facts (four bytes, little-endian), facts, code.
    fn parse(&self, engine: &Engine, wanted: &Facts, bytes: &[u8]) -> Result<Found, Unusable> {
        let bytes = bytes.strip_prefix(MAGIC).ok_or(Unusable::Format)?;
        let (tag, signed) = bytes.split_at_checked(MAC_BYTES).ok_or(Unusable::Format)?;
        let mac = self.mac().map(|mac| mac.chain_update(signed)).ok_or(Unusable::Mac)?;
        mac.verify_slice(tag).map_err(|_| Unusable::Mac)?;
        let (length, rest) = signed.split_first_chunk::<4>().ok_or(Unusable::Format)?;
        let (facts, code) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(Unusable::Format)?;
        let mut facts: Facts = serde_json::from_slice(facts).map_err(|_| Unusable::Format)?;
        let imports = std::mem::take(&mut facts.imports);
        // A file of this home under the name of another one.
        if facts != *wanted || Engine::detect_precompiled(code) != Some(Precompiled::Component) {
            return Err(Unusable::Format);
        }
        let compiled = trusted::deserialize(engine, &Trusted::Authentic(code));
        Ok(Found { compiled: compiled.map_err(|error| Unusable::Wasmtime(format!("{error:#}")))?, imports })
    }

    fn write(&self, facts: &Facts, code: &[u8]) -> io::Result<()> {
        let path = self.path(facts);
        let facts = serde_json::to_vec(facts)?;
        let length = u32::try_from(facts.len()).map_err(io::Error::other)?.to_le_bytes();
        let mac = self.mac().ok_or_else(|| io::Error::other("the key has no length"))?;
        let tag = mac.chain_update(length).chain_update(&facts).chain_update(code).finalize().into_bytes();
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        for part in [&MAGIC[..], &tag[..], &length[..], &facts[..], code] {
            file.write_all(part)?;
        }
        // Not synced: what a power cut leaves of it does not fit its MAC.
        file.persist(&path).map(drop).map_err(|error| error.error)
    }

    fn mac(&self) -> Option<Hmac<Sha256>> {
        Hmac::new_from_slice(&self.key).ok()
    }

    /// Removes what was not used for the longest time, until the rest is small enough. Other processes may do the same.
    fn evict(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(found) if found.is_file() => files.push((found.modified()?, found.len(), entry.path())),
                // Somebody else was faster.
                _ => {}
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if bytes <= self.bytes_max {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => bytes -= len,
            }
        }
        Ok(())
    }
}

fn facts(engine: &Engine, component: Digest, imports: Vec<String>) -> Facts {
    let configuration = engine::configuration(engine);
    Facts { component, configuration, admission: env!("CARGO_PKG_VERSION").into(), imports }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    struct Scene {
        folder: tempfile::TempDir,
        engine: Engine,
        bytes: Vec<u8>,
    }

    impl Scene {
        fn new() -> Self {
            let engine = Engine::default();
            let bytes = wat::parse_str("(component)").expect("a component");
            Self { folder: tempfile::tempdir().expect("a folder"), engine, bytes }
        }

        fn digest(&self) -> Digest {
            Digest::of(&self.bytes)
        }

        fn cache(&self) -> Cache {
            let folder = self.folder.path().join("cache");
            fs::create_dir_all(&folder).expect("a folder");
            Cache::open(self.folder.path(), folder).expect("a cache")
        }

        fn filled(&self) -> Cache {
            let cache = self.cache();
            let compiled = Compiled::new(&self.engine, &self.bytes).expect("it compiles");
            cache.put(&self.engine, self.digest(), &["wasi:cli/environment@0.2.6".into()], &compiled);
            cache
        }

        fn file(&self) -> PathBuf {
            let mut files = fs::read_dir(self.folder.path().join("cache")).expect("a folder");
            files.next().expect("a file").expect("a file").path()
        }
    }

    #[test]
    fn what_was_kept_is_found_by_another_process() {
        let scene = Scene::new();
        drop(scene.filled());
        let found = scene.cache().get(&scene.engine, scene.digest()).expect("it is usable").expect("it is there");
        assert_eq!(found.imports, ["wasi:cli/environment@0.2.6"]);
        let key = fs::metadata(scene.folder.path().join(KEY_FILE)).expect("there is a key");
        assert_eq!(key.mode() & 0o777, 0o600);
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_the_file_is_gone() {
        let scene = Scene::new();
        let cache = scene.filled();
        let (path, sound) = (scene.file(), fs::read(scene.file()).expect("a file"));
        for byte in (0..sound.len()).step_by(97).chain([sound.len() - 1]) {
            let mut damaged = sound.clone();
            damaged[byte] ^= 1;
            fs::write(&path, damaged).expect("a damaged file");
            assert!(cache.get(&scene.engine, scene.digest()).is_err(), "byte {byte}");
            assert!(!path.exists(), "byte {byte}");
        }
        fs::write(&path, &sound[..sound.len() / 2]).expect("a file that was cut");
        assert!(matches!(cache.get(&scene.engine, scene.digest()), Err(Unusable::Mac)));
        assert!(matches!(cache.get(&scene.engine, scene.digest()), Ok(None)));
    }

    #[test]
    fn a_file_of_another_home_is_not_trusted() {
        let (ours, theirs) = (Scene::new(), Scene::new());
        drop(theirs.filled());
        let cache = ours.filled();
        fs::copy(theirs.file(), ours.file()).expect("a foreign file");
        assert!(matches!(cache.get(&ours.engine, ours.digest()), Err(Unusable::Mac)));
    }

    #[test]
    fn a_file_under_another_name_is_not_used() {
        let scene = Scene::new();
        let cache = scene.filled();
        let other = Digest::of(b"another component");
        fs::copy(scene.file(), cache.path(&facts(&scene.engine, other, Vec::new()))).expect("a copy");
        assert!(matches!(cache.get(&scene.engine, other), Err(Unusable::Format)));
    }

    #[test]
    fn the_oldest_files_go_first() {
        let scene = Scene::new();
        let mut cache = scene.filled();
        let first = scene.file();
        let bytes = fs::metadata(&first).expect("a file").len();
        let old = SystemTime::UNIX_EPOCH;
        File::open(&first).and_then(|file| file.set_modified(old)).expect("it is made older");
        cache.bytes_max = bytes + bytes / 2;
        let compiled = Compiled::new(&scene.engine, &scene.bytes).expect("it compiles");
        let second = Digest::of(b"another component");
        cache.put(&scene.engine, second, &[], &compiled);
        assert!(!first.exists());
        assert!(cache.get(&scene.engine, second).expect("it is usable").is_some());
    }
}
