//! What somebody asks for that is not theirs to ask for: refused, and entered.
//!
//! Invariant: the first of its kind is entered at once, and nobody can fill the log with it: the same again within a time
//! is counted, and entered as one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use super::protocol::Role;
use super::server::{Peer, Refused};
use crate::host::Core;
use crate::log::{EntryKind, Record};

/// The same by the same user is entered once within this, and once more with its number after it.
const COUNTED_FOR: Duration = Duration::from_secs(60);
/// Kinds of denials that are told apart within [`COUNTED_FOR`]. More are counted together.
const KINDS_MAX: usize = 64;

/// Of one host, over all its sockets.
pub(super) struct Denials {
    core: Weak<Core>,
    lately: Mutex<Lately>,
}

/// Who asked for what, through which socket.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    actor: Arc<str>,
    role: Role,
    verb: &'static str,
}

/// Denials since the first of them.
#[derive(Default)]
struct Lately {
    since: Option<Instant>,
    kinds: HashMap<Kind, Counted>,
    /// Beyond [`KINDS_MAX`]: the last of them, and how many.
    others: Option<(Kind, Counted)>,
}

/// What is not entered yet.
#[derive(Default)]
struct Counted {
    times: u64,
    why: String,
}

impl Counted {
    fn count(&mut self, why: &str) {
        self.times += 1;
        why.clone_into(&mut self.why);
    }
}

impl Lately {
    /// One more. What is to be entered now.
    fn add(&mut self, kind: Kind, why: &str, now: Instant) -> Vec<EntryKind> {
        let is_over = self.since.is_none_or(|since| now.duration_since(since) >= COUNTED_FOR);
        let mut entries = if is_over { self.end() } else { Vec::new() };
        self.since.get_or_insert(now);
        let has_room = self.kinds.len() < KINDS_MAX;
        match self.kinds.get_mut(&kind) {
            Some(counted) => counted.count(why),
            None if has_room => {
                entries.push(entry(&kind, 1, why.to_owned()));
                self.kinds.insert(kind, Counted::default());
            }
            None => {
                let (last, counted) = self.others.get_or_insert_with(|| (kind.clone(), Counted::default()));
                *last = kind;
                counted.count(why);
            }
        }
        entries
    }

    /// Enters what was counted, and begins anew.
    fn end(&mut self) -> Vec<EntryKind> {
        let Self { kinds, others, .. } = std::mem::take(self);
        let others = others.map(|(kind, counted)| {
            let why = format!("the last of too many to be told apart: {}", counted.why);
            entry(&kind, counted.times, why)
        });
        let repeated = kinds.into_iter().filter(|(_, counted)| counted.times > 0);
        repeated.map(|(kind, counted)| entry(&kind, counted.times, counted.why)).chain(others).collect()
    }
}

fn entry(kind: &Kind, times: u64, why: String) -> EntryKind {
    let Kind { actor, role, verb } = kind;
    EntryKind::Denied { verb: (*verb).into(), actor: actor.to_string(), role: role.as_str().into(), why, times }
}

impl Denials {
    pub(super) fn new(core: &Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core: Arc::downgrade(core), lately: Mutex::default() })
    }

    /// Enters it, and answers what whoever asked is told.
    pub(super) fn deny(self: &Arc<Self>, role: Role, verb: &'static str, peer: &Peer, why: String) -> Refused {
        let kind = Kind { actor: peer.name(), role, verb };
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = lately.since.is_none();
        let entries = lately.add(kind, &why, Instant::now());
        drop(lately);
        self.enter(entries);
        if is_first {
            // What is counted is entered also if nobody is denied anything any more.
            let later = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep(COUNTED_FOR).await;
                if let Some(denials) = later.upgrade() {
                    let entries = denials.lately.lock().unwrap_or_else(PoisonError::into_inner).end();
                    denials.enter(entries);
                }
            });
        }
        Refused(StatusCode::FORBIDDEN, why)
    }

    fn enter(&self, entries: Vec<EntryKind>) {
        let Some(core) = self.core.upgrade() else { return };
        entries.into_iter().for_each(|entry| core.log.record(Record::Noted(entry)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(actor: &str, verb: &'static str) -> Kind {
        Kind { actor: actor.into(), role: Role::Operator, verb }
    }

    /// The actors, and how often.
    fn told(entries: Vec<EntryKind>) -> Vec<(String, u64)> {
        let told = entries.into_iter().map(|entry| match entry {
            EntryKind::Denied { actor, times, .. } => (actor, times),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn a_flood_is_two_entries_and_hides_nobody_else() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        assert_eq!(told(lately.add(kind("a", "lift"), "no", now)), [("a".into(), 1)]);
        for _ in 0..1000 {
            assert!(lately.add(kind("a", "lift"), "no", now).is_empty());
        }
        assert_eq!(told(lately.add(kind("b", "lift"), "no", now)), [("b".into(), 1)]);
        assert_eq!(told(lately.add(kind("a", "load"), "no", now)), [("a".into(), 1)]);
        let later = told(lately.add(kind("c", "lift"), "no", now + COUNTED_FOR));
        assert_eq!(later, [("a".into(), 1000), ("c".into(), 1)]);
        assert!(lately.end().is_empty());
    }

    #[test]
    fn more_kinds_than_there_is_room_for_are_one_entry() {
        let (mut lately, now) = (Lately::default(), Instant::now());
        let entered: usize = (0..1000).map(|n| lately.add(kind(&format!("u{n}"), "lift"), "no", now).len()).sum();
        assert_eq!(entered, KINDS_MAX);
        assert_eq!(told(lately.end()), [("u999".into(), 1000 - KINDS_MAX as u64)]);
    }
}
