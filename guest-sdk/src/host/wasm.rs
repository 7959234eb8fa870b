//! The imports and exports of the contract.

pub(crate) mod process;

use crate::bindings::estop::tool::{call, types};
use crate::bindings::exports::estop::tool::tool;
use crate::bindings::wasi::keyvalue::{atomics, batch, store};
use crate::bindings::wasi::logging::logging;
use crate::call::Cause;
use crate::error::{Reason, ToolError};
use crate::host::{CommitError, Found, StoreError, SwapError};
use crate::log::Level;
use crate::output::{Answer, Attachment};
use crate::tool::{Hints, ToolSet};

pub(crate) fn interrupted() -> Option<Cause> {
    call::interrupted().map(|cause| match cause {
        types::Cause::Operator => Cause::Operator,
        types::Cause::Halted => Cause::Halted,
        types::Cause::Shutdown => Cause::Shutdown,
        types::Cause::Parent => Cause::Parent,
        types::Cause::Deadline => Cause::Deadline,
        types::Cause::Fuel => Cause::Fuel,
        types::Cause::Memory => Cause::Memory,
        types::Cause::Priority => Cause::Priority,
        types::Cause::Cancelled => Cause::Cancelled,
        types::Cause::Disconnected => Cause::Disconnected,
        types::Cause::Drill => Cause::Drill,
    })
}

pub(crate) fn progress(done: u64, total: Option<u64>, message: &str) {
    call::progress(done, total, message);
}

pub(crate) fn commit() -> Result<(), CommitError> {
    call::commit().map_err(|error| match error {
        call::CommitError::Interrupted => CommitError::Interrupted,
        call::CommitError::Conflict(message) => CommitError::Conflict(message),
        call::CommitError::Store(message) => CommitError::Store(message),
    })
}

pub(crate) fn invoke(tool: &str, input: &str) -> Result<Answer, ToolError> {
    let types::Output { json, attachments } = call::invoke(tool, input).map_err(told)?;
    let attachments = attachments.into_iter().map(|attachment| Attachment {
        name: attachment.name,
        media_type: attachment.media_type,
        data: attachment.data,
    });
    Ok(Answer { json, attachments: attachments.collect() })
}

/// What a tool that was invoked has failed with.
fn told(failure: types::Failure) -> ToolError {
    ToolError::told(match failure {
        types::Failure::InvalidInput(message) => Reason::InvalidInput(message),
        types::Failure::Failed(types::Failed { code, message, retryable, data }) => {
            Reason::Failed { code, message, retryable, data }
        }
        types::Failure::Interrupted => Reason::Interrupted,
    })
}

pub(crate) fn log(level: Level, context: &str, message: &str) {
    let level = match level {
        Level::Trace => logging::Level::Trace,
        Level::Debug => logging::Level::Debug,
        Level::Info => logging::Level::Info,
        Level::Warn => logging::Level::Warn,
        Level::Error => logging::Level::Error,
        Level::Critical => logging::Level::Critical,
    };
    logging::log(level, context, message);
}

pub(crate) struct Bucket(store::Bucket);

pub(crate) fn open(name: &str) -> Result<Bucket, StoreError> {
    Ok(Bucket(store::open(name)?))
}

impl Bucket {
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(key)?)
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        Ok(self.0.set(key, value)?)
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), StoreError> {
        Ok(self.0.delete(key)?)
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.0.exists(key)?)
    }

    pub(crate) fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        let page = self.0.list_keys(cursor)?;
        Ok((page.keys, page.cursor))
    }

    pub(crate) fn increment(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        Ok(atomics::increment(&self.0, key, delta)?)
    }

    pub(crate) fn compare_and_swap(&self, key: &str) -> Result<Cas, StoreError> {
        Ok(Cas(atomics::Cas::new(&self.0, key)?))
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Found, StoreError> {
        Ok(batch::get_many(&self.0, keys)?)
    }

    pub(crate) fn set_many(&self, entries: &[(String, Vec<u8>)]) -> Result<(), StoreError> {
        Ok(batch::set_many(&self.0, entries)?)
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), StoreError> {
        Ok(batch::delete_many(&self.0, keys)?)
    }
}

pub(crate) struct Cas(atomics::Cas);

impl Cas {
    pub(crate) fn current(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.current()?)
    }

    pub(crate) fn swap(self, value: &[u8]) -> Result<(), SwapError> {
        atomics::swap(self.0, value).map_err(|error| match error {
            atomics::CasError::StoreError(error) => SwapError::Store(error.into()),
            atomics::CasError::CasFailed(cas) => SwapError::Changed(Cas(cas)),
        })
    }
}

impl From<store::Error> for StoreError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NoSuchStore => Self::NoSuchStore,
            store::Error::AccessDenied => Self::AccessDenied,
            store::Error::Other(message) => Self::Other(message),
        }
    }
}

/// Makes whatever [`export!`](crate::export!) was given the exports of the component.
impl<S: ToolSet> tool::Guest for S {
    fn list_tools() -> Vec<tool::Spec> {
        let specs = S::TOOLS.iter().map(|entry| {
            let spec = (entry.describe)();
            tool::Spec {
                name: spec.name.to_owned(),
                version: spec.version.to_owned(),
                description: spec.description.to_owned(),
                input_schema: spec.input_schema,
                output_schema: Some(spec.output_schema),
                hints: spec.hints.into(),
            }
        });
        specs.collect()
    }

    fn call(name: String, input: String) -> Result<tool::Output, tool::Failure> {
        let answer = crate::tool::call_by_name(S::TOOLS, &name, &input)?;
        let attachments = answer.attachments.into_iter().map(|attachment| types::Attachment {
            name: attachment.name,
            media_type: attachment.media_type,
            data: attachment.data,
        });
        Ok(tool::Output { json: answer.json, attachments: attachments.collect() })
    }
}

impl From<Hints> for tool::Hints {
    fn from(hints: Hints) -> Self {
        let mut flags = Self::empty();
        flags.set(Self::READ_ONLY, hints.read_only);
        flags.set(Self::DESTRUCTIVE, hints.destructive);
        flags.set(Self::IDEMPOTENT, hints.idempotent);
        flags.set(Self::OPEN_WORLD, hints.open_world);
        flags
    }
}

impl From<ToolError> for tool::Failure {
    fn from(error: ToolError) -> Self {
        match error.into_reason() {
            Reason::InvalidInput(message) => Self::InvalidInput(message),
            Reason::Failed { code, message, retryable, data } => {
                Self::Failed(types::Failed { code, message, retryable, data })
            }
            Reason::Interrupted => Self::Interrupted,
        }
    }
}
