//! The crisis with hosts of every kind: one that serves, two with the host in a program of their own, one that runs a tool.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::hosts::signal;
use crate::scene::{Scene, spin, until};

/// Calls of each of the larger hosts.
const EACH: usize = 50;

/// Row 1, promises 11 and 12: all of them are listed, halted and released from another process, and nothing starts again,
/// also after `kill -9` of everything and a restart, until the halt is lifted. Then work starts, and nothing resumes.
#[test]
fn hosts_of_three_kinds_are_halted_together_and_stay_so() {
    let (scene, mut serving) = Scene::serving(&["runaway"]);
    let machine = &scene.machine;
    let mut served: Vec<_> = (0..EACH).map(|_| spin(&scene.socket(&serving), "support-7").1).collect();
    let mut embedded = [machine.embedded("research", EACH), machine.embedded("sales", EACH)];
    let run = machine.run("ops");
    let seen = machine.ps();
    assert_eq!((seen["calls"].as_array().unwrap().len(), &seen["unseen"]), (3 * EACH + 1, &json!([])), "{seen}");
    let mut kinds: Vec<_> = seen["hosts"].as_array().unwrap().iter().map(|host| host["kind"].clone()).collect();
    kinds.sort_by_key(Value::to_string);
    assert_eq!(kinds, ["embedded", "embedded", "run", "serve"]);

    let halted = machine.estop(&["halt", "--all", "--json", "--reason", "it spreads"]).has(0, &[]).json();
    let hosts = halted["hosts"].as_array().unwrap();
    let calls: Vec<_> = hosts.iter().flat_map(|host| host["calls"].as_array().unwrap()).collect();
    assert_eq!(calls.len(), 3 * EACH + 1);
    assert!(calls.iter().all(|call| call["released_us"].is_u64()), "{halted}");
    let halted_us = hosts.iter().map(|host| host["halted_us"].as_u64().unwrap()).max().unwrap();
    println!("{} calls in four processes: the last was halted {halted_us} µs after its host was told", calls.len());
    // Generous: the target, 100 ms, is for a quiet machine.
    assert!(halted_us < 5_000_000, "{halted_us}");
    assert_eq!(run.ended().code, Some(11));
    for stream in &mut served {
        let outcome = stream.event("outcome");
        assert_eq!((&outcome["status"], &outcome["cause"]), (&json!("stopped"), &json!("halted")), "{outcome}");
    }

    let by = format!("was halted by {}", halted["halt"]["actor"].as_str().unwrap());
    let words = [&*by, "it spreads"];
    machine.short("anybody").has(6, &words);
    scene.call("polite", &json!({"steps": 1}), &["--agent", "anybody"]).has(6, &words);
    for child in embedded.iter_mut().chain([&mut serving]) {
        signal(child, Signal::KILL);
        assert!(child.ends_within(Duration::from_secs(60)));
    }
    let serving = scene.serve();
    machine.short("anybody").has(6, &words);
    scene.call("polite", &json!({"steps": 1}), &["--agent", "anybody"]).has(6, &words);

    let halt = halted["halt"]["halt"].as_str().unwrap();
    machine.estop(&["lift", halt, "--reason", "contained"]).has(0, &[]);
    machine.short("anybody").has(0, &[]);
    assert_eq!(machine.ps()["calls"], json!([]));
    // The host that was started while everything was halted could not load its tools then.
    until("they are loaded", || scene.component(&serving, "runaway")["digest"].is_string());
    scene.call("polite", &json!({"steps": 1}), &[]).has(0, &[]);
    machine.estop(&["log", "verify"]).has(0, &[]);
}
