//! A database of pairs: every transaction writes two rows, so half of one shows.

// Each test binary uses some of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use estop_faults::{Fault, Faults, On, Plan, Survivors};
use rusqlite::{Connection, OpenFlags, params};
use tempfile::TempDir;

/// A directory with a database in it, under a VFS of its own.
pub(crate) struct Bench {
    pub(crate) faults: Faults,
    directory: TempDir,
}

impl Bench {
    /// With no database yet. The name is the VFS's.
    pub(crate) fn new(name: &str) -> Self {
        Self { faults: Faults::install(name), directory: tempfile::tempdir().unwrap() }
    }

    /// With a database that has the table and pair 1.
    pub(crate) fn with_pair(name: &str) -> (Self, Connection) {
        let bench = Self::new(name);
        let db = bench.open().unwrap();
        create(&db).unwrap();
        commit(&db, 1).unwrap();
        (bench, db)
    }

    /// Where the database is.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn open(&self) -> rusqlite::Result<Connection> {
        std::fs::create_dir_all(self.store()).unwrap();
        let db =
            Connection::open_with_flags_and_vfs(self.store().join("db"), OpenFlags::default(), self.faults.name())?;
        set_up(&db)?;
        Ok(db)
    }

    pub(crate) fn arm(&self, at: u64, on: On, fault: Fault) {
        self.faults.arm(Plan { at, on, fault, lasting: false });
    }

    pub(crate) fn arm_lasting(&self, on: On, fault: Fault) {
        self.faults.arm(Plan { at: 1, on, fault, lasting: true });
    }

    /// The directory of an image, gone when it is dropped.
    pub(crate) fn image(&self, survivors: Survivors) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        self.faults.crash_image(&self.store(), to.path(), survivors).unwrap();
        to
    }

    /// The record has these files as they are, and no others.
    pub(crate) fn assert_recorded(&self, names: &[&str]) {
        let image = self.image(Survivors::Everything);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(image.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // By another process: one that closes a file releases its own locks on it.
            let same =
                Command::new("cmp").arg(self.store().join(&name)).arg(image.path().join(&name)).status().unwrap();
            assert!(same.success(), "{name} is not as recorded");
            found.push(name);
        }
        found.sort();
        assert_eq!(found, names);
    }

    /// The pairs in an image, after recovery by the ordinary VFS.
    pub(crate) fn pairs_after(&self, survivors: Survivors) -> Vec<i64> {
        pairs_in(self.image(survivors).path())
    }
}

fn set_up(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")
}

pub(crate) fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE half (pair INTEGER, half INTEGER, payload BLOB NOT NULL, PRIMARY KEY (pair, half)) STRICT",
    )
}

/// What a half holds: enough that a pair takes several pages.
fn payload(pair: i64, half: i64) -> Vec<u8> {
    let byte = u8::try_from((pair * 2 + half) % 251).unwrap();
    vec![byte; 3000]
}

/// One transaction. What fails is rolled back, as an application would.
pub(crate) fn commit(db: &Connection, pair: i64) -> rusqlite::Result<()> {
    let done = (|| {
        db.execute_batch("BEGIN IMMEDIATE")?;
        for half in 0..2 {
            db.execute("INSERT INTO half VALUES (?, ?, ?)", params![pair, half, payload(pair, half)])?;
        }
        db.execute_batch("COMMIT")
    })();
    if done.is_err() && !db.is_autocommit() {
        // It may fail too; then dropping the connection does it.
        let _ = db.execute_batch("ROLLBACK");
    }
    done
}

/// The pairs that are there.
///
/// # Panics
/// If one is there by half, or is not as it was written.
pub(crate) fn pairs(db: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut rows = db.prepare("SELECT pair, half, payload FROM half ORDER BY pair, half")?;
    let rows = rows
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, i64, Vec<u8>)>>>()?;
    let mut found = Vec::new();
    for halves in rows.chunks(2) {
        let pair = halves[0].0;
        assert_eq!(halves.len(), 2, "pair {pair} is there by half");
        for (half, row) in (0..).zip(halves) {
            assert!(*row == (pair, half, payload(pair, half)), "pair {pair} is not as it was written");
        }
        found.push(pair);
    }
    Ok(found)
}

/// The pairs in a directory's database, opened with the ordinary VFS; none if it has no table.
///
/// # Panics
/// If the database is corrupt.
pub(crate) fn pairs_in(directory: &Path) -> Vec<i64> {
    let db = Connection::open(directory.join("db")).unwrap();
    // Nothing cuts the power of this one.
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    assert_sound(&db);
    if !db.table_exists(None, "half").unwrap() {
        return Vec::new();
    }
    pairs(&db).unwrap()
}

pub(crate) fn assert_sound(db: &Connection) {
    let verdict: String = db.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

/// How far a checkpoint came: whether it was blocked, the frames in the log, and those of them in the database.
pub(crate) fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<(i64, i64, i64)> {
    db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
}

/// SQLite's extended code.
pub(crate) fn code<T: std::fmt::Debug>(done: rusqlite::Result<T>) -> i32 {
    done.unwrap_err().sqlite_error().unwrap().extended_code
}
