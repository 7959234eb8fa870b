//! Who is who: the actor of what people do.

use std::io::Read;

/// What is read of the list of users (bytes).
const USERS_BYTES_MAX: u64 = 1 << 20;

/// The login name of a user, or the number if there is no name.
pub(crate) fn name(uid: u32) -> String {
    // Not from the environment, which says whatever somebody has put there.
    let mut users = String::new();
    let read =
        std::fs::File::open("/etc/passwd").and_then(|file| file.take(USERS_BYTES_MAX).read_to_string(&mut users));
    let named = read.ok().and_then(|_| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
    });
    named.unwrap_or_else(|| format!("uid-{uid}"))
}

/// That of the user whose process this is.
#[cfg(feature = "cli")]
pub(crate) fn own() -> String {
    name(rustix::process::getuid().as_raw())
}
