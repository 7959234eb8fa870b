//! A host that drills its own emergency stop.

use serde_json::json;

use crate::scene::{Scene, section};

/// At once when it serves, for whoever has changed it, and then again and again. A halted host is not drilled, and says so.
#[test]
fn a_host_drills_itself_as_often_as_its_configuration_says() {
    let scene = Scene::new(&["echo"]);
    scene.config(&format!("[host]\ndrill_every = \"1h\"\n{}", section("echo", "echo")));
    let host = scene.serve();
    host.says("estop: drill");
    let drill = scene.entry("drill", |_| true);
    assert_eq!((&drill["actor"], &drill["not_held"]), (&json!("host"), &json!(null)), "{drill}");
    assert_eq!(drill["cases"].as_array().unwrap().len(), 3, "{drill}");
    scene.call("echo", &json!({"text": "x"}), &[]).has(0, &[]);
    drop(host);
    scene.machine.estop(&["halt", "--all"]);
    let host = scene.serve();
    host.says("drill NOT HELD");
    scene.entry("drill", |entry| entry["not_held"].as_str().is_some_and(|why| why.contains("halted")));
}
