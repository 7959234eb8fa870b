//! `estop:tool/call`: what a running tool can say to its host.

use wasmtime::component::{HasSelf, Linker};

use super::bindings::estop::tool::call::{self, CommitError, Host};
use super::bindings::estop::tool::types;
use crate::call::live::HostCall;
use crate::call::{Progress, child};
use crate::interrupt::Cause;
use crate::sandbox::CallCtx;
use crate::transaction::Committed;

/// Length of the text of a progress report (bytes); the rest is cut.
const PROGRESS_BYTES_MAX: usize = 1024;

/// Why a call that another one has invoked does not commit.
const NESTED: &str = "a call that another one has invoked commits nothing itself: what it has written becomes durable with a \
                      commit of that one, once this one has succeeded";

/// `invoke` has to give fuel away, and what is generated gives host functions no way to that.
pub(super) fn add_to_linker(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    call::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    linker.allow_shadowing(true);
    linker.instance("estop:tool/call@0.1.0")?.func_wrap_async("invoke", |store, (tool, input): (String, String)| {
        Box::new(async move { Ok((child::invoke(store, &tool, &input).await?,)) })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

impl types::Host for CallCtx {}

impl Host for CallCtx {
    async fn interrupted(&mut self) -> wasmtime::Result<Option<types::Cause>> {
        Ok(self.call.interrupted().map(|delivered| delivered.interrupt.cause.into()))
    }

    async fn progress(&mut self, done: u64, total: Option<u64>, mut message: String) -> wasmtime::Result<()> {
        crate::interrupt::cut(&mut message, PROGRESS_BYTES_MAX);
        self.call.live.progressed(self.core.now_ns());
        self.call.progress().send_replace(Some(Progress { done, total, message }));
        Ok(())
    }

    async fn invoke(&mut self, _: String, _: String) -> wasmtime::Result<Result<types::Output, types::Failure>> {
        wasmtime::bail!("not linked: see `add_to_linker`")
    }

    async fn commit(&mut self) -> wasmtime::Result<Result<(), CommitError>> {
        if self.describing {
            return Ok(Err(CommitError::Store("there is nothing to commit while tools are listed".into())));
        }
        let _in = self.call.live.enter(HostCall::Commit);
        let committed = self.transaction.commit(&self.core, &self.call, false).await;
        Ok(match committed {
            Committed::Durable => Ok(()),
            Committed::Interrupted => Err(CommitError::Interrupted),
            Committed::Conflict(what) => Err(CommitError::Conflict(what)),
            Committed::Refused(error) => Err(CommitError::Store(error.to_string())),
            Committed::Nested => Err(CommitError::Store(NESTED.into())),
            Committed::Declined => Err(CommitError::Store("the changes of files were not approved".into())),
            // The guest would see files that are not there yet.
            Committed::NotCarriedOut(why) => return Err(NotCarriedOut(why).into()),
            Committed::Unknown(why) => {
                // What the guest would do next builds on something that may not be there.
                return Err(CommitUnknown(why).into());
            }
        })
    }
}

/// The store could not say whether a commit point is durable: the call cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CommitUnknown(pub(crate) String);

/// A commit point is durable, and the files are not changed yet: the call cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotCarriedOut(pub(crate) String);

impl From<Cause> for types::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Operator => types::Cause::Operator,
            Cause::Halted => types::Cause::Halted,
            Cause::Shutdown => types::Cause::Shutdown,
            Cause::Parent => types::Cause::Parent,
            Cause::Deadline => types::Cause::Deadline,
            Cause::Fuel => types::Cause::Fuel,
            Cause::Memory => types::Cause::Memory,
            Cause::Priority => types::Cause::Priority,
            Cause::Cancelled => types::Cause::Cancelled,
            Cause::Disconnected => types::Cause::Disconnected,
            Cause::Drill => types::Cause::Drill,
        }
    }
}
