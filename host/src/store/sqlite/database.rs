//! Opening the database: version checks, settings, migrations, and who holds it if it cannot be had.
//!
//! Invariant: a connection that leaves here is on a database of this version, in WAL mode, with every commit synced.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;

use crate::home::Home;
use crate::store::StoreError;

/// Earlier versions of SQLite can corrupt a write-ahead log that processes share (sqlite.org/wal.html, "the WAL-reset
/// bug").
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// Marks the file as ours (`PRAGMA application_id`): "estp".
const APPLICATION_ID: i32 = 0x6573_7470;
/// How long a write waits for another process's database transaction, which usually takes less than a millisecond.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether the database is free: at first, and at most.
const BUSY_LOOK_MIN: Duration = Duration::from_micros(100);
const BUSY_LOOK_MAX: Duration = Duration::from_millis(2);
/// The write-ahead log is cut back to this when it is reset (bytes).
const WAL_BYTES_KEPT: u32 = 16 << 20;
/// The byte of the `-shm` file that whoever writes has locked (sqlite.org/walformat.html#locks).
const WRITE_LOCK_BYTE: u64 = 120;

/// One step of the database from a version to the next, in a transaction of its own.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("workspace.sql")];

/// Where the database is, and through which VFS of SQLite it is reached.
pub(super) struct Place {
    home: Home,
    vfs: Option<String>,
    /// Its connections wait for other processes.
    patient: Arc<AtomicBool>,
}

impl Place {
    pub(super) fn new(home: &Home, vfs: Option<String>) -> Self {
        Self { home: home.clone(), vfs, patient: Arc::new(AtomicBool::new(true)) }
    }

    /// The same, with a patience of its own.
    pub(super) fn again(&self) -> Self {
        Self::new(&self.home, self.vfs.clone())
    }

    /// The home that it is in.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// Whether its connections wait for other processes from now on.
    pub(super) fn set_patient(&self, patient: bool) {
        self.patient.store(patient, Ordering::Release);
    }

    /// Opens the database for reading and writing, and makes or migrates it if need be.
    pub(super) fn open(&self) -> Result<Connection, StoreError> {
        if rusqlite::version_number() < SQLITE_VERSION_MIN {
            let have = rusqlite::version();
            return Err(StoreError::Io(format!("SQLite {have} can corrupt a shared log; 3.51.3 or later is needed")));
        }
        // Making, migrating and the first look at a database are not things that SQLite does well for several processes
        // at once: they can be told that it is busy without having waited.
        let _one_at_a_time = self.lock_opening()?;
        let mut connection = self.connect()?;
        let refused = |error| match error {
            MigrateError::Sqlite(error) => self.error(&error),
            MigrateError::Newer { found, known } => StoreError::Io(format!(
                "`{}` has version {found} and this estop knows up to {known}: use a newer estop, nothing was changed",
                self.home.database().display()
            )),
            MigrateError::Foreign => {
                StoreError::Io(format!("`{}` is not a database of estop", self.home.database().display()))
            }
        };
        // Before the journal's mode, which is written into the file.
        version(&connection, MIGRATIONS.len()).map_err(refused)?;
        self.put_away_what_was_left(&connection)?;
        connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
            .map_err(|error| self.error(&error))
            .and_then(|mode| if mode == "wal" { Ok(()) } else { Err(StoreError::Io(self.no_wal(&mode))) })?;
        migrate(&mut connection, MIGRATIONS).map_err(refused)?;
        Ok(connection)
    }

    /// A write-ahead log that nobody has open was left by processes that died, perhaps because a sync had failed: then Linux
    /// shows pages that are not on the disk and that no later sync puts there (fsync(2)). So what is in it is written into
    /// the database file, and a new one begun.
    fn put_away_what_was_left(&self, connection: &Connection) -> Result<(), StoreError> {
        let mut wal = self.home.database().into_os_string();
        wal.push("-wal");
        if !fs::metadata(wal).is_ok_and(|found| found.len() > 0) {
            return Ok(());
        }
        // Whoever has it open vouches for it, and is not waited for.
        self.set_patient(false);
        let put_away = connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()));
        self.set_patient(true);
        match put_away {
            Err(error) => match self.error(&error) {
                StoreError::Held(_) => Ok(()),
                error => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    /// A connection that only reads. The database must be there.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let connection = self.connect()?;
        connection.pragma_update(None, "query_only", true).map_err(|error| self.error(&error))?;
        Ok(connection)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let path = self.home.database();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let opened = match &self.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(&path, flags, vfs.as_str()),
            None => Connection::open_with_flags(&path, flags),
        };
        let set_up = opened.and_then(|mut connection| {
            let mut began = None;
            let patient = Arc::clone(&self.patient);
            // SQLite's own handler sleeps for milliseconds at once, which is longer than a commit takes.
            connection.busy_handler(Some(move |times: i32| {
                if !patient.load(Ordering::Acquire) {
                    return false;
                }
                if times == 0 {
                    began = Some(Instant::now());
                }
                thread::sleep(BUSY_LOOK_MIN.saturating_mul(times.unsigned_abs() + 1).min(BUSY_LOOK_MAX));
                began.is_some_and(|began| began.elapsed() < BUSY_MAX)
            }))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "temp_store", "MEMORY")?;
            connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
            // A statement is planned once, not anew for each value that is looked for.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        });
        set_up.map_err(|error| self.error(&error))
    }

    /// What went wrong, in words that help.
    pub(super) fn error(&self, error: &rusqlite::Error) -> StoreError {
        let path = self.home.database();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Held(self.holder()),
            Some(ErrorCode::DiskFull) => StoreError::Full(format!("the disk of `{}` is full", path.display())),
            _ => StoreError::Io(format!("`{}`: {error}", path.display())),
        }
    }

    fn no_wal(&self, mode: &str) -> String {
        format!("`{}` cannot have a write-ahead log here (journal mode `{mode}`)", self.home.database().display())
    }

    /// Who is in the middle of a database transaction.
    fn holder(&self) -> String {
        let mut shm = self.home.database().into_os_string();
        shm.push("-shm");
        held_by(Path::new(&shm), WRITE_LOCK_BYTE, "another process has been in the middle of a database transaction")
    }

    fn lock_opening(&self) -> Result<fs::File, StoreError> {
        let path = self.home.opening();
        let failed = |error: std::io::Error| StoreError::Io(format!("`{}`: {error}", path.display()));
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let began = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < BUSY_MAX => thread::sleep(BUSY_LOOK_MAX),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StoreError::Held(held_by(&path, 0, "another process has been opening the database")));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// Says which process has a lock on this byte of a file. By the kernel's list: opening and closing the file itself would
/// drop this process's own locks on it (fcntl(2), "record locks").
fn held_by(path: &Path, byte: u64, what: &str) -> String {
    let seconds = BUSY_MAX.as_secs();
    let Some(pid) = locker(path, byte) else {
        return format!("{what} for {seconds} s or more");
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain any.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let frozen = if matches!(state, Some('T' | 't')) { ", which is stopped (SIGCONT lets it go on)" } else { "" };
    format!("{what} for {seconds} s or more: process {pid} (`{}`){frozen}", name.trim_end())
}

fn locker(path: &Path, byte: u64) -> Option<u32> {
    let inode = fs::metadata(path).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // 1: POSIX  ADVISORY  WRITE 29011 fe:00:10010745 120 124
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, "WRITE", pid, file, first, last] = fields[..] else { return None };
        let covers = first.parse::<u64>().is_ok_and(|first| first <= byte)
            && (last == "EOF" || last.parse::<u64>().is_ok_and(|last| byte <= last));
        (file.rsplit(':').next() == Some(&inode) && covers).then(|| pid.parse().ok())?
    })
}

#[derive(Debug)]
enum MigrateError {
    Sqlite(rusqlite::Error),
    Newer { found: usize, known: usize },
    Foreign,
}

impl From<rusqlite::Error> for MigrateError {
    fn from(error: rusqlite::Error) -> Self {
        MigrateError::Sqlite(error)
    }
}

/// The version of a database that is ours, or empty, and not newer than this.
fn version(connection: &Connection, known: usize) -> Result<usize, MigrateError> {
    let found: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let is_empty = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && !(application == 0 && found == 0 && is_empty) {
        return Err(MigrateError::Foreign);
    }
    if found > known { Err(MigrateError::Newer { found, known }) } else { Ok(found) }
}

/// Brings a database to the newest version, a step at a time; each step is there entirely or not at all.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), MigrateError> {
    loop {
        let found = version(connection, migrations.len())?;
        let Some(step) = migrations.get(found) else { return Ok(()) };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Somebody else may have been faster.
        let now: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if now == found {
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", found + 1)?;
        }
        transaction.commit()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[&str] = &["CREATE TABLE a (x INTEGER) STRICT", "ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 7"];

    fn columns(connection: &Connection) -> (i64, Option<i64>) {
        connection.query_row("SELECT * FROM a", [], |row| Ok((row.get(0)?, row.get(1).ok()))).expect("a row")
    }

    #[test]
    fn an_older_database_is_migrated_with_what_is_in_it() {
        let mut connection = Connection::open_in_memory().expect("a database");
        migrate(&mut connection, &STEPS[..1]).expect("the first version is made");
        connection.execute("INSERT INTO a VALUES (1)", []).expect("a row is inserted");
        assert_eq!(columns(&connection), (1, None));
        migrate(&mut connection, STEPS).expect("it is migrated");
        assert_eq!(columns(&connection), (1, Some(7)));
        migrate(&mut connection, STEPS).expect("there is nothing more to do");
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().expect("a database");
        migrate(&mut connection, STEPS).expect("it is made");
        let refused = migrate(&mut connection, &STEPS[..1]);
        assert!(matches!(refused, Err(MigrateError::Newer { found: 2, known: 1 })), "{refused:?}");
    }

    #[test]
    fn a_step_that_fails_leaves_the_older_version() {
        let mut connection = Connection::open_in_memory().expect("a database");
        migrate(&mut connection, &STEPS[..1]).expect("the first version is made");
        let steps = [STEPS[0], "ALTER TABLE a ADD COLUMN z INTEGER; CREATE TABLE a (x INTEGER) STRICT"];
        assert!(matches!(migrate(&mut connection, &steps), Err(MigrateError::Sqlite(_))));
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a version");
        assert_eq!(version, 1);
        connection.execute("INSERT INTO a VALUES (1)", []).expect("there is one column");
    }

    #[test]
    fn a_database_of_somebody_else_is_refused() {
        let mut connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch("CREATE TABLE theirs (x)").expect("a table is made");
        assert!(matches!(migrate(&mut connection, STEPS), Err(MigrateError::Foreign)));
    }
}
