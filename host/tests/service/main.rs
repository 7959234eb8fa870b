//! Service mode: separate users for the host, its operators, admins and agents. On a copy of the machine's users and folders
//! that this process alone sees, so it runs as root only.

#[path = "../log/command.rs"]
mod command;
mod crisis;
mod machine;
mod rights;
mod setup;

use std::process::{Command, Stdio};

use estop_tests::guests;

use crate::command::Running;
use crate::machine::Machine;

/// Where guests are, for the process inside.
const GUESTS: &str = "ESTOP_TEST_GUESTS";
/// What must not change.
const LISTS: [&str; 3] = ["/etc/passwd", "/etc/group", "/etc/shadow"];

/// Shows 3 and rows 35 and 37.
#[test]
fn users_are_kept_apart() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: service mode is tested as root only, because users are made for it");
        return;
    }
    let lists = || LISTS.map(|path| std::fs::read(path).unwrap());
    let before = (lists(), std::fs::exists("/var/lib/estop").unwrap(), std::fs::exists("/run/estop").unwrap());
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "inside", "--ignored", "--nocapture"]);
    inside.env(GUESTS, guests::path("runaway").parent().unwrap());
    inside.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = Running::start(inside).ended();
    println!("{}", ended.stdout);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("everything was tried"), "{ended:?}");
    let after = (lists(), std::fs::exists("/var/lib/estop").unwrap(), std::fs::exists("/run/estop").unwrap());
    assert_eq!(after, before, "the machine itself has changed");
}

#[test]
#[ignore = "the process inside"]
fn inside() {
    let Some(guests) = std::env::var_os(GUESTS) else { return };
    let machine = Machine::new(guests.as_ref());
    setup::made_as_said(&machine);
    machine.add_users();
    setup::seen_as_service(&machine);
    crisis::dropped_where_nobody_takes_it(&machine);
    {
        let host = machine.serve();
        rights::operators_list_stop_and_halt(&machine);
        rights::every_other_verb_is_refused_and_entered(&machine, &host);
        rights::agents_are_who_they_are(&machine, &host);
        rights::strangers_can_do_nothing(&machine, &host);
        crisis::it_holds_for_everybody_until_it_is_lifted(&machine, host);
    }
    crisis::what_operators_halt_is_the_machines(&machine);
    crisis::nobody_is_killed_for_another(&machine);
    setup::undone(&machine);
    println!("everything was tried");
}
