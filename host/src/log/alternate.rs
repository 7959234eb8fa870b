//! The alternate sink: where interrupts are recorded while the log cannot be written, or takes too long.
//!
//! Invariant: it has a thread of its own, so neither a stop nor the log waits for it; and it is woken by the ticker, so a
//! stop does not pay for it either. What is in it is in the log as well once that works again, and is taken out then.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::fs::FallocateFlags;

use super::{Entry, Log, Stop};
use crate::ids::HostId;

/// An interrupt that is not in the log after this long goes to the alternate sink.
const PATIENCE: Duration = Duration::from_millis(500);
/// The ticker wakes the thread this often while anything waits (ms).
const LOOK_EVERY_MS: u64 = 100;
/// Room that is taken on the disk beforehand, while there is some (bytes): about a thousand interrupts.
const ALLOCATED_BYTES: u64 = 512 << 10;
/// The file never becomes larger (bytes); what does not fit is only said.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The side of the log and the ticker.
pub(crate) struct Alternate {
    stops: ArrayQueue<Arc<Stop>>,
    /// Something was pushed, or waits.
    pending: AtomicBool,
    /// When the thread was woken last (ms, of the log's clock).
    woken_ms: AtomicU64,
    /// Interrupts in the sink since the log works no more.
    pub(super) written: AtomicU64,
    thread: OnceLock<Thread>,
    running: Mutex<Option<JoinHandle<()>>>,
    /// The log takes nothing any more: what is not in it now goes to the sink.
    ending: AtomicBool,
}

impl Alternate {
    pub(super) fn new(stops_max: usize) -> Self {
        Self {
            stops: ArrayQueue::new(stops_max),
            pending: AtomicBool::new(false),
            woken_ms: AtomicU64::new(0),
            written: AtomicU64::new(0),
            thread: OnceLock::new(),
            running: Mutex::new(None),
            ending: AtomicBool::new(false),
        }
    }

    /// Never waits. If there is no room, the oldest makes some: it has been looked at, or is in the log.
    pub(super) fn push(&self, stop: Arc<Stop>) {
        self.stops.force_push(stop);
        self.pending.store(true, Ordering::Release);
    }
}

impl Log {
    /// By the ticker: wakes the sink's thread now and then while anything may be for it.
    pub(crate) fn look_at_alternate(&self) {
        if !self.alternate.pending.load(Ordering::Acquire) {
            return;
        }
        let now_ms = self.now_ms();
        if now_ms.saturating_sub(self.alternate.woken_ms.load(Ordering::Acquire)) < LOOK_EVERY_MS {
            return;
        }
        self.alternate.woken_ms.store(now_ms, Ordering::Release);
        if let Some(thread) = self.alternate.thread.get() {
            thread.unpark();
        }
    }

    /// The log has ended: what it could not take is in the sink when this returns.
    pub(super) fn end_alternate(&self) {
        self.alternate.ending.store(true, Ordering::Release);
        let running = self.alternate.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            running.thread().unpark();
            // A panic of the sink is not the log's.
            let _ = running.join();
        }
    }
}

/// Starts the thread. Without a path the interrupts are said to whoever listens to `tracing`.
pub(crate) fn start(log: &Arc<Log>, host: HostId, path: Option<PathBuf>) -> std::io::Result<()> {
    let file = match &path {
        Some(path) => Some(open(path)?),
        None => None,
    };
    let sink = Sink { host, path, file, bytes: 0, waiting: Vec::new(), in_file: Vec::new() };
    let weak = Arc::downgrade(log);
    let thread = thread::Builder::new().name("estop-alternate".into()).spawn(move || sink.serve(&weak))?;
    // Started once for each log.
    let _ = log.alternate.thread.set(thread.thread().clone());
    *log.alternate.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    Ok(())
}

fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // So that it can be written on a full disk. Where that is not possible, it may have to be said only.
    let _ = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ALLOCATED_BYTES);
    Ok(file)
}

struct Sink {
    host: HostId,
    path: Option<PathBuf>,
    file: Option<File>,
    bytes: u64,
    /// Not in the log, and not old enough.
    waiting: Vec<Arc<Stop>>,
    /// In the sink, and not in the log.
    in_file: Vec<Arc<Stop>>,
}

impl Sink {
    fn serve(mut self, log: &Weak<Log>) {
        loop {
            let Some(log) = log.upgrade() else { return };
            // Read before the turn: what was pushed before the log ended is then in it.
            let ending = log.alternate.ending.load(Ordering::Acquire);
            self.turn(&log, ending);
            if ending {
                return;
            }
            drop(log);
            thread::park();
        }
    }

    fn turn(&mut self, log: &Log, ending: bool) {
        log.alternate.pending.store(false, Ordering::Release);
        self.waiting.extend(std::iter::from_fn(|| log.alternate.stops.pop()));
        let stuck = log.is_stuck() || ending;
        for stop in std::mem::take(&mut self.waiting) {
            if stop.entered.load(Ordering::Acquire) {
                continue;
            }
            if stuck || stop.recorded.elapsed() > PATIENCE {
                self.write(&stop);
                log.alternate.written.fetch_add(1, Ordering::AcqRel);
                self.in_file.push(stop);
            } else {
                self.waiting.push(stop);
            }
        }
        self.in_file.retain(|stop| !stop.entered.load(Ordering::Acquire));
        if self.in_file.is_empty() && self.bytes > 0 {
            self.bytes = 0;
            if let Some(file) = &self.file {
                // What stays is entered a second time, as what it is, if this process dies.
                let _ = file.set_len(0);
                let _ = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, ALLOCATED_BYTES);
            }
        }
        if !self.waiting.is_empty() || !self.in_file.is_empty() {
            log.alternate.pending.store(true, Ordering::Release);
        }
    }

    fn write(&mut self, stop: &Stop) {
        let entry = Entry::new(stop.at_ns, self.host, stop.kind()).to_json();
        let line = format!("{entry}\n");
        let written = match &mut self.file {
            Some(file) if self.bytes + line.len() as u64 <= FILE_BYTES_MAX => {
                file.write_all(line.as_bytes()).and_then(|()| file.sync_data())
            }
            Some(_) => Err(std::io::Error::other(format!("it has {FILE_BYTES_MAX} bytes, which is its limit"))),
            None => Err(std::io::Error::other("there is none")),
        };
        self.bytes += line.len() as u64;
        match written {
            Ok(()) => {
                let path = self.path.as_deref().unwrap_or(Path::new(""));
                tracing::warn!(path = %path.display(), "the log cannot be written; a stop was recorded beside it");
            }
            // The last resort: whoever reads what this process says.
            Err(error) => tracing::error!(%error, %entry, "a stop is neither in the log nor in the alternate sink"),
        }
    }
}
