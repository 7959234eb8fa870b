//! The table of functions that SQLite calls an open file by.
//!
//! The invariant that every `unsafe` here rests on: SQLite calls these functions only with a file that the VFS has
//! opened, and that is not closed yet; its memory holds a [`File`] and [`BEFORE_REAL`] bytes after the beginning of that
//! the open file beneath. The arguments keep the contract of the method; they are passed on to the same method of the
//! file beneath, which has that contract too. Two calls on one file never run at once.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::AtomicBool;

use rusqlite::ffi;

use crate::Shim;
use crate::plan::{Act, Kind, Operation};
use crate::record::Inode;

/// Calls a method of a file beneath, if it has it. To be used where `unsafe` says that the file is open and the
/// arguments keep the method's contract.
macro_rules! forward {
    ($real:expr, $method:ident($($argument:expr),*) or $absent:expr) => {{
        let real: *mut ffi::sqlite3_file = $real;
        match (*(*real).pMethods).$method {
            Some(method) => method(real, $($argument),*),
            None => $absent,
        }
    }};
}

mod changes;

use self::changes::{sync, truncate, write};

/// Where the file beneath begins, in bytes: behind ours, aligned for anything.
const BEFORE_REAL: usize = size_of::<File>().next_multiple_of(16);

/// [`BEFORE_REAL`], as SQLite counts.
pub(crate) const fn bytes_before_real() -> c_int {
    BEFORE_REAL as c_int
}

/// What SQLite has an open file as.
#[repr(C)]
pub(crate) struct File {
    base: ffi::sqlite3_file,
    shim: &'static Shim,
    /// Nothing for a temporary file.
    tracked: Option<Tracked>,
}

/// What the record needs to know of an open file.
pub(crate) struct Tracked {
    path: PathBuf,
    kind: Kind,
    inode: Inode,
    syncs_directory: AtomicBool,
}

impl Tracked {
    pub(crate) fn new(path: PathBuf, kind: Kind, inode: Inode, may_create: bool) -> Self {
        // As SQLite's VFS for Unix does: the first sync of a log or journal syncs the directory along.
        let syncs_directory = AtomicBool::new(may_create && kind != Kind::Db);
        Self { path, kind, inode, syncs_directory }
    }

    fn operation(&self, act: Act) -> Option<Operation> {
        Some(Operation { act, kind: self.kind })
    }
}

impl File {
    /// What goes in front of an open file.
    ///
    /// # Safety
    /// The file beneath is open.
    pub(crate) unsafe fn over(real: *mut ffi::sqlite3_file, shim: &'static Shim, tracked: Option<Tracked>) -> Self {
        // SAFETY: an open file has methods.
        let beneath = unsafe { &*(*real).pMethods };
        let shares_memory = beneath.iVersion >= 2 && beneath.xShmMap.is_some();
        let methods: &'static ffi::sqlite3_io_methods = if shares_memory { &SHARING } else { &NOT_SHARING };
        Self { base: ffi::sqlite3_file { pMethods: methods }, shim, tracked }
    }

    fn unless_cut(&self, answer: c_int, forward: impl FnOnce() -> c_int) -> c_int {
        if self.shim.is_cut() { answer } else { forward() }
    }
}

/// The file beneath.
///
/// # Safety
/// The file's memory is `szOsFile` bytes of the VFS.
pub(crate) unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the file beneath lies that far inside of the same allocation.
    unsafe { file.byte_add(BEFORE_REAL) }
}

/// Our part of a file.
///
/// # Safety
/// The file is open.
unsafe fn ours<'a>(file: *mut ffi::sqlite3_file) -> &'a File {
    // SAFETY: an open file's memory begins with a `File`, and nothing makes an exclusive reference to it before it's closed.
    unsafe { &*file.cast::<File>() }
}

/// Closes what an open that failed has left of a file beneath.
///
/// # Safety
/// The file has methods only if it is to be closed.
pub(crate) unsafe fn close_real(real: *mut ffi::sqlite3_file) {
    // SAFETY: as the caller says.
    unsafe {
        if !(*real).pMethods.is_null() {
            forward!(real, xClose() or ffi::SQLITE_OK);
        }
    }
}

/// All of a file beneath, unless it can't be read or is larger than `bytes_max`.
///
/// # Safety
/// The file beneath is open.
pub(crate) unsafe fn read_real(real: *mut ffi::sqlite3_file, bytes_max: usize) -> Option<Vec<u8>> {
    let mut size = 0;
    // SAFETY: the file is open, and the size has a place to go.
    let code = unsafe { forward!(real, xFileSize(&raw mut size) or ffi::SQLITE_IOERR_FSTAT) };
    let bytes = usize::try_from(size).ok().filter(|&bytes| code == ffi::SQLITE_OK && bytes <= bytes_max)?;
    let amount = c_int::try_from(bytes).ok()?;
    let mut content = vec![0; bytes];
    // SAFETY: the file is open, and there is room for that many bytes.
    let code = unsafe { forward!(real, xRead(content.as_mut_ptr().cast(), amount, 0) or ffi::SQLITE_IOERR_READ) };
    (code == ffi::SQLITE_OK).then_some(content)
}

static SHARING: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Not 3: what is written through mapped memory would get around the record.
    iVersion: 2,
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    ..NOT_SHARING
};

const NOT_SHARING: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: see the module's invariant; after this the file is closed, and nobody looks at our part again.
    unsafe {
        let code = forward!(real(file), xClose() or ffi::SQLITE_OK);
        ptr::drop_in_place(file.cast::<File>());
        (*file).pMethods = ptr::null();
        code
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, amount: c_int, at: i64) -> c_int {
    // SAFETY: see the module's invariant.
    let ours = unsafe { ours(file) };
    ours.unless_cut(ffi::SQLITE_IOERR_READ, || {
        // SAFETY: see the module's invariant.
        unsafe { forward!(real(file), xRead(to, amount, at) or ffi::SQLITE_IOERR_READ) }
    })
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: see the module's invariant.
    let ours = unsafe { ours(file) };
    ours.unless_cut(ffi::SQLITE_IOERR_FSTAT, || {
        // SAFETY: see the module's invariant.
        unsafe { forward!(real(file), xFileSize(size) or ffi::SQLITE_IOERR_FSTAT) }
    })
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    let ours = unsafe { ours(file) };
    ours.unless_cut(ffi::SQLITE_IOERR_LOCK, || {
        // SAFETY: see the module's invariant.
        unsafe { forward!(real(file), xLock(level) or ffi::SQLITE_IOERR_LOCK) }
    })
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(real(file), xUnlock(level) or ffi::SQLITE_IOERR_UNLOCK) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: see the module's invariant.
    let ours = unsafe { ours(file) };
    ours.unless_cut(ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, || {
        // SAFETY: see the module's invariant.
        unsafe { forward!(real(file), xCheckReservedLock(out) or ffi::SQLITE_IOERR_CHECKRESERVEDLOCK) }
    })
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, control: c_int, argument: *mut c_void) -> c_int {
    match control {
        // These change a file, or let it be changed, other than by the writes and truncations that are recorded. SQLite
        // does without them.
        ffi::SQLITE_FCNTL_SIZE_HINT
        | ffi::SQLITE_FCNTL_CHUNK_SIZE
        | ffi::SQLITE_FCNTL_MMAP_SIZE
        | ffi::SQLITE_FCNTL_NULL_IO
        | ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE
        | ffi::SQLITE_FCNTL_COMMIT_ATOMIC_WRITE
        | ffi::SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE => ffi::SQLITE_NOTFOUND,
        // SAFETY: see the module's invariant.
        _ => unsafe { forward!(real(file), xFileControl(control, argument) or ffi::SQLITE_NOTFOUND) },
    }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: see the module's invariant. 0 is SQLite's own default.
    unsafe { forward!(real(file), xSectorSize() or 0) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // A crash image keeps none of the other promises that a disk may make, such as that writes of some size are atomic.
    let kept = ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | ffi::SQLITE_IOCAP_SUBPAGE_READ
        | ffi::SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
    // SAFETY: see the module's invariant.
    kept & unsafe { forward!(real(file), xDeviceCharacteristics() or 0) }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: see the module's invariant.
    let ours = unsafe { ours(file) };
    ours.unless_cut(ffi::SQLITE_IOERR_SHMMAP, || {
        // SAFETY: see the module's invariant.
        unsafe { forward!(real(file), xShmMap(region, bytes, extend, out) or ffi::SQLITE_IOERR_SHMMAP) }
    })
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(real(file), xShmLock(offset, count, flags) or ffi::SQLITE_IOERR_SHMLOCK) }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: see the module's invariant.
    unsafe { forward!(real(file), xShmBarrier() or ()) }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: see the module's invariant.
    unsafe { forward!(real(file), xShmUnmap(delete) or ffi::SQLITE_OK) }
}
