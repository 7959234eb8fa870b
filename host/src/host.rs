//! The host: owns the parts and gives the way in.
//!
//! Invariant: everything that an embedder did not ask for is off. A host opens no socket and installs no signal handler,
//! logger or panic hook of its own. Its threads end when the last handle on it, an agent or a call is dropped and the last
//! call is released.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use tokio::runtime;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::agent::Agent;
use crate::call::CallLimits;
use crate::clock::{Clock, SystemClock, nanos};
#[cfg(feature = "control")]
use crate::control::{Control, HostKind, PlaceError};
use crate::engine::{self, Ticker};
use crate::home::Home;
use crate::hostcalls;
use crate::ids::{HaltId, HostId};
use crate::interrupt::halts::{Halt, HaltError, HaltScope, Halts};
use crate::interrupt::preempter::Preempter;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt, Interruption, Scope};
use crate::inventory::Inventory;
use crate::log::writer::{Pen, Writer};
use crate::log::{Entry, Log, alternate};
use crate::observer::{Observer, Observers};
use crate::sandbox::CallCtx;
use crate::secret::SecretError;
use crate::store::memory::Memory;
use crate::store::{Store, StoreError};
use crate::tools::cache::Cache;
use crate::tools::{Component, LoadError, Source, Tools};
use crate::workers::Workers;

/// Threads that host functions may block, for example with files. More wait.
const BLOCKING_THREADS_MAX: usize = 16;

/// What one host may use.
#[derive(Clone, Debug)]
pub struct HostLimits {
    /// Calls that run or wait at one time. More are refused.
    pub calls_max: usize,
    /// Sandboxes that exist at one time; more calls wait. Reserves about 4 GiB of address space, not memory, for each.
    pub sandboxes_max: u32,
    /// The largest linear memory that any call can be granted (bytes).
    pub memory_bytes_max: usize,
    /// The largest table of a guest (elements).
    pub table_elements_max: usize,
    /// The largest component (bytes).
    pub component_bytes_max: usize,
    /// Components loaded at one time.
    pub components_max: usize,
    /// Tools in one component.
    pub tools_max: usize,
    /// Guest worker threads; zero means one for each processor.
    pub workers: usize,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            calls_max: 16_384,
            sandboxes_max: 1_000,
            memory_bytes_max: 64 << 20,
            table_elements_max: 20_000,
            component_bytes_max: 64 << 20,
            components_max: 256,
            tools_max: 128,
            workers: 0,
        }
    }
}

/// A host could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Wasmtime does not accept the configuration on this machine.
    #[error("cannot set up the WebAssembly engine (is the address space limited?): {0:#}")]
    Engine(wasmtime::Error),
    /// An embedder's interface could not be linked.
    #[error("cannot link a host interface: {0:#}")]
    Interface(wasmtime::Error),
    /// A thread could not be started.
    #[error("cannot start a thread of the host: {0}")]
    Thread(#[from] std::io::Error),
    /// The store cannot be written.
    #[error("cannot begin: {0}")]
    Store(#[from] StoreError),
    /// The cache's key cannot be used.
    #[error(transparent)]
    Cache(#[from] SecretError),
    /// Operators could not reach it.
    #[cfg(feature = "control")]
    #[error(transparent)]
    Place(#[from] PlaceError),
}

type Interface = Box<dyn FnOnce(&mut Linker<CallCtx>) -> wasmtime::Result<()>>;

/// Sets up a [`Host`].
pub struct HostBuilder {
    store: Arc<dyn Store>,
    cache: Option<Home>,
    clock: Arc<dyn Clock>,
    observers: Vec<Box<dyn Observer>>,
    interfaces: Vec<Interface>,
    shared: Shared,
    limits: HostLimits,
    call_limits: CallLimits,
    #[cfg(feature = "control")]
    offered: Option<HostKind>,
}

/// Values that an embedder shares with its host functions, by type.
pub(crate) type Shared = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

impl HostBuilder {
    /// Where state and log live. [`Memory`] by default.
    #[must_use]
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// As `store`, for one that the embedder keeps a handle on.
    #[must_use]
    pub fn store_arc(mut self, store: Arc<dyn Store>) -> Self {
        self.store = store;
        self
    }

    /// Keeps compiled components in this home, so that the next process need not compile them. Nowhere by default.
    #[must_use]
    pub fn cache(mut self, home: &Home) -> Self {
        self.cache = Some(home.clone());
        self
    }

    /// Where the time comes from. The operating system by default.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Is told what the log is told; may be called several times.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Grants every component an interface of the embedder's own. Its host functions get [`CallCtx`]. With what
    /// [`wasmtime::component::bindgen!`] makes:
    /// `.interface(|linker| my::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx))`.
    #[must_use]
    pub fn interface(
        mut self,
        add_to_linker: impl FnOnce(&mut Linker<CallCtx>) -> wasmtime::Result<()> + 'static,
    ) -> Self {
        self.interfaces.push(Box::new(add_to_linker));
        self
    }

    /// A value for host functions, found again by its type with [`CallCtx::shared`].
    #[must_use]
    pub fn share<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.shared.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// Lets operators find the host, look at what it runs, stop and halt it from other processes. Nobody can by default.
    #[cfg(feature = "control")]
    #[must_use]
    pub fn offer(mut self, kind: HostKind) -> Self {
        self.offered = Some(kind);
        self
    }

    /// What the host may use.
    #[must_use]
    pub fn limits(mut self, limits: HostLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What a call gets that does not ask for less.
    #[must_use]
    pub fn call_limits(mut self, limits: CallLimits) -> Self {
        self.call_limits = limits;
        self
    }

    /// Starts the host's threads.
    ///
    /// # Errors
    /// Wasmtime refuses the configuration, an interface does not link, or a thread cannot be started.
    pub fn build(mut self) -> Result<Host, BuildError> {
        // Beyond the host's own limit `memory.grow` would answer -1, and nobody would be told why the call ended.
        self.call_limits.memory_bytes_max = self.call_limits.memory_bytes_max.min(self.limits.memory_bytes_max);
        let workers = match self.limits.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let cache = self.cache.map(|home| Cache::open(home.path(), home.cache())).transpose()?;
        let engine = engine::new(&self.limits, workers).map_err(BuildError::Engine)?;
        let mut linker = Linker::new(&engine);
        hostcalls::add_to_linker(&mut linker).map_err(BuildError::Engine)?;
        for interface in self.interfaces {
            interface(&mut linker).map_err(BuildError::Interface)?;
        }
        let io = IoThread::start()?;
        let calls_max = self.limits.calls_max.max(1);
        let inventory = Arc::new(Inventory::new(calls_max));
        let wall = Arc::clone(&self.clock);
        let wall_ns = move || wall.wall().duration_since(UNIX_EPOCH).map_or(0, nanos);
        let log = Arc::new(Log::new(calls_max, Box::new(wall_ns)));
        let id = HostId::generate();
        self.store.attach(id)?;
        alternate::start(&log, id, self.store.alternate(id))?;
        let writer = Arc::new(Writer {
            log: Arc::clone(&log),
            store: Arc::clone(&self.store),
            observers: Observers::start(self.observers)?,
            host: id,
            space_bytes_max: self.call_limits.state.space_bytes_max,
            pen: Mutex::new(Pen::new()),
        });
        // After the store has made its home, and before anything can be let in.
        let halts = Halts::open(self.store.home());
        let core = Arc::new(Core {
            halts,
            #[cfg(feature = "control")]
            control: std::sync::OnceLock::new(),
            preempter: Preempter::start(engine.weak(), Arc::clone(&inventory), calls_max)?,
            workers: Workers::start(workers, &io.handle)?,
            room: Semaphore::new(self.limits.sandboxes_max as usize),
            state_limits: Arc::new(self.call_limits.state.clone()),
            tools: Tools::new(linker),
            cache,
            ticker: Ticker::new(),
            closing: AtomicBool::new(false),
            shared: Arc::new(self.shared),
            store: self.store,
            clock: self.clock,
            limits: self.limits,
            call_limits: self.call_limits,
            engine,
            inventory,
            log,
            writer: Arc::clone(&writer),
            io,
            id,
        });
        core.ticker.start(Arc::downgrade(&core))?;
        writer.start()?;
        Halts::start(Arc::downgrade(&core))?;
        #[cfg(feature = "control")]
        if let Some(kind) = self.offered {
            // Nobody else has the core yet.
            let _ = core.control.set(Control::start(&core, kind)?);
        }
        Ok(Host { open: Arc::new(Open { core }) })
    }
}

/// Runs tools, and stops them. Cloning gives another handle on the same host; when the last one is dropped, whatever
/// still runs is interrupted with cause `shutdown`.
#[derive(Clone)]
pub struct Host {
    open: Arc<Open>,
}

struct Open {
    core: Arc<Core>,
}

impl Host {
    /// An in-memory host without any grants; see the methods of [`HostBuilder`].
    pub fn builder() -> HostBuilder {
        HostBuilder {
            store: Arc::new(Memory::new()),
            cache: None,
            clock: Arc::new(SystemClock::new()),
            observers: Vec::new(),
            interfaces: Vec::new(),
            shared: Shared::new(),
            limits: HostLimits::default(),
            call_limits: CallLimits::default(),
            #[cfg(feature = "control")]
            offered: None,
        }
    }

    /// The host's id, as the log has it.
    pub fn id(&self) -> HostId {
        self.open.core.id
    }

    /// Checks, compiles and describes a component. A component that is loaded already is not compiled again. Dropping the
    /// future does not end the work.
    ///
    /// # Errors
    /// See [`LoadError`]; each says what is wrong with the component and what to do.
    pub async fn load(&self, source: Source) -> Result<Component, LoadError> {
        Tools::load(&self.open.core, source).await
    }

    /// Forgets a component. Calls that run go on; what still holds the [`Component`] can go on calling it.
    pub fn unload(&self, component: &Component) {
        self.open.core.tools.unload(component);
    }

    /// The agent on whose behalf calls are made.
    pub fn agent(&self, name: impl Into<String>) -> Agent {
        Agent::new(Arc::clone(&self.open.core), name.into())
    }

    /// Stops what the scope names, with its children. This is the only way to stop anything.
    ///
    /// It never waits: when it returns, a suspended call runs no further guest instruction, and one on a processor stops
    /// at its next epoch check. What the calls had not committed is discarded. See [`Interruption`] for what was reached
    /// and to wait for it. Asking again is harmless and delivers again; the first cause is the one that counts.
    pub fn interrupt(&self, scope: Scope, interrupt: Interrupt) -> Interruption {
        self.open.core.interrupt(scope, interrupt)
    }

    /// Lets nothing new begin, stops what runs, and waits until all of it is released and in the log, and the log is
    /// signed and closed. Without a bound of its own: a host function that never returns keeps its call, and this.
    pub async fn shutdown(&self) {
        if let Some(interruption) = self.open.close() {
            interruption.released().await;
        }
        self.open.core.log.stop();
        self.open.core.log.ended().await;
        // Operators see it until nothing of it is left to see.
        #[cfg(feature = "control")]
        if let Some(control) = self.open.core.control.get() {
            control.end().await;
        }
    }

    /// Halts what the scope covers: stops it at once, and refuses it in every host of this home and after every restart,
    /// until the halt is lifted. With a store that has no home it ends with this host.
    ///
    /// Blocks while the halt is put on the disk, after everything has been stopped.
    ///
    /// # Errors
    /// It is in force, and could not be put on the disk: it ends with this process.
    pub fn halt(
        &self,
        scope: HaltScope,
        actor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<Halt, HaltError> {
        let halt = Halt::new(scope, actor, reason);
        self.open.core.halt(halt.clone()).map(|()| halt)
    }

    /// Lifts a halt: what it covered may start again. Nothing resumes.
    ///
    /// # Errors
    /// There is no such halt, something that it covers is still stopping, or its file cannot be removed.
    pub fn lift(&self, halt: HaltId, actor: &str, reason: &str) -> Result<Halt, HaltError> {
        self.open.core.lift(halt, actor, reason)
    }

    /// The halts that are in force here.
    pub fn halts(&self) -> Vec<Halt> {
        self.open.core.halts.in_force().0
    }

    #[cfg(feature = "cli")]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.open.core
    }

    #[cfg(feature = "cli")]
    pub(crate) fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(self.open.core.shared.get(&TypeId::of::<T>())?).downcast().ok()
    }

    /// Calls that run or wait.
    pub fn live_calls(&self) -> usize {
        self.open.core.inventory.live()
    }

    /// Up to `count_max` entries of the log from position `from`, once everything recorded before is in it.
    ///
    /// # Errors
    /// The store cannot write or read the log.
    pub async fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError> {
        self.open.core.log.flush().await?;
        self.open.core.store.entries(from, count_max)
    }
}

impl Open {
    /// Lets nobody in any more, and stops what is in.
    fn close(&self) -> Option<Interruption> {
        self.core.closing.swap(true, Ordering::AcqRel);
        // Whoever registers after this look finds the host closing. There is nothing to stop, and nothing to enter.
        let shutdown = || self.core.interrupt(Scope::Everything, Interrupt::new(Cause::Shutdown, HOST_ACTOR));
        (self.core.inventory.live() > 0).then(shutdown)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the parts share. Lives as long as any call does.
pub(crate) struct Core {
    pub(crate) id: HostId,
    pub(crate) engine: Engine,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) preempter: Preempter,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) workers: Workers,
    pub(crate) log: Arc<Log>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tools: Tools,
    pub(crate) cache: Option<Cache>,
    /// Places in the pool of sandboxes.
    pub(crate) room: Semaphore,
    pub(crate) limits: HostLimits,
    pub(crate) call_limits: CallLimits,
    pub(crate) state_limits: Arc<crate::transaction::StateLimits>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) io: IoThread,
    pub(crate) closing: AtomicBool,
    pub(crate) halts: Halts,
    #[cfg(feature = "control")]
    control: std::sync::OnceLock<Control>,
}

impl Core {
    pub(crate) fn now_ns(&self) -> u64 {
        nanos(self.clock.monotonic())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.log.stop();
    }
}

/// Drives timers and sockets, and runs what must not run on a guest worker.
pub(crate) struct IoThread {
    pub(crate) handle: runtime::Handle,
    /// Shut down without waiting: a host function that blocks for ever must not hold up whoever drops the host.
    runtime: Mutex<Option<runtime::Runtime>>,
}

impl IoThread {
    fn start() -> std::io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_keep_alive(Duration::from_secs(10))
            .thread_name("estop-io")
            .enable_all()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Mutex::new(Some(runtime)) })
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if let Ok(Some(runtime)) = self.runtime.get_mut().map(Option::take) {
            runtime.shutdown_background();
        }
    }
}
