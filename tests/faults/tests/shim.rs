//! The shim under real connections.

mod common;

use std::sync::Mutex;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use common::{Bench, assert_sound, checkpoint, code, commit, create, pairs};
use estop_faults::{Fault, Faults, On, Survivors};
use rusqlite::{Connection, ffi};

#[test]
fn without_faults_it_is_a_database() {
    let bench = Bench::new("no-faults");
    let one = bench.open().unwrap();
    let other = bench.open().unwrap();
    create(&one).unwrap();
    for pair in 1..=20 {
        commit(if pair % 2 == 0 { &one } else { &other }, pair).unwrap();
    }
    assert_eq!(checkpoint(&one, "TRUNCATE").unwrap(), (0, 0, 0));
    commit(&other, 21).unwrap();
    assert_eq!(pairs(&one).unwrap(), (1..=21).collect::<Vec<_>>());
    assert_sound(&one);
    assert_sound(&other);
    assert_eq!(bench.faults.hits(), 0);
    assert!(bench.faults.operations() > 21 * 3);
    // A commit is durable when it's answered.
    assert_eq!(bench.pairs_after(Survivors::Synced), (1..=21).collect::<Vec<_>>());
    drop((one, other));
    bench.assert_recorded(&["db"]);
}

#[test]
fn threads_share_it() {
    let bench = Bench::new("threads");
    let writer = bench.open().unwrap();
    create(&writer).unwrap();
    writer.pragma_update(None, "wal_autocheckpoint", 20).unwrap();
    let (writing, written) = mpsc::channel::<()>();
    let written = Mutex::new(written);
    std::thread::scope(|scope| {
        // Readers stop when this is dropped, so a writer that panics is not waited for.
        let _writing = writing;
        for _ in 0..2 {
            scope.spawn(|| {
                let reader = bench.open().unwrap();
                let mut seen = 0;
                while written.lock().unwrap().try_recv() != Err(TryRecvError::Disconnected) {
                    let found = pairs(&reader).unwrap();
                    assert!(found.len() >= seen && found.iter().copied().eq(1..=found.len() as i64));
                    seen = found.len();
                }
                assert_eq!(pairs(&reader).unwrap().len(), 30);
            });
        }
        for pair in 1..=30 {
            commit(&writer, pair).unwrap();
            // Images are made while others read.
            assert_eq!(bench.pairs_after(Survivors::Synced).len(), pair as usize);
        }
    });
    assert_sound(&writer);
}

/// Two connections, ten transactions, checkpoints of two kinds in the middle, and the last one at the end.
fn script(bench: &Bench, acknowledged: &mut Vec<i64>) -> rusqlite::Result<()> {
    let writer = bench.open()?;
    let reader = bench.open()?;
    create(&writer)?;
    for pair in 1..=10 {
        commit(&writer, pair)?;
        acknowledged.push(pair);
        assert_eq!(&pairs(&reader)?, acknowledged);
        match pair {
            // The log begins anew after this one, over the old frames.
            4 => assert_eq!(checkpoint(&writer, "PASSIVE")?.0, 0),
            7 => assert_eq!(checkpoint(&writer, "TRUNCATE")?.0, 0),
            _ => {}
        }
    }
    drop(reader);
    // Deletes the log.
    writer.close().map_err(|(_, error)| error)
}

#[test]
fn a_power_cut_at_any_operation_loses_no_acknowledged_transaction() {
    let (mut with_next, mut without_next) = (0, 0);
    let mut at = 0;
    loop {
        at += 1;
        let bench = Bench::new(&format!("power-cut-{at}"));
        bench.arm(at, On::Any, Fault::PowerCut);
        let mut acknowledged = Vec::new();
        let done = script(&bench, &mut acknowledged);
        if bench.faults.hits() == 0 {
            done.unwrap();
            assert_eq!(bench.faults.operations(), at - 1);
            break;
        }
        let mut kinds = vec![Survivors::Synced, Survivors::Everything];
        kinds.extend((0..4).map(|seed| Survivors::Random(at * 4 + seed)));
        for kind in kinds {
            let found = bench.pairs_after(kind);
            let (kept, rest) = found.split_at(acknowledged.len().min(found.len()));
            assert_eq!(kept, acknowledged, "operation {at}, {kind:?}: {done:?}");
            // Nobody was told what became of the transaction that the cut met.
            match rest {
                [] => without_next += 1,
                [next] if *next == acknowledged.len() as i64 + 1 => with_next += 1,
                _ => panic!("operation {at}, {kind:?}: {rest:?} were never begun"),
            }
        }
    }
    println!("{} points; images with the transaction that was cut: {with_next}, without: {without_next}", at - 1);
    assert!(at > 100, "only {at} points");
    assert!(with_next > 0 && without_next > 0);
}

#[test]
fn a_sync_that_lies_loses_what_was_acknowledged() {
    let (bench, db) = Bench::with_pair("sync-lies");
    bench.arm_lasting(On::Sync, Fault::SyncLies);
    commit(&db, 2).unwrap();
    assert!(bench.faults.hits() > 0);
    assert_eq!(pairs(&db).unwrap(), [1, 2]);
    assert_eq!(bench.pairs_after(Survivors::Synced), [1]);
    assert_eq!(bench.pairs_after(Survivors::Everything), [1, 2]);
    // A sync that is done makes up for those that were not.
    bench.faults.disarm();
    commit(&db, 3).unwrap();
    assert_eq!(bench.pairs_after(Survivors::Synced), [1, 2, 3]);
}

#[test]
fn faults_fail_a_commit_with_their_code_and_pass() {
    let cases = [
        ("full", On::WalWrite, Fault::Full, ffi::SQLITE_FULL),
        ("io-write", On::WalWrite, Fault::Io, ffi::SQLITE_IOERR_WRITE),
        ("torn", On::WalWrite, Fault::Torn, ffi::SQLITE_IOERR_WRITE),
        ("full-sync", On::WalSync, Fault::Full, ffi::SQLITE_IOERR_FSYNC),
        ("io-sync", On::WalSync, Fault::Io, ffi::SQLITE_IOERR_FSYNC),
        ("sync-lost", On::WalSync, Fault::SyncLost, ffi::SQLITE_IOERR_FSYNC),
        ("sync-dropped", On::WalSync, Fault::SyncDropped, ffi::SQLITE_IOERR_FSYNC),
    ];
    for (name, on, fault, expected) in cases {
        // The first write of a commit, and one in the middle of it.
        for at in if on == On::WalSync { 1..=1 } else { 1..=2 } {
            let (bench, db) = Bench::with_pair(&format!("fails-{name}-{at}"));
            bench.arm(at, on, fault);
            assert_eq!(code(commit(&db, 2)), expected, "{name}");
            assert_eq!(bench.faults.hits(), 1);
            bench.assert_recorded(&["db", "db-wal"]);
            bench.faults.disarm();
            assert_eq!(pairs(&db).unwrap(), [1]);
            commit(&db, 2).unwrap();
            commit(&db, 3).unwrap();
            assert_sound(&db);
            let fresh = bench.open().unwrap();
            assert_eq!(pairs(&fresh).unwrap(), [1, 2, 3]);
            assert_eq!(bench.pairs_after(Survivors::Synced), [1, 2, 3]);
            bench.assert_recorded(&["db", "db-wal"]);
        }
    }
}

#[test]
fn faults_fail_a_checkpoint_with_their_code_and_pass() {
    let cases = [
        ("db-full", On::DbWrite, Fault::Full, ffi::SQLITE_FULL),
        ("db-write", On::DbWrite, Fault::Io, ffi::SQLITE_IOERR_WRITE),
        ("db-torn", On::DbWrite, Fault::Torn, ffi::SQLITE_IOERR_WRITE),
        ("db-sync", On::DbSync, Fault::Io, ffi::SQLITE_IOERR_FSYNC),
        ("db-sync-dropped", On::DbSync, Fault::SyncDropped, ffi::SQLITE_IOERR_FSYNC),
        ("truncate", On::Truncate, Fault::Io, ffi::SQLITE_IOERR_TRUNCATE),
    ];
    for (name, on, fault, expected) in cases {
        let (bench, db) = Bench::with_pair(&format!("checkpoint-{name}"));
        bench.arm(1, on, fault);
        assert_eq!(code(checkpoint(&db, "TRUNCATE")), expected, "{name}");
        assert_eq!(bench.pairs_after(Survivors::Synced), [1], "{name}");
        bench.assert_recorded(&["db", "db-wal"]);
        bench.faults.disarm();
        assert_eq!(checkpoint(&db, "TRUNCATE").unwrap(), (0, 0, 0));
        bench.assert_recorded(&["db", "db-wal"]);
        commit(&db, 2).unwrap();
        assert_sound(&db);
        assert_eq!(bench.pairs_after(Survivors::Synced), [1, 2], "{name}");
    }
}

#[test]
fn a_database_that_cannot_be_created_is_not_opened() {
    let bench = Bench::new("no-create");
    bench.arm(1, On::Any, Fault::Io);
    assert_eq!(code(bench.open()), ffi::SQLITE_CANTOPEN);
    bench.open().unwrap();
}

#[test]
fn a_log_that_cannot_be_deleted_stays() {
    let (bench, db) = Bench::with_pair("no-delete");
    bench.arm(1, On::Delete, Fault::Io);
    // SQLite doesn't tell; the next one to open finds the log, and nothing in it that is not in the database.
    drop(db);
    assert_eq!(bench.faults.hits(), 1);
    assert!(bench.store().join("db-wal").exists());
    assert_eq!(pairs(&bench.open().unwrap()).unwrap(), [1]);
}

#[test]
fn a_delay_delays() {
    const DELAY: Duration = Duration::from_millis(60);
    let (bench, db) = Bench::with_pair("delay");
    bench.arm(1, On::WalSync, Fault::Delay(DELAY));
    let begun = Instant::now();
    commit(&db, 2).unwrap();
    assert!(begun.elapsed() >= DELAY);
    assert_eq!(bench.faults.hits(), 1);
    assert_eq!(bench.pairs_after(Survivors::Synced), [1, 2]);
}

#[test]
fn after_a_power_cut_nothing_works_but_letting_go() {
    let (bench, db) = Bench::with_pair("nothing-works");
    let reader = bench.open().unwrap();
    reader.execute_batch("PRAGMA cache_size = 0; BEGIN").unwrap();
    assert_eq!(pairs(&reader).unwrap(), [1]);
    bench.arm(1, On::WalSync, Fault::PowerCut);
    assert_eq!(code(commit(&db, 2)), ffi::SQLITE_IOERR_FSYNC);
    assert_eq!(code(pairs(&reader)) & 0xff, ffi::SQLITE_IOERR);
    assert_eq!(code(bench.open()) & 0xff, ffi::SQLITE_IOERR);
    // A plan doesn't bring the power back.
    bench.faults.disarm();
    assert_eq!(code(commit(&db, 2)) & 0xff, ffi::SQLITE_IOERR);
    drop(reader);
    drop(db);
    assert_eq!(bench.pairs_after(Survivors::Synced), [1]);
}

#[test]
fn what_was_there_before_is_durable_and_what_was_never_opened_is_copied() {
    let bench = Bench::new("before");
    std::fs::create_dir(bench.store()).unwrap();
    std::fs::write(bench.store().join("note"), "never opened").unwrap();
    let db = Connection::open(bench.store().join("db")).unwrap();
    create(&db).unwrap();
    commit(&db, 1).unwrap();
    drop(db);
    let db = bench.open().unwrap();
    assert_eq!(pairs(&db).unwrap(), [1]);
    assert!(bench.store().join("db-shm").exists());
    let image = bench.image(Survivors::Synced);
    assert_eq!(std::fs::read_to_string(image.path().join("note")).unwrap(), "never opened");
    assert!(!image.path().join("db-shm").exists());
    assert_eq!(common::pairs_in(image.path()), [1]);
    // It must not mix with an earlier one.
    let again = bench.faults.crash_image(&bench.store(), image.path(), Survivors::Synced);
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn chance_has_every_outcome_and_a_seed_one() {
    let (bench, db) = Bench::with_pair("chance");
    bench.arm_lasting(On::Sync, Fault::SyncLies);
    commit(&db, 2).unwrap();
    let bytes = |seed| std::fs::read(bench.image(Survivors::Random(seed)).path().join("db-wal")).unwrap();
    assert_eq!(bytes(7), bytes(7));
    assert!((0..8).any(|seed| bytes(seed) != bytes(7)));
    let survived = (0..200).filter(|&seed| bench.pairs_after(Survivors::Random(seed)) == [1, 2]).count();
    assert!((1..200).contains(&survived), "{survived} of 200");
    bench.faults.disarm();

    // Closing deletes the log, without a sync of the directory.
    drop(db);
    let log_is_back = |survivors| bench.image(survivors).path().join("db-wal").exists();
    assert!(!log_is_back(Survivors::Synced) && !log_is_back(Survivors::Everything));
    let back = (0..40).filter(|&seed| log_is_back(Survivors::Random(seed))).count();
    assert!((1..40).contains(&back), "{back} of 40");
}

#[test]
#[should_panic(expected = "the name is taken")]
fn a_name_is_for_one_vfs() {
    Faults::install("twice");
    Faults::install("twice");
}
