//! `[secrets]`: values that are used and never shown.
//!
//! Invariant: a secret's value is read once, when the configuration is, and is in no message about it.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::PolicyError;
use crate::grants::Secret;

/// A value is never longer (bytes).
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Where one comes from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretTable {
    env: Option<String>,
    file: Option<PathBuf>,
}

/// All that a file names.
pub(super) struct Secrets {
    all: BTreeMap<String, Secret>,
    files: Vec<PathBuf>,
}

impl Secrets {
    pub(super) fn read(
        tables: BTreeMap<Spanned<String>, SecretTable>,
        folder: &Path,
        wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
    ) -> Result<Self, PolicyError> {
        let (mut all, mut files) = (BTreeMap::new(), Vec::new());
        for (name, table) in tables {
            let place = name.span();
            let name = name.into_inner();
            let value = match (table.env, table.file) {
                (Some(variable), None) => of_variable(&variable),
                (None, Some(file)) => {
                    files.push(folder.join(file));
                    of_file(&files[files.len() - 1])
                }
                _ => Err("a secret comes from `env` or from `file`: write one of them".into()),
            };
            let value = value.map_err(|why| wrong(place, why))?;
            all.insert(name.clone(), Secret::new(name, value));
        }
        Ok(Self { all, files })
    }

    /// Where they were read.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// One by its name.
    pub(super) fn get(&self, name: &str) -> Result<&Secret, String> {
        self.all.get(name).ok_or_else(|| format!("there is no secret `{name}` in [secrets]"))
    }

    /// The one that a text has a place for, written `{NAME}`.
    pub(super) fn within(&self, text: &str) -> Result<&Secret, String> {
        let found = self.all.values().find(|secret| text.contains(&secret.to_string()));
        found.ok_or_else(|| {
            format!("`{text}` has no place for a secret: write the name of one in [secrets] as `{{NAME}}`")
        })
    }
}

/// The value of a variable of this process's environment.
pub(crate) fn of_variable(name: &str) -> Result<String, String> {
    match std::env::var(name) {
        Ok(value) if value.len() as u64 > SECRET_BYTES_MAX => {
            Err(format!("the variable {name} is longer than {SECRET_BYTES_MAX} bytes"))
        }
        Ok(value) => Ok(value),
        Err(std::env::VarError::NotPresent) => Err(format!("the variable {name} is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("the variable {name} is not UTF-8")),
    }
}

fn of_file(path: &Path) -> Result<String, String> {
    let failed = |why: &str| format!("the secret's file `{}`: {why}", path.display());
    // Before it is opened: opening a named pipe waits for whoever writes to it.
    let found = std::fs::metadata(path).map_err(|error| failed(&error.to_string()))?;
    if !found.is_file() {
        return Err(failed("it is no regular file"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(failed("others may read it: `chmod 600` it"));
    }
    let mut value = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(&error.to_string()))?;
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut value).map_err(|error| failed(&error.to_string()))?;
    if value.len() as u64 > SECRET_BYTES_MAX {
        return Err(failed(&format!("it is longer than {SECRET_BYTES_MAX} bytes")));
    }
    // As editors and `echo` write it.
    Ok(value.trim_end_matches(['\n', '\r']).to_owned())
}
