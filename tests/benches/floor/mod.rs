//! The floor: a fresh store, an instance, a call and a drop with Wasmtime alone. No gate, no limits, no transaction, no
//! log, no threads of its own.

use std::task::{Context, Waker};
use std::thread;

use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, UpdateDeadline};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        inline: "package bench:floor; world floor { export estop:tool/tool@0.1.0; }",
        world: "bench:floor/floor",
        exports: { default: async },
    });
}

use bindings::{Floor as Bindings, FloorPre};

pub(crate) struct Floor {
    engine: Engine,
    interruptible: bool,
}

pub(crate) struct Bare {
    pre: FloorPre<Ctx>,
}

struct Ctx {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl Floor {
    /// As fast as it can be while it can be interrupted.
    pub(crate) fn tuned() -> Self {
        Self { engine: engine(true), interruptible: true }
    }

    /// Neither epochs nor fuel.
    pub(crate) fn without_interruption() -> Self {
        Self { engine: engine(false), interruptible: false }
    }

    pub(crate) fn load(&self, bytes: &[u8]) -> Bare {
        let component = Component::from_binary(&self.engine, bytes).expect("a component");
        let mut linker = Linker::new(&self.engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("WASI");
        // Only the contract's types may be missing; what a guest imports beyond WASI traps if it is used.
        linker.define_unknown_imports_as_traps(&component).expect("traps");
        component.initialize_copy_on_write_image().expect("an image");
        let pre = linker.instantiate_pre(&component).expect("imports that fit");
        Bare { pre: FloorPre::new(pre).expect("exports that fit") }
    }

    pub(crate) fn call(&self, bare: &Bare, tool: &str, input: &str) {
        let call = async {
            let ctx = Ctx { wasi: WasiCtx::builder().build(), table: ResourceTable::new() };
            let mut store = Store::new(&self.engine, ctx);
            if self.interruptible {
                store.set_fuel(u64::MAX).expect("fuel");
                store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Continue(1)));
                store.set_epoch_deadline(1);
            }
            let guest: Bindings = bare.pre.instantiate_async(&mut store).await.expect("an instance");
            let output = guest.estop_tool_tool().call_call(&mut store, tool, input).await.expect("an answer");
            assert!(output.is_ok(), "{output:?}");
        };
        let mut call = std::pin::pin!(call);
        while call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
    }

    /// As many calls, shared by as many threads as there are processors.
    pub(crate) fn concurrently(&self, bare: &Bare, tool: &str, input: &str, calls: usize) {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (0..calls / threads).for_each(|_| self.call(bare, tool, input)));
            }
        });
    }
}

fn engine(interruptible: bool) -> Engine {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(64)
        .total_core_instances(1_000)
        .total_memories(64)
        .total_tables(256)
        .total_stacks(64)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .decommit_batch_size(16)
        .pagemap_scan(Enabled::Auto)
        .max_memory_size(64 << 20);
    let mut config = Config::new();
    config
        .epoch_interruption(interruptible)
        .consume_fuel(interruptible)
        .concurrency_support(false)
        .async_stack_size(1 << 20)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).expect("an engine")
}
