//! What is told of a request, and what is not.

use estop::{Effect, EffectState, Secret};
use estop_tests::{end_entry, log};

use super::*;
use crate::server::{respond, until_closed};

fn effects(outcome: &Outcome) -> Vec<(String, EffectState)> {
    outcome.effects.iter().map(|Effect { name, state, .. }| (name.clone(), *state)).collect()
}

/// Promise 10: a request is `performed` once it was answered, and `unknown` otherwise, in the outcome and in the log.
#[tokio::test]
async fn a_request_is_performed_or_unknown() {
    let server = Server::start(|head, stream| match head.split(' ').nth(1).unwrap().split('?').next().unwrap() {
        "/answers" => respond(stream, "500 No", "", "it failed"),
        "/breaks" => respond(stream, "200 OK", "transfer-encoding: chunked\r\n", "no chunk"),
        "/hangs-up" => {}
        _ => {
            until_closed(stream);
        }
    });
    let (host, guest) = granting([to(&server, HttpLimits::default())]).await;
    let name = |method: &str| format!("{method} {}", server.url(""));
    let get = |path: &str| get(&host, &guest, server.url(path));
    let answered = get("/answers?token=abc").await;
    assert_eq!(completed(&answered)["status"], 500);
    let broken = get("/breaks").await;
    let hung_up = get("/hangs-up").await;
    failed(&hung_up, "connection");
    // Who does not wait does not know.
    let authority = server.url("").split_off("http://".len());
    let raw = json!({ "scheme": "http", "method": "GET", "authority": authority, "path": "/silent" });
    let left = call(&host, &guest, "ask_and_leave", raw).await;
    completed(&left);
    let performed = [(name("GET"), EffectState::Performed)];
    assert_eq!(effects(&answered), performed);
    assert_eq!(effects(&broken), performed);
    assert_eq!(effects(&hung_up), [(name("GET"), EffectState::Unknown)]);
    // Left before it was sent, or after.
    assert!(left.effects.is_empty() || effects(&left) == [(name("GET"), EffectState::Unknown)], "{:?}", left.effects);
    let log = log(&host).await;
    for outcome in [&answered, &broken, &hung_up, &left] {
        assert_eq!(end_entry(&log, outcome)["effects"], json!(outcome.effects));
    }
    assert!(!json!(log).to_string().contains("token"));
}

/// No more effects than a call may have: what is one too many is not sent.
#[tokio::test]
async fn effects_max() {
    let server = Server::saying("hello");
    let limits = estop::CallLimits { effects_max: 2, ..estop::CallLimits::default() };
    let (host, guest) = built(builder().call_limits(limits), [to(&server, HttpLimits::default())]).await;
    let outcome = call(&host, &guest, "ask_often", json!({ "url": server.url("/"), "times": 5 })).await;
    assert_eq!(completed(&outcome), &json!([2, "denied"]));
    assert_eq!(server.heads().len(), 2);
}

/// A secret is in the requests to its host, whatever the guest says, and nowhere else.
#[tokio::test]
async fn a_secret_is_sent_and_told_to_nobody() {
    const SECRET: &str = "s3cr3t-v4lue";
    let (server, other) = (Server::saying("hello"), Server::saying("other"));
    let to_other = other.url("/");
    let leads = Server::start(move |_, stream| {
        respond(stream, "307 Temporary Redirect", &format!("location: {to_other}\r\n"), "");
    });
    let secret = || Secret::new("KEY", SECRET);
    let with =
        |server: &Server| to(server, HttpLimits::default()).secret_header("Authorization", "Bearer {KEY}", secret());
    let grants = [with(&server), with(&leads), to(&other, HttpLimits::default())];
    let home = home::temporary();
    let (host, guest) = built(builder().store_arc(home.store()), grants).await;
    let asks = |url: String| {
        let headers = json!({ "authorization": "mine", "x-other": "kept" });
        call(&host, &guest, "ask", json!({ "url": url, "headers": headers }))
    };
    let outcome = asks(server.url("/")).await;
    completed(&outcome);
    let head = server.heads().remove(0);
    assert!(head.contains(&format!("authorization: Bearer {SECRET}\r\n")), "{head}");
    assert!(!head.contains("mine") && head.contains("x-other: kept"), "{head}");
    assert_eq!(head.matches("authorization").count(), 1, "{head}");
    let led = asks(leads.url("/")).await;
    completed(&led);
    let head = other.heads().remove(0);
    assert!(!head.contains("authorization") && head.contains("x-other: kept"), "{head}");
    failed(&asks("https://example.com/".into()).await, "denied");
    let log = json!(within(log(&host)).await).to_string();
    within(host.shutdown()).await;
    for text in [log, outcome.to_json().to_string(), led.to_json().to_string()] {
        assert!(!text.contains(SECRET), "{text}");
    }
    for path in walk(home.home().path()) {
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "{}", path.display());
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(walk(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}
