//! Promise 8 between processes: they commit optimistically, whoever is second is told of a conflict and can go on, and
//! nobody is ever told that the database is locked.

mod ledger;

use std::fs;
use std::sync::Barrier;
use std::thread;

use estop::store::sqlite::Look;
use estop_tests::home::{Temporary, temporary};

use ledger::book::Book;
use ledger::command::{Ended, printed, run};
use ledger::trail::Trail;
use ledger::{Accounts, Batch, Chance, component};

/// "Two processes with 200 conflicting transfers each."
const TRANSFERS: usize = 200;
/// Batches in which the two may miss each other.
const ROUNDS_MAX: usize = 5;
/// Exit codes.
const COMPLETED: i32 = 0;
const CONFLICT: i32 = 7;

/// Settles a batch in one process after the other, until one says that it is done. All that they said.
fn settle(home: &Temporary, component: &str, accounts: &Accounts, batch: &Batch) -> Vec<Ended> {
    let input = home.folder().join(format!("{}.json", batch.id));
    fs::write(&input, batch.input(1).to_string()).expect("the input can be written");
    let input = format!("@{}", input.display());
    let mut all = Vec::new();
    loop {
        let ended = run(home.home(), &["run", component, "settle", "-i", &input, "--agent", &accounts.agent]);
        let code = ended.code;
        all.push(ended);
        match code {
            Some(COMPLETED) => return all,
            Some(CONFLICT) => {}
            _ => panic!("{all:?}"),
        }
    }
}

#[test]
fn two_processes_with_200_conflicting_transfers_each_are_told_of_conflicts_and_lose_none() {
    let mut chance = Chance::new("conflicts");
    let (home, component) = (temporary(), component());
    let accounts = Accounts::new("shared", 2);
    for account in accounts.openings() {
        let input = account.to_string();
        printed(home.home(), &["run", &component, "open", "-i", &input, "--agent", &accounts.agent]);
    }
    let (mut batches, mut trail, mut conflicts): (Vec<Batch>, Trail, usize) = Default::default();
    // Once, unless one of them is done before the other has begun.
    while conflicts == 0 {
        assert!(batches.len() < 2 * ROUNDS_MAX, "no two processes ever met");
        let two = ["one", "other"].map(|who| {
            let id = format!("{who}-{}", batches.len());
            accounts.batch(&id, TRANSFERS, &mut chance)
        });
        let together = Barrier::new(2);
        let settled = thread::scope(|scope| {
            let settling = two.each_ref().map(|batch| {
                scope.spawn(|| {
                    together.wait();
                    settle(&home, &component, &accounts, batch)
                })
            });
            settling.map(|thread| thread.join().expect("its processes do what they should"))
        });
        batches.extend(two);
        let look = Look::open(home.home()).expect("the home can be read");
        let book = Book::look(&look, &accounts.agent);
        trail.follow(&look);
        book.audit(&accounts, &batches.iter().collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| book.done(batch) == TRANSFERS), "every transfer is made");
        trail.explains(&accounts.agent, &book, u64::MAX);
        for ended in settled.iter().flatten() {
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!said.to_lowercase().contains("locked"), "{said}");
            if ended.code == Some(CONFLICT) {
                conflicts += 1;
                assert!(ended.stderr.contains("estop: conflict: key `"), "{said}");
                assert!(ended.stderr.contains("by someone else"), "{said}");
            }
        }
    }

    let amounts = trail.is_complete();
    println!("{conflicts} conflicts, {amounts:?}");
    assert_eq!(trail.ended("conflict"), conflicts, "the log tells of every conflict");
    assert_eq!(amounts.hosts_died, 0);
    printed(home.home(), &["log", "verify"]);
}
