//! Halts of the whole machine: they hold for every user and home, and for the service after every restart.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::command::{PATIENCE, Running, estop, tool};
use crate::machine::{HALTS, Machine, until};

/// Root's home.
const ROOT: &str = "/run/test/root";
const DROPPED: &str = "/var/lib/estop/halts/inbox/stop-it";

/// Without the service nobody latches it: it holds as long as it lies there, for whoever starts.
pub(crate) fn dropped_where_nobody_takes_it(machine: &Machine) {
    machine.short("out", "a", "x").has(0, &[]);
    let spinning = machine.spinning("out", "a");
    machine.run("op", "touch", &[DROPPED]).has(0, &[]);
    assert_eq!(spinning.ended().code, Some(11));
    machine.short("out", "a", "x").has(6, &["on this machine by op"]);
    assert_ne!(machine.run("chief", "rm", &["-f", DROPPED]).code, Some(0));
    machine.run("op", "rm", &[DROPPED]).has(0, &[]);
    machine.short("out", "a", "x").has(0, &[]);
    // One that says what it covers, and one that nobody else can read.
    let scoped = json!({"scope": {"agent": "a"}, "reason": "odd"}).to_string();
    machine.run("op", "sh", &["-c", &format!("echo '{scoped}' > {DROPPED}")]).has(0, &[]);
    machine.short("out", "a", "x").has(0, &[]);
    machine.short("out", "a", "a").has(6, &["odd"]);
    machine.run("op", "chmod", &["0", DROPPED]).has(0, &[]);
    machine.short("out", "a", "x").has(6, &["cannot be read"]);
    machine.run("op", "rm", &["-f", DROPPED]).has(0, &[]);
    machine.short("out", "a", "a").has(0, &[]);
}

pub(crate) fn it_holds_for_everybody_until_it_is_lifted(machine: &Machine, mut host: Running) {
    let (stream, _, _) = machine.spin("ag1", &host);
    let spinning = [machine.spinning("out", "a"), machine.spinning("out", "b")];
    machine.run("op", "touch", &[DROPPED]).has(0, &[]);
    assert!(spinning.into_iter().all(|call| call.ended().code == Some(11)));
    assert!(stream.ended().stdout.contains("halted"));
    until("it is latched", || machine.latched().len() == 1 && !fs::exists(DROPPED).unwrap());
    let [halt] = &machine.latched()[..] else { panic!("it is one halt") };
    let file = format!("{HALTS}/latched/{halt}.json");
    for user in ["op", "chief", "ag1", "out"] {
        assert_ne!(machine.run(user, "rm", &["-f", &file, DROPPED, "/var/lib/estop/home"]).code, Some(0), "{user}");
    }
    let refused = |host: &Running| {
        for (user, place) in [("out", "a"), ("out", "c"), ("op", "a"), ("ag1", "d")] {
            machine.short(user, place, "x").has(6, &["on this machine by op", halt]);
        }
        let (status, _) =
            machine.ask("op", &machine.socket(host, "operator.sock"), "GET", "/v1/halts", &json!(0)).unwrap();
        assert_eq!(status, 200);
        machine.estop("ag1", &["call", "polite", "-i", r#"{"steps":1}"#]).has(6, &[halt]);
    };
    refused(&host);
    let halts = machine.estop("out", &["halts", "--json"]).has(0, &[]).jsons();
    assert_eq!((&halts[0]["machine"], &halts[0]["actor"]), (&json!(true), &json!("op")));

    kill_process(Pid::from_child(&host.child), Signal::KILL).unwrap();
    assert!(host.ends_within(PATIENCE));
    machine.short("out", "a", "x").has(6, &[halt]);
    let host = machine.serve();
    refused(&host);

    machine.estop("op", &["lift", halt, "--reason", "it is fine"]).has(6, &["still in force", "operator.sock"]);
    machine.entered("denied", |entry| entry["verb"] == "lift" && entry["actor"] == "op");
    for user in ["ag1", "out"] {
        assert_eq!(machine.estop(user, &["lift", halt, "--reason", "it is fine"]).code, Some(6));
    }
    refused(&host);
    machine.estop("chief", &["lift", halt, "--reason", "the bug is mended"]).has(0, &["", ""]);
    machine.entered("lift", |entry| entry["actor"] == "chief" && entry["halt"] == **halt);
    assert!(machine.latched().is_empty());
    machine.short("out", "a", "x").has(0, &[]);
    // The service could not load anything while it was halted. It does so by itself.
    until("agents are served again", || {
        machine.estop("ag1", &["call", "polite", "-i", r#"{"steps":1}"#]).code == Some(0)
    });
}

/// `estop halt` of an operator, and of root, with nothing running.
pub(crate) fn what_operators_halt_is_the_machines(machine: &Machine) {
    let home = machine.folder_of("op", "a").join("home");
    fs::remove_dir_all(&home).unwrap();
    machine.estop("op", &["halt", "--agent", "x"]).has(8, &["no host process was reached"]);
    assert!(!home.exists(), "no home is made for that");
    machine.short("out", "a", "x").has(6, &["on this machine by op"]);
    machine.short("out", "a", "y").has(0, &[]);
    assert!(machine.latched().is_empty(), "nobody has taken it");
    let halts = machine.estop("out", &["halts", "--json"]).has(0, &[]).jsons();
    let halt = halts[0]["halt"].as_str().unwrap();
    machine.estop("op", &["lift", halt, "--reason", "mine"]).has(6, &["estop-admins"]);
    let host = machine.serve();
    until("it is latched", || machine.latched() == [halt]);
    machine.estop("chief", &["lift", halt, "--reason", "over"]).has(0, &[]);
    machine.short("out", "a", "x").has(0, &[]);
    drop(host);

    // Root needs nobody.
    let root = |args: &[&str]| Running::start(estop(ROOT.as_ref(), args)).ended();
    let halted = root(&["halt", "--tool", "polite", "--json"]).has(8, &[]).json();
    assert_eq!(halted["kept"], "on this machine");
    let halt = halted["halt"]["halt"].as_str().unwrap();
    assert_eq!(machine.latched(), [halt]);
    machine.short("out", "a", "y").has(6, &[halt]);
    root(&["lift", halt, "--reason", "over"]).has(0, &[]);
    machine.short("out", "a", "y").has(0, &[]);
}

/// A folder of a user that is named after another user's process does not have that process killed.
pub(crate) fn nobody_is_killed_for_another(machine: &Machine) {
    let mut innocent = Running::start({
        let mut sleep = Command::new("sleep");
        sleep.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sleep
    });
    let uid = tool("id", &["-u", "out"]).stdout.trim().to_owned();
    let folder = format!("/run/user/{uid}/estop/{}", innocent.child.id());
    fs::create_dir_all(&folder).unwrap();
    tool("chown", &["-R", "out:", &format!("/run/user/{uid}")]).has(0, &[]);
    let held = format!("exec 9>{folder}/lock; flock 9; echo held; exec sleep 600");
    let holding = Running::start(machine.command("out", "a", "sh", &["-c", &held]));
    assert_eq!(holding.prints(), "held\n");
    let root = |args: &[&str]| Running::start(estop(ROOT.as_ref(), args)).ended();
    let pid = innocent.child.id().to_string();
    root(&["halt", "--tool", "nothing", "--force"]).has(8, &["NOT SEEN", &pid]);
    assert!(innocent.child.try_wait().unwrap().is_none(), "it was killed");
    drop(holding);
    root(&["lift", &machine.latched()[0], "--reason", "over"]).has(0, &[]);
}
