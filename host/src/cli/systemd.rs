//! What systemd is told, where it has started the process (sd_notify(3)): datagrams to a socket that it names.
//!
//! Invariant: nothing waits for systemd. What it does not take at once is lost.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The service's manager, if there is one.
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watches: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|path| Some((open().ok()?, address(&path)?)));
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // For another process, if it is said for which.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watches = number("WATCHDOG_USEC").filter(|us| is_ours && *us > 0).map(Duration::from_micros);
        Self { socket, watches }
    }

    /// It takes the process for dead if there is no sign of life for this long.
    pub(super) fn watches(&self) -> Option<Duration> {
        self.watches.filter(|_| self.socket.is_some())
    }

    /// Everything is loaded, and the sockets answer. `status` is shown by `systemctl status`.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// What is there is being changed.
    pub(super) fn reloading(&self) {
        // systemd compares it with its own clock, to tell this reload from an earlier one.
        let now = clock_gettime(ClockId::Monotonic);
        let us = now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={us}\nSTATUS=reloading\n"));
    }

    /// It is ending.
    pub(super) fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}\n", one_line(status)));
    }

    /// It is alive.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// It is not, or not quite.
    pub(super) fn status(&self, status: &str) {
        self.send(&format!("STATUS={}\n", one_line(status)));
    }

    fn send(&self, text: &str) {
        if let Some((socket, to)) = &self.socket {
            // See the invariant.
            let _ = socket.send_to_addr(text.as_bytes(), to);
        }
    }
}

fn open() -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A path, or a name that begins with `@`: one in the abstract namespace.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        _ => SocketAddr::from_pathname(name).ok(),
    }
}

/// A line more would be a statement of its own.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("estop-test-{}", std::process::id());
        let listening = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (listener, name) in listening {
            let socket = Some((open().unwrap(), address(&name).unwrap()));
            let manager = Manager { socket, watches: None };
            manager.ready("two\nREADY=0");
            let mut text = [0; 100];
            let bytes = listener.recv(&mut text).unwrap();
            assert_eq!(&text[..bytes], b"READY=1\nSTATUS=two READY=0\n");
        }
    }
}
