//! `estop.toml`: what is wrong with it is told with its place, and what is right in it holds.

use std::fs;

use estop_tests::guests;
use serde_json::{Value, json};

use crate::command::{Running, estop};
use crate::scene::{Scene, section, until};

/// Every key there is, by its table, with a value that is right.
const KEYS: [(&str, &[(&str, &str)]); 4] = [
    (
        "host",
        &[
            ("calls_max", "10"),
            ("sandboxes_max", "10"),
            ("queue_max", "10"),
            ("memory_bytes_max", "\"64MiB\""),
            ("table_elements_max", "20_000"),
            ("component_bytes_max", "\"10MiB\""),
            ("components_max", "10"),
            ("compiling_max", "2"),
            ("tools_max", "10"),
            ("workers", "2"),
            ("checkpoint_to", "\"file:/dev/null\""),
            ("shutdown_grace", "\"1s\""),
            ("drill_every", "\"1d\""),
        ],
    ),
    (
        "limits",
        &[
            ("deadline", "\"30s\""),
            ("grace", "\"0s\""),
            ("fuel", "\"10G\""),
            ("memory", "\"64MiB\""),
            ("priority", "100"),
            ("input_bytes_max", "\"1MiB\""),
            ("output_bytes_max", "\"1MiB\""),
            ("transfer_bytes_max", "\"4MiB\""),
            ("stderr_bytes_max", "8192"),
            ("resources_max", "100"),
            ("effects_max", "100"),
            ("depth_max", "3"),
            ("children_max", "4"),
        ],
    ),
    (
        "limits.state",
        &[
            ("key_bytes_max", "\"1KiB\""),
            ("value_bytes_max", "\"1MiB\""),
            ("keys_max", "1000"),
            ("read_bytes_max", "\"1MiB\""),
            ("write_bytes_max", "\"1MiB\""),
            ("space_bytes_max", "\"1MiB\""),
        ],
    ),
    (
        "tools.echo",
        &[
            ("path", "\"echo.wasm\""),
            ("digest", "\"sha256:0000000000000000000000000000000000000000000000000000000000000000\""),
        ],
    ),
];

/// Serving this fails before anything has begun, and says why and where.
#[track_caller]
fn unusable(scene: &Scene, config: &str, place: &str, words: &[&str]) {
    scene.config(config);
    let place = format!("estop.toml:{place}: ");
    let ended = Running::start(scene.serving_command()).ended();
    ended.has(2, &[&[&*place, "nothing was started"], words].concat());
    assert!(!scene.machine.home().exists(), "{config}");
}

/// A file with every key is right; with any of them misspelt, of another type, or twice, it is wrong there.
#[test]
fn every_key_is_checked() {
    let scene = Scene::new(&["echo"]);
    for (table, keys) in KEYS {
        for (at, (key, value)) in keys.iter().enumerate() {
            // Line 1 is the table's name.
            let with = |line: &str| {
                let others = keys.iter().enumerate().map(|(other, (key, value))| match other == at {
                    true => format!("{line}\n"),
                    false => format!("{key} = {value}\n"),
                });
                format!("[{table}]\n{}", others.collect::<String>())
            };
            let line = at + 2;
            unusable(&scene, &with(&format!("x_{key} = {value}")), &format!("{line}:1"), &[&format!("x_{key}")]);
            let column = key.len() + 4;
            unusable(&scene, &with(&format!("{key} = true")), &format!("{line}:{column}"), &["boolean"]);
            unusable(&scene, &with(&format!("{key} = {value}\n{key} = {value}")), &format!("{}:1", line + 1), &[]);
        }
    }
    let all = |(table, keys): &(&str, &[(&str, &str)])| {
        format!("[{table}]\n{}", keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>())
    };
    // All of them are known: only that digest is not that of what is there.
    scene.config(&KEYS.iter().map(all).collect::<String>());
    let host = scene.serve();
    assert!(scene.component(&host, "echo")["error"].as_str().unwrap().contains("expected sha256:0000"));
}

/// What a grant consists of, by its table: the key that has to be there first.
const GRANTS: [(&str, &[(&str, &str)]); 3] = [
    (
        "workspaces",
        &[
            ("path", "\"docs\""),
            ("write", "true"),
            ("at", "\"/data\""),
            ("bytes_max", "\"1MiB\""),
            ("entries_max", "10"),
            ("memory_bytes_max", "\"1MiB\""),
        ],
    ),
    (
        "hosts",
        &[
            ("host", "\"https://example.com\""),
            ("methods", "[\"GET\"]"),
            ("private_addresses", "false"),
            ("secret_headers", "{}"),
            ("request_bytes_max", "\"1MiB\""),
            ("response_bytes_max", "\"1MiB\""),
            ("header_bytes_max", "\"16KiB\""),
            ("requests_max", "10"),
            ("live_max", "10"),
            ("connect_within", "\"1s\""),
            ("first_byte_within", "\"1s\""),
            ("between_bytes_within", "\"1s\""),
        ],
    ),
    (
        "programs",
        &[
            ("path", "\"/bin/sh\""),
            ("arguments", "[[\"-c\", \"*\"], [\"**\"]]"),
            ("environment", "{ A = \"b\" }"),
            ("secret_environment", "{}"),
            ("time", "\"1s\""),
            ("cpu", "\"1s\""),
            ("memory", "\"1GiB\""),
            ("processes_max", "10"),
            ("file_bytes_max", "\"1MiB\""),
            ("output_bytes_max", "\"1MiB\""),
            ("accept_unverified", "true"),
        ],
    ),
];

/// The same for what is granted.
#[test]
fn every_key_of_a_grant_is_checked() {
    for (table, keys) in GRANTS {
        let scene = Scene::new(&[]);
        fs::create_dir(scene.machine.folder().join("docs")).unwrap();
        let (path, others) = keys.split_first().unwrap();
        let header = format!("[[grants]]\n[[grants.{table}]]\n{} = {}\n", path.0, path.1);
        for (key, value) in others {
            unusable(&scene, &format!("{header}x_{key} = {value}"), "4:1", &[&format!("x_{key}")]);
            let column = key.len() + 4;
            unusable(&scene, &format!("{header}{key} = 1.5"), &format!("4:{column}"), &["floating point"]);
            unusable(&scene, &format!("{header}{key} = {value}\n{key} = {value}"), "5:1", &[]);
        }
        let all = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
        scene.config(&format!("[[grants]]\n[[grants.{table}]]\n{all}"));
        drop(scene.serve());
    }
}

/// What cannot be meant.
#[test]
fn nonsense_is_refused_with_its_place() {
    let scene = Scene::new(&[]);
    for (config, place, words) in [
        ("[hosts]", "1:2", &["hosts"][..]),
        ("[host\n", "1:6", &[]),
        ("colour = 1", "1:1", &["colour"]),
        ("[limits]\ndeadline = \"30\"", "2:12", &["not a duration", "30s"]),
        ("[limits]\ndeadline = 30", "2:12", &["a duration with its unit"]),
        ("[limits]\ndeadline = \"0s\"", "2:12", &["more than nothing"]),
        ("[limits]\nfuel = \"10 parsecs\"", "2:8", &["not an amount of fuel"]),
        ("[limits]\nfuel = 0", "2:8", &["more than nothing"]),
        ("[limits]\nfuel = -1", "2:8", &["an amount of fuel"]),
        ("[limits]\nmemory = \"64 Mb\"", "2:10", &["not a size"]),
        ("[limits]\nmemory = 0", "2:10", &["more than nothing"]),
        (
            "[limits]\nmemory = \"2GiB\"\n[host]\nmemory_bytes_max = \"1GiB\"",
            "2:10",
            &["memory_bytes_max", "1073741824"],
        ),
        ("[host]\ncalls_max = 0", "2:13", &["at least 1"]),
        ("[host]\ncalls_max = -1", "2:13", &[]),
        ("[host]\nsandboxes_max = 5_000_000_000", "2:17", &["at most"]),
        ("[host]\nworkers = 5_000", "2:11", &["at most 1024"]),
        ("[host]\nshutdown_grace = \"1h\"", "2:18", &["at most 60s"]),
        ("[host]\ndrill_every = \"10s\"", "2:15", &["at least 60s"]),
        ("[limits]\npriority = 256", "2:12", &["256"]),
        ("[host]\ncheckpoint_to = \"nowhere\"", "2:17", &["file:PATH"]),
        ("[tools.\"a/b\"]\npath = \"x.wasm\"", "1:8", &["name"]),
        ("[tools.a]", "1:1", &["path"]),
        ("[tools.a]\npath = \"folder\"", "2:8", &[".wasm", "estop build"]),
        ("[tools.a]\npath = \"a.wasm\"\ndigest = \"sha256:12\"", "3:10", &["64 hexadecimal digits"]),
        ("[tools.a]\npath = \"a.wasm\"\n[tools.a]\npath = \"b.wasm\"", "3:", &[]),
        ("[[grants]]", "1:1", &["grants nothing"]),
        ("[[grants]]\ncolour = 1", "2:1", &["colour"]),
        ("[[grants]]\nworkspaces = [{ path = \"missing\" }]", "2:24", &["no folder"]),
        ("[[grants]]\nworkspaces = [{ path = \".\", at = \"data\" }]", "2:34", &["absolute path"]),
        ("[[grants]]\nworkspaces = [{ path = \".\", to = 1 }]", "2:29", &["to"]),
        ("[[grants]]\nworkspaces = [{ path = \".\", entries_max = 0 }]", "2:43", &["at least 1"]),
        ("[[grants]]\nhosts = [{ host = \"ftp://a\" }]", "2:19", &["https"]),
        ("[[grants]]\nhosts = [{ host = \"a\", live_max = 0 }]", "2:35", &["at least 1"]),
        ("[[grants]]\ncomponent = \"x\"\nworkspaces = [{ path = \".\" }]", "2:13", &["[tools.x]"]),
        ("[[grants]]\nagent = \"\"\nworkspaces = [{ path = \".\" }]", "2:9", &["not empty"]),
        (
            "[[grants]]\nagent = \"a\"\nworkspaces = [{ path = \".\" }]\n[[grants]]\ntool = \"b\"\nworkspaces = [{ path = \".\" }]",
            "6:15",
            &["another workspace at `/`"],
        ),
        ("[[grants]]\nprograms = [{ path = \"sh\" }]", "2:13", &["absolute path"]),
        ("[[grants]]\nprograms = [{ path = \"/nowhere\" }]", "2:13", &["/nowhere", "No such file"]),
        (
            "[[grants]]\nprograms = [{ path = \"/bin/sh\", arguments = [[\"[x\"]] }]",
            "2:13",
            &["pattern of an argument"],
        ),
        ("[[grants]]\nprograms = [{ path = \"/bin/sh\", cpu = \"1ms\" }]", "2:13", &["so little cpu"]),
        ("[[grants]]\nenvironment = { \"A=B\" = \"x\" }", "1:1", &["A=B"]),
        ("[[grants]]\nlimits = { fuel = 0 }", "2:19", &["more than nothing"]),
        ("[[grants]]\nlimits = { memory = \"99GiB\" }", "2:21", &["memory_bytes_max"]),
        ("[[grants]]\nlimits = { state = { keys_max = 1 } }", "2:10", &["limits.state"]),
        (
            "[[grants]]\nlimits = { fuel = 1 }\n[[grants]]\nagent = \"a\"\nlimits = { fuel = 2 }",
            "3:1",
            &["`fuel`", "another rule"],
        ),
        (
            "[[grants]]\nenvironment = { A = \"1\" }\n[[grants]]\ntool = \"t\"\nenvironment = { A = \"2\" }",
            "3:1",
            &["`A`", "another rule"],
        ),
        ("[[budgets]]\ncalls_per_minute = 0", "2:20", &["more than nothing"]),
        ("[[budgets]]\nfuel_per_minute = \"0\"", "2:19", &["more than nothing"]),
        ("[[budgets]]\nagent = \"\"", "2:9", &["not empty"]),
        (
            "[[budgets]]\nagent = \"a\"\ncalls_per_minute = 1\n[[budgets]]\nagent = \"a\"\ncalls_per_minute = 1",
            "5:9",
            &["already"],
        ),
        ("[[budgets]]\ncalls_per_minute = 1\n[[budgets]]\ncalls_per_minute = 1", "3:1", &["already"]),
        ("[[budgets]]\nagent = \"a\"", "1:1", &["bounds nothing"]),
        ("[[budgets]]\nhours = 1", "2:1", &["hours"]),
        ("# \u{e4}\u{f6}\u{fc}\n\u{e4} = 1", "2:1", &[]),
    ] {
        match place.strip_suffix(':') {
            Some(line) => {
                scene.config(config);
                let ended = Running::start(scene.serving_command()).ended();
                ended.has(2, &[&format!("estop.toml:{line}:")]);
            }
            None => unusable(&scene, config, place, words),
        }
    }
    fs::write(scene.config_path(), b"# ok\n# \xff").unwrap();
    Running::start(scene.serving_command()).ended().has(2, &["estop.toml:2:3", "UTF-8"]);
    fs::write(scene.config_path(), "#".repeat(2 << 20)).unwrap();
    Running::start(scene.serving_command()).ended().has(2, &["larger than"]);
    fs::remove_file(scene.config_path()).unwrap();
    Running::start(scene.serving_command()).ended().has(2, &["cannot read"]);
    fs::create_dir(scene.config_path()).unwrap();
    Running::start(scene.serving_command()).ended().has(2, &["not a regular file"]);
}

/// Without `--config`: here, else in the home, else it is said where it was looked for.
#[test]
fn the_configuration_is_found() {
    let scene = Scene::new(&["echo"]);
    let home = scene.machine.home();
    let here = scene.machine.folder().join("here");
    fs::create_dir(&here).unwrap();
    let serving = || {
        let mut command = estop(&home, &["serve"]);
        command.current_dir(&here);
        command
    };
    let (in_home, beside) = (home.join("estop.toml"), here.join("estop.toml"));
    Running::start(serving()).ended().has(2, &[in_home.to_str().unwrap(), beside.to_str().unwrap(), "--help"]);
    scene.machine.estop(&["run", guests::path("echo").to_str().unwrap(), "-i", r#"{"text":""}"#]).has(0, &[]);
    // Paths are from the file, wherever the command is started.
    fs::write(&in_home, section("of_the_home", "../echo")).unwrap();
    let host = Running::start(serving());
    host.says("estop: serving 1 tools of 1 components");
    assert!(scene.component(&host, "of_the_home")["digest"].is_string());
    drop(host);
    fs::write(&beside, section("from_here", "../echo")).unwrap();
    let host = Running::start(serving());
    host.says("estop: serving 1 tools of 1 components");
    assert!(scene.component(&host, "from_here")["digest"].is_string());
}

/// A host with these limits, and all guests.
fn limited(scene: &Scene, limits: &str) -> Running {
    let tools = ["runaway", "misc", "kv", "echo"].map(|tool| section(tool, tool)).concat();
    scene.config(&format!("{limits}\n{tools}"));
    scene.serve()
}

/// Every limit of a call is hit, and tells what it is.
#[test]
fn every_limit_of_a_call_holds() {
    let scene = Scene::new(&["runaway", "misc", "kv", "echo"]);
    let many = |count: u64| json!({"count": count, "bytes": 100});
    for (limit, tool, input, code, words) in [
        ("[limits]\ndeadline = \"200ms\"", "spin", json!({}), 14, &["deadline"][..]),
        ("[limits]\nfuel = \"500M\"", "spin", json!({}), 15, &["fuel"]),
        ("[limits]\nmemory = \"8MiB\"", "allocate", json!({}), 16, &["8388608"]),
        ("[limits]\ninput_bytes_max = 10", "echo", json!({"text": "0123456789"}), 4, &["limit is 10"]),
        ("[limits]\noutput_bytes_max = 100", "big_output", json!({"bytes": 200}), 3, &["limit is 100"]),
        ("[limits]\ntransfer_bytes_max = \"64KiB\"", "big_output", json!({"bytes": 200_000}), 3, &["transfer"]),
        ("[limits.state]\nkey_bytes_max = 10", "set", json!({"key": "01234567890", "value": 1}), 3, &["11 bytes"]),
        ("[limits.state]\nvalue_bytes_max = 50", "write_many", many(1), 3, &["limit is 50"]),
        ("[limits.state]\nkeys_max = 10", "write_many", many(11), 3, &["more than 10 keys"]),
        ("[limits.state]\nwrite_bytes_max = 1000", "write_many", many(20), 3, &["more than 1000 bytes"]),
        ("[limits.state]\nspace_bytes_max = 1000", "write_many", many(20), 3, &["limit is 1000"]),
    ] {
        let host = limited(&scene, limit);
        scene.call(tool, &input, &[]).has(code, words);
        drop(host);
    }
    let host = limited(&scene, "[limits.state]\nread_bytes_max = 500");
    scene.call("write_many", &many(10), &["--agent", "reader"]).has(0, &[]);
    scene.call("remove_many", &many(10), &["--agent", "reader"]).has(3, &["reads more than 500 bytes"]);
    drop(host);
    let host = limited(&scene, "[limits]\ndeadline = \"100ms\"\ngrace = \"400ms\"");
    let outcome = scene.call("ignore", &json!({}), &["--json"]).has(14, &[]).json();
    assert!(outcome["elapsed_us"].as_f64().unwrap() >= 500_000.0, "{outcome}");
    drop(host);
    let _host = limited(&scene, "[limits]\nstderr_bytes_max = 4");
    let trapped = scene.call("panic", &json!({}), &[]).has(5, &[]).stderr;
    let (_, kept) = trapped.lines().next().unwrap().split_once("ends with: ").unwrap();
    assert!(kept.len() <= 4, "{trapped}");
}

/// What is granted to one agent or tool holds for that, and for nobody else.
#[test]
fn a_grant_holds_for_those_that_it_names() {
    let scene = Scene::new(&["runaway", "misc", "kv", "echo"]);
    let grants = "
[[grants]]
agent = \"a\"
limits = { input_bytes_max = 20, fuel = \"500M\" }
environment = { COLOUR = \"green\" }
clock = true
[[grants]]
agent = \"a\"
tool = \"big_output\"
limits = { output_bytes_max = 100 }
[[grants]]
agent = \"r\"
component = \"misc\"
random = true
[[budgets]]
agent = \"a\"
calls_per_minute = 1000
[[budgets]]
agent = \"b\"
calls_per_minute = 2
[[budgets]]
fuel_per_minute = \"300M\"
";
    let _host = limited(&scene, grants);
    let call = |agent: &str, tool: &str, input: Value| scene.call(tool, &input, &["--agent", agent]);
    let long = json!({ "text": "0123456789" });
    call("a", "echo", long.clone()).has(4, &["limit is 20"]);
    call("c", "echo", long.clone()).has(0, &[]);
    call("a", "spin", json!({})).has(15, &["fuel"]);
    let big = json!({ "bytes": 200 });
    call("a", "big_output", big.clone()).has(3, &["limit is 100"]);
    call("c", "big_output", big).has(0, &[]);
    assert_eq!(call("a", "env", json!({})).has(0, &[]).json()["variables"], json!(["COLOUR"]));
    assert_eq!(call("c", "env", json!({})).has(0, &[]).json()["variables"], json!([]));
    let step = |agent: &str| call(agent, "clock", json!({})).has(0, &[]).json()["step_ns"].as_u64().unwrap();
    assert_eq!(step("c") % 1_000_000, 0);
    assert!((0..20).any(|_| step("a") % 1_000_000 != 0));
    let random = |agent: &str| call(agent, "random", json!({})).has(0, &[]).stdout;
    assert_eq!(random("a"), random("c"));
    assert_ne!(random("r"), random("r"));
    // Two calls a minute, and whoever is not named has fuel for a moment.
    call("b", "echo", long.clone()).has(0, &[]);
    call("b", "echo", long.clone()).has(0, &[]);
    call("b", "echo", long.clone()).has(6, &["2 calls within a minute"]);
    call("d", "spin", json!({})).has(15, &["fuel for this minute"]);
    call("d", "echo", long.clone()).has(6, &["fuel for this minute"]);
    call("e", "echo", long).has(0, &[]);
}

/// What a configuration grants is told before anything runs.
#[test]
fn a_configuration_is_checked_and_told_in_words() {
    let scene = Scene::new(&["misc", "echo"]);
    fs::create_dir(scene.machine.folder().join("docs")).unwrap();
    let grants = "
[[grants]]
agent = \"a\"
workspaces = [{ path = \"docs\", write = true, at = \"/data\" }]
environment = { TOKEN = \"hunter2\" }
[[grants]]
component = \"misc\"
tool = \"clock\"
clock = true
limits = { deadline = \"5s\" }
programs = [{ path = \"/bin/sh\", arguments = [[\"-c\", \"*\"]] }]
[[budgets]]
calls_per_minute = 7
";
    scene.config(&format!("{}{}{grants}", section("misc", "misc"), section("gone", "gone")));
    let config = scene.config_path().to_str().unwrap().to_owned();
    let home = ["--home", scene.machine.home().to_str().unwrap()].map(str::to_owned);
    let check = || {
        let words = [&["policy", "check", &config][..], &home.each_ref().map(String::as_str)].concat();
        scene.machine.estop(&words)
    };
    let told = check().has(0, &[]).stdout;
    for words in [
        "it can be used",
        "which is NOT THERE",
        "agent a: read and write",
        "at /data",
        "agent a: the variable TOKEN",
        "every agent, component misc, tool clock: the host's clocks",
        "other limits: deadline 5s",
        "run /bin/sh with -c *",
        "each agent that has no other budget: 7 calls a minute",
    ] {
        assert!(told.contains(words), "`{words}` is not in: {told}");
    }
    assert!(!told.contains("hunter2"));
    let component = scene.machine.folder().join("misc.wasm").to_str().unwrap().to_owned();
    let inspect = |agent: &str| {
        let words = ["inspect", &component, "--config", &config, "--agent", agent, "--json"];
        scene.machine.estop(&words).has(0, &[]).json()["granted"].clone()
    };
    let granted = inspect("a");
    assert_eq!(granted["clock"].as_array().unwrap().len(), 5, "{granted}");
    assert_eq!(inspect("b")["env"], json!([]));
    // What decides about tools no tool may change.
    scene.config("[[grants]]\nworkspaces = [{ path = \"docs\", write = true }]\nprograms = [{ path = \"/bin/sh\" }]");
    check().has(0, &[]);
    for kept in ["[secrets]\nKEY = { file = \"docs/kept\" }\n", "[tools.kept]\npath = \"docs/kept.wasm\"\n"] {
        for name in ["docs/kept", "docs/kept.wasm"] {
            let file = scene.machine.folder().join(name);
            fs::write(&file, "secret").unwrap();
            fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        for (how, code) in [("write = true", 2), ("write = false", 0)] {
            scene.config(&format!("{kept}[[grants]]\nworkspaces = [{{ path = \"docs\", {how} }}]"));
            check().has(code, if code == 0 { &[] } else { &["no tool may change", "kept"] });
        }
    }
    let program = scene.machine.folder().join("docs/program");
    fs::copy("/bin/true", &program).unwrap();
    let granted = format!("programs = [{{ path = \"{}\" }}]", program.display());
    scene.config(&format!("[[grants]]\nworkspaces = [{{ path = \"docs\", write = true }}]\n{granted}"));
    check().has(2, &["no tool may change", "docs/program"]);
    scene.config("[[grants]]\nclock = 1");
    check().has(2, &["estop.toml:2:9", "nothing of it can be used"]);
    scene.config("[[grants]]\nworkspaces = [{ path = \"/\" }]");
    check().has(2, &["overlap"]);
}

/// Every limit of the host is hit as well. (`resources_max`, `effects_max` and `depth_max` need guests and host functions of
/// their own, and nothing here is compiled beside something else, which is what `compiling_max` bounds: see the tests of the
/// library.)
#[test]
fn every_limit_of_the_host_holds() {
    let scene = Scene::new(&["runaway", "misc", "kv", "echo"]);
    for (limit, words) in [
        ("table_elements_max = 1", "element"),
        ("component_bytes_max = \"1KiB\"", "larger than 1024 bytes"),
        ("tools_max = 1", "the limit is 1"),
        ("components_max = 1", "no room for more"),
        ("memory_bytes_max = \"64KiB\"", "memory"),
    ] {
        let host = limited(&scene, &format!("[host]\n{limit}"));
        let errors: Vec<Value> =
            ["runaway", "misc", "kv"].map(|name| scene.component(&host, name)["error"].clone()).into();
        let refused = errors.iter().filter(|error| error.as_str().is_some_and(|error| error.contains(words))).count();
        assert!(refused >= 2, "{limit}: {errors:?}");
    }
    let spinning = json!({});
    // Loading takes two: itself, and what the component says of its tools.
    let host = limited(&scene, "[host]\ncalls_max = 2");
    let calls = [scene.calling("spin", &spinning, &[]), scene.calling("spin", &spinning, &[])];
    scene.until_running(2);
    scene.call("spin", &spinning, &[]).has(6, &["2 calls run or wait"]);
    drop((calls, host));
    let host = limited(&scene, "[host]\nsandboxes_max = 1");
    let calls = [scene.calling("spin", &spinning, &[]), scene.calling("spin", &spinning, &[])];
    until("one of them waits for room", || {
        let seen = scene.machine.ps();
        let states: Vec<_> = seen["calls"].as_array().unwrap().iter().map(|call| call["state"].clone()).collect();
        states.len() == 2 && states.contains(&json!("queued")) && states.contains(&json!("running"))
    });
    drop((calls, host));
    let host = limited(&scene, "[host]\nsandboxes_max = 1\nqueue_max = 1");
    let calls = [scene.calling("spin", &spinning, &[]), scene.calling("spin", &spinning, &[])];
    until("one of them waits for room", || scene.machine.ps()["calls"].as_array().unwrap().len() == 2);
    scene.call("spin", &spinning, &[]).has(6, &[]);
    drop((calls, host));
    let host = limited(&scene, "[host]\nworkers = 3");
    let threads = fs::read_dir(format!("/proc/{}/task", host.child.id())).unwrap();
    let names = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name.starts_with("estop-guest-")).count(), 3);
    drop(host);
    let elsewhere = scene.machine.folder().join("checkpoints");
    let host = limited(&scene, &format!("[host]\ncheckpoint_to = \"file:{}\"", elsewhere.display()));
    scene.call("echo", &json!({"text": "x"}), &[]).has(0, &[]);
    crate::hosts::signal(&host, rustix::process::Signal::TERM);
    host.ended().has(0, &[]);
    assert!(fs::read_to_string(elsewhere).unwrap().contains("sha256"));
}
