//! Whose turn it is, as plain data: nothing here waits, wakes or stops.
//!
//! Invariants:
//! - The more urgent goes first; of equals, who came first. Nobody is let in past somebody whose turn is earlier, also if it
//!   would fit and the other does not: so a component that takes several places is let in as well.
//! - Places are free, held, or nothing: what is held and what is free are all there are, after every step.
//! - Who gives way is less urgent than the one it gives way to, and without it there would be too little room. What is
//!   free, and what others are giving up already, counts first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::task::Waker;

use super::GIVES_WAY_WITHIN;
use crate::call::CallState;
use crate::clock::nanos;

/// A call's turn, and what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    priority: u8,
    arrival: u64,
}

/// First is whose turn is first.
type Turn = (Reverse<u8>, u64);
/// First is who gives way first: the least urgent, and of equals who has come last.
type Worth = (u8, Reverse<u64>);

impl Ticket {
    fn turn(self) -> Turn {
        (Reverse(self.priority), self.arrival)
    }

    fn worth(self) -> Worth {
        (self.priority, Reverse(self.arrival))
    }
}

struct Waiting {
    call: Arc<CallState>,
    places: u32,
    /// Of the task that has asked whether it is its turn.
    waker: Option<Waker>,
}

struct Holding {
    call: Arc<CallState>,
    places: u32,
    /// When it was told to give way.
    told_ns: Option<u64>,
}

impl Holding {
    /// It will give its places back without being told to.
    fn is_leaving(&self, now_ns: u64) -> bool {
        let gate = &self.call.gate;
        if gate.is_settled() {
            return true;
        }
        // Told a moment ago, or stopped by somebody else. Who is stuck in a host function does not leave.
        let stopped_ns = || self.call.interrupted().map_or(now_ns, |delivered| delivered.at_ns);
        let since_ns = self.told_ns.or_else(|| gate.is_interrupted().then(stopped_ns));
        since_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) < nanos(GIVES_WAY_WITHIN))
    }

    /// Somebody has stopped it already, or it has ended.
    fn is_stopping(&self) -> bool {
        self.told_ns.is_some() || self.call.gate.is_flagged() || self.call.gate.is_settled()
    }
}

/// `call` is stopped, because `to` needs its place.
pub(super) struct GiveWay {
    pub(super) call: Arc<CallState>,
    pub(super) to: Arc<CallState>,
}

/// What is to be done once the queue is not locked any more.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) let_in: Vec<Waker>,
    pub(super) give_way: Vec<GiveWay>,
}

pub(super) struct Entered {
    pub(super) ticket: Ticket,
    pub(super) has_room: bool,
    pub(super) changes: Changes,
}

pub(super) struct Queue {
    free: u32,
    waiting_max: usize,
    arrivals: u64,
    waiting: BTreeMap<Turn, Waiting>,
    holding: BTreeMap<Worth, Holding>,
}

impl Queue {
    pub(super) fn new(places: u32, waiting_max: usize) -> Self {
        Self { free: places, waiting_max, arrivals: 0, waiting: BTreeMap::new(), holding: BTreeMap::new() }
    }

    /// Gives a call its turn, and room if there is some. An error says how many wait: there is no turn for one more.
    pub(super) fn enter(&mut self, call: &Arc<CallState>, places: u32, now_ns: u64) -> Result<Entered, usize> {
        let ticket = Ticket { priority: call.priority, arrival: self.arrivals };
        self.arrivals += 1;
        let call = Arc::clone(call);
        if self.waiting.is_empty() && places <= self.free {
            self.free -= places;
            self.holding.insert(ticket.worth(), Holding { call, places, told_ns: None });
            return Ok(Entered { ticket, has_room: true, changes: Changes::default() });
        }
        let mut changes = Changes::default();
        if self.waiting.len() >= self.waiting_max {
            changes.give_way.extend(self.make_way(&call)?);
        }
        self.waiting.insert(ticket.turn(), Waiting { call, places, waker: None });
        self.serve(now_ns, &mut changes);
        Ok(Entered { ticket, has_room: self.has_room(ticket), changes })
    }

    /// Gives a call room if there is some and nobody waits for it. It gets no turn otherwise.
    pub(super) fn enter_at_once(&mut self, call: &Arc<CallState>, places: u32) -> Option<Ticket> {
        if !self.waiting.is_empty() || places > self.free {
            return None;
        }
        let ticket = Ticket { priority: call.priority, arrival: self.arrivals };
        self.arrivals += 1;
        self.free -= places;
        self.holding.insert(ticket.worth(), Holding { call: Arc::clone(call), places, told_ns: None });
        Some(ticket)
    }

    /// Takes the last one out of a full queue, if it is less urgent than who comes, or stopped. Its own task finds out when
    /// it is dropped, and until then it waits for nothing.
    fn make_way(&mut self, to: &Arc<CallState>) -> Result<Option<GiveWay>, usize> {
        let waiting = self.waiting.len();
        let last = self.waiting.last_entry().ok_or(waiting)?;
        let call = &last.get().call;
        if call.gate.is_interrupted() {
            last.remove();
            return Ok(None);
        }
        if call.priority >= to.priority {
            return Err(waiting);
        }
        Ok(Some(GiveWay { call: last.remove().call, to: Arc::clone(to) }))
    }

    fn has_room(&self, ticket: Ticket) -> bool {
        self.holding.contains_key(&ticket.worth())
    }

    /// Whether the call has been let in. If not, this one is woken when it is.
    pub(super) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> bool {
        if let Some(waiting) = self.waiting.get_mut(&ticket.turn()) {
            match &mut waiting.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        self.has_room(ticket)
    }

    /// Gives back what the call has: its turn, or its places.
    pub(super) fn leave(&mut self, ticket: Ticket, now_ns: impl FnOnce() -> u64) -> Changes {
        match self.holding.remove(&ticket.worth()) {
            Some(holding) => self.free += holding.places,
            // Not there either if it had to make way.
            None => drop(self.waiting.remove(&ticket.turn())),
        }
        if self.waiting.is_empty() { Changes::default() } else { self.look_again(now_ns()) }
    }

    /// As after every step; for when time has passed.
    pub(super) fn look_again(&mut self, now_ns: u64) -> Changes {
        let mut changes = Changes::default();
        self.serve(now_ns, &mut changes);
        changes
    }

    fn serve(&mut self, now_ns: u64, changes: &mut Changes) {
        while let Some(first) = self.waiting.first_entry() {
            if first.get().call.gate.is_interrupted() {
                // Its task has not noticed yet, and nobody has to wait for that.
                first.remove();
                continue;
            }
            if first.get().places > self.free {
                break;
            }
            let ((Reverse(priority), arrival), Waiting { call, places, waker }) = first.remove_entry();
            self.free -= places;
            let ticket = Ticket { priority, arrival };
            self.holding.insert(ticket.worth(), Holding { call, places, told_ns: None });
            changes.let_in.extend(waker);
        }
        self.displace(now_ns, changes);
    }

    /// Makes room for those whose turn is first, at the cost of those who are less urgent.
    fn displace(&mut self, now_ns: u64, changes: &mut Changes) {
        let (Some((least, _)), Some(((Reverse(most), _), _))) =
            (self.holding.first_key_value(), self.waiting.first_key_value())
        else {
            return;
        };
        if least.0 >= *most {
            return;
        }
        let leaving = self.holding.values().filter(|holding| holding.is_leaving(now_ns));
        let mut coming: u32 = self.free + leaving.map(|holding| holding.places).sum::<u32>();
        let below = (Bound::Unbounded, Bound::Excluded((*most, Reverse(u64::MAX))));
        let less_urgent = self.holding.range::<Worth, _>(below).filter(|(_, holding)| !holding.is_stopping());
        let mut others: Vec<(Worth, u32)> = less_urgent.map(|(worth, holding)| (*worth, holding.places)).collect();
        let mut told: Vec<(Worth, Arc<CallState>)> = Vec::new();
        for waiting in self.waiting.values().filter(|waiting| !waiting.call.gate.is_flagged()) {
            let mut have = coming;
            let mut needed = 0;
            for ((priority, _), places) in &others {
                if have >= waiting.places || *priority >= waiting.call.priority {
                    break;
                }
                have += places;
                needed += 1;
            }
            if have < waiting.places {
                // Nobody is stopped in vain, and nobody is let in before this one.
                break;
            }
            let mut chosen: Vec<_> = others.drain(..needed).collect();
            // One with many places may have made those before it unnecessary: they stay.
            let mut spared = Vec::new();
            for at in (0..chosen.len()).rev() {
                if have - chosen[at].1 >= waiting.places {
                    have -= chosen[at].1;
                    spared.push(chosen.remove(at));
                }
            }
            others.splice(..0, spared.into_iter().rev());
            told.extend(chosen.into_iter().map(|(worth, _)| (worth, Arc::clone(&waiting.call))));
            coming = have - waiting.places;
        }
        for (worth, to) in told {
            if let Some(holding) = self.holding.get_mut(&worth) {
                holding.told_ns = Some(now_ns);
                changes.give_way.push(GiveWay { call: Arc::clone(&holding.call), to });
            }
        }
    }
}

#[cfg(test)]
mod tests;
