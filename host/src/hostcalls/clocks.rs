//! The clock of a guest that was granted none: right, and coarse, so that it is of little use for measuring the host.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

use crate::clock::{Clock, nanos};

/// The resolution of both clocks.
const RESOLUTION: Duration = Duration::from_millis(1);

#[derive(Clone)]
pub(crate) struct CoarseClock {
    clock: Arc<dyn Clock>,
}

impl CoarseClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }
}

impl HostMonotonicClock for CoarseClock {
    fn resolution(&self) -> u64 {
        nanos(RESOLUTION)
    }

    fn now(&self) -> u64 {
        let now = nanos(self.clock.monotonic());
        now - now % nanos(RESOLUTION)
    }
}

impl HostWallClock for CoarseClock {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        let now = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }
}
