//! What an admin asks of a host that serves: to take a tool away, and to put it back.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::command::Running;
use crate::scene::{Scene, ask, section, spin, until, user};

fn admin(scene: &Scene, host: &Running) -> PathBuf {
    scene.socket(host).with_file_name("admin.sock")
}

fn post(socket: &std::path::Path, path: &str, body: &Value) -> (u16, Value) {
    ask(socket, "POST", path, &body.to_string())
}

/// Its calls are stopped, new ones are told why, the others go on, and it stays away until it is put back.
#[test]
fn an_admin_takes_a_tool_away_and_puts_it_back() {
    let (scene, host) = Scene::serving(&["runaway", "echo"]);
    let (agents, admin) = (scene.socket(&host), admin(&scene, &host));
    let (_, mut spinning) = spin(&agents, "a");
    let echo = |code: i32, words: &[&str]| scene.call("echo/echo", &json!({"text": "x"}), &[]).has(code, words);
    echo(0, &[]);
    let away = json!({"component": "runaway", "reason": "it spins"});
    let (status, answer) = post(&admin, "/v1/unload", &away);
    assert_eq!((status, &answer), (200, &json!({"stopped": 1})));
    let outcome = spinning.event("outcome");
    assert_eq!((&outcome["cause"], &outcome["actor"]), (&json!("shutdown"), &json!(user())), "{outcome}");
    assert!(outcome["reason"].as_str().unwrap().contains("it spins"), "{outcome}");
    scene.call("runaway/spin", &json!({}), &[]).has(6, &["taken away", &user(), "it spins"]);
    echo(0, &[]);
    // Looks at the files change nothing, also if its own has changed.
    std::fs::copy(scene.tool("echo"), scene.tool("runaway")).unwrap();
    scene
        .config(&["runaway", "echo"].map(|tool| section(tool, tool)).concat().replace("[tools.echo]", "[tools.again]"));
    until("there was a look", || scene.component(&host, "again")["digest"].is_string());
    scene.config(&["runaway", "echo"].map(|tool| section(tool, tool)).concat());
    until("there was another", || scene.component(&host, "echo")["digest"].is_string());
    let unloaded = scene.entry("unload", |entry| entry["name"] == "runaway");
    assert_eq!((&unloaded["actor"], &unloaded["reason"]), (&json!(user()), &json!("it spins")));
    assert!(unloaded["component"].as_str().unwrap().starts_with("sha256:"), "{unloaded}");
    assert!(scene.component(&host, "runaway")["error"].as_str().unwrap().contains("taken away"));

    let (status, answer) = post(&admin, "/v1/load", &json!({"component": "runaway"}));
    assert_eq!(status, 200, "{answer}");
    let names: Vec<_> = answer["components"].as_array().unwrap().iter().map(|one| one["error"].clone()).collect();
    assert_eq!(names, [Value::Null, Value::Null], "{answer}");
    scene.call("runaway/echo", &json!({"text": "it is another one now"}), &[]).has(0, &[]);
    scene.entry("load", |entry| entry["name"] == "runaway" && entry["actor"] == user());

    // What is not there, not meant, or not theirs to ask.
    assert_eq!(post(&admin, "/v1/unload", &json!({"component": "nothing", "reason": "x"})).0, 409);
    assert_eq!(post(&admin, "/v1/unload", &json!({"component": "echo", "reason": " "})).0, 400);
    assert_eq!(post(&admin, "/v1/unload", &json!({"component": "echo"})).0, 400);
    assert_eq!(post(&admin, "/v1/load", &json!({})).0, 200);
    for socket in ["operator.sock", "agent.sock"] {
        let (status, answer) = post(&admin.with_file_name(socket), "/v1/unload", &away);
        assert_eq!(status, 403, "{answer}");
    }
    echo(0, &[]);
}

/// A host in a program of its own is loaded by that.
#[test]
fn an_embedded_host_is_not_told_what_to_load() {
    let scene = Scene::new(&[]);
    let host = scene.machine.embedded("a", 1);
    let (status, answer) = post(&admin(&scene, &host), "/v1/load", &json!({}));
    assert_eq!(status, 501, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("its own program"), "{answer}");
}
