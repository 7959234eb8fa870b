//! Calls that tools make (promises 1, 3 to 6, 8, 10, 13 and 18; row 6 of the failure modes).

mod bounds;
mod files;
mod stops;
mod transaction;

use std::sync::Arc;

use estop::{Call, Component, Host, HostBuilder, Outcome};
use estop_tests::{completed, end_entry, load, log, small, within};
use serde_json::{Value, json};

/// A host with the guest that invokes, and one that is invoked.
struct Stage {
    host: Host,
    nest: Component,
    kv: Component,
}

impl Stage {
    async fn new() -> Self {
        Self::on(small()).await
    }

    async fn on(builder: HostBuilder) -> Self {
        let host = builder.build().unwrap();
        let (nest, kv) = (load(&host, "nest").await, load(&host, "kv").await);
        Self { host, nest, kv }
    }

    fn start(&self, steps: Value) -> Call {
        self.host.agent("default").call(&self.nest, "run", json!({ "steps": steps })).start()
    }

    /// What became of each step.
    async fn run(&self, steps: Value) -> (Arc<Outcome>, Vec<Value>) {
        let outcome = within(self.start(steps).outcome()).await;
        let answers = completed(&outcome)["answers"].as_array().unwrap().clone();
        (outcome, answers)
    }

    async fn kv(&self, tool: &str, input: Value) -> Value {
        completed(&estop_tests::call(&self.host, &self.kv, tool, input).await).clone()
    }

    /// What a key of the invoked guest holds.
    async fn value(&self, key: &str) -> Value {
        self.kv("get", json!({ "key": key })).await["value"].clone()
    }

    /// Keys of the guest that invokes.
    async fn keys(&self) -> Vec<String> {
        let outcome = estop_tests::call(&self.host, &self.nest, "keys", json!({})).await;
        serde_json::from_value(completed(&outcome).clone()).unwrap()
    }
}

/// The entries of the ends of what a call has invoked, in the order in which they ended.
fn children<'a>(log: &'a [Value], parent: &str) -> Vec<&'a Value> {
    let is_end = |entry: &&Value| entry["kind"] == "end" || entry["kind"] == "refusal";
    log.iter().filter(is_end).filter(|entry| entry["parent"] == parent).collect()
}

/// The line of each entry that a call's end or commit has.
fn line(log: &[Value], kind: &str, call: &Value) -> usize {
    let found = log.iter().position(|entry| entry["kind"] == kind && entry["call"] == *call);
    found.unwrap_or_else(|| panic!("no {kind} of {call}"))
}

/// A component's functions of an interface, as it imports it.
fn imported(guest: &str, interface: &str) -> Vec<String> {
    use estop::wasmtime::component::{Component as Compiled, types::ComponentItem};
    let engine = estop::wasmtime::Engine::default();
    let ty = Compiled::new(&engine, estop_tests::guests::bytes(guest)).unwrap().component_type();
    let found = ty.imports(&engine).find(|(name, _)| name.starts_with(interface));
    let Some((_, item)) = found else { return Vec::new() };
    let ComponentItem::ComponentInstance(instance) = item.ty else { panic!("{interface} is no interface") };
    let functions = instance.exports(&engine).filter(|(_, item)| matches!(item.ty, ComponentItem::ComponentFunc(_)));
    functions.map(|(name, _)| name.to_owned()).collect()
}

/// What was built before there was `invoke`, and does not use it, fits every host that there has been.
#[test]
fn who_does_not_invoke_does_not_import_it() {
    assert_eq!(imported("nest", "estop:tool/call"), ["progress", "commit", "invoke"]);
    assert!(!imported("kv", "estop:tool/call").contains(&"invoke".to_owned()));
}

#[tokio::test]
async fn the_log_has_the_whole_tree() {
    let stage = Stage::new().await;
    let deep = json!({ "levels": 2, "set": "level", "tool": "kv/set", "input": { "key": "k", "value": 1 } });
    let (outcome, _) = stage.run(json!([{ "tool": "deep", "input": deep }])).await;
    let log = log(&stage.host).await;
    let mut above = end_entry(&log, &outcome).clone();
    for tool in ["deep", "deep", "deep", "set"] {
        let of = children(&log, above["call"].as_str().unwrap());
        let [child] = of.as_slice() else { panic!("{of:?}") };
        assert_eq!((&child["tool"], &child["status"]), (&json!(tool), &json!("completed")));
        assert_eq!((&child["agent"], &child["commits"]["points"]), (&json!("default"), &json!(0)));
        assert!(line(&log, "end", &child["call"]) < line(&log, "end", &above["call"]), "a child ends first");
        above = (*child).clone();
    }
    assert_eq!(above["merged"], json!({ "writes": 1, "bytes": 2 }), "the innermost");
    let top = end_entry(&log, &outcome);
    assert!(top.get("merged").is_none());
    assert_eq!(top["commits"]["writes"], 4, "three levels and what the last of them invoked");
}
