//! Agents, however many and however rude, keep no operator from the switch.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use crate::command::Running;
use crate::scene::{Scene, Stream, ask, section, spin, until};

/// The kernel's queue of connections is full now and then: then it is tried again.
fn connect(socket: &Path) -> UnixStream {
    let mut found = None;
    until("somebody accepts", || {
        found = UnixStream::connect(socket).ok();
        found.is_some()
    });
    found.unwrap()
}

/// Connections that say nothing, that stop in the middle, that do not read, ten thousand that come and go, and as many
/// calls as may be waited for: operators look and stop as ever, and no call that is waited for loses its connection.
#[test]
fn agents_cannot_hold_up_operators() {
    let scene = Scene::new(&["runaway", "misc"]);
    scene.config(&[section("runaway", "runaway"), section("misc", "misc")].concat());
    // As many files as a process may have open where nobody raises that.
    let serving = scene.serving_command();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 1024 && exec \"$0\" \"$@\""]).arg(serving.get_program()).args(serving.get_args());
    limited.envs(serving.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let host = Running::start(limited);
    host.says("estop: serving");
    let socket = scene.socket(&host);
    let silent: Vec<UnixStream> = (0..1200).map(|_| connect(&socket)).collect();
    let slow: Vec<UnixStream> = (0..300)
        .map(|_| {
            let mut stream = connect(&socket);
            // It may have been closed already to make room.
            let _ = stream.write_all(b"POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{");
            stream
        })
        .collect();
    let mut calls: Vec<Stream> = (0..200).map(|_| spin(&socket, "a").1).collect();
    // They ask for much, and read nothing of it.
    let deaf: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = connect(&socket);
            let request = json!({"tool": "big_output", "input": {"bytes": 1_000_000}}).to_string();
            let bytes = request.len();
            let _ = write!(stream, "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{request}");
            stream
        })
        .collect();
    for _ in 0..10_000 {
        drop(connect(&socket));
    }
    let begun = Instant::now();
    let seen = scene.machine.ps();
    let took = begun.elapsed();
    println!(
        "with {} calls and 1500 idle connections, `estop ps` took {took:?}",
        seen["calls"].as_array().unwrap().len()
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(seen["unseen"], json!([]));
    // The calls that are waited for are all there: nobody has made room with one of them.
    let spinning = seen["calls"].as_array().unwrap().iter().filter(|call| call["tool"] == "spin").count();
    assert_eq!(spinning, 200);
    let begun = Instant::now();
    let halted = scene.machine.estop(&["halt", "--all", "--json"]).has(0, &[]).json();
    println!("`estop halt --all` took {:?}", begun.elapsed());
    assert!(halted["hosts"][0]["calls"].as_array().unwrap().len() >= 200);
    for stream in &mut calls {
        assert_eq!(stream.event("outcome")["cause"], "halted");
    }
    drop((silent, slow, deaf));
}

/// A client whose end nobody sees, because something that it has sent stands before it, is noticed all the same: it is told
/// now and then that its call still runs, and that is not taken. So is one that does not read.
#[test]
fn a_client_that_vanishes_is_noticed() {
    let (scene, host) = Scene::serving(&["runaway", "misc"]);
    let socket = scene.socket(&host);
    let request = json!({"tool": "spin", "agent": "vanishes"}).to_string();
    let mut vanishes = connect(&socket);
    let bytes = request.len();
    write!(vanishes, "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{request}GET").unwrap();
    let (_, mut patient) = spin(&socket, "patient");
    scene.until_running(2);
    drop(vanishes);
    // Whoever listens hears a sign of life, and is none of an event.
    while patient.line().unwrap() != ":" {}
    let end = scene.entry("end", |entry| entry["agent"] == "vanishes");
    assert_eq!(end["cause"], "disconnected");
    scene.until_running(1);

    let mut deaf = connect(&socket);
    let request = json!({"tool": "big_output", "input": {"bytes": 1_000_000}}).to_string();
    let bytes = request.len();
    write!(deaf, "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n{request}").unwrap();
    until("it is given up", || {
        let mut polled = [PollFd::new(&deaf, PollFlags::empty())];
        let most = Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&most)).unwrap();
        polled[0].revents().contains(PollFlags::HUP)
    });
}

/// When as many calls are waited for as may be, whoever comes next with one is told so, none of the others is given up, and
/// whoever wants to stop one is heard.
#[test]
fn whoever_finds_no_room_is_told() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let socket = scene.socket(&host);
    let mut calls: Vec<(Value, Stream)> = (0..240).map(|_| spin(&socket, "a")).collect();
    let request = json!({"tool": "spin"}).to_string();
    let (status, answer) = ask(&socket, "POST", "/v1/call", &request);
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("try again"));
    assert_eq!(ask(&socket, "GET", "/v1/tools", "").0, 200);
    let (begun, mut stopped) = calls.pop().unwrap();
    let cancel = json!({"call": begun["call"], "token": begun["token"]}).to_string();
    let (status, answer) = ask(&socket, "POST", "/v1/stop", &cancel);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(stopped.event("outcome")["cause"], "cancelled");
    drop(stopped);
    drop(calls.pop());
    until("there is room again", || {
        let mut stream = connect(&socket);
        let length = request.len();
        let _ = write!(stream, "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{request}");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok() && answer == *b"HTTP/1.1 200"
    });
    // A request that is too long is refused.
    let body = format!("{{\"tool\":\"{}\"}}", "x".repeat(2 << 20));
    let mut stream = connect(&socket);
    let _ = write!(stream, "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
}
