//! What a guest sees of the world around it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{env as std_env, fs};

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Give the order in which a `HashMap` of 0 to 15 is iterated.
#[estop_tool::tool(read_only)]
pub fn hash_map() -> Result<Vec<u32>, ToolError> {
    let map: HashMap<u32, ()> = (0..16).map(|key| (key, ())).collect();
    Ok(map.into_keys().collect())
}

/// Give a random number, in decimal digits: JSON's numbers are too small in some readers.
#[estop_tool::tool(read_only)]
pub fn random() -> Result<String, ToolError> {
    Ok(RandomState::new().hash_one(0).to_string())
}

/// Two looks at the clocks.
#[derive(Serialize, JsonSchema)]
pub struct Clock {
    /// Since 1970, or nothing if there is no such clock.
    wall_ms: Option<u64>,
    /// Between two looks at the monotonic clock.
    step_ns: u64,
}

/// Look at the clocks.
#[estop_tool::tool(read_only)]
pub fn clock() -> Result<Clock, ToolError> {
    let begin = Instant::now();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let step = begin.elapsed().as_nanos();
    Ok(Clock {
        wall_ms: wall.and_then(|since| u64::try_from(since.as_millis()).ok()),
        step_ns: u64::try_from(step).unwrap_or(u64::MAX),
    })
}

/// The environment.
#[derive(Serialize, JsonSchema)]
pub struct Environment {
    arguments: Vec<String>,
    variables: Vec<String>,
}

/// List arguments and the names of environment variables.
#[estop_tool::tool(read_only)]
pub fn env() -> Result<Environment, ToolError> {
    let mut variables: Vec<String> = std_env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    variables.sort();
    let arguments = std_env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    Ok(Environment { arguments: arguments.collect(), variables })
}

/// What came of each attempt: nothing, or the error.
#[derive(Serialize, JsonSchema)]
pub struct Attempts {
    read: Option<String>,
    write: Option<String>,
}

/// Try to list `/` and to write `/estop-was-here`.
#[estop_tool::tool(open_world)]
pub fn files() -> Result<Attempts, ToolError> {
    let read = fs::read_dir("/").err();
    let write = fs::write("/estop-was-here", b"x").err();
    Ok(Attempts { read: read.map(|error| error.to_string()), write: write.map(|error| error.to_string()) })
}

/// Try to connect to 127.0.0.1:9. Answers the error.
#[estop_tool::tool(open_world)]
pub fn net() -> Result<Option<String>, ToolError> {
    Ok(TcpStream::connect(("127.0.0.1", 9)).err().map(|error| error.to_string()))
}

/// What to try.
#[derive(Deserialize, JsonSchema)]
pub struct Targets {
    /// Files, folders and sockets.
    paths: Vec<String>,
    /// Environment variables.
    variables: Vec<String>,
}

/// Something that a guest may try with a path.
type Attempt = fn(&Path) -> bool;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("look at", |path| fs::symlink_metadata(path).is_ok()),
    ("read", |path| fs::read(path).is_ok()),
    ("list", |path| fs::read_dir(path).is_ok()),
    ("write", |path| fs::write(path, b"{}").is_ok()),
    ("add to", |path| fs::OpenOptions::new().append(true).open(path).is_ok()),
    ("empty", |path| fs::OpenOptions::new().write(true).truncate(true).open(path).is_ok()),
    ("make a file in", |path| fs::write(path.join("x"), b"{}").is_ok()),
    ("make a folder in", |path| fs::create_dir(path.join("x")).is_ok()),
    ("copy", |path| fs::copy(path, path.with_extension("copy")).is_ok()),
    ("link to", |path| fs::hard_link(path, path.with_extension("link")).is_ok()),
    ("move", |path| fs::rename(path, path.with_extension("gone")).is_ok()),
    ("remove", |path| fs::remove_file(path).is_ok()),
    ("remove all of", |path| fs::remove_dir_all(path).is_ok()),
    ("run", |path| Command::new(path).status().is_ok()),
];

/// Try everything with what is named, as it is named, from the root up, and through whatever is open. Answers what worked.
#[estop_tool::tool(open_world)]
pub fn reach(input: Targets) -> Result<Vec<String>, ToolError> {
    let mut worked = Vec::new();
    for path in &input.paths {
        let relative = format!("../../../../../../../..{path}");
        let opened = (0..8).map(|fd| format!("/proc/self/fd/{fd}/..{path}"));
        for path in
            [path.clone(), relative, format!("/proc/1/root{path}"), format!(".{path}")].into_iter().chain(opened)
        {
            let tried = ATTEMPTS.iter().filter(|(_, attempt)| attempt(Path::new(&path)));
            worked.extend(tried.map(|(what, _)| format!("{what} {path}")));
        }
    }
    worked.extend(
        input.variables.iter().filter(|name| std_env::var_os(name).is_some()).map(|name| format!("see {name}")),
    );
    for port in [22, 53, 80, 443, 2375, 8080] {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() || UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            worked.push(format!("use port {port}"));
        }
    }
    if ("localhost", 80).to_socket_addrs().is_ok_and(|mut found| found.next().is_some()) {
        worked.push("look up localhost".into());
    }
    Ok(worked)
}
