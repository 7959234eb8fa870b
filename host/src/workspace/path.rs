//! Paths as guests write them.

use std::ffi::OsString;

use rustix::io::Errno;

/// Length of a path (bytes), as in the kernel.
const PATH_BYTES_MAX: usize = 4095;
/// Length of a name (bytes), as in the file systems that there are.
const NAME_BYTES_MAX: usize = 255;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Name(OsString),
    /// `.`
    Here,
    /// `..`
    Up,
}

/// The steps of a path from a directory, the first one last; and whether it has to end at a directory.
pub(super) fn steps(path: &[u8]) -> Result<(Vec<Step>, bool), Errno> {
    use std::os::unix::ffi::OsStringExt;
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    if path.contains(&0) {
        return Err(Errno::INVAL);
    }
    if path[0] == b'/' {
        return Err(Errno::PERM);
    }
    let mut steps = Vec::new();
    for name in path.split(|byte| *byte == b'/').rev() {
        steps.push(match name {
            b"" => continue,
            b"." => Step::Here,
            b".." => Step::Up,
            name if name.len() > NAME_BYTES_MAX => return Err(Errno::NAMETOOLONG),
            name => Step::Name(OsString::from_vec(name.to_vec())),
        });
    }
    Ok((steps, path.ends_with(b"/")))
}
