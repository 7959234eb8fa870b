use estop_tool::testing::{Answered, Ended, Run};

use super::*;

const URL: &str = "https://a.test/";

fn fetched(answers: Vec<(&str, Answered)>, max_bytes: Option<u64>) -> Ended<Page> {
    let run = answers.into_iter().fold(Run::new(), |run, (url, answer)| run.answer(format!("GET {url}"), answer));
    run.call(|| fetch(Which { url: URL.into(), max_bytes }))
}

fn page(media_type: &str, body: impl Into<Vec<u8>>) -> Result<Page, ToolError> {
    let answer = Answered::new(200).body(body);
    let answer = if media_type.is_empty() { answer } else { answer.header("Content-Type", media_type) };
    fetched(vec![(URL, answer)], None).result
}

fn code(result: Result<Page, ToolError>) -> String {
    result.map_or_else(|error| error.code().to_owned(), |page| panic!("{page:?}"))
}

#[test]
fn html_becomes_markdown() {
    let html = "<!DOCTYPE html><html><head><title>A &amp; B\n page</title><style>p{}</style></head>\
        <body><script>alert(1)</script><h1>Hello</h1><p>Some <b>bold</b> <a href=\"/x\">link</a></p>\
        <ul><li>one<li>two</ul></body></html>";
    for media_type in ["text/html", "TEXT/HTML; charset=utf-8", ""] {
        let page = page(media_type, html).unwrap();
        assert_eq!(page.title.as_deref(), Some("A & B page"));
        for part in ["# Hello", "Some **bold** [link](/x)", "one", "two"] {
            assert!(page.markdown.contains(part), "{part}: {}", page.markdown);
        }
        assert!(!page.markdown.contains("alert") && !page.markdown.contains("p{}"), "{}", page.markdown);
        assert!(!page.truncated);
    }
}

#[test]
fn other_text_stays_as_it_is() {
    for media_type in
        ["text/plain", "text/markdown", "application/json; charset=utf-8", "application/ld+json", "image/svg+xml", ""]
    {
        let page = page(media_type, "{\"<b>\": \"ä\"}\n").unwrap();
        assert_eq!((page.title, page.markdown.as_str()), (None, "{\"<b>\": \"ä\"}\n"), "{media_type}");
    }
}

#[test]
fn encodings_are_those_that_are_named() {
    assert_eq!(page("text/plain; charset=ISO-8859-1", b"caf\xe9".to_vec()).unwrap().markdown, "caf\u{e9}");
    assert_eq!(page("text/plain; charset=\"shift_jis\"", b"\x93\xfa\x96\x7b".to_vec()).unwrap().markdown, "日本");
    let html = b"<html><head><meta charset=\"windows-1252\"></head><body><p>caf\xe9 \x80</p></body></html>".to_vec();
    assert_eq!(page("text/html", html).unwrap().markdown, "café €");
    assert_eq!(page("text/plain", b"\xff\xfeh\0i\0".to_vec()).unwrap().markdown, "hi");
}

#[test]
fn what_is_no_text_is_refused() {
    assert_eq!(code(page("image/png", b"\x89PNG".to_vec())), "not-text");
    assert_eq!(code(page("application/octet-stream", "text")), "not-text");
    let binary: Vec<u8> = (0..=255).cycle().take(4096).collect();
    for media_type in ["text/plain", "text/html", ""] {
        assert_eq!(code(page(media_type, binary.clone())), "not-text", "{media_type}");
    }
    assert_eq!(code(page("text/html", "<div>".repeat(100_000))), "too-deep");
    assert!(page("text/html", "<p>x<br><li>y".repeat(1000)).is_ok());
}

#[test]
fn redirects_are_followed_and_counted() {
    let to = |url: &str| Answered::new(302).header("location", url);
    let ended = fetched(vec![(URL, to("/b")), ("https://a.test/b", Answered::new(404).body("gone"))], None);
    let page = ended.result.as_ref().unwrap();
    assert_eq!((page.url.as_str(), page.status, page.markdown.as_str()), ("https://a.test/b", 404, "gone"));
    assert_eq!(ended.requests().len(), 2);
    assert!(ended.requests()[1].headers.iter().any(|(name, _)| name == "accept"));
    let round = (0..10).map(|_| (URL, to(URL))).collect();
    assert_eq!(code(fetched(round, None).result), "too-many-redirects");
    assert_eq!(code(fetched(vec![(URL, to("https://other.test/"))], None).result), "denied");
}

#[test]
fn what_is_too_long_is_cut() {
    let answer = || vec![(URL, Answered::new(200).header("content-type", "text/plain").body("äöü".repeat(100)))];
    let page = fetched(answer(), Some(3)).result.unwrap();
    assert_eq!((page.markdown.as_str(), page.truncated), ("ä\u{fffd}", true));
    assert_eq!(code(fetched(answer(), Some(0)).result), "invalid-input");
    assert_eq!(code(fetched(answer(), Some(MAX_BYTES + 1)).result), "invalid-input");
    let long = Answered::new(200).body("ä".repeat(MAX_TEXT_BYTES / 2 + 1));
    let page = fetched(vec![(URL, long)], Some(MAX_BYTES)).result.unwrap();
    assert_eq!((page.markdown.len(), page.truncated), (MAX_TEXT_BYTES, true));
}
