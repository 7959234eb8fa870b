//! What every [`Store`] must do, as a suite to be called from a test.
//!
//! ```
//! # use std::sync::Arc;
//! # use estop::store::{conformance, memory::Memory};
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! conformance::check(|| Arc::new(Memory::new())).await;
//! # });
//! ```

use std::cell::Cell;
use std::sync::Arc;

use super::{Commit, Key, Part, Read, Space, Store, StoreError, Verdict, Version, Write};
use crate::ids::HostId;
use crate::log::{Entry, EntryKind};

/// Runs the whole suite; each check gets a store of its own from `fresh`, which must be empty.
///
/// # Panics
/// At the first thing that is not as the contract says.
pub async fn check(fresh: impl Fn() -> Arc<dyn Store>) {
    values_come_back_with_newer_versions(&Suite::new(fresh())).await;
    a_stale_read_is_a_conflict(&Suite::new(fresh())).await;
    absence_is_validated(&Suite::new(fresh())).await;
    a_key_that_was_recreated_is_another_one(&Suite::new(fresh())).await;
    listings_notice_phantoms_and_nothing_else(&Suite::new(fresh())).await;
    read_only_commits_are_validated(&Suite::new(fresh())).await;
    a_withdrawn_commit_leaves_nothing(&Suite::new(fresh())).await;
    decide_is_asked_once_and_only_of_what_passed(&Suite::new(fresh())).await;
    commits_of_one_batch_see_each_other(&Suite::new(fresh())).await;
    a_quota_holds_and_can_be_got_out_of(&Suite::new(fresh())).await;
    removing_what_is_not_there_is_harmless(&Suite::new(fresh())).await;
    spaces_are_apart(&Suite::new(fresh())).await;
    a_commit_over_two_spaces_is_whole(&Suite::new(fresh())).await;
    quotas_are_of_each_space(&Suite::new(fresh())).await;
    long_listings_are_refused(&Suite::new(fresh())).await;
    entries_are_written_with_their_commits_and_in_order(&Suite::new(fresh())).await;
}

struct Suite {
    store: Arc<dyn Store>,
    space: Space,
}

const NO_LIMIT: u64 = u64::MAX;

impl Suite {
    fn new(store: Arc<dyn Store>) -> Self {
        Self { store, space: Space { agent: "a".into(), component: "c".into() } }
    }

    /// Another space, and the suite for it on the same store.
    fn beside(&self) -> Suite {
        Suite { store: Arc::clone(&self.store), space: Space { agent: "a".into(), component: "beside".into() } }
    }

    fn part(&self, reads: &[Read], writes: &[Write]) -> Part {
        Part { space: self.space.clone(), reads: reads.to_vec(), writes: writes.to_vec() }
    }

    async fn get(&self, name: &str) -> (Version, Option<Vec<u8>>) {
        let (version, value) = self.store.get(&self.space, &key(name)).await.expect("a key can be read");
        (version, value.map(|value| value.to_vec()))
    }

    async fn list(&self) -> super::Listing {
        self.store.list(&self.space, &"bucket".into(), 1000).await.expect("a bucket can be listed")
    }

    fn commit(&self, reads: &[Read], writes: &[Write]) -> Verdict {
        self.commit_with(reads, writes, NO_LIMIT, &|| true)
    }

    fn commit_with(
        &self,
        reads: &[Read],
        writes: &[Write],
        space_bytes_max: u64,
        decide: &dyn Fn() -> bool,
    ) -> Verdict {
        self.commit_parts(&[self.part(reads, writes)], space_bytes_max, decide)
    }

    fn commit_parts(&self, parts: &[Part], space_bytes_max: u64, decide: &dyn Fn() -> bool) -> Verdict {
        let entry = entry(0);
        let mut commits = [Commit { parts, workspaces: &[], space_bytes_max, entry, decide }];
        let verdicts = self.store.write(&mut commits, &[]).expect("a batch can be written");
        assert_eq!(verdicts.len(), 1, "one verdict for each commit");
        verdicts.into_iter().next().expect("there is one")
    }

    fn set(&self, name: &str, value: &str) {
        applied(&self.commit(&[], &[set(name, value)]));
    }

    fn remove(&self, name: &str) {
        applied(&self.commit(&[], &[Write { key: key(name), value: None }]));
    }

    fn entries(&self) -> Vec<u64> {
        let entries = self.store.entries(0, usize::MAX).expect("the log can be read");
        entries.iter().map(|entry| if let EntryKind::Lost { entries } = entry.kind { entries } else { 0 }).collect()
    }
}

/// An entry that is told from others by a number.
fn entry(number: u64) -> Entry {
    Entry::new(0, HostId::generate(), EntryKind::Lost { entries: number })
}

fn key(name: &str) -> Key {
    Key { bucket: "bucket".into(), key: name.into() }
}

fn set(name: &str, value: &str) -> Write {
    Write { key: key(name), value: Some(value.as_bytes().into()) }
}

fn applied(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Applied), "not applied: {verdict:?}");
}

fn conflict(verdict: &Verdict, names: &str) {
    let Verdict::Conflict(what) = verdict else { panic!("no conflict: {verdict:?}") };
    assert!(what.contains(names), "the conflict does not name `{names}`: {what}");
}

async fn values_come_back_with_newer_versions(suite: &Suite) {
    assert_eq!(suite.get("k").await, (Version::ABSENT, None));
    suite.set("k", "one");
    let (first, value) = suite.get("k").await;
    assert_eq!(value.as_deref(), Some(&b"one"[..]));
    assert!(first > Version::ABSENT);
    suite.set("other", "x");
    suite.set("k", "one");
    let (second, _) = suite.get("k").await;
    assert!(second > first, "the same value written again is a new version");
    suite.remove("k");
    assert_eq!(suite.get("k").await, (Version::ABSENT, None));
}

async fn a_stale_read_is_a_conflict(suite: &Suite) {
    suite.set("k", "one");
    let (seen, _) = suite.get("k").await;
    suite.set("k", "two");
    let writes = [set("k", "three"), set("other", "three")];
    conflict(&suite.commit(&[Read::Key(key("k"), seen)], &writes), "k");
    assert_eq!(suite.get("k").await.1.as_deref(), Some(&b"two"[..]), "nothing is applied");
    assert_eq!(suite.get("other").await.1, None, "nothing is applied");
}

async fn absence_is_validated(suite: &Suite) {
    let absent = [Read::Key(key("k"), Version::ABSENT)];
    applied(&suite.commit(&absent, &[set("k", "mine")]));
    conflict(&suite.commit(&absent, &[set("k", "mine too")]), "k");
    assert_eq!(suite.get("k").await.1.as_deref(), Some(&b"mine"[..]));
}

async fn a_key_that_was_recreated_is_another_one(suite: &Suite) {
    suite.set("k", "same");
    let (seen, _) = suite.get("k").await;
    suite.remove("k");
    suite.set("k", "same");
    conflict(&suite.commit(&[Read::Key(key("k"), seen)], &[set("k", "new")]), "k");
}

async fn listings_notice_phantoms_and_nothing_else(suite: &Suite) {
    suite.set("b", "1");
    suite.set("a", "1");
    let listing = suite.list().await;
    assert_eq!(listing.keys, vec![Arc::from("a"), Arc::from("b")], "in order");
    let read = [Read::Listing("bucket".into(), listing.version)];
    suite.set("a", "2");
    applied(&suite.commit(&read, &[]));
    suite.set("c", "1");
    conflict(&suite.commit(&read, &[]), "bucket");
    let read = [Read::Listing("bucket".into(), suite.list().await.version)];
    suite.remove("c");
    conflict(&suite.commit(&read, &[]), "bucket");
    let empty = suite.store.list(&suite.space, &"empty".into(), 1).await.expect("an empty bucket can be listed");
    assert_eq!((empty.version, empty.keys.len()), (Version::ABSENT, 0));
}

async fn read_only_commits_are_validated(suite: &Suite) {
    suite.set("k", "one");
    let (seen, _) = suite.get("k").await;
    applied(&suite.commit(&[Read::Key(key("k"), seen)], &[]));
    suite.set("k", "two");
    conflict(&suite.commit(&[Read::Key(key("k"), seen)], &[]), "k");
}

async fn a_withdrawn_commit_leaves_nothing(suite: &Suite) {
    let verdict = suite.commit_with(&[], &[set("k", "v")], NO_LIMIT, &|| false);
    assert!(matches!(verdict, Verdict::Withdrawn), "{verdict:?}");
    assert_eq!(suite.get("k").await, (Version::ABSENT, None));
    assert_eq!(suite.list().await.keys.len(), 0);
    assert_eq!(suite.entries().len(), 0, "its entry is not written either");
}

async fn decide_is_asked_once_and_only_of_what_passed(suite: &Suite) {
    let asked = Cell::new(0);
    let decide = || {
        asked.set(asked.get() + 1);
        true
    };
    suite.set("k", "one");
    let stale = [Read::Key(key("k"), Version::ABSENT)];
    conflict(&suite.commit_with(&stale, &[set("k", "two")], NO_LIMIT, &decide), "k");
    assert_eq!(asked.get(), 0, "what does not pass is not decided");
    applied(&suite.commit_with(&[], &[set("k", "two")], NO_LIMIT, &decide));
    assert_eq!(asked.get(), 1);
}

async fn commits_of_one_batch_see_each_other(suite: &Suite) {
    let reads = [Read::Key(key("k"), Version::ABSENT)];
    let [first, second] = ["first", "second"].map(|value| [suite.part(&reads, &[set("k", value)])]);
    let commit = |parts, number| Commit {
        parts,
        workspaces: &[],
        space_bytes_max: NO_LIMIT,
        entry: entry(number),
        decide: &|| true,
    };
    let mut commits = [commit(&first[..], 1), commit(&second[..], 2)];
    let verdicts = suite.store.write(&mut commits, &[]).expect("a batch can be written");
    applied(&verdicts[0]);
    conflict(&verdicts[1], "k");
    assert_eq!(suite.get("k").await.1.as_deref(), Some(&b"first"[..]));
    assert_eq!(suite.entries(), [1]);
}

async fn a_quota_holds_and_can_be_got_out_of(suite: &Suite) {
    let big = "x".repeat(60);
    let quota =
        |verdict: &Verdict| assert!(matches!(verdict, Verdict::Refused(StoreError::Quota { .. })), "{verdict:?}");
    let one = key("a").charge(Some(big.len()));
    let limit = 2 * one - 1;
    applied(&suite.commit_with(&[], &[set("a", &big)], limit, &|| true));
    quota(&suite.commit_with(&[], &[set("b", &big)], limit, &|| true));
    assert_eq!(suite.get("b").await.1, None);
    applied(&suite.commit_with(&[], &[set("a", "small"), set("b", &big)], limit, &|| true));
    // Whoever is over the limit, because it was lowered, can still read, change and remove, and cannot grow.
    applied(&suite.commit_with(&[Read::Key(key("z"), Version::ABSENT)], &[], 1, &|| true));
    applied(&suite.commit_with(&[], &[set("b", "small")], 1, &|| true));
    quota(&suite.commit_with(&[], &[set("b", &big)], 1, &|| true));
    applied(&suite.commit_with(&[], &[Write { key: key("b"), value: None }], 1, &|| true));
    applied(&suite.commit_with(&[], &[Write { key: key("a"), value: None }], 1, &|| true));
}

/// Nothing is kept of a key that was never there, and an emptied bucket is like one that never was.
async fn removing_what_is_not_there_is_harmless(suite: &Suite) {
    suite.remove("k");
    assert_eq!(suite.get("k").await, (Version::ABSENT, None));
    suite.set("k", "v");
    let read = [Read::Listing("bucket".into(), suite.list().await.version)];
    suite.remove("k");
    conflict(&suite.commit(&read, &[]), "bucket");
    let empty = suite.list().await;
    assert_eq!(empty.keys.len(), 0);
    let read = [Read::Listing("bucket".into(), empty.version)];
    suite.remove("other");
    applied(&suite.commit(&read, &[]));
}

async fn spaces_are_apart(suite: &Suite) {
    suite.set("k", "v");
    for (agent, component) in [("a", "d"), ("b", "c")] {
        let space = Space { agent: agent.into(), component: component.into() };
        let (version, value) = suite.store.get(&space, &key("k")).await.expect("a key can be read");
        assert_eq!((version, value), (Version::ABSENT, None), "{agent} {component}");
    }
    let elsewhere = Key { bucket: "elsewhere".into(), key: "k".into() };
    assert_eq!(suite.store.get(&suite.space, &elsewhere).await.expect("a key can be read").1, None);
}

async fn a_commit_over_two_spaces_is_whole(suite: &Suite) {
    let beside = suite.beside();
    let both = |reads: &[Read], value| [suite.part(&[], &[set("k", value)]), beside.part(reads, &[set("k", value)])];
    applied(&suite.commit_parts(&both(&[], "one"), NO_LIMIT, &|| true));
    assert_eq!(suite.get("k").await.1.as_deref(), Some(&b"one"[..]));
    assert_eq!(beside.get("k").await.1.as_deref(), Some(&b"one"[..]));
    let seen = [Read::Key(key("k"), beside.get("k").await.0)];
    // A key of this name in the other space is another key.
    suite.set("k", "other");
    applied(&suite.commit_parts(&both(&seen, "two"), NO_LIMIT, &|| true));
    conflict(&suite.commit_parts(&both(&seen, "three"), NO_LIMIT, &|| true), "k");
    let verdict = suite.commit_parts(&both(&[], "three"), NO_LIMIT, &|| false);
    assert!(matches!(verdict, Verdict::Withdrawn), "{verdict:?}");
    assert_eq!(suite.get("k").await.1.as_deref(), Some(&b"two"[..]), "nothing is applied");
    assert_eq!(beside.get("k").await.1.as_deref(), Some(&b"two"[..]), "nothing is applied");
    assert_eq!(suite.entries().len(), 3, "one entry for each that was applied");
}

async fn quotas_are_of_each_space(suite: &Suite) {
    let (beside, big) = (suite.beside(), "x".repeat(60));
    let one = key("a").charge(Some(big.len()));
    let both = [suite.part(&[], &[set("a", &big)]), beside.part(&[], &[set("a", &big)])];
    applied(&suite.commit_parts(&both, one, &|| true));
    let more = [suite.part(&[], &[set("a", "small")]), beside.part(&[], &[set("b", &big)])];
    let verdict = suite.commit_parts(&more, one, &|| true);
    let Verdict::Refused(StoreError::Quota { component, .. }) = &verdict else { panic!("not refused: {verdict:?}") };
    assert_eq!(**component, *"beside", "the space that is full is named");
    assert_eq!(suite.get("a").await.1.as_deref(), Some(big.as_bytes()), "nothing is applied");
}

async fn long_listings_are_refused(suite: &Suite) {
    suite.set("a", "1");
    suite.set("b", "1");
    let refused = suite.store.list(&suite.space, &"bucket".into(), 1).await;
    assert!(matches!(refused, Err(StoreError::TooManyKeys { keys_max: 1, .. })), "{refused:?}");
}

async fn entries_are_written_with_their_commits_and_in_order(suite: &Suite) {
    let writes = [set("k", "v")];
    let commit = Commit {
        parts: &[suite.part(&[], &writes)],
        workspaces: &[],
        space_bytes_max: NO_LIMIT,
        entry: entry(3),
        decide: &|| true,
    };
    suite.store.write(&mut [commit], &[entry(1), entry(2)]).expect("a batch can be written");
    suite.store.write(&mut [], &[entry(4)]).expect("entries can be written alone");
    assert_eq!(suite.entries(), [1, 2, 3, 4]);
    let some = suite.store.entries(1, 2).expect("the log can be read");
    let some: Vec<_> = some.iter().map(Entry::to_json).map(|entry| entry["entries"].clone()).collect();
    assert_eq!(some, [2, 3]);
}
