//! What SQLite shows, and to whom, after a COMMIT that failed. A store must not take more for granted than stands here.
//!
//! The frames of a commit whose sync failed are whole in the log. That nobody sees them rests on the index in shared
//! memory alone; whoever rebuilds the index from the log takes them for committed.

mod common;

use common::{Bench, assert_sound, checkpoint, code, commit, pairs};
use estop_faults::{Fault, On, Survivors};
use rusqlite::{Connection, OpenFlags, ffi};

const LOST: [Fault; 2] = [Fault::SyncLost, Fault::SyncDropped];

#[test]
fn the_connection_has_rolled_back() {
    for (name, on, fault, expected) in [
        ("sync", On::WalSync, Fault::SyncLost, ffi::SQLITE_IOERR_FSYNC),
        ("write", On::WalWrite, Fault::Io, ffi::SQLITE_IOERR_WRITE),
        ("full", On::WalWrite, Fault::Full, ffi::SQLITE_FULL),
    ] {
        let (bench, db) = Bench::with_pair(&format!("rolled-back-{name}"));
        db.execute_batch("BEGIN IMMEDIATE; DELETE FROM half").unwrap();
        bench.arm(1, on, fault);
        assert_eq!(code(db.execute_batch("COMMIT")), expected);
        // An explicit ROLLBACK would fail: there is no transaction any more.
        assert!(db.is_autocommit());
        assert_eq!(pairs(&db).unwrap(), [1]);
    }
}

#[test]
fn a_write_that_failed_commits_nothing_whatever_happens_next() {
    let mut at = 0;
    loop {
        at += 1;
        for fault in [Fault::Io, Fault::Full, Fault::Torn] {
            let (bench, db) = Bench::with_pair(&format!("write-{at}-{fault:?}"));
            bench.arm(at, On::WalWrite, fault);
            if commit(&db, 2).is_ok() {
                assert_eq!(bench.faults.hits(), 0);
                assert!(at > 5, "only {at} writes");
                return;
            }
            assert_eq!(pairs(&bench.open().unwrap()).unwrap(), [1]);
            assert_eq!(bench.pairs_after(Survivors::Everything), [1]);
        }
    }
}

#[test]
fn with_another_connection_nobody_sees_it_and_the_next_commit_takes_its_place() {
    for fault in LOST {
        let (bench, db) = Bench::with_pair(&format!("another-{fault:?}"));
        let other = bench.open().unwrap();
        assert_eq!(pairs(&other).unwrap(), [1]);
        bench.arm_lasting(On::WalSync, fault);
        assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
        // Even if the one that failed is closed, and whether it can checkpoint then or not.
        db.close().unwrap();
        bench.faults.disarm();
        let fresh = bench.open().unwrap();
        assert_eq!(pairs(&fresh).unwrap(), [1]);
        assert_eq!(pairs(&other).unwrap(), [1]);
        // Its frames are overwritten, so they can't come back, and the new ones are durable.
        commit(&fresh, 3).unwrap();
        assert_eq!(bench.pairs_after(Survivors::Everything), [1, 3]);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1, 3]);
    }
}

#[test]
fn a_shorter_commit_takes_the_place_of_a_longer_one() {
    for fault in LOST {
        let (bench, db) = Bench::with_pair(&format!("shorter-{fault:?}"));
        bench.arm(1, On::WalSync, fault);
        let long = "BEGIN; WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
                    INSERT INTO half SELECT i, 0, zeroblob(3000) FROM n; COMMIT";
        assert_eq!(code(db.execute_batch(long)), ffi::SQLITE_IOERR_FSYNC);
        commit(&db, 3).unwrap();
        assert_eq!(bench.pairs_after(Survivors::Everything), [1, 3]);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1, 3]);
    }
}

#[test]
fn the_last_connection_to_close_in_order_takes_it_away() {
    for fault in LOST {
        let (bench, db) = Bench::with_pair(&format!("in-order-{fault:?}"));
        bench.arm(1, On::WalSync, fault);
        assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
        // The sync works again, so this checkpoints by the index and deletes the log.
        db.close().unwrap();
        assert!(!bench.store().join("db-wal").exists());
        assert_eq!(pairs(&bench.open().unwrap()).unwrap(), [1]);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1]);
    }
}

#[test]
fn it_comes_back_if_the_last_connection_cannot_sync_either() {
    for fault in LOST {
        let (bench, db) = Bench::with_pair(&format!("comes-back-{fault:?}"));
        bench.arm_lasting(On::WalSync, fault);
        assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
        // Says nothing of the checkpoint that failed.
        db.close().unwrap();
        assert!(bench.store().join("db-wal").exists());
        bench.faults.disarm();
        assert_eq!(pairs(&bench.open().unwrap()).unwrap(), [1, 2]);
    }
}

#[test]
fn it_comes_back_if_the_others_have_never_read() {
    let (bench, db) = Bench::with_pair("never-read");
    let idle = Connection::open_with_flags_and_vfs(bench.store().join("db"), OpenFlags::default(), bench.faults.name())
        .unwrap();
    bench.arm_lasting(On::WalSync, Fault::SyncLost);
    assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
    db.close().unwrap();
    bench.faults.disarm();
    // Open, but only the first read maps the index and so keeps it.
    assert_eq!(pairs(&idle).unwrap(), [1, 2]);
}

#[test]
fn it_comes_back_if_the_process_dies_and_may_if_the_machine_does() {
    for fault in LOST {
        let (bench, db) = Bench::with_pair(&format!("dies-{fault:?}"));
        bench.arm(1, On::WalSync, fault);
        assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
        assert_eq!(bench.pairs_after(Survivors::Everything), [1, 2]);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1]);
    }
}

/// As on Linux: what a failed sync left behind is in the page cache, clean.
#[test]
fn once_it_has_come_back_on_linux_later_commits_are_lost_with_it() {
    let (bench, db) = Bench::with_pair("lost-with-it");
    bench.arm_lasting(On::WalSync, Fault::SyncDropped);
    assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
    db.close().unwrap();
    bench.faults.disarm();
    let db = bench.open().unwrap();
    assert_eq!(pairs(&db).unwrap(), [1, 2]);
    // Synced, and answered; but its frames follow frames that aren't on the disk.
    commit(&db, 3).unwrap();
    assert_eq!(bench.pairs_after(Survivors::Synced), [1]);
}

#[test]
fn once_it_has_come_back_on_linux_a_checkpoint_corrupts_the_database() {
    for mode in ["PASSIVE", "TRUNCATE"] {
        let (bench, db) = Bench::with_pair(&format!("corrupts-{mode}"));
        for pair in 2..20 {
            commit(&db, pair).unwrap();
        }
        // The log begins anew, so it has only some of the pages.
        checkpoint(&db, "TRUNCATE").unwrap();
        commit(&db, 20).unwrap();
        bench.arm_lasting(On::WalSync, Fault::SyncDropped);
        assert_eq!(
            code(db.execute_batch("BEGIN; DELETE FROM half WHERE pair % 2 = 1; COMMIT")),
            ffi::SQLITE_IOERR_FSYNC
        );
        db.close().unwrap();
        bench.faults.disarm();

        let db = bench.open().unwrap();
        assert_eq!(checkpoint(&db, mode).unwrap().0, 0);
        assert_sound(&db);
        // The database has the pages that the deletion made, and the part of the log that is on the disk older ones. Nor
        // is the truncation of the log durable.
        let image = bench.image(Survivors::Synced);
        let db = Connection::open(image.path().join("db")).unwrap();
        let verdict = db.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
        assert_ne!(verdict.as_deref(), Ok("ok"), "{mode}");
    }
}

#[test]
fn a_commit_says_nothing_of_the_checkpoint_that_it_made() {
    for on in [On::DbWrite, On::DbSync] {
        let (bench, db) = Bench::with_pair(&format!("says-nothing-{on:?}"));
        db.pragma_update(None, "wal_autocheckpoint", 1).unwrap();
        bench.arm_lasting(on, Fault::Io);
        commit(&db, 2).unwrap();
        assert_eq!(bench.faults.hits(), 1);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1, 2]);
    }
}
