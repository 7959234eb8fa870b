//! Who sits at this terminal: the actor of what is done here.

/// The login name of the user whose process this is, or the number if there is no name.
pub(super) fn name() -> String {
    let uid = rustix::process::getuid().as_raw();
    // Not from the environment, which says whatever somebody has put there.
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid-{uid}"))
}
