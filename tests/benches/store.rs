//! What durability costs, beside plain SQLite transactions from one thread in the same run.
//!
//! A plain transaction writes one value and one line of the same sizes as a call does, with the same settings. Run with
//! `cargo bench -p estop-tests --bench store`.

mod rounds;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use estop::store::sqlite::Sqlite;
use estop::{CallLimits, Component, Home, Host, HostBuilder, HostLimits, Source};
use estop_faults::{Fault, Faults, On, Plan};
use estop_tests::guests::{self, Described, Hostile, Imports, Spec};
use rusqlite::{Connection, OpenFlags, params};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::rounds::{ROUNDS, compare_for, spin};

/// As long as the two entries of a call that commits.
const LINE_BYTES: usize = 900;
const CALLERS: usize = 64;
/// How much longer a sync takes on the slower disk, at least: the kernel adds some 50 µs to so short a sleep.
const SLOWER_BY: Duration = Duration::from_micros(10);
/// Calls of each caller in a round.
const EACH: usize = 50;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime for loading");
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a real disk");
    let home = Home::open(folder.path().join("home")).expect("a home");
    let durable = builder().store(Sqlite::open(&home).expect("a store")).cache(&home).build().expect("a host");
    let memory = builder().build().expect("a host");
    let load =
        |host: &Host, guest: &str| runtime.block_on(host.load(Source::file(guests::path(guest)))).expect("a component");
    let (kv, echo) = (load(&durable, "kv"), load(&durable, "echo"));
    let memory_echo = load(&memory, "echo");
    let plain = Plain::new(&folder.path().join("plain.db"), None);
    let hello = json!({ "text": "hello" });

    println!("{:<44} {:>12} {:>12} {:>7}", "", "ours", "beside", "ratio");
    alone("one committed write, alone (caller polls)", &durable, &kv, &plain);
    compare_for(
        "the same (caller sleeps)",
        ROUNDS,
        200,
        || (0..200).for_each(|n| runtime.block_on(set(&durable, &kv, n))),
        || (0..200).for_each(|n| plain.transaction(n, 1)),
    );
    {
        // Disks differ, and what is ours does not: this is what it comes to where a sync takes a fifth of a millisecond.
        let slower = Faults::install("slower");
        slower.arm(Plan { at: 1, on: On::WalSync, fault: Fault::Delay(SLOWER_BY), lasting: true });
        let home = Home::open(folder.path().join("slower")).expect("a home");
        let store = Sqlite::options(&home).vfs(slower.name()).open().expect("a store");
        let host = builder().store(store).cache(&home).build().expect("a host");
        let kv = load(&host, "kv");
        let plain = Plain::new(&folder.path().join("slower.db"), Some(slower.name()));
        alone("the same, a disk with slower syncs", &host, &kv, &plain);
        runtime.block_on(host.shutdown());
    }
    compare_for(
        "one committed write, 64 callers (each)",
        ROUNDS,
        CALLERS * EACH,
        || runtime.block_on(callers(&durable, &kv)),
        || (0..CALLERS * EACH).for_each(|n| plain.transaction(n, 1)),
    );
    compare_for(
        "the same, beside plain groups of 64",
        ROUNDS,
        CALLERS * EACH,
        || runtime.block_on(callers(&durable, &kv)),
        || (0..EACH).for_each(|n| plain.transaction(n * CALLERS, CALLERS)),
    );
    let began = Instant::now();
    runtime.block_on(callers(&durable, &kv));
    let each = began.elapsed() / u32::try_from(CALLERS * EACH).expect("a small number");
    println!("{:<44} {:>12.0} committed calls a second", "", 1.0 / each.as_secs_f64());
    compare_for(
        "no writes, beside the store in memory",
        ROUNDS,
        2_000,
        || (0..2_000).for_each(|_| spin(call(&durable, &echo, "echo", &hello))),
        || (0..2_000).for_each(|_| spin(call(&memory, &memory_echo, "echo", &hello))),
    );
    compare_for(
        "the same (caller sleeps)",
        ROUNDS,
        500,
        || (0..500).for_each(|_| runtime.block_on(call(&durable, &echo, "echo", &hello))),
        || (0..500).for_each(|_| runtime.block_on(call(&memory, &memory_echo, "echo", &hello))),
    );
    durable.unload(&echo);
    memory.unload(&memory_echo);
    for (name, bytes) in [("small component", small()), ("echo", guests::bytes("echo"))] {
        let source = || Source::bytes(bytes.clone()).named("again");
        let loaded = |host: &Host| host.unload(&runtime.block_on(host.load(source())).expect("a component"));
        compare_for(
            &format!("loading a {name} ({} KB), cached or not", bytes.len() >> 10),
            7,
            1,
            || loaded(&durable),
            || loaded(&memory),
        );
    }
}

/// One committed write after the other, by a caller that polls.
fn alone(name: &str, host: &Host, kv: &Component, plain: &Plain) {
    compare_for(
        name,
        ROUNDS,
        200,
        || (0..200).for_each(|n| spin(set(host, kv, n))),
        || (0..200).for_each(|n| plain.transaction(n, 1)),
    );
}

/// Of about 64 KB, most of it code.
fn small() -> Vec<u8> {
    let mut functions = String::new();
    for n in 0..36 {
        let steps: String = (0..150)
            .map(|step| format!("local.get 0 i32.const {} i32.mul local.get 1 i32.xor local.set 0 ", n * 1000 + step))
            .collect();
        // Writing to a string cannot fail.
        let _ = write!(functions, "(func (param i32 i32) (result i32) {steps} local.get 0)");
    }
    let tools = [Spec::new("victim")];
    let guest = Hostile { start: &functions, ..Hostile::default() };
    Described { tools: &tools, guest, imports: Some(Imports::default()), ..Described::default() }.component()
}

fn builder() -> HostBuilder {
    let limits = HostLimits { sandboxes_max: 256, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: Duration::from_secs(600), ..CallLimits::default() };
    Host::builder().limits(limits).call_limits(call_limits)
}

async fn call(host: &Host, component: &Component, tool: &str, input: &Value) {
    let call = host.agent("default").call(component, tool, input.clone()).start();
    let outcome = call.outcome().await;
    assert!(outcome.output().is_some(), "{:?}", outcome.end);
}

async fn set(host: &Host, kv: &Component, n: usize) {
    call(host, kv, "set", &json!({ "key": format!("k{}", n % CALLERS), "value": n })).await;
}

/// Each with a key of its own, so that none has a conflict.
async fn callers(host: &Host, kv: &Component) {
    let caller = async |key: usize| {
        for _ in 0..EACH {
            set(host, kv, key).await;
        }
    };
    futures_util::future::join_all((0..CALLERS).map(caller)).await;
}

/// One connection with the settings of the store.
struct Plain {
    connection: Connection,
    line: Arc<str>,
}

impl Plain {
    fn new(path: &std::path::Path, vfs: Option<&str>) -> Self {
        let connection = match vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs),
            None => Connection::open(path),
        };
        let connection = connection.expect("a database");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
                 CREATE TABLE log (seq INTEGER PRIMARY KEY, line TEXT)",
            )
            .expect("tables");
        Self { connection, line: "x".repeat(LINE_BYTES).into() }
    }

    fn transaction(&self, first: usize, count: usize) {
        let transaction = self.connection.unchecked_transaction().expect("a transaction");
        for n in first..first + count {
            let key = format!("k{}", n % CALLERS);
            let set = "INSERT INTO kv VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            let mut statement = transaction.prepare_cached(set).expect("a statement");
            statement.execute(params![key, n.to_string().as_bytes()]).expect("a value");
            let mut statement = transaction.prepare_cached("INSERT INTO log (line) VALUES (?1)").expect("a statement");
            statement.execute([&*self.line]).expect("a line");
        }
        transaction.commit().expect("it is committed");
    }
}
