//! `estop exec`: an agent's own program, so that a halt stops the agent and not only its tools.
//!
//! Invariant: the program is a call of a host like any other, and every stop reaches it through that host. This process
//! ends after the whole tree of the program is verified to be gone, or says what is left and exits with 8.

mod signals;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep_until};

use self::signals::Signals;
use super::exit_code::{WithCode, usage};
use super::watchdog::{self, Watchdog};
use super::{ExitCode, home, printable, quantity, say};
use crate::call::program::{self, ByItself, Left, Program, Running};
use crate::control::HostKind;
use crate::store::sqlite::Sqlite;
use crate::{DEFAULT_AGENT, End, Host, HostLimits, Outcome, Stopped};

/// A program may not put off a stop for longer.
const GRACE_MAX: Duration = Duration::from_secs(30);
/// From the end of the grace until what is not gone is given up. The watchdog ends what hangs even then.
const GIVES_UP_AFTER: Duration = Duration::from_secs(8);
/// The same, once a second signal has come.
const GIVES_UP_HURRIED: Duration = Duration::from_secs(1);
/// The shim's exit codes, as env(1) has them.
const NOT_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Run an agent's own program under supervision, so that a halt of the agent stops it with everything that it has
/// started, and keeps it from being started again.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    /// On whose behalf
    #[arg(long, default_value = DEFAULT_AGENT)]
    agent: String,
    /// From SIGTERM to SIGKILL when it is stopped, at most 30s; whoever stops it may grant another grace
    #[arg(long, value_parser = quantity::duration, default_value = "5s")]
    grace: Duration,
    /// Stop it after this long; without this it may run for ever
    #[arg(long, value_parser = quantity::duration)]
    deadline: Option<Duration>,
    #[command(flatten)]
    home: home::Options,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

// Wrapped where it is shown: one line for each paragraph.
const NOTES: &str = "\
Exit codes: the program's own when it ends by itself, 128+N if signal N ended it, 127 if there is no such program, \
126 if it cannot be executed. If it was stopped, that of the cause (`estop --help`), once its whole tree is verified \
to be gone; 8 if something is left, which is named. 6 if it was refused.

Everything that the program starts is of its tree, whatever it does to get away, and is killed after the grace. What \
it leaves behind when it ends by itself is stopped as well. What it has done by then is not undone.

Signals: Ctrl-C and Ctrl-\\ are the program's own affair. SIGTERM and SIGHUP to this command stop it; a second one \
ends the grace, and this command within a second.

Not covered: what others start because the program asks them to (systemd, cron, a container daemon); setuid \
programs, which an ordinary user may not kill. `kill -9` of this command kills the program, but not what that has \
started: `estop halt --force` kills both.";

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    if args.grace > GRACE_MAX {
        return Err(usage(format!("a program's grace is at most {}", humantime::format_duration(GRACE_MAX))));
    }
    let watchdog = Watchdog::start()?;
    let signals = Signals::handle(watchdog.clone())?;
    // Before there is anybody who could leave us orphans. This process starts nothing but the program.
    estop_supervise::become_subreaper()?;
    estop_supervise::own_all_children();
    let home = args.home.open()?;
    // One call and no guests.
    let limits = HostLimits { calls_max: 16, sandboxes_max: 1, workers: 1, ..HostLimits::default() };
    let host = Host::builder().limits(limits).store(Sqlite::open(&home)?).offer(HostKind::Exec).build()?;
    signals.stop(&host);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let code = runtime.block_on(async {
        let code = run(args, &host, &signals, &watchdog).await?;
        // The record is complete before the process ends. The watchdog bounds it.
        watchdog.arm(watchdog::ENDS_WITHIN);
        host.shutdown().await;
        anyhow::Ok(code)
    })?;
    // Without waiting for threads: nothing of the program is left.
    std::process::exit(code)
}

async fn run(args: &Args, host: &Host, signals: &Signals, watchdog: &Watchdog) -> anyhow::Result<i32> {
    let running = program::start(host, &args.agent, program(args)).context("cannot supervise a program")?;
    let Running { call, state, mut supervised } = running;
    // Registered first, looked after: whoever asked before that did not meet it.
    if let Some(interrupt) = signals.interrupt() {
        call.interrupt_with(interrupt);
    }
    let mut left = state.left();
    let (mut is_asked, mut is_hurried) = (false, false);
    let mut gives_up_at: Option<Instant> = None;
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = call.outcome() => break outcome,
            // It has ended in a way that it should not.
            _ = &mut supervised => return Err(unconfirmed(&left.borrow())),
            () = given_up(gives_up_at) => return Err(unconfirmed(&left.borrow())),
            granted = call.asked(), if !is_asked => {
                is_asked = true;
                let grace = granted.max(args.grace);
                watchdog.arm(grace.saturating_add(watchdog::ENDS_WITHIN));
                gives_up_at = Some(later(grace.saturating_add(GIVES_UP_AFTER)));
            }
            () = signals.hurried(), if !is_hurried => {
                is_hurried = true;
                say("estop: asked a second time: killing it without grace");
                state.hurry();
                gives_up_at = Some(later(GIVES_UP_HURRIED));
            }
            Ok(()) = left.changed() => {
                let left = left.borrow_and_update();
                if !left.is_empty() {
                    say(&format!("estop: not gone yet: {}; killing it again", left.says()));
                    // Also of a program that has ended by itself.
                    gives_up_at.get_or_insert_with(|| later(GIVES_UP_AFTER));
                }
            }
        }
    };
    tell(&outcome, state.ended_by_itself());
    Ok(code(&outcome, state.ended_by_itself()))
}

async fn given_up(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn later(after: Duration) -> Instant {
    // Whoever grants a grace of a year means that there is no end.
    Instant::now() + after.min(Duration::from_secs(365 * 24 * 3600))
}

/// The supervisor starts itself again, so that the program dies with it.
fn program(args: &Args) -> Program {
    let mut command = Command::new("/proc/self/exe");
    command.arg("exec-shim").arg(std::process::id().to_string()).arg("--").args(&args.command);
    let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    let name = args.command.first().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    Program {
        command,
        name: name.to_string_lossy().into_owned(),
        shown: words.join(" "),
        grace: args.grace,
        deadline: args.deadline.unwrap_or(Duration::MAX),
    }
}

fn unconfirmed(left: &Left) -> anyhow::Error {
    let message = format!(
        "UNCONFIRMED: it was killed and is not verified to be gone: {}; nobody supervises that from here on",
        left.says()
    );
    WithCode { code: ExitCode::Unconfirmed, message }.into()
}

impl Left {
    fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.trouble.is_none()
    }

    fn says(&self) -> String {
        let process =
            |left: &estop_supervise::Left| format!("process {} {} (state {})", left.pid, left.name, left.state);
        let words: Vec<String> = self.processes.iter().map(process).chain(self.trouble.clone()).collect();
        if words.is_empty() { "nothing is known of it".to_owned() } else { words.join(", ") }
    }
}

/// What a person has to know beside what the program says itself.
fn tell(outcome: &Outcome, by_itself: Option<ByItself>) {
    match &outcome.end {
        End::Stopped(Stopped { cause, actor, reason, released, .. }) => {
            let reason = if reason.is_empty() { String::new() } else { format!(": {}", printable(reason)) };
            let ran = humantime::format_duration(Duration::from_millis(outcome.elapsed.as_millis() as u64));
            let gone = humantime::format_duration(Duration::from_millis(released.as_millis() as u64));
            say(&format!("estop: {} stopped by {} ({cause}{reason}) after {ran}", outcome.call, printable(actor)));
            say(&format!("estop: nothing of it was left after {gone}; what it had done before is not undone"));
        }
        end => match by_itself {
            Some(ByItself { behind: 0, .. }) => {}
            Some(ByItself { behind, .. }) => {
                say(&format!("estop: the program has ended and had left {behind} processes behind; they were stopped"));
            }
            None => say(&format!("estop: {}: {}", end.status(), printable(end.error().unwrap_or_default()))),
        },
    }
}

fn code(outcome: &Outcome, by_itself: Option<ByItself>) -> i32 {
    match (&outcome.end, by_itself) {
        (End::Stopped(stopped), _) => ExitCode::from(stopped.cause) as i32,
        (_, Some(ByItself { status, .. })) => {
            status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
        }
        (End::Refused(_), None) => ExitCode::Refused as i32,
        (_, None) => ExitCode::HostFailed as i32,
    }
}

/// Becomes the program, and dies with the process that supervises it.
#[derive(clap::Args)]
pub(super) struct ShimArgs {
    parent: u32,
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

pub(super) fn shim(args: &ShimArgs) -> ! {
    let (program, arguments) = args.command.split_first().map_or((OsString::new(), &[][..]), |(p, a)| (p.clone(), a));
    let error = estop_supervise::shim(args.parent, Command::new(program).args(arguments));
    say(&format!("estop: {}", printable(&error.to_string())));
    let is_missing = error.kind() == std::io::ErrorKind::NotFound;
    std::process::exit(if is_missing { NOT_FOUND } else { NOT_EXECUTED }.into())
}
