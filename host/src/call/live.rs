//! What can be seen of a call while it runs, by whoever has to decide whether to stop it.
//!
//! Invariant: written by the call's worker, read by anybody; never needed to stop the call.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Effect, EffectState};
use crate::budget::Account;
use crate::ids::CallId;
use crate::process::Processes;
use crate::transaction::Size;
use crate::workspace::Tally;

const NEVER_NS: u64 = u64::MAX;

/// A function of the host, or a step of a load, that may take long.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum HostCall {
    Read = 1,
    List = 2,
    Commit = 3,
    LoadRead = 4,
    LoadWait = 5,
    LoadCompile = 6,
    LoadDescribe = 7,
    Files = 8,
    Program = 9,
    Http = 10,
    Invoke = 11,
}

pub(crate) struct Live {
    /// On the host's monotonic clock.
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "only operators look at it"))]
    pub(crate) registered_ns: u64,
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "only operators look at it"))]
    pub(crate) fuel_granted: u64,
    fuel_used: AtomicU64,
    /// Calls of the tree that begins here.
    invoked: AtomicUsize,
    /// Of the agent, if it has a budget.
    pub(crate) account: Option<Arc<Account>>,
    turn_is_over: AtomicBool,
    pub(crate) memory_bytes: AtomicU64,
    writes: AtomicU64,
    bytes: AtomicU64,
    /// Changes in workspaces.
    pub(crate) tally: Arc<Tally>,
    /// What it may use, in words.
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "only operators look at it"))]
    pub(crate) grants: Vec<String>,
    host_call: AtomicU8,
    /// Made when it starts a program.
    processes: OnceLock<Processes>,
    progress_ns: AtomicU64,
    effects: Mutex<Vec<Begun>>,
    /// What the call was asked, while it runs: the text that the guest gets. Bounded by the call's limits.
    #[cfg(feature = "control")]
    input: Mutex<Option<Arc<String>>>,
    /// The program that it is, if it is no guest.
    #[cfg(feature = "cli")]
    pub(crate) program: Option<Arc<super::program::ProgramState>>,
}

/// An effect, and whether it is known to have happened.
struct Begun {
    name: String,
    /// The call that did it, if it was one that this one has invoked.
    by: Option<CallId>,
    performed: Arc<AtomicBool>,
}

impl Live {
    pub(crate) fn new(registered_ns: u64, fuel_granted: u64) -> Self {
        Self {
            registered_ns,
            fuel_granted,
            fuel_used: AtomicU64::new(0),
            account: None,
            invoked: AtomicUsize::new(0),
            turn_is_over: AtomicBool::new(false),
            memory_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            tally: Arc::default(),
            grants: Vec::new(),
            host_call: AtomicU8::new(0),
            processes: OnceLock::new(),
            progress_ns: AtomicU64::new(NEVER_NS),
            effects: Mutex::default(),
            #[cfg(feature = "control")]
            input: Mutex::default(),
            #[cfg(feature = "cli")]
            program: None,
        }
    }

    /// What it may use, in words.
    pub(super) fn granted(self, grants: Vec<String>) -> Self {
        Self { grants, ..self }
    }

    /// What the call was asked, or `None` once it has ended: whoever keeps a handle does not keep that.
    #[cfg(feature = "control")]
    pub(crate) fn set_input(&self, input: Option<Arc<String>>) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = input;
    }

    #[cfg(feature = "control")]
    pub(crate) fn input(&self) -> Option<Arc<String>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something is about to leave the sandbox, unless there has been too much already.
    #[cfg(feature = "cli")]
    pub(crate) fn add_own_effect(&self, name: String, effects_max: usize) -> Option<Arc<AtomicBool>> {
        let performed = Arc::new(AtomicBool::new(false));
        self.add_effect_of(None, name, Arc::clone(&performed), effects_max).then_some(performed)
    }

    /// As `add_own_effect`, also of a call that this one has invoked. Whether there was room.
    pub(super) fn add_effect_of(
        &self,
        by: Option<CallId>,
        name: String,
        performed: Arc<AtomicBool>,
        effects_max: usize,
    ) -> bool {
        let mut effects = self.all_effects();
        let has_room = effects.len() < effects_max;
        if has_room {
            effects.push(Begun { name, by, performed });
        }
        has_room
    }

    pub(crate) fn effects(&self) -> Vec<Effect> {
        let state = |performed: &AtomicBool| match performed.load(Ordering::Acquire) {
            true => EffectState::Performed,
            false => EffectState::Unknown,
        };
        let effect =
            |Begun { name, by, performed }: &Begun| Effect { name: name.clone(), call: *by, state: state(performed) };
        self.all_effects().iter().map(effect).collect()
    }

    fn all_effects(&self) -> MutexGuard<'_, Vec<Begun>> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest gives way to others of its worker, whatever fuel it has.
    pub(crate) fn gives_way(&self) {
        self.turn_is_over.store(true, Ordering::Relaxed);
    }

    /// Whether it has, since this was asked last.
    pub(super) fn has_given_way(&self) -> bool {
        self.turn_is_over.swap(false, Ordering::Relaxed)
    }

    /// To be charged to this account.
    pub(super) fn charged(self, account: Option<Arc<Account>>) -> Self {
        Self { account, ..self }
    }

    /// Whether the agent's budget has room for so many bytes of a request's or a response's body; then they are charged.
    pub(crate) fn may_transfer(&self, bytes: usize) -> bool {
        self.account.as_ref().is_none_or(|account| account.use_request_bytes(bytes as u64))
    }

    /// Units that were seen so far while it runs.
    pub(super) fn fuel_seen(&self) -> u64 {
        self.fuel_used.load(Ordering::Relaxed)
    }

    /// The guest is known to have used so much by now. What was not seen of it before.
    pub(super) fn saw_fuel(&self, used: u64) -> u64 {
        let before = self.fuel_used.fetch_max(used, Ordering::Relaxed);
        used.saturating_sub(before)
    }

    /// One more call in the tree of this one, unless there were so many.
    pub(super) fn may_invoke(&self, children_max: usize) -> bool {
        let one_more = |invoked: usize| (invoked < children_max).then_some(invoked + 1);
        self.invoked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// By the call's worker, and nobody else.
    pub(super) fn used_fuel(&self, fuel: u64) {
        self.fuel_used.store(self.fuel_used.load(Ordering::Relaxed) + fuel, Ordering::Relaxed);
    }

    /// See `call/meter.rs`.
    #[cfg(feature = "control")]
    pub(crate) fn fuel_used(&self) -> u64 {
        self.fuel_used.load(Ordering::Relaxed).min(self.fuel_granted)
    }

    /// What is written and not committed.
    pub(crate) fn wrote(&self, size: Size) {
        self.writes.store(size.writes, Ordering::Relaxed);
        self.bytes.store(size.bytes, Ordering::Relaxed);
    }

    #[cfg(feature = "control")]
    pub(crate) fn uncommitted(&self) -> Size {
        let (writes, bytes) = (self.writes.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let (files, file_bytes) = self.tally.get();
        Size { writes, bytes, files, file_bytes }
    }

    pub(crate) fn progressed(&self, now_ns: u64) {
        self.progress_ns.store(now_ns, Ordering::Relaxed);
    }

    /// When the tool last said how far it is.
    #[cfg(feature = "control")]
    pub(crate) fn progress_ns(&self) -> Option<u64> {
        Some(self.progress_ns.load(Ordering::Relaxed)).filter(|at_ns| *at_ns != NEVER_NS)
    }

    /// The programs that it has started.
    pub(crate) fn processes(&self) -> &Processes {
        self.processes.get_or_init(Processes::default)
    }

    /// The same, if it has ever started one.
    pub(crate) fn any_processes(&self) -> Option<&Processes> {
        self.processes.get()
    }

    /// Until the answer is dropped, the call is in this function.
    pub(crate) fn enter(self: &Arc<Self>, host_call: HostCall) -> impl Drop + Send + use<> {
        self.host_call.store(host_call as u8, Ordering::Relaxed);
        InHostCall(Arc::clone(self))
    }

    #[cfg(feature = "control")]
    pub(crate) fn host_call(&self) -> Option<&'static str> {
        match self.host_call.load(Ordering::Relaxed) {
            1 => Some("wasi:keyvalue: read"),
            2 => Some("wasi:keyvalue: list-keys"),
            3 => Some("estop:tool/call: commit"),
            4 => Some("load: read"),
            5 => Some("load: wait for a compiler"),
            6 => Some("load: compile"),
            7 => Some("load: describe"),
            8 => Some("wasi:filesystem"),
            9 => Some("estop:tool/process"),
            10 => Some("wasi:http"),
            11 => Some("estop:tool/call: invoke"),
            _ => None,
        }
    }
}

struct InHostCall(Arc<Live>);

impl Drop for InHostCall {
    fn drop(&mut self) {
        self.0.host_call.store(0, Ordering::Relaxed);
    }
}
