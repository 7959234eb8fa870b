//! An evidence bundle: the log with everything that is needed to check it, and to read it, in one folder.
//!
//! Invariants:
//! - It is of one moment, and was verified on the way: a damaged log makes no bundle.
//! - It has no secret: no private key, and nothing of what agents keep. It is made of what is in the log, in the public
//!   keys and in the files of halts.
//! - It is there entirely or not at all: it is made under another name and renamed.
//! - Every file is named with its hash in `SHA256SUMS`, and the home's key signs that list.

mod report;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::EncodePublicKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use rusqlite::Connection;
use serde_json::Value;

use self::report::Report;
use super::chain::sha256_of;
use super::checkpoint::{ExportEnd, Signer};
use super::export::{ExportError, write_lines};
use crate::ids::HaltId;
use crate::store::sqlite::Look;

/// What verifies a bundle without estop.
const VERIFY: &str = include_str!("bundle/verify.sh");
/// Halts' files that are copied from one folder; a host that finds more takes everything for halted.
const HALTS_MAX: usize = 1000;
/// A halt's file (bytes). No host reads more of one.
const HALT_BYTES_MAX: u64 = 64 << 10;
/// Public keys that have signed one log.
const KEYS_MAX: usize = 10_000;

/// A bundle could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The log cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Something is there already.
    #[error("`{}` is there already and is not an empty folder: name one that is not there", .0.display())]
    Taken(PathBuf),
    /// A file cannot be read or written.
    #[error("`{}`: {error}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The copy of the log's table cannot be made.
    #[error("cannot make the bundle's database: {0}")]
    Database(#[from] rusqlite::Error),
    /// An entry says something that no estop has written.
    #[error("line {0} of the log is signed by something that is no key")]
    Key(u64),
    /// More than anybody rotates.
    #[error("more than {KEYS_MAX} keys have signed this log")]
    Keys,
}

/// Makes the bundle of a home in a folder that is empty or not there, and says which lines it has.
///
/// # Errors
/// See [`BundleError`]. Then nothing is left of it.
pub fn bundle(look: &Look, folder: &Path) -> Result<ExportEnd, BundleError> {
    let failed = |error| BundleError::Io { path: folder.to_owned(), error };
    // Only a first look: renaming looks again.
    match fs::read_dir(folder).map(|mut found| found.next().is_none()) {
        Ok(true) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(false) => return Err(BundleError::Taken(folder.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(BundleError::Taken(folder.to_owned()));
        }
        Err(error) => return Err(failed(error)),
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Gone if it is not finished.
    let mut draft = tempfile::Builder::new();
    let draft = draft.prefix(".estop-bundle-").permissions(Permissions::from_mode(0o700));
    let draft = draft.tempdir_in(parent).map_err(failed)?;
    let end = Draft { folder: draft.path() }.fill(look)?;
    match fs::rename(draft.path(), folder) {
        Err(error) if is_taken(&error) => return Err(BundleError::Taken(folder.to_owned())),
        renamed => renamed.map_err(failed)?,
    }
    // It has another name now.
    let _ = draft.keep();
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    Ok(end)
}

fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

/// A bundle that is being made.
struct Draft<'a> {
    folder: &'a Path,
}

impl Draft<'_> {
    fn fill(&self, look: &Look) -> Result<ExportEnd, BundleError> {
        let _moment = look.moment().map_err(ExportError::from)?;
        let last = look.newest().map_err(ExportError::from)?;
        let end = {
            let mut log = BufWriter::new(self.create("log.jsonl")?);
            write_lines(look, last, &mut log)?
        };
        let mut report = Report::new(look.folder(), &end);
        self.take_apart(&mut report)?;
        self.copy_halts(look.folder(), &mut report)?;
        self.write("report.md", report.text().as_bytes())?;
        self.write("verify.sh", VERIFY.as_bytes())?;
        let signer = Signer::load(look.folder(), &end.home, Some(&end.key)).map_err(ExportError::from)?;
        self.seal(&signer, &end)?;
        Ok(end)
    }

    /// What is in the log, once more for whoever looks for something: checkpoints, drills, keys, and a table.
    fn take_apart(&self, report: &mut Report) -> Result<(), BundleError> {
        let mut checkpoints = BufWriter::new(self.create("checkpoints.jsonl")?);
        let mut drills = BufWriter::new(self.create("drills.jsonl")?);
        // SQLite would make it readable for others.
        drop(self.create("log.db")?);
        let mut database = Connection::open(self.folder.join("log.db"))?;
        // It is not there before it is whole.
        database.pragma_update(None, "synchronous", false)?;
        let rows = database.transaction()?;
        rows.execute_batch("CREATE TABLE log (seq INTEGER PRIMARY KEY, line TEXT NOT NULL)")?;
        let mut keys = Vec::new();
        let path = self.folder.join("log.jsonl");
        let failed = |error| BundleError::Io { path: path.clone(), error };
        {
            let mut insert = rows.prepare("INSERT INTO log VALUES (?1, ?2)")?;
            for line in BufReader::new(File::open(&path).map_err(failed)?).lines() {
                let line = line.map_err(failed)?;
                // It was verified when it was written. What ends the file is no entry.
                let entry: Value = serde_json::from_str(&line).unwrap_or_default();
                let Some(seq) = entry["seq"].as_u64() else {
                    used(&mut keys, &entry["export"]["key"], 0)?;
                    continue;
                };
                insert.execute((seq, &line))?;
                match entry["kind"].as_str().unwrap_or_default() {
                    "checkpoint" => {
                        writeln!(checkpoints, "{line}").map_err(failed)?;
                        used(&mut keys, &entry["key"], seq)?;
                    }
                    "key-rotated" => {
                        used(&mut keys, &entry["key"], seq)?;
                        used(&mut keys, &entry["next"], seq)?;
                    }
                    "pruned" => used(&mut keys, &entry["key"], seq)?,
                    "drill" => writeln!(drills, "{line}").map_err(failed)?,
                    _ => {}
                }
                report.add(&entry);
            }
        }
        rows.commit()?;
        checkpoints.flush().and_then(|()| drills.flush()).map_err(failed)?;
        database.close().map_err(|(_, error)| error)?;
        self.subfolder("keys")?;
        for (number, (key, pem)) in (1..).zip(&keys) {
            self.write(&format!("keys/{number}.pem"), pem.as_bytes())?;
            report.key(number, key);
        }
        Ok(())
    }

    /// The files of the halts in force: those of the home, dropped ones that no host has taken yet, and those of the machine.
    fn copy_halts(&self, home: &Path, report: &mut Report) -> Result<(), BundleError> {
        self.subfolder("halts")?;
        let halts = home.join("halts");
        let machine = PathBuf::from(crate::interrupt::halts::MACHINE).join("latched");
        for (from, prefix) in [(halts.join("latched"), ""), (halts.join("inbox"), "dropped-"), (machine, "machine-")] {
            let mut paths = Vec::new();
            let found = fs::read_dir(&from).and_then(|entries| {
                for entry in entries.take(HALTS_MAX) {
                    paths.push(entry?.path());
                }
                Ok(())
            });
            match found {
                // Nobody has ever halted the machine.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => report.unreadable_halts(&from, &error),
                Ok(()) => {}
            }
            paths.sort();
            for (number, path) in (1..).zip(paths) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                // Being written.
                if name.starts_with('.') {
                    continue;
                }
                let id: Option<HaltId> = name.strip_suffix(".json").and_then(|name| name.parse().ok());
                // What has another name may have any: a number does instead.
                let name = id.map_or_else(|| format!("{prefix}{number}"), |id| format!("{prefix}{id}.json"));
                match read_halt(&path) {
                    Ok(bytes) => {
                        self.write(&format!("halts/{name}"), &bytes)?;
                        report.halt(&name, &bytes);
                    }
                    // Lifted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => report.unreadable_halts(&path, &error),
                }
            }
        }
        Ok(())
    }

    /// The list of all files with their hashes, and the signature over it.
    fn seal(&self, signer: &Signer, end: &ExportEnd) -> Result<(), BundleError> {
        let mut names = Vec::new();
        for folder in ["", "keys", "halts"] {
            let path = self.folder.join(folder);
            let failed = |error| BundleError::Io { path: path.clone(), error };
            for entry in fs::read_dir(&path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_file() {
                    names.push(Path::new(folder).join(entry.file_name()));
                }
            }
        }
        names.sort();
        let mut sums = String::new();
        for name in names {
            let path = self.folder.join(&name);
            let hashed = File::open(&path).and_then(|file| {
                file.sync_all()?;
                sha256_of(file)
            });
            let hash = hashed.map_err(|error| BundleError::Io { path, error })?;
            sums.push_str(&format!("{hash}  {}\n", name.display()));
        }
        self.write("SHA256SUMS", sums.as_bytes())?;
        let failed = |error| BundleError::Io { path: self.folder.join("SHA256SUMS"), error };
        let sha256 = sha256_of(sums.as_bytes()).map_err(failed)?;
        let path = self.folder.join("bundle.json");
        let sealed = signer.bundle(end.first, end.last, sha256).line();
        let sealed = sealed.map_err(|error| BundleError::Io { path, error: error.into() })?;
        self.write("bundle.json", format!("{sealed}\n").as_bytes())
    }

    fn create(&self, name: &str) -> Result<File, BundleError> {
        let path = self.folder.join(name);
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        created.map_err(|error| BundleError::Io { path, error })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), BundleError> {
        let written = self.create(name).map(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))?;
        written.map_err(|error| BundleError::Io { path: self.folder.join(name), error })
    }

    fn subfolder(&self, name: &str) -> Result<(), BundleError> {
        let path = self.folder.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| BundleError::Io { path, error })
    }
}

/// A key that has signed or will, in the order of its first use, and its PEM.
fn used(keys: &mut Vec<(String, String)>, key: &Value, line: u64) -> Result<(), BundleError> {
    use base64::Engine as _;
    let key = key.as_str().unwrap_or_default();
    if keys.iter().any(|(known, _)| known == key) {
        return Ok(());
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).ok();
    let public = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok());
    let pem = public.and_then(|public| public.to_public_key_pem(LineEnding::LF).ok());
    if keys.len() == KEYS_MAX {
        return Err(BundleError::Keys);
    }
    keys.push((key.to_owned(), pem.ok_or(BundleError::Key(line))?));
    Ok(())
}

fn read_halt(path: &Path) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let mut bytes = Vec::new();
    file.take(HALT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
