//! What the setup makes, and that it can be undone.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::command::{Ended, tool};
use crate::machine::{HALTS, Machine};

fn setup(machine: &Machine, args: &[&str]) -> Ended {
    tool(machine.program().to_str().unwrap(), &[&["setup", "--system"], args].concat())
}

fn lists() -> [String; 2] {
    ["/etc/passwd", "/etc/group"].map(|path| fs::read_to_string(path).unwrap())
}

/// What the lists were before.
const BEFORE: [&str; 2] = ["/run/test/passwd", "/run/test/group"];

pub(crate) fn made_as_said(machine: &Machine) {
    for (path, list) in BEFORE.iter().zip(lists()) {
        fs::write(path, list).unwrap();
    }
    setup(machine, &[]).has(2, &["--yes"]);
    let said = setup(machine, &["--print"]).has(0, &[]).stdout;
    assert_eq!(lists(), BEFORE.map(|path| fs::read_to_string(path).unwrap()), "it only says");
    assert!(!fs::exists("/var/lib/estop").unwrap());
    for line in
        ["add group estop-operators", "add user estop ", "folder /var/lib/estop/halts/inbox 3775 estop:estop-operators"]
    {
        assert!(said.contains(line), "{said}");
    }
    let done = setup(machine, &["--yes"]).has(0, &[]).stdout;
    assert!(done.starts_with(&said), "{done}");
    setup(machine, &["--yes"]).has(0, &["nothing to do"]);

    let [uid, gid] = ["-u", "-g"].map(|what| tool("id", &[what, "estop"]).stdout.trim().parse::<u32>().unwrap());
    let operators: u32 =
        tool("getent", &["group", "estop-operators"]).stdout.split(':').nth(2).unwrap().parse().unwrap();
    for (path, mode, owner, group) in [
        ("/var/lib/estop", 0o755, 0, 0),
        ("/var/lib/estop/home", 0o700, uid, gid),
        (HALTS, 0o755, 0, 0),
        ("/var/lib/estop/halts/latched", 0o755, uid, gid),
        ("/var/lib/estop/halts/inbox", 0o3775, uid, operators),
        ("/run/estop", 0o755, 0, 0),
        (&format!("/run/estop/{uid}"), 0o755, uid, gid),
    ] {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, owner, group), "{path}");
    }
    let unit = fs::read_to_string("/etc/systemd/system/estop.service").unwrap();
    assert!(unit.contains(&format!("ExecStart={} serve", machine.program().display())), "{unit}");
    assert!(
        fs::read_to_string("/etc/tmpfiles.d/estop.conf").unwrap().contains(&format!("/run/estop/{uid} 0755 estop"))
    );
    // What has been damaged is mended.
    tool("chmod", &["777", "/var/lib/estop/halts/latched"]).has(0, &[]);
    setup(machine, &["--yes"]).has(0, &[]);
    assert_eq!(fs::metadata("/var/lib/estop/halts/latched").unwrap().mode() & 0o7777, 0o755);
}

/// Somebody who is not root changes nothing, and everybody is told the mode.
pub(crate) fn seen_as_service(machine: &Machine) {
    fs::remove_file("/etc/tmpfiles.d/estop.conf").unwrap();
    machine.estop("op", &["setup", "--system", "--yes"]).has(6, &["root"]);
    setup(machine, &["--yes"]).has(0, &[]);
    machine.estop("out", &[]).has(0, &["personal mode"]);
    let host = machine.serve();
    machine.estop("op", &[]).has(0, &["service mode", "/run/estop/"]);
    let seen = machine.ps("op");
    assert_eq!((&seen["hosts"][0]["mode"], &seen["hosts"][0]["user"]), (&json!("service"), &json!("estop")), "{seen}");
    for socket in ["operator.sock", "admin.sock", "agent.sock"] {
        assert_eq!(fs::metadata(machine.socket(&host, socket)).unwrap().mode() & 0o777, 0o660);
    }
    assert_eq!(fs::metadata(machine.socket(&host, "lock")).unwrap().mode() & 0o777, 0o600);
    drop(host);
    // Who cannot clear it away sees all the same that nobody is there.
    let seen = machine.ps("op");
    assert_eq!((&seen["hosts"], &seen["unseen"]), (&json!([]), &json!([])), "{seen}");
}

pub(crate) fn undone(machine: &Machine) {
    machine.remove_users();
    // A halt that is in force stays so, and nobody who gets the number can take it away.
    let halted = tool(machine.program().to_str().unwrap(), &["halt", "--tool", "kept", "--home", "/run/test/root"]);
    assert!(halted.stdout.contains("on this machine"), "{halted:?}");
    let said = setup(machine, &["--undo", "--yes"]).has(0, &["left: /var/lib/estop/halts", "left: /etc/estop.toml"]);
    assert!(said.stdout.contains("remove user estop"), "{said:?}");
    assert_eq!(lists(), BEFORE.map(|path| fs::read_to_string(path).unwrap()));
    for path in ["/run/estop", "/etc/systemd/system/estop.service", "/etc/tmpfiles.d/estop.conf"] {
        assert!(!fs::exists(path).unwrap(), "{path}");
    }
    let [halt] = &machine.latched()[..] else { panic!("{:?}", machine.latched()) };
    for path in [HALTS, &format!("{HALTS}/latched"), &format!("{HALTS}/latched/{halt}.json"), "/var/lib/estop/home"] {
        assert_eq!(fs::metadata(path).unwrap().uid(), 0, "{path}");
    }
    setup(machine, &["--undo", "--yes"]).has(0, &["nothing to do"]);
    // And again, on what was left.
    setup(machine, &["--yes"]).has(0, &[]);
    let uid = tool("id", &["-u", "estop"]).stdout.trim().parse::<u32>().unwrap();
    assert_eq!(fs::metadata("/var/lib/estop/home/estop.db").unwrap().uid(), uid);
    setup(machine, &["--undo", "--purge", "--yes"]).has(0, &[]);
    assert!(!fs::exists("/var/lib/estop").unwrap());
    assert!(
        !fs::exists("/etc/estop.toml").unwrap() || fs::read_to_string("/etc/estop.toml").unwrap().contains("runaway")
    );
    assert_eq!(lists(), BEFORE.map(|path| fs::read_to_string(path).unwrap()));
}
