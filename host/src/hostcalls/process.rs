//! `estop:tool/process`: programs of the machine, where the call is granted some.
//!
//! Invariant: nothing is started that no grant admits, and each start is an effect of the call before it happens.

use std::sync::Arc;

use tokio::net::unix::pipe;
use wasmtime::component::Resource;

use super::bindings::estop::tool::process::{Chunk, Command, Error, Exit, Host, HostChild, Source};
use crate::call::live::HostCall;
use crate::grants::Program;
use crate::interrupt::{TEXT_BYTES_MAX, cut};
use crate::process::{self, ProcessError, Streams, Tracked, Wish};
use crate::sandbox::{CallCtx, EffectGuard};

/// What is read at once (bytes): as much as a pipe holds.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// A program that a guest has started.
#[allow(unreachable_pub, reason = "the generated bindings name it in their public traits")]
pub struct Child {
    tracked: Arc<Tracked>,
    streams: Streams,
    /// What it may still say (bytes).
    output_bytes_left: u64,
    output_bytes_max: u64,
    effect: Option<EffectGuard>,
}

/// A guest that lets go of it does not want it any more.
impl Drop for Child {
    fn drop(&mut self) {
        self.tracked.wish(Wish::Kill);
    }
}

impl Child {
    async fn read(&mut self) -> Result<Option<Chunk>, ProcessError> {
        // Without a future that is dropped half-way nothing is lost: it is read only when there is something.
        let (mut out, mut err) = (Some(()), Some(()));
        loop {
            // In any order, so that what says much does not hide the other.
            let source = tokio::select! {
                ready = self.streams.stdout.readable(), if out.is_some() => ready.map(|()| Source::Stdout),
                ready = self.streams.stderr.readable(), if err.is_some() => ready.map(|()| Source::Stderr),
                else => return Ok(None),
            };
            let source = source.map_err(|error| unreadable(&error))?;
            let (stream, end) = match source {
                Source::Stdout => (&self.streams.stdout, &mut out),
                Source::Stderr => (&self.streams.stderr, &mut err),
            };
            match read(stream) {
                Ok(None) => {}
                Ok(Some(data)) if data.is_empty() => *end = None,
                Ok(Some(data)) => return self.counted(source, data).map(Some),
                Err(error) => return Err(unreadable(&error)),
            }
        }
    }

    fn counted(&mut self, source: Source, data: Vec<u8>) -> Result<Chunk, ProcessError> {
        match self.output_bytes_left.checked_sub(data.len() as u64) {
            Some(left) => {
                self.output_bytes_left = left;
                Ok(Chunk { source, data })
            }
            None => {
                let why = format!("the program has said more than {} bytes", self.output_bytes_max);
                self.tracked.end_for(ProcessError::Limit(why.clone()));
                Err(ProcessError::Limit(why))
            }
        }
    }
}

/// What there is now; empty at the end; `None` if there is nothing now.
fn read(stream: &pipe::Receiver) -> std::io::Result<Option<Vec<u8>>> {
    let mut data = vec![0; CHUNK_BYTES_MAX];
    match stream.try_read(&mut data) {
        Ok(bytes) => {
            data.truncate(bytes);
            Ok(Some(data))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn unreadable(error: &std::io::Error) -> ProcessError {
    ProcessError::Failed(format!("what the program says cannot be read: {error}"))
}

impl From<ProcessError> for Error {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Denied(why) => Error::Denied(why),
            ProcessError::Limit(why) => Error::Limit(why),
            ProcessError::Failed(why) => Error::Failed(why),
        }
    }
}

impl CallCtx {
    /// The grant that admits this.
    fn granted_program(&self, command: &Command) -> Result<Arc<Program>, ProcessError> {
        let name = &command.program;
        let mut called = self.granted.programs.iter().filter(|program| program.is_called(name)).peekable();
        let Some(first) = called.peek() else {
            return Err(ProcessError::Denied(format!("the call is granted no program `{}`", shown(name))));
        };
        let path = first.path();
        if let Some(other) = self.granted.programs.iter().find(|other| other.is_called(name) && other.path() != path) {
            let (one, other) = (path.display(), other.path().display());
            let why = format!("`{}` can be `{one}` or `{other}`: name it by its path", shown(name));
            return Err(ProcessError::Denied(why));
        }
        let admits = called.find(|program| program.admits(&command.arguments)).cloned();
        admits
            .ok_or_else(|| ProcessError::Denied(format!("the call may not give these arguments to `{}`", shown(name))))
    }

    async fn start_program(&mut self, command: Command) -> Result<Child, ProcessError> {
        if self.describing {
            return Err(ProcessError::Denied("no program is started while tools are listed".into()));
        }
        let program = self.granted_program(&command)?;
        if command.arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(ProcessError::Failed("an argument has a null byte in it".into()));
        }
        let Command { program: name, arguments, stdin } = command;
        let mut line = arguments.iter().fold(name, |line, argument| line + " " + argument);
        cut(&mut line, TEXT_BYTES_MAX);
        // Registered first: what is refused has no effect.
        let reserved = process::reserve(&self.core, &self.call, line)?;
        let effect = self.effect(format!("program {}", program.name()));
        let effect = effect.map_err(|error| ProcessError::Limit(error.to_string()))?;
        let _in = self.call.live.enter(HostCall::Program);
        let (tracked, streams) = process::start(&self.core, &self.call, reserved, &program, arguments, stdin).await?;
        let output_bytes_max = program.limits().output_bytes_max;
        Ok(Child { tracked, streams, output_bytes_left: output_bytes_max, output_bytes_max, effect: Some(effect) })
    }
}

/// A guest's text in a message.
fn shown(text: &str) -> String {
    let mut text = text.to_owned();
    cut(&mut text, TEXT_BYTES_MAX);
    text
}

impl Host for CallCtx {
    async fn start(&mut self, command: Command) -> wasmtime::Result<Result<Resource<Child>, Error>> {
        match self.start_program(command).await {
            Ok(child) => Ok(Ok(self.table.push(child)?)),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl HostChild for CallCtx {
    async fn read(&mut self, child: Resource<Child>) -> wasmtime::Result<Result<Option<Chunk>, Error>> {
        let _in = self.call.live.enter(HostCall::Program);
        let child = self.table.get_mut(&child)?;
        Ok(child.read().await.map_err(Error::from))
    }

    async fn wait(&mut self, child: Resource<Child>) -> wasmtime::Result<Result<Exit, Error>> {
        let _in = self.call.live.enter(HostCall::Program);
        let child = self.table.get_mut(&child)?;
        let exit = child.tracked.gone().await;
        if let (Ok(_), Some(effect)) = (&exit, child.effect.take()) {
            effect.performed();
        }
        Ok(match exit {
            Ok(process::Exit::Code(code)) => Ok(Exit::Code(code)),
            Ok(process::Exit::Signal(signal)) => Ok(Exit::Signal(signal)),
            Err(error) => Err(error.into()),
        })
    }

    async fn terminate(&mut self, child: Resource<Child>) -> wasmtime::Result<()> {
        self.table.get(&child)?.tracked.wish(Wish::Terminate);
        Ok(())
    }

    async fn kill(&mut self, child: Resource<Child>) -> wasmtime::Result<()> {
        self.table.get(&child)?.tracked.wish(Wish::Kill);
        Ok(())
    }

    async fn drop(&mut self, child: Resource<Child>) -> wasmtime::Result<()> {
        self.table.delete(child)?;
        Ok(())
    }
}
