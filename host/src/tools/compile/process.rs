//! The host's side of a compiler's process: started, given its component, read, ended, reaped.
//!
//! Invariants:
//! - What it writes is read up to a bound, and nothing that it does or leaves undone keeps the host's thread from seeing
//!   that it is dead.
//! - It is reaped before this returns.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use wasmtime::Engine;

use super::child::{self, Order};
use super::{CompileChild, Switch, kill, not_any_more};
use crate::engine;
use crate::interrupt::{TEXT_BYTES_MAX, cut};
use crate::tools::LoadError;

/// What a process may write (bytes): the machine code of the largest component that is let in, and more.
const CODE_BYTES_MAX: usize = 512 << 20;
/// What is read at once (bytes): as much as a pipe holds.
const READ_BYTES: usize = 64 << 10;
/// How a panic ends a program of Rust.
const PANICKED: i32 = 101;

/// Why there is no answer.
enum Failed {
    /// More than it may write.
    TooMuch,
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Io(error)
    }
}

/// What a process has written that ended well. The process is gone when this returns.
pub(super) fn compile(
    child: &CompileChild,
    engine: &Engine,
    component: &[u8],
    switch: &Switch,
) -> Result<Vec<u8>, LoadError> {
    if child::is_one() {
        // Otherwise it would start itself without end.
        return Err(LoadError::Compile(
            "this program was started to compile, and its `main` has not called `estop::compile_child` first".into(),
        ));
    }
    let order = Order {
        parent: std::process::id(),
        configuration: engine::configuration(engine),
        bytes: component.len() as u64,
        address_space_bytes_max: child.address_space_bytes_max,
        cpu_seconds_max: child.cpu_max.as_secs().max(1),
    };
    let cannot = |what: &str, error: &io::Error| {
        let program = child.program.display();
        LoadError::Compile(format!("{what} its compiler, `{program}`: {error}"))
    };
    let mut process = start(child, &order, component).map_err(|error| cannot("cannot start", &error))?;
    let answer = match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
        Ok(pidfd) => answer(&mut process, &pidfd, switch),
        Err(error) => {
            // Not reaped yet, so it is still this one.
            let _ = process.kill();
            Err(Failed::Io(error.into()))
        }
    };
    let status = process.wait();
    if switch.is_thrown() {
        return Err(not_any_more());
    }
    match (answer, status) {
        (Ok(answer), Ok(status)) => judge(child, component.len(), status, answer),
        (Err(Failed::TooMuch), _) => Err(LoadError::CompileLimit(format!(
            "too big to compile: its {} bytes become more than {CODE_BYTES_MAX} bytes of machine code",
            component.len()
        ))),
        (Err(Failed::Io(error)), _) => Err(cannot("cannot talk to", &error)),
        (_, Err(error)) => Err(cannot("somebody else in this process has waited for", &error)),
    }
}

fn start(child: &CompileChild, order: &Order, component: &[u8]) -> io::Result<Child> {
    // A file in memory and no pipe: writing to a process that was just killed would raise a signal in this one.
    let mut input = File::from(rustix::fs::memfd_create("estop-component", MemfdFlags::CLOEXEC)?);
    input.write_all(component)?;
    input.rewind()?;
    // On this thread, which waits for it: if the thread that started it ended, it would be killed.
    Command::new(&child.program)
        .args(order.args())
        .env_clear()
        .current_dir("/")
        // The terminal's signals are for the host.
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// All that it writes. It is dead or dying when this returns.
fn answer(process: &mut Child, pidfd: &OwnedFd, switch: &Switch) -> Result<Vec<u8>, Failed> {
    let answer = pidfd.try_clone().map_err(Failed::Io).and_then(|pidfd_of_switch| {
        switch.set(pidfd_of_switch);
        let stdout = process.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        read(stdout, pidfd)
    });
    if answer.is_err() {
        kill(pidfd);
    }
    answer
}

/// Until it has written everything, or is dead: whoever else holds the other end of the pipe does not count.
fn read(mut stdout: ChildStdout, pidfd: &OwnedFd) -> Result<Vec<u8>, Failed> {
    rustix::io::ioctl_fionbio(&stdout, true).map_err(io::Error::from)?;
    let (mut answer, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        let mut ends = [PollFd::new(&stdout, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut ends, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Failed::Io(error.into())),
        }
        // Looked at before the pipe is read: a dead process writes nothing after that.
        let is_dead = !ends[1].revents().is_empty();
        loop {
            match stdout.read(&mut buffer) {
                Ok(0) => return Ok(answer),
                Ok(bytes) if answer.len() + bytes > CODE_BYTES_MAX => return Err(Failed::TooMuch),
                Ok(bytes) => answer.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if is_dead {
            return Ok(answer);
        }
    }
}

/// What a process has said that ended in this way.
fn judge(child: &CompileChild, bytes: usize, status: ExitStatus, answer: Vec<u8>) -> Result<Vec<u8>, LoadError> {
    let memory = child.address_space_bytes_max;
    let too_big = |how: &str| {
        Err(LoadError::CompileLimit(format!(
            "too big to compile: its {bytes} bytes took more than the {memory} bytes of address space that its compiler \
             has (it ended by {how})"
        )))
    };
    let is_ours = answer.starts_with(child::MAGIC);
    match (status.code(), status.signal().and_then(Signal::from_named_raw)) {
        (Some(child::COMPILED), _) if is_ours => Ok(answer),
        (Some(child::REFUSED), _) if is_ours => Err(LoadError::Compile(text(&answer))),
        (Some(child::COULD_NOT_BEGIN), _) if is_ours => {
            Err(LoadError::Compile(format!("its compiler could not begin: {}", text(&answer))))
        }
        (Some(child::ANOTHER_CONFIGURATION), _) if is_ours => Err(LoadError::Compile(format!(
            "its compiler, `{}`, is of another version of estop than this host",
            child.program.display()
        ))),
        // Wasmtime panics where it gets no memory.
        (Some(PANICKED), _) => too_big("a panic"),
        (None, Some(Signal::ABORT)) => too_big("SIGABRT"),
        (None, Some(Signal::SEGV)) => too_big("SIGSEGV"),
        (None, Some(Signal::BUS)) => too_big("SIGBUS"),
        (None, Some(Signal::XCPU)) => Err(LoadError::CompileLimit(format!(
            "too slow to compile: its {bytes} bytes took more than {} s of processor time",
            child.cpu_max.as_secs().max(1)
        ))),
        (None, Some(Signal::KILL)) => {
            Err(LoadError::Compile("somebody has killed its compiler, or the kernel has, for want of memory".into()))
        }
        _ => Err(no_compiler(child)),
    }
}

/// The machine code in what a process has written.
pub(super) fn code(written: &[u8]) -> Option<&[u8]> {
    written.strip_prefix(child::MAGIC)
}

pub(super) fn no_compiler(child: &CompileChild) -> LoadError {
    LoadError::Compile(format!(
        "`{}` is no compiler: its `main` has to call `estop::compile_child` first of all",
        child.program.display()
    ))
}

/// The words in what a process has written.
fn text(written: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(code(written).unwrap_or_default()).into_owned();
    cut(&mut text, TEXT_BYTES_MAX);
    text
}
