//! Promise 4: wherever a request is, a stop is a stop; and the connection is closed, as the other side sees it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use estop::{Cause, EffectState, Reached, Secret};
use estop_tests::stage::until;
use rustix::net::{AddressFamily, SocketType};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::server::{head, until_closed};

/// Stops in each place.
const ROUNDS: usize = 200;
/// Generous, as other tests run at the same time; the figures are printed.
const HALTED_P99_MAX: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Reached,
    Closed,
}

/// Where a request waits, and who sees it there.
struct Scene {
    url: String,
    builder: HostBuilder,
    events: UnboundedReceiver<Event>,
    effects: &'static [EffectState],
    method: &'static str,
    body_bytes: usize,
}

impl Scene {
    fn at(server: &Server, scheme: &str, events: UnboundedReceiver<Event>, effects: &'static [EffectState]) -> Self {
        let url = format!("{scheme}://127.0.0.1:{}", server.port());
        Self { url, builder: builder(), events, effects, method: "GET", body_bytes: 0 }
    }

    async fn expect(&mut self, event: Event) {
        assert_eq!(within(self.events.recv()).await, Some(event));
    }
}

/// Stops a request there, again and again, and prints how long it took.
async fn stops(place: &str, mut scene: Scene) {
    let limits = HttpLimits { request_bytes_max: 1 << 30, ..HttpLimits::default() };
    let limits =
        HttpLimits { connect_within: PATIENCE, first_byte_within: PATIENCE, between_bytes_within: PATIENCE, ..limits };
    let secret = Secret::new("KEY", "s3cr3t-v4lue");
    let grant = HttpGrant::new(&scene.url).methods([scene.method]).private_addresses(true).limits(limits);
    let grant = grant.secret_header("x-key", "{KEY}", secret);
    let builder = std::mem::replace(&mut scene.builder, Host::builder());
    let (host, guest) = built(builder, [grant]).await;
    let (mut halted, mut closed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let input = json!({ "url": scene.url, "method": scene.method, "body_bytes": scene.body_bytes });
        let call = start(&host, &guest, "ask", input);
        scene.expect(Event::Reached).await;
        let began = std::time::Instant::now();
        let interruption = call.interrupt(Cause::Operator, "alice");
        let reached: Vec<_> = interruption.reached().map(|(_, reached)| reached).collect();
        let outcome = within(call.outcome()).await;
        scene.expect(Event::Closed).await;
        closed.push(began.elapsed());
        let End::Stopped(stopped) = &outcome.end else { panic!("{place}: {:?}", outcome.end) };
        halted.push(stopped.halted);
        assert!(matches!(reached[..], [Reached::Halted] | [Reached::Running]), "{place}: {reached:?}");
        let states: Vec<_> = outcome.effects.iter().map(|effect| effect.state).collect();
        assert_eq!(states, scene.effects, "{place}");
        assert!(!outcome.to_json().to_string().contains("s3cr3t"));
    }
    let of = |all: &mut Vec<Duration>, percent: usize| {
        all.sort();
        all[(all.len() - 1) * percent / 100]
    };
    let p99 = of(&mut halted, 99);
    println!(
        "stop during {place}: halted p50 {:?} p99 {p99:?}, closed at the other side p50 {:?} p99 {:?}",
        of(&mut halted, 50),
        of(&mut closed, 50),
        of(&mut closed, 99),
    );
    assert!(p99 <= HALTED_P99_MAX, "{place}: {p99:?}");
}

/// A server that does this with a connection, and tells of its end.
fn telling(
    serve: impl Fn(&mut TcpStream, &UnboundedSender<Event>) + Send + Sync + 'static,
) -> (Server, UnboundedReceiver<Event>) {
    let (tell, events) = unbounded_channel();
    let server = Server::raw(move |stream| {
        serve(stream, &tell);
        let _ = tell.send(Event::Closed);
    });
    (server, events)
}

/// A look-up that never ends; dropped when it is no longer wanted.
#[tokio::test]
async fn during_a_look_up() {
    struct Lost(UnboundedSender<Event>);
    impl Drop for Lost {
        fn drop(&mut self) {
            let _ = self.0.send(Event::Closed);
        }
    }
    struct Never(UnboundedSender<Event>);
    impl HttpResolver for Never {
        fn resolve(&self, _: &str) -> Resolving {
            let _ = self.0.send(Event::Reached);
            let lost = Lost(self.0.clone());
            Box::pin(async move {
                let _lost = lost;
                std::future::pending().await
            })
        }
    }
    let (tell, events) = unbounded_channel();
    let builder = builder().resolve_with(Never(tell));
    let url = "https://never.test".to_owned();
    stops("a look-up", Scene { url, builder, events, effects: &[], method: "GET", body_bytes: 0 }).await;
}

/// A server that never accepts and whose queue is full: it answers nothing.
#[tokio::test]
async fn during_a_connect() {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    // Until it takes no more.
    let filled: Vec<_> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()).collect();
    assert!(!filled.is_empty());
    let grant = HttpGrant::new(format!("http://{address}")).private_addresses(true);
    let (host, guest) = granting([grant]).await;
    let (mut halted, mut rounds) = (Vec::new(), 0..ROUNDS);
    while rounds.next().is_some() {
        let call = start(&host, &guest, "ask", json!({ "url": format!("http://{address}") }));
        until(|| is_connecting(address)).await;
        let _ = call.interrupt(Cause::Operator, "alice");
        let outcome = within(call.outcome()).await;
        let End::Stopped(stopped) = &outcome.end else { panic!("{:?}", outcome.end) };
        halted.push(stopped.halted);
        assert_eq!(outcome.effects, []);
        // Released: nothing tries to connect any more.
        assert!(!is_connecting(address));
    }
    halted.sort();
    let (p50, p99) = (halted[halted.len() / 2], halted[halted.len() * 99 / 100]);
    println!("stop during a connect: halted p50 {p50:?} p99 {p99:?}");
    assert!(p99 <= HALTED_P99_MAX, "{p99:?}");
}

/// Whether a socket of this machine is about to connect there (`SYN_SENT`).
fn is_connecting(to: SocketAddr) -> bool {
    let there = format!(" 0100007F:{:04X} 02 ", to.port());
    fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|line| line.contains(&there))
}

/// A server that accepts, and says nothing to a client that begins with TLS.
#[tokio::test]
async fn during_a_handshake_of_tls() {
    let (server, events) = telling(|stream, tell| {
        let mut hello = [0; 1];
        stream.read_exact(&mut hello).unwrap();
        let _ = tell.send(Event::Reached);
        until_closed(stream);
    });
    stops("a handshake of TLS", Scene::at(&server, "https", events, &[])).await;
}

/// A response that never comes.
#[tokio::test]
async fn before_the_response() {
    let (server, events) = telling(|stream, tell| {
        head(stream).unwrap();
        let _ = tell.send(Event::Reached);
        until_closed(stream);
    });
    stops("a wait for the response", Scene::at(&server, "http", events, &[EffectState::Unknown])).await;
}

/// A body that comes byte by byte, without an end.
#[tokio::test]
async fn during_a_body_that_trickles() {
    let (server, events) = telling(|stream, tell| {
        head(stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        for sent in 0.. {
            if stream.write_all(b"x").is_err() {
                return;
            }
            if sent == 3 {
                let _ = tell.send(Event::Reached);
            }
            match stream.read(&mut [0]) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                _ => return,
            }
        }
    });
    stops("a body that trickles", Scene::at(&server, "http", events, &[EffectState::Performed])).await;
}

/// A request that the server does not read.
#[tokio::test]
async fn while_it_sends() {
    let (server, events) = telling(|stream, tell| {
        head(stream).unwrap();
        let _ = tell.send(Event::Reached);
        // What was on its way is thrown away with the connection.
        until_reset(stream);
    });
    let scene = Scene::at(&server, "http", events, &[EffectState::Unknown]);
    stops("sending a large body", Scene { method: "POST", body_bytes: 16 << 20, ..scene }).await;
}

/// Without reading anything.
fn until_reset(stream: &TcpStream) {
    let mut polled = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP)];
    rustix::event::poll(&mut polled, None).unwrap();
}

/// Promise 5: a stop closes the connections of its call, and those of nobody else.
#[tokio::test]
async fn others_go_on() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let (tell, mut stopped) = unbounded_channel();
    let server = Server::start(move |head, stream| {
        seen.fetch_add(1, Ordering::SeqCst);
        if head.starts_with("GET /stopped") {
            until_closed(stream);
            tell.send(()).unwrap();
        } else {
            released.lock().unwrap().recv().unwrap();
            crate::server::respond(stream, "200 OK", "", "went on");
        }
    });
    let (host, guest) = granting([to(&server, HttpLimits::default())]).await;
    let goes_on = start(&host, &guest, "ask", json!({ "url": server.url("/goes-on") }));
    let is_stopped = start(&host, &guest, "ask", json!({ "url": server.url("/stopped") }));
    until(|| asked.load(Ordering::SeqCst) == 2).await;
    let _ = is_stopped.interrupt(Cause::Operator, "alice");
    within(stopped.recv()).await.unwrap();
    release.send(()).unwrap();
    assert_eq!(completed(&within(goes_on.outcome()).await)["body"], "went on");
}
