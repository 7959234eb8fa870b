//! The process that compiles: what it is told, what it may have, and what it answers.
//!
//! Invariant: before it reads a byte of the component it is bounded, and dies with the process that started it. It opens
//! nothing, starts nothing, and writes nothing but its answer.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};

use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

use crate::engine;

/// Its first argument.
const WORD: &str = "estop-compile-child";
/// Before everything that it writes.
pub(super) const MAGIC: &[u8; 16] = b"estop compiler 1";
/// How it ends when what follows the magic is machine code.
pub(super) const COMPILED: i32 = 0;
/// When it is the reason, as text, that there is none.
pub(super) const REFUSED: i32 = 1;
/// When its machine code would not run in the host.
pub(super) const ANOTHER_CONFIGURATION: i32 = 3;
/// When it could not begin; the reason follows as text.
pub(super) const COULD_NOT_BEGIN: i32 = 4;

/// Added to the nice value of the host.
const NICE: i32 = 10;

/// To be called first of all in the `main` of a program that a [`CompileChild`](crate::CompileChild) names. Does nothing,
/// unless this process was started by a host to compile a component: then it does that, and ends the process.
pub fn compile_child() {
    if !is_one() {
        return;
    }
    let (code, answer) = match Order::read(std::env::args_os().skip(2)) {
        Some(order) => order.carry_out(),
        None => (COULD_NOT_BEGIN, b"its arguments are those of another version of estop".to_vec()),
    };
    let mut stdout = io::stdout().lock();
    let told = stdout.write_all(MAGIC).and_then(|()| stdout.write_all(&answer)).and_then(|()| stdout.flush());
    std::process::exit(if told.is_ok() { code } else { COULD_NOT_BEGIN })
}

/// This process was started to compile.
pub(super) fn is_one() -> bool {
    std::env::args_os().nth(1).as_deref() == Some(OsStr::new(WORD))
}

/// What it is told, as arguments.
pub(super) struct Order {
    pub(super) parent: u32,
    /// As [`engine::configuration`] has it.
    pub(super) configuration: String,
    /// Of the component, which it reads from its standard input.
    pub(super) bytes: u64,
    pub(super) address_space_bytes_max: u64,
    pub(super) cpu_seconds_max: u64,
}

impl Order {
    pub(super) fn args(&self) -> [String; 6] {
        let Self { parent, configuration, bytes, address_space_bytes_max, cpu_seconds_max } = self;
        [
            WORD.to_owned(),
            parent.to_string(),
            configuration.clone(),
            bytes.to_string(),
            address_space_bytes_max.to_string(),
            cpu_seconds_max.to_string(),
        ]
    }

    fn read(args: impl Iterator<Item = OsString>) -> Option<Self> {
        let args: Vec<String> = args.map(OsString::into_string).collect::<Result<_, _>>().ok()?;
        let [parent, configuration, bytes, address_space, cpu] = &args[..] else { return None };
        Some(Self {
            parent: parent.parse().ok()?,
            configuration: configuration.clone(),
            bytes: bytes.parse().ok()?,
            address_space_bytes_max: address_space.parse().ok()?,
            cpu_seconds_max: cpu.parse().ok()?,
        })
    }

    fn carry_out(self) -> (i32, Vec<u8>) {
        let could_not = |why: String| (COULD_NOT_BEGIN, why.into_bytes());
        if let Err(error) = self.confine() {
            return could_not(format!("it cannot bound itself: {error}"));
        }
        let component = match self.component() {
            Ok(component) => component,
            Err(error) => return could_not(format!("it cannot read the component: {error}")),
        };
        let engine = match engine::compiler() {
            Ok(engine) => engine,
            Err(error) => return could_not(format!("{error:#}")),
        };
        if engine::configuration(&engine) != self.configuration {
            return (ANOTHER_CONFIGURATION, Vec::new());
        }
        match engine.precompile_component(&component) {
            Ok(code) => (COMPILED, code),
            Err(error) => (REFUSED, format!("{error:#}").into_bytes()),
        }
    }

    fn confine(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // One that died before that sends nothing.
        let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if i64::from(parent) != i64::from(self.parent) {
            return Err(io::Error::other("the host that started it is gone"));
        }
        rustix::thread::set_no_new_privs(true)?;
        // Courtesies: where they are not possible, it compiles all the same. Short of memory, the machine should lose this
        // process and not the host.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
        let _ = rustix::process::nice(NICE);
        limit(Resource::As, self.address_space_bytes_max, self.address_space_bytes_max)?;
        // The signal at the first says what happened; the second kills whoever ignores it.
        limit(Resource::Cpu, self.cpu_seconds_max, self.cpu_seconds_max.saturating_add(1))?;
        for nothing in [Resource::Core, Resource::Fsize, Resource::Nproc, Resource::Nofile] {
            limit(nothing, 0, 0)?;
        }
        Ok(())
    }

    /// All of it, and nothing else.
    fn component(&self) -> io::Result<Vec<u8>> {
        let mut component = Vec::new();
        io::stdin().lock().take(self.bytes.saturating_add(1)).read_to_end(&mut component)?;
        if component.len() as u64 == self.bytes {
            Ok(component)
        } else {
            Err(io::Error::other(format!("{} of {} bytes are there", component.len(), self.bytes)))
        }
    }
}

/// At most this much, and no more than there was.
fn limit(resource: Resource, current: u64, maximum: u64) -> rustix::io::Result<()> {
    let before = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let (current, maximum) = (current.min(before), maximum.min(before));
    setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })
}
