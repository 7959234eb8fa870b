//! The sandbox: one store for one call, with its limits, its transaction and what it was granted.
//!
//! Invariants:
//! - A store serves one call and is dropped, never used again, however the call ended.
//! - Every limit of [`CallLimits`](crate::CallLimits) is armed before the first guest instruction, start functions
//!   included, and the epoch deadline is set before the gate is looked at.

mod limiter;
mod stderr;

use std::any::TypeId;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use rand::SeedableRng;
use rand::rngs::StdRng;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use self::limiter::Limiter;
pub(crate) use self::limiter::MemoryLimitReached;
use self::stderr::Stderr;
use crate::call::child::Children;
use crate::call::{CallLimits, CallState};
use crate::engine::FUEL_INTERVAL;
use crate::grants::{Ambient, Granted};
use crate::host::Core;
use crate::hostcalls::bindings::Guest;
use crate::hostcalls::clocks::GuestClock;
use crate::hostcalls::http::Http;
use crate::interrupt::{Cause, cut};
use crate::store::Space;
use crate::tools::Code;
use crate::transaction::Transaction;
use crate::workspace::Workspaces;

/// Length of the name of an effect (bytes); the rest is cut.
const EFFECT_NAME_BYTES_MAX: usize = 256;
/// Random bytes in one request: they are made one by one, without an epoch check.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// What the epoch callback answers when the gate is closed. Never leaves the host: the gate says the rest.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// What host functions know about the call that they serve. An embedder's own get it too.
pub struct CallCtx {
    pub(crate) call: Arc<CallState>,
    pub(crate) core: Arc<Core>,
    pub(crate) transaction: Transaction,
    pub(crate) http: Http,
    pub(crate) table: ResourceTable,
    pub(crate) describing: bool,
    /// What the store had at first.
    pub(crate) armed_fuel: u64,
    pub(crate) granted: Arc<Granted>,
    pub(crate) transfer_bytes_max: usize,
    pub(crate) log_lines: u32,
    pub(crate) children: Children,
    wasi: WasiCtx,
    limiter: Limiter,
    effects_max: usize,
    stderr: Stderr,
}

/// More effects than a call may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the call has had {0} effects outside its transaction and may have no more")]
pub struct TooManyEffects(usize);

/// Something that is about to leave the sandbox. Dropped without [`performed`](Self::performed), nobody knows how it
/// ended, and that is what the outcome says.
#[must_use = "an effect that is not marked as performed is reported as unknown"]
#[derive(Debug)]
pub struct EffectGuard {
    performed: Arc<AtomicBool>,
}

impl EffectGuard {
    /// It is known to have happened.
    pub fn performed(self) {
        self.performed.store(true, Ordering::Release);
    }
}

impl CallCtx {
    /// The agent on whose behalf the call is made.
    pub fn agent(&self) -> &str {
        &self.call.agent
    }

    /// The tool that is called.
    pub fn tool(&self) -> &str {
        &self.call.tool
    }

    /// The call.
    pub fn call_id(&self) -> crate::CallId {
        self.call.id
    }

    /// The component only says what tools it has: a host function that does anything should refuse.
    pub fn is_describing(&self) -> bool {
        self.describing
    }

    /// What the embedder gave to [`HostBuilder::share`](crate::HostBuilder::share).
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let value = self.core.shared.get(&TypeId::of::<T>())?;
        Arc::clone(value).downcast().ok()
    }

    /// Host resources of this call.
    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    pub(crate) fn stderr_text(&self) -> String {
        self.stderr.text()
    }

    /// Resolves with the cause when somebody asks the call to stop, so that a host function that waits can select on it
    /// and leave nothing behind. Borrows nothing; may be sent to another task. At a stop without a grace period a host
    /// function is dropped where it waits.
    pub fn interrupted(&self) -> impl Future<Output = Cause> + Send + use<> {
        let call = Arc::clone(&self.call);
        async move { call.asked().await.interrupt.cause }
    }

    /// To be called before something leaves the sandbox that a rollback cannot take back.
    ///
    /// # Errors
    /// The call has had as many effects as it may: do not perform this one.
    pub fn effect(&mut self, name: impl Into<String>) -> Result<EffectGuard, TooManyEffects> {
        let mut name = name.into();
        cut(&mut name, EFFECT_NAME_BYTES_MAX);
        let performed = self.call.add_effect(&name, self.effects_max);
        performed.map(|performed| EffectGuard { performed }).ok_or(TooManyEffects(self.effects_max))
    }
}

impl WasiView for CallCtx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// What is left when a call has ended and its store is dropped.
#[derive(Default)]
pub(crate) struct Remains {
    pub(crate) fuel: u64,
    pub(crate) stderr: String,
}

/// What a call works with, beside its limits.
pub(crate) struct Given {
    pub(crate) describing: bool,
    pub(crate) granted: Arc<Granted>,
    pub(crate) workspaces: Workspaces,
    pub(crate) children: Children,
}

pub(crate) struct Sandbox {
    store: Store<CallCtx>,
    granted_fuel: u64,
    armed_fuel: u64,
    output_bytes_max: usize,
}

impl Sandbox {
    pub(crate) fn new(
        core: &Arc<Core>,
        call: &Arc<CallState>,
        code: &Code,
        space: Space,
        limits: &CallLimits,
        given: Given,
    ) -> wasmtime::Result<Self> {
        let Given { describing, granted, workspaces, children } = given;
        // Fuel is looked at where functions and loops begin, so a call can use more than it has on its last stretch. One
        // unit more than granted tells whoever used exactly what it had from whoever used more.
        let armed_fuel = limits.fuel.saturating_add(1);
        let stderr = Stderr::new(limits.stderr_bytes_max);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.resources_max);
        let ctx = CallCtx {
            wasi: wasi(core, code, &stderr, &granted.ambient),
            limiter: Limiter::new(limits.memory_bytes_max, Arc::clone(&call.live)),
            transaction: Transaction::new(space, Arc::clone(&core.state_limits), Arc::clone(&call.live), workspaces),
            http: Http::new(&core.http, call, limits.effects_max, &granted.http),
            call: Arc::clone(call),
            core: Arc::clone(core),
            table,
            describing,
            armed_fuel,
            granted,
            children,
            transfer_bytes_max: limits.transfer_bytes_max,
            log_lines: 0,
            effects_max: limits.effects_max,
            stderr,
        };
        let mut store = Store::new(&core.engine, ctx);
        store.limiter(|ctx| &mut ctx.limiter);
        store.set_hostcall_fuel(limits.transfer_bytes_max);
        store.set_max_component_handles(limits.resources_max);
        store.set_fuel(armed_fuel)?;
        store.fuel_async_yield_interval(Some(FUEL_INTERVAL))?;
        store.epoch_deadline_callback(|cx| {
            // Nothing but this one load, and a mark: a callback may not touch the store.
            let call = &cx.data().call;
            if call.gate.is_interrupted() {
                Err(Interrupted.into())
            } else {
                call.live.gives_way();
                Ok(UpdateDeadline::YieldCustom(1, Box::pin(yield_once())))
            }
        });
        store.set_epoch_deadline(1);
        Ok(Self { store, granted_fuel: limits.fuel, armed_fuel, output_bytes_max: limits.output_bytes_max })
    }

    /// Instantiates. Start functions run here, so this is guest code like any other.
    pub(crate) async fn instantiate(&mut self, code: &Code) -> wasmtime::Result<Guest> {
        code.pre.instantiate_async(&mut self.store).await
    }

    pub(crate) fn store(&mut self) -> &mut Store<CallCtx> {
        &mut self.store
    }

    /// Of what the tool answers.
    pub(crate) fn output_bytes_max(&self) -> usize {
        self.output_bytes_max
    }

    /// The guest has used more than it was granted.
    pub(crate) fn is_out_of_fuel(&self) -> bool {
        self.store.get_fuel().unwrap_or(0) == 0
    }

    /// Drops the store.
    pub(crate) fn dismantle(self) -> Remains {
        let used = self.armed_fuel.saturating_sub(self.store.get_fuel().unwrap_or(0));
        let fuel = used.min(self.granted_fuel);
        let ctx = self.store.into_data();
        Remains { fuel, stderr: ctx.stderr.text() }
    }
}

/// What is not granted is linked all the same, in an empty form: no arguments, no environment, no preopened directories,
/// closed streams, no network, a seeded random source, a coarse clock.
fn wasi(core: &Arc<Core>, code: &Code, stderr: &Stderr, granted: &Ambient) -> WasiCtx {
    let seed = *code.digest.as_bytes();
    let clock = Arc::clone(&core.clock);
    let clock = if granted.clock { GuestClock::fine(clock) } else { GuestClock::coarse(clock) };
    let mut builder = WasiCtx::builder();
    // If nothing is said it is the operating system's.
    if !granted.random {
        builder
            .secure_random(StdRng::from_seed(seed))
            // The same for each call, so that the same input uses the same fuel.
            .insecure_random(StdRng::from_seed(seed))
            .insecure_random_seed(u128::from_le_bytes(std::array::from_fn(|at| seed[at])));
    }
    for (name, value) in &granted.environment {
        builder.env(name, value);
    }
    builder
        .stderr(stderr.clone())
        .max_random_size(RANDOM_BYTES_MAX)
        .wall_clock(clock.clone())
        .monotonic_clock(clock)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

/// Gives the other guests of this worker a turn.
fn yield_once() -> impl Future<Output = ()> + Send {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
