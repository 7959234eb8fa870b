//! The tools as a host calls them.

use estop_tool::testing::{Ended, Run};
use estop_tool::{Answer, ToolError};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn value(ended: &Ended<Answer>) -> Value {
    serde_json::from_str(&ended.result.as_ref().unwrap().json).unwrap()
}

fn error(ended: &Ended<Answer>) -> &ToolError {
    ended.result.as_ref().unwrap_err()
}

fn input<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Notes of these texts, n1 and so on, with the tags that stand before a `|`.
fn notes(texts: &[&str]) -> Run {
    texts.iter().fold(Run::new(), |run, text| {
        let (tags, text) = text.split_once('|').unwrap_or(("", text));
        let tags: Vec<&str> = tags.split_whitespace().collect();
        let ended = run.call_json::<remember>(&json!({ "text": text, "tags": tags }).to_string());
        assert!(ended.result.is_ok());
        ended.and_then()
    })
}

fn ids(found: &Value) -> Vec<&str> {
    let notes = found["matches"].as_array().or(found["notes"].as_array()).unwrap();
    notes.iter().map(|note| note["id"].as_str().unwrap()).collect()
}

fn recalled(run: &Run, query: Value) -> Vec<String> {
    let ended = run.clone().call_json::<recall>(&query.to_string());
    ids(&value(&ended)).into_iter().map(str::to_owned).collect()
}

/// All there is, by bucket and key.
fn everything(run: &Run) -> Vec<(&'static str, Vec<String>)> {
    let ended = run.clone().call(|| Ok(()));
    let buckets = ["memory", "notes", "tags/a", "tags/b", "words/one", "words/two", "words/thr", "words/a", "words/b"];
    buckets.into_iter().map(|bucket| (bucket, ended.keys(bucket))).filter(|(_, keys)| !keys.is_empty()).collect()
}

#[test]
fn a_note_is_answered_with_its_id_and_kept() {
    let ended = Run::new().call_json::<remember>(r#"{"text":"The Harbour opens at 6"}"#);
    let json = &ended.result.as_ref().unwrap().json;
    assert_eq!(json, r#"{"id":"n1","text":"The Harbour opens at 6","tags":[],"revision":1}"#);
    let input = r#"{"text":"Ferry","tags":["Travel","sea"," travel "]}"#;
    let ended = ended.and_then().call_json::<remember>(input);
    let json = &ended.result.as_ref().unwrap().json;
    assert_eq!(json, r#"{"id":"n2","text":"Ferry","tags":["travel","sea"],"revision":1}"#);
    assert_eq!(ended.state("memory", "given"), Some(2));
    assert_eq!(ended.keys("words/har"), ["harbour n1 1 5"]);
    assert_eq!(ended.keys("words/tra"), ["travel n2 3 1"]);
    assert_eq!(ended.keys("tags/sea"), ["n2"]);
}

#[test]
fn a_note_is_replaced_with_its_index() {
    let run = notes(&["a|one two two", "b|three"]);
    let ended = run.call_json::<remember>(r#"{"id":"n1","text":"three"}"#);
    assert_eq!(value(&ended), json!({ "id": "n1", "text": "three", "tags": ["a"], "revision": 2 }));
    let ended = ended.and_then().call_json::<remember>(r#"{"id":"n1","text":"Three three","tags":["b"]}"#);
    assert_eq!(value(&ended)["revision"], 3);
    let run = ended.and_then();
    let expected: [(&str, Vec<&str>); 5] = [
        ("memory", vec!["given"]),
        ("notes", vec!["n1", "n2"]),
        ("tags/b", vec!["n1", "n2"]),
        ("words/thr", vec!["three n1 2 2", "three n2 1 1"]),
        ("words/b", vec!["b n1 3 2", "b n2 3 1"]),
    ];
    assert_eq!(
        everything(&run),
        expected.map(|(bucket, keys)| (bucket, keys.into_iter().map(str::to_owned).collect()))
    );

    let ended = run.call_json::<remember>(r#"{"id":"n1","text":"one","tags":[]}"#);
    assert_eq!(value(&ended)["tags"], json!([]));
    assert_eq!(ended.keys("tags/b"), ["n2"]);
}

#[test]
fn nothing_is_left_of_a_forgotten_note_and_its_id_is_not_used_again() {
    let run = notes(&["a|one", "a b|one two three"]);
    let before = everything(&notes(&["a|one"]));
    let ended = run.call_json::<forget>(r#"{"id":"n2"}"#);
    assert_eq!(value(&ended), json!({ "id": "n2", "text": "one two three", "tags": ["a", "b"], "revision": 1 }));
    let run = ended.and_then();
    assert_eq!(everything(&run), before);
    assert_eq!(recalled(&run, json!({ "query": "three one" })), ["n1"]);
    let ended = run.call_json::<remember>(r#"{"text":"again"}"#);
    assert_eq!(value(&ended)["id"], "n3");
}

#[test]
fn what_is_not_there_is_not_found() {
    for id in ["n2", "n0", "1", "", "n01", "N1"] {
        let id = json!({ "id": id });
        let ended = notes(&["one"]).call_json::<forget>(&id.to_string());
        assert_eq!(error(&ended).code(), "not-found", "{id}");
    }
    let ended = notes(&["one"]).call_json::<remember>(r#"{"id":"n7","text":"two"}"#);
    assert_eq!(
        error(&ended).to_string(),
        "not-found: there is no note \"n7\"; `recall` and `list` tell the ids, and new notes need none"
    );
    assert_eq!(ended.state("memory", "given"), Some(1));
}

#[test]
fn the_best_notes_are_recalled_first() {
    let run = notes(&[
        "The deploy key of the staging server is in the vault",
        "ops|The deploy runs on Tuesdays",
        "Deployment of the website needs an approval from Ada",
        "The cat is called Größe",
        "deploy|Ask Bob",
    ]);
    assert_eq!(recalled(&run, json!({ "query": "Deploy KEY" })), ["n1", "n5", "n2", "n3"]);
    assert_eq!(recalled(&run, json!({ "query": "the vault" }))[0], "n1");
    assert_eq!(recalled(&run, json!({ "query": "GRÖSSE größe" })), ["n4"]);
    assert_eq!(recalled(&run, json!({ "query": "deployed, tuesday" })), ["n2", "n5", "n1"], "words that begin alike");
    assert_eq!(recalled(&run, json!({ "query": "deploy", "tags": ["OPS"] })), ["n2"]);
    assert!(recalled(&run, json!({ "query": "deploy", "tags": ["ops", "deploy"] })).is_empty());
    assert!(recalled(&run, json!({ "query": "submarine" })).is_empty());

    let ended = run.call_json::<recall>(r#"{"query":"deploy key","limit":1}"#);
    let found = value(&ended);
    assert_eq!((ids(&found), &found["found"]), (vec!["n1"], &json!(4)));
    let best = &found["matches"][0];
    assert!(best["score"].as_f64().unwrap() > 0.0);
    assert_eq!(best["text"], "The deploy key of the staging server is in the vault");
    assert_eq!((&best["tags"], &best["revision"]), (&json!([]), &json!(1)));
}

#[test]
fn notes_are_listed_page_by_page_in_the_order_of_creation() {
    let texts: Vec<String> =
        (1..=25).map(|number| format!("{}|note {number}", if number % 2 == 0 { "even" } else { "" })).collect();
    let run = notes(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    for _ in 0..3 {
        let page = value(&run.clone().call_json::<list>(&json!({ "after": after }).to_string()));
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        after = page["next"].clone();
    }
    assert_eq!(seen, (1..=25).map(|number| format!("n{number}")).collect::<Vec<_>>());
    assert_eq!(after, Value::Null);

    let page = value(&run.clone().call_json::<list>(r#"{"tag":"Even","after":"n7","limit":2}"#));
    assert_eq!((ids(&page), &page["next"]), (vec!["n8", "n10"], &json!("n10")));
    // A cursor is a place, and stays one when its note is gone.
    let run = run.call_json::<forget>(r#"{"id":"n10"}"#).and_then();
    let page = value(&run.clone().call_json::<list>(r#"{"tag":"even","after":"n10","limit":8}"#));
    assert_eq!((ids(&page)[0], ids(&page).len()), ("n12", 7));
    assert_eq!(page.get("next"), None);
    assert_eq!(error(&run.call_json::<list>(r#"{"after":"x"}"#)).message(), "`after` is \"x\", which is no note's id");
}

#[test]
fn what_was_stopped_leaves_no_trace() {
    let run = notes(&["a|one", "b|two three"]);
    let before = everything(&run);
    let new = || input(json!({ "text": "one two three", "tags": ["a", "b"] }));
    let old = || input(json!({ "id": "n2", "text": "one", "tags": ["a"] }));
    for at in 1..=4 {
        let stopped = run.clone().interrupt_at_checkpoint(at);
        let ended = stopped.clone().call(|| remember(new()));
        assert!(ended.result.as_ref().unwrap_err().is_interrupted());
        assert_eq!(everything(&ended.and_then()), before);
        let ended = stopped.clone().call(|| remember(old()));
        assert!(ended.result.as_ref().unwrap_err().is_interrupted());
        assert_eq!(everything(&ended.and_then()), before);
        let ended = stopped.call(|| forget(input(json!({ "id": "n2" }))));
        assert!(ended.result.as_ref().unwrap_err().is_interrupted());
        assert_eq!(everything(&ended.and_then()), before);
    }
    let ended = run.clone().conflict_at_commit(1).call(|| remember(new()));
    assert_eq!(ended.result.as_ref().unwrap_err().code(), "conflict");
    assert_eq!(everything(&ended.and_then()), before);
    // The same call again is as if it had been the first one.
    let ended = run.call(|| remember(new()));
    assert_eq!(ended.result.unwrap().id, "n3");
}

#[test]
fn a_search_can_be_stopped() {
    let run = notes(&["one two"]);
    let query = || input(json!({ "query": "one two" }));
    assert_eq!(run.clone().call(|| recall(query())).checkpoints(), 2);
    let ended = run.interrupt_at_checkpoint(2).call(|| recall(query()));
    assert!(ended.result.unwrap_err().is_interrupted());
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let many: Vec<String> = (0..33).map(|number| format!("w{number}")).collect();
    let refused = |ended: Ended<Answer>, why: &str| {
        assert_eq!((error(&ended).code(), error(&ended).message()), ("invalid-input", why));
    };
    let why = "`text` is empty or too long (2 bytes); a note has up to 4096 bytes";
    refused(Run::new().call_json::<remember>(r#"{"text":" \n"}"#), why);
    let why = "`text` is empty or too long (4097 bytes); a note has up to 4096 bytes";
    refused(Run::new().call_json::<remember>(&json!({ "text": "x".repeat(4097) }).to_string()), why);
    let why = "17 `tags`; up to 16 are allowed";
    refused(Run::new().call_json::<remember>(&json!({ "text": "x", "tags": &many[..17] }).to_string()), why);
    let why = "`query` has 0 different words; give 1 to 32";
    refused(Run::new().call_json::<recall>(r#"{"query":"?!"}"#), why);
    let why = "`query` has 33 different words; give 1 to 32";
    refused(Run::new().call_json::<recall>(&json!({ "query": many.join(" ") }).to_string()), why);
    let why = "`limit` is 51; it can be from 1 to 50";
    refused(Run::new().call_json::<recall>(r#"{"query":"x","limit":51}"#), why);
    let why = "`limit` is 0; it can be from 1 to 50";
    refused(Run::new().call_json::<list>(r#"{"limit":0}"#), why);
}
