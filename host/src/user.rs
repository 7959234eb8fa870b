//! Who is who: the actor of what people do.

use std::io::Read;

/// What is read of the list of users, or of groups (bytes).
const LIST_BYTES_MAX: u64 = 1 << 20;

/// The login name of a user, or the number if there is no name.
pub(crate) fn name(uid: u32) -> String {
    // Not from the environment, which says whatever somebody has put there.
    let named = field("/etc/passwd", |name, id| (id.parse() == Ok(uid)).then(|| name.to_owned()));
    named.unwrap_or_else(|| format!("uid-{uid}"))
}

/// The number of a user.
#[cfg(feature = "cli")]
pub(crate) fn number(user: &str) -> Option<u32> {
    field("/etc/passwd", |name, id| (name == user).then(|| id.parse().ok())).flatten()
}

/// The number of a group.
#[cfg(feature = "control")]
pub(crate) fn group(group: &str) -> Option<u32> {
    field("/etc/group", |name, id| (name == group).then(|| id.parse().ok())).flatten()
}

/// Whether a group lists a user.
#[cfg(feature = "cli")]
pub(crate) fn is_member(user: &str, group: &str) -> bool {
    lines("/etc/group").unwrap_or_default().lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some(group) && fields.nth(2).is_some_and(|users| users.split(',').any(|other| other == user))
    })
}

/// The first line that is the one, by its name and number.
fn field<T>(list: &str, is_it: impl Fn(&str, &str) -> Option<T>) -> Option<T> {
    lines(list)?.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        is_it(name, fields.nth(1)?)
    })
}

fn lines(list: &str) -> Option<String> {
    let mut lines = String::new();
    std::fs::File::open(list).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut lines)).ok()?;
    Some(lines)
}

/// That of the user whose process this is.
#[cfg(feature = "cli")]
pub(crate) fn own() -> String {
    name(rustix::process::getuid().as_raw())
}
