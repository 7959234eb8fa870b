//! Wasmtime's configuration, and the ticker.
//!
//! Invariants:
//! - Epochs and fuel are always both on: epochs preempt, fuel bounds and measures.
//! - The ticker only reads clocks and atomics. It bumps the epoch so that guests take turns, delivers deadlines and the
//!   ends of grace periods, and leaves a heartbeat: without one, no call is admitted.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, RegallocAlgorithm};

use crate::heartbeat::Heartbeat;
use crate::host::{Core, HostLimits};
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt};
use crate::tools::Hex;

/// Guests of one worker take turns at this pace while any call is live; also how late a deadline may be noticed.
pub const TICK: Duration = Duration::from_millis(1);
/// The ticker's pace while nothing is live.
const IDLE_TICK: Duration = Duration::from_millis(10);
/// Without a heartbeat for this long a thread is taken for dead.
pub(crate) const HEARTBEAT_MAX: Duration = Duration::from_secs(2);
/// The fuel of a call that is stopped is known to within this much: a running guest keeps it in a register and writes it
/// back at this interval.
pub const FUEL_INTERVAL: u64 = 1_000_000;
/// Units of fuel for each page by which a guest grows a memory: what clearing 64 KiB costs.
const FUEL_PER_PAGE: u8 = u8::MAX;
/// A guest's stack, host functions included (bytes).
const ASYNC_STACK_BYTES: usize = 1 << 20;
/// Of that, what WebAssembly may use (bytes).
const WASM_STACK_BYTES: usize = 512 << 10;
/// A 32-bit memory has no more than this.
const MEMORY_BYTES_ADDRESSABLE: usize = 4 << 30;
/// Releases that are cleared together.
const DECOMMIT_BATCH: usize = 16;
/// Tables in the pool for each place in it; a component with more takes more than one place.
pub(crate) const TABLES_PER_SANDBOX: u32 = 4;
/// Memories, tables and core instances that one component may have.
const MEMORIES_PER_COMPONENT_MAX: u32 = 8;
const TABLES_PER_COMPONENT_MAX: u32 = 16;
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 32;

pub(crate) fn new(limits: &HostLimits, workers: usize) -> wasmtime::Result<Engine> {
    // What a worker has just released is in nobody's hands until its batch is cleared, so the pool is larger than what
    // the host lets in: a call that was given room always finds some.
    let releasing = DECOMMIT_BATCH.saturating_mul(workers + 1);
    let places = limits.sandboxes_max.saturating_add(u32::try_from(releasing).unwrap_or(u32::MAX));
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(places)
        .total_stacks(places)
        .total_memories(places)
        .total_tables(places.saturating_mul(TABLES_PER_SANDBOX))
        .total_core_instances(places.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX))
        .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX.min(limits.sandboxes_max))
        .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_memory_size(limits.memory_bytes_max.min(MEMORY_BYTES_ADDRESSABLE))
        .table_elements(limits.table_elements_max)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .decommit_batch_size(DECOMMIT_BATCH)
        .pagemap_scan(Enabled::Auto);

    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// For a process that compiles and runs nothing. Without the pool, which reserves hundreds of gigabytes of address space;
/// machine code does not depend on it.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

/// What machine code depends on. Cranelift compiles on the thread that asks for it: Wasmtime is built without its feature
/// for more.
fn settings() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(true)
        .concurrency_support(false)
        .async_stack_size(ASYNC_STACK_BYTES)
        .max_wasm_stack(WASM_STACK_BYTES)
        .memory_init_cow(true)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        // What would make two runs of the same input differ.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        // As at admission, which also keeps threads out: `memory.atomic.wait` blocks one that nothing can interrupt.
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    config.operator_cost({
        let mut cost = wasmtime::OperatorCost::default();
        cost.variable.memory_grow_per_page = FUEL_PER_PAGE;
        cost
    });
    config
}

/// Wasmtime's version, the machine, and every setting that machine code depends on, as a digest: engines with the same one
/// can run each other's code.
pub(crate) fn configuration(engine: &Engine) -> String {
    /// As wide as any hash, and the same in every process: the standard library's hasher promises neither.
    struct Hash(Sha256);

    impl std::hash::Hasher for Hash {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    let mut hash = Hash(Sha256::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hash);
    Hex::of(&hash.0.finalize().into()).as_str().to_owned()
}

/// What the ticker and those who rely on it share.
pub(crate) struct Ticker {
    pub(crate) heart: Heartbeat,
}

impl Ticker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { heart: Heartbeat::new() })
    }

    pub(crate) fn start(self: &Arc<Self>, core: Weak<Core>) -> std::io::Result<()> {
        let ticker = Arc::clone(self);
        thread::Builder::new().name("estop-tick".into()).spawn(move || ticker.serve(&core))?;
        Ok(())
    }

    /// Whether the ticker has given a sign of life lately.
    pub(crate) fn is_alive(&self) -> bool {
        self.heart.age() < HEARTBEAT_MAX
    }

    fn serve(&self, core: &Weak<Core>) {
        // Until the host is gone.
        while let Some(core) = core.upgrade() {
            self.heart.beat();
            let pace = if core.inventory.live() > 0 { TICK } else { IDLE_TICK };
            core.tick();
            drop(core);
            thread::sleep(pace);
        }
    }
}

impl Core {
    /// One turn of the ticker.
    fn tick(&self) {
        self.engine.increment_epoch();
        self.log.look_at_alternate();
        self.log.look_alive();
        self.preempter.look_alive();
        let now_ns = self.now_ns();
        self.inventory.due(now_ns, |call| {
            let grace_until_ns = call.grace_until_ns.load(Ordering::Acquire);
            let deadline_ns = call.deadline_ns.load(Ordering::Acquire);
            if grace_until_ns <= now_ns {
                self.end_grace(call);
            } else if deadline_ns <= now_ns {
                let deadline = Interrupt::new(Cause::Deadline, HOST_ACTOR).grace(call.grace);
                self.interrupt_call(call, deadline);
            } else {
                self.inventory.look_at(call.slot, grace_until_ns.min(deadline_ns));
            }
        });
    }
}
