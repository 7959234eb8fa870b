//! Signatures over the log: who has the key can show that nothing before a checkpoint was changed, and who has kept a
//! checkpoint elsewhere can show it against whoever has the key.
//!
//! Invariants:
//! - What is signed is a short text that a person can write down: [`Statement`]. `openssl` verifies it without estop.
//! - The private key is made once, with mode 0600, and never overwritten: only a rotation replaces it, and the log says
//!   so in a statement that the old key signs.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::chain::Head;
use crate::secret;

/// The private key, in the home.
const KEY_FILE: &str = "log-key.pem";
/// A private key that a rotation has made and that is not in force yet.
const NEXT_KEY_FILE: &str = "log-key.next.pem";
/// The public key, for whoever wants to pin it.
const PUBLIC_KEY_FILE: &str = "log-key.pub.pem";

/// A signature over everything before the entry that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Of which home.
    pub home: String,
    /// The last line that is covered.
    pub covers: u64,
    /// SHA-256 of that line and its newline, as the next line's `prev` has it.
    pub sha256: String,
    /// The public key, 32 bytes in Base64.
    pub key: String,
    /// Ed25519 over [`Statement::checkpoint`], in Base64.
    pub signature: String,
}

/// One key hands over to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Of which home.
    pub home: String,
    /// The last line before the rotation.
    pub covers: u64,
    /// SHA-256 of that line and its newline.
    pub sha256: String,
    /// The key that signed so far, in Base64.
    pub key: String,
    /// The key that signs from here on, in Base64.
    pub next: String,
    /// By the old key, over [`Statement::rotation`], in Base64.
    pub signature: String,
}

/// The end of an exported file: says that nothing is missing between its first line and its last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportEnd {
    /// Of which home.
    pub home: String,
    /// The first line in the file.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// SHA-256 of the last line and its newline.
    pub sha256: String,
    /// The public key, in Base64.
    pub key: String,
    /// Over [`Statement::export`], in Base64.
    pub signature: String,
    /// By which the key that signed the last line handed over to that one, if it did so after the last line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Rotation>,
}

impl ExportEnd {
    /// The line that ends the file: this and nothing else.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        Ok(format!("{{\"export\":{}}}", serde_json::to_string(self)?))
    }
}

/// What an evidence bundle is, in its `bundle.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleEnd {
    /// Of which home.
    pub home: String,
    /// The first line of the log in it.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// SHA-256 of `SHA256SUMS`, which has those of all other files.
    pub sha256: String,
    /// The public key, in Base64.
    pub key: String,
    /// Over [`Statement::bundle`], in Base64.
    pub signature: String,
}

impl BundleEnd {
    /// The line of `bundle.json`: this and nothing else.
    pub(crate) fn line(&self) -> serde_json::Result<String> {
        Ok(format!("{{\"bundle\":{}}}", serde_json::to_string(self)?))
    }
}

/// The oldest lines were removed, after they had been exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruning {
    /// Of which home.
    pub home: String,
    /// The first line that is left: a checkpoint.
    pub first: u64,
    /// Where the removed lines are.
    pub file: String,
    /// The SHA-256 of that file.
    pub sha256: String,
    /// The public key, in Base64.
    pub key: String,
    /// Over [`Statement::pruning`], in Base64.
    pub signature: String,
}

/// What is signed: lines of a word, a blank and a value.
pub struct Statement(String);

impl Statement {
    fn new(what: &str, facts: &[(&str, &str)]) -> Self {
        let mut text = format!("estop log {what}\n");
        for (name, value) in facts {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} {value}");
        }
        Self(text)
    }

    /// That the log of this home had this line at this place.
    pub fn checkpoint(home: &str, covers: u64, sha256: &str) -> Self {
        Self::new("checkpoint", &[("home", home), ("covers", &covers.to_string()), ("sha256", sha256)])
    }

    /// That another key signs from here on.
    pub fn rotation(home: &str, covers: u64, sha256: &str, next: &str) -> Self {
        let covers = covers.to_string();
        Self::new("rotation", &[("home", home), ("covers", &covers), ("sha256", sha256), ("next", next)])
    }

    /// That a file has all lines from the first to the last.
    pub fn export(home: &str, first: u64, last: u64, sha256: &str) -> Self {
        let (first, last) = (first.to_string(), last.to_string());
        Self::new("export", &[("home", home), ("first", &first), ("last", &last), ("sha256", sha256)])
    }

    /// That the lines before the first one are in a file with this hash.
    pub fn pruning(home: &str, first: u64, sha256: &str) -> Self {
        Self::new("pruning", &[("home", home), ("first", &first.to_string()), ("sha256", sha256)])
    }

    /// That a bundle with these lines of the log has files with these hashes.
    pub fn bundle(home: &str, first: u64, last: u64, sha256: &str) -> Self {
        let (first, last) = (first.to_string(), last.to_string());
        Self::new("bundle", &[("home", home), ("first", &first), ("last", &last), ("sha256", sha256)])
    }

    /// The text, as it has to be given to other programs.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether this key made this signature over the statement. Both in Base64.
    pub fn is_signed(&self, key: &str, signature: &str) -> bool {
        let bytes = |text: &str| BASE64.decode(text).ok();
        let key = bytes(key).and_then(|key| VerifyingKey::from_bytes(&key.try_into().ok()?).ok());
        let signature = bytes(signature).and_then(|signature| Signature::from_slice(&signature).ok());
        let (Some(key), Some(signature)) = (key, signature) else { return false };
        key.verify_strict(self.0.as_bytes(), &signature).is_ok()
    }
}

/// The key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read or made.
    #[error("cannot use the log's key `{}`: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not the one that the log names.
    #[error(
        "the log's key `{}` is not the one that signs this log ({expected}); put that one back from a copy",
        path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// The public key that the log names, in Base64.
        expected: String,
    },
}

/// The private key.
pub(crate) struct Signer {
    home: String,
    key: SigningKey,
}

impl Signer {
    /// The key of a home, made if there is none. `expected`: the public key that the log names; without one, whatever is
    /// there is right.
    pub(crate) fn load(folder: &Path, home: &str, expected: Option<&str>) -> Result<Self, KeyError> {
        let path = folder.join(KEY_FILE);
        if expected.is_none() {
            create(&path).map_err(|error| KeyError::Io { path: path.clone(), error })?;
        }
        let read = |path: PathBuf| match read(&path) {
            Ok(key) => Ok(Self { home: home.to_owned(), key }),
            Err(error) => Err(KeyError::Io { path, error }),
        };
        let signer = read(path.clone())?;
        let Some(expected) = expected.filter(|expected| *expected != signer.public()) else {
            signer.publish(folder)?;
            return Ok(signer);
        };
        // A rotation that was entered and did not get as far as putting its key in place.
        let next = folder.join(NEXT_KEY_FILE);
        match read(next.clone()) {
            Ok(signer) if signer.public() == expected => {
                fs::rename(&next, &path).map_err(|error| KeyError::Io { path, error })?;
                signer.publish(folder)?;
                Ok(signer)
            }
            _ => Err(KeyError::Foreign { path, expected: expected.to_owned() }),
        }
    }

    /// A key for a rotation: in force once the log names it and `load` is called again.
    pub(crate) fn next(folder: &Path) -> Result<String, KeyError> {
        let path = folder.join(NEXT_KEY_FILE);
        let failed = |error| KeyError::Io { path: path.clone(), error };
        // Of a rotation that was given up: the log never named it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        create(&path).map_err(failed)?;
        let key = read(&path).map_err(failed)?;
        Ok(BASE64.encode(key.verifying_key().as_bytes()))
    }

    /// The public key, in Base64.
    pub(crate) fn public(&self) -> String {
        BASE64.encode(self.key.verifying_key().as_bytes())
    }

    pub(crate) fn checkpoint(&self, head: &Head) -> Checkpoint {
        let sha256 = head.hex();
        let signature = self.sign(&Statement::checkpoint(&self.home, head.seq, &sha256));
        Checkpoint { home: self.home.clone(), covers: head.seq, sha256, key: self.public(), signature }
    }

    pub(crate) fn rotation(&self, head: &Head, next: String) -> Rotation {
        let sha256 = head.hex();
        let signature = self.sign(&Statement::rotation(&self.home, head.seq, &sha256, &next));
        Rotation { home: self.home.clone(), covers: head.seq, sha256, key: self.public(), next, signature }
    }

    pub(crate) fn export(&self, first: u64, head: &Head, rotations: Vec<Rotation>) -> ExportEnd {
        let sha256 = head.hex();
        let signature = self.sign(&Statement::export(&self.home, first, head.seq, &sha256));
        let (home, key) = (self.home.clone(), self.public());
        ExportEnd { home, first, last: head.seq, sha256, key, signature, rotations }
    }

    pub(crate) fn bundle(&self, first: u64, last: u64, sha256: String) -> BundleEnd {
        let signature = self.sign(&Statement::bundle(&self.home, first, last, &sha256));
        BundleEnd { home: self.home.clone(), first, last, sha256, key: self.public(), signature }
    }

    pub(crate) fn pruning(&self, first: u64, file: String, sha256: String) -> Pruning {
        let signature = self.sign(&Statement::pruning(&self.home, first, &sha256));
        Pruning { home: self.home.clone(), first, file, sha256, key: self.public(), signature }
    }

    fn sign(&self, statement: &Statement) -> String {
        BASE64.encode(self.key.sign(statement.text().as_bytes()).to_bytes())
    }

    fn publish(&self, folder: &Path) -> Result<(), KeyError> {
        let path = folder.join(PUBLIC_KEY_FILE);
        let pem = self.key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(io::Error::other);
        let write = |pem: String| {
            if fs::read_to_string(&path).is_ok_and(|there| there == pem) {
                return Ok(());
            }
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(pem.as_bytes())?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        pem.and_then(write).map_err(|error| KeyError::Io { path: path.clone(), error })
    }
}

/// The public key of a home, in Base64, once it has one.
///
/// # Errors
/// The file cannot be read, or is no Ed25519 public key.
pub fn own_public_key(folder: &Path) -> Result<Option<String>, KeyError> {
    let path = folder.join(PUBLIC_KEY_FILE);
    if path.exists() { read_public_key(&path).map(Some) } else { Ok(None) }
}

/// The public key in a PEM file, in Base64.
///
/// # Errors
/// The file cannot be read, or is no Ed25519 public key.
pub fn read_public_key(path: &Path) -> Result<String, KeyError> {
    let failed = |error| KeyError::Io { path: path.to_owned(), error };
    let pem = fs::read_to_string(path).map_err(failed)?;
    let key = VerifyingKey::from_public_key_pem(&pem).map_err(|error| failed(io::Error::other(error)))?;
    Ok(BASE64.encode(key.as_bytes()))
}

/// Makes a private key where there is none.
fn create(path: &Path) -> io::Result<()> {
    secret::create(path, || {
        let key = SigningKey::from_bytes(&secret::random()?);
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(io::Error::other)?;
        Ok(pem.as_bytes().to_vec())
    })
}

fn read(path: &Path) -> io::Result<SigningKey> {
    let pem = String::from_utf8(secret::read(path)?).map_err(io::Error::other)?;
    SigningKey::from_pkcs8_pem(&pem).map_err(io::Error::other)
}
