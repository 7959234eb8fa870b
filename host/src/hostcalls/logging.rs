//! `wasi:logging`: lines of a tool, as `tracing` events under the target `estop::tool`. They are not part of the log.

use super::bindings::wasi::logging::logging::{Host, Level};
use crate::interrupt::cut;
use crate::sandbox::CallCtx;

/// Length of a line, and of its context (bytes); the rest is cut.
const LINE_BYTES_MAX: usize = 4096;

/// Lines of one call; more are thrown away, so that whoever reads them slowly does not hold up the guest's worker for long.
const LINES_MAX: u32 = 1000;

impl Host for CallCtx {
    async fn log(&mut self, level: Level, mut context: String, mut message: String) -> wasmtime::Result<()> {
        if self.log_lines >= LINES_MAX {
            return Ok(());
        }
        self.log_lines += 1;
        cut(&mut context, LINE_BYTES_MAX);
        cut(&mut message, LINE_BYTES_MAX);
        let (call, tool) = (self.call.id, &*self.call.tool);
        // Debug formatting escapes what could forge lines or drive a terminal.
        match level {
            Level::Trace => tracing::trace!(target: "estop::tool", %call, tool, ?context, ?message),
            Level::Debug => tracing::debug!(target: "estop::tool", %call, tool, ?context, ?message),
            Level::Info => tracing::info!(target: "estop::tool", %call, tool, ?context, ?message),
            Level::Warn => tracing::warn!(target: "estop::tool", %call, tool, ?context, ?message),
            Level::Error | Level::Critical => {
                tracing::error!(target: "estop::tool", %call, tool, ?context, ?message)
            }
        }
        Ok(())
    }
}
