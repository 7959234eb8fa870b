//! Reads: by threads of their own, because a disk may take a second and nothing can preempt a guest worker that waits
//! for it.
//!
//! Invariant: whoever waits for a read can be dropped at any moment, and a read that nobody waits for is not done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::database::Place;
use crate::log::Entry;
use crate::store::{Key, Listing, Space, StoreError, Version, Versioned};

/// Threads that read.
const READERS: usize = 2;
/// Reads that wait; each call has one at most.
const READS_MAX: usize = 1 << 16;

type Job = Box<dyn FnOnce(&Place, &mut Option<Connection>) + Send>;

/// The threads, and what they have to do. They end when this is dropped.
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Readers {
    pub(super) fn start(place: Place) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { place, queue: Mutex::default(), more: Condvar::new() });
        // Whole from the start: if a thread cannot be started, dropping this ends the others.
        let readers = Self { shared };
        for _ in 0..READERS {
            let shared = Arc::clone(&readers.shared);
            thread::Builder::new().name("estop-read".into()).spawn(move || shared.serve())?;
        }
        Ok(readers)
    }

    /// The newest committed value of a key.
    pub(super) fn get(&self, space: &Space, key: &Key) -> BoxFuture<'static, Result<Versioned, StoreError>> {
        let (space, key) = (space.clone(), key.clone());
        self.read(move |connection| {
            let sql = "SELECT kv.version, kv.value FROM space JOIN bucket ON bucket.space = space.id \
                       JOIN kv ON kv.bucket = bucket.id \
                       WHERE space.agent = ?1 AND space.component = ?2 AND bucket.name = ?3 AND kv.key = ?4";
            let found = connection
                .prepare_cached(sql)?
                .query_row(params![&*space.agent, &*space.component, &*key.bucket, &*key.key], |row| {
                    Ok((Version(row.get(0)?), Some(Arc::from(row.get_ref(1)?.as_blob()?))))
                })
                .optional()?;
            Ok(Ok(found.unwrap_or((Version::ABSENT, None))))
        })
    }

    /// The keys of a bucket, and since when they are these.
    pub(super) fn list(
        &self,
        space: &Space,
        bucket: &Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'static, Result<Listing, StoreError>> {
        let (space, bucket) = (space.clone(), Arc::clone(bucket));
        self.read(move |connection| {
            // One statement, so that version and keys are of the same moment.
            let sql = "SELECT bucket.version, kv.key FROM space JOIN bucket ON bucket.space = space.id \
                       JOIN kv ON kv.bucket = bucket.id \
                       WHERE space.agent = ?1 AND space.component = ?2 AND bucket.name = ?3 ORDER BY kv.key LIMIT ?4";
            let mut statement = connection.prepare_cached(sql)?;
            let limit = i64::try_from(keys_max).unwrap_or(i64::MAX).saturating_add(1);
            let mut rows = statement.query(params![&*space.agent, &*space.component, &*bucket, limit])?;
            let mut listing = Listing::default();
            while let Some(row) = rows.next()? {
                if listing.keys.len() == keys_max {
                    return Ok(Err(StoreError::TooManyKeys { bucket, keys_max }));
                }
                listing.version = Version(row.get(0)?);
                listing.keys.push(row.get_ref(1)?.as_str()?.into());
            }
            Ok(Ok(listing))
        })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |place, connection| {
            if answer.is_closed() {
                return;
            }
            // Whoever asked may go away meanwhile.
            let _ = answer.send(on(place, connection, read));
        });
        let queued = self.shared.push(job);
        async move {
            queued?;
            answered.await.unwrap_or_else(|_| Err(StoreError::Io("its reader has ended".into())))
        }
        .boxed()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn push(&self, job: Job) -> Result<(), StoreError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.jobs.len() >= READS_MAX {
            return Err(StoreError::Busy);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.more.notify_one();
        Ok(())
    }

    fn serve(&self) {
        let mut connection = None;
        loop {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let job = loop {
                if queue.closed {
                    return;
                }
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            job(&self.place, &mut connection);
        }
    }
}

/// Reads with a connection that is opened if need be, and given up after an error: the next read has a new one.
pub(super) fn on<T>(
    place: &Place,
    kept: &mut Option<Connection>,
    read: impl FnOnce(&Connection) -> rusqlite::Result<Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let connection = match kept.take() {
        Some(connection) => connection,
        None => place.open_reader()?,
    };
    let answer = read(&connection).map_err(|error| place.error(&error))?;
    *kept = Some(connection);
    answer
}

/// Up to `count_max` lines after the line `after`, oldest first.
pub(super) fn lines(connection: &Connection, after: u64, count_max: usize) -> rusqlite::Result<Vec<(u64, String)>> {
    let count_max = i64::try_from(count_max).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached("SELECT seq, line FROM log WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let rows = statement.query_map(params![after, count_max], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// A line as an entry. One that cannot be read is told as such: `verify` says what is wrong with it.
pub(super) fn entry(line: &str) -> Result<Entry, StoreError> {
    serde_json::from_str(line).map_err(|error| StoreError::Io(format!("a line of the log cannot be read: {error}")))
}
