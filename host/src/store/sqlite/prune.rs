//! Taking the oldest entries out of the log, after they were exported.
//!
//! Invariant: what is left begins with a checkpoint, whose signature vouches for what is gone, and has an entry that says
//! where that is. So it still verifies; and nothing goes before it is in a file that verifies and is synced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::OptionalExtension;

use super::look::Look;
use super::write::Failure;
use super::{Sqlite, recover};
use crate::ids::HostId;
use crate::log::chain::sha256_of;
use crate::log::export::{ExportError, export};
use crate::log::verify::{Invalid, verify_export};
use crate::log::{Entry, EntryKind};
use crate::store::StoreError;

/// Takes the place of the trigger that keeps lines from being removed, while a transaction removes some.
const ALLOW_REMOVAL: &str = "DROP TRIGGER log_no_removal";
const FORBID_REMOVAL: &str = "CREATE TRIGGER log_no_removal BEFORE DELETE ON log BEGIN \
                              SELECT RAISE(ABORT, 'nothing is removed from the log'); END";

/// Nothing was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// There is no checkpoint to prune up to.
    #[error("there is nothing to prune: no checkpoint stands between the log's first line and line {before}")]
    Nothing {
        /// The line before which was to be pruned.
        before: u64,
    },
    /// The file cannot be written.
    #[error("cannot write `{}`: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The lines could not be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The file does not verify.
    #[error("the exported file does not verify, so nothing was removed")]
    Unverified(#[from] Invalid),
    /// The database cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The first line that is left: a checkpoint.
    pub first: u64,
    /// How many lines were removed.
    pub removed: u64,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

impl Sqlite {
    /// Exports what stands before the newest checkpoint that is not after line `before` into a new file, and removes it.
    /// The lines of calls that have not ended stay.
    ///
    /// # Errors
    /// See [`PruneError`]; nothing was removed then.
    pub fn prune(&self, before: u64, path: &Path) -> Result<Pruned, PruneError> {
        let look = Look::open(&self.home)?;
        let Some(first) = self.checkpoint_up_to(before)? else { return Err(PruneError::Nothing { before }) };
        let failed = |error| PruneError::File { path: path.to_owned(), error };
        let file = OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        self.prune_into(&look, first, path, &file).inspect_err(|error| {
            // Nothing was removed, so what is in it is in the log. Except that nobody knows what a failed COMMIT did.
            if !matches!(error, PruneError::Store(StoreError::Unknown(_))) {
                let _ = fs::remove_file(path);
            }
        })
    }

    fn prune_into(&self, look: &Look, first: u64, path: &Path, file: &File) -> Result<Pruned, PruneError> {
        let failed = |error| PruneError::File { path: path.to_owned(), error };
        let exported = export(look, first - 1, io::BufWriter::new(file))?;
        file.sync_all().map_err(failed)?;
        let folder = path.canonicalize().map_err(failed)?;
        File::open(folder.parent().unwrap_or(Path::new("/"))).and_then(|folder| folder.sync_all()).map_err(failed)?;
        // Read again from the file, by the same way as anybody else would.
        verify_export(File::open(path).map_err(failed)?, None)?;
        let sha256 = File::open(path).and_then(sha256_of).map_err(failed)?;
        let removed = self.writer().transact(|batch| {
            // Without the key nobody could tell this from lines that somebody else has removed.
            let kind = EntryKind::Pruned(batch.signer()?.pruning(first, folder.display().to_string(), sha256.clone()));
            batch.execute(ALLOW_REMOVAL, [])?;
            let removed =
                batch.execute("DELETE FROM log WHERE seq BETWEEN ?1 AND ?2", [exported.first, exported.last])?;
            batch.execute(FORBID_REMOVAL, [])?;
            let host = HostId::generate();
            batch.append(&Entry { at: SystemTime::now(), host, kind })?;
            batch.sign(host, 1)?;
            Ok(removed as u64)
        });
        Ok(Pruned { first, removed: removed.map_err(Failure::into_error)?, sha256 })
    }

    fn checkpoint_up_to(&self, before: u64) -> Result<Option<u64>, StoreError> {
        let found = self.writer().transact(|batch| {
            let before = recover::oldest_open(batch)?.map_or(before, |open| open.min(before));
            let sql = "SELECT seq FROM log WHERE seq <= ?1 AND seq > (SELECT min(seq) FROM log) \
                       AND json_extract(line, '$.kind') = 'checkpoint' ORDER BY seq DESC LIMIT 1";
            let found = batch.connection().query_row(sql, [before], |row| row.get(0)).optional();
            found.map_err(|error| batch.error(&error))
        });
        found.map_err(Failure::into_error)
    }
}
