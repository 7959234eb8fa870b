//! What service mode consists of, in the order in which it is made; and the way back.

use std::path::PathBuf;

use anyhow::Context;

use super::made::Made;
use super::step::{Owner, Step};
use crate::control::protocol::Role;
use crate::user;

/// Whom the host runs as; its own group is called the same.
const USER: &str = "estop";
/// Of the roles. The user is in all of them, so that it can give them its sockets.
const GROUPS: [&str; 3] = [Role::Operator.group(), Role::Admin.group(), Role::Agent.group()];
const HOME: &str = "/var/lib/estop/home";
const UNIT: &str = "estop.service";
const UNIT_FILE: &str = "/etc/systemd/system/estop.service";
const TMPFILES: &str = "/etc/tmpfiles.d/estop.conf";
pub(super) const CONFIG: &str = "/etc/estop.toml";

const ROOTS: Owner = Owner { user: "root", group: "root" };
const ITS: Owner = Owner { user: USER, group: USER };
const INBOX: Owner = Owner { user: USER, group: Role::Operator.group() };

/// What stays when a setup is undone, if it was made: halts, state and log.
pub(super) fn kept(made: &Made) -> Vec<PathBuf> {
    let mut folders: Vec<_> = made.of("folder").into_iter().map(PathBuf::from).collect();
    folders.retain(|folder| !folder.starts_with("/run"));
    // As they were made.
    folders.reverse();
    folders
}

/// Everything that has to be there.
pub(super) fn setup() -> anyhow::Result<Vec<Step>> {
    let folder = |path: &str, mode, owner| Step::Folder { path: path.into(), mode, owner };
    let mut steps = vec![folder("/var/lib/estop", 0o755, ROOTS), Step::AddGroup(USER)];
    steps.extend(GROUPS.map(Step::AddGroup));
    steps.push(Step::AddUser { user: USER, home: HOME, groups: &GROUPS });
    if user::number(USER).is_some() {
        steps.extend(GROUPS.map(|group| Step::Join { user: USER, group }));
    }
    steps.extend([
        folder(HOME, 0o700, ITS),
        // Root's, so that nobody can put something else in the place of what is in it.
        folder("/var/lib/estop/halts", 0o755, ROOTS),
        folder("/var/lib/estop/halts/latched", 0o755, ITS),
        // Operators may drop, and take nothing of others; whoever is here may read.
        folder("/var/lib/estop/halts/inbox", 0o3775, INBOX),
        Step::File { path: TMPFILES.into(), text: tmpfiles },
        Step::File { path: CONFIG.into(), text: || Ok(DEFAULT.to_owned()) },
        Step::File { path: UNIT_FILE.into(), text: unit },
        // Also without tmpfiles, and before the next start of the machine.
        folder("/run/estop", 0o755, ROOTS),
        Step::RunFolder { user: USER },
        Step::Reload,
    ]);
    // Reloading is for a unit that is new.
    if steps.iter().all(|step| matches!(step, Step::Reload) || step.is_done()) {
        steps.clear();
    }
    Ok(steps)
}

/// What an earlier setup has made, the last first.
pub(super) fn undo(made: &Made, purge: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut files = made.of("file");
    // Somebody has put work into it.
    let is_theirs = std::fs::read_to_string(CONFIG).is_ok_and(|text| text != DEFAULT);
    files.retain(|file| purge || !is_theirs || file != CONFIG);
    if files.iter().any(|file| file == UNIT_FILE) {
        steps.push(Step::Disable(UNIT));
    }
    let is_reloaded = !files.is_empty();
    steps.extend(files.into_iter().map(|file| Step::RemoveFile(file.into())));
    if is_reloaded {
        steps.push(Step::Reload);
    }
    for folder in made.of("folder").into_iter().map(PathBuf::from) {
        if purge || folder.starts_with("/run") {
            steps.push(Step::RemoveFolder(folder));
        } else {
            steps.push(Step::Keep { path: folder });
        }
    }
    steps.extend(made.of("user").into_iter().map(Step::RemoveUser));
    steps.extend(made.of("group").into_iter().map(Step::RemoveGroup));
    if steps.iter().all(|step| matches!(step, Step::Reload) || step.is_done()) {
        steps.clear();
    }
    steps
}

fn tmpfiles() -> anyhow::Result<String> {
    let uid = user::number(USER).context("there is no user estop")?;
    Ok(format!("d /run/estop 0755 root root -\nd /run/estop/{uid} 0755 {USER} {USER} -\n"))
}

/// As it comes with estop, with the path of this very program.
fn unit() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot say where this program is")?;
    // Homes are hidden from the service.
    let is_fit =
        |path: &&str| !path.contains(char::is_whitespace) && !["/home/", "/root/"].iter().any(|p| path.starts_with(p));
    let program = program.to_str().filter(is_fit);
    let program =
        program.context("this program is in a place that the service cannot use; install it in /usr/local/bin")?;
    Ok(include_str!("../../../systemd/estop.service").replace("/usr/local/bin/estop", program))
}

const DEFAULT: &str = "\
# What the host of this machine serves. `estop serve --help` says what there is to write; `systemctl reload estop` reads it.
#
# [tools.notes]
# path = \"/usr/local/lib/estop/memory.wasm\"
";
