//! What a guest sees of the world around it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpStream;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use std::{env as std_env, fs};

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::Serialize;

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
