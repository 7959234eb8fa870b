//! The host functions of hostile guests: how a test learns that a guest is where it wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use estop::wasmtime;
use estop::wasmtime::component::Linker;
use estop::{CallCtx, HostBuilder};
use tokio::sync::Notify;

/// Counts what guests do. Give it to a host with [`Probe::grant`].
#[derive(Clone, Default)]
pub struct Probe {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Calls of `describing` from a real call: a guest marks a point in its code with it.
    marks: AtomicU64,
    /// Guests that are, or were, in `wait` or `sleep`.
    waits: AtomicU64,
    changed: Notify,
}

impl Probe {
    /// None of anything.
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
        self.counts.marks.load(Ordering::Acquire)
    }

    /// How often guests have begun to wait or sleep in the host.
    pub fn waits(&self) -> u64 {
        self.counts.waits.load(Ordering::Acquire)
    }

    /// Until guests have called `describing` this often.
    pub async fn marked(&self, times: u64) {
        self.until(|| self.marks() >= times).await;
    }

    /// Until guests have begun to wait or sleep this often.
    pub async fn waiting(&self, times: u64) {
        self.until(|| self.waits() >= times).await;
    }

    async fn until(&self, mut there: impl FnMut() -> bool) {
        crate::within(async {
            loop {
                let changed = self.counts.changed.notified();
                if there() {
                    return;
                }
                changed.await;
            }
        })
        .await;
    }

    fn add_to_linker(&self, linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
        let mut instance = linker.instance("estop:drill/probe@0.1.0")?;
        let counts = Arc::clone(&self.counts);
        instance.func_wrap_async("wait", move |_, (): ()| {
            counts.count(&counts.waits);
            Box::new(std::future::pending::<wasmtime::Result<()>>())
        })?;
        let counts = Arc::clone(&self.counts);
        instance.func_wrap_async("sleep", move |_, (): ()| {
            counts.count(&counts.waits);
            Box::new(async {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(())
            })
        })?;
        let counts = Arc::clone(&self.counts);
        instance.func_wrap("describing", move |cx, (): ()| {
            let describing = cx.data().is_describing();
            if !describing {
                counts.count(&counts.marks);
            }
            Ok((describing,))
        })
    }
}

impl Counts {
    fn count(&self, what: &AtomicU64) {
        what.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }
}
