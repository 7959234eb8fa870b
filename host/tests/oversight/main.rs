//! Who may stop what, from where, and that it holds: real processes, real sockets, real `kill -9`.

#[path = "../log/command.rs"]
mod command;
mod compiling;
mod crisis;
mod drill;
mod driven;
mod exec;
mod fakes;
mod hosts;
mod screens;
mod show;
mod sockets;
mod telemetry;
