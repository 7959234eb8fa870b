//! A program with a host in it that does what its standard input says, and says when it has done it.

use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use estop::control::HostKind;
use estop::control::client::{AskError, Nothing, ask};
use estop::control::place::Found;
use estop::control::protocol::{Role, Status};
use estop::store::sqlite::Sqlite;
use estop::{Call, CallLimits, Cause, Component, Home, Host, HostLimits, Interrupt, Source};
use estop_tests::held::Held;
use estop_tests::{CAUSES, guests};
use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Value, json};

use crate::command::{PATIENCE, Running};
use crate::hosts::Machine;

/// What the child is told by.
const DRIVEN: &str = "ESTOP_TEST_DRIVEN";
/// Its store, if it is not the home's.
const HELD: &str = "ESTOP_TEST_HELD";
/// Sandboxes that it has room for.
pub(crate) const PLACES: u32 = 4;
/// Calls that it has at one time.
const CALLS_MAX: usize = 5_000;
/// Said once an order is carried out.
const DONE: &str = "done:";

/// See the module's documentation.
pub(crate) struct Driven {
    pub(crate) running: Running,
    folder: PathBuf,
}

impl Driven {
    pub(crate) fn on_the_home(machine: &Machine) -> Self {
        Self::start(machine, false)
    }

    /// Its store is in memory, and its commits can be held.
    pub(crate) fn on_a_held_store(machine: &Machine) -> Self {
        Self::start(machine, true)
    }

    fn start(machine: &Machine, held: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "driven::child_that_is_driven", "--ignored", "--nocapture"]);
        command.env("ESTOP_HOME", machine.home()).env("XDG_RUNTIME_DIR", machine.folder()).env(DRIVEN, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if held {
            command.env(HELD, "1");
        }
        let running = Running::start(command);
        let folder = machine.sockets().join(running.child.id().to_string());
        let driven = Self { running, folder };
        driven.done();
        driven
    }

    /// Has it do something, and waits until it has.
    #[track_caller]
    pub(crate) fn does(&mut self, order: &str) -> Value {
        let stdin = self.running.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{order}\n").as_bytes()).unwrap();
        self.done()
    }

    fn done(&self) -> Value {
        loop {
            let line = self.running.prints();
            if let Some((_, said)) = line.split_once(DONE) {
                return serde_json::from_str(said).unwrap();
            }
        }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// One request to the operator's socket, as `curl` makes it.
    #[track_caller]
    pub(crate) fn asks(&self, request: &str) -> Answer {
        self.tries(request).unwrap_or_else(|error| panic!("{request}: no answer: {error}"))
    }

    /// The same, if it is answered.
    pub(crate) fn tries(&self, request: &str) -> std::io::Result<Answer> {
        let mut stream = self.connects("operator.sock")?;
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: estop\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(Answer { head: head.to_lowercase(), body: body.to_owned() })
    }

    /// What runs there, asked as `estop ps` asks.
    pub(crate) fn lists(&self, within: Duration) -> Result<Status, AskError> {
        let host = Found { folder: self.folder.clone(), pid: self.running.child.id() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask(&host, Role::Operator, Method::GET, "/v1/status", None::<&Nothing>, within))
    }

    pub(crate) fn connects(&self, socket: &str) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(self.socket(socket))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// What was answered.
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn is_ok(&self) {
        assert!(self.head.starts_with("http/1.1 200"), "{}: {}", self.head, self.body);
    }
}

/// What the child has.
struct Inside {
    host: Host,
    held: Held,
    runaway: Component,
    kv: Component,
    misc: Component,
    calls: Vec<Call>,
}

#[tokio::test]
#[ignore = "a child of other tests"]
async fn child_that_is_driven() {
    if std::env::var_os(DRIVEN).is_none() {
        return;
    }
    let home = Home::default_path().unwrap();
    let limits = HostLimits { sandboxes_max: PLACES, calls_max: CALLS_MAX, workers: 2, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: Duration::from_secs(600), ..CallLimits::default() };
    let builder = Host::builder().limits(limits).call_limits(call_limits).offer(HostKind::Embedded);
    let held = Held::new();
    let builder = match std::env::var_os(HELD) {
        Some(_) => builder.store(held.clone()),
        None => builder.store(Sqlite::open(&Home::open(home).unwrap()).unwrap()),
    };
    let host = builder.build().unwrap();
    let load = async |name: &str| host.load(Source::file(guests::path(name))).await.unwrap();
    let (runaway, kv, misc) = (load("runaway").await, load("kv").await, load("misc").await);
    let mut inside = Inside { host, held, runaway, kv, misc, calls: Vec::new() };
    println!("{DONE}null");
    for order in std::io::stdin().lock().lines() {
        let order = order.unwrap();
        let words: Vec<&str> = order.split(' ').collect();
        let said = match words[..] {
            ["spin", count] => inside.spin(count.parse().unwrap()),
            ["quick", count] => inside.quick(count.parse().unwrap()).await,
            ["one-of-each"] => inside.one_of_each().await,
            ["hold"] => inside.hold().await,
            ["go-on"] => inside.go_on().await,
            ["stop"] => inside.stop().await,
            ["entries"] => json!(inside.host.entries(0, usize::MAX).await.unwrap().len()),
            _ => panic!("{order}"),
        };
        println!("{DONE}{said}");
    }
    inside.stop().await;
    inside.host.shutdown().await;
    println!("closed");
}

impl Inside {
    /// Calls that run, or wait for room, until they are stopped.
    fn spin(&mut self, count: usize) -> Value {
        let start = || self.host.agent("spinner").call(&self.runaway, "spin", json!({})).start();
        let calls: Vec<Call> = (0..count).map(|_| start()).collect();
        let ids: Vec<String> = calls.iter().map(|call| call.id().to_string()).collect();
        self.calls.extend(calls);
        json!(ids)
    }

    /// Calls that end, one after the other in a few places.
    async fn quick(&mut self, count: usize) -> Value {
        let places = PLACES as usize;
        let one_by_one = async || {
            for _ in 0..count / places {
                let get = self.host.agent("quick").call(&self.kv, "get", json!({ "key": "k" })).start();
                assert_eq!(get.outcome().await.end.status(), "completed");
            }
        };
        join_all((0..places).map(|_| one_by_one())).await;
        Value::Null
    }

    /// Every way for a call to end.
    async fn one_of_each(&mut self) -> Value {
        let call = |tool: &Component, name: &str, input: Value| self.host.agent("each").call(tool, name, input);
        let mut ended = Vec::new();
        for (tool, name, input, status) in [
            (&self.kv, "set", json!({ "key": "k", "value": 1 }), "completed"),
            (&self.kv, "commit_twice", json!({ "key": "k", "value": 2 }), "completed"),
            (&self.kv, "commit_then_fail", json!({ "key": "k", "value": 3 }), "failed"),
            (&self.misc, "invalid", json!({}), "invalid-input"),
            (&self.misc, "panic", json!({}), "trapped"),
            (&self.misc, "no-such-tool", json!({}), "refused"),
        ] {
            assert_eq!(call(tool, name, input).start().outcome().await.end.status(), status);
            ended.push(status);
        }
        let second = call(&self.kv, "read_then_wait", json!({ "key": "k", "wait_ms": 200 })).start();
        let mut progress = second.progress();
        progress.wait_for(|progress| progress.is_some()).await.unwrap();
        call(&self.kv, "set", json!({ "key": "k", "value": 9 })).start().outcome().await;
        assert_eq!(second.outcome().await.end.status(), "conflict");

        for (at, cause) in CAUSES.into_iter().enumerate() {
            // So that each cause is counted another number of times.
            for _ in 0..=at {
                let input = json!({ "keys": 2, "value_bytes": 5 });
                let call = call(&self.runaway, "write_then_spin", input).start();
                call.progress().wait_for(|progress| progress.is_some()).await.unwrap();
                call.interrupt_with(Interrupt::new(cause, "a \"quoted\" \\ name"));
                assert_eq!(call.outcome().await.end.stopped().unwrap().cause, cause);
            }
        }
        let out_of_fuel = call(&self.runaway, "spin", json!({})).fuel(10_000_000).start();
        assert_eq!(out_of_fuel.outcome().await.end.stopped().unwrap().cause, Cause::Fuel);
        json!(ended)
    }

    /// A commit that does not end, so that the log can take nothing.
    async fn hold(&mut self) -> Value {
        self.held.hold_undecided();
        let call = self.host.agent("held").call(&self.kv, "set", json!({ "key": "k", "value": 1 })).start();
        self.held.holding(1).await;
        self.calls.push(call);
        Value::Null
    }

    async fn go_on(&mut self) -> Value {
        self.held.release();
        Value::Null
    }

    /// Stops what was started. How many calls those were.
    async fn stop(&mut self) -> Value {
        for call in &self.calls {
            call.interrupt(Cause::Operator, "driver");
        }
        for call in &self.calls {
            call.outcome().await;
        }
        json!(self.calls.drain(..).count())
    }
}
