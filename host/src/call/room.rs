//! Room for sandboxes: who is let in, who waits, and who has to give way.
//!
//! Invariants:
//! - A call has places from when it is let in until its [`Place`] is dropped, and a turn in the queue until then. So a
//!   call that is stopped while it waits takes nothing with it, at whatever moment.
//! - The lock is held for a short computation. No interrupt is delivered, no waker called and nothing awaited under it, and
//!   interrupts never take it.

mod queue;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use self::queue::{Changes, Entered, Queue, Ticket};
use super::CallState;
use super::child::ancestors;
use crate::host::Core;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt};

/// What was told to give way and has not done so after this long is not waited for any longer: somebody else has to, if
/// there is one.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(crate) struct Room {
    queue: Mutex<Queue>,
}

/// The queue is full of calls that are as urgent as this one or more.
pub(super) struct Full {
    /// How many wait.
    waiting: usize,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting;
        write!(
            f,
            "there is no room, and {waiting} calls that are as urgent wait for some already: try again later, or with a \
             higher priority where the host grants one, or on a host with a larger `queue_max` or `sandboxes_max`"
        )
    }
}

/// A turn in the queue, and then places in the room.
pub(super) struct Place<'a> {
    core: &'a Core,
    had: Had,
    /// There was no room at first: what held then need not hold now.
    pub(super) has_waited: bool,
}

/// From whom the places are.
enum Had {
    Own(Ticket),
    /// Kept for it by a call above it.
    Kept(Arc<CallState>, u32),
}

impl Room {
    pub(crate) fn new(places: u32, waiting_max: usize) -> Self {
        Self { queue: Mutex::new(Queue::new(places, waiting_max)) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Waits for room, with so much more for the calls that this one invokes. Dropping the future gives the turn up.
    pub(super) async fn let_in(&self, call: &Arc<CallState>, places: u32, kept: u32) -> Result<Place<'_>, Full> {
        let now_ns = self.now_ns();
        let entered = self.room.queue().enter(call, places.saturating_add(kept), now_ns);
        let Entered { ticket, mut has_room, changes } = entered.map_err(|waiting| Full { waiting })?;
        let place = Place { core: self, had: Had::Own(ticket), has_waited: !has_room };
        self.carry_out(changes);
        while !has_room {
            let let_in = poll_fn(|cx| match self.room.queue().poll(ticket, cx.waker()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            has_room = tokio::time::timeout(GIVES_WAY_WITHIN, let_in).await.is_ok();
            if !has_room {
                let now_ns = self.now_ns();
                let changes = self.room.queue().look_again(now_ns);
                self.carry_out(changes);
            }
        }
        call.kept.keep(kept);
        Ok(place)
    }

    /// Room for a call that another one has invoked, if there is some now.
    pub(super) fn let_in_at_once(&self, call: &Arc<CallState>, places: u32) -> Option<Place<'_>> {
        let above = ancestors(call).find(|above| above.kept.take(places));
        let had = match above {
            Some(above) => Had::Kept(Arc::clone(above), places),
            None => Had::Own(self.room.queue().enter_at_once(call, places)?),
        };
        Some(Place { core: self, had, has_waited: false })
    }

    /// Tells those who have been let in, and stops those who have to give way. The queue is not locked here.
    fn carry_out(&self, changes: Changes) {
        for way in changes.give_way {
            let (from, to) = (way.call.priority, way.to.priority);
            let reason =
                format!("{} of agent {} needs its place: priority {to} against {from}", way.to.id, way.to.agent);
            self.interrupt_call(&way.call, Interrupt::new(Cause::Priority, HOST_ACTOR).reason(reason));
        }
        changes.let_in.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let ticket = match &self.had {
            Had::Own(ticket) => *ticket,
            Had::Kept(above, places) => return above.kept.give_back(*places),
        };
        // No clock where nobody waits: most calls meet no others here.
        let leaving = |queue: &mut Queue| queue.leave(ticket, || self.core.now_ns());
        let changes = leaving(&mut self.core.room.queue());
        self.core.carry_out(changes);
    }
}
