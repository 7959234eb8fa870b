//! An agent's own program: a call that is carried out by a tree of processes instead of a guest.
//!
//! Invariant: the gate is entered before the program is started, and left when its whole tree is verified to be gone and
//! no earlier. So whoever interrupts finds a call on a processor that has not acknowledged, and it counts as halted when
//! nothing of it can run any more. Until then it stays in the inventory, is told to be unconfirmed, and is killed again.
//!
//! Looking at processes and waiting for them blocks, so each program has a thread of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;
use std::{io, os::unix::process::ExitStatusExt};

use estop_supervise::{Stopped, Tree};
use rustix::event::{EventfdFlags, eventfd};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::gated::Ended;
use super::live::Live;
use super::{
    Answer, Call, CallState, End, Failure, Fault, Identity, Output, PRIORITY_DEFAULT, Run, builder, finish, refuse,
    settle, start_deadline,
};
use crate::host::Core;
use crate::interrupt::{TEXT_BYTES_MAX, cut};
use crate::log::Record;
use crate::{Host, trace};

/// What a program is called where a call has the name of its tool.
pub(crate) const TOOL: &str = "exec";
/// One attempt to kill the tree and to verify that it is gone. There are more, as long as the host's process is there.
const KILL_WITHIN: Duration = Duration::from_millis(500);
/// How long a program waits for the entry of its start.
const ENTERED_WITHIN: Duration = Duration::from_secs(10);
/// Processes that are named of those that could not be ended.
const LEFT_NAMED_MAX: usize = 64;

/// A program that has not been started.
pub(crate) struct Program {
    /// What to spawn.
    pub(crate) command: Command,
    /// Its name, for the log: without its arguments, which may be nobody else's business.
    pub(crate) name: String,
    /// With its arguments, as `ps` shows it too. Cut to a kilobyte.
    pub(crate) shown: String,
    /// From SIGTERM to SIGKILL, where whoever stops it says nothing else.
    pub(crate) grace: Duration,
    /// [`Duration::MAX`] if it may run for ever.
    pub(crate) deadline: Duration,
}

/// What everybody may know of a program.
pub(crate) struct ProgramState {
    pub(crate) shown: String,
    /// Zero: it has not been started.
    pid: AtomicU32,
    is_asked: AtomicBool,
    is_hurried: AtomicBool,
    left: watch::Sender<Left>,
    ended: OnceLock<ByItself>,
}

/// What was still there at the end of an attempt to end a tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Left {
    pub(crate) processes: Vec<estop_supervise::Left>,
    /// What kept it from being verified.
    pub(crate) trouble: Option<String>,
}

/// How a program ended that nobody stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByItself {
    pub(crate) status: ExitStatus,
    /// Processes that it had left behind, and that were ended then.
    pub(crate) behind: usize,
}

impl ProgramState {
    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// It was sent SIGTERM and has its grace.
    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// From now on it has no grace.
    pub(crate) fn hurry(&self) {
        self.is_hurried.store(true, Ordering::Release);
    }

    /// What the last attempt has left; empty before the first one, and when nothing is left.
    pub(crate) fn left(&self) -> watch::Receiver<Left> {
        self.left.subscribe()
    }

    pub(crate) fn ended_by_itself(&self) -> Option<ByItself> {
        self.ended.get().copied()
    }
}

/// A program that was registered, and is started unless a halt covers it.
pub(crate) struct Running {
    /// Interrupted like any other.
    pub(crate) call: Call,
    pub(crate) state: Arc<ProgramState>,
    /// An error once the thread has ended that supervises it.
    pub(crate) supervised: oneshot::Receiver<()>,
}

/// Registers a program and starts it. This process has to be a subreaper.
pub(crate) fn start(host: &Host, agent: &str, program: Program) -> io::Result<Running> {
    let core = host.core();
    let Program { command, mut name, mut shown, grace, deadline } = program;
    cut(&mut name, TEXT_BYTES_MAX);
    cut(&mut shown, TEXT_BYTES_MAX);
    let state = Arc::new(ProgramState {
        shown,
        pid: AtomicU32::new(0),
        is_asked: AtomicBool::new(false),
        is_hurried: AtomicBool::new(false),
        left: watch::Sender::default(),
        ended: OnceLock::new(),
    });
    let bell = Arc::new(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
    let (alive, supervised) = oneshot::channel();
    // The thread first: from the registration on somebody has to be there who lets go of the call.
    let (hand_over, taken) = std::sync::mpsc::sync_channel::<Supervisor>(1);
    thread::Builder::new().name("estop-program".into()).spawn(move || {
        if let Ok(supervisor) = taken.recv() {
            supervisor.drive();
        }
        drop::<oneshot::Sender<()>>(alive);
    })?;
    let mut live = Live::new(core.now_ns(), 0);
    live.program = Some(Arc::clone(&state));
    let identity = Identity {
        agent: agent.into(),
        tool: TOOL.into(),
        component: None,
        parent: None,
        grace,
        priority: PRIORITY_DEFAULT,
        live,
    };
    let supervised_state = Arc::clone(&state);
    let call = builder::register(Arc::clone(core), identity, |core, call| {
        let (core, call, state) = (Arc::clone(core), Arc::clone(call), supervised_state);
        // The thread waits for it.
        let _ = hand_over.send(Supervisor { core, call, state, bell, command, name, grace, deadline });
    });
    Ok(Running { call, state, supervised })
}

/// What wakes the thread when somebody interrupts the call.
struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Fails only if it has been rung some 2^64 times without being heard.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Bell {
    fn hush(&self) {
        // Fails if nobody has rung it.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

struct Supervisor {
    core: Arc<Core>,
    call: Arc<CallState>,
    state: Arc<ProgramState>,
    bell: Arc<Bell>,
    command: Command,
    name: String,
    grace: Duration,
    deadline: Duration,
}

impl Supervisor {
    /// The whole of the call, on the program's thread. What `call::drive` is for guests.
    fn drive(mut self) {
        let (core, call) = (Arc::clone(&self.core), Arc::clone(&self.call));
        let (mut run, span) = (Run::default(), trace::call(&call));
        let ended = match core.io.handle.block_on(self.may_start()) {
            None => Ended::Interrupted,
            Some(Err(why)) => Ended::Ready(Err(Fault::Refused(why))),
            Some(Ok(())) => self.carry_out(&mut run),
        };
        let outcome = core.io.handle.block_on(settle(&core, &call, ended, run));
        finish(&core, &call, outcome, &span);
    }

    /// `None`: it was interrupted meanwhile.
    async fn may_start(&self) -> Option<Result<(), String>> {
        let current = tokio::select! {
            biased;
            _ = self.call.asked() => return None,
            current = self.core.halts.current() => current,
        };
        let why = || self.core.refuses().or_else(|| builder::reserved(&self.call.agent));
        let why = || why().or_else(|| refuse(&self.core, &self.call));
        Some(current.and_then(|()| why().map_or(Ok(()), Err)))
    }

    fn carry_out(&mut self, run: &mut Run<'_>) -> Ended<Result<Answer, Fault>> {
        if self.call.gate.enter().is_err() {
            return Ended::Interrupted;
        }
        // Whoever asks it to stop after this look finds it running, and rings the bell.
        let answer = (!self.call.gate.is_flagged()).then(|| self.run(run));
        // Nothing of it is there any more.
        if self.call.gate.leave().is_err() {
            self.call.halted(self.core.now_ns());
            return Ended::Interrupted;
        }
        answer.map_or(Ended::Interrupted, |end| Ended::Ready(Ok(Answer::Program(end))))
    }

    /// From the start of the program until nothing of its tree is left.
    fn run(&mut self, run: &mut Run<'_>) -> End {
        let started_ns = self.core.now_ns();
        run.started_ns = Some(started_ns);
        start_deadline(&self.core, &self.call, started_ns, Some(self.deadline));
        self.core.log.record(Record::Started(Arc::downgrade(&self.call)));
        if let Err(end) = self.core.io.handle.block_on(self.is_entered()) {
            return end;
        }
        let mut tree = match Tree::spawn(&mut self.command) {
            Ok(tree) => tree,
            Err(error) => return failed("spawn", error.to_string()),
        };
        self.state.pid.store(tree.leader(), Ordering::Release);
        // What it does nobody can take back, and nobody knows what it had done when it is stopped.
        let effect = self.call.live.add_own_effect(format!("program {}", self.name), usize::MAX);
        match self.wait(&mut tree) {
            Ok(Some(status)) => {
                // Nothing runs on that nobody supervises.
                let behind = self.end(&mut tree, self.grace, || self.call.gate.is_interrupted());
                let _ = self.state.ended.set(ByItself { status, behind });
                if let Some(performed) = effect {
                    performed.store(true, Ordering::Release);
                }
                end(status)
            }
            Ok(None) => {
                // Of whoever stops it; if they grant none, its own.
                let is_granted = !self.call.gate.is_interrupted();
                let until_ns = self.call.grace_until_ns.load(Ordering::Acquire);
                let granted = Duration::from_nanos(until_ns.saturating_sub(self.core.now_ns()));
                let grace = if is_granted { granted } else { self.grace };
                self.end(&mut tree, grace, || is_granted && self.call.gate.is_interrupted());
                failed("stopped", "the program was stopped".into())
            }
            Err(error) => {
                self.end(&mut tree, Duration::ZERO, || true);
                failed("supervise", error.to_string())
            }
        }
    }

    /// Waits until the log has its start: should this process die at any moment of the program's life, whoever opens the
    /// home next finds that it ran. An error if it is not to be started.
    async fn is_entered(&self) -> Result<(), End> {
        let entered = tokio::time::timeout(ENTERED_WITHIN, self.core.log.flush());
        let entered = tokio::select! {
            biased;
            _ = self.call.asked() => return Err(failed("stopped", "the program was stopped before it was started".into())),
            entered = entered => entered,
        };
        let why = match entered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it takes longer than {ENTERED_WITHIN:?}; the disk is slow, or another process holds it"),
        };
        Err(failed("log", format!("not started, because that cannot be entered in the log: {why}")))
    }

    /// How the program ended; `None` if somebody asked it to before that.
    fn wait(&self, tree: &mut Tree) -> io::Result<Option<ExitStatus>> {
        let waker = Waker::from(Arc::clone(&self.bell));
        loop {
            // Before the gate is looked at: an interrupt from here on finds somebody to wake.
            self.call.waker.register(&waker);
            if self.call.gate.is_flagged() {
                return Ok(None);
            }
            if let Some(status) = tree.wait_or(self.bell.as_fd())? {
                return Ok(Some(status));
            }
            self.bell.hush();
        }
    }

    /// Ends what there is of the tree, and returns when all of it is gone; how many that were. Does not give up: that is
    /// left to the end of the process, which its watchdog bounds.
    fn end(&self, tree: &mut Tree, grace: Duration, is_hurried: impl Fn() -> bool) -> usize {
        let is_hurried = || self.state.is_hurried.load(Ordering::Acquire) || is_hurried();
        self.state.is_asked.store(!grace.is_zero(), Ordering::Release);
        let mut stopped = tree.stop_unless(grace, grace.saturating_add(KILL_WITHIN), is_hurried);
        self.state.is_asked.store(false, Ordering::Release);
        let mut ended = stopped.terminated + stopped.killed;
        while !stopped.complete() {
            self.state.left.send_replace(Left::of(stopped));
            stopped = tree.stop(Duration::ZERO, KILL_WITHIN);
            ended += stopped.killed;
        }
        self.state.left.send_replace(Left::default());
        ended
    }
}

impl Left {
    fn of(stopped: Stopped) -> Self {
        let mut processes = stopped.left;
        processes.truncate(LEFT_NAMED_MAX);
        Self { processes, trouble: stopped.trouble.map(|error| error.to_string()) }
    }
}

fn failed(code: &str, message: String) -> End {
    End::Failed(Failure { code: code.into(), message, retryable: false, data: None })
}

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(0), _) => End::Completed(Output { json: json!({ "exit": 0 }), attachments: Vec::new() }),
        (Some(code), _) => failed(&format!("exit-{code}"), format!("the program exited with status {code}")),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            failed(&format!("signal-{signal}"), format!("the program was ended by signal {signal}"))
        }
    }
}
