//! A machine with a folder of tools, a configuration, and a host that serves them; and an agent that speaks to its socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use std::{fs, thread};

use estop_tests::guests;
use serde_json::{Value, json};

use crate::command::{Ended, PATIENCE, Running, estop};
use crate::hosts::Machine;

/// See the module's documentation.
pub(crate) struct Scene {
    pub(crate) machine: Machine,
}

impl Scene {
    /// With copies of these guests in the folder of the configuration.
    pub(crate) fn new(tools: &[&str]) -> Self {
        let scene = Self { machine: Machine::new() };
        for tool in tools {
            fs::copy(guests::path(tool), scene.tool(tool)).unwrap();
        }
        scene
    }

    /// A scene that serves these guests, under their own names.
    pub(crate) fn serving(tools: &[&str]) -> (Self, Running) {
        let scene = Self::new(tools);
        scene.config(&tools.iter().map(|tool| section(tool, tool)).collect::<String>());
        let host = scene.serve();
        (scene, host)
    }

    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.machine.folder().join(format!("{name}.wasm"))
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.machine.folder().join("estop.toml")
    }

    /// Puts a configuration in place, whole.
    pub(crate) fn config(&self, text: &str) {
        replace(&self.config_path(), text.as_bytes());
    }

    pub(crate) fn serving_command(&self) -> Command {
        let config = self.config_path();
        estop(&self.machine.home(), &["serve", "--config", config.to_str().unwrap()])
    }

    /// A host that has loaded everything.
    #[track_caller]
    pub(crate) fn serve(&self) -> Running {
        let host = Running::start(self.serving_command());
        host.says("estop: serving");
        host
    }

    pub(crate) fn calling(&self, tool: &str, input: &Value, more: &[&str]) -> Running {
        let input = input.to_string();
        Running::start(estop(&self.machine.home(), &[&["call", tool, "-i", &input], more].concat()))
    }

    #[track_caller]
    pub(crate) fn call(&self, tool: &str, input: &Value, more: &[&str]) -> Ended {
        self.calling(tool, input, more).ended()
    }

    /// The agents' socket of a host.
    pub(crate) fn socket(&self, host: &Running) -> PathBuf {
        self.machine.sockets().join(host.child.id().to_string()).join("agent.sock")
    }

    /// What the host says that it serves.
    #[track_caller]
    pub(crate) fn tools(&self, host: &Running) -> Value {
        ask(&self.socket(host), "GET", "/v1/tools", "").1
    }

    /// One component of it.
    #[track_caller]
    pub(crate) fn component(&self, host: &Running, name: &str) -> Value {
        let tools = self.tools(host);
        let components = tools["components"].as_array().unwrap();
        components.iter().find(|component| component["component"] == name).cloned().unwrap_or(Value::Null)
    }

    /// Until so many calls run.
    #[track_caller]
    pub(crate) fn until_running(&self, count: usize) {
        until("so many calls run", || {
            let seen = self.machine.ps();
            seen["calls"].as_array().unwrap().iter().filter(|call| call["state"] == "running").count() == count
        });
    }

    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Value> {
        self.machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons()
    }

    /// The first entry of this kind that fits, once it is there.
    #[track_caller]
    pub(crate) fn entry(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        until(&format!("there is such an entry of kind {kind}"), || {
            found = self.log().into_iter().find(|entry| entry["kind"] == kind && fits(entry));
            found.is_some()
        });
        found.unwrap()
    }
}

/// Of a configuration.
pub(crate) fn section(name: &str, file: &str) -> String {
    format!("[tools.{name}]\npath = \"{file}.wasm\"\n")
}

/// Nobody sees half of it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let draft = path.with_extension("draft");
    fs::write(&draft, bytes).unwrap();
    fs::rename(draft, path).unwrap();
}

/// The same component with another digest: a custom section more.
pub(crate) fn version(bytes: &[u8], number: u8) -> Vec<u8> {
    [bytes, &[0, 3, 1, b'v', number]].concat()
}

/// Where nothing tells. Generous: what needs this long has failed.
#[track_caller]
pub(crate) fn until(what: &str, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < PATIENCE, "it never came about that {what}");
        thread::yield_now();
    }
}

/// Who runs the tests.
pub(crate) fn user() -> String {
    String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap().trim().to_owned()
}

/// One question, and its status and answer.
#[track_caller]
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let bytes = body.len();
    // Whoever is turned away need not have been heard.
    let _ = write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{body}");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

/// A stream of events, read one by one.
pub(crate) struct Stream {
    reader: BufReader<UnixStream>,
}

impl Stream {
    pub(crate) fn call(socket: &Path, request: &Value) -> Self {
        Self::open(socket, "POST", "/v1/call", &request.to_string())
    }

    pub(crate) fn open(socket: &Path, method: &str, path: &str, body: &str) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let bytes = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{body}").unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// The next line; none at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let bytes = self.reader.read_line(&mut line).unwrap();
        (bytes > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event of this name.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let (mut said, begun) = (Vec::new(), Instant::now());
        loop {
            // Signs of life come all the while.
            assert!(begun.elapsed() < PATIENCE, "it never told `{name}`: {said:?}");
            let Some(line) = self.line() else { panic!("it ended before `{name}`: {said:?}") };
            if line == format!("event: {name}") {
                let data = self.line().unwrap();
                return serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            }
            said.push(line);
        }
    }
}

/// A call that spins, through the socket: its id and token, and the connection that keeps it.
pub(crate) fn spin(socket: &Path, agent: &str) -> (Value, Stream) {
    let mut stream = Stream::call(socket, &json!({"tool": "spin", "agent": agent}));
    (stream.event("call"), stream)
}
