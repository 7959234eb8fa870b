//! `estop serve` and `estop call`: real processes, real sockets, real files that change.

mod admin;
mod calls;
#[path = "../log/command.rs"]
mod command;
mod config;
mod crisis;
mod drills;
mod ends;
mod flood;
#[expect(dead_code, reason = "here hosts are served, not embedded")]
#[path = "../oversight/hosts.rs"]
mod hosts;
mod reach;
mod reload;
mod scene;
mod systemd;
