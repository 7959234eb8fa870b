//! The methods that change a file, or what is durable of it: each meets its fault, is done, and is recorded, under one
//! lock.

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::atomic::Ordering;

use rusqlite::ffi;

use super::{ours, real};
use crate::plan::{Act, Fault};

pub(super) unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    at: i64,
) -> c_int {
    // SAFETY: see the parent module's invariant.
    let ours = unsafe { ours(file) };
    let write_real = |amount| {
        // SAFETY: see the parent module's invariant; the amount is at most that which was asked for.
        unsafe { forward!(real(file), xWrite(from, amount, at) or ffi::SQLITE_IOERR_WRITE) }
    };
    let Some(tracked) = &ours.tracked else {
        return ours.unless_cut(ffi::SQLITE_IOERR_WRITE, || write_real(amount));
    };
    let bytes: &[u8] = match usize::try_from(amount) {
        // SAFETY: `from` is `amount` bytes that nobody changes during the call.
        Ok(length) if length > 0 => unsafe { slice::from_raw_parts(from.cast(), length) },
        _ => &[],
    };

    let Ok((mut state, fault)) = ours.shim.enter(tracked.operation(Act::Write)) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    let (amount, bytes, answer) = match fault {
        None => (amount, bytes, ffi::SQLITE_OK),
        Some(Fault::Torn) => (amount / 2, bytes.get(..bytes.len() / 2).unwrap_or_default(), ffi::SQLITE_IOERR_WRITE),
        Some(Fault::Full) => return ffi::SQLITE_FULL,
        Some(Fault::PowerCut) => {
            state.record.torn(&tracked.inode, at, bytes);
            return ffi::SQLITE_IOERR_WRITE;
        }
        Some(_) => return ffi::SQLITE_IOERR_WRITE,
    };
    let code = write_real(amount);
    if code != ffi::SQLITE_OK {
        state.record.give_up("a real write failed");
        return code;
    }
    state.record.written(&tracked.inode, at, bytes);
    answer
}

pub(super) unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: see the parent module's invariant.
    let ours = unsafe { ours(file) };
    // SAFETY: see the parent module's invariant.
    let truncate_real = || unsafe { forward!(real(file), xTruncate(size) or ffi::SQLITE_IOERR_TRUNCATE) };
    let Some(tracked) = &ours.tracked else {
        return ours.unless_cut(ffi::SQLITE_IOERR_TRUNCATE, truncate_real);
    };
    let Ok((mut state, None)) = ours.shim.enter(tracked.operation(Act::Truncate)) else {
        return ffi::SQLITE_IOERR_TRUNCATE;
    };
    let code = truncate_real();
    if code == ffi::SQLITE_OK {
        state.record.resized(&tracked.inode, size);
    } else {
        state.record.give_up("a real truncation failed");
    }
    code
}

pub(super) unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: see the parent module's invariant.
    let ours = unsafe { ours(file) };
    // SAFETY: see the parent module's invariant.
    let sync_real = || unsafe { forward!(real(file), xSync(flags) or ffi::SQLITE_IOERR_FSYNC) };
    let Some(tracked) = &ours.tracked else {
        return ours.unless_cut(ffi::SQLITE_IOERR_FSYNC, sync_real);
    };
    let Ok((mut state, fault)) = ours.shim.enter(tracked.operation(Act::Sync)) else { return ffi::SQLITE_IOERR_FSYNC };
    match fault {
        None => {}
        Some(Fault::SyncLies) => return ffi::SQLITE_OK,
        Some(Fault::SyncDropped) => {
            state.record.dropped(&tracked.inode);
            return ffi::SQLITE_IOERR_FSYNC;
        }
        Some(_) => return ffi::SQLITE_IOERR_FSYNC,
    }
    let code = sync_real();
    if code != ffi::SQLITE_OK {
        state.record.give_up("a real sync failed");
        return code;
    }
    state.record.synced(&tracked.path, &tracked.inode);
    if tracked.syncs_directory.swap(false, Ordering::Relaxed)
        && let Some(directory) = tracked.path.parent()
    {
        state.record.synced_directory(directory);
    }
    code
}
