//! Calls through the agents' socket: what they answer, who may stop them, and what ends them.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::command::{Running, estop, tool};
use crate::hosts::signal;
use crate::scene::{Scene, Stream, ask, section, spin, until, user};

/// `estop call` answers as `estop run` does: output, words, codes, and the outcome as JSON.
#[test]
fn call_says_what_run_says() {
    let (scene, _host) = Scene::serving(&["echo", "misc", "runaway"]);
    for (component, name, input, code) in [
        ("echo", "echo", json!({"text": "hello"}), 0),
        ("misc", "attach", json!({"bytes": 5}), 0),
        ("misc", "fail", json!({}), 3),
        ("echo", "echo", json!({"text": 7}), 4),
        ("misc", "panic", json!({}), 5),
        ("runaway", "spin", json!({}), 14),
    ] {
        let limits = ["--deadline", if code == 14 { "200ms" } else { "1m" }];
        let run = |more: &[&str]| {
            let (path, input) = (scene.tool(component), input.to_string());
            let args = ["run", path.to_str().unwrap(), name, "-i", &input];
            scene.machine.estop(&[&args[..], &limits, more].concat())
        };
        let call = |more: &[&str]| scene.call(name, &input, &[&limits[..], more].concat());
        let (ran, called) = (run(&[]), call(&[]));
        assert_eq!((called.code, &called.stdout), (Some(code), &ran.stdout), "{called:?}");
        assert_eq!(ran.code, called.code);
        // Ids and times differ.
        if code != 14 {
            assert_eq!(called.stderr, ran.stderr);
        }
        let (ran, called) = (run(&["--json"]).json(), call(&["--json"]).json());
        let keys = |json: &Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&called), keys(&ran));
        for key in ["status", "output", "error", "cause", "commits", "component"] {
            assert_eq!(called[key], ran[key], "{key}");
        }
    }
    scene.call("no_such_tool", &json!({}), &[]).has(2, &["no component has a tool", "echo/echo"]);
    scene.call("nothing/echo", &json!({}), &[]).has(2, &["no component `nothing`", "misc"]);
    scene.call("echo", &json!({"text": ""}), &["--agent", "../x"]).has(6, &["agent's name"]);
    scene.call("echo", &json!({"text": ""}), &["--agent", "host"]).has(6, &["host's own"]);
    scene.machine.estop(&["call", "echo", "-i", "{"]).has(4, &["not JSON"]);
}

/// The tool says how far it is while it runs, and operators see the call.
#[test]
fn progress_is_live() {
    let (scene, _host) = Scene::serving(&["runaway"]);
    let call = scene.calling("polite", &json!({"steps": 100_000, "step_ms": 5}), &[]);
    call.says("progress 1");
    let seen = scene.machine.ps();
    assert_eq!(seen["hosts"][0]["kind"], "serve");
    assert_eq!(seen["calls"][0]["tool"], "polite");
    let stopped = scene.machine.estop(&["stop", seen["calls"][0]["call"].as_str().unwrap(), "--reason", "enough"]);
    stopped.has(0, &[]);
    call.ended().has(10, &["stopped by", "enough", "uncommitted writes"]);
    // The last that it says is told, however quick it is.
    scene.call("polite", &json!({"steps": 40, "step_ms": 2}), &[]).has(0, &["progress 40/40 step 40"]);
}

/// Which host, which component: what is not clear is asked.
#[test]
fn what_is_ambiguous_is_said() {
    let scene = Scene::new(&["echo"]);
    let none = scene.call("echo", &json!({}), &[]).has(1, &["estop serve", scene.machine.sockets().to_str().unwrap()]);
    assert_eq!(none.stdout, "");
    scene.config(&[section("a", "echo"), section("b", "echo")].concat());
    let first = scene.serve();
    let input = json!({"text": "x"});
    scene.call("echo", &input, &[]).has(2, &["several components", "a, b"]);
    assert_eq!(scene.call("b/echo", &input, &[]).has(0, &[]).json(), input);
    let second = scene.serve();
    let (first, second) = (first.child.id().to_string(), second.child.id().to_string());
    scene.call("a/echo", &input, &[]).has(2, &["--host", &first, &second]);
    scene.call("a/echo", &input, &["--host", &second]).has(0, &[]);
    scene.call("a/echo", &input, &["--host", "1"]).has(2, &["process 1 ", &first, &second]);
}

/// Any program can call, with nothing but curl; and learns what there is to call.
#[test]
fn curl_calls() {
    let (scene, host) = Scene::serving(&["echo"]);
    let socket = scene.socket(&host);
    let curl = |more: &[&str]| tool("curl", &[&["-sN", "--unix-socket", socket.to_str().unwrap()], more].concat());
    let tools: Value = serde_json::from_str(&curl(&["http://estop/v1/tools"]).stdout).unwrap();
    let echo = &tools["components"][0];
    assert_eq!((&echo["component"], &echo["error"]), (&json!("echo"), &Value::Null));
    assert!(echo["digest"].as_str().unwrap().starts_with("sha256:"));
    let told = &echo["tools"][0];
    assert_eq!((&told["name"], &told["description"]), (&json!("echo"), &json!("Answer the same text.")));
    assert_eq!(told["hints"]["read_only"], true);
    assert_eq!(told["input_schema"]["required"], json!(["text"]));
    let request = json!({"tool": "echo", "input": {"text": "hé\nllo"}, "agent": "ada"}).to_string();
    let said = curl(&["-d", &request, "http://estop/v1/call"]).stdout;
    let events: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events, ["call", "outcome"]);
    let last: Value =
        serde_json::from_str(said.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap()).unwrap();
    assert_eq!((&last["output"]["text"], &last["agent"]), (&json!("hé\nllo"), &json!("ada")));
    // What it does not understand it says.
    let (status, answer) = ask(&socket, "POST", "/v1/call", r#"{"tool":"echo","deadline":"1s"}"#);
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("deadline"), "{answer}");
    // Whoever may call may neither look, nor halt, nor lift.
    for path in ["/v1/status", "/v1/halt", "/v1/lift", "/v1/halts"] {
        assert_eq!(ask(&socket, "POST", path, "{}").0, 403, "{path}");
    }
}

/// While a call runs, whoever looks on sees how much fuel it has used, to within what it says. It runs long enough to give way
/// to others as well, which is not counted.
#[test]
fn fuel_is_seen_while_it_is_used() {
    const INTERVAL: u64 = 1_000_000;
    let (scene, host) = Scene::serving(&["misc"]);
    let socket = scene.socket(&host);
    // It has said so in the middle of an interval.
    let request = json!({"tool": "compute_and_sleep", "input": {"rounds": 200_050_000}});
    let mut stream = Stream::call(&socket, &request);
    let begun = stream.event("call");
    stream.event("progress");
    let seen = scene.machine.ps()["calls"][0].clone();
    let number = |name: &str| seen[name].as_u64().unwrap();
    let (used, left) = (number("fuel_used"), number("fuel_left"));
    assert_eq!(used + left, number("fuel_granted"));
    scene.machine.estop(&["stop", begun["call"].as_str().unwrap()]).has(0, &[]);
    let fuel = stream.event("outcome")["fuel"].as_u64().unwrap();
    println!("{used} seen of {fuel}");
    assert!(used > 100 * INTERVAL && used <= fuel && fuel - used <= 2 * INTERVAL, "{used} seen of {fuel}");
}

/// Agents may be less urgent than the host lets them be, and never more.
#[test]
fn priority_is_only_lowered() {
    let scene = Scene::new(&["runaway"]);
    scene.config(&format!("[limits]\npriority = 50\n{}", section("runaway", "runaway")));
    let _host = scene.serve();
    for (asked, has) in [(&[][..], 50), (&["--priority", "7"][..], 7), (&["--priority", "255"][..], 50)] {
        let _call =
            scene.calling("spin", &json!({}), &[&["--agent", &format!("a{has}-{}", asked.len())], asked].concat());
        until("it has its priority", || {
            let seen = scene.machine.ps();
            let calls = seen["calls"].as_array().unwrap();
            calls.iter().any(|call| call["priority"] == has && call["agent"] == format!("a{has}-{}", asked.len()))
        });
    }
    scene.call("spin", &json!({}), &["--priority", "256"]).has(2, &["256"]);
}

/// What is asked for only lowers what the host grants.
#[test]
fn limits_are_only_lowered() {
    let scene = Scene::new(&["runaway"]);
    let limits = "[limits]\ndeadline = \"5m\"\nfuel = \"20G\"\nmemory = \"8MiB\"\n";
    scene.config(&format!("{limits}{}", section("runaway", "runaway")));
    let _host = scene.serve();
    let more = ["--deadline", "1h", "--fuel", "1000T", "--memory", "1GiB", "--json"];
    let spun = scene.call("spin", &json!({}), &more).has(15, &[]).json();
    assert_eq!(spun["fuel"], 20_000_000_000_u64);
    scene.call("allocate", &json!({}), &more).has(16, &["8388608"]);
    scene.call("spin", &json!({}), &["--deadline", "100ms"]).has(14, &[]);
    scene.call("spin", &json!({}), &["--fuel", "200M"]).has(15, &[]);
    scene.call("allocate", &json!({}), &["--memory", "4MiB"]).has(16, &["4194304"]);
}

/// A client that is gone has no use for its call: it is stopped, and the log says why and whose it was.
#[test]
fn a_client_that_goes_away_stops_its_call() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let mut killed = scene.calling("spin", &json!({}), &["--agent", "killed"]);
    let (_, dropped) = spin(&scene.socket(&host), "dropped");
    let (_, _kept) = spin(&scene.socket(&host), "kept");
    scene.until_running(3);
    killed.child.kill().unwrap();
    drop(dropped);
    for agent in ["killed", "dropped"] {
        let end = scene.entry("end", |entry| entry["agent"] == agent);
        assert_eq!((&end["cause"], &end["actor"]), (&json!("disconnected"), &json!(user())), "{end}");
        let interrupts = scene.log().into_iter().filter(|entry| entry["kind"] == "interrupt");
        let its = interrupts.filter(|entry| entry["scope"]["call"] == end["call"]).count();
        assert_eq!(its, 1);
    }
    scene.until_running(1);
    assert!(killed.ended().code.is_none());
}

/// Whoever has the token stops the call; nobody else does, and whoever tries is entered.
#[test]
fn a_token_stops_its_own_call_only() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let socket = scene.socket(&host);
    let (mine, mut stream) = spin(&socket, "mine");
    let (others, _stream) = spin(&socket, "others");
    scene.until_running(2);
    let stop = |call: &Value, token: &Value| {
        ask(
            &socket,
            "POST",
            "/v1/stop",
            &json!({"call": call, "token": token, "reason": "changed my mind"}).to_string(),
        )
    };
    for token in [&others["token"], &json!(""), &json!("A".repeat(43))] {
        let (status, answer) = stop(&mine["call"], token);
        assert_eq!(status, 403, "{answer}");
    }
    let body = json!({"call": mine["call"]}).to_string();
    assert_eq!(ask(&socket, "POST", "/v1/stop", &body).0, 403);
    let denied = scene.entry("denied", |entry| entry["why"].as_str().unwrap().contains(mine["call"].as_str().unwrap()));
    assert_eq!((&denied["verb"], &denied["actor"]), (&json!("stop"), &json!(user())));
    scene.until_running(2);

    let (status, answer) = stop(&mine["call"], &mine["token"]);
    assert_eq!((status, answer["calls"].as_array().unwrap().len()), (200, 1), "{answer}");
    let outcome = stream.event("outcome");
    assert_eq!((&outcome["cause"], &outcome["actor"]), (&json!("cancelled"), &json!(user())));
    assert_eq!(outcome["reason"], "changed my mind");
    assert_eq!(stream.line(), Some("".into()));
    // Again: there is nothing left to stop, and that is no offence.
    let (status, answer) = stop(&mine["call"], &mine["token"]);
    assert_eq!((status, &answer["calls"]), (200, &json!([])));
    scene.until_running(1);
}

/// Those that try often are counted.
#[test]
fn a_flood_of_wrong_tokens_is_counted() {
    let (scene, host) = Scene::serving(&["echo"]);
    let socket = scene.socket(&host);
    let body = json!({"call": "call-01ARZ3NDEKTSV4RRFFQ69G5FAV"}).to_string();
    for _ in 0..300 {
        assert_eq!(ask(&socket, "POST", "/v1/stop", &body).0, 403);
    }
    // The first; the others are one entry a minute later.
    scene.entry("denied", |_| true);
    assert_eq!(scene.log().iter().filter(|entry| entry["kind"] == "denied").count(), 1);
}

/// Ctrl-C stops the call itself; a second one ends the command at once, whatever the host does.
#[test]
fn ctrl_c_stops_the_call() {
    let (scene, host) = Scene::serving(&["runaway"]);
    let call = scene.calling("spin", &json!({}), &["--agent", "a"]);
    scene.until_running(1);
    signal(&call, Signal::INT);
    call.ended().has(18, &["cancelled", "Ctrl-C"]);
    let end = scene.entry("end", |entry| entry["agent"] == "a");
    assert_eq!((&end["cause"], &end["actor"]), (&json!("cancelled"), &json!(user())));

    let call = scene.calling("spin", &json!({}), &[]);
    scene.until_running(1);
    signal(&host, Signal::STOP);
    signal(&call, Signal::INT);
    call.says("estop: stopping call-");
    signal(&call, Signal::INT);
    let ended = call.ended();
    signal(&host, Signal::CONT);
    ended.has(8, &["second Ctrl-C"]);
    let end = scene.entry("end", |entry| entry["agent"] == "default");
    assert!(end["cause"] == "disconnected" || end["cause"] == "cancelled", "{end}");
}

/// An agent's own program, in any language, learns that it is halted, and that it is no more.
#[test]
fn an_agents_program_learns_of_halts() {
    let (scene, host) = Scene::serving(&["echo"]);
    let mut mine = Stream::open(&scene.socket(&host), "GET", "/v1/agents/ada/halted", "");
    let mut others = Stream::open(&scene.socket(&host), "GET", "/v1/agents/bob/halted", "");
    assert_eq!(mine.event("halted"), json!({"halted": false, "why": null}));
    assert_eq!(others.event("halted"), json!({"halted": false, "why": null}));
    scene.machine.estop(&["halt", "--agent", "ada", "--reason", "it rambles"]).has(0, &[]);
    let halted = mine.event("halted");
    assert!(halted["halted"] == true && halted["why"].as_str().unwrap().contains("it rambles"), "{halted}");
    scene.call("echo", &json!({"text": "x"}), &["--agent", "ada"]).has(6, &["it rambles"]);
    scene.call("echo", &json!({"text": "x"}), &["--agent", "bob"]).has(0, &[]);
    let halts = Running::start(estop(&scene.machine.home(), &["halts", "--json"])).ended().jsons();
    let halt = halts[0]["halt"].as_str().unwrap().to_owned();
    scene.machine.estop(&["lift", &halt, "--reason", "it has rested"]).has(0, &[]);
    assert_eq!(mine.event("halted"), json!({"halted": false, "why": null}));
    // The other one has heard nothing of that; of this it does.
    scene.machine.estop(&["halt", "--all", "--reason", "fire"]).has(0, &[]);
    assert!(others.event("halted")["why"].as_str().unwrap().contains("fire"));
    // Whoever comes late is told at once.
    let mut late = Stream::open(&scene.socket(&host), "GET", "/v1/agents/eve/halted", "");
    assert_eq!(late.event("halted")["halted"], true);
    assert_eq!(ask(&scene.socket(&host), "GET", "/v1/agents/..%2Fx/halted", "").0, 400);
}
