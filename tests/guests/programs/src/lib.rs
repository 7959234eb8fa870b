//! A guest that starts programs in every way that there is.

use estop_tool::process::{Child, Command, Exit, Output};
use estop_tool::{ToolError, kv};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
struct Program {
    program: String,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    stdin: String,
}

impl Program {
    fn command(&self) -> Command {
        Command::new(&self.program).args(self.arguments.iter().cloned()).stdin(self.stdin.as_bytes())
    }
}

#[derive(Serialize, JsonSchema)]
struct Ran {
    code: Option<i32>,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let (code, signal) = match output.exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        Self { code, signal, stdout: output.stdout_text().into(), stderr: output.stderr_text().into() }
    }
}

/// Runs a program to its end.
#[estop_tool::tool]
fn run(input: Program) -> Result<Ran, ToolError> {
    Ok(input.command().output_bytes_max(64 << 20).run()?.into())
}

/// Reads what a program says until it says `ready`.
fn ready(child: &mut Child) -> Result<(), ToolError> {
    let mut said = Vec::new();
    while let Some((_, data)) = child.read()? {
        said.extend(data);
        if String::from_utf8_lossy(&said).contains("ready\n") {
            estop_tool::progress(1, None, "ready");
            return Ok(());
        }
    }
    Err(ToolError::failed("not-ready", String::from_utf8_lossy(&said).into_owned()))
}

/// Starts a program, waits until it is ready, and then for ever; a write is left uncommitted.
#[estop_tool::tool]
fn wait(input: Program) -> Result<Ran, ToolError> {
    kv::open("programs")?.set("begun", &true)?;
    let mut child = input.command().start()?;
    ready(&mut child)?;
    let exit = child.wait()?;
    Ok(Output::new(exit, "", "").into())
}

/// Starts a program, waits until it is ready, and spins.
#[estop_tool::tool]
fn spin(input: Program) -> Result<Ran, ToolError> {
    let mut child = input.command().start()?;
    ready(&mut child)?;
    loop {
        std::hint::black_box(());
    }
}

/// Starts a program, and ends as soon as that is ready.
#[estop_tool::tool]
fn leave(input: Program) -> Result<(), ToolError> {
    let mut child = input.command().start()?;
    ready(&mut child)?;
    // Its end is the host's affair: nothing of it is dropped here.
    std::mem::forget(child);
    Ok(())
}

/// Starts a program, waits until it is ready, lets go of it, and says that.
#[estop_tool::tool]
fn drop_it(input: Program) -> Result<(), ToolError> {
    let mut child = input.command().start()?;
    ready(&mut child)?;
    drop(child);
    estop_tool::progress(2, None, "dropped");
    loop {
        std::hint::black_box(());
    }
}

/// Starts a program, waits until it is ready, asks it to end, and tells how it did.
#[estop_tool::tool]
fn terminate(input: Program) -> Result<Ran, ToolError> {
    let mut child = input.command().start()?;
    ready(&mut child)?;
    child.terminate();
    let exit = child.wait()?;
    Ok(Output::new(exit, "", "").into())
}

/// Starts a program, waits until it is ready, kills it, and tells how it ended.
#[estop_tool::tool]
fn kill(input: Program) -> Result<Ran, ToolError> {
    let mut child = input.command().start()?;
    ready(&mut child)?;
    child.kill();
    let exit = child.wait()?;
    Ok(Output::new(exit, "", "").into())
}

/// Starts a program until that is refused, and tells how often it was not.
#[estop_tool::tool]
fn many(input: Program) -> Result<usize, ToolError> {
    let mut children = Vec::new();
    while let Ok(child) = input.command().start() {
        children.push(child);
    }
    Ok(children.len())
}

estop_tool::export!(run, wait, spin, leave, drop_it, terminate, kill, many);
