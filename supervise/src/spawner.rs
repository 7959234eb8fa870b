//! Starting processes from a thread that lives as long as this process.
//!
//! The kernel ties the parent death signal (see [`shim`](crate::shim)) to the *thread* that
//! forked. Spawned from a worker that ends early, a supervised program would be killed for no
//! reason. So one thread, which never ends, does all the spawning.

use std::io;
use std::mem;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::failed;
use crate::registry::{self, Pending};

type Reply = (Command, io::Result<Child>);

struct Job {
    command: Command,
    reply: SyncSender<Reply>,
}

static JOBS: Mutex<Option<Sender<Job>>> = Mutex::new(None);

fn jobs() -> io::Result<Sender<Job>> {
    let mut jobs = JOBS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = jobs.as_ref() {
        return Ok(sender.clone());
    }
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("estop-spawner".to_owned())
        .spawn(move || serve(&receiver))
        .map_err(|error| failed("starting the thread that spawns processes", error))?;
    *jobs = Some(sender.clone());
    Ok(sender)
}

fn serve(receiver: &Receiver<Job>) {
    for mut job in receiver {
        let result = job.command.spawn();
        // A requester that is gone takes no child; there is nobody to tell.
        let _ = job.reply.send((job.command, result));
    }
}

/// Spawns a command from the spawning thread.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    let what = format!("spawning {program}");
    let ended = |what: &str| failed(what, io::Error::other("the spawning thread ended"));
    let jobs = jobs()?;
    let (reply, result) = sync_channel(1);
    // The command travels to the thread and back; a borrow could not leave this one.
    let travelling = mem::replace(command, Command::new(&program));
    jobs.send(Job { command: travelling, reply }).map_err(|_| ended(&what))?;
    let (returned, child) = result.recv().map_err(|_| ended(&what))?;
    *command = returned;
    child.map_err(|error| failed(what, error))
}

/// Spawns a child of the host that belongs to no tree and is never signalled or reaped here,
/// nor are its descendants. The caller waits for it as for any child.
pub fn spawn_apart(command: &mut Command) -> io::Result<Child> {
    let pending = Pending::begin();
    command.env(registry::MARK, registry::apart_mark()?);
    let child = spawn(command)?;
    // It cannot be reaped before it is returned, so the pid is still its own. Should reading fail,
    // the mark still tells.
    if let Ok(Some(process)) = crate::process::read(child.id()) {
        pending.apart(process.key);
    }
    Ok(child)
}
