//! How a serving host ends: in order, within bounds, and at once if it is told twice.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::hosts::signal;
use crate::scene::{Scene, section, spin, until};

/// `ENDS_WITHIN` of the watchdog, and something for a machine that does much else.
const BOUND: Duration = Duration::from_secs(20);

/// Promise 17: with calls that spin on every worker, a signal stops all of them, tells whoever waits, completes the log and
/// ends the process.
#[test]
fn a_signal_stops_everything_and_ends_the_process() {
    for ends in [Signal::TERM, Signal::INT] {
        let (scene, host) = Scene::serving(&["runaway"]);
        let socket = scene.socket(&host);
        let mut spinning: Vec<_> = (0..20).map(|_| spin(&socket, "a").1).collect();
        let waiting = scene.calling("spin", &json!({}), &["--agent", "b"]);
        until("all of them are there", || scene.machine.ps()["calls"].as_array().unwrap().len() == 21);
        let begun = Instant::now();
        signal(&host, ends);
        for stream in &mut spinning {
            let outcome = stream.event("outcome");
            assert_eq!((&outcome["cause"], &outcome["actor"]), (&json!("shutdown"), &json!("host")), "{outcome}");
        }
        waiting.ended().has(12, &["shutdown"]);
        host.ended().has(0, &["stopping 21 calls", "everything is stopped and entered"]);
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        assert!(!socket.exists());
        let log = scene.log();
        assert_eq!(log.iter().filter(|entry| entry["kind"] == "end" && entry["cause"] == "shutdown").count(), 21);
        assert_eq!(log.iter().rfind(|entry| entry["kind"] != "checkpoint").unwrap()["kind"], "closed");
        scene.machine.estop(&["log", "verify"]).has(0, &[]);
    }
}

/// What runs may tidy up for as long as the configuration says, and no longer; a second signal does not wait for that.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let scene = Scene::new(&["runaway"]);
    let serve = |grace: &str| {
        scene.config(&format!("[host]\nshutdown_grace = \"{grace}\"\n{}", section("runaway", "runaway")));
        scene.serve()
    };
    let host = serve("500ms");
    let ignoring = scene.calling("ignore", &json!({}), &["--json"]);
    scene.until_running(1);
    signal(&host, Signal::TERM);
    let outcome: Value = ignoring.ended().has(12, &[]).json();
    assert!(outcome["halted_us"].as_f64().unwrap() >= 500_000.0, "{outcome}");
    host.ended().has(0, &[]);

    let mut host = serve("60s");
    let ignoring = scene.calling("ignore", &json!({}), &[]);
    scene.until_running(1);
    signal(&host, Signal::TERM);
    host.says("stopping 1 calls");
    assert!(!host.ends_within(Duration::from_millis(300)));
    let begun = Instant::now();
    signal(&host, Signal::TERM);
    host.ended().has(8, &["second SIGTERM"]);
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    ignoring.ended().has(1, &[]);
}

/// While it loads a component it hears signals as well.
#[test]
fn a_signal_meets_a_host_that_loads() {
    let scene = Scene::new(&["runaway"]);
    // It describes itself for ever: until its deadline, ten seconds.
    let spins = estop_tests::guests::Described {
        tools: &[estop_tests::guests::Spec::new("victim")],
        list: "(loop $again (br $again))",
        imports: Some(estop_tests::guests::Imports::default()),
        ..Default::default()
    };
    std::fs::write(scene.tool("spins"), spins.component()).unwrap();
    scene.config(&[section("runaway", "runaway"), section("spins", "spins")].concat());
    let host = crate::command::Running::start(scene.serving_command());
    until("it describes itself", || {
        let seen = scene.machine.ps();
        seen["calls"].as_array().unwrap().iter().any(|call| call["tool"] == "list-tools" && call["state"] == "running")
    });
    signal(&host, Signal::TERM);
    let begun = Instant::now();
    host.ended().has(0, &["ending (SIGTERM)"]);
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}
