//! Whoever connects and does not behave cannot keep others from stopping.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::hosts::Machine;

fn connect(socket: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Row 12: half-open connections, slow ones, slow readers, garbage, and ten thousand of them: the switch works.
#[test]
fn nobody_who_connects_can_hold_up_the_switch() {
    let machine = Machine::new();
    let embedded = machine.embedded("a", 2);
    let socket = machine.sockets().join(embedded.child.id().to_string()).join("operator.sock");

    // Connected, and not a word.
    let silent: Vec<UnixStream> = (0..200).map(|_| connect(&socket)).collect();
    // A byte, and no more.
    let slow: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = connect(&socket);
            // It may have been closed already to make room.
            let _ = stream.write_all(b"POST /v1/halt HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{");
            stream
        })
        .collect();
    // Asks, and does not read the answer.
    let deaf: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = connect(&socket);
            let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n");
            stream
        })
        .collect();
    let began = Instant::now();
    assert_eq!(machine.ps()["calls"].as_array().unwrap().len(), 2);
    println!("with 600 connections open, `estop ps` took {:?}", began.elapsed());

    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/halt HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n",
    ] {
        let mut stream = connect(&socket);
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    // A head and a body that are too long.
    for request in [
        format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200 << 10)),
        format!("POST /v1/stop HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{}", 1 << 20, "z".repeat(1 << 20)),
    ] {
        let mut stream = connect(&socket);
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    for _ in 0..10_000 {
        drop(connect(&socket));
    }
    let halted = machine.estop(&["halt", "--all", "--json"]).has(0, &[]).json();
    assert_eq!(halted["hosts"][0]["calls"].as_array().unwrap().len(), 2);
    drop((silent, slow, deaf));
    assert!(embedded.ended().stdout.contains("closed"));
    assert_eq!(machine.ps()["calls"], json!([]));
}
