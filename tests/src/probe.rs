//! The host functions of hostile guests: how a test learns that a guest is where it wants it.

use std::time::Duration;

use estop::wasmtime;
use estop::wasmtime::component::Linker;
use estop::{CallCtx, HostBuilder};

use crate::counter::Counter;

/// Counts what guests do; clones count together. Give it to a host with [`Probe::grant`].
#[derive(Clone, Default)]
pub struct Probe {
    /// Calls of `describing` from a real call: a guest marks a point in its code with it.
    marks: Counter,
    /// Guests that are, or were, in `wait` or `sleep`.
    waits: Counter,
}

impl Probe {
    /// Nothing has been counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the interface `estop:drill/probe` to all guests of the host.
    pub fn grant(&self, builder: HostBuilder) -> HostBuilder {
        let probe = self.clone();
        builder.interface(move |linker| probe.add_to_linker(linker))
    }

    /// How often guests have called `describing`, `list-tools` apart.
    pub fn marks(&self) -> u64 {
        self.marks.get()
    }

    /// How often guests have begun to wait or sleep in the host.
    pub fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// Until guests have called `describing` this often.
    pub async fn marked(&self, times: u64) {
        self.marks.reached(times).await;
    }

    /// Until guests have begun to wait or sleep this often.
    pub async fn waiting(&self, times: u64) {
        self.waits.reached(times).await;
    }

    fn add_to_linker(&self, linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
        let mut instance = linker.instance("estop:drill/probe@0.1.0")?;
        let waits = self.waits.clone();
        instance.func_wrap_async("wait", move |_, (): ()| {
            waits.add();
            Box::new(std::future::pending::<wasmtime::Result<()>>())
        })?;
        let waits = self.waits.clone();
        instance.func_wrap_async("sleep", move |_, (): ()| {
            waits.add();
            Box::new(async {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(())
            })
        })?;
        let marks = self.marks.clone();
        instance.func_wrap("describing", move |cx, (): ()| {
            let describing = cx.data().is_describing();
            if !describing {
                marks.add();
            }
            Ok((describing,))
        })
    }
}
