//! Between the overlay's words and those of WASI.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;

use super::types::{DescriptorStat, DescriptorType, ErrorCode, MetadataHashValue, NewTimestamp};
use crate::workspace::{Status, Time};

pub(super) fn code(error: Errno) -> ErrorCode {
    match error {
        Errno::ACCESS => ErrorCode::Access,
        Errno::BADF => ErrorCode::BadDescriptor,
        Errno::BUSY => ErrorCode::Busy,
        Errno::DQUOT => ErrorCode::Quota,
        Errno::EXIST => ErrorCode::Exist,
        Errno::FBIG => ErrorCode::FileTooLarge,
        Errno::ILSEQ => ErrorCode::IllegalByteSequence,
        Errno::INVAL => ErrorCode::Invalid,
        Errno::ISDIR => ErrorCode::IsDirectory,
        Errno::LOOP => ErrorCode::Loop,
        Errno::MLINK => ErrorCode::TooManyLinks,
        Errno::NAMETOOLONG => ErrorCode::NameTooLong,
        Errno::NOENT => ErrorCode::NoEntry,
        Errno::NOMEM | Errno::MFILE | Errno::NFILE => ErrorCode::InsufficientMemory,
        Errno::NOSPC => ErrorCode::InsufficientSpace,
        Errno::NOTDIR => ErrorCode::NotDirectory,
        Errno::NOTEMPTY => ErrorCode::NotEmpty,
        Errno::NXIO => ErrorCode::NoSuchDevice,
        Errno::OVERFLOW => ErrorCode::Overflow,
        Errno::PERM => ErrorCode::NotPermitted,
        Errno::ROFS => ErrorCode::ReadOnly,
        Errno::XDEV => ErrorCode::CrossDevice,
        _ => ErrorCode::Io,
    }
}

pub(super) fn kind(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    }
}

pub(super) fn status(status: Status) -> DescriptorStat {
    // A time before 1970 is one that WASI cannot say.
    let time = |time: Time| Some(Datetime { seconds: u64::try_from(time.s).ok()?, nanoseconds: time.ns });
    DescriptorStat {
        type_: kind(status.kind),
        link_count: status.links,
        size: status.size,
        data_access_timestamp: time(status.accessed),
        data_modification_timestamp: time(status.modified),
        status_change_timestamp: time(status.changed),
    }
}

pub(super) fn new_time(new: NewTimestamp, now: Time) -> Result<Option<Time>, Errno> {
    Ok(match new {
        NewTimestamp::NoChange => None,
        NewTimestamp::Now => Some(now),
        NewTimestamp::Timestamp(Datetime { seconds, nanoseconds }) => {
            if nanoseconds >= 1_000_000_000 {
                return Err(Errno::INVAL);
            }
            Some(Time { s: i64::try_from(seconds).map_err(|_| Errno::OVERFLOW)?, ns: nanoseconds })
        }
    })
}

pub(super) fn moment(at: SystemTime) -> Time {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { s: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), ns: since.subsec_nanos() }
}

/// Says nothing of the machine: the number of an inode is told to nobody.
pub(super) fn hash((one, other): (u64, u64)) -> MetadataHashValue {
    let hash = Sha256::digest([one.to_le_bytes(), other.to_le_bytes()].concat());
    let half = |from: usize| u64::from_le_bytes(std::array::from_fn(|at| hash[from + at]));
    MetadataHashValue { lower: half(0), upper: half(8) }
}
