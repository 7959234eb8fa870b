//! Random operations on an overlay and on a real directory side by side: the same answers, the same tree after a commit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::HIDDEN;
use super::base::{Base, Time, Wait};
use super::commit::{recover, stage};
use super::files::Files;
use super::overlay::{Open, Overlay, WorkspaceLimits};
use super::stage::StageError;
use crate::store::Decisions;

/// Keeps decisions in memory.
#[derive(Default)]
struct Kept(Mutex<HashMap<String, Option<String>>>);

impl Kept {
    fn decide(&self, id: &str, digest: &str) {
        self.0.lock().unwrap().insert(id.into(), Some(digest.into()));
    }
}

impl Decisions for Kept {
    fn store(&self) -> &str {
        "here"
    }

    fn place(&self) -> String {
        "here".into()
    }

    fn resolve(&self, id: &str, _: &Path) -> Result<Option<String>, crate::store::StoreError> {
        Ok(self.0.lock().unwrap().entry(id.into()).or_default().clone())
    }

    fn forget(&self, id: &str) -> Result<(), crate::store::StoreError> {
        self.0.lock().unwrap().remove(id);
        Ok(())
    }
}

const NOW: Time = Time { s: 1_700_000_000, ns: 0 };

fn files(folder: &Path, limits: WorkspaceLimits) -> Arc<Files> {
    let base = Arc::new(Base::open(folder, HIDDEN).unwrap());
    let root = base.look(Path::new(""), Wait::Allowed).unwrap().unwrap();
    let runtime = tokio::runtime::Handle::current();
    Files::new(base, Overlay::new(root, false, limits), Arc::default(), std::env::temp_dir(), runtime)
}

fn commit(files: &Arc<Files>, kept: &Kept) -> Result<(), StageError> {
    if let Some(staged) = stage(files, Some(kept), &|| false)? {
        if let Some(decision) = staged.decision() {
            kept.decide(&decision.id, &decision.digest);
        }
        staged.carry_out(Some(kept))?;
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Do {
    Make(String),
    Directory(String),
    Link(String, String),
    Hard(String, String),
    Rename(String, String),
    Unlink(String),
    Rmdir(String),
    Write(String, u64, usize),
    Append(String, usize),
    Truncate(String),
    Size(String, u64),
    Read(String, u64, usize),
    Stat(String, bool),
    ReadLink(String),
    List(String),
    Commit,
    /// A nested call begins, and ends: what it has changed is kept, or taken back.
    Begin,
    End(bool),
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        6 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(vec!["..", ".", "old", "dir"]),
    ];
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    (path, prop::bool::weighted(0.05)).prop_map(|(path, slash)| if slash { path + "/" } else { path })
}

fn what() -> impl Strategy<Value = Do> {
    let offset = prop_oneof![
        Just(0_u64),
        0..300_u64,
        60_000..70_000_u64,
        Just(65_536),
        131_000..200_000_u64,
        300_000..900_000_u64
    ];
    let bytes = prop_oneof![1..200_usize, 65_000..66_000_usize, Just(131_072_usize), 200_000..300_000_usize];
    prop_oneof![
        3 => path().prop_map(Do::Make),
        4 => path().prop_map(Do::Directory),
        1 => (path(), path()).prop_map(|(a, b)| Do::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Do::Hard(a, b)),
        4 => (path(), path()).prop_map(|(a, b)| Do::Rename(a, b)),
        2 => path().prop_map(Do::Unlink),
        2 => path().prop_map(Do::Rmdir),
        4 => (path(), offset.clone(), bytes.clone()).prop_map(|(a, b, c)| Do::Write(a, b, c)),
        2 => (path(), bytes.clone()).prop_map(|(a, b)| Do::Append(a, b)),
        1 => path().prop_map(Do::Truncate),
        2 => (path(), offset.clone()).prop_map(|(a, b)| Do::Size(a, b)),
        3 => (path(), offset, bytes).prop_map(|(a, b, c)| Do::Read(a, b, c)),
        2 => (path(), any::<bool>()).prop_map(|(a, b)| Do::Stat(a, b)),
        1 => path().prop_map(Do::ReadLink),
        2 => path().prop_map(Do::List),
        1 => Just(Do::Commit),
        2 => Just(Do::Begin),
        2 => any::<bool>().prop_map(Do::End),
    ]
}

type Answer = Result<String, Errno>;

fn data(bytes: usize, seed: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at as u64).wrapping_mul(31).wrapping_add(seed) as u8).collect()
}

fn in_overlay(files: &Files, what: &Do, seed: u64) -> Answer {
    let root = files.overlay().root();
    let open = |path: &str, how: Open| files.run_here(|overlay| overlay.open_at(root, path.as_bytes(), how, NOW));
    let done = |()| String::new();
    let with = |path: &str, how: Open, work: &dyn Fn(super::node::NodeId) -> Answer| {
        let node = open(path, how)?;
        let is_file = files.overlay().kind(node)? == FileType::RegularFile;
        let answer = if is_file { work(node) } else { Err(Errno::ISDIR) };
        files.overlay().close(node);
        answer
    };
    let write = Open { follow: true, write: true, ..Open::default() };
    match what {
        Do::Make(path) => {
            with(path, Open { create: true, exclusive: true, write: true, ..Open::default() }, &|_| Ok(String::new()))
        }
        Do::Directory(path) => files.run_here(|o| o.create_directory(root, path.as_bytes(), NOW)).map(done),
        Do::Link(target, path) => {
            files.run_here(|o| o.create_link(root, target.as_bytes(), path.as_bytes(), NOW)).map(done)
        }
        Do::Hard(old, new) => files.run_here(|o| o.link(root, old.as_bytes(), root, new.as_bytes(), NOW)).map(done),
        Do::Rename(old, new) => files.run_here(|o| o.rename(root, old.as_bytes(), root, new.as_bytes(), NOW)).map(done),
        Do::Unlink(path) => files.run_here(|o| o.unlink_file(root, path.as_bytes(), NOW)).map(done),
        Do::Rmdir(path) => files.run_here(|o| o.remove_directory(root, path.as_bytes(), NOW)).map(done),
        Do::Write(path, offset, bytes) => with(path, write, &|node| {
            let data = data(*bytes, seed);
            files.run_here(|o| o.write(node, Some(*offset), &data, NOW)).map(|_| String::new())
        }),
        Do::Append(path, bytes) => with(path, write, &|node| {
            let data = data(*bytes, seed);
            files.run_here(|o| o.write(node, None, &data, NOW)).map(|_| String::new())
        }),
        Do::Truncate(path) => with(path, Open { truncate: true, ..write }, &|_| Ok(String::new())),
        Do::Size(path, size) => with(path, write, &|node| files.run_here(|o| o.set_size(node, *size, NOW)).map(done)),
        Do::Read(path, offset, bytes) => with(path, Open { follow: true, ..Open::default() }, &|node| {
            let (mut all, mut at) = (Vec::new(), *offset);
            loop {
                let part = files.read_here(node, at, *bytes - all.len())?;
                if part.is_empty() {
                    return Ok(format!("{:?}", all));
                }
                at += part.len() as u64;
                all.extend(part);
            }
        }),
        Do::Stat(path, follow) => files.run_here(|o| o.status_at(root, path.as_bytes(), *follow)).map(|status| {
            let size = if status.kind == FileType::Directory { 0 } else { status.size };
            format!("{:?} {size}", status.kind)
        }),
        Do::ReadLink(path) => files.run_here(|o| o.read_link(root, path.as_bytes())).map(|link| format!("{link:?}")),
        Do::List(path) => {
            let node = open(path, Open { follow: true, directory: true, ..Open::default() })?;
            let listed = files.run_here(|o| o.list(node));
            files.overlay().close(node);
            listed.map(|listed| format!("{listed:?}"))
        }
        Do::Commit | Do::Begin | Do::End(_) => Ok(String::new()),
    }
}

/// The same by the kernel, which has nothing against `..` at the top: no such path is tried.
fn in_folder(folder: &Path, what: &Do, seed: u64) -> Answer {
    let root = fs::open(folder, OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
    let beneath = fs::ResolveFlags::IN_ROOT;
    let open = |path: &str, flags: OFlags| {
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
        fs::openat2(&root, path, flags, mode, beneath)
    };
    let file = |path: &str, flags: OFlags| -> Result<std::fs::File, Errno> {
        let file = std::fs::File::from(open(path, flags)?);
        if file.metadata().unwrap().is_file() { Ok(file) } else { Err(Errno::ISDIR) }
    };
    use std::os::unix::fs::FileExt;
    let done = |()| String::new();
    let parent = |path: &str| -> Result<(rustix::fd::OwnedFd, String), Errno> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
        let rest = &path[trimmed.len()..];
        Ok((open(parent, OFlags::PATH | OFlags::DIRECTORY)?, format!("{name}{rest}")))
    };
    match what {
        Do::Make(path) => file(path, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).map(|_| String::new()),
        Do::Directory(path) => {
            let (parent, name) = parent(path)?;
            fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map(done)
        }
        Do::Link(target, path) => {
            let (parent, name) = parent(path)?;
            fs::symlinkat(target, parent, name).map(done)
        }
        Do::Hard(old, new) => {
            let (old_parent, old) = parent(old)?;
            fs::statat(&old_parent, &*old, AtFlags::SYMLINK_NOFOLLOW)?;
            let (new_parent, new) = parent(new)?;
            fs::linkat(old_parent, old, new_parent, new, AtFlags::empty()).map(done)
        }
        Do::Rename(old, new) => {
            let ((old_parent, old), (new_parent, new)) = (parent(old)?, parent(new)?);
            fs::renameat(old_parent, old, new_parent, new).map(done)
        }
        Do::Unlink(path) => {
            let (parent, name) = parent(path)?;
            fs::unlinkat(parent, name, AtFlags::empty()).map(done)
        }
        Do::Rmdir(path) => {
            let (parent, name) = parent(path)?;
            fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map(done)
        }
        Do::Write(path, offset, bytes) => {
            file(path, OFlags::WRONLY)?.write_all_at(&data(*bytes, seed), *offset).unwrap();
            Ok(String::new())
        }
        Do::Append(path, bytes) => {
            let file = file(path, OFlags::WRONLY)?;
            file.write_all_at(&data(*bytes, seed), file.metadata().unwrap().len()).unwrap();
            Ok(String::new())
        }
        Do::Truncate(path) => file(path, OFlags::WRONLY | OFlags::TRUNC).map(|_| String::new()),
        Do::Size(path, size) => {
            file(path, OFlags::WRONLY)?.set_len(*size).unwrap();
            Ok(String::new())
        }
        Do::Read(path, offset, bytes) => {
            let file = file(path, OFlags::RDONLY)?;
            let mut all = vec![0; *bytes];
            let mut done = 0;
            while done < *bytes {
                match file.read_at(&mut all[done..], offset + done as u64).unwrap() {
                    0 => break,
                    read => done += read,
                }
            }
            all.truncate(done);
            Ok(format!("{:?}", all))
        }
        Do::Stat(path, follow) => {
            let flags = if *follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
            let stat = fs::fstat(open(path, flags)?)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let size = if kind == FileType::Directory { 0 } else { stat.st_size };
            Ok(format!("{kind:?} {size}"))
        }
        Do::ReadLink(path) => {
            let (parent, name) = parent(path)?;
            let link = fs::readlinkat(parent, name, Vec::new())?;
            Ok(format!("{link:?}"))
        }
        Do::List(path) => {
            let folder = open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut listed: Vec<_> = fs::Dir::new(folder)?
                .map(|entry| entry.unwrap())
                .map(|entry| (std::ffi::OsString::from(entry.file_name().to_str().unwrap()), entry.file_type()))
                .filter(|(name, _)| name != "." && name != "..")
                .collect();
            listed.sort_by(|(one, _), (other, _)| one.cmp(other));
            Ok(format!("{listed:?}"))
        }
        Do::Commit | Do::Begin | Do::End(_) => Ok(String::new()),
    }
}

/// Everything in a folder, hard links aside.
fn tree(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in std::fs::read_dir(&here).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if kind.is_dir() {
                all.push((name, "directory".into()));
                left.push(path);
            } else if kind.is_symlink() {
                all.push((name, format!("link to {:?}", std::fs::read_link(&path).unwrap())));
            } else {
                all.push((name, format!("file {:?}", std::fs::read(&path).unwrap())));
            }
        }
    }
    all.sort();
    all
}

fn fill(folder: &Path) {
    std::fs::create_dir_all(folder.join("old/dir")).unwrap();
    std::fs::create_dir_all(folder.join("a/b")).unwrap();
    std::fs::write(folder.join("old/a"), data(150_000, 7)).unwrap();
    std::fs::write(folder.join("old/dir/b"), data(100, 8)).unwrap();
    std::fs::write(folder.join("a/b/c"), data(65_536, 9)).unwrap();
    std::fs::write(folder.join("b"), b"").unwrap();
    std::os::unix::fs::symlink("old/dir", folder.join("c")).unwrap();
}

/// Afterwards no file has two names any more: an overlay does not know what the base has of them.
fn copy_out_links(folder: &Path) {
    use std::os::unix::fs::MetadataExt;
    for (path, _) in tree(folder) {
        let path = folder.join(path);
        let found = std::fs::symlink_metadata(&path).unwrap();
        if found.is_file() && found.nlink() > 1 {
            let data = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, data).unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn an_overlay_answers_as_a_directory_does(steps in prop::collection::vec(what(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _context = runtime.enter();
        let place = tempfile::tempdir().unwrap();
        let (ours, theirs) = (place.path().join("ours"), place.path().join("theirs"));
        for folder in [&ours, &theirs] {
            std::fs::create_dir(folder).unwrap();
            fill(folder);
        }
        // Small, so that blocks leave the memory.
        let limits = WorkspaceLimits { memory_bytes_max: 0, ..WorkspaceLimits::default() };
        let kept = Kept::default();
        let mut open = files(&ours, limits.clone());
        let mut before: Vec<PathBuf> = Vec::new();
        let ends = [Do::End(true), Do::End(true), Do::End(true), Do::Commit];
        for (number, step) in steps.iter().chain(&ends).enumerate() {
            if matches!(step, Do::Begin) && before.len() < 3 {
                before.push(place.path().join(format!("before-{number}")));
                copy(&theirs, &before[before.len() - 1]);
                open.begin(false);
                continue;
            }
            if let (Do::End(is_kept), Some(was)) = (step, before.last().cloned()) {
                before.pop();
                open.end(*is_kept);
                if !is_kept {
                    std::fs::remove_dir_all(&theirs).unwrap();
                    std::fs::rename(was, &theirs).unwrap();
                }
                continue;
            }
            if matches!(step, Do::Commit) && before.is_empty() {
                commit(&open, &kept).unwrap();
                prop_assert_eq!(tree(&ours), tree(&theirs), "after step {}", number);
                copy_out_links(&ours);
                copy_out_links(&theirs);
                open = files(&ours, limits.clone());
                continue;
            }
            let one = in_overlay(&open, step, number as u64);
            // Out of the workspace there is no way, where the kernel would stay at the top.
            if one == Err(Errno::PERM) {
                continue;
            }
            let other = in_folder(&theirs, step, number as u64);
            prop_assert_eq!(one, other, "step {}: {:?}", number, step);
        }
        recover(&open.base, Some(&kept)).unwrap();
    }
}
