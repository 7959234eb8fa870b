//! The private folder of a program.
//!
//! Invariant: whatever a program has made of it, removing it takes neither a thread of the host that others need, nor its
//! stack or descriptors; and nobody waits for it for ever.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::running::{PATH, readable, watched};

/// For what a program has left there.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// A new one, for nobody but this user.
pub(super) fn make() -> io::Result<PathBuf> {
    let private = Permissions::from_mode(0o700);
    Ok(tempfile::Builder::new().prefix("estop-program-").permissions(private).tempdir()?.keep())
}

/// Removes it with what is in it. If that cannot be, or takes too long, it stays, and that is said.
pub(super) async fn remove(folder: &Path, io: &Handle) {
    // Most programs leave nothing.
    if std::fs::remove_dir(folder).is_ok() {
        return;
    }
    if let Err(error) = removed(folder.to_owned(), io).await {
        tracing::warn!(folder = %folder.display(), %error, "the folder of a program is not removed");
    }
}

/// By rm(1): a tree may be so deep that walking it here would take all of a stack, or all descriptors.
async fn removed(folder: PathBuf, io: &Handle) -> io::Result<()> {
    let started = io.spawn_blocking(move || {
        let mut command = Command::new("rm");
        command.args(["-rf", "--one-file-system", "--"]).arg(folder).env_clear().env("PATH", PATH).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    let mut child = started.await.map_err(io::Error::other)??;
    let pidfd = watched(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?)?;
    let in_time = timeout(REMOVED_WITHIN, readable(Some(&pidfd))).await.is_ok();
    if !in_time {
        let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
        readable(Some(&pidfd)).await;
    }
    // It is dead, so this does not wait.
    let status = child.wait()?;
    match (in_time, status.success()) {
        (true, true) => Ok(()),
        (true, false) => Err(io::Error::other("rm could not remove all of it")),
        (false, _) => Err(io::Error::other(format!("that takes longer than {REMOVED_WITHIN:?}"))),
    }
}
