//! What the tests of failing disks share: homes whose database is reached through a VFS with faults.

// Each test file uses its part.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use estop::log::export;
use estop::log::verify::Verifier;
use estop::store::sqlite::{Look, Sqlite};
use estop::{CallLimits, Component, Home, Host, HostBuilder, HostLimits, Source};
use estop_faults::{Faults, Survivors};
use estop_tests::home::{Temporary, log, temporary};
use estop_tests::ledger::{Left, Told, check, has_interrupt};
use estop_tests::stage::until;
use estop_tests::{PATIENCE, guests, within};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Who stops things in these tests.
pub(crate) const ACTOR: &str = "alice";

/// A small host that compiles nothing which an earlier one has compiled.
pub(crate) fn tiny(store: Arc<Sqlite>) -> HostBuilder {
    let limits = HostLimits { calls_max: 64, sandboxes_max: 8, workers: 2, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: PATIENCE, ..CallLimits::default() };
    // Kept from one run of the tests to the next.
    let cache = Home::open(Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")).expect("a home for the cache");
    Host::builder().store_arc(store).limits(limits).call_limits(call_limits).cache(&cache)
}

/// Loads a guest, if the host lets the look at its tools in.
pub(crate) async fn try_load(host: &Host, guest: &str) -> Result<Component, String> {
    within(host.load(Source::file(guests::path(guest)))).await.map_err(text)
}

/// Loads a guest.
pub(crate) async fn load(host: &Host, guest: &str) -> Component {
    try_load(host, guest).await.unwrap_or_else(|why| panic!("{guest}: {why}"))
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Until the log can be written: what waits is tried again.
pub(crate) async fn works_again(host: &Host) {
    within(async { while host.entries(0, 1).await.is_err() {} }).await;
}

/// What hosts have written beside the log of a home.
pub(crate) fn beside(home: &Home) -> String {
    let files = fs::read_dir(home.path().join("alternate")).expect("a folder");
    files.map(|file| fs::read_to_string(file.expect("a file").path()).unwrap_or_default()).collect()
}

/// SQLite finds no damage, and every line of the log is in its place.
pub(crate) fn sound(home: &Home) -> Result<(), String> {
    let database = home.path().join("estop.db");
    let found = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    match found {
        Ok(found) if found == "ok" => {}
        damaged => return Err(format!("the database is damaged: {damaged:?}")),
    }
    let look = Look::open(home).map_err(text)?;
    export::verify(&look, Verifier::new(None, None)).map(drop).map_err(text)
}

/// A home under a VFS with faults, and what was told to whoever used it.
pub(crate) struct Bench {
    pub(crate) faults: Faults,
    pub(crate) home: Temporary,
    pub(crate) told: Vec<Told>,
}

impl Bench {
    /// The name is the VFS's.
    pub(crate) fn new(name: &str) -> Self {
        Self { faults: Faults::install(name), home: temporary(), told: Vec::new() }
    }

    pub(crate) fn builder(&self) -> Result<HostBuilder, String> {
        self.home.store_through(self.faults.name()).map(tiny).map_err(text)
    }

    pub(crate) fn host(&self) -> Result<Host, String> {
        self.builder()?.build().map_err(text)
    }

    /// Calls a tool and remembers what was told.
    pub(crate) async fn call(&mut self, host: &Host, component: &Component, tool: &'static str, input: Value) {
        let outcome = estop_tests::call(host, component, tool, input.clone()).await;
        self.told.push(Told { tool, input, outcome });
    }

    /// What a power cut leaves, as a home.
    fn image(&self, survivors: Survivors) -> (TempDir, Home) {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (self.home.home().path(), folder.path().join("home"));
        fs::DirBuilder::new().mode(0o700).create(&to).expect("a folder is made");
        // Room that is kept for emergencies: there is nothing in it, and copying it takes longer than all the rest.
        let _ = fs::remove_file(from.join("reserve"));
        self.faults.crash_image(from, &to, survivors).expect("an image");
        let home = Home::open(to).expect("a home");
        for file in fs::read_dir(from.join("alternate")).expect("a folder") {
            let file = file.expect("a file");
            fs::copy(file.path(), home.path().join("alternate").join(file.file_name())).expect("a copy");
        }
        (folder, home)
    }

    /// The log of a home as the next host finds and leaves it after a power cut, if the promises hold for it.
    pub(crate) async fn holds(&self, survivors: Survivors) -> Result<Vec<Value>, String> {
        let (_folder, home) = self.image(survivors);
        let store = Sqlite::open(&home).map_err(text)?;
        // It calls nothing.
        let limits = HostLimits { calls_max: 1, sandboxes_max: 1, workers: 1, ..HostLimits::default() };
        let host = Host::builder().store(store).limits(limits).build().map_err(text)?;
        within(host.shutdown()).await;
        drop(host);
        sound(&home)?;
        check(&home, &self.told, Left::Cut)?;
        Ok(log(&home))
    }

    pub(crate) async fn hold(&self, survivors: Survivors) -> Vec<Value> {
        let held = self.holds(survivors).await;
        held.unwrap_or_else(|why| panic!("{}, {survivors:?}: {why}\n{}", self.faults.name(), self.story()))
    }

    /// The same for the home as it is, after its hosts were closed.
    pub(crate) fn hold_in_order(&self) -> Vec<Value> {
        let home = self.home.home();
        let held = sound(home).and_then(|()| check(home, &self.told, Left::InOrder));
        held.unwrap_or_else(|why| panic!("{}: {why}\n{}", self.faults.name(), self.story()));
        log(home)
    }

    fn story(&self) -> String {
        let told = self.told.iter().map(|Told { tool, outcome, .. }| {
            format!("{tool} {}: {:?}, {:?}", outcome.call, outcome.commits, outcome.end)
        });
        told.collect::<Vec<_>>().join("\n")
    }

    /// Until the stops that were told of stand in the log that a power cut leaves at least, or beside it.
    pub(crate) async fn stops_are_recorded(&self) {
        let (_folder, home) = self.image(Survivors::Synced);
        let entered = if home.path().join("estop.db").exists() { log(&home) } else { Vec::new() };
        let stops = self.told.iter().filter(|told| told.outcome.end.stopped().is_some());
        for call in stops.map(|told| told.outcome.call.to_string()) {
            until(|| has_interrupt(&entered, &call) || beside(self.home.home()).contains(&call)).await;
        }
    }
}

/// Tells a child of a test its home.
const CHILD_HOME: &str = "ESTOP_TESTS_CHILD_HOME";

/// This program, with one of its tests that are for children only.
pub(crate) fn child(test: &str, home: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(CHILD_HOME, home);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The home of a child; nothing if it is none.
pub(crate) fn child_home() -> Option<PathBuf> {
    std::env::var_os(CHILD_HOME).map(Into::into)
}

/// A child that has got somewhere. It ends with this, at the latest.
pub(crate) struct Running(Child);

impl Running {
    /// Until it says so, on a line of its own.
    pub(crate) fn start(mut command: Command, says: &str) -> Self {
        let mut running = Self(command.spawn().expect("it starts"));
        let stdout = BufReader::new(running.0.stdout.take().expect("its output"));
        assert!(stdout.lines().map_while(Result::ok).any(|line| line == says), "it has not got there");
        running
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it gets the signal");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
