//! A small supervisor for the tests: `supervisor [walk|cgroup] COMMAND…` and `exec-shim`.

#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};
use std::{env, io};

use estop_supervise::{Containment, Tree, become_subreaper, own_all_children, shim};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["exec-shim", parent, "--", program, rest @ ..] => parent
            .parse()
            .map_err(io::Error::other)
            .and_then(|parent| Err(shim(parent, Command::new(program).args(rest)))),
        ["walk", command @ ..] => supervise(Containment::Walk, command),
        ["cgroup", command @ ..] => supervise(Containment::Cgroup, command),
        _ => Err(io::Error::other("supervisor [walk|cgroup] COMMAND…")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("supervisor: {error}");
            ExitCode::from(125)
        }
    }
}

/// Runs the command through the shim, says its pid and waits for it.
fn supervise(containment: Containment, command: &[&str]) -> io::Result<ExitCode> {
    become_subreaper()?;
    own_all_children();
    let mut shimmed = Command::new("/proc/self/exe");
    shimmed.args(["exec-shim", &std::process::id().to_string(), "--"]).args(command);
    let mut tree = Tree::spawn_with(&mut shimmed, containment)?;
    println!("leader {}", tree.leader());
    let status = tree.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(126)))
}
