//! The process that supervises one program: made by a host, and gone with it.
//!
//! Invariants:
//! - When the connection to the host ends, in any way, it kills all of the tree.
//! - It says that nothing is left once that is verified, and ends then.
//!
//! The program is started by a step in between, which bounds it before it becomes the program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Stdin};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use estop_supervise::{Containment as Found, Init, Tree};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, set_parent_process_death_signal, setrlimit,
};

use super::Containment;
use super::order::{Asked, Left, Order, Said, receive, send};

/// Its first argument.
const WORD: &str = "estop-supervisor";
/// Its second one, where it is the first process in a namespace.
const INIT: &str = "init";
/// Its second one, where it becomes the program.
const SHIM: &str = "shim";
/// Between two looks at who is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// One attempt to kill a tree and to verify that it is gone; there are more.
const KILL_WITHIN: Duration = Duration::from_millis(500);
/// Longer than any grace.
const UNTIL_KILLED: Duration = Duration::from_secs(365 * 24 * 3600);
/// How a step ends that could not become the program, as env(1) has it.
const NOT_EXECUTED: i32 = 126;
/// Processes that are named of those that could not be ended.
const LEFT_NAMED_MAX: usize = 16;

/// To be called first of all in the `main` of a program that a [`ProcessSupervisor`](super::ProcessSupervisor) names. Does
/// nothing, unless this process was started by a host to supervise a program: then it does that, and ends the process.
pub fn process_supervisor() {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(WORD)) {
        return;
    }
    let role = args.next().unwrap_or_default();
    let channel = io::stdin();
    let done = match (role.to_str(), role.to_str().and_then(Containment::from_word)) {
        (Some(INIT), _) => as_init(&channel),
        (Some(SHIM), _) => shim(args),
        (_, Some(Containment::Namespace)) => namespace(&channel),
        (_, Some(containment)) => ordered(&channel, containment),
        _ => Err(io::Error::other("its arguments are those of another version of estop")),
    };
    // Whoever started it sees that it has ended, and has been told what there was to tell.
    std::process::exit(i32::from(done.is_err()))
}

/// The arguments of a supervisor.
pub(super) fn args(containment: Containment) -> [&'static str; 2] {
    [WORD, containment.word()]
}

/// This process was started to supervise.
pub(super) fn is_one() -> bool {
    std::env::args_os().nth(1).as_deref() == Some(OsStr::new(WORD))
}

fn itself(role: &str) -> Command {
    // Also after the file has been replaced by another version.
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORD).arg(role);
    command
}

/// Only for what holds for good: a machine that is short of something for a moment has not lost its namespaces.
fn cannot_contain(channel: &Stdin, error: &io::Error) -> io::Result<()> {
    let none = |kind: &str| {
        let most = std::fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces"));
        most.is_ok_and(|most| most.trim() == "0")
    };
    let is_for_now = match errno(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => true,
        // Where there are as many as there may be, and where there may be none at all.
        Some(Errno::NOSPC) => !(none("user") || none("pid") || none("mnt")),
        _ => false,
    };
    let why = error.to_string();
    send(channel, &if is_for_now { Said::CannotStart(why) } else { Said::CannotContain(why) }, &[])
}

/// What the kernel has said, also below words of ours.
fn errno(error: &io::Error) -> Option<Errno> {
    let below = || error.get_ref()?.source()?.downcast_ref::<io::Error>()?.raw_os_error();
    error.raw_os_error().or_else(below).map(Errno::from_raw_os_error)
}

/// A program of the same user could take this process over, and have it say what is not so.
fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Outside of the namespace: makes it, starts its first process, which talks to the host, and waits for that.
fn namespace(channel: &Stdin) -> io::Result<()> {
    let init = estop_supervise::enter_namespace().and_then(|()| {
        itself(INIT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::inherit())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    match init {
        Ok(mut init) => init.wait().map(drop),
        Err(error) => cannot_contain(channel, &error),
    }
}

/// The first process in a namespace. When it ends, the kernel kills everybody else there before anybody sees that.
fn as_init(channel: &Stdin) -> io::Result<()> {
    // One that dies before this closes the connection, as does its host.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if let Err(error) = Init::prepare().and_then(|()| hide()) {
        return cannot_contain(channel, &error);
    }
    send(channel, &Said::Ready, &[Init::pidfd()?.as_fd()])?;
    let Some((order, streams)) = await_order(channel)? else { return Ok(()) };
    // It counts as well.
    let processes_max = u64::from(order.processes_max).saturating_add(1);
    let mut init = match Init::start(&mut order.command(streams, processes_max)?) {
        Ok(init) => init,
        Err(error) => return send(channel, &Said::CannotStart(error.to_string()), &[]),
    };
    send(channel, &Said::Started(Containment::Namespace), &[])?;
    let leader = init.leader_pidfd()?;
    loop {
        if let Some(status) = init.reap()? {
            return send(channel, &ended(status), &[]);
        }
        // The kernel does not count those of the superuser. What has died and is not reaped yet counts here.
        if init.members()? > order.processes_max as usize {
            return send(channel, &Said::TooMany, &[]);
        }
        await_either(channel, Some(&leader))?;
        match asked(channel)? {
            None => {}
            Some(Asked::Terminate) => init.ask()?,
            Some(Asked::Kill) => return Ok(()),
        }
    }
}

/// Where there is no namespace.
fn ordered(channel: &Stdin, containment: Containment) -> io::Result<()> {
    let prepared = match containment {
        Containment::Unverified => Ok(()),
        Containment::Cgroup if !estop_supervise::has_cgroups() => Err(io::Error::other("no control group can be made")),
        _ => estop_supervise::become_subreaper().and_then(|()| hide()),
    };
    if let Err(error) = prepared {
        return cannot_contain(channel, &error);
    }
    estop_supervise::own_all_children();
    send(channel, &Said::Ready, &[])?;
    let Some((order, streams)) = await_order(channel)? else { return Ok(()) };
    // The limit of the kernel counts all processes of the user.
    let mut command = order.command(streams, u64::MAX)?;
    let preferred = match containment {
        Containment::Cgroup => Found::Cgroup,
        Containment::Unverified => return unverified(channel, &mut command),
        _ => Found::Walk,
    };
    let tree = match Tree::spawn_with(&mut command, preferred) {
        Ok(tree) => tree,
        Err(error) => return send(channel, &Said::CannotStart(error.to_string()), &[]),
    };
    // Its own ends of the streams: the program's output ends with the program.
    drop(command);
    let found = match tree.containment() {
        Found::Cgroup => Containment::Cgroup,
        // Also if it has ended before it could be moved into its group.
        Found::Walk => Containment::Subreaper,
    };
    send(channel, &Said::Started(found), &[])?;
    in_tree(channel, &order, tree)
}

fn in_tree(channel: &Stdin, order: &Order, mut tree: Tree) -> io::Result<()> {
    let mut status = None;
    loop {
        match tree.watch(channel, LOOK_EVERY) {
            Ok(None) => {}
            Ok(ended) => {
                status = ended;
                break;
            }
            // Nobody looks after it any more.
            Err(_) => break,
        }
        match asked(channel) {
            Ok(None) => {}
            Err(_) => break,
            Ok(Some(Asked::Terminate)) => {
                let is_killed = || !matches!(asked(channel), Ok(None | Some(Asked::Terminate)));
                drop(tree.stop_unless(UNTIL_KILLED, UNTIL_KILLED, is_killed));
                break;
            }
            Ok(Some(Asked::Kill)) => break,
        }
        // A look that fails now is repeated; stopping reports its own.
        if tree.members().is_ok_and(|members| members.len() > order.processes_max as usize) {
            // Of a host that is gone nobody is told.
            let _ = send(channel, &Said::TooMany, &[]);
            break;
        }
    }
    loop {
        let stopped = tree.stop(Duration::ZERO, KILL_WITHIN);
        if stopped.complete() {
            break;
        }
        let left = stopped.left.iter().take(LEFT_NAMED_MAX);
        let processes = left.map(|left| Left { pid: left.pid, name: left.name.clone(), state: left.state }).collect();
        let trouble = stopped.trouble.map(|error| error.to_string());
        // Of a host that is gone nobody is told.
        let _ = send(channel, &Said::Left { processes, trouble }, &[]);
    }
    if let Some(status) = status.or_else(|| tree.try_wait().ok().flatten()) {
        let _ = send(channel, &ended(status), &[]);
    }
    send(channel, &Said::Gone, &[])
}

/// Where nobody can look at processes: the leader's group is all that can be reached.
fn unverified(channel: &Stdin, command: &mut Command) -> io::Result<()> {
    let mut leader = match command.spawn() {
        Ok(leader) => leader,
        Err(error) => return send(channel, &Said::CannotStart(error.to_string()), &[]),
    };
    send(channel, &Said::Started(Containment::Unverified), &[])?;
    let group = Pid::from_child(&leader);
    let status = alone(channel, &mut leader, group);
    // Before the leader is reaped its number is nobody else's.
    let _ = kill_process_group(group, Signal::KILL);
    send(channel, &ended(status.and_then(|()| leader.wait())?), &[])?;
    send(channel, &Said::Gone, &[])
}

/// Until the leader is dead, and not reaped, or is to be killed.
fn alone(channel: &Stdin, leader: &mut Child, group: Pid) -> io::Result<()> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(leader), rustix::process::PidfdFlags::empty())?;
    loop {
        await_either(channel, Some(&pidfd))?;
        match asked(channel)? {
            None => {}
            Some(Asked::Terminate) => kill_process_group(group, Signal::TERM)?,
            Some(Asked::Kill) => return Ok(()),
        }
        let mut dead = [PollFd::new(&pidfd, PollFlags::IN)];
        if poll(&mut dead, Some(&Timespec::default()))? > 0 {
            return Ok(());
        }
    }
}

fn ended(status: ExitStatus) -> Said {
    Said::Ended { code: status.code(), signal: status.signal() }
}

/// What the host asks, if it asks something now: the last of it. That it is gone means that all is to be killed.
fn asked(channel: &Stdin) -> io::Result<Option<Asked>> {
    let mut last = None;
    loop {
        match receive(channel) {
            Ok(Some((Asked::Terminate, _))) => last = Some(Asked::Terminate),
            Ok(Some((Asked::Kill, _)) | None) => return Ok(Some(Asked::Kill)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(last),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Some(Asked::Kill)),
            Err(error) => return Err(error),
        }
    }
}

/// `None`: the host does not want it any more.
fn await_order(channel: &Stdin) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
    loop {
        match receive(channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_either(channel, None)?,
            order => return order,
        }
    }
}

/// Waits for the host or for a process, for a moment at most.
fn await_either(channel: &Stdin, process: Option<&OwnedFd>) -> io::Result<()> {
    let mut either = vec![PollFd::new(channel, PollFlags::IN)];
    either.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
    let limit = Timespec::try_from(LOOK_EVERY).map_err(io::Error::other)?;
    match poll(&mut either, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Order {
    /// The step that becomes the program.
    fn command(&self, streams: Vec<OwnedFd>, processes_max: u64) -> io::Result<Command> {
        let [stdin, stdout, stderr] =
            <[OwnedFd; 3]>::try_from(streams).map_err(|_| io::Error::other("an order comes with three streams"))?;
        let mut command = itself(SHIM);
        command.arg(std::process::id().to_string());
        for limit in [self.cpu_seconds_max, self.memory_bytes_max, processes_max, self.file_bytes_max] {
            command.arg(limit.to_string());
        }
        command.arg(&self.program).args(&self.arguments);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.directory).stdin(stdin).stdout(stdout).stderr(stderr);
        Ok(command)
    }
}

/// Bounds itself, and becomes the program, which dies with its supervisor.
fn shim(args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let args: Vec<OsString> = args.collect();
    let [parent, cpu, memory, processes, file, program, arguments @ ..] = &args[..] else {
        return Err(io::Error::other("too few arguments"));
    };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    let numbers = number(parent).zip(number(cpu)).zip(number(memory)).zip(number(processes)).zip(number(file));
    let Some(((((parent, cpu), memory), processes), file)) = numbers else {
        return Err(io::Error::other("a limit is no number"));
    };
    let bounded = bound(cpu, memory, processes, file);
    let parent = u32::try_from(parent).unwrap_or_default();
    let error = match bounded {
        Ok(()) => estop_supervise::shim(parent, Command::new(program).args(arguments)),
        Err(error) => error,
    };
    // For whoever reads what the program says.
    eprintln!("estop: {}: {error}", program.to_string_lossy());
    std::process::exit(NOT_EXECUTED)
}

fn bound(cpu_seconds_max: u64, memory_bytes_max: u64, processes_max: u64, file_bytes_max: u64) -> io::Result<()> {
    // Also no setuid program, which nobody could kill.
    rustix::thread::set_no_new_privs(true)?;
    // Short of memory, the machine should lose the program and not the host. Where that is not possible it runs all the same.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // A group of its own: signals of the terminal are for the host.
    rustix::process::setsid()?;
    // What an embedder has opened without `O_CLOEXEC` is none of the program's business.
    estop_supervise::close_descriptors_on_exec();
    let limit = |resource, most: u64| {
        let before = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let most = Some(most.min(before));
        setrlimit(resource, Rlimit { current: most, maximum: most })
    };
    limit(Resource::Core, 0)?;
    limit(Resource::Cpu, cpu_seconds_max)?;
    limit(Resource::Fsize, file_bytes_max)?;
    if processes_max < u64::MAX {
        limit(Resource::Nproc, processes_max)?;
    }
    // Last: from here on there may be no memory for anything but the program.
    Ok(limit(Resource::As, memory_bytes_max)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is short for a moment is told from what is not there, also where words of ours stand before it.
    #[test]
    fn the_kernels_word_is_found() {
        let missing = std::process::Command::new("/nowhere").spawn().unwrap_err();
        assert_eq!(errno(&missing), Some(Errno::NOENT));
        // A process of several threads may not make a namespace.
        let (end, waits) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || waits.recv());
        let ours = estop_supervise::enter_namespace().unwrap_err();
        drop(end);
        assert!(other.join().unwrap().is_err());
        assert_eq!((ours.raw_os_error(), errno(&ours)), (None, Some(Errno::INVAL)), "{ours}");
        assert_eq!(errno(&io::Error::other("ours alone")), None);
        let (channel, _host) = crate::process::order::pair().unwrap();
        assert_eq!(errno(&receive::<Asked>(&channel).unwrap_err()), Some(Errno::AGAIN));
    }
}
