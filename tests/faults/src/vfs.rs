//! The table of functions that SQLite calls a file system by.
//!
//! The invariant that every `unsafe` here rests on: SQLite calls these functions only with the `sqlite3_vfs` that
//! [`register`] made, whose `pAppData` is a [`Beneath`] that lives as long as the process, and with arguments that
//! keep the contract of the method; they are passed on to the same method of the VFS beneath, which has that contract too.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rusqlite::ffi;

use crate::Shim;
use crate::file::{self, File, Tracked};
use crate::plan::{Act, Fault, Kind, Operation};
use crate::record::FILE_BYTES_MAX;

/// What `pAppData` points to.
struct Beneath {
    shim: &'static Shim,
    real: *mut ffi::sqlite3_vfs,
}

/// Makes the VFS known to SQLite, for good.
pub(crate) fn register(shim: &'static Shim) -> Result<(), &'static str> {
    static REGISTERING: Mutex<()> = Mutex::new(());
    // Held, so that nobody else takes the name between the look and the registration.
    let _registering = REGISTERING.lock().unwrap_or_else(PoisonError::into_inner);

    let name = CString::new(shim.name.as_str()).map_err(|_| "the name has a NUL in it")?;
    // SAFETY: the argument is a string that ends with a NUL.
    if !unsafe { ffi::sqlite3_vfs_find(name.as_ptr()) }.is_null() {
        return Err("the name is taken");
    }
    // SAFETY: NULL asks for the default VFS.
    let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    // SAFETY: what SQLite found is registered, and so stays where it is; nothing in this crate unregisters.
    let Some(beneath) = (unsafe { real.as_ref() }) else { return Err("SQLite has no default VFS") };
    let Some(os_file_bytes) = file::bytes_before_real().checked_add(beneath.szOsFile) else {
        return Err("the default VFS has files that are too large");
    };

    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        // Not 3: replacing system calls would get around the record.
        iVersion: beneath.iVersion.min(2),
        szOsFile: os_file_bytes,
        mxPathname: beneath.mxPathname,
        pNext: ptr::null_mut(),
        zName: name.into_raw(),
        pAppData: ptr::from_mut(Box::leak(Box::new(Beneath { shim, real }))).cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        // SQLite asks whether these are there.
        xDlOpen: beneath.xDlOpen.and(Some(dl_open)),
        xDlError: beneath.xDlError.and(Some(dl_error)),
        xDlSym: beneath.xDlSym.and(Some(dl_sym)),
        xDlClose: beneath.xDlClose.and(Some(dl_close)),
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: beneath.xGetLastError.and(Some(get_last_error)),
        xCurrentTimeInt64: beneath.xCurrentTimeInt64.and(Some(current_time_int64)),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }));
    // SAFETY: the VFS and all that it points to are leaked, and its functions are those of this module.
    match unsafe { ffi::sqlite3_vfs_register(vfs, 0) } {
        ffi::SQLITE_OK => Ok(()),
        _ => Err("SQLite refused it"),
    }
}

/// The shim, and the VFS beneath.
///
/// # Safety
/// The VFS is one of [`register`]'s.
unsafe fn beneath(vfs: *mut ffi::sqlite3_vfs) -> (&'static Shim, *mut ffi::sqlite3_vfs) {
    // SAFETY: `register` leaked what its VFS points to.
    let beneath = unsafe { &*(*vfs).pAppData.cast::<Beneath>() };
    (beneath.shim, beneath.real)
}

/// Calls the same method of the VFS beneath, if it has it. To be used where `unsafe` says that the arguments keep its
/// contract.
macro_rules! forward {
    ($real:expr, $method:ident($($argument:expr),*) or $absent:expr) => {{
        let real: *mut ffi::sqlite3_vfs = $real;
        match (*real).$method {
            Some(method) => method(real, $($argument),*),
            None => $absent,
        }
    }};
}

/// A path as SQLite gives it.
///
/// # Safety
/// The name is NULL or a string that ends with a NUL.
unsafe fn path(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: see the module's invariant; SQLite closes a file whose opening failed if it has methods, so it gets none
    // until it is whole.
    let (shim, real_vfs) = unsafe {
        (*file).pMethods = ptr::null();
        beneath(vfs)
    };
    // SAFETY: SQLite allocated `szOsFile` bytes, which is room for ours and for the file beneath behind it.
    let real_file = unsafe { file::real(file) };
    let open_real = || {
        // SAFETY: see the module's invariant. The name is passed on as it came, for there may be parameters behind it.
        let code = unsafe {
            (*real_file).pMethods = ptr::null();
            forward!(real_vfs, xOpen(name, real_file, flags, out_flags) or ffi::SQLITE_CANTOPEN)
        };
        if code != ffi::SQLITE_OK {
            // SAFETY: the file beneath was just tried to be opened, and what has methods then is to be closed.
            unsafe { file::close_real(real_file) };
        }
        code
    };

    // SAFETY: a file's name is NULL or a string that ends with a NUL.
    let path = unsafe { path(name) }.filter(|_| is_recorded(flags));
    let tracked = if let Some(path) = path {
        let kind = if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
            Kind::Db
        } else if flags & ffi::SQLITE_OPEN_WAL != 0 {
            Kind::Wal
        } else {
            Kind::Other
        };
        let creates = flags & ffi::SQLITE_OPEN_CREATE != 0 && !is_there(&path);
        let operation = creates.then_some(Operation { act: Act::Create, kind });
        let Ok((mut state, fault)) = shim.enter(operation) else { return ffi::SQLITE_IOERR };
        match fault {
            None => {}
            Some(Fault::PowerCut) => return ffi::SQLITE_IOERR,
            Some(_) => return ffi::SQLITE_CANTOPEN,
        }
        // Looked at again: another connection may have created it since.
        let was_there = is_there(&path);
        let code = open_real();
        if code != ffi::SQLITE_OK {
            return code;
        }
        let inode = if was_there {
            // Read through SQLite's own descriptor: closing another one would release this process's locks.
            // SAFETY: the file beneath is open.
            state.record.opened(&path, || unsafe { file::read_real(real_file, FILE_BYTES_MAX) })
        } else {
            state.record.created(&path)
        };
        Some(Tracked::new(path, kind, inode, flags & ffi::SQLITE_OPEN_CREATE != 0))
    } else {
        if shim.is_cut() {
            return ffi::SQLITE_IOERR;
        }
        let code = open_real();
        if code != ffi::SQLITE_OK {
            return code;
        }
        None
    };
    // SAFETY: the room is SQLite's for this file, holds nothing yet that needs dropping, and the file beneath is open.
    unsafe { ptr::write(file.cast(), File::over(real_file, shim, tracked)) };
    ffi::SQLITE_OK
}

/// Whether a file outlives the connection that opens it.
fn is_recorded(flags: c_int) -> bool {
    let kept = ffi::SQLITE_OPEN_MAIN_DB
        | ffi::SQLITE_OPEN_WAL
        | ffi::SQLITE_OPEN_MAIN_JOURNAL
        | ffi::SQLITE_OPEN_SUPER_JOURNAL;
    flags & kept != 0 && flags & ffi::SQLITE_OPEN_DELETEONCLOSE == 0
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    let (shim, real) = unsafe { beneath(vfs) };
    // SAFETY: the name is a string that ends with a NUL.
    let Some(path) = (unsafe { path(name) }) else { return ffi::SQLITE_IOERR_DELETE };
    let operation = is_there(&path).then_some(Operation { act: Act::Delete, kind: Kind::Other });
    let Ok((mut state, None)) = shim.enter(operation) else { return ffi::SQLITE_IOERR_DELETE };
    if is_there(&path) {
        // It may come back, so its bytes must be known even if nobody has opened it.
        state.record.opened(&path, || fs::read(&path).ok().filter(|old| old.len() <= FILE_BYTES_MAX));
    }
    // SAFETY: see the module's invariant.
    let code = unsafe { forward!(real, xDelete(name, sync_directory) or ffi::SQLITE_IOERR_DELETE) };
    match code {
        ffi::SQLITE_OK => {
            state.record.deleted(&path);
            if let Some(directory) = path.parent().filter(|_| sync_directory & 1 != 0) {
                state.record.synced_directory(directory);
            }
        }
        ffi::SQLITE_IOERR_DELETE_NOENT => {}
        _ => state.record.give_up("a real deletion failed"),
    }
    code
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: see the module's invariant.
    let (shim, real) = unsafe { beneath(vfs) };
    if shim.is_cut() {
        return ffi::SQLITE_IOERR_ACCESS;
    }
    // SAFETY: see the module's invariant.
    unsafe { forward!(real, xAccess(name, flags, out) or ffi::SQLITE_IOERR_ACCESS) }
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    out_bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: see the module's invariant.
    let (shim, real) = unsafe { beneath(vfs) };
    // It follows links, which are on the disk.
    if shim.is_cut() {
        return ffi::SQLITE_IOERR;
    }
    // SAFETY: see the module's invariant.
    unsafe { forward!(real, xFullPathname(name, out_bytes, out) or ffi::SQLITE_CANTOPEN) }
}

unsafe extern "C" fn dl_open(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> *mut c_void {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xDlOpen(name) or ptr::null_mut()) }
}

unsafe extern "C" fn dl_error(vfs: *mut ffi::sqlite3_vfs, bytes: c_int, message: *mut c_char) {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xDlError(bytes, message) or ()) }
}

/// What `xDlSym` finds, as the bindings have it.
type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

unsafe extern "C" fn dl_sym(vfs: *mut ffi::sqlite3_vfs, library: *mut c_void, name: *const c_char) -> Symbol {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xDlSym(library, name) or None) }
}

unsafe extern "C" fn dl_close(vfs: *mut ffi::sqlite3_vfs, library: *mut c_void) {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xDlClose(library) or ()) }
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, bytes: c_int, out: *mut c_char) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xRandomness(bytes, out) or 0) }
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xSleep(microseconds) or 0) }
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xCurrentTime(out) or ffi::SQLITE_ERROR) }
}

unsafe extern "C" fn current_time_int64(vfs: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xCurrentTimeInt64(out) or ffi::SQLITE_ERROR) }
}

unsafe extern "C" fn get_last_error(vfs: *mut ffi::sqlite3_vfs, bytes: c_int, message: *mut c_char) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(beneath(vfs).1, xGetLastError(bytes, message) or 0) }
}
