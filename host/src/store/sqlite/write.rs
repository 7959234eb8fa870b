//! The committer's side: one database transaction for a batch of commits and entries.
//!
//! Invariants:
//! - A commit, its entry and the new head of the chain are in one database transaction. Each commit is validated, decided
//!   and applied in turn; nothing of it is touched before it has passed, so none needs a savepoint.
//! - The version of whatever a commit changes is the number of its entry: one sequence for state and log.
//! - A failure before COMMIT is final: nothing of the batch will ever be there. After a failed COMMIT nobody knows, and
//!   nothing else is written until it is decided: see [`Writer::resolve`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::database::Place;
use super::reserve::Reserve;
use crate::ids::{CallId, HostId};
use crate::log::chain::{Head, hash};
use crate::log::checkpoint::Signer;
use crate::log::{Checkpoint, Entry, EntryKind};
use crate::store::{Commit, Key, Part, Read, Space, StoreError, Verdict, Version};

/// A checkpoint is signed at the latest after this many entries.
pub const CHECKPOINT_EVERY: u64 = 1000;

/// The one connection that writes.
pub(super) struct Writer {
    place: Place,
    reserve: Reserve,
    connection: Option<Connection>,
    /// The head of the chain as this connection has left it.
    head: Head,
    in_doubt: Option<InDoubt>,
    /// A COMMIT has failed, and nothing was written over its pages yet: see `resolve`.
    keep_connection: bool,
    /// Entries at the beginning of a host's next batch that turned out to be there.
    there: HashMap<HostId, usize>,
    signing: Signing,
}

/// What is known about the checkpoints of the log.
#[derive(Default)]
struct Signing {
    /// A checkpoint that is there. Others may have made newer ones.
    newest: u64,
    /// The log could not be signed, and that has been said.
    failed: bool,
}

/// A batch whose COMMIT failed.
struct InDoubt {
    /// Its last line.
    head: Head,
    /// Whose it is.
    host: HostId,
    /// What was decided in it.
    commits: Vec<(CallId, u64)>,
    /// Entries in it, beside those of the commits.
    entries: usize,
}

/// What became of it.
enum Resolved {
    Durable,
    /// And it will never be.
    Lost,
}

/// What a batch left behind.
pub(super) struct Written {
    pub(super) verdicts: Vec<Verdict>,
    pub(super) checkpoint: Option<Checkpoint>,
}

impl Writer {
    pub(super) fn new(place: Place, reserve: Reserve) -> Self {
        Self {
            place,
            reserve,
            connection: None,
            head: Head::EMPTY,
            in_doubt: None,
            keep_connection: false,
            there: HashMap::new(),
            signing: Signing::default(),
        }
    }

    /// See [`Store::write`](crate::store::Store::write).
    pub(super) fn write(&mut self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Written, StoreError> {
        let first = commits.first().map(|commit| &commit.entry).or(entries.first());
        let Some(host) = first.map(|entry| entry.host) else {
            return Ok(Written { verdicts: Vec::new(), checkpoint: None });
        };
        // Nothing is written before it is known what is there.
        if let Some(doubt) = self.in_doubt.take() {
            let (whose, count) = (doubt.host, doubt.entries);
            let resolved = self.resolve(doubt).map_err(|error| match error {
                // Of the attempt to find out; what this batch holds was not touched.
                StoreError::Unknown(why) => StoreError::Io(why),
                error => error,
            });
            if matches!(resolved?, Resolved::Durable) {
                self.there.insert(whose, count);
            }
        }
        let there = self.there.remove(&host).unwrap_or(0);
        match self.batch(host, commits, entries.get(there..).unwrap_or_default()) {
            Err(error) => {
                if there > 0 {
                    self.there.insert(host, there);
                }
                // What was kept back for this: the ends and the stops are entered, and nothing is committed any more.
                let is_full = matches!(error, StoreError::Full(_)) && self.reserve.release();
                if !is_full {
                    return Err(error);
                }
                let written = self.write(&mut [], entries)?;
                let verdicts = commits.iter().map(|_| Verdict::Refused(error.clone())).collect();
                Ok(Written { verdicts, ..written })
            }
            written => written,
        }
    }

    /// See [`Store::write_now`](crate::store::Store::write_now).
    pub(super) fn write_now(
        &mut self,
        commits: &mut [Commit<'_>],
        entries: &[Entry],
    ) -> Option<Result<Written, StoreError>> {
        if self.in_doubt.is_some() || self.connection.is_none() {
            return None;
        }
        self.place.set_patient(false);
        let written = self.write(commits, entries);
        self.place.set_patient(true);
        // Told before anything was done.
        Some(written).filter(|written| !matches!(written, Err(StoreError::Held(_))))
    }

    fn batch(&mut self, host: HostId, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Written, StoreError> {
        let mut verdicts = Vec::with_capacity(commits.len());
        let written = self.transact(|batch| {
            entries.iter().try_for_each(|entry| batch.append(entry).map(drop))?;
            for commit in commits.iter_mut() {
                verdicts.push(batch.commit(commit)?);
            }
            batch.sign(host, CHECKPOINT_EVERY)
        });
        let (error, head) = match written {
            Ok(checkpoint) => return Ok(Written { verdicts, checkpoint }),
            Err(Failure::Before(error)) => return Err(error),
            Err(Failure::Commit { error, head }) => (error, head),
        };
        if matches!(error, StoreError::Full(_)) {
            self.reserve.release();
        }
        let applied = commits.iter().zip(&verdicts).filter(|(_, verdict)| matches!(verdict, Verdict::Applied));
        let decided = applied.filter_map(|(commit, _)| commit.entry.commit_point()).collect();
        match self.resolve(InDoubt { head, host, commits: decided, entries: entries.len() }) {
            Ok(Resolved::Durable) => Ok(Written { verdicts, checkpoint: None }),
            Ok(Resolved::Lost) => Err(error),
            Err(_) => Err(StoreError::Unknown(error.to_string())),
        }
    }

    /// One database transaction.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        let known = self.head;
        let place = &self.place;
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => place.open()?,
        };
        let connection = self.connection.insert(connection);
        let outcome = (|| {
            run(connection, "BEGIN IMMEDIATE").map_err(|error| place.error(&error))?;
            let _rollback = Rollback(connection);
            let before = head(connection, known).map_err(|error| place.error(&error))?;
            let mut batch = Batch { place, connection, head: before, signing: &mut self.signing, append: None };
            let done = work(&mut batch)?;
            let head = batch.head;
            run(connection, "COMMIT").map_err(|error| Failure::Commit { error: place.error(&error), head })?;
            Ok((done, before, head))
        })();
        let is_stuck = !connection.is_autocommit();
        match outcome {
            Ok((done, before, head)) => {
                self.keep_connection &= before == head;
                self.head = head;
                Ok(done)
            }
            Err(failure) => {
                // Whatever a connection believes that could not read or write may be wrong, so the next one is new. But
                // one whose COMMIT has failed stays: see `resolve`.
                self.keep_connection |= matches!(failure, Failure::Commit { .. });
                let distrusted = is_stuck || matches!(failure, Failure::Before(StoreError::Io(_)));
                if !self.keep_connection && distrusted {
                    self.connection = None;
                }
                self.head = Head::EMPTY;
                Err(failure)
            }
        }
    }

    /// Finds out what became of a batch whose COMMIT failed, and enters it. While that cannot be, the batch stays in doubt.
    ///
    /// By the connection whose COMMIT it was: as long as that is open, the pages that may be in the write-ahead log are in
    /// no index, so nobody sees them, and the entry made here is written over them. So the answer can never change. If the
    /// process ends before, whoever opens the database next decides, by what is there.
    fn resolve(&mut self, doubt: InDoubt) -> Result<Resolved, StoreError> {
        let at = SystemTime::now();
        let resolved = self.transact(|batch| {
            let line: Option<String> = batch.row("SELECT line FROM log WHERE seq = ?1", [doubt.head.seq])?;
            let durable = line.is_some_and(|line| hash(&line) == doubt.head.sha256);
            for (call, point) in &doubt.commits {
                let kind = EntryKind::Resolved { call: *call, point: *point, durable };
                batch.append(&Entry { at, host: doubt.host, kind })?;
            }
            Ok(if durable { Resolved::Durable } else { Resolved::Lost })
        });
        if resolved.is_err() {
            self.in_doubt = Some(doubt);
        }
        resolved.map_err(Failure::into_error)
    }

    /// As `transact`, once it is known what became of a batch in doubt.
    pub(super) fn transact_surely<T>(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(doubt) = self.in_doubt.take() {
            let (whose, count) = (doubt.host, doubt.entries);
            if matches!(self.resolve(doubt)?, Resolved::Durable) {
                self.there.insert(whose, count);
            }
        }
        self.transact(work).map_err(Failure::into_error)
    }

    /// Why nothing new should be begun.
    pub(super) fn shortage(&mut self) -> Option<String> {
        self.reserve.shortage()
    }
}

/// Why a database transaction did not end well.
pub(super) enum Failure {
    /// It was rolled back.
    Before(StoreError),
    /// Nobody knows.
    Commit {
        error: StoreError,
        /// The last line of the batch.
        head: Head,
    },
}

impl Failure {
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Failure::Before(error) => error,
            Failure::Commit { error, .. } => StoreError::Unknown(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Before(error)
    }
}

/// Planned once: a commit is short enough for that to count.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(()).map(drop)
}

/// Ends a database transaction that nothing else has ended, also if there was a panic in the middle of it.
struct Rollback<'a>(&'a Connection);

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        // Some failures have ended it already.
        if !self.0.is_autocommit()
            && let Err(error) = run(self.0, "ROLLBACK")
        {
            tracing::warn!(%error, "a database transaction could not be rolled back");
        }
    }
}

/// The newest line. `known`: as this connection left it, which saves hashing it again.
fn head(connection: &Connection, known: Head) -> rusqlite::Result<Head> {
    let newest: Option<u64> = connection.prepare_cached("SELECT max(seq) FROM log")?.query_row([], |row| row.get(0))?;
    match newest {
        None => Ok(Head::EMPTY),
        // Nothing is ever removed at the end, so the line of this number is still the same.
        Some(seq) if seq == known.seq => Ok(known),
        Some(seq) => {
            let line: String =
                connection.prepare_cached("SELECT line FROM log WHERE seq = ?1")?.query_row([seq], |row| row.get(0))?;
            Ok(Head::of(seq, &line))
        }
    }
}

/// For whoever looks at the table; what was decided is found by its id.
fn path_text(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

/// An open database transaction that writes.
pub(super) struct Batch<'a> {
    place: &'a Place,
    connection: &'a Connection,
    head: Head,
    signing: &'a mut Signing,
    /// What adds a line, once it was asked for: looking it up for each of many counts.
    append: Option<CachedStatement<'a>>,
}

impl Batch<'_> {
    /// The newest line.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    pub(super) fn connection(&self) -> &Connection {
        self.connection
    }

    pub(super) fn error(&self, error: &rusqlite::Error) -> StoreError {
        self.place.error(error)
    }

    /// Adds a line to the log.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<u64, StoreError> {
        let line = self.head.follow(entry).map_err(|error| StoreError::Io(format!("an entry is no JSON: {error}")))?;
        let statement = match &mut self.append {
            Some(statement) => statement,
            None => {
                // A line either fits or is not there, so there is nothing of a single statement to take back: with ABORT,
                // which is what is meant otherwise, each would keep a copy of the page that it changes.
                let sql = "INSERT OR FAIL INTO log (seq, line) VALUES (?1, ?2)";
                let statement = self.connection.prepare_cached(sql).map_err(|error| self.place.error(&error))?;
                self.append.insert(statement)
            }
        };
        statement.execute(params![self.head.seq, line]).map_err(|error| self.place.error(&error))?;
        Ok(self.head.seq)
    }

    /// Signs the head if there are this many lines since it was signed last. Not being able to is said and holds up
    /// nothing.
    pub(super) fn sign(&mut self, host: HostId, every: u64) -> Result<Option<Checkpoint>, StoreError> {
        if self.head.seq < self.signing.newest + every {
            return Ok(None);
        }
        // A number that no line has yet is nobody's checkpoint.
        let newest = self.meta("checkpoint")?.and_then(|seq| seq.parse().ok());
        self.signing.newest = newest.filter(|seq| *seq <= self.head.seq).unwrap_or(0);
        if self.head.seq < self.signing.newest + every {
            return Ok(None);
        }
        let signer = match self.signer() {
            Ok(signer) => signer,
            Err(error) => {
                if !std::mem::replace(&mut self.signing.failed, true) {
                    tracing::error!(%error, "the log is not signed");
                }
                return Ok(None);
            }
        };
        self.signing.failed = false;
        let checkpoint = signer.checkpoint(&self.head);
        let kind = EntryKind::Checkpoint(checkpoint.clone());
        let seq = self.append(&Entry { at: SystemTime::now(), host, kind })?;
        self.set_meta("checkpoint", &seq.to_string())?;
        Ok(Some(checkpoint))
    }

    /// The key that signs this log.
    pub(super) fn signer(&mut self) -> Result<Signer, StoreError> {
        let expected = self.meta("log-key")?;
        let home = self.meta("home")?.unwrap_or_default();
        let signer = Signer::load(self.place.home().path(), &home, expected.as_deref())
            .map_err(|error| StoreError::Io(error.to_string()))?;
        if expected.is_none() {
            self.set_meta("log-key", &signer.public())?;
        }
        Ok(signer)
    }

    pub(super) fn meta(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.row("SELECT value FROM meta WHERE name = ?1", [name])
    }

    pub(super) fn set_meta(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", [name, value]).map(drop)
    }

    /// Validates, decides and applies one commit.
    fn commit(&mut self, commit: &mut Commit<'_>) -> Result<Verdict, StoreError> {
        let mut found = Vec::with_capacity(commit.parts.len());
        for part in commit.parts {
            let space = self.space(&part.space)?;
            if let Some(what) = self.changed(space.map(|(id, _)| id), &part.reads)? {
                return Ok(Verdict::Conflict(what));
            }
            found.push(space);
        }
        let mut grown = Vec::with_capacity(commit.parts.len());
        for (part, space) in commit.parts.iter().zip(&found) {
            let bytes_after = self.bytes_after(part, *space)?;
            if bytes_after > commit.space_bytes_max && bytes_after > space.map_or(0, |(_, bytes)| bytes) {
                return Ok(Verdict::Refused(StoreError::Quota {
                    agent: Arc::clone(&part.space.agent),
                    component: Arc::clone(&part.space.component),
                    bytes: bytes_after,
                    bytes_max: commit.space_bytes_max,
                }));
            }
            grown.push(bytes_after);
        }
        if !(commit.decide)() {
            return Ok(Verdict::Withdrawn);
        }
        let version = self.append(&commit.entry)?;
        for decision in commit.workspaces {
            let sql = "INSERT INTO workspace (id, path, digest) VALUES (?1, ?2, ?3)";
            self.execute(sql, params![decision.id, path_text(&decision.workspace), decision.digest])?;
        }
        for ((part, space), bytes_after) in commit.parts.iter().zip(found).zip(grown) {
            self.apply(part, space, bytes_after, version)?;
        }
        Ok(Verdict::Applied)
    }

    /// What is kept in a space once this is applied.
    fn bytes_after(&self, part: &Part, space: Option<(i64, u64)>) -> Result<u64, StoreError> {
        let mut bytes_after = space.map_or(0, |(_, bytes)| bytes);
        for write in &part.writes {
            let old = match space {
                Some((id, _)) => self.value_bytes(id, &write.key)?,
                None => None,
            };
            let charge = |value_bytes| write.key.charge(Some(value_bytes));
            bytes_after += write.value.as_ref().map_or(0, |value| charge(value.len()));
            bytes_after = bytes_after.saturating_sub(old.map_or(0, charge));
        }
        Ok(bytes_after)
    }

    fn apply(&self, part: &Part, space: Option<(i64, u64)>, bytes_after: u64, version: u64) -> Result<(), StoreError> {
        if part.writes.is_empty() {
            return Ok(());
        }
        let (id, bytes) = match space {
            Some(found) => found,
            None => {
                let Space { agent, component } = &part.space;
                self.execute(
                    "INSERT INTO space (agent, component, bytes) VALUES (?1, ?2, 0)",
                    params![&**agent, &**component],
                )?;
                (self.connection.last_insert_rowid(), 0)
            }
        };
        for write in &part.writes {
            match &write.value {
                Some(value) => self.set(id, &write.key, version, value)?,
                None => self.remove(id, &write.key, version)?,
            }
        }
        if bytes_after == 0 {
            self.execute("DELETE FROM space WHERE id = ?1", [id])?;
        } else if bytes_after != bytes {
            self.execute("UPDATE space SET bytes = ?2 WHERE id = ?1", params![id, bytes_after])?;
        }
        Ok(())
    }

    /// See [`Decisions::resolve`](crate::store::Decisions::resolve).
    pub(super) fn resolve_workspace(&self, id: &str, path: &Path) -> Result<Option<String>, StoreError> {
        let sql = "INSERT OR IGNORE INTO workspace (id, path, digest) VALUES (?1, ?2, NULL)";
        self.execute(sql, params![id, path_text(path)])?;
        Ok(self.row::<Option<String>>("SELECT digest FROM workspace WHERE id = ?1", [id])?.flatten())
    }

    /// See [`Decisions::forget`](crate::store::Decisions::forget).
    pub(super) fn forget_workspace(&self, id: &str) -> Result<(), StoreError> {
        self.execute("DELETE FROM workspace WHERE id = ?1", [id]).map(drop)
    }

    fn space(&self, space: &Space) -> Result<Option<(i64, u64)>, StoreError> {
        let sql = "SELECT id, bytes FROM space WHERE agent = ?1 AND component = ?2";
        self.query(sql, params![&*space.agent, &*space.component], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// What has changed since it was read, if anything.
    fn changed(&self, space: Option<i64>, reads: &[Read]) -> Result<Option<String>, StoreError> {
        for read in reads {
            let (now, then, what) = match read {
                Read::Key(key, then) => {
                    let sql = "SELECT kv.version FROM bucket JOIN kv ON kv.bucket = bucket.id \
                               WHERE bucket.space = ?1 AND bucket.name = ?2 AND kv.key = ?3";
                    (self.row(sql, params![space, &*key.bucket, &*key.key])?, then, "changed")
                }
                Read::Listing(bucket, then) => {
                    let sql = "SELECT version FROM bucket WHERE space = ?1 AND name = ?2";
                    (self.row(sql, params![space, &**bucket])?, then, "added or removed")
                }
            };
            if now.map_or(Version::ABSENT, Version) != *then {
                return Ok(Some(match read {
                    Read::Key(key, _) => format!("{key} was {what} by someone else"),
                    Read::Listing(bucket, _) => format!("keys of bucket `{bucket}` were {what} by someone else"),
                }));
            }
        }
        Ok(None)
    }

    fn value_bytes(&self, space: i64, key: &Key) -> Result<Option<usize>, StoreError> {
        let sql = "SELECT length(kv.value) FROM bucket JOIN kv ON kv.bucket = bucket.id \
                   WHERE bucket.space = ?1 AND bucket.name = ?2 AND kv.key = ?3";
        self.row(sql, params![space, &*key.bucket, &*key.key])
    }

    fn bucket(&self, space: i64, name: &str) -> Result<Option<i64>, StoreError> {
        self.row("SELECT id FROM bucket WHERE space = ?1 AND name = ?2", params![space, name])
    }

    fn set(&self, space: i64, key: &Key, version: u64, value: &[u8]) -> Result<(), StoreError> {
        let Some(bucket) = self.bucket(space, &key.bucket)? else {
            let sql = "INSERT INTO bucket (space, name, version) VALUES (?1, ?2, ?3)";
            self.execute(sql, params![space, &*key.bucket, version])?;
            let bucket = self.connection.last_insert_rowid();
            return self.insert(bucket, key, version, value);
        };
        let sql = "UPDATE kv SET version = ?3, value = ?4 WHERE bucket = ?1 AND key = ?2";
        if self.execute(sql, params![bucket, &*key.key, version, value])? == 0 {
            self.insert(bucket, key, version, value)?;
            self.touch(bucket, version)?;
        }
        Ok(())
    }

    fn insert(&self, bucket: i64, key: &Key, version: u64, value: &[u8]) -> Result<(), StoreError> {
        let sql = "INSERT INTO kv (bucket, key, version, value) VALUES (?1, ?2, ?3, ?4)";
        self.execute(sql, params![bucket, &*key.key, version, value]).map(drop)
    }

    /// The bucket's set of keys has changed.
    fn touch(&self, bucket: i64, version: u64) -> Result<(), StoreError> {
        self.execute("UPDATE bucket SET version = ?2 WHERE id = ?1", params![bucket, version]).map(drop)
    }

    fn remove(&self, space: i64, key: &Key, version: u64) -> Result<(), StoreError> {
        let Some(bucket) = self.bucket(space, &key.bucket)? else { return Ok(()) };
        if self.execute("DELETE FROM kv WHERE bucket = ?1 AND key = ?2", params![bucket, &*key.key])? == 0 {
            return Ok(());
        }
        let others: Option<i64> = self.row("SELECT 1 FROM kv WHERE bucket = ?1 LIMIT 1", [bucket])?;
        if others.is_some() {
            return self.touch(bucket, version);
        }
        // As if it had never been: an empty listing is like any other.
        self.execute("DELETE FROM bucket WHERE id = ?1", [bucket]).map(drop)
    }

    fn row<T: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
    ) -> Result<Option<T>, StoreError> {
        self.query(sql, params, |row| row.get(0))
    }

    fn query<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let found = self.statement(sql)?.query_row(params, read).optional();
        found.map_err(|error| self.place.error(&error))
    }

    pub(super) fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize, StoreError> {
        self.statement(sql)?.execute(params).map_err(|error| self.place.error(&error))
    }

    fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(sql).map_err(|error| self.place.error(&error))
    }
}
