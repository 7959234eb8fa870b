//! `wasi:filesystem` over the workspaces that a call was granted, in the place of Wasmtime's own.
//!
//! Invariant: what a guest changes is in the overlay of its call and nowhere else, and no function waits for a disk on the
//! thread of a guest.

mod convert;
mod streams;

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;
use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi_io::streams::{DynInputStream, DynOutputStream};

use self::bindings::wasi::filesystem::preopens;
use self::bindings::wasi::filesystem::types::{self, ErrorCode};
use self::convert::{kind, moment, new_time, status};
use self::streams::{Input, Output};
use crate::call::live::HostCall;
use crate::sandbox::CallCtx;
use crate::workspace::{Files, Listing, NodeId, Open, READ_BYTES_MAX, Time};

#[allow(missing_docs, unreachable_pub, reason = "generated; the WIT has the documentation")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "wit-wasi",
        world: "files",
        imports: { default: async | trappable },
        with: {
            "wasi:io": wasmtime_wasi_io::bindings::wasi::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:filesystem/types.descriptor": super::Descriptor,
            "wasi:filesystem/types.directory-entry-stream": super::Entries,
        },
        trappable_error_type: { "wasi:filesystem/types.error-code" => super::FsError },
    });
}

/// Links what is in the place of Wasmtime's own.
pub(super) fn add_to_linker(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    types::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    preopens::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What a function answers to the guest, or why the call cannot go on.
#[expect(unreachable_pub, reason = "the generated bindings use it")]
pub enum FsError {
    Code(ErrorCode),
    Trap(wasmtime::Error),
}

impl From<Errno> for FsError {
    fn from(error: Errno) -> Self {
        FsError::Code(convert::code(error))
    }
}

impl From<wasmtime::component::ResourceTableError> for FsError {
    fn from(error: wasmtime::component::ResourceTableError) -> Self {
        FsError::Trap(error.into())
    }
}

type FsResult<T> = Result<T, FsError>;

/// Something in a workspace that is open, for as long as a descriptor or a stream needs it.
pub(crate) struct Opened {
    files: Arc<Files>,
    node: NodeId,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.files.overlay().close(self.node);
    }
}

/// What a guest has open.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Descriptor {
    opened: Arc<Opened>,
    is_directory: bool,
    may_read: bool,
    may_write: bool,
}

impl Descriptor {
    fn new(files: &Arc<Files>, node: NodeId, may_read: bool, may_write: bool) -> Result<Self, Errno> {
        let opened = Arc::new(Opened { files: Arc::clone(files), node });
        let is_directory = files.overlay().kind(node)? == FileType::Directory;
        Ok(Self { opened, is_directory, may_read, may_write })
    }

    fn file(&self) -> Result<&Arc<Opened>, Errno> {
        if self.is_directory { Err(Errno::BADF) } else { Ok(&self.opened) }
    }

    fn directory(&self) -> Result<&Arc<Opened>, Errno> {
        if self.is_directory { Ok(&self.opened) } else { Err(Errno::NOTDIR) }
    }

    fn written(&self) -> Result<&Arc<Opened>, Errno> {
        self.file().and_then(|file| if self.may_write { Ok(file) } else { Err(Errno::BADF) })
    }
}

/// The rest of a listing.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Entries(Listing);

impl CallCtx {
    fn at(&self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<Opened>> {
        Ok(Arc::clone(self.table.get(descriptor)?.directory()?))
    }

    fn opened(&self, descriptor: &Resource<Descriptor>) -> FsResult<Arc<Opened>> {
        Ok(Arc::clone(&self.table.get(descriptor)?.opened))
    }

    fn files_now(&self) -> Time {
        moment(self.core.clock.wall())
    }
}

impl preopens::Host for CallCtx {
    async fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let mut all = Vec::new();
        for (at, files) in self.transaction.workspaces.granted() {
            let (root, is_read_only) = {
                let mut overlay = files.overlay();
                let root = overlay.root();
                overlay.open(root)?;
                (root, overlay.is_read_only())
            };
            let descriptor = Descriptor::new(files, root, true, !is_read_only)?;
            all.push((self.table.push(descriptor)?, at.to_owned()));
        }
        Ok(all)
    }
}

impl types::Host for CallCtx {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        match error {
            FsError::Code(code) => Ok(code),
            FsError::Trap(error) => Err(error),
        }
    }

    async fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<Errno>().map(|error| convert::code(*error)))
    }
}

impl types::HostDescriptor for CallCtx {
    async fn read_via_stream(&mut self, fd: Resource<Descriptor>, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let descriptor = self.table.get(&fd)?;
        if descriptor.is_directory {
            return Err(ErrorCode::IsDirectory.into());
        }
        let stream = Input::new(Arc::clone(descriptor.file()?), offset, descriptor.may_read);
        Ok(self.table.push(Box::new(stream) as DynInputStream)?)
    }

    async fn write_via_stream(&mut self, fd: Resource<Descriptor>, offset: u64) -> FsResult<Resource<DynOutputStream>> {
        let file = Arc::clone(self.table.get(&fd)?.written()?);
        let stream = Output::new(file, Some(offset), Arc::clone(&self.core));
        Ok(self.table.push(Box::new(stream) as DynOutputStream)?)
    }

    async fn append_via_stream(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        let file = Arc::clone(self.table.get(&fd)?.written()?);
        let stream = Output::new(file, None, Arc::clone(&self.core));
        Ok(self.table.push(Box::new(stream) as DynOutputStream)?)
    }

    async fn advise(&mut self, fd: Resource<Descriptor>, _: u64, _: u64, _: types::Advice) -> FsResult<()> {
        self.table.get(&fd)?.file()?;
        Ok(())
    }

    async fn sync_data(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        self.sync(fd).await
    }

    async fn sync(&mut self, fd: Resource<Descriptor>) -> FsResult<()> {
        // What lasts is decided by the commit.
        self.table.get(&fd)?;
        Ok(())
    }

    async fn get_flags(&mut self, fd: Resource<Descriptor>) -> FsResult<types::DescriptorFlags> {
        let descriptor = self.table.get(&fd)?;
        let write = match descriptor.is_directory {
            true => types::DescriptorFlags::MUTATE_DIRECTORY,
            false => types::DescriptorFlags::WRITE,
        };
        let when = |may: bool, flag| if may { flag } else { types::DescriptorFlags::empty() };
        Ok(when(descriptor.may_read, types::DescriptorFlags::READ) | when(descriptor.may_write, write))
    }

    async fn get_type(&mut self, fd: Resource<Descriptor>) -> FsResult<types::DescriptorType> {
        let opened = self.opened(&fd)?;
        let kind_of = opened.files.overlay().kind(opened.node)?;
        Ok(kind(kind_of))
    }

    async fn set_size(&mut self, fd: Resource<Descriptor>, size: u64) -> FsResult<()> {
        let descriptor = self.table.get(&fd)?;
        let file = Arc::clone(descriptor.file()?);
        if !descriptor.may_write {
            return Err(Errno::INVAL.into());
        }
        let now = self.files_now();
        Ok(file.files.run(|overlay| overlay.set_size(file.node, size, now)).await?)
    }

    async fn set_times(
        &mut self,
        fd: Resource<Descriptor>,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        let (opened, now) = (self.opened(&fd)?, self.files_now());
        let (accessed, modified) = (new_time(accessed, now)?, new_time(modified, now)?);
        Ok(opened.files.run(|overlay| overlay.set_times(opened.node, accessed, modified, now)).await?)
    }

    async fn read(&mut self, fd: Resource<Descriptor>, length: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        let descriptor = self.table.get(&fd)?;
        let file = Arc::clone(descriptor.file()?);
        if !descriptor.may_read {
            return Err(Errno::BADF.into());
        }
        let _in = self.call.live.enter(HostCall::Files);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX).min(READ_BYTES_MAX);
        let data = file.files.read(file.node, offset, bytes).await?;
        let is_end = data.is_empty();
        Ok((data, is_end))
    }

    async fn write(&mut self, fd: Resource<Descriptor>, data: Vec<u8>, offset: u64) -> FsResult<u64> {
        let file = Arc::clone(self.table.get(&fd)?.written()?);
        let now = self.files_now();
        let _in = self.call.live.enter(HostCall::Files);
        file.files.run(|overlay| overlay.write(file.node, Some(offset), &data, now)).await?;
        Ok(data.len() as u64)
    }

    async fn read_directory(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<Entries>> {
        let opened = self.at(&fd)?;
        let _in = self.call.live.enter(HostCall::Files);
        let entries = opened.files.list(opened.node).await?;
        Ok(self.table.push(Entries(entries))?)
    }

    async fn create_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (at, now) = (self.at(&fd)?, self.files_now());
        Ok(at.files.run(|overlay| overlay.create_directory(at.node, path.as_bytes(), now)).await?)
    }

    async fn stat(&mut self, fd: Resource<Descriptor>) -> FsResult<types::DescriptorStat> {
        let opened = self.opened(&fd)?;
        Ok(status(opened.files.run(|overlay| overlay.status(opened.node)).await?))
    }

    async fn stat_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        let (at, follow) = (self.at(&fd)?, flags.contains(types::PathFlags::SYMLINK_FOLLOW));
        Ok(status(at.files.run(|overlay| overlay.status_at(at.node, path.as_bytes(), follow)).await?))
    }

    async fn set_times_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        path: String,
        accessed: types::NewTimestamp,
        modified: types::NewTimestamp,
    ) -> FsResult<()> {
        let (at, now) = (self.at(&fd)?, self.files_now());
        let follow = flags.contains(types::PathFlags::SYMLINK_FOLLOW);
        let times = (new_time(accessed, now)?, new_time(modified, now)?);
        Ok(at.files.run(|overlay| overlay.set_times_at(at.node, path.as_bytes(), follow, times, now)).await?)
    }

    async fn link_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        path: String,
        to: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let (from, to, now) = (self.at(&fd)?, self.at(&to)?, self.files_now());
        if flags.contains(types::PathFlags::SYMLINK_FOLLOW) {
            return Err(Errno::INVAL.into());
        }
        if !Arc::ptr_eq(&from.files, &to.files) {
            return Err(Errno::XDEV.into());
        }
        let (path, new_path) = (path.as_bytes(), new_path.as_bytes());
        Ok(from.files.run(|overlay| overlay.link(from.node, path, to.node, new_path, now)).await?)
    }

    async fn open_at(
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        use types::{DescriptorFlags, OpenFlags};
        let (at, now) = (self.at(&fd)?, self.files_now());
        let synced = DescriptorFlags::FILE_INTEGRITY_SYNC
            | DescriptorFlags::DATA_INTEGRITY_SYNC
            | DescriptorFlags::REQUESTED_WRITE_SYNC;
        if flags.intersects(synced) {
            return Err(ErrorCode::Unsupported.into());
        }
        let how = Open {
            follow: path_flags.contains(types::PathFlags::SYMLINK_FOLLOW),
            create: open_flags.contains(OpenFlags::CREATE),
            exclusive: open_flags.contains(OpenFlags::EXCLUSIVE),
            directory: open_flags.contains(OpenFlags::DIRECTORY),
            truncate: open_flags.contains(OpenFlags::TRUNCATE),
            write: flags.contains(DescriptorFlags::WRITE),
        };
        let _in = self.call.live.enter(HostCall::Files);
        let node = at.files.run(|overlay| overlay.open_at(at.node, path.as_bytes(), how, now)).await?;
        let may_read = flags.contains(DescriptorFlags::READ) || !flags.contains(DescriptorFlags::WRITE);
        let descriptor = Descriptor::new(&at.files, node, may_read, how.write || how.create || how.truncate)?;
        Ok(self.table.push(descriptor)?)
    }

    async fn readlink_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<String> {
        let at = self.at(&fd)?;
        let target = at.files.run(|overlay| overlay.read_link(at.node, path.as_bytes())).await?;
        let target = target.into_string().map_err(|_| ErrorCode::IllegalByteSequence)?;
        // As it leads out of the workspace, it is nothing that a guest is to know.
        if target.starts_with('/') { Err(Errno::PERM.into()) } else { Ok(target) }
    }

    async fn remove_directory_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (at, now) = (self.at(&fd)?, self.files_now());
        Ok(at.files.run(|overlay| overlay.remove_directory(at.node, path.as_bytes(), now)).await?)
    }

    async fn rename_at(
        &mut self,
        fd: Resource<Descriptor>,
        path: String,
        to: Resource<Descriptor>,
        new_path: String,
    ) -> FsResult<()> {
        let (from, to, now) = (self.at(&fd)?, self.at(&to)?, self.files_now());
        if !Arc::ptr_eq(&from.files, &to.files) {
            return Err(Errno::XDEV.into());
        }
        let (path, new_path) = (path.as_bytes(), new_path.as_bytes());
        Ok(from.files.run(|overlay| overlay.rename(from.node, path, to.node, new_path, now)).await?)
    }

    async fn symlink_at(&mut self, fd: Resource<Descriptor>, target: String, path: String) -> FsResult<()> {
        let (at, now) = (self.at(&fd)?, self.files_now());
        let (target, path) = (target.as_bytes(), path.as_bytes());
        Ok(at.files.run(|overlay| overlay.create_link(at.node, target, path, now)).await?)
    }

    async fn unlink_file_at(&mut self, fd: Resource<Descriptor>, path: String) -> FsResult<()> {
        let (at, now) = (self.at(&fd)?, self.files_now());
        Ok(at.files.run(|overlay| overlay.unlink_file(at.node, path.as_bytes(), now)).await?)
    }

    async fn is_same_object(
        &mut self,
        one: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        let (one, other) = (&self.table.get(&one)?.opened, &self.table.get(&other)?.opened);
        Ok(Arc::ptr_eq(&one.files, &other.files) && one.node == other.node)
    }

    async fn metadata_hash(&mut self, fd: Resource<Descriptor>) -> FsResult<types::MetadataHashValue> {
        let opened = self.opened(&fd)?;
        let identity = opened.files.overlay().identity(opened.node)?;
        Ok(convert::hash(identity))
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Resource<Descriptor>,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        let (at, follow) = (self.at(&fd)?, flags.contains(types::PathFlags::SYMLINK_FOLLOW));
        Ok(convert::hash(at.files.run(|overlay| overlay.identity_at(at.node, path.as_bytes(), follow)).await?))
    }

    async fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.table.delete(fd)?;
        Ok(())
    }
}

impl types::HostDirectoryEntryStream for CallCtx {
    async fn read_directory_entry(&mut self, entries: Resource<Entries>) -> FsResult<Option<types::DirectoryEntry>> {
        let Some((name, kind_of)) = self.table.get_mut(&entries)?.0.next() else { return Ok(None) };
        let name = name.into_string().map_err(|_| ErrorCode::IllegalByteSequence)?;
        Ok(Some(types::DirectoryEntry { type_: kind(kind_of), name }))
    }

    async fn drop(&mut self, entries: Resource<Entries>) -> wasmtime::Result<()> {
        self.table.delete(entries)?;
        Ok(())
    }
}

impl From<ErrorCode> for FsError {
    fn from(code: ErrorCode) -> Self {
        FsError::Code(code)
    }
}
