//! The clocks of a guest: right, and coarse if it was not granted them, so that they are of little use for measuring the
//! host.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

use crate::clock::{Clock, nanos};

/// The resolution of both clocks, where nothing is granted.
const COARSE: Duration = Duration::from_millis(1);
const FINE: Duration = Duration::from_nanos(1);

#[derive(Clone)]
pub(crate) struct GuestClock {
    clock: Arc<dyn Clock>,
    resolution: Duration,
}

impl GuestClock {
    pub(crate) fn coarse(clock: Arc<dyn Clock>) -> Self {
        Self { clock, resolution: COARSE }
    }

    pub(crate) fn fine(clock: Arc<dyn Clock>) -> Self {
        Self { clock, resolution: FINE }
    }

    fn rounded(&self, time_ns: u64) -> u64 {
        time_ns - time_ns % nanos(self.resolution)
    }
}

impl HostMonotonicClock for GuestClock {
    fn resolution(&self) -> u64 {
        nanos(self.resolution)
    }

    fn now(&self) -> u64 {
        self.rounded(nanos(self.clock.monotonic()))
    }
}

impl HostWallClock for GuestClock {
    fn resolution(&self) -> Duration {
        self.resolution
    }

    fn now(&self) -> Duration {
        let now = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_nanos(self.rounded(nanos(now)))
    }
}
