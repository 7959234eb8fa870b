//! Host processes: programs with a host in them, and `estop run`.

use std::path::Path;
use std::process::{Command, Stdio};

use estop::control::HostKind;
use estop::store::sqlite::Sqlite;
use estop::{Call, Home, Host, HostBuilder, HostLimits, Source};
use estop_tests::counter::Counter;
use estop_tests::guests::{self, Hostile};
use estop_tests::stage::{WAIT, grant};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Ended, Running, estop};

/// What a child is told by.
const CALLS: &str = "ESTOP_TEST_CALLS";
const AGENT: &str = "ESTOP_TEST_AGENT";
/// Its calls keep every guest worker, and the runtime of sockets and timers, in functions that never return.
const WEDGED: &str = "ESTOP_TEST_WEDGED";

/// A machine of its own: a home, and a place where its host processes are found.
pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn home(&self) -> std::path::PathBuf {
        self.folder.path().join("home")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where its processes have their sockets.
    pub(crate) fn sockets(&self) -> std::path::PathBuf {
        self.folder.path().join("estop")
    }

    #[track_caller]
    pub(crate) fn estop(&self, args: &[&str]) -> Ended {
        Running::start(estop(&self.home(), args)).ended()
    }

    #[track_caller]
    pub(crate) fn ps(&self) -> Value {
        self.estop(&["ps", "--json"]).has(0, &[]).json()
    }

    /// A program with a host in it, and with calls that spin.
    #[track_caller]
    pub(crate) fn embedded(&self, agent: &str, calls: usize) -> Running {
        self.embedded_on(&self.home(), agent, calls)
    }

    #[track_caller]
    pub(crate) fn embedded_on(&self, home: &Path, agent: &str, calls: usize) -> Running {
        let child = Running::start(self.embedding(home, agent, calls));
        while !child.prints().contains("they spin") {}
        child
    }

    /// The same, with nothing in it that could go on but what belongs to operators.
    #[track_caller]
    pub(crate) fn wedged(&self, agent: &str, calls: usize) -> Running {
        let mut embedding = self.embedding(&self.home(), agent, calls);
        let child = Running::start({
            embedding.env(WEDGED, "1");
            embedding
        });
        while !child.prints().contains("they are wedged") {}
        child
    }

    pub(crate) fn embedding(&self, home: &Path, agent: &str, calls: usize) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "hosts::child_with_a_host_in_it", "--ignored", "--nocapture"]);
        command.env("ESTOP_HOME", home).env("XDG_RUNTIME_DIR", self.folder());
        command.env(CALLS, calls.to_string()).env(AGENT, agent).env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `estop run` with a call that spins.
    #[track_caller]
    pub(crate) fn run(&self, agent: &str) -> Running {
        let input = json!({ "keys": 2, "value_bytes": 5 }).to_string();
        let runaway = guests::path("runaway");
        let args = ["run", runaway.to_str().unwrap(), "write_then_spin", "-i", &input];
        let run = Running::start(estop(&self.home(), &[&args[..], &["--agent", agent, "--deadline", "10m"]].concat()));
        run.says("written");
        run
    }

    /// A call that would end at once.
    #[track_caller]
    pub(crate) fn short(&self, agent: &str) -> Ended {
        let runaway = guests::path("runaway");
        self.estop(&["run", runaway.to_str().unwrap(), "polite", "-i", r#"{"steps":1}"#, "--agent", agent])
    }
}

pub(crate) fn signal(running: &Running, signal: Signal) {
    kill_process(Pid::from_child(&running.child), signal).unwrap();
}

/// Ends when all its calls have, and says how they did.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn child_with_a_host_in_it() {
    let Ok(calls) = std::env::var(CALLS) else { return };
    let agent = std::env::var(AGENT).unwrap();
    let home = Home::open(Home::default_path().unwrap()).unwrap();
    let limits = HostLimits { sandboxes_max: 64, ..HostLimits::default() };
    let builder = Host::builder().limits(limits).store(Sqlite::open(&home).unwrap()).cache(&home);
    let builder = builder.offer(HostKind::Embedded);
    let wedges = std::env::var_os(WEDGED).is_some();
    let wedged = Counter::default();
    let builder = if wedges { wedge(builder, wedged.clone()) } else { builder };
    let host = builder.build().unwrap();
    let (source, tool) = match wedges {
        true => (Source::bytes(Hostile { call: WAIT, ..Hostile::default() }.component()), "victim"),
        false => (Source::file(guests::path("runaway")), "spin"),
    };
    let component = host.load(source).await.unwrap();
    let start =
        || host.agent(&*agent).call(&component, tool, json!({})).deadline(std::time::Duration::from_secs(600)).start();
    let calls: Vec<Call> = (0..calls.parse().unwrap()).map(|_| start()).collect();
    if wedges {
        // Each worker, and the one thread of the runtime.
        wedged.reached(std::thread::available_parallelism().unwrap().get() as u64 + 1).await;
        println!("they are wedged");
    } else {
        println!("they spin");
    }
    for call in &calls {
        let outcome = call.outcome().await;
        println!("{}", outcome.to_json());
    }
    host.shutdown().await;
    println!("closed");
}

/// A host function that blocks the worker that calls it, and the runtime beside it, for ever.
fn wedge(builder: HostBuilder, wedged: Counter) -> HostBuilder {
    grant(builder, move |_| {
        let (here, there) = (wedged.clone(), wedged.clone());
        tokio::spawn(async move {
            block(&there);
        });
        block(&here)
    })
}

fn block(wedged: &Counter) -> ! {
    wedged.add();
    loop {
        std::thread::park();
    }
}
