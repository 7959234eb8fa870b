//! What a host and the supervisor of one program say to each other.
//!
//! Invariant: one message is one packet, bounded, and read as a whole or not at all; descriptors travel with it and are
//! closed when another program is executed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Containment;

/// Length of one message (bytes): the arguments and the environment of a program are in it.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// Standard input, output and error.
const DESCRIPTORS_MAX: usize = 3;

/// What is to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// All of it.
    pub(super) environment: Vec<(String, String)>,
    /// Where it starts.
    pub(super) directory: PathBuf,
    pub(super) cpu_seconds_max: u64,
    pub(super) memory_bytes_max: u64,
    pub(super) processes_max: u32,
    pub(super) file_bytes_max: u64,
}

/// What the host asks afterwards. The end of the connection means the same as `Kill`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Asked {
    /// SIGTERM to everybody in the tree.
    Terminate,
    /// SIGKILL to everybody in the tree.
    Kill,
}

/// What a supervisor says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    /// It waits for its order. In a namespace a handle on the first process comes with it.
    Ready,
    /// The containment that it was to make is not possible here.
    CannotContain(String),
    CannotStart(String),
    /// And how it is contained.
    Started(Containment),
    /// There are more processes than there may be; they are being killed.
    TooMany,
    /// The leader has ended; what it has left behind is being killed.
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// Killed, and still there.
    Left {
        processes: Vec<Left>,
        trouble: Option<String>,
    },
    /// Nothing is left.
    Gone,
}

/// A process that could not be ended yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) state: char,
}

/// Both ends of a connection. Neither waits in a write: what does not fit is an error.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

pub(super) fn send(to: impl AsFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MESSAGE_BYTES_MAX {
        let why = format!("its arguments and environment have {} bytes; the limit is {MESSAGE_BYTES_MAX}", text.len());
        return Err(io::Error::other(why));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(&to, &[IoSlice::new(&text)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next message, if there is one now; `None` when the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(from: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match recvmsg(&from, &mut [IoSliceMut::new(&mut text)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Ok(Some((serde_json::from_slice(&text[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (here, there) = pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        send(&here, &Asked::Terminate, &[writer.as_fd()]).unwrap();
        send(&here, &Asked::Kill, &[]).unwrap();
        let (asked, descriptors) = receive::<Asked>(&there).unwrap().unwrap();
        assert!(matches!(asked, Asked::Terminate) && descriptors.len() == 1);
        assert!(matches!(receive::<Asked>(&there).unwrap(), Some((Asked::Kill, none)) if none.is_empty()));
        assert_eq!(receive::<Asked>(&there).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop((writer, here));
        assert!(receive::<Asked>(&there).unwrap().is_none());
        // The last end of the pipe is the one that was sent.
        rustix::io::write(&descriptors[0], b"x").unwrap();
        drop(descriptors);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "x");
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_the_sender() {
        let (here, _there) = pair().unwrap();
        let error = send(&here, &"x".repeat(MESSAGE_BYTES_MAX), &[]).unwrap_err();
        assert!(error.to_string().contains("the limit is"), "{error}");
    }
}
