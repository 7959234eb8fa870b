//! Memory of one call.
//!
//! Invariant: what all memories of the call have together stays within its limit. Growing past it is a typed error and
//! not a failed `memory.grow`, which a guest's allocator would turn into a trap without a cause.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmtime::ResourceLimiter;

use crate::call::live::Live;

/// The call is to be stopped for what its memory would be.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the call's memory would grow to {bytes} bytes; it was granted {bytes_max}")]
pub(crate) struct MemoryLimitReached {
    bytes: usize,
    bytes_max: usize,
}

pub(crate) struct Limiter {
    memory_bytes: usize,
    memory_bytes_max: usize,
    live: Arc<Live>,
}

impl Limiter {
    pub(crate) fn new(memory_bytes_max: usize, live: Arc<Live>) -> Self {
        Self { memory_bytes: 0, memory_bytes_max, live }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Its own declaration forbids it: the guest is answered -1 as the specification says.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let bytes = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if bytes > self.memory_bytes_max {
            return Err(MemoryLimitReached { bytes, bytes_max: self.memory_bytes_max }.into());
        }
        self.memory_bytes = bytes;
        self.live.memory_bytes.store(bytes as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// The pool's tables are no larger than the host's limit, and the guest is answered -1 there.
    fn table_growing(&mut self, _current: usize, _desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(true)
    }
}
