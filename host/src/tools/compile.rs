//! From an admitted component to machine code: in a process of its own, or here.
//!
//! Invariants:
//! - A process is started only if the embedder has said how ([`CompileChild`]), and is dead and reaped before whoever
//!   asked for it is told anything.
//! - No more components are compiled at one time than the host has places for.

mod child;
mod process;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component as Compiled;
use wasmtime::{Engine, Precompiled};

pub use self::child::compile_child;
use super::LoadError;
use super::trusted::{self, Trusted};

/// Address space of a compiler's process (bytes). A component of 2 MB takes about 100 MB.
const ADDRESS_SPACE_BYTES_MAX: u64 = 2 << 30;
/// Processor time of a compiler's process. A component of 2 MB takes about 2 s.
const CPU_MAX: Duration = Duration::from_secs(120);
/// From the start of a compiler's process to its end: longer than its processor time, since it yields to everything else.
const COMPILED_WITHIN: Duration = Duration::from_secs(600);

/// How a host starts a process that compiles for it: a program that calls [`compile_child`] first of all.
///
/// The process is bounded, has no environment, may open no files, runs at a low priority, and is killed when the load
/// that it is for is stopped, or when this process ends in any way. It inherits what the embedder has opened without
/// `O_CLOEXEC`; nothing that Rust's standard library or estop opens is.
#[derive(Clone, Debug)]
pub struct CompileChild {
    program: PathBuf,
    address_space_bytes_max: u64,
    cpu_max: Duration,
    deadline: Duration,
}

impl CompileChild {
    /// This program itself, started again.
    pub fn this_program() -> Self {
        // Also after the file has been replaced by another version.
        Self::program("/proc/self/exe")
    }

    /// Another program. It has to have this version of estop in it.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            address_space_bytes_max: ADDRESS_SPACE_BYTES_MAX,
            cpu_max: CPU_MAX,
            deadline: COMPILED_WITHIN,
        }
    }

    /// Address space of one process (bytes), 2 GiB by default. A component that takes more is refused.
    #[must_use]
    pub fn address_space_bytes_max(mut self, bytes_max: u64) -> Self {
        self.address_space_bytes_max = bytes_max;
        self
    }

    /// Processor time for one component, in whole seconds, 120 by default. One that takes more is refused.
    #[must_use]
    pub fn cpu_max(mut self, cpu_max: Duration) -> Self {
        self.cpu_max = cpu_max;
        self
    }

    /// For one component, by the host's clock; 10 minutes by default. Waiting for a place is not billed.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// Compiles for one host.
pub(crate) struct Compiler {
    places: Semaphore,
    child: Option<CompileChild>,
}

impl Compiler {
    /// Zero places means one for each processor.
    pub(crate) fn new(compiling_max: usize, child: Option<CompileChild>) -> Self {
        let places = match compiling_max {
            0 => thread::available_parallelism().map_or(1, usize::from),
            places => places.min(Semaphore::MAX_PERMITS),
        };
        Self { places: Semaphore::new(places), child }
    }

    /// Waits until there is a place. None: never, nothing closes the semaphore.
    pub(crate) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// How long compiling may take. None: it cannot be stopped, so there is no use in saying.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.child.as_ref().map(|child| child.deadline)
    }

    /// Blocks until it is compiled, or until the switch is thrown and everything that was started for it is gone.
    pub(super) fn compile(&self, engine: &Engine, component: &[u8], switch: &Switch) -> Result<Compiled, LoadError> {
        if switch.is_thrown() {
            return Err(not_any_more());
        }
        let Some(child) = &self.child else {
            return Compiled::from_binary(engine, component).map_err(cannot);
        };
        let written = process::compile(child, engine, component, switch)?;
        let code =
            process::code(&written).filter(|code| Engine::detect_precompiled(code) == Some(Precompiled::Component));
        let code = code.ok_or_else(|| process::no_compiler(child))?;
        trusted::deserialize(engine, &Trusted::OurChild(code)).map_err(cannot)
    }
}

fn cannot(error: wasmtime::Error) -> LoadError {
    LoadError::Compile(format!("{error:#}"))
}

/// Nobody is told: whoever throws the switch has stopped the load.
fn not_any_more() -> LoadError {
    LoadError::Compile("it was stopped".into())
}

/// Ends a compiler's process, whether or not it has been started yet. Neither half waits for anything but the other.
#[derive(Default)]
pub(crate) struct Switch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    thrown: bool,
    process: Option<OwnedFd>,
}

impl Switch {
    /// Kills the process, now or when it is there.
    pub(crate) fn throw(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.thrown = true;
        if let Some(process) = &state.process {
            kill(process);
        }
    }

    fn is_thrown(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).thrown
    }

    /// There is a process now.
    fn set(&self, process: OwnedFd) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.thrown {
            kill(&process);
        }
        state.process = Some(process);
    }
}

/// By a descriptor, which never means another process.
fn kill(process: &OwnedFd) {
    // Fails only for one that is dead and reaped.
    let _ = pidfd_send_signal(process, Signal::KILL);
}
