//! The tool `fetch`, as it is; and what a tool imports that asks nobody.

use estop::WorkspaceGrant;
use estop_tests::guests;

use super::*;
use crate::server::respond;

/// A page becomes Markdown, through a redirect; and what is no text is refused.
#[tokio::test]
async fn fetch_gives_a_page_as_markdown() {
    let server = Server::start(|head, stream| match head.split(' ').nth(1).unwrap() {
        "/" => respond(stream, "301 Moved", "location: /page\r\n", ""),
        "/page" => {
            let html = "<title>A page</title><h1>Hello</h1><p>You are <em>here</em>.</p>";
            respond(stream, "200 OK", "content-type: text/html; charset=utf-8\r\n", html);
        }
        _ => respond(stream, "200 OK", "content-type: image/png\r\n", "x"),
    });
    let grant = HttpGrant::new(server.url("")).private_addresses(true);
    let host = builder().grant(Grantee::everyone(), Grants::new().http(grant)).build().unwrap();
    let fetch = within(load(&host, "fetch")).await;
    let outcome = call(&host, &fetch, "fetch", json!({ "url": server.url("/") })).await;
    let page = json!({
        "url": server.url("/page"),
        "status": 200,
        "title": "A page",
        "markdown": "# Hello\n\nYou are *here*.",
        "truncated": false,
    });
    assert_eq!(completed(&outcome), &page);
    assert_eq!(outcome.effects.len(), 2);
    failed(&call(&host, &fetch, "fetch", json!({ "url": server.url("/image") })).await, "not-text");
    failed(&call(&host, &fetch, "fetch", json!({ "url": "https://example.com/" })).await, "denied");
}

/// The tool `research` asks the others, as they are: files of a workspace, and a page; and keeps what it has found.
#[tokio::test]
async fn research_asks_the_tools_for_files_pages_and_notes() {
    let server = Server::saying("# A page");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.rs"), "fn here() {}\n").unwrap();
    let grants = Grants::new()
        .http(HttpGrant::new(server.url("")).private_addresses(true))
        .workspace(WorkspaceGrant::read_only(folder.path()));
    let host = builder().grant(Grantee::everyone(), grants).build().unwrap();
    let mut loaded = Vec::new();
    for tool in ["grep", "fetch", "memory", "research"] {
        loaded.push(within(load(&host, tool)).await);
    }
    let question = json!({ "pattern": "fn here", "urls": [server.url("/")], "remember": true });
    let outcome = call(&host, &loaded[3], "investigate", question).await;
    let report = completed(&outcome);
    assert_eq!(report["failures"], json!([]), "{report}");
    assert_eq!(report["lines"], json!([{ "path": "a.rs", "line": 1, "text": "fn here() {}" }]));
    assert!(report["pages"][0]["text"].as_str().unwrap().contains("A page"), "{report}");
    assert!(report["note"].is_string(), "{report}");
    assert_eq!((outcome.effects.len(), outcome.commits.points), (1, 1));
}

/// The client is in the SDK of every tool, and in the component of those that use it.
#[test]
fn a_tool_that_asks_nobody_does_not_import_it() {
    let imports = |guest: &str| guests::bytes(guest).windows(10).any(|part| part == b"wasi:http/");
    assert!(imports("fetch") && !imports("memory"));
}
