//! A transaction: what a call has read and written and not yet committed.
//!
//! Reads are remembered with their versions, writes are kept here and seen by later reads of the same call. Nothing is
//! locked and no database transaction is open while a guest runs.
//!
//! A call that is invoked by another one has a transaction nested in that one's: it sees what the other has written, and
//! what it writes becomes a part of it when it succeeds. Nothing of that is durable before the outermost call commits.
//!
//! Invariants:
//! - Rollback is dropping the transaction. There is nothing else to undo, because nothing was done.
//! - A commit passes only if everything that was read is still as it was read, so all of the call happens as if at the
//!   moment of its commit.
//! - After a conflict, or a commit point that was refused, the transaction is lost for good: what the guest believes may
//!   be false, so nothing that it writes afterwards may become durable.

pub(crate) mod keys;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use serde::{Deserialize, Serialize};

use self::keys::Keys;
use crate::call::live::{HostCall, Live};
use crate::call::{CallState, NO_DEADLINE_NS};
use crate::gate::Ticket;
use crate::host::Core;
use crate::log::Job;
use crate::store::{Key, Part, Space, Store, StoreError, Verdict};
use crate::workspace::{Changes, Decision, Fate, Reviewer, StageError, Workspaces};

/// Bounds on what one call may keep.
#[derive(Clone, Debug)]
pub struct StateLimits {
    /// Length of a bucket's name and of a key (bytes).
    pub key_bytes_max: usize,
    /// Length of a value (bytes).
    pub value_bytes_max: usize,
    /// Keys read, listed or written in one transaction, with those nested in it. So for what follows.
    pub keys_max: usize,
    /// Keys and values read in one transaction (bytes, charged as for `space_bytes_max`).
    pub read_bytes_max: u64,
    /// Keys and values written in one transaction (bytes, charged as for `space_bytes_max`).
    pub write_bytes_max: u64,
    /// What one agent may keep with one component (bytes of buckets, keys and values, and 64 for each key), checked at the
    /// commit.
    pub space_bytes_max: u64,
}

impl Default for StateLimits {
    fn default() -> Self {
        Self {
            key_bytes_max: 1 << 10,
            value_bytes_max: 1 << 20,
            keys_max: 100_000,
            read_bytes_max: 64 << 20,
            write_bytes_max: 32 << 20,
            space_bytes_max: 256 << 20,
        }
    }
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Keys written or removed.
    pub writes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Files changed, and names that were made, moved or removed in workspaces.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files: u64,
    /// Bytes of changed files, in whole blocks where only a part was written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub file_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl std::ops::Add for Size {
    type Output = Size;

    fn add(self, other: Size) -> Size {
        Size {
            writes: self.writes + other.writes,
            bytes: self.bytes + other.bytes,
            files: self.files + other.files,
            file_bytes: self.file_bytes + other.file_bytes,
        }
    }
}

/// Why a key-value operation did nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{what} is {bytes} bytes long; the limit is {bytes_max}")]
    TooLong { what: &'static str, bytes: usize, bytes_max: usize },
    #[error("the transaction touches more than {0} keys; commit more often or raise the limit")]
    TooManyKeys(usize),
    #[error("the transaction writes more than {0} bytes; commit more often or raise the limit")]
    TooManyBytes(u64),
    #[error("the transaction reads more than {0} bytes; commit more often or raise the limit")]
    TooManyBytesRead(u64),
    #[error("this call's transaction is lost: {0}")]
    Lost(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why nothing of a call can be committed any more.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("{0}")]
    Conflict(String),
    #[error(transparent)]
    Refused(StoreError),
    #[error("the changes were not approved")]
    Declined,
}

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Committed {
    Durable,
    Interrupted,
    Conflict(String),
    /// The store refused it; nothing was applied.
    Refused(StoreError),
    /// The store cannot say.
    Unknown(String),
    /// Whoever was asked did not agree; nothing was applied.
    Declined,
    /// It is a part of the transaction of the call that invoked this one: nothing was done, and it goes on.
    Nested,
    /// It is durable, and the files could not be changed yet: whoever comes next to the workspace goes on with it.
    NotCarriedOut(String),
}

pub(crate) struct Transaction {
    space: Space,
    limits: Arc<StateLimits>,
    /// Shared with the calls that invoked this one and with those that it invokes, of which one works at a time.
    keys: Arc<Mutex<Keys>>,
    /// It is a part of the transaction of the call that invoked this one.
    is_nested: bool,
    lost: Option<Lost>,
    /// Of transactions of this call that did not become durable.
    discarded: Size,
    live: Arc<Live>,
    /// What is changed in workspaces was handed to a commit, and is counted there.
    files_are_counted: bool,
    /// Files, as the call sees them.
    pub(crate) workspaces: Workspaces,
}

impl Transaction {
    pub(crate) fn new(space: Space, limits: Arc<StateLimits>, live: Arc<Live>, workspaces: Workspaces) -> Self {
        Self {
            keys: Arc::new(Mutex::new(Keys::new(Arc::clone(&limits)))),
            is_nested: false,
            workspaces,
            files_are_counted: false,
            space,
            limits,
            live,
            lost: None,
            discarded: Size::default(),
        }
    }

    /// Makes it a part of that of the call that invokes this one, in which a level was begun for it.
    pub(crate) fn nest_in(&mut self, keys: Arc<Mutex<Keys>>) {
        (self.keys, self.is_nested) = (keys, true);
    }

    pub(crate) fn is_nested(&self) -> bool {
        self.is_nested
    }

    /// For a call that this one invokes.
    pub(crate) fn nest(&self) -> Arc<Mutex<Keys>> {
        self.keys().begin();
        Arc::clone(&self.keys)
    }

    /// That call has ended. If it is not `kept`, it has written nothing.
    pub(crate) fn nested_ended(&mut self, is_kept: bool) {
        let mut keys = self.keys();
        keys.end(is_kept);
        self.live.wrote(keys.size());
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is written and not committed, with what was lost before.
    pub(crate) fn uncommitted(&self) -> Size {
        self.size() + self.discarded
    }

    fn size(&self) -> Size {
        let (files, file_bytes) = if self.files_are_counted { (0, 0) } else { self.workspaces.changes() };
        Size { files, file_bytes, ..self.keys().size() }
    }

    /// Why nothing of this call can be committed any more.
    pub(crate) fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    pub(crate) fn bucket(&self, name: &str) -> Result<Arc<str>, StateError> {
        self.short("the name of the bucket", name.len(), self.limits.key_bytes_max)?;
        Ok(name.into())
    }

    pub(crate) async fn get(
        &mut self,
        store: &dyn Store,
        bucket: &Arc<str>,
        key: &str,
    ) -> Result<Option<Arc<[u8]>>, StateError> {
        let key = self.key(bucket, key)?;
        if let Some(known) = self.keys().known(&self.space, &key)? {
            return Ok(known);
        }
        let read = {
            let _in = self.live.enter(HostCall::Read);
            store.get(&self.space, &key).await?
        };
        let value = read.1.clone();
        self.keys().was_read(&self.space, key, read)?;
        Ok(value)
    }

    pub(crate) fn set(&mut self, bucket: &Arc<str>, key: &str, value: Option<Vec<u8>>) -> Result<(), StateError> {
        let key = self.key(bucket, key)?;
        self.short("the value", value.as_ref().map_or(0, Vec::len), self.limits.value_bytes_max)?;
        let mut keys = self.keys();
        keys.set(&self.space, key, value.map(Into::into))?;
        self.live.wrote(keys.size());
        Ok(())
    }

    /// Up to `keys_max` keys after `after`, in order, as this transaction sees them; and whether there are more.
    pub(crate) async fn list(
        &mut self,
        store: &dyn Store,
        bucket: &Arc<str>,
        after: Option<&str>,
        keys_max: usize,
    ) -> Result<(Vec<String>, bool), StateError> {
        self.usable()?;
        let room = self.keys().room_to_list(&self.space, bucket)?;
        if let Some(room) = room {
            let _in = self.live.enter(HostCall::List);
            let listing = store.list(&self.space, bucket, room).await?;
            self.keys().was_listed(&self.space, bucket, listing);
        }
        Ok(self.keys().page(&self.space, bucket, after, keys_max))
    }

    /// Makes what was written so far durable and begins anew. `last`: the call ends with it.
    pub(crate) async fn commit(&mut self, core: &Core, call: &Arc<CallState>, last: bool) -> Committed {
        if self.is_nested {
            return Committed::Nested;
        }
        match &self.lost {
            None => {}
            Some(Lost::Conflict(what)) => return Committed::Conflict(what.clone()),
            Some(Lost::Refused(error)) => return Committed::Refused(error.clone()),
            Some(Lost::Declined) => return Committed::Declined,
        }
        let staged = if self.workspaces.is_empty() { Ok(Vec::new()) } else { self.make_ready(core, call).await };
        let size = self.size();
        let parts = self.take();
        self.files_are_counted = true;
        let committed = match staged {
            Ok(workspaces) if parts.is_empty() && workspaces.is_empty() => {
                let open = if last { call.gate.settle().is_ok() } else { !call.gate.is_flagged() };
                if open {
                    // Nothing has to be decided for what was only read.
                    self.workspaces.queued();
                    Committed::Durable
                } else {
                    Committed::Interrupted
                }
            }
            Ok(workspaces) => {
                call.commits.begin(size);
                match call.gate.queue() {
                    Ok(()) => {
                        self.workspaces.queued();
                        submit(core, Job { call: Arc::clone(call), parts, workspaces, last }).await
                    }
                    Err(_) => Committed::Interrupted,
                }
            }
            Err(failed) => {
                call.commits.begin(size);
                failed
            }
        };
        let committed = if self.workspaces.is_empty() { committed } else { self.finish(core, committed).await };
        match &committed {
            // Whoever goes on begins anew.
            Committed::Durable => self.files_are_counted = false,
            Committed::Unknown(_) | Committed::NotCarriedOut(_) | Committed::Nested => {}
            Committed::Conflict(what) => self.lose(call, Lost::Conflict(what.clone())),
            Committed::Refused(error) => self.lose(call, Lost::Refused(error.clone())),
            Committed::Declined => self.lose(call, Lost::Declined),
            Committed::Interrupted => self.discard(call),
        }
        committed
    }

    /// Makes changes of files ready. If it cannot be, the commit is over.
    async fn make_ready(&mut self, core: &Core, call: &Arc<CallState>) -> Result<Vec<Decision>, Committed> {
        let over = |error| match error {
            StageError::Conflict(what) => Committed::Conflict(what),
            StageError::Stopped => Committed::Interrupted,
            StageError::Failed(why) => Committed::Refused(StoreError::Workspace(why)),
        };
        if let Some(review) = self.workspaces.reviewer().filter(|_| self.size() != Size::default()) {
            let changes = self.workspaces.describe(&core.io.handle).await.map_err(over)?;
            match reviewed(core, call, &review, changes).await {
                Some(true) => {}
                Some(false) => return Err(Committed::Declined),
                None => return Err(Committed::Interrupted),
            }
        }
        let stopped = Arc::clone(call);
        let staged = self.workspaces.stage(&core.store, &core.io.handle, move || stopped.gate.is_flagged()).await;
        staged.map_err(over)
    }

    async fn finish(&mut self, core: &Core, committed: Committed) -> Committed {
        let fate = match committed {
            Committed::Durable => Fate::Durable,
            Committed::Unknown(_) => Fate::Unknown,
            _ => Fate::Not,
        };
        let finished = self.workspaces.finish(&core.store, &core.io.handle, fate).await;
        match (committed, finished) {
            (Committed::Durable, Err(error)) => Committed::NotCarriedOut(error.to_string()),
            (committed, _) => committed,
        }
    }

    /// What has to be seen to when the call ends in the middle of a commit. `ticket`: what became of that.
    pub(crate) async fn end(&mut self, core: &Core, ticket: Ticket) {
        let fate = match ticket {
            Ticket::Durable => Fate::Durable,
            Ticket::Failed => Fate::Unknown,
            _ => Fate::Not,
        };
        if let Err(error) = self.workspaces.finish(&core.store, &core.io.handle, fate).await {
            tracing::error!(%error, "files of a call that was stopped are not as they were decided to be");
        }
    }

    fn lose(&mut self, call: &CallState, lost: Lost) {
        self.lost = Some(lost);
        self.discard(call);
    }

    fn discard(&mut self, call: &CallState) {
        self.discarded = self.discarded + call.commits.pending();
        call.commits.begin(Size::default());
    }

    fn take(&mut self) -> Vec<Part> {
        self.live.wrote(Size::default());
        self.keys().take()
    }

    fn key(&self, bucket: &Arc<str>, key: &str) -> Result<Key, StateError> {
        self.usable()?;
        self.short("the key", key.len(), self.limits.key_bytes_max)?;
        Ok(Key { bucket: Arc::clone(bucket), key: key.into() })
    }

    fn usable(&self) -> Result<(), StateError> {
        self.lost.as_ref().map_or(Ok(()), |lost| Err(StateError::Lost(lost.to_string())))
    }

    fn short(&self, what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), StateError> {
        if bytes > bytes_max { Err(StateError::TooLong { what, bytes, bytes_max }) } else { Ok(()) }
    }
}

/// Whether somebody agrees to the changes; `None`: the call was stopped meanwhile. Their time is not billed to the deadline.
async fn reviewed(core: &Core, call: &CallState, review: &Reviewer, changes: Changes) -> Option<bool> {
    let (began_ns, deadline_ns) = (core.now_ns(), call.deadline_ns.load(Ordering::Acquire));
    call.deadline_ns.store(NO_DEADLINE_NS, Ordering::Release);
    let agreed = AssertUnwindSafe(async { review(changes).await }).catch_unwind();
    let asked = pin!(call.asked());
    let agreed = match select(pin!(agreed), asked).await {
        Either::Left((agreed, _)) => Some(agreed.unwrap_or_else(|_| {
            tracing::error!(call = %call.id, "whoever reviews changes panicked; that is a no");
            false
        })),
        Either::Right(_) => None,
    };
    if deadline_ns < NO_DEADLINE_NS {
        let deadline_ns = deadline_ns.saturating_add(core.now_ns().saturating_sub(began_ns));
        call.deadline_ns.store(deadline_ns.min(NO_DEADLINE_NS - 1), Ordering::Release);
        core.inventory.look_at(call.slot, deadline_ns);
    }
    agreed
}

/// Hands a commit to the store, and waits for what becomes of it. The ticket is queued.
async fn submit(core: &Core, job: Job) -> Committed {
    let call = &Arc::clone(&job.call);
    // The end of a call that is alone: no guest needs this worker, and an interrupt finds the call suspended.
    let here = job.last && core.workers.count() > 1 && core.inventory.live() == 1;
    let submitted = if here { core.writer.write_here(job) } else { core.log.commit(job) };
    if let Err(error) = submitted {
        call.gate.resolve(Ticket::None);
        return Committed::Refused(error);
    }
    let ticket = poll_fn(|cx| {
        call.waker.register(cx.waker());
        call.gate.awaited().map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    match (ticket, call.take_verdict()) {
        (Ticket::Durable, _) => Committed::Durable,
        (Ticket::Failed, Some(Verdict::Refused(error))) => Committed::Unknown(error.to_string()),
        (Ticket::Failed, _) => Committed::Unknown("the store could not say whether the commit is durable".into()),
        (_, Some(Verdict::Conflict(what))) => Committed::Conflict(what),
        (_, Some(Verdict::Refused(error))) => Committed::Refused(error),
        _ => Committed::Interrupted,
    }
}

/// Waits until a decided commit is durable or has failed: the one thing a stopped call still waits for.
pub(crate) async fn decided(call: &CallState) -> Ticket {
    poll_fn(|cx| {
        call.waker.register(cx.waker());
        match call.gate.ticket() {
            Ticket::Decided => Poll::Pending,
            ticket => Poll::Ready(ticket),
        }
    })
    .await
}
