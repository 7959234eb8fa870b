//! Runs tools natively, under plain `cargo test`.
//!
//! A [`Run`] is one call: it begins with the state that it was given, and ends as a call in a host
//! does. What the tool has written is kept if it succeeds, and what it has written since its last
//! commit point is discarded otherwise.
//!
//! ```
//! use estop_tool::testing::Run;
//! use estop_tool::{ToolError, checkpoint, commit, kv};
//!
//! /// Count to ten, and keep each number.
//! #[estop_tool::tool]
//! fn count() -> Result<u64, ToolError> {
//!     let bucket = kv::open("numbers")?;
//!     for number in 1..=10 {
//!         checkpoint()?;
//!         bucket.set("last", &number)?;
//!         if number % 2 == 0 {
//!             commit()?;
//!         }
//!     }
//!     Ok(10)
//! }
//!
//! // Stopped at the fourth checkpoint: 3 was written, 2 was committed.
//! let ended = Run::new().interrupt_at_checkpoint(4).call(count);
//! assert!(ended.result.as_ref().unwrap_err().is_interrupted());
//! assert_eq!(ended.state("numbers", "last"), Some(2));
//! ```
//!
//! Invariant: nothing is shared between threads, so tests that run at the same time see nothing of each
//! other. Outside a `Run` a tool works on a state of its thread that is empty at first, and is never
//! interrupted.

use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) mod fake;
mod web;

use crate::call::Cause;
use crate::error::ToolError;
use crate::log::Level;
use crate::output::{Answer, Output};
use crate::process;
use crate::tool::{self, Description, Tool};
use fake::{Fake, World};
pub use web::{Answered, Requested};

/// What a caller learns of the tool `T`: its description, schemas and hints.
pub fn describe<T: Tool>() -> Description {
    tool::describe::<T>()
}

/// One call of a tool, to be made.
#[derive(Clone, Debug, Default)]
pub struct Run {
    world: World,
}

impl Run {
    /// A call that begins with no state and is not interrupted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins with `value` under `key` in `bucket`, as JSON.
    ///
    /// # Panics
    ///
    /// If the value cannot be written as JSON.
    #[must_use]
    pub fn state<T: Serialize + ?Sized>(self, bucket: &str, key: &str, value: &T) -> Self {
        let json = serde_json::to_vec(value).expect("state is JSON");
        self.state_bytes(bucket, key, &json)
    }

    /// Begins with `value` under `key` in `bucket`, as it is.
    #[must_use]
    pub fn state_bytes(mut self, bucket: &str, key: &str, value: &[u8]) -> Self {
        self.world.committed.insert((bucket.to_owned(), key.to_owned()), value.to_vec());
        self
    }

    /// The call is interrupted when the tool looks for the `nth` time, counted from 1, by
    /// [`checkpoint()`](crate::checkpoint()) or [`interrupted()`](crate::interrupted()), and stays so.
    /// From then on nothing can be committed.
    #[must_use]
    pub fn interrupt_at_checkpoint(mut self, nth: u64) -> Self {
        self.world.interrupt_at = Some(nth);
        self
    }

    /// Why the call is interrupted. [`Cause::Operator`] if nothing is said.
    #[must_use]
    pub fn cause(mut self, cause: Cause) -> Self {
        self.world.cause = cause;
        self
    }

    /// Someone else changes what the call has read before it commits for the `nth` time, counted from
    /// 1. The commit at the tool's successful end counts as well.
    #[must_use]
    pub fn conflict_at_commit(mut self, nth: u64) -> Self {
        self.world.conflict_at = Some(nth);
        self
    }

    /// The call is granted a program. The function gets its arguments and its standard input.
    #[must_use]
    pub fn program(mut self, name: &str, program: impl Fn(&[String], &[u8]) -> process::Output + 'static) -> Self {
        self.world.programs.add(name, program);
        self
    }

    /// What is answered to a request, once, by its method and URL: `GET https://example.com/`. Several answers to one request
    /// are given one after the other; a request that has none is denied, as one that is not granted.
    #[must_use]
    pub fn answer(mut self, request: impl Into<String>, answer: Answered) -> Self {
        self.world.web.add(request.into(), answer);
        self
    }

    /// What [`invoke()`](crate::invoke()) of `name` answers. `name` is as the tool says it, with the
    /// component or without. A tool that is not given here does not exist.
    ///
    /// # Panics
    ///
    /// When the tool is invoked, if its answer cannot be written as JSON.
    #[must_use]
    pub fn tool<I: DeserializeOwned, O: Serialize>(
        self,
        name: &str,
        act: impl Fn(I) -> Result<O, ToolError> + 'static,
    ) -> Self {
        self.tool_output(name, move |input| act(input).map(Output::new))
    }

    /// As [`tool`](Self::tool), with attachments.
    ///
    /// # Panics
    ///
    /// As [`tool`](Self::tool).
    #[must_use]
    pub fn tool_output<I: DeserializeOwned, O: Serialize>(
        mut self,
        name: &str,
        act: impl Fn(I) -> Result<Output<O>, ToolError> + 'static,
    ) -> Self {
        let fake = move |input: &str| {
            let input = serde_json::from_str(input).map_err(ToolError::invalid_input)?;
            let (value, attachments) = act(input)?.into_parts();
            let json = serde_json::to_string(&value).expect("an answer is JSON");
            Ok(Answer { json, attachments })
        };
        self.world.tools.insert(name.to_owned(), Fake(Rc::new(fake)));
        self
    }

    /// Makes the call.
    pub fn call<T>(self, tool: impl FnOnce() -> Result<T, ToolError>) -> Ended<T> {
        let (result, world) = fake::within(self.world, || {
            let value = tool()?;
            crate::call::commit()?;
            Ok(value)
        });
        Ended { result, world }
    }

    /// Calls the tool `T` as a host does: with JSON, and answering JSON. `T` is the tool's name as in
    /// [`export!`](crate::export!).
    pub fn call_json<T: Tool>(self, input: &str) -> Ended<Answer> {
        self.call(|| tool::call_json::<T>(input))
    }
}

/// A call that was made.
#[derive(Debug)]
pub struct Ended<T> {
    /// What the caller gets: the tool's error, or why the commit at its end did nothing.
    pub result: Result<T, ToolError>,
    world: World,
}

impl<T> Ended<T> {
    /// What is now stored under `key` in `bucket`, for good.
    ///
    /// # Panics
    ///
    /// If it is something else than a `V`.
    pub fn state<V: DeserializeOwned>(&self, bucket: &str, key: &str) -> Option<V> {
        let bytes = self.state_bytes(bucket, key)?;
        Some(serde_json::from_slice(&bytes).expect("the stored value has the type asked for"))
    }

    /// What is now stored under `key` in `bucket`, for good and as it is.
    pub fn state_bytes(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.world.committed.get(&(bucket.to_owned(), key.to_owned())).cloned()
    }

    /// The keys that now exist in `bucket`, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let keys = self.world.committed.keys().filter(|(name, _)| name == bucket);
        keys.map(|(_, key)| key.clone()).collect()
    }

    /// Everything that was reported by [`progress()`](crate::progress()).
    pub fn progress(&self) -> &[Progress] {
        &self.world.progress
    }

    /// Everything that was logged.
    pub fn log(&self) -> &[LogLine] {
        &self.world.log
    }

    /// Every request that was made, also those that failed.
    pub fn requests(&self) -> &[Requested] {
        &self.world.web.requests
    }

    /// Every tool that was invoked, also in vain.
    pub fn invoked(&self) -> &[Invoked] {
        &self.world.invoked
    }

    /// How often the tool looked whether it was interrupted.
    pub fn checkpoints(&self) -> u64 {
        self.world.checkpoints
    }

    /// How many commits succeeded, the one at the end included.
    pub fn commits(&self) -> u64 {
        self.world.commits
    }

    /// A new call that begins with the state this one has left, and can invoke the same tools.
    pub fn and_then(self) -> Run {
        let World { committed, tools, .. } = self.world;
        Run { world: World { committed, tools, ..World::default() } }
    }
}

/// One report of [`progress()`](crate::progress()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How much is done.
    pub done: u64,
    /// Of how much.
    pub total: Option<u64>,
    /// For people who watch.
    pub message: String,
}

/// One use of [`invoke()`](crate::invoke()).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoked {
    /// As the tool named it.
    pub tool: String,
    /// One JSON document.
    pub input: String,
}

/// One line of [`log`](crate::log).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// Which part of the tool speaks; may be empty.
    pub context: String,
    /// The line.
    pub message: String,
}
