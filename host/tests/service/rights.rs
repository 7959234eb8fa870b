//! Row 37: the full table of roles and verbs.

use serde_json::{Value, json};

use crate::command::Running;
use crate::machine::Machine;

pub(crate) fn operators_list_stop_and_halt(machine: &Machine) {
    let program = machine.program();
    let call = |user: &str| {
        let args = ["call", "spin", "--deadline", "10m", "--json"];
        Running::start(machine.command(user, "a", program.to_str().unwrap(), &args))
    };
    let calls = [call("ag1"), call("ag2")];
    crate::machine::until("both run", || machine.ps("op")["calls"].as_array().unwrap().len() == 2);
    let seen = machine.ps("op");
    let id_of = |agent: &str| {
        let calls = seen["calls"].as_array().unwrap();
        calls.iter().find(|call| call["agent"] == agent).unwrap()["call"].as_str().unwrap().to_owned()
    };
    let (first, _) = (id_of("ag1"), id_of("ag2"));
    machine.estop("op", &["stop", &first, "--reason", "too slow"]).has(0, &[]);
    let [one, two] = calls;
    let outcome = one.ended().has(10, &[]).json();
    assert_eq!((&outcome["actor"], &outcome["reason"]), (&json!("op"), &json!("too slow")), "{outcome}");
    let halted = machine.estop("op", &["halt", "--agent", "ag2", "--json"]).has(0, &[]).json();
    assert_eq!((&halted["kept"], &halted["halt"]["machine"]), (&json!("on this machine"), &json!(true)), "{halted}");
    assert_eq!(two.ended().has(11, &[]).json()["actor"], "op");
    // Whoever sees that it has come to rest, and has the right.
    let halt = halted["halt"]["halt"].as_str().unwrap();
    machine.estop("chief", &["lift", halt, "--reason", "tried"]).has(0, &[]);
    let kinds = |kind: &str| machine.log().into_iter().filter(|entry| entry["kind"] == kind).collect::<Vec<_>>();
    let [entry] = &kinds("halt")[..] else { panic!("{:?}", kinds("halt")) };
    assert_eq!((&entry["actor"], &entry["latched"], &entry["halt"]), (&json!("op"), &json!(true), &json!(halt)));
    let [entry] = &kinds("lift")[..] else { panic!("{:?}", kinds("lift")) };
    assert_eq!(entry["actor"], "chief");
}

/// Each verb with the users that it is for.
const VERBS: [(&str, &str, &str, &[&str]); 16] = [
    ("status", "GET", "/v1/status", &["op", "chief"]),
    ("show", "GET", "/v1/calls/call-01ARZ3NDEKTSV4RRFFQ69G5FAV", &["op"]),
    ("halts", "GET", "/v1/halts", &["op", "chief"]),
    ("stop", "POST", "/v1/stop", &["op"]),
    ("halt", "POST", "/v1/halt", &["op"]),
    ("drill", "POST", "/v1/drill", &["op"]),
    ("metrics", "GET", "/v1/metrics", &["op"]),
    ("lift", "POST", "/v1/lift", &["chief"]),
    ("load", "POST", "/v1/load", &["chief"]),
    ("unload", "POST", "/v1/unload", &["chief"]),
    ("tools", "GET", "/v1/tools", &["ag1"]),
    ("call", "POST", "/v1/call", &["ag1"]),
    ("watch", "POST", "/v1/agents/ag1/halted", &["ag1"]),
    ("watch", "GET", "/v1/agents/ag2/halted", &[]),
    ("state", "GET", "/v1/state", &[]),
    ("log", "GET", "/v1/log", &[]),
];

pub(crate) fn every_other_verb_is_refused_and_entered(machine: &Machine, host: &Running) {
    let roles = [("op", "operator"), ("chief", "admin"), ("ag1", "agent")];
    let mut refused = Vec::new();
    for (user, role) in roles {
        let socket = machine.socket(host, &format!("{role}.sock"));
        for (verb, method, path, users) in VERBS {
            // Nothing that is there: what counts is whether it is looked at.
            let (call, token) = ("call-01ARZ3NDEKTSV4RRFFQ69G5FAV", "none");
            let body = if verb == "stop" { json!({"call": call, "token": token}) } else { json!({"reason": 5}) };
            let (status, answer) = machine.ask(user, &socket, method, path, &body).unwrap();
            assert_eq!(status == 403, !users.contains(&user), "{user} {verb} {status} {answer}");
            if status == 403 {
                assert!(answer["error"].is_string(), "{answer}");
                refused.push((verb, user, role));
            }
        }
        for (other, _) in roles.iter().filter(|(other, _)| *other != user) {
            assert_eq!(machine.ask(other, &socket, "GET", "/v1/status", &Value::Null), None, "{other} at {socket}");
        }
    }
    // `stop` of an agent is there, and not without the token of one of its own calls.
    assert!(refused.contains(&("stop", "ag1", "agent")));
    for (verb, user, role) in refused {
        machine.entered("denied", |entry| entry["verb"] == verb && entry["actor"] == user && entry["role"] == role);
    }
    let for_good = json!({"scope": {"agent": "ag1"}, "permanent": true});
    assert_eq!(
        machine.ask("op", &machine.socket(host, "operator.sock"), "POST", "/v1/halt", &for_good).unwrap().0,
        403
    );
    machine.entered("denied", |entry| entry["verb"] == "retire" && entry["actor"] == "op");
    let denied = || machine.log().iter().filter(|entry| entry["kind"] == "denied").count();
    let before = denied();
    let socket = machine.socket(host, "operator.sock");
    for _ in 0..50 {
        assert_eq!(machine.ask("op", &socket, "POST", "/v1/lift", &json!({})).unwrap().0, 403);
    }
    // A minute is over in between, if the machine is very slow: then two of them are entered.
    assert!(denied() <= before + 4, "{} entries of 50", denied() - before);
}

pub(crate) fn agents_are_who_they_are(machine: &Machine, host: &Running) {
    machine.estop("ag1", &["call", "polite", "-i", r#"{"steps":1}"#, "--agent", "ag2"]).has(6, &["ag1", "no other"]);
    machine.entered("denied", |entry| entry["verb"] == "call" && entry["actor"] == "ag1" && entry["role"] == "agent");
    machine.estop("ag1", &["call", "polite", "-i", r#"{"steps":1}"#, "--agent", "ag1"]).has(0, &[]);
    machine.entered("end", |entry| entry["agent"] == "ag1" && entry["status"] == "completed");
    assert!(!machine.log().iter().any(|entry| entry["kind"] == "end" && entry["agent"] == "default"));

    let socket = machine.socket(host, "agent.sock");
    let (stream, call, token) = machine.spin("ag1", host);
    let stop = |user: &str, token: &str| {
        machine.ask(user, &socket, "POST", "/v1/stop", &json!({"call": call, "token": token})).unwrap().0
    };
    // Not without the token, and not with it: it is another user's.
    assert_eq!((stop("ag2", ""), stop("ag2", &token), stop("ag1", "")), (403, 403, 403));
    machine.entered("denied", |entry| entry["verb"] == "stop" && entry["actor"] == "ag2");
    assert_eq!(machine.ps("op")["calls"].as_array().unwrap().len(), 1);
    assert_eq!(stop("ag1", &token), 200);
    assert!(stream.ended().stdout.contains("cancelled"));
}

pub(crate) fn strangers_can_do_nothing(machine: &Machine, host: &Running) {
    for socket in ["operator.sock", "admin.sock", "agent.sock"] {
        let socket = machine.socket(host, socket);
        assert_eq!(machine.ask("out", &socket, "GET", "/v1/status", &Value::Null), None);
    }
    let seen = machine.ps("out");
    assert_eq!((&seen["hosts"], &seen["unseen"][0]["pid"]), (&json!([]), &json!(host.child.id())), "{seen}");
    machine.estop("out", &["call", "spin"]).has(6, &["ermission"]);
    for path in
        ["/var/lib/estop/halts/inbox/x", "/var/lib/estop/halts/latched/x", "/var/lib/estop/home/x", "/run/estop/x"]
    {
        assert_ne!(machine.run("out", "touch", &[path]).code, Some(0), "{path}");
        if !path.contains("inbox") {
            assert_ne!(machine.run("op", "touch", &[path]).code, Some(0), "{path}");
        }
    }
    for path in ["/var/lib/estop/home/estop.db", &machine.socket(host, "lock")] {
        assert_ne!(machine.run("op", "cat", &[path]).code, Some(0), "{path}");
    }
}
