//! Sizes, counts and times.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use estop::Budget;
use estop_tests::clock::ManualClock;

use super::*;
use crate::server::{respond, until_closed};

/// More than any part that is held.
const LARGE: usize = 3 << 20;

/// Promise 18: what is sent and what comes back is bounded, and what is too much is told as that.
#[tokio::test]
async fn bodies_and_heads_are_bounded() {
    let server = Server::start(|head, stream| match head.split(' ').nth(1).unwrap() {
        "/large" => respond(stream, "200 OK", "", &"x".repeat(LARGE)),
        "/endless" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        }
        "/head" => respond(stream, "200 OK", &format!("x: {}\r\n", "x".repeat(20 << 10)), ""),
        "/endless-head" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        }
        _ => {
            // Answers when everything is there.
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            let mut left: usize = length.parse().unwrap();
            let mut buffer = [0; 4096];
            while left > 0 {
                match std::io::Read::read(stream, &mut buffer) {
                    Ok(bytes @ 1..) => left -= bytes,
                    _ => return,
                }
            }
            respond(stream, "200 OK", "", "thanks");
        }
    });
    let limits = HttpLimits {
        request_bytes_max: 1 << 20,
        response_bytes_max: 2 << 20,
        header_bytes_max: 16 << 10,
        ..HttpLimits::default()
    };
    let (host, guest) = granting([to(&server, limits)]).await;
    let ask = |input: Value| call(&host, &guest, "ask", input);
    for path in ["/large", "/endless", "/head", "/endless-head"] {
        // The guest would take more.
        failed(&ask(json!({ "url": server.url(path), "response_bytes_max": LARGE * 2 })).await, "too-large");
    }
    let cut = ask(json!({ "url": server.url("/endless"), "cut_after": 100_000 })).await;
    assert_eq!((&completed(&cut)["bytes"], &completed(&cut)["is_cut"]), (&json!(100_000), &json!(true)));
    failed(&ask(json!({ "url": server.url("/large"), "response_bytes_max": 1000 })).await, "too-large");

    let post = |body_bytes: usize| ask(json!({ "url": server.url("/"), "method": "POST", "body_bytes": body_bytes }));
    assert_eq!(completed(&post(1 << 20).await)["body"], "thanks");
    let asked = server.heads().len();
    failed(&post((1 << 20) + 1).await, "too-large");
    let headers = json!({ "x": "x".repeat(17 << 10) });
    failed(&ask(json!({ "url": server.url("/"), "headers": headers })).await, "too-large");
    failed(&ask(json!({ "url": server.url(&format!("/{}", "x".repeat(17 << 10))) })).await, "too-large");
    assert_eq!(server.heads().len(), asked);
}

/// How many requests a call may make.
#[tokio::test]
async fn requests_max() {
    let server = Server::saying("hello");
    let (host, guest) = granting([to(&server, HttpLimits { requests_max: 3, ..HttpLimits::default() })]).await;
    for _ in 0..2 {
        let outcome = call(&host, &guest, "ask_often", json!({ "url": server.url("/"), "times": 5 })).await;
        assert_eq!(completed(&outcome), &json!([3, "denied"]));
        assert_eq!(outcome.effects.len(), 3);
    }
    assert_eq!(server.heads().len(), 6);
}

/// How many requests an agent may make within a minute, and how many bytes they may have, across its calls.
#[tokio::test]
async fn the_budget_of_an_agent() {
    let server = Server::saying("hello");
    let clock = ManualClock::new();
    let budget = Budget { requests_per_minute: Some(3), request_bytes_per_minute: Some(12), ..Budget::default() };
    let builder = builder().clock(clock.clone()).budget("tester", budget);
    let (host, guest) = built(builder, [to(&server, HttpLimits::default())]).await;
    let often = |times: usize| json!({ "url": server.url("/"), "times": times });
    // Two answers of five bytes fit, the third one does not.
    assert_eq!(completed(&call(&host, &guest, "ask_often", often(2)).await), &json!([2, null]));
    let third = get(&host, &guest, server.url("/")).await;
    assert!(matches!(&third.end, End::Failed(failure) if failure.code == "too-large"), "{third:?}");
    failed(&get(&host, &guest, server.url("/")).await, "denied");
    // Another agent has its own, and a minute later this one may ask again.
    let other = host.agent("other").call(&guest, "ask_often", often(5)).start();
    assert_eq!(completed(&within(other.outcome()).await), &json!([5, null]));
    clock.advance(Duration::from_secs(60));
    completed(&get(&host, &guest, server.url("/")).await);
}

/// How many requests a call may make at one time; more wait.
#[tokio::test]
async fn live_max() {
    const COUNT: usize = 6;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let (is_in, seen, held) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&gate));
    let server = Server::start(move |_, stream| {
        seen.fetch_max(is_in.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // The first ones wait for each other: then as many are there as there may be.
        let (arrived, changed) = &*held;
        let mut arrived = arrived.lock().unwrap();
        *arrived += 1;
        changed.notify_all();
        drop(changed.wait_while(arrived, |arrived| *arrived < 2).unwrap());
        is_in.fetch_sub(1, Ordering::SeqCst);
        respond(stream, "200 OK", "", "");
    });
    let limits = HttpLimits { live_max: 2, connect_within: estop_tests::PATIENCE, ..HttpLimits::default() };
    let (host, guest) = granting([to(&server, limits)]).await;
    let raw =
        json!({ "scheme": "http", "method": "GET", "authority": format!("127.0.0.1:{}", server.port()), "path": "/" });
    let outcome = call(&host, &guest, "ask_at_once", json!({ "raw": raw, "count": COUNT })).await;
    assert_eq!(completed(&outcome), &json!(vec!["200"; COUNT]));
    assert_eq!(most.load(Ordering::SeqCst), 2);

    // None at all: whoever waits is not kept for ever.
    let limits = HttpLimits { live_max: 0, connect_within: SOON, ..HttpLimits::default() };
    let (host, guest) = granting([to(&server, limits)]).await;
    failed(&get(&host, &guest, server.url("/")).await, "timeout");
}

/// Each wait has its bound, and the connection is closed after it.
#[tokio::test]
async fn times() {
    let (closed, closes) = std::sync::mpsc::channel();
    let server = Server::start(move |head, stream| {
        match head.split(' ').nth(1).unwrap() {
            "/silent" => {}
            "/half" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap(),
            path => panic!("{path}"),
        }
        until_closed(stream);
        closed.send(()).unwrap();
    });
    let long = HttpLimits { first_byte_within: PATIENCE, between_bytes_within: PATIENCE, ..HttpLimits::default() };
    for (path, limits, within_ms) in [
        ("/silent", HttpLimits { first_byte_within: SOON, ..long.clone() }, None),
        ("/half", HttpLimits { between_bytes_within: SOON, ..long.clone() }, None),
        // A guest may ask for less, and not for more.
        ("/silent", long.clone(), Some(300)),
        ("/half", long.clone(), Some(300)),
        ("/silent", HttpLimits { first_byte_within: SOON, ..long.clone() }, Some(100_000_000)),
    ] {
        let (host, guest) = granting([to(&server, limits)]).await;
        let began = Instant::now();
        let outcome = call(&host, &guest, "ask", json!({ "url": server.url(path), "within_ms": within_ms })).await;
        failed(&outcome, "timeout");
        assert!(began.elapsed() >= SOON, "{:?}", began.elapsed());
        closes.recv_timeout(PATIENCE).unwrap();
    }
    // A look-up, and TLS.
    struct Never;
    impl HttpResolver for Never {
        fn resolve(&self, _: &str) -> Resolving {
            Box::pin(std::future::pending())
        }
    }
    let limits = HttpLimits { connect_within: SOON, ..HttpLimits::default() };
    let grants = [HttpGrant::new("never.test").limits(limits.clone())];
    let (host, guest) = built(builder().resolve_with(Never), grants).await;
    failed(&get(&host, &guest, "https://never.test/").await, "dns");
    let silent = Server::raw(|stream| {
        until_closed(stream);
    });
    let url = format!("https://127.0.0.1:{}", silent.port());
    let (host, guest) = granting([HttpGrant::new(&url).private_addresses(true).limits(limits)]).await;
    failed(&get(&host, &guest, url).await, "timeout");
}
