//! What a host does because of a halt: it stops what the halt covers, keeps it on the disk, and enters both.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Acted, Halt, HaltError, REMEMBERED_MAX};
use crate::host::Core;
use crate::ids::{CallId, HaltId};
use crate::interrupt::{Cause, Interrupt, Interruption, TEXT_BYTES_MAX, cut};
use crate::log::{EntryKind, Record};

impl Core {
    /// Halts: at once and in memory, then on the disk. The error says that it will not
    /// outlive this process; or that there was no room for it, and that it has only stopped what ran.
    ///
    /// In force before it walks the calls, by a read-modify-write that every registered call makes as well before it looks:
    /// whichever of the two is first, the other one sees what stands before it.
    pub(crate) fn halt(&self, halt: Halt) -> Result<(), HaltError> {
        let halt = Arc::new(halt);
        drop(self.begin_halt(&halt));
        self.latch(&halt)
    }

    /// The first half, which waits for nobody.
    pub(crate) fn begin_halt(&self, halt: &Arc<Halt>) -> Interruption {
        self.halts.add(halt);
        self.stop_halted(halt, true)
    }

    /// The second half, which waits for the disk.
    pub(crate) fn latch(&self, halt: &Halt) -> Result<(), HaltError> {
        self.enter_latched(halt, self.halts.holds(halt).and_then(|()| self.halts.persist(halt)))
    }

    /// Whoever has put it on the disk enters it; if nobody could, this does.
    pub(super) fn enter_latched(&self, halt: &Halt, latched: Result<bool, HaltError>) -> Result<(), HaltError> {
        if matches!(latched, Ok(false)) {
            self.show(halt);
        } else {
            self.log.record(Record::Noted(EntryKind::halted(halt, latched.is_ok())));
        }
        latched.map(drop)
    }

    /// Somebody else enters it: those who watch this host are to see it all the same.
    pub(super) fn show(&self, halt: &Halt) {
        #[cfg(feature = "control")]
        self.writer.observers.feed.entry(&self.writer.entry(EntryKind::halted(halt, true)));
        // Nobody can watch.
        #[cfg(not(feature = "control"))]
        let _ = (self, halt);
    }

    /// Stops what a halt in the list covers. What it reached before, because it came by two ways, is part of the answer.
    pub(super) fn stop_halted(&self, halt: &Halt, asked: bool) -> Interruption {
        self.halts.order.fetch_add(1, Ordering::AcqRel);
        let Some(scope) = halt.scope.in_host(self.id) else { return Interruption::default() };
        let mut acted = self.halts.acted();
        let before = acted.iter().position(|acted| acted.is_of(halt)).and_then(|at| acted.remove(at));
        let (mut calls, told) = before.map(|acted| (acted.calls, acted.told)).unwrap_or_default();
        let mut left = calls.is_empty();
        self.inventory.walk(|call| left |= scope.covers(call));
        // Nobody has come since: there is nothing to deliver again.
        if left {
            let interrupt = Interrupt::new(Cause::Halted, halt.actor.clone()).reason(halt.reason.clone());
            let interruption = self.interrupt(scope, Interrupt { halt: Some(halt.halt), ..interrupt });
            let known: HashSet<CallId> = calls.iter().map(|(call, _)| call.id).collect();
            calls.extend(interruption.calls.into_iter().filter(|(call, _)| !known.contains(&call.id)));
        }
        acted.truncate(REMEMBERED_MAX - 1);
        acted.push_front(Acted {
            halt: halt.halt,
            scope: halt.scope.clone(),
            at: Instant::now(),
            calls: calls.clone(),
            told: told || asked,
        });
        Interruption { calls }
    }

    /// Lifts a halt: what it covered may start again, and nothing resumes.
    pub(crate) fn lift(&self, halt: HaltId, actor: &str, reason: &str) -> Result<Halt, HaltError> {
        let in_force = self.halts.list.load().halts.iter().find(|other| other.halt == halt).cloned();
        let found = in_force.ok_or(HaltError::Unknown(halt))?;
        found.may_be_lifted()?;
        if let Some(scope) = found.scope.in_host(self.id) {
            let mut stopping = 0;
            self.inventory.walk(|call| stopping += usize::from(scope.covers(call) && call.gate.is_flagged()));
            if stopping > 0 {
                let why = format!("{stopping} calls that it covers are still stopping (`estop ps` lists them)");
                return Err(HaltError::StillInForce { halt, why });
            }
        }
        let lifted = self.halts.remove(halt)?;
        let (mut actor, mut reason) = (actor.to_owned(), reason.to_owned());
        cut(&mut actor, TEXT_BYTES_MAX);
        cut(&mut reason, TEXT_BYTES_MAX);
        self.log.record(Record::Noted(EntryKind::Lift { halt, scope: lifted.scope.clone(), actor, reason }));
        Ok((*lifted).clone())
    }
}
