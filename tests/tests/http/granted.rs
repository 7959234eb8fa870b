//! What is asked is granted, or nothing leaves.

use std::net::TcpListener;

use super::*;
use crate::server::respond;

/// Promise 18: a host, a scheme, a port and a method each have to be granted; what is not leaves nothing.
#[tokio::test]
async fn only_what_is_granted_is_asked() {
    let (server, other) = (Server::saying("hello"), Server::saying("other"));
    let grants = [
        HttpGrant::new(server.named("here.test", "")).private_addresses(true),
        HttpGrant::new(server.named("*.under.test", "")).private_addresses(true),
    ];
    let (host, guest) = granting(grants).await;
    let outcome = get(&host, &guest, server.named("here.test", "/a?b")).await;
    assert_eq!(completed(&outcome)["body"], "hello");
    assert_eq!(completed(&outcome)["status"], 200);
    assert!(server.heads()[0].starts_with("GET /a?b HTTP/1.1\r\n"), "{:?}", server.heads());
    let port = server.port();
    assert!(server.heads()[0].contains(&format!("host: here.test:{port}\r\n")), "{:?}", server.heads());
    completed(&get(&host, &guest, server.named("HERE.test", "/")).await);

    let (asked, of_other) = (server.heads().len(), other.heads().len());
    for url in [
        server.named("also-here.test", "/"),
        server.named("under.test", "/"),
        server.url("/"),
        other.named("here.test", "/"),
        format!("https://here.test:{port}/"),
        "http://here.test/".into(),
        "https://example.com/".into(),
    ] {
        failed(&get(&host, &guest, url).await, "denied");
    }
    let post = json!({ "url": server.named("here.test", "/"), "method": "POST", "body_bytes": 3 });
    let outcome = call(&host, &guest, "ask", post).await;
    failed(&outcome, "denied");
    assert_eq!(outcome.effects, []);
    // It is covered, and nobody knows it.
    failed(&get(&host, &guest, server.named("x.under.test", "/")).await, "dns");
    assert_eq!((server.heads().len(), other.heads().len()), (asked, of_other));
}

/// Without a grant the interface is there, and empty.
#[tokio::test]
async fn without_a_grant_every_request_is_refused() {
    let server = Server::saying("hello");
    let (host, guest) = granting([]).await;
    let outcome = get(&host, &guest, server.url("/")).await;
    failed(&outcome, "denied");
    assert_eq!(outcome.effects, []);
    assert_eq!(server.heads(), [""; 0]);
}

/// What is odd is refused as it stands, and not read in some way.
#[tokio::test]
async fn odd_requests_are_refused() {
    let server = Server::saying("hello");
    let grants = [HttpGrant::new(server.named("*", "")).private_addresses(true)];
    let (host, guest) = granting(grants).await;
    let here = format!("here.test:{}", server.port());
    let raw = |scheme: Option<&str>, method: &str, authority: &str, path: &str| {
        let input = json!({ "scheme": scheme, "method": method, "authority": authority, "path": path });
        let (host, guest) = (&host, &guest);
        async move { completed(&call(host, guest, "ask_raw", input).await).as_str().unwrap().to_owned() }
    };
    assert_eq!(raw(Some("http"), "GET", &here, "/").await, "200");
    let asked = server.heads().len();
    for (scheme, method, authority, path, word) in [
        (Some("http"), "get", here.as_str(), "/", "HttpRequestDenied"),
        (Some("http"), "CONNECT", &here, "/", "HttpRequestDenied"),
        (Some("http"), "TRACE", &here, "/", "HttpRequestDenied"),
        (Some("ftp"), "GET", &here, "/", "HttpProtocolError"),
        // Without a scheme it is that of TLS.
        (None, "GET", &here, "/", "HttpRequestDenied"),
        (Some("http"), "GET", &format!("user@{here}"), "/", "HttpRequestUriInvalid"),
        (Some("http"), "GET", &format!("here.test.:{}", server.port()), "/", "HttpRequestUriInvalid"),
        (Some("http"), "GET", &here, "http://127.0.0.1/", "path"),
    ] {
        let told = raw(scheme, method, authority, path).await;
        assert!(told.contains(word), "{scheme:?} {method} {authority} {path}: {told}");
    }
    assert_eq!(server.heads().len(), asked);
}

/// A name is in the hands of whoever has it: what it resolves to is checked, all of it, and nothing else is connected to.
#[tokio::test]
async fn private_addresses_are_refused_unless_they_are_granted() {
    let server = Server::saying("hello");
    let port = server.port();
    let (host, guest) = granting([HttpGrant::new(format!("http://*:{port}"))]).await;
    for name in ["here.test", "mixed.test", "mapped.test", "metadata.test", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"]
    {
        failed(&get(&host, &guest, server.named(name, "/")).await, "private-address");
    }
    failed(&get(&host, &guest, server.named("nowhere.test", "/")).await, "dns");
    // By the resolver of the system.
    let grants = || [HttpGrant::new(format!("http://localhost:{port}"))];
    let (system, same) = built(small().cache(CACHE.home()), grants()).await;
    failed(&get(&system, &same, server.named("localhost", "/")).await, "private-address");
    assert_eq!(server.heads(), [""; 0]);
    let (system, same) = built(small().cache(CACHE.home()), grants().map(|grant| grant.private_addresses(true))).await;
    assert_eq!(completed(&get(&system, &same, server.named("localhost", "/")).await)["body"], "hello");
}

/// A redirect is another request.
#[tokio::test]
async fn a_redirect_has_to_be_granted_as_well() {
    let inner = Server::saying("secret");
    let to_inner = inner.url("/");
    let to_private = inner.named("here.test", "/");
    let outer = Server::start(move |head, stream| {
        let to = match head.split(' ').nth(1).unwrap() {
            "/here" => "/there".to_owned(),
            "/there" => return respond(stream, "200 OK", "", "there"),
            "/loop" => "/loop".to_owned(),
            "/ungranted" => to_inner.clone(),
            "/private" => to_private.clone(),
            path => panic!("{path}"),
        };
        respond(stream, "302 Found", &format!("location: {to}\r\n"), "");
    });
    let grants = [to(&outer, HttpLimits::default()), HttpGrant::new(inner.named("here.test", ""))];
    let (host, guest) = granting(grants).await;
    let outcome = get(&host, &guest, outer.url("/here")).await;
    assert_eq!(
        (&completed(&outcome)["body"], &completed(&outcome)["url"]),
        (&json!("there"), &json!(outer.url("/there")))
    );
    assert_eq!(outcome.effects.len(), 2);
    failed(&get(&host, &guest, outer.url("/ungranted")).await, "denied");
    failed(&get(&host, &guest, outer.url("/private")).await, "private-address");
    failed(&get(&host, &guest, outer.url("/loop")).await, "too-many-redirects");
    assert_eq!(inner.heads(), [""; 0]);
    let once = call(&host, &guest, "ask", json!({ "url": outer.url("/here"), "redirects_max": 0 })).await;
    assert_eq!(completed(&once)["status"], 302);
}

/// Each call has what its rules give, and a host that is never built says what is wrong with a grant.
#[tokio::test]
async fn grants_are_for_those_that_they_name() {
    let server = Server::saying("hello");
    let grant = Grants::new().http(to(&server, HttpLimits::default()));
    let host = builder().grant(Grantee::everyone().agent("tester"), grant).build().unwrap();
    let guest = within(load(&host, "http")).await;
    completed(&get(&host, &guest, server.url("/")).await);
    let other = host.agent("other").call(&guest, "ask", json!({ "url": server.url("/") })).start();
    failed(&within(other.outcome()).await, "denied");
    let wrong = Grants::new().http(HttpGrant::new("ftp://a"));
    let error = builder().grant(Grantee::everyone(), wrong).build().err().unwrap().to_string();
    assert!(error.contains("`ftp://a`") && error.contains("https"), "{error}");
}

/// A server that is not there.
#[tokio::test]
async fn a_refused_connection_is_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (host, guest) = granting([HttpGrant::new(&url).private_addresses(true)]).await;
    let outcome = get(&host, &guest, url).await;
    failed(&outcome, "connection");
    assert_eq!(outcome.effects, []);
}
