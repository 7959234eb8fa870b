//! Another user's host that says whatever it likes: root is not misled by it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use crate::command::{Ended, Running, estop, tool};
use crate::hosts::{Machine, signal};

/// Who fakes: nobody.
const FAKER: u32 = 65534;
/// Where, and with which status as a model.
const PLACE: &str = "ESTOP_TEST_FAKE_PLACE";
const MODEL: &str = "ESTOP_TEST_FAKE_MODEL";
/// What an agent is called whose halt it refuses, with words that drive a terminal.
const RUDE: &str = "rude";

/// Nothing that another user's process says ends in root's log, hides a host, or is taken for a
/// stop.
#[test]
fn what_another_user_fakes_misleads_nobody() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root asks the hosts of others");
        return;
    }
    let machine = Machine::new();
    let mut run = machine.run("a");
    let real = machine.sockets().join(run.child.id().to_string()).join("operator.sock");
    let model = tool("curl", &["-s", "--unix-socket", real.to_str().unwrap(), "http://estop/v1/status"]).stdout;
    fs::set_permissions(machine.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let place = machine.folder().join("tmp");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o1777)).unwrap();
    // More files than are looked at as hosts.
    (0..5000).for_each(|n| drop(fs::File::create(place.join(format!("file-{n}"))).unwrap()));
    // Where the tests are built need not be open to everybody.
    let program = machine.folder().join("faker");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut faker = Command::new(program);
    faker.args(["--exact", "fakes::child_that_fakes_a_host", "--ignored", "--nocapture"]).uid(FAKER).gid(FAKER);
    faker.current_dir("/").env(PLACE, &place).env(MODEL, &model);
    faker.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let faker = Running::start(faker);
    while !faker.prints().contains("it fakes") {}
    let ask = |args: &[&str]| -> Ended {
        let mut command = estop(&machine.home(), args);
        command.env("TMPDIR", &place);
        Running::start(command).ended()
    };

    let seen = ask(&["ps", "--json"]).has(0, &[]).json();
    let owners: Vec<_> = seen["hosts"].as_array().unwrap().iter().map(|host| host["user"].clone()).collect();
    let roots = owners.iter().filter(|owner| **owner == "root").count();
    assert_eq!((owners.len(), roots), (2, 1), "it is not hidden, and its user is not what it says: {seen}");
    let call = seen["calls"][0]["call"].as_str().unwrap().to_owned();
    // Whoever really has the call does not answer; the other one says that it has stopped it.
    signal(&run, Signal::STOP);
    ask(&["stop", &call]).has(8, &["NOT SEEN", &run.child.id().to_string()]);
    signal(&run, Signal::CONT);
    let halted = ask(&["halt", "--agent", "a", "--json"]).has(0, &[]).json();
    assert!(run.ends_within(crate::command::PATIENCE));
    let halt = halted["halt"]["halt"].as_str().unwrap();
    // It says that it has lifted it: whoever really does enters that.
    ask(&["lift", halt, "--reason", "mended"]).has(0, &[]);
    let log = ask(&["log", "show", "--json"]).has(0, &[]).jsons();
    let lifts: Vec<_> = log.iter().filter(|entry| entry["kind"] == "lift").collect();
    assert_eq!((lifts.len(), &lifts[0]["halt"]), (1, &json!(halt)), "{lifts:?}");
    machine.short("a").has(0, &[]);
    // Its words reach a terminal as words, and in one line.
    let rude = ask(&["halt", "--agent", RUDE]).has(8, &["NOT SEEN"]);
    assert!(!rude.stderr.contains('\u{1b}') && !rude.stderr.contains("\nestop: all is well"), "{rude:?}");
}

#[test]
#[ignore = "a child of another test"]
fn child_that_fakes_a_host() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    let model: Value = serde_json::from_str(&std::env::var(MODEL).unwrap()).unwrap();
    let root = place.join(format!("estop-{FAKER}"));
    let folder = root.join(std::process::id().to_string());
    fs::create_dir_all(&folder).unwrap();
    let lock = fs::File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let halt = Mutex::new(Value::Null);
    thread::scope(|scope| {
        for name in ["operator.sock", "admin.sock"] {
            let listener = UnixListener::bind(folder.join(name)).unwrap();
            let (model, halt) = (&model, &halt);
            scope.spawn(move || {
                for stream in listener.incoming() {
                    // Whoever goes away does.
                    let _ = stream.and_then(|stream| answer(stream, model, halt));
                }
            });
        }
        println!("it fakes");
    });
}

fn answer(stream: UnixStream, model: &Value, halted: &Mutex<Value>) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let line = line.to_ascii_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |length| length.trim().parse().unwrap_or(0));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut halted = halted.lock().unwrap();
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, said) = match Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "halt" if asked["scope"]["agent"] == RUDE => {
            (403, json!({ "error": "\u{1b}[2J\u{1b}[1A gone\nestop: all is well" }))
        }
        "halt" => {
            *halted = json!({
                "halt": asked["halt"], "scope": asked["scope"], "actor": "me", "at": "2026-01-01T00:00:00Z",
            });
            (200, reached(model, &Value::Null))
        }
        "stop" => (200, reached(model, &asked["call"])),
        "lift" => (200, halted.clone()),
        _ => {
            let mut status = model.clone();
            status["calls"] = json!([]);
            status["halts"] = if halted.is_null() { json!([]) } else { json!([*halted]) };
            (200, status)
        }
    };
    let said = said.to_string();
    let bytes = said.len();
    write!(&stream, "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n{said}")
}

/// It has done it, and at once.
fn reached(model: &Value, call: &Value) -> Value {
    let done = json!({
        "call": call, "agent": "a", "tool": "spin", "reached": "running", "halted_us": 1, "released_us": 1, "effects": [],
    });
    let calls = if call.is_null() { json!([]) } else { json!([done]) };
    json!({ "host": model["host"]["host"], "pid": 1, "halt": null, "not_on_disk": null, "halted_us": 1, "calls": calls })
}
