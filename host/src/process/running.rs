//! The host's side of one program: from its registration until nothing of it is left.
//!
//! Invariant: the task that sees to a program belongs to nobody else; it lives until the program is gone, whatever becomes
//! of the guest that has started it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, PipeReader, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use estop_supervise::{Foreign, MARK, fresh_mark};
use rustix::fs::MemfdFlags;
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::order::{Asked, Order, Said, pair, receive, send};
use super::{Containment, Exit, Phase, ProcessError, ProcessSupervisor, Tracked, Wish, folder, supervisor};
use crate::call::CallState;
use crate::grants::Program;
use crate::host::Core;

/// Where programs are looked for by what a program starts.
pub(super) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// From the start of a supervisor to that of its program.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// A supervisor that does not answer for so long is killed itself.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks whether a grace is over.
const GRACE_LOOK_EVERY: Duration = Duration::from_millis(5);
/// One attempt to kill what a supervisor has left that is gone itself.
const KILL_WITHIN: Duration = Duration::from_millis(500);

/// What a program says.
pub(crate) struct Streams {
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Why there is no supervisor that works.
enum NotStarted {
    /// The containment is not possible here.
    CannotContain(String),
    Failed(ProcessError),
}

/// A program that was not started yet.
struct Launch {
    core: Arc<Core>,
    call: Arc<CallState>,
    tracked: Arc<Tracked>,
    program: Arc<Program>,
    arguments: Vec<String>,
    stdin: Arc<[u8]>,
}

/// A program that is registered, so that whoever stops its call meets it, and not started.
pub(crate) struct Reserved {
    seen: Seen,
    place: OwnedSemaphorePermit,
}

/// Registers a program, if there may be one more.
pub(crate) fn reserve(core: &Core, call: &CallState, shown: String) -> Result<Reserved, ProcessError> {
    let launcher = &core.launcher;
    if launcher.supervisor.is_none() {
        return Err(ProcessError::Denied("this host starts no programs: it was not told how to supervise them".into()));
    }
    if supervisor::is_one() {
        // Otherwise it would start itself without end.
        let why =
            "this program was started to supervise, and its `main` has not called `estop::process_supervisor` first";
        return Err(ProcessError::Denied(why.into()));
    }
    let place = Arc::clone(&launcher.places).try_acquire_owned();
    let place = place.map_err(|_| ProcessError::Limit("the host runs as many programs as it may".into()))?;
    let tracked = Arc::new(Tracked::new(shown));
    call.live.processes().add(&tracked)?;
    Ok(Reserved { seen: Seen(tracked), place })
}

/// Starts a program. It runs on if the answer is dropped, until its call ends.
pub(crate) async fn start(
    core: &Arc<Core>,
    call: &Arc<CallState>,
    reserved: Reserved,
    program: &Arc<Program>,
    arguments: Vec<String>,
    stdin: Vec<u8>,
) -> Result<(Arc<Tracked>, Streams), ProcessError> {
    let Reserved { seen, place } = reserved;
    let tracked = Arc::clone(&seen.0);
    let (tell, told) = oneshot::channel();
    let launch = Launch {
        core: Arc::clone(core),
        call: Arc::clone(call),
        tracked: Arc::clone(&tracked),
        program: Arc::clone(program),
        arguments,
        stdin: stdin.into(),
    };
    drop(core.io.handle.spawn(async move {
        let exit = launch.drive(tell).await;
        seen.gone(exit);
        drop(place);
    }));
    match told.await {
        Ok(streams) => Ok((tracked, streams)),
        // It has ended without having begun.
        Err(_) => Err(tracked.gone().await.err().unwrap_or_else(not_any_more)),
    }
}

/// Whatever becomes of its start and of its task, nobody waits for it in vain.
struct Seen(Arc<Tracked>);

impl Seen {
    fn gone(&self, exit: Result<Exit, ProcessError>) {
        self.0.phase.send_replace(Phase::Gone(exit));
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if !self.0.is_gone() {
            self.gone(Err(ProcessError::Failed(
                "the program was not started, or the host has panicked over it".into(),
            )));
        }
    }
}

impl Launch {
    async fn drive(mut self, tell: oneshot::Sender<Streams>) -> Result<Exit, ProcessError> {
        let core = Arc::clone(&self.core);
        let Some(supervisor) = &core.launcher.supervisor else { return Err(not_any_more()) };
        let mut why_not = "no containment is allowed".to_owned();
        for &containment in &supervisor.containments {
            let impossible = &core.launcher.impossible[containment as usize];
            if impossible.load(Ordering::Acquire) {
                continue;
            }
            if containment == Containment::Unverified && !self.program.accepts_unverified() {
                let why = format!(
                    "nobody could verify here that nothing of `{}` is left ({why_not}), and its grant does not accept that",
                    self.program.path().display()
                );
                return Err(ProcessError::Denied(why));
            }
            match self.begin(supervisor, containment).await {
                Err(NotStarted::Failed(why)) => return Err(why),
                Err(NotStarted::CannotContain(why)) => {
                    tracing::warn!(containment = containment.word(), why, "programs cannot be contained so here");
                    impossible.store(true, Ordering::Release);
                    why_not = why;
                }
                Ok((running, streams)) => {
                    self.call.live.processes().contained_by(running.containment);
                    self.tracked.phase.send_replace(Phase::Running);
                    // Whoever asked for it may be gone: then its call is ending, and so will it.
                    let _ = tell.send(streams);
                    return running.drive(&self).await;
                }
            }
        }
        Err(ProcessError::Denied(format!("programs cannot be supervised here: {why_not}")))
    }

    /// Until the program has been started.
    async fn begin(
        &mut self,
        supervisor: &ProcessSupervisor,
        containment: Containment,
    ) -> Result<(Running, Streams), NotStarted> {
        if !self.is_wanted() {
            return Err(NotStarted::Failed(not_any_more()));
        }
        let (program, stdin) = (supervisor.program.clone(), Arc::clone(&self.stdin));
        let launched = self.core.io.handle.spawn_blocking(move || launch(program, containment, &stdin));
        let launched = launched.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(cannot_start)?;
        self.tracked.pid.store(launched.child.id(), Ordering::Release);
        let (mut running, ends) = Running::new(launched, containment)?;
        let started = tokio::select! {
            biased;
            () = self.killed() => Err(NotStarted::Failed(not_any_more())),
            started = tokio::time::timeout(STARTS_WITHIN, running.start(self, ends)) => {
                started.unwrap_or_else(|_| Err(cannot_start(io::Error::other("its supervisor does not answer"))))
            }
        };
        match started {
            Ok(streams) => Ok((running, streams)),
            Err(why) => {
                running.end(self).await;
                Err(why)
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.tracked.wished() != Wish::Kill && !self.call.gate.is_flagged()
    }

    /// Resolves once somebody wants it to be killed.
    async fn killed(&self) {
        tokio::select! {
            _ = self.call.asked() => {}
            () = self.tracked.killed() => {}
        }
    }

    /// Wishes what whoever stops the call means for its programs: to end, and when the grace is over, to be killed.
    async fn follow_the_call(&self) -> Infallible {
        self.call.asked().await;
        if !self.call.gate.is_interrupted() {
            self.tracked.wish(Wish::Terminate);
            // A later interrupt can shorten the grace at any time.
            while !self.call.gate.is_interrupted() {
                sleep(GRACE_LOOK_EVERY).await;
            }
        }
        self.tracked.wish(Wish::Kill);
        std::future::pending().await
    }

    fn order(&self, directory: &Path) -> Order {
        let folder = directory.to_string_lossy().into_owned();
        let folder = folder.as_str();
        let own = [("PATH", PATH), ("HOME", folder), ("TMPDIR", folder)];
        let mut environment: BTreeMap<&str, &str> = own.into_iter().collect();
        environment.extend(self.program.environment());
        let limits = self.program.limits();
        Order {
            program: self.program.path().to_owned(),
            arguments: self.arguments.clone(),
            environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            directory: directory.to_owned(),
            cpu_seconds_max: limits.cpu.as_secs(),
            memory_bytes_max: limits.memory_bytes_max,
            processes_max: limits.processes_max,
            file_bytes_max: limits.file_bytes_max,
        }
    }
}

fn not_any_more() -> ProcessError {
    ProcessError::Failed("the program was stopped before it was started".into())
}

fn cannot_start(error: io::Error) -> NotStarted {
    NotStarted::Failed(ProcessError::Failed(format!("cannot start the program: {error}")))
}

/// A supervisor that was started, with what it needs and what is needed of it.
struct Launched {
    child: Child,
    channel: OwnedFd,
    directory: PathBuf,
    ends: Ends,
    foreign: Option<Foreign>,
}

/// Both ends of a program's streams.
struct Ends {
    theirs: [OwnedFd; 3],
    stdout: PipeReader,
    stderr: PipeReader,
}

/// Starts a supervisor. Blocks for some milliseconds.
fn launch(program: PathBuf, containment: Containment, input: &[u8]) -> io::Result<Launched> {
    let directory = folder::make()?;
    let (here, there) = pair()?;
    // A file in memory and no pipe: writing to a program that is gone would raise a signal in this process.
    let mut stdin = File::from(rustix::fs::memfd_create("estop-stdin", MemfdFlags::CLOEXEC)?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    let ((stdout, out), (stderr, err)) = (io::pipe()?, io::pipe()?);
    let ends = Ends { theirs: [stdin.into(), out.into(), err.into()], stdout, stderr };
    let mut command = Command::new(program);
    command.args(supervisor::args(containment)).env_clear().current_dir("/");
    // Whoever supervises this process finds its descendants by this, and so do we.
    let mark = fresh_mark()?;
    command.env(MARK, &mark);
    // The terminal's signals are for the host.
    command.process_group(0).stdin(there).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let foreign = match containment {
        Containment::Cgroup | Containment::Subreaper => Foreign::of_marked(child.id(), &mark).map(Some),
        Containment::Namespace | Containment::Unverified => Ok(None),
    };
    match foreign {
        Ok(foreign) => Ok(Launched { child, channel: here, directory, ends, foreign }),
        Err(error) => {
            // It has started nothing: nobody has given it an order.
            drop(here);
            let _ = child.kill();
            child.wait()?;
            Err(error)
        }
    }
}

/// A supervisor, and the program once that was started.
struct Running {
    child: Child,
    /// Of the supervisor.
    pidfd: AsyncFd<OwnedFd>,
    channel: AsyncFd<OwnedFd>,
    /// Of the first process in the namespace, if there is one: readable once all of it is gone.
    init: Option<AsyncFd<OwnedFd>>,
    directory: PathBuf,
    /// To end the tree without the supervisor.
    foreign: Option<Foreign>,
    containment: Containment,
    exit: Option<Exit>,
    /// It was told to kill what there is.
    is_killed: bool,
    /// The supervisor has said that nothing is left.
    is_said_gone: bool,
}

impl Running {
    fn new(launched: Launched, containment: Containment) -> Result<(Self, Ends), NotStarted> {
        let Launched { mut child, channel, directory, ends, foreign } = launched;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io::Error::from);
        let both = pidfd.and_then(watched).and_then(|pidfd| Ok((pidfd, watched(channel)?)));
        let (pidfd, channel) = both.map_err(|error| {
            // It has no order and has started nothing.
            let _ = child.kill();
            let _ = child.wait();
            cannot_start(error)
        })?;
        Ok((
            Self {
                child,
                pidfd,
                channel,
                init: None,
                directory,
                foreign,
                containment,
                exit: None,
                is_killed: false,
                is_said_gone: false,
            },
            ends,
        ))
    }

    /// What the supervisor says next; `None` if that is nothing.
    async fn hear(&self) -> Option<(Said, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.channel.readable().await.ok()?;
            match ready.try_io(|channel| receive(channel.get_ref())) {
                Ok(heard) => return heard.unwrap_or_default(),
                Err(_nothing_yet) => {}
            }
        }
    }

    async fn start(&mut self, launch: &Launch, ends: Ends) -> Result<Streams, NotStarted> {
        let no_answer = "its supervisor has ended; the `main` of the program that a host supervises with has to call \
                         `estop::process_supervisor` first of all";
        match self.hear().await {
            Some((Said::Ready, mut handles)) => {
                self.init = handles.pop().map(watched).transpose().map_err(cannot_start)?;
            }
            Some((Said::CannotContain(why), _)) => return Err(NotStarted::CannotContain(why)),
            _ => return Err(cannot_start(io::Error::other(no_answer))),
        }
        let [stdin, stdout, stderr] = &ends.theirs;
        let theirs = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        send(self.channel.get_ref(), &launch.order(&self.directory), &theirs).map_err(cannot_start)?;
        match self.hear().await {
            Some((Said::Started(containment), _)) => self.containment = containment,
            Some((Said::CannotContain(why), _)) => return Err(NotStarted::CannotContain(why)),
            Some((Said::CannotStart(why), _)) => return Err(cannot_start(io::Error::other(why))),
            _ => return Err(cannot_start(io::Error::other("its supervisor has ended"))),
        }
        let read = |end: PipeReader| pipe::Receiver::from_owned_fd(end.into()).map_err(cannot_start);
        // Its own ends of the streams are closed here: they end with the program.
        let Ends { stdout, stderr, theirs: _ } = ends;
        Ok(Streams { stdout: read(stdout)?, stderr: read(stderr)? })
    }

    /// From its start until nothing of it is left.
    async fn drive(mut self, launch: &Launch) -> Result<Exit, ProcessError> {
        let (tracked, time) = (&launch.tracked, launch.program.limits().time);
        let mut over = pin!(sleep(time));
        let mut followed = pin!(launch.follow_the_call());
        let mut is_asked = false;
        loop {
            match tracked.wished() {
                Wish::Kill => break,
                Wish::Terminate if !is_asked => {
                    is_asked = true;
                    // To one that has ended nothing has to be said.
                    let _ = send(self.channel.get_ref(), &Asked::Terminate, &[]);
                }
                Wish::Terminate | Wish::None => {}
            }
            tokio::select! {
                biased;
                heard = self.hear() => match heard {
                    Some((Said::TooMany, _)) => {
                        let most = launch.program.limits().processes_max;
                        tracked.end_for(ProcessError::Limit(format!("the program had more than {most} processes")));
                    }
                    Some((said, _)) => self.note(said, tracked),
                    // It has ended, in whatever way.
                    None => break,
                },
                () = tracked.wished.notified() => {}
                () = &mut over => {
                    let time = humantime::format_duration(time);
                    tracked.end_for(ProcessError::Limit(format!("the program has run for {time}, which is all it may")));
                }
                never = &mut followed => match never {},
            }
        }
        let exit = self.end(launch).await;
        let why = tracked.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
        let killed = || ProcessError::Failed("the program was killed, and nobody has seen how it ended".into());
        why.map_or_else(|| exit.ok_or_else(killed), Err)
    }

    fn note(&mut self, said: Said, tracked: &Tracked) {
        match said {
            Said::Ended { .. } if self.is_killed => {}
            Said::Ended { code: Some(code), .. } => self.exit = Some(Exit::Code(code)),
            Said::Ended { signal: Some(signal), .. } => self.exit = Some(Exit::Signal(signal)),
            Said::Left { processes, trouble } => {
                let one =
                    |left: &super::order::Left| format!("process {} {} (state {})", left.pid, left.name, left.state);
                let all: Vec<String> = processes.iter().map(one).chain(trouble).collect();
                tracked.is_left(Some(all.join(", ")));
            }
            Said::Gone => self.is_said_gone = true,
            _ => {}
        }
    }
}

impl Running {
    /// Kills what there is, and returns when nothing of it is left. How the program had ended, if anybody saw that.
    async fn end(mut self, launch: &Launch) -> Option<Exit> {
        let (tracked, io) = (&launch.tracked, &launch.core.io.handle);
        // How it ends from here on is our doing, and nothing of its own.
        self.is_killed = true;
        self.kill();
        let (mut is_heard, mut is_dead, mut is_verified) = (true, false, true);
        let mut patience = Instant::now() + ANSWERS_WITHIN;
        loop {
            // A program can make its supervisor say that all is gone, but not end well after that.
            let is_believed = is_dead && self.is_said_gone && self.ended_well();
            // Without a tree to look for, all that there was has ended with the supervisor.
            let is_gone = self.init.is_none() && (self.foreign.is_none() || is_believed);
            if is_dead && is_gone {
                break;
            }
            if is_dead && let Some(foreign) = self.foreign.take() {
                // Who has wiped their environment and lost their parent is not found by it.
                is_verified = false;
                self.foreign = end_without_supervisor(foreign, tracked, io).await;
                continue;
            }
            tokio::select! {
                biased;
                () = readable(self.init.as_ref()), if self.init.is_some() => self.init = None,
                () = readable(Some(&self.pidfd)), if !is_dead && !is_heard => is_dead = true,
                () = sleep_until(patience) => {
                    tracked.is_left(Some(format!("its supervisor, process {}, does not end", self.child.id())));
                    self.kill();
                    // It is our child and was not reaped.
                    let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
                    // Nothing that it says counts any more.
                    is_heard = false;
                    patience = Instant::now() + ANSWERS_WITHIN;
                }
                heard = self.hear(), if is_heard => match heard {
                    Some((said, _)) => {
                        // One that goes on looking for a tree has to have the time for that.
                        if matches!(said, Said::Left { .. }) && self.init.is_none() {
                            patience = Instant::now() + ANSWERS_WITHIN;
                        }
                        self.note(said, tracked);
                    }
                    None => is_heard = false,
                },
            }
        }
        // It is dead, so this does not wait. Where somebody else in this process reaps our children, it is gone all the same.
        let _ = self.child.wait();
        if !is_verified && matches!(*tracked.phase.borrow(), Phase::Running) {
            launch.call.live.processes().contained_by(Containment::Unverified);
        }
        folder::remove(&self.directory, io).await;
        tracked.is_left(None);
        self.exit
    }

    /// To a supervisor that has ended nothing has to be said.
    fn kill(&self) {
        if let Some(init) = &self.init {
            // Whatever a program has done to it: it is of our user, in a namespace below ours.
            let _ = pidfd_send_signal(init.get_ref(), Signal::KILL);
        }
        let _ = send(self.channel.get_ref(), &Asked::Kill, &[]);
        // The end of the connection means the same, also where there is no room for another message.
        let _ = rustix::net::shutdown(self.channel.get_ref(), Shutdown::Write);
    }

    /// Of a supervisor that is dead.
    fn ended_well(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some_and(|status| status.success()))
    }
}

#[expect(deprecated, reason = "unsound for types whose descriptor may change; that of an `OwnedFd` does not")]
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

pub(super) async fn readable(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        // An error means that nobody can wait for it: then it is looked at again at once, and does not stay unseen.
        Some(fd) => drop(fd.readable().await),
        None => std::future::pending().await,
    }
}

/// The supervisor is dead and has not said that nothing is left. `None`: nothing is.
async fn end_without_supervisor(mut foreign: Foreign, tracked: &Tracked, io: &Handle) -> Option<Foreign> {
    let ended = io.spawn_blocking(move || {
        let stopped = foreign.end(KILL_WITHIN);
        (foreign, stopped)
    });
    match ended.await {
        Ok((_, stopped)) if stopped.complete() => None,
        Ok((foreign, stopped)) => {
            let left: Vec<String> =
                stopped.left.iter().map(|left| format!("process {} {}", left.pid, left.name)).collect();
            let trouble = stopped.trouble.map(|error| error.to_string());
            tracked.is_left(Some(left.into_iter().chain(trouble).collect::<Vec<_>>().join(", ")));
            Some(foreign)
        }
        // It panicked: nobody can look any more.
        Err(_) => None,
    }
}
