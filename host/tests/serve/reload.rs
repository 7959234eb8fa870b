//! Tools that change while they run.

use std::fs;

use estop::Digest;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::hosts::signal;
use crate::scene::{Scene, Stream, replace, section, spin, until, version};

/// The old version finishes, new calls get the new one; both work on the same state.
#[test]
fn a_changed_tool_is_loaded_beside_the_old() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let one = fs::read(scene.tool("runaway")).unwrap();
    let two = version(&one, 2);
    let digest = |bytes: &[u8]| json!(Digest::of(bytes).to_string());
    let socket = scene.socket(&host);
    let mut old = Stream::call(&socket, &json!({"tool": "polite", "input": {"steps": 300, "step_ms": 10}}));
    old.event("progress");
    replace(&scene.tool("runaway"), &two);
    until("the new version is served", || scene.component(&host, "runaway")["digest"] == digest(&two));
    let new = scene.call("polite", &json!({"steps": 1}), &["--json", "--agent", "new"]).has(0, &[]).json();
    assert_eq!(new["component"], digest(&two));
    let old = old.event("outcome");
    assert_eq!((&old["status"], &old["component"]), (&json!("completed"), &digest(&one)), "{old}");
    // And back, and once more: what was loaded before is as good as new.
    for (number, bytes) in [(1, &one), (2, &two), (1, &one)] {
        replace(&scene.tool("runaway"), bytes);
        until("it is served", || scene.component(&host, "runaway")["digest"] == digest(bytes));
        let called = scene.call("polite", &json!({"steps": 1}), &["--json"]).json();
        assert_eq!(called["component"], digest(bytes), "{number}");
    }
}

/// A tool that is taken out of the configuration is gone, and its calls are stopped, those of earlier versions too; calls
/// of others go on, also of what is the same under another name.
#[test]
fn calls_of_an_unloaded_tool_are_stopped() {
    let scene = Scene::new(&["runaway", "echo"]);
    let (gone, stays) = (section("gone", "runaway"), section("stays", "stays"));
    let one = fs::read(scene.tool("runaway")).unwrap();
    fs::write(scene.tool("stays"), version(&one, 9)).unwrap();
    scene.config(&[&*gone, &stays].concat());
    let host = scene.serve();
    let socket = scene.socket(&host);
    let start = |component: &str| {
        let mut stream = Stream::call(&socket, &json!({"tool": "spin", "component": component}));
        stream.event("call");
        stream
    };
    let mut earlier = start("gone");
    let mut others = start("stays");
    scene.until_running(2);
    replace(&scene.tool("runaway"), &version(&one, 2));
    let two = json!(Digest::of(&version(&one, 2)).to_string());
    until("the new version is served", || scene.component(&host, "gone")["digest"] == two);
    let mut now = start("gone");
    scene.until_running(3);
    scene.config(&stays);
    for stream in [&mut earlier, &mut now] {
        let outcome = stream.event("outcome");
        assert_eq!((&outcome["cause"], &outcome["actor"]), (&json!("shutdown"), &json!("host")), "{outcome}");
        assert!(outcome["reason"].as_str().unwrap().contains("`gone` was unloaded"), "{outcome}");
    }
    host.says("`gone` was unloaded; 2 calls were stopped");
    scene.call("gone/spin", &json!({}), &[]).has(2, &["no component `gone`"]);
    scene.until_running(1);
    // The same under two names, and one of them goes.
    scene.config(&[&*stays, &section("same", "stays")].concat());
    until("it is served", || scene.component(&host, "same")["digest"].is_string());
    scene.config(&section("same", "stays"));
    host.says("`stays` was unloaded; 0 calls were stopped");
    scene.until_running(1);
    scene.config("");
    assert_eq!(others.event("outcome")["cause"], "shutdown");
    assert_eq!(scene.tools(&host)["components"], json!([]));
}

/// What cannot be loaded leaves what is there; that is said, and over when it can be.
#[test]
fn a_broken_component_changes_nothing() {
    let (scene, host) = Scene::serving(&["echo"]);
    let good = fs::read(scene.tool("echo")).unwrap();
    let input = json!({"text": "x"});
    let served = json!(Digest::of(&good).to_string());
    for broken in [&b"not a component"[..], b""] {
        replace(&scene.tool("echo"), broken);
        host.says("NOT LOADED: echo");
        let echo = scene.component(&host, "echo");
        assert_eq!(echo["digest"], served);
        assert!(echo["error"].as_str().unwrap().contains("echo.wasm"), "{echo}");
        scene.call("echo", &input, &[]).has(0, &[]);
    }
    fs::remove_file(scene.tool("echo")).unwrap();
    host.says("cannot read");
    scene.call("echo", &input, &[]).has(0, &[]);
    replace(&scene.tool("echo"), &good);
    until("it is mended", || scene.component(&host, "echo")["error"] == Value::Null);
    // Another one than was meant.
    let wanted = Digest::of(&good);
    scene.config(&format!("{}digest = \"{wanted}\"\n", section("echo", "echo")));
    replace(&scene.tool("echo"), &version(&good, 2));
    host.says("expected sha256:");
    assert_eq!(scene.component(&host, "echo")["digest"], served);
}

/// A host begins also if one of its tools cannot be loaded: the others are needed.
#[test]
fn a_host_begins_without_a_broken_tool() {
    let scene = Scene::new(&["echo"]);
    fs::write(scene.tool("broken"), "not a component").unwrap();
    scene.config(&[section("echo", "echo"), section("broken", "broken"), section("missing", "missing")].concat());
    let host = scene.serve();
    scene.call("echo", &json!({"text": "x"}), &[]).has(0, &[]);
    scene.call("broken/echo", &json!({}), &[]).has(6, &["`broken` is not loaded", "broken.wasm"]);
    scene.call("missing/echo", &json!({}), &[]).has(6, &["cannot read"]);
    assert_eq!(scene.component(&host, "missing")["digest"], Value::Null);
}

/// What a halt has kept out is loaded when that is lifted, and what found no room when there is some.
#[test]
fn what_was_kept_out_is_loaded_when_it_can_be() {
    let scene = Scene::new(&["echo", "runaway"]);
    let (one, two) = (section("a", "echo"), section("b", "runaway"));
    scene.config(&format!("[host]\ncomponents_max = 1\n{one}{two}"));
    // Nobody is reached, and it holds.
    scene.machine.estop(&["halt", "--all", "--reason", "fire"]).has(8, &[]);
    let host = scene.serve();
    assert!(scene.component(&host, "a")["error"].as_str().unwrap().contains("fire"));
    let halts = scene.machine.estop(&["halts", "--json"]).jsons();
    scene.machine.estop(&["lift", halts[0]["halt"].as_str().unwrap(), "--reason", "it is out"]).has(0, &[]);
    until("it is loaded", || scene.component(&host, "a")["error"] == Value::Null);
    scene.call("echo", &json!({"text": "x"}), &[]).has(0, &[]);
    until("there is no room", || scene.component(&host, "b")["error"].as_str().unwrap().contains("no room"));
    scene.config(&format!("[host]\ncomponents_max = 1\n{two}"));
    until("there is room", || scene.component(&host, "b")["digest"].is_string());
}

/// A configuration that cannot be used leaves the one that is in force.
#[test]
fn a_broken_configuration_changes_nothing() {
    let (scene, host) = Scene::serving(&["echo", "runaway"]);
    let input = json!({"text": "x"});
    scene.config("[tools.echo]\npath = \"echo.wasm\"\ncolour = 1\n");
    host.says("estop.toml:3:1");
    assert!(scene.tools(&host)["trouble"].as_str().unwrap().contains("colour"));
    scene.call("echo", &input, &[]).has(0, &[]);
    fs::remove_file(scene.config_path()).unwrap();
    host.says("cannot read");
    scene.call("echo", &input, &[]).has(0, &[]);
    let tools = [section("echo", "echo"), section("runaway", "runaway")].concat();
    scene.config(&tools);
    until("it is mended", || scene.tools(&host)["trouble"] == Value::Null);
    // What a running host cannot take up is said, and is not in force.
    scene.config(&format!("[limits]\ndeadline = \"1ms\"\n{tools}"));
    host.says("started again");
    assert!(scene.tools(&host)["trouble"].as_str().unwrap().contains("[limits]"));
    // It takes longer than the new deadline would let it.
    scene.call("polite", &json!({"steps": 3, "step_ms": 20}), &[]).has(0, &[]);
}

/// SIGHUP looks at everything again, whether or not it seems to have changed.
#[test]
fn a_hangup_reloads() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let (_, _stream) = spin(&scene.socket(&host), "a");
    scene.until_running(1);
    signal(&host, Signal::HUP);
    host.says("estop: serving");
    scene.until_running(1);
}
