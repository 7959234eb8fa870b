//! Programs that tools start: each a tree of processes under a supervisor of its own.
//!
//! Invariants:
//! - A program is one of its call's before anything is started for it, so that whoever stops the call meets it.
//! - A call is released when nothing of its programs is left, and no earlier. What nobody can verify is said.
//! - A program has its supervisor beside it, which kills all of the tree when this process ends in any way.

mod folder;
mod order;
mod running;
mod supervisor;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};

pub(crate) use self::running::{Streams, reserve, start};
pub use self::supervisor::process_supervisor;

/// Programs of one host at one time: each has five descriptors and two processes of its own, and others need some as well.
const HOST_PROGRAMS_MAX: usize = 64;
/// Programs of one call at one time.
const CALL_PROGRAMS_MAX: usize = 16;

/// What keeps a program and everything that it starts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Containment {
    /// A PID namespace: the kernel kills all of it at once, and tells when it is gone.
    Namespace,
    /// A control group: the kernel kills all of it, and tells when nobody is in it.
    Cgroup,
    /// Its supervisor adopts whoever loses their parent, and looks until nobody is left.
    Subreaper,
    /// Nothing: only the program itself and its process group are killed.
    Unverified,
}

impl Containment {
    const ALL: [Self; 4] = [Self::Namespace, Self::Cgroup, Self::Subreaper, Self::Unverified];

    /// As the log and `estop show` have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Subreaper => "subreaper",
            Self::Unverified => "unverified",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|containment| containment.word() == word)
    }
}

/// How a host starts the processes that supervise programs: a program that calls [`process_supervisor`] first of all.
///
/// Without one no tool can start a program.
#[derive(Clone, Debug)]
pub struct ProcessSupervisor {
    program: PathBuf,
    containments: Vec<Containment>,
}

impl ProcessSupervisor {
    /// This program itself, started again.
    pub fn this_program() -> Self {
        // Also after the file has been replaced by another version.
        Self::program("/proc/self/exe")
    }

    /// Another program. It has to have this version of estop in it.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), containments: Containment::ALL.to_vec() }
    }

    /// Only these are tried, in the order of their strength. All of them by default.
    #[must_use]
    pub fn only(mut self, containments: impl IntoIterator<Item = Containment>) -> Self {
        self.containments = containments.into_iter().collect();
        self.containments.sort_unstable();
        self
    }
}

/// Starts programs for one host.
pub(crate) struct Launcher {
    supervisor: Option<ProcessSupervisor>,
    /// What has turned out not to be possible on this machine.
    impossible: [AtomicBool; Containment::ALL.len()],
    places: Arc<Semaphore>,
}

impl Launcher {
    pub(crate) fn new(supervisor: Option<ProcessSupervisor>) -> Self {
        Self { supervisor, impossible: Default::default(), places: Arc::new(Semaphore::new(HOST_PROGRAMS_MAX)) }
    }
}

/// Why a guest's program did not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Limit(String),
    #[error("{0}")]
    Failed(String),
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// Where a program is.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Starting,
    Running,
    /// Nothing of it is left.
    Gone(Result<Exit, ProcessError>),
}

/// What somebody wants of a program. The more urgent counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Wish {
    None = 0,
    Terminate = 1,
    Kill = 2,
}

/// One program of a call, from before its start until nothing of it is left.
pub(crate) struct Tracked {
    /// With its arguments, cut to a bound.
    #[cfg_attr(not(feature = "control"), expect(dead_code, reason = "only operators look at it"))]
    pub(crate) shown: String,
    /// Zero: not known.
    pid: AtomicU32,
    phase: watch::Sender<Phase>,
    wish: AtomicU8,
    wished: Notify,
    /// Why the host has ended it, if it has.
    reason: Mutex<Option<ProcessError>>,
    trouble: Mutex<Option<String>>,
}

impl Tracked {
    pub(crate) fn new(shown: String) -> Self {
        Self {
            shown,
            pid: AtomicU32::new(0),
            phase: watch::Sender::new(Phase::Starting),
            wish: AtomicU8::new(Wish::None as u8),
            wished: Notify::new(),
            reason: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    pub(crate) fn wish(&self, wish: Wish) {
        self.wish.fetch_max(wish as u8, Ordering::AcqRel);
        self.wished.notify_one();
    }

    /// Resolves once it is to be killed.
    async fn killed(&self) {
        while self.wished() != Wish::Kill {
            self.wished.notified().await;
        }
    }

    fn wished(&self) -> Wish {
        match self.wish.load(Ordering::Acquire) {
            0 => Wish::None,
            1 => Wish::Terminate,
            _ => Wish::Kill,
        }
    }

    /// Ends it, and has whoever waits for it told why. The first reason counts.
    pub(crate) fn end_for(&self, why: ProcessError) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.wish(Wish::Kill);
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Gone(_))
    }

    /// Resolves when nothing of it is left.
    pub(crate) async fn gone(&self) -> Result<Exit, ProcessError> {
        let mut phase = self.phase.subscribe();
        let gone = phase.wait_for(|phase| matches!(phase, Phase::Gone(_))).await;
        match gone.as_deref() {
            Ok(Phase::Gone(exit)) => exit.clone(),
            // The sender is in `self`.
            _ => Err(ProcessError::Failed("nobody knows how the program ended".into())),
        }
    }

    #[cfg(feature = "control")]
    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    fn is_left(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What keeps it from being verified that nothing is left.
    #[cfg(feature = "control")]
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The programs of one call.
#[derive(Default)]
pub(crate) struct Processes {
    all: Mutex<Vec<Arc<Tracked>>>,
    /// One more than the place of the weakest containment that was used; zero: no program was started.
    weakest: AtomicU8,
}

impl Processes {
    fn add(&self, tracked: &Arc<Tracked>) -> Result<(), ProcessError> {
        let mut all = self.lock();
        all.retain(|other| !other.is_gone());
        if all.len() >= CALL_PROGRAMS_MAX {
            let why = format!("the call has {CALL_PROGRAMS_MAX} programs running and may have no more at one time");
            return Err(ProcessError::Limit(why));
        }
        all.push(Arc::clone(tracked));
        Ok(())
    }

    fn contained_by(&self, containment: Containment) {
        self.weakest.fetch_max(containment as u8 + 1, Ordering::AcqRel);
    }

    /// The weakest of what its programs were contained by; `None` if there were none.
    pub(crate) fn containment(&self) -> Option<Containment> {
        let place = usize::from(self.weakest.load(Ordering::Acquire)).checked_sub(1)?;
        Containment::ALL.get(place).copied()
    }

    /// Those that are not gone.
    pub(crate) fn running(&self) -> Vec<Arc<Tracked>> {
        self.lock().iter().filter(|tracked| !tracked.is_gone()).cloned().collect()
    }

    /// Kills what is there, and resolves when nothing is left. Without a bound of its own: until then the call is not
    /// released, and is said to be stopping, or unconfirmed.
    pub(crate) async fn end(&self) {
        let all = self.running();
        all.iter().for_each(|tracked| tracked.wish(Wish::Kill));
        for tracked in all {
            // How it ended is told by then, or nobody asks any more.
            let _ = tracked.gone().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tracked>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
