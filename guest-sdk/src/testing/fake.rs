//! The host that a tool sees natively: one [`World`] for each thread.

pub(crate) mod process;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::rc::Rc;

use crate::call::Cause;
use crate::error::ToolError;
use crate::host::{CommitError, Found, StoreError, SwapError};
use crate::http::{Problem, Request, Response, Url};
use crate::log::Level;
use crate::output::Answer;
use crate::testing::web::Web;
use crate::testing::{Invoked, LogLine, Progress};

/// Small, so that ordinary tests turn pages.
const PAGE_KEYS: usize = 10;

/// Bucket and key.
type Place = (String, String);

type Act = dyn Fn(&str) -> Result<Answer, ToolError>;

/// Stands for a tool that can be invoked.
#[derive(Clone)]
pub(crate) struct Fake(pub(super) Rc<Act>);

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

/// Everything that one call can see and do.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(super) committed: BTreeMap<Place, Vec<u8>>,
    /// Since the last commit point; `None` is a removal.
    pub(super) written: BTreeMap<Place, Option<Vec<u8>>>,
    pub(super) interrupt_at: Option<u64>,
    pub(super) cause: Cause,
    pub(super) conflict_at: Option<u64>,
    pub(super) progress: Vec<Progress>,
    pub(super) log: Vec<LogLine>,
    pub(super) checkpoints: u64,
    pub(super) commit_attempts: u64,
    pub(super) commits: u64,
    pub(super) programs: process::Programs,
    pub(super) web: Web,
    pub(super) tools: BTreeMap<String, Fake>,
    pub(super) invoked: Vec<Invoked>,
    /// Tools that were invoked and have not answered.
    pub(super) depth: usize,
}

impl Default for World {
    fn default() -> Self {
        Self {
            committed: BTreeMap::new(),
            written: BTreeMap::new(),
            interrupt_at: None,
            cause: Cause::Operator,
            conflict_at: None,
            progress: Vec::new(),
            log: Vec::new(),
            checkpoints: 0,
            commit_attempts: 0,
            commits: 0,
            programs: process::Programs::default(),
            web: Web::default(),
            tools: BTreeMap::new(),
            invoked: Vec::new(),
            depth: 0,
        }
    }
}

impl World {
    fn get(&self, place: &Place) -> Option<Vec<u8>> {
        match self.written.get(place) {
            Some(written) => written.clone(),
            None => self.committed.get(place).cloned(),
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt_at.is_some_and(|nth| self.checkpoints >= nth)
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        if self.depth > 0 {
            return Err(CommitError::Store("a tool that was invoked commits nothing itself".to_owned()));
        }
        self.commit_attempts += 1;
        if self.is_interrupted() {
            return Err(CommitError::Interrupted);
        }
        // A conflict is for good: every later commit of the call is one too.
        if self.conflict_at.is_some_and(|nth| self.commit_attempts >= nth) {
            self.written.clear();
            return Err(CommitError::Conflict("a key that was read has been changed".to_owned()));
        }
        for (place, value) in mem::take(&mut self.written) {
            match value {
                Some(value) => self.committed.insert(place, value),
                None => self.committed.remove(&place),
            };
        }
        self.commits += 1;
        Ok(())
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(act)
}

/// Puts the world of before back, also when the tool panics: the next test may run on this thread.
struct Restore(Option<World>);

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            WORLD.replace(before);
        }
    }
}

/// Runs `act` in `world` and gives what became of it.
pub(super) fn within<T>(world: World, act: impl FnOnce() -> T) -> (T, World) {
    let mut restore = Restore(Some(WORLD.replace(world)));
    let result = act();
    let world = WORLD.replace(restore.0.take().unwrap_or_default());
    (result, world)
}

pub(crate) fn interrupted() -> Option<Cause> {
    with(|world| {
        world.checkpoints += 1;
        world.is_interrupted().then_some(world.cause)
    })
}

pub(crate) fn progress(done: u64, total: Option<u64>, message: &str) {
    with(|world| world.progress.push(Progress { done, total, message: message.to_owned() }));
}

pub(crate) fn commit() -> Result<(), CommitError> {
    with(World::commit)
}

/// What it writes is kept if it succeeds.
pub(crate) fn invoke(tool: &str, input: &str) -> Result<Answer, ToolError> {
    let (fake, before) = with(|world| {
        if world.is_interrupted() {
            return Err(ToolError::interrupted());
        }
        world.invoked.push(Invoked { tool: tool.to_owned(), input: input.to_owned() });
        let fake = world.tools.get(tool).cloned();
        let fake = fake.ok_or_else(|| ToolError::failed("no-such-tool", format!("no tool `{tool}` is loaded here")))?;
        world.depth += 1;
        Ok((fake, world.written.clone()))
    })?;
    let answer = (fake.0)(input);
    with(|world| {
        world.depth -= 1;
        if answer.is_err() {
            world.written = before;
        }
    });
    answer
}

pub(crate) fn log(level: Level, context: &str, message: &str) {
    let (context, message) = (context.to_owned(), message.to_owned());
    with(|world| world.log.push(LogLine { level, context, message }));
}

pub(crate) fn send(request: &Request, url: &Url) -> Result<Response, Problem> {
    with(|world| world.web.send(request, url))
}

pub(crate) struct Bucket(String);

pub(crate) fn open(name: &str) -> Result<Bucket, StoreError> {
    Ok(Bucket(name.to_owned()))
}

impl Bucket {
    fn place(&self, key: &str) -> Place {
        (self.0.clone(), key.to_owned())
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(with(|world| world.get(&self.place(key))))
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        with(|world| world.written.insert(self.place(key), Some(value.to_vec())));
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), StoreError> {
        with(|world| world.written.insert(self.place(key), None));
        Ok(())
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.get(key)?.is_some())
    }

    /// One page, sorted, and the cursor of the next one: the last key of this.
    pub(crate) fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), StoreError> {
        let mut keys: Vec<String> = with(|world| {
            let places = world.committed.keys().chain(world.written.keys());
            let present = places.filter(|place| place.0 == self.0 && world.get(place).is_some());
            present.map(|place| place.1.clone()).collect()
        });
        keys.sort();
        keys.dedup();
        keys.retain(|key| cursor.is_none_or(|cursor| key.as_str() > cursor));
        let is_last = keys.len() <= PAGE_KEYS;
        keys.truncate(PAGE_KEYS);
        let cursor = if is_last { None } else { keys.last().cloned() };
        Ok((keys, cursor))
    }

    pub(crate) fn increment(&self, key: &str, delta: i64) -> Result<i64, StoreError> {
        let before = match self.get(key)? {
            None => 0,
            Some(bytes) => str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| StoreError::Other(format!("`{key}` is no number")))?,
        };
        let after = before
            .checked_add(delta)
            .ok_or_else(|| StoreError::Other(format!("`{key}` would not fit into 64 bits")))?;
        self.set(key, after.to_string().as_bytes())?;
        Ok(after)
    }

    pub(crate) fn compare_and_swap(&self, key: &str) -> Result<Cas, StoreError> {
        Ok(Cas { bucket: Self(self.0.clone()), key: key.to_owned(), seen: self.get(key)? })
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Found, StoreError> {
        keys.iter().map(|key| Ok((key.clone(), self.get(key)?))).collect()
    }

    pub(crate) fn set_many(&self, entries: &[(String, Vec<u8>)]) -> Result<(), StoreError> {
        entries.iter().try_for_each(|(key, value)| self.set(key, value))
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| self.delete(key))
    }
}

pub(crate) struct Cas {
    bucket: Bucket,
    key: String,
    seen: Option<Vec<u8>>,
}

impl Cas {
    pub(crate) fn current(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.seen.clone())
    }

    pub(crate) fn swap(self, value: &[u8]) -> Result<(), SwapError> {
        let now = with(|world| world.get(&self.bucket.place(&self.key)));
        if now != self.seen {
            return Err(SwapError::Changed(Self { seen: now, ..self }));
        }
        with(|world| world.written.insert(self.bucket.place(&self.key), Some(value.to_vec())));
        Ok(())
    }
}
