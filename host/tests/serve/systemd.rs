//! What systemd is told, and the unit.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::command::{PATIENCE, Running, tool};
use crate::hosts::signal;
use crate::scene::{Scene, section};

/// The next datagram that says this.
#[track_caller]
fn told(socket: &UnixDatagram, word: &str) -> String {
    let mut said = Vec::new();
    loop {
        let mut text = [0; 4096];
        let Ok(bytes) = socket.recv(&mut text) else { panic!("it never said {word}, but: {said:?}") };
        let text = String::from_utf8(text[..bytes].to_vec()).unwrap();
        if text.lines().any(|line| line.split('=').next() == Some(word)) {
            return text;
        }
        said.push(text);
    }
}

fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Ready when everything is loaded and the sockets answer; reloading and ready again at SIGHUP; alive while it is; stopping.
#[test]
fn systemd_is_told() {
    let scene = Scene::new(&["echo"]);
    scene.config(&section("echo", "echo"));
    let path = scene.machine.folder().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let serving = |watchdog_us: Option<&str>| -> Command {
        let mut command = scene.serving_command();
        command.env("NOTIFY_SOCKET", &path);
        watchdog_us.map(|us| command.env("WATCHDOG_USEC", us));
        command
    };
    let host = Running::start(serving(Some("400000")));
    let ready = told(&socket, "READY");
    assert!(ready.contains("READY=1\nSTATUS=1 tools of 1 components"), "{ready}");
    assert!(scene.component(&host, "echo")["digest"].is_string());
    let before = monotonic_us();
    signal(&host, Signal::HUP);
    let reloading = told(&socket, "RELOADING");
    let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!((before..=monotonic_us()).contains(&at.parse().unwrap()), "{reloading}");
    told(&socket, "READY");
    for _ in 0..3 {
        told(&socket, "WATCHDOG");
    }
    // A process that does not run says nothing.
    signal(&host, Signal::STOP);
    socket.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    signal(&host, Signal::CONT);
    told(&socket, "WATCHDOG");
    signal(&host, Signal::TERM);
    assert!(told(&socket, "STOPPING").contains("STATUS=ending (SIGTERM)"));
    host.ended().has(0, &[]);

    // For another process, or not asked for: no signs of life.
    for (pid, us) in [(Some("1"), Some("1000")), (None, None)] {
        let mut command = serving(us);
        pid.map(|pid| command.env("WATCHDOG_PID", pid));
        let host = Running::start(command);
        told(&socket, "READY");
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(socket.recv(&mut [0; 4096]).is_err());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        drop(host);
    }
}

/// systemd understands the unit, where there is one to ask.
#[test]
fn the_unit_is_well_formed() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("skipped: there is no systemd-analyze here");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).split_whitespace().nth(1).map(str::to_owned);
    let version: u32 = version.and_then(|version| version.parse().ok()).unwrap();
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/estop.service")).unwrap();
    let mut unit = unit.replace("/usr/local/bin/estop", env!("CARGO_BIN_EXE_estop"));
    if version < 253 {
        // Not known yet; everything else is.
        unit = unit.replace("Type=notify-reload", "Type=notify");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("estop.service");
    fs::write(&path, unit).unwrap();
    let verified = tool("systemd-analyze", &["verify", path.to_str().unwrap()]);
    assert_eq!((verified.code, &*verified.stderr), (Some(0), ""), "{verified:?}");
}
