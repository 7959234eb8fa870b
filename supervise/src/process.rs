//! Processes as `/proc` shows them, and signals that cannot hit a reused pid.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::failed;

/// How often a process is read again whose parent vanished during the walk.
const LINK_READS: usize = 3;
/// How often an environment that cannot be read whole is tried.
const ENVIRON_READS: usize = 3;
/// How long reading from a process in uninterruptible sleep may take, and how many threads may be
/// stuck in it.
const ASIDE_PATIENCE: Duration = Duration::from_millis(20);
const ASIDE_READERS: usize = 16;
/// Largest environment read, in bytes; the kernel's own limit for arguments and environment is of
/// this order.
const ENVIRON_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

/// Names one process for good: a reused pid comes with another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start: u64,
}

/// One process, as of one reading of `/proc/PID/stat`.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub key: Key,
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    pub state: char,
    pub threads: u32,
    /// Where its environment begins and ends in its memory. Zero while a program is being loaded,
    /// for a process without memory, and for one that we may not look into.
    environ: (u64, u64),
    pub name: String,
}

impl Process {
    /// Whether anything of it can still run. A process whose first thread ended shows as a zombie
    /// while its other threads run on, so the state alone does not tell.
    pub(crate) fn alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x') || self.threads > 1
    }

    /// Whether it cannot start another process before it is killed, given that SIGSTOP was sent.
    /// In state D a pending SIGSTOP takes effect before the process returns to its program, and
    /// fork fails while a signal is pending.
    pub(crate) fn halted(&self) -> bool {
        match self.state {
            'T' | 't' | 'D' => true,
            'Z' | 'X' | 'x' => self.threads <= 1 || threads_halted(self.key.pid),
            _ => false,
        }
    }
}

fn threads_halted(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    tasks.flatten().all(|task| {
        fs::read(task.path().join("stat"))
            .ok()
            .and_then(|stat| parse(pid, &stat))
            .is_none_or(|task| matches!(task.state, 'T' | 't' | 'D' | 'Z' | 'X' | 'x'))
    })
}

/// Parses `/proc/PID/stat`. The name may hold spaces and parentheses, so the fields are counted
/// from the last closing one.
fn parse(pid: u32, stat: &[u8]) -> Option<Process> {
    let text = String::from_utf8_lossy(stat);
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let name = text.get(open + 1..close)?.to_owned();
    let mut fields = text.get(close + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // proc(5) counts from 1: the session was field 6, num_threads is 20, starttime 22, env_start 50.
    let threads = fields.nth(13)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let environ = (
        fields.nth(27).and_then(|at| at.parse().ok()).unwrap_or(0),
        fields.next().and_then(|at| at.parse().ok()).unwrap_or(0),
    );
    Some(Process { key: Key { pid, start }, parent, group, session, state, threads, environ, name })
}

/// Whether an error says that the process is gone, as against that it could not be looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Reads one process; `None` when there is none with this pid.
pub(crate) fn read(pid: u32) -> io::Result<Option<Process>> {
    let path = format!("/proc/{pid}/stat");
    match fs::read(&path) {
        Ok(stat) => parse(pid, &stat).map(Some).ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not in the form of proc(5)");
            failed(format!("parsing {path}"), source)
        }),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed(format!("reading {path}"), error)),
    }
}

/// All processes by pid. Fails rather than leave one out that may be there: what is missing counts
/// as gone to the caller.
pub(crate) fn snapshot() -> io::Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    let entries = fs::read_dir("/proc").map_err(|error| failed("listing /proc", error))?;
    for entry in entries {
        let entry = entry.map_err(|error| failed("listing /proc", error))?;
        let pid = entry.file_name().to_str().and_then(|s| s.parse().ok());
        if let Some(process) = pid.map(read).transpose()?.flatten() {
            all.insert(process.key.pid, process);
        }
    }
    // The walk is not atomic: a process read before its parent died still names that parent, and
    // would hang in the air.
    for _ in 0..LINK_READS {
        let lost: Vec<u32> = all
            .values()
            .filter(|process| process.parent != 0 && !all.contains_key(&process.parent))
            .map(|process| process.key.pid)
            .collect();
        if lost.is_empty() {
            break;
        }
        for pid in lost {
            let Some(process) = read(pid)? else {
                all.remove(&pid);
                continue;
            };
            if process.parent != 0
                && !all.contains_key(&process.parent)
                && let Some(parent) = read(process.parent)?
            {
                all.insert(parent.key.pid, parent);
            }
            all.insert(pid, process);
        }
    }
    Ok(all)
}

/// The newest of this process's children, newest first, so many for each of our threads; none where
/// the kernel does not list them. Much faster than a walk, and proves nothing by itself.
pub(crate) fn newest_children(count: usize) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.rsplit(' ').filter_map(|pid| pid.parse().ok()).take(count).collect::<Vec<u32>>())
        .collect()
}

/// What the environment of a process says about a variable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    /// Its value.
    Value(String),
    /// Not there: not in the environment, or no environment, or none that we may read.
    Absent,
    /// A program is just being loaded, and has no environment yet.
    Loading,
    /// The process is dead.
    Gone,
}

/// Reads a variable of a process.
pub(crate) fn variable(process: &Process, name: &str) -> Variable {
    for _ in 0..ENVIRON_READS {
        let bytes = match read_environ(process) {
            Ok(bytes) => bytes,
            // Cut short, mostly because another program took over the memory.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Variable::Loading,
            Err(error) if is_gone(&error) => return Variable::Gone,
            Err(_) => return Variable::Absent,
        };
        return bytes
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map_or(Variable::Absent, |value| Variable::Value(String::from_utf8_lossy(value).into_owned()));
    }
    Variable::Absent
}

/// The whole environment of a process. An error of the kind `WouldBlock` says that a program is
/// being loaded, `UnexpectedEof` that not all could be read.
fn read_environ(process: &Process) -> io::Result<Vec<u8>> {
    let pid = process.key.pid;
    let now = read(pid)?.filter(|now| now.key == process.key && now.alive());
    let now = now.ok_or(io::ErrorKind::NotFound)?;
    if matches!(now.state, 'Z' | 'X' | 'x') {
        // The first thread ended and took its view of the memory along; others may still have it.
        return fs::read_dir(format!("/proc/{pid}/task"))?
            .flatten()
            .filter_map(|task| read_some(&task.path().join("environ")).ok())
            .find(|bytes| !bytes.is_empty())
            .ok_or_else(|| io::ErrorKind::ResourceBusy.into());
    }
    let path = PathBuf::from(format!("/proc/{pid}/environ"));
    let (start, end) = now.environ;
    if end == 0 {
        // Opening tells those that are being loaded from those that we may not look into.
        return File::open(path).and(Err(io::ErrorKind::WouldBlock.into()));
    }
    let bytes = match now.state {
        'D' => read_aside(path)?,
        _ => read_some(&path)?,
    };
    let length = end.saturating_sub(start).min(ENVIRON_LIMIT_BYTES);
    if u64::try_from(bytes.len()).is_ok_and(|read| read >= length) {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads a file of a process in uninterruptible sleep. Mostly it only waits for a vfork, but it may
/// hold a lock on its memory for ever, so another thread takes the risk, and few of them ever do.
fn read_aside(path: PathBuf) -> io::Result<Vec<u8>> {
    static STUCK: AtomicUsize = AtomicUsize::new(0);
    if STUCK.fetch_add(1, Ordering::Relaxed) >= ASIDE_READERS {
        STUCK.fetch_sub(1, Ordering::Relaxed);
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let (sender, receiver) = sync_channel(1);
    let reader = thread::Builder::new().name("estop-environ".to_owned());
    let started = reader.spawn(move || {
        let _ = sender.send(read_some(&path));
        STUCK.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = started {
        STUCK.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    receiver.recv_timeout(ASIDE_PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::ResourceBusy.into()))
}

fn read_some(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(ENVIRON_LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Turns a pid into the form rustix takes.
pub(crate) fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}

/// Sends a signal to exactly this process. `false` when it is gone.
///
/// The pidfd is opened first and the start time compared after: if the pid belongs to `key` now,
/// it did so when the pidfd was opened too, since `key` had it before that.
pub(crate) fn signal(key: Key, signal: Signal) -> io::Result<bool> {
    let what = || format!("sending {signal:?} to process {}", key.pid);
    let Some(pid) = as_pid(key.pid) else {
        return Ok(false);
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(failed(what(), error)),
    };
    if read(key.pid)?.is_none_or(|now| now.key != key) {
        return Ok(false);
    }
    match pidfd_send_signal(&fd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(failed(what(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = b"42 (a) R 1 (b)) S 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 1234 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 66 77 0";
        let process = parse(42, stat).unwrap();
        assert_eq!(process.name, "a) R 1 (b)");
        assert_eq!((process.parent, process.group, process.session), (7, 8, 9));
        assert_eq!((process.state, process.threads), ('S', 3));
        assert_eq!((process.key.start, process.environ), (1234, (66, 77)));
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = read(std::process::id()).unwrap().unwrap();
        let other = Key { start: me.key.start + 1, ..me.key };
        // Would end the test at once if it were sent.
        assert!(!signal(other, Signal::KILL).unwrap());
    }
}
