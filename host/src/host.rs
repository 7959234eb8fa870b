//! The host: owns the parts and gives the way in.
//!
//! Invariant: everything that an embedder did not ask for is off. A host opens no socket and installs no signal handler,
//! logger or panic hook of its own. Its threads end when the last handle on it, an agent or a call is dropped and the last
//! call is released.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use tokio::runtime;
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::agent::Agent;
use crate::budget::{Budget, Budgets};
use crate::call::load::Load;
use crate::call::room::Room;
use crate::call::{CallLimits, PRIORITY_DEFAULT};
use crate::clock::{Clock, SystemClock, nanos};
#[cfg(feature = "control")]
use crate::control::{Control, HostKind, PlaceError, Served};
use crate::engine::{self, Ticker};
use crate::grants::{GrantError, GrantTable, Grantee, Grants};
use crate::home::Home;
use crate::hostcalls;
use crate::hostcalls::http::{HttpClient, HttpResolver, HttpSetup};
use crate::ids::{HaltId, HostId};
use crate::interrupt::halts::{Halt, HaltError, HaltScope, Halts};
use crate::interrupt::preempter::Preempter;
use crate::interrupt::{Interrupt, Interruption, Scope};
use crate::inventory::Inventory;
use crate::log::writer::{Pen, Writer};
use crate::log::{Entry, Log, alternate};
use crate::observer::{Observer, Observers};
use crate::process::{Launcher, ProcessSupervisor};
use crate::sandbox::CallCtx;
use crate::secret::SecretError;
use crate::shutdown::{Closing, Hook, SHUTDOWN_HOOKS_MAX};
use crate::store::memory::Memory;
use crate::store::{Store, StoreError};
use crate::tools::cache::Cache;
use crate::tools::compile::Compiler;
use crate::tools::{CompileChild, Component, LoadError, Source, Tools};
use crate::workers::Workers;

/// Threads that host functions may block, for example with files. More wait.
const BLOCKING_THREADS_MAX: usize = 16;

/// How long a host that ends because of a halt on the disk waits to be asked about it.
#[cfg(feature = "control")]
const TELLS_WITHIN: Duration = Duration::from_millis(500);

/// What one host may use.
#[derive(Clone, Debug)]
pub struct HostLimits {
    /// Calls that run or wait at one time. More are refused. Loading a component is a call, and its describing itself another
    /// one.
    pub calls_max: usize,
    /// Sandboxes that exist at one time; more calls wait. Reserves about 4 GiB of address space, not memory, for each.
    pub sandboxes_max: u32,
    /// Calls that wait for a sandbox at one time. More are refused, unless they are more urgent than the last of those that
    /// wait, which is stopped then.
    pub queue_max: usize,
    /// The largest linear memory that any call can be granted (bytes).
    pub memory_bytes_max: usize,
    /// The largest table of a guest (elements).
    pub table_elements_max: usize,
    /// The largest component (bytes).
    pub component_bytes_max: usize,
    /// Components loaded at one time.
    pub components_max: usize,
    /// Components compiled at one time; more wait. Zero means one for each processor.
    pub compiling_max: usize,
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
            queue_max: 8_192,
            memory_bytes_max: 64 << 20,
            table_elements_max: 20_000,
            component_bytes_max: 64 << 20,
            components_max: 256,
            compiling_max: 0,
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
    /// More hooks than a shutdown may have.
    #[error("{0} hooks for the shutdown are too many: at most {SHUTDOWN_HOOKS_MAX}; put several things into one")]
    Hooks(usize),
    /// Something cannot be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A certificate cannot be trusted.
    #[error("cannot trust a root certificate: {0}; give each as DER")]
    Certificate(rustls::Error),
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
    compile_child: Option<CompileChild>,
    process_supervisor: Option<ProcessSupervisor>,
    clock: Arc<dyn Clock>,
    observers: Vec<Box<dyn Observer>>,
    interfaces: Vec<Interface>,
    shared: Shared,
    limits: HostLimits,
    call_limits: CallLimits,
    shutdown_grace: Duration,
    hooks: Vec<Hook>,
    grants: Vec<(Grantee, Grants)>,
    kept: Vec<PathBuf>,
    budgets: Vec<(Option<String>, Budget)>,
    http: HttpSetup,
    #[cfg(feature = "control")]
    offered: Option<HostKind>,
    #[cfg(feature = "control")]
    served: Option<Served>,
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

    /// Compiles components in processes of their own, which are bounded and can be stopped. By default they are compiled in
    /// this process, and that nobody can stop: a load that is stopped then is `stopping` until its compiler is through, in
    /// `estop ps` as for whoever waits for it, and its time and memory have no bound.
    #[must_use]
    pub fn compile_with(mut self, child: CompileChild) -> Self {
        self.compile_child = Some(child);
        self
    }

    /// Lets tools start the programs that they are granted, each under a supervisor of its own. No tool can by default.
    #[must_use]
    pub fn supervise_with(mut self, supervisor: ProcessSupervisor) -> Self {
        self.process_supervisor = Some(supervisor);
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

    /// Lets agents in other processes call what is on this shelf, now and later, through a socket of their own. They get
    /// what calls get here, or less if they ask for less. Nobody can by default; a host that does this is also offered to
    /// operators.
    #[cfg(feature = "control")]
    #[must_use]
    pub fn serve_agents(mut self, served: &Served) -> Self {
        self.served = Some(served.clone());
        self.offered = self.offered.or(Some(HostKind::Embedded));
        self
    }

    /// What the host may use.
    #[must_use]
    pub fn limits(mut self, limits: HostLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How long cooperative tools may tidy up at a [shutdown](Host::shutdown). None by default.
    #[must_use]
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// Is run at a [shutdown](Host::shutdown), when everything has been stopped and released, and before the log is closed.
    /// Hooks run one after the other, as they were registered, each on a thread and a runtime of its own, so that they may
    /// block. One that has not come to its end within its budget is left behind and named. Not run if the host is only
    /// dropped. At most [`SHUTDOWN_HOOKS_MAX`](crate::SHUTDOWN_HOOKS_MAX).
    #[must_use]
    pub fn on_shutdown<F: Future<Output = ()> + 'static>(
        mut self,
        name: impl Into<String>,
        budget: Duration,
        hook: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        self.hooks.push(Hook::new(name.into(), budget, hook));
        self
    }

    /// Lets these calls use these things. May be called several times; a call gets what all rules that cover it give.
    #[must_use]
    pub fn grant(mut self, to: Grantee, what: Grants) -> Self {
        self.grants.push((to, what));
        self
    }

    /// Files that no tool may change, beside granted programs: a workspace that has one of them in it is refused, unless it
    /// is granted to read only. Configuration and components, for a host that reads them again.
    #[must_use]
    pub fn keep_from_tools(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.kept.extend(files);
        self
    }

    /// What an agent may use across its calls in this host. Of several for one agent the last one counts.
    #[must_use]
    pub fn budget(mut self, agent: impl Into<String>, budget: Budget) -> Self {
        self.budgets.push((Some(agent.into()), budget));
        self
    }

    /// The same, for each agent that has no budget of its own.
    #[must_use]
    pub fn budget_of_each_other_agent(mut self, budget: Budget) -> Self {
        self.budgets.push((None, budget));
        self
    }

    /// Finds the addresses of the hosts that guests ask. The system's resolver by default.
    #[must_use]
    pub fn resolve_with(mut self, resolver: impl HttpResolver) -> Self {
        self.http.resolver = Some(Arc::new(resolver));
        self
    }

    /// Trusts a certificate (DER) beside Mozilla's list, when guests ask hosts. May be called several times.
    #[must_use]
    pub fn http_root_certificate(mut self, der: impl Into<Vec<u8>>) -> Self {
        self.http.roots.push(der.into());
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
        if self.hooks.len() > SHUTDOWN_HOOKS_MAX {
            return Err(BuildError::Hooks(self.hooks.len()));
        }
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
        let grants = GrantTable::open(self.grants, &*self.store, &self.kept)?;
        let http = Arc::new(HttpClient::new(self.http).map_err(BuildError::Certificate)?);
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
        let spill_folder = self.store.home().map_or_else(std::env::temp_dir, |home| home.path().to_owned());
        let core = Arc::new(Core {
            halts,
            #[cfg(feature = "control")]
            control: std::sync::OnceLock::new(),
            #[cfg(feature = "control")]
            drilling: Arc::default(),
            preempter: Preempter::start(engine.weak(), Arc::clone(&inventory), calls_max)?,
            workers: Workers::start(workers, &io.handle)?,
            room: Room::new(self.limits.sandboxes_max, self.limits.queue_max),
            state_limits: Arc::new(self.call_limits.state.clone()),
            tools: Tools::new(linker, Compiler::new(self.limits.compiling_max, self.compile_child)),
            cache,
            ticker: Ticker::new(),
            closing: AtomicBool::new(false),
            closing_down: Closing { grace: self.shutdown_grace, hooks: Mutex::new(self.hooks) },
            shared: Arc::new(self.shared),
            grants,
            budgets: Budgets::new(self.budgets, Arc::clone(&self.clock)),
            launcher: Launcher::new(self.process_supervisor),
            http,
            spill_folder,
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
            let _ = core.control.set(Control::start(&core, kind, self.served)?);
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
            compile_child: None,
            process_supervisor: None,
            clock: Arc::new(SystemClock::new()),
            observers: Vec::new(),
            interfaces: Vec::new(),
            shared: Shared::new(),
            limits: HostLimits::default(),
            call_limits: CallLimits::default(),
            shutdown_grace: Duration::ZERO,
            hooks: Vec::new(),
            grants: Vec::new(),
            kept: Vec::new(),
            budgets: Vec::new(),
            http: HttpSetup::default(),
            #[cfg(feature = "control")]
            offered: None,
            #[cfg(feature = "control")]
            served: None,
        }
    }

    /// The host's id, as the log has it.
    pub fn id(&self) -> HostId {
        self.open.core.id
    }

    /// Checks, compiles and describes a component. A component that is loaded already is not compiled again.
    ///
    /// It is a call like others: of agent `host`, tool `load`, listed, stopped and entered like them. Dropping the future
    /// stops it, cause `cancelled`.
    ///
    /// # Errors
    /// See [`LoadError`]; each says what is wrong with the component and what to do.
    pub async fn load(&self, source: Source) -> Result<Component, LoadError> {
        self.begin_load(source).loaded().await
    }

    pub(crate) fn begin_load(&self, source: Source) -> Load {
        Load::start(&self.open.core, source, PRIORITY_DEFAULT)
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

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.open.core
    }

    /// Halts what the scope covers: stops it at once, and refuses it in every host of this home and after every restart,
    /// until the halt is lifted. With a store that has no home it ends with this host.
    ///
    /// Blocks while the halt is put on the disk, after everything has been stopped.
    ///
    /// # Errors
    /// It is in force, and could not be put on the disk: it ends with this process. Or so many halts are in force already that
    /// there is no room for it ([`HaltError::TooMany`]): then what it covers was stopped, and may start again. A first halt of
    /// everything always has room.
    pub fn halt(
        &self,
        scope: HaltScope,
        actor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<Halt, HaltError> {
        let halt = Halt::new(scope, actor, reason);
        self.open.core.halt(halt.clone()).map(|()| halt)
    }

    /// Halts what the scope covers for good: it cannot be lifted. State and log of what is retired are kept.
    ///
    /// # Errors
    /// As [`halt`](Self::halt).
    pub fn retire(
        &self,
        scope: HaltScope,
        actor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<Halt, HaltError> {
        let halt = Halt::new(scope, actor, reason).permanent();
        self.open.core.halt(halt.clone()).map(|()| halt)
    }

    /// Lifts a halt: what it covered may start again. Nothing resumes.
    ///
    /// # Errors
    /// There is no such halt, it is for good, something that it covers is still stopping, or its file cannot be removed.
    pub fn lift(&self, halt: HaltId, actor: &str, reason: &str) -> Result<Halt, HaltError> {
        self.open.core.lift(halt, actor, reason)
    }

    /// Drills the emergency stop of this host while it runs: starts calls of agent `host`, one at a time and from a thread of
    /// its own, stops each alone with cause `drill`, and enters what it measured. Calls of others go on. Takes up to
    /// thirteen seconds. It goes on if this future is dropped.
    ///
    /// # Errors
    /// Another drill is being held, `runs` is zero or more than [`LIVE_RUNS_MAX`](crate::drill::LIVE_RUNS_MAX), or no call may
    /// start here, because of a halt for example. A drill that was held and found something wrong is no error: see
    /// [`Drilled`](crate::log::Drilled).
    #[cfg(feature = "control")]
    pub async fn drill(
        &self,
        actor: impl Into<String>,
        runs: u32,
    ) -> Result<crate::log::Drilled, crate::drill::DrillError> {
        crate::drill::live::hold(&self.open.core, actor.into(), runs).await
    }

    /// The halts that are in force here.
    pub fn halts(&self) -> Vec<Halt> {
        self.open.core.halts.in_force().0
    }

    #[cfg(feature = "control")]
    pub(crate) fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(self.open.core.shared.get(&TypeId::of::<T>())?).downcast().ok()
    }

    /// The folder with the host's sockets, if it is offered.
    #[cfg(feature = "control")]
    pub fn sockets(&self) -> Option<&std::path::Path> {
        self.open.core.control.get().map(|control| &*control.folder)
    }

    /// Which of the threads that stops depend on gives no sign of life, if one does not.
    #[cfg(feature = "cli")]
    pub(crate) fn dead_thread(&self) -> Option<&'static str> {
        if !self.open.core.ticker.is_alive() {
            return Some("the ticker");
        }
        let control = self.open.core.control.get()?;
        (control.heart.age() >= engine::HEARTBEAT_MAX).then_some("the control thread")
    }

    /// Whether a call of this component runs or waits.
    #[cfg(feature = "cli")]
    pub(crate) fn runs(&self, component: crate::Digest) -> bool {
        let mut runs = false;
        self.open.core.inventory.walk(|call| runs |= call.component() == Some(component));
        runs
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

impl Drop for Open {
    fn drop(&mut self) {
        self.core.close(Duration::ZERO);
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
    pub(crate) room: Room,
    pub(crate) limits: HostLimits,
    pub(crate) call_limits: CallLimits,
    pub(crate) state_limits: Arc<crate::transaction::StateLimits>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) grants: GrantTable,
    pub(crate) budgets: Budgets,
    /// What requests of guests share.
    pub(crate) http: Arc<HttpClient>,
    /// Starts the programs of tools.
    pub(crate) launcher: Launcher,
    /// Where what calls write to files is kept, if it does not fit into memory.
    pub(crate) spill_folder: PathBuf,
    pub(crate) io: IoThread,
    pub(crate) closing: AtomicBool,
    pub(crate) closing_down: Closing,
    pub(crate) halts: Halts,
    #[cfg(feature = "control")]
    control: std::sync::OnceLock<Control>,
    /// A drill is being held.
    #[cfg(feature = "control")]
    pub(crate) drilling: Arc<AtomicBool>,
}

impl Core {
    pub(crate) fn now_ns(&self) -> u64 {
        nanos(self.clock.monotonic())
    }

    #[cfg(feature = "control")]
    pub(crate) async fn end_control(&self) {
        if let Some(control) = self.control.get() {
            // Whoever puts a halt on the disk looks for hosts after that. One that has met it there and ends because of it is
            // still to be found, and tells what the halt has reached.
            while self.halts.has_to_tell(TELLS_WITHIN) {
                tokio::time::sleep(TELLS_WITHIN / 100).await;
            }
            control.end().await;
        }
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
