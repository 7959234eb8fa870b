//! What estop costs, beside the floor: Wasmtime alone, tuned alike, in the same run.
//!
//! Every line is a ratio of medians of rounds that alternate between the two, because absolute times mean little on a
//! shared machine. Run with `cargo bench -p estop-tests`.

mod floor;
mod rounds;

use std::hint::black_box;
use std::time::Duration;

use estop::{CallLimits, Component, Host, HostLimits, Source};
use estop_tests::guests;
use serde_json::{Value, json};

use self::floor::Floor;
use self::rounds::{ROUNDS, compare_for, spin};

fn main() {
    // Cargo passes options of its own harness, such as `--bench`.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime for loading");
    let limits = HostLimits { sandboxes_max: 256, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: Duration::from_secs(600), ..CallLimits::default() };
    let host = Host::builder().limits(limits).call_limits(call_limits).build().expect("a host");
    let load = |guest: &str| runtime.block_on(host.load(Source::file(guests::path(guest)))).expect("a component");
    let (echo, kv, bench) = (load("echo"), load("kv"), load("bench"));
    let floor = Floor::tuned();
    let bare_echo = floor.load(&guests::bytes("echo"));
    let hello = json!({ "text": "hello" });
    let hello_text = hello.to_string();

    println!("{:<44} {:>12} {:>12} {:>7}", "", "ours", "floor", "ratio");
    compare(
        "fresh call of an echo tool (caller polls)",
        2_000,
        || spin(call(&host, &echo, "echo", &hello)),
        || floor.call(&bare_echo, "echo", &hello_text),
    );
    compare(
        "fresh call of an echo tool (caller sleeps)",
        500,
        || runtime.block_on(call(&host, &echo, "echo", &hello)),
        || floor.call(&bare_echo, "echo", &hello_text),
    );
    let set = json!({ "key": "k", "value": 1 });
    compare(
        "the same with one committed write",
        1_000,
        || spin(call(&host, &kv, "set", &set)),
        || floor.call(&bare_echo, "echo", &hello_text),
    );
    let bytes = guests::bytes("echo");
    // A host that has nothing loaded: what is loaded already is not compiled again.
    let loader =
        Host::builder().limits(HostLimits { sandboxes_max: 16, ..HostLimits::default() }).build().expect("a host");
    compare_for(
        "load: admit, compile, describe",
        5,
        1,
        || loader.unload(&runtime.block_on(loader.load(Source::bytes(bytes.clone()))).expect("a component")),
        || drop(black_box(floor.load(&bytes))),
    );
    let unmetered = Floor::without_interruption();
    let bare_bench = unmetered.load(&guests::bytes("bench"));
    for (tool, input) in [("sieve", json!({ "size": 2_000_000 })), ("hash", json!({ "size": 20_000_000 }))] {
        let text = input.to_string();
        compare_for(
            &format!("{tool} loop, interruptible or not"),
            7,
            1,
            || spin(call(&host, &bench, tool, &input)),
            || unmetered.call(&bare_bench, tool, &text),
        );
    }
    let callers = 64;
    compare_for(
        "64 concurrent callers (each call)",
        ROUNDS,
        callers * 50,
        || runtime.block_on(concurrently(&host, &echo, &hello, callers, 50)),
        || floor.concurrently(&bare_echo, "echo", &hello_text, callers * 50),
    );
}

async fn call(host: &Host, component: &Component, tool: &str, input: &Value) {
    let call = host.agent("default").call(component, tool, input.clone()).start();
    let outcome = call.outcome().await;
    assert!(outcome.output().is_some(), "{:?}", outcome.end);
}

async fn concurrently(host: &Host, component: &Component, input: &Value, callers: usize, each: usize) {
    let caller = async || {
        for _ in 0..each {
            call(host, component, "echo", input).await;
        }
    };
    futures_util::future::join_all((0..callers).map(|_| caller())).await;
}

/// Many short ones in each round.
fn compare(name: &str, per_round: usize, ours: impl Fn(), floor: impl Fn()) {
    let many = |one: &dyn Fn()| (0..per_round).for_each(|_| one());
    compare_for(name, ROUNDS, per_round, || many(&ours), || many(&floor));
}
