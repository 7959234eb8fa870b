use estop_tool::ToolError;
use estop_tool::testing::Run;
use serde_json::{Value, json};

use super::{Failure, Line, Page, Question, investigate};

fn question(urls: &[&str], remember: bool) -> Question {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    Question { pattern: "fn main".into(), path: Some("src".into()), urls, remember }
}

fn with_grep(run: Run) -> Run {
    run.tool("grep/search", |query: Value| {
        assert_eq!((&query["pattern"], &query["path"]), (&json!("fn main"), &json!("src")));
        let line = json!({ "path": "src/main.rs", "line": 3, "text": "fn main() {" });
        Ok(json!({ "lines": [line], "files": 1, "searched": 2, "more": false }))
    })
}

#[test]
fn what_others_find_is_put_together_and_remembered() {
    let run = with_grep(Run::new())
        .tool("fetch/fetch", |input: Value| Ok(json!({ "status": 200, "markdown": format!("of {}", input["url"]) })))
        .tool("memory/remember", |note: Value| {
            let text = note["text"].as_str().unwrap().to_owned();
            assert!(text.contains("src/main.rs:3: fn main() {") && text.contains("https://example.org"), "{text}");
            Ok(json!({ "id": "n1", "text": text, "tags": [], "revision": 1 }))
        });
    let ended = run.call(|| investigate(question(&["https://example.org"], true)));
    let asked: Vec<_> = ended.invoked().iter().map(|asked| &*asked.tool).collect();
    assert_eq!(asked, ["grep/search", "fetch/fetch", "memory/remember"]);
    let report = ended.result.unwrap();
    let line = Line { path: "src/main.rs".into(), line: 3, text: "fn main() {".into() };
    assert_eq!((report.lines, report.note.as_deref()), (vec![line], Some("n1")));
    let text = "of \"https://example.org\"".into();
    assert_eq!(report.pages, [Page { url: "https://example.org".into(), text }]);
    assert_eq!(report.failures, []);
}

#[test]
fn what_one_fails_with_is_reported_and_the_others_go_on() {
    let run = with_grep(Run::new())
        .tool("fetch/fetch", |_: Value| Err::<Value, _>(ToolError::failed("timed-out", "no answer within 10 s")));
    let ended = run.call(|| investigate(question(&["https://example.org"], false)));
    let report = ended.result.unwrap();
    assert_eq!(report.lines.len(), 1);
    let (code, message) = ("timed-out".into(), "no answer within 10 s".into());
    assert_eq!(report.failures, [Failure { source: "https://example.org".into(), code, message }]);
}

#[test]
fn without_other_tools_there_is_a_report_but_no_note() {
    let report = Run::new().call(|| investigate(question(&[], false))).result.unwrap();
    assert_eq!(report.failures[0].code, "no-such-tool");
    let failed = Run::new().call(|| investigate(question(&[], true))).result.unwrap_err();
    assert_eq!(failed.code(), "no-such-tool");
}

#[test]
fn whoever_is_stopped_asks_nobody() {
    let run = with_grep(Run::new()).interrupt_at_checkpoint(1);
    let ended = run.call(|| investigate(question(&["https://example.org"], true)));
    // The fake is interrupted from the first look on, so the search before it was still asked.
    assert_eq!(ended.invoked().len(), 1);
    assert!(ended.result.unwrap_err().is_interrupted());
}
