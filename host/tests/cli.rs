//! The `estop` command as people and scripts meet it: real processes, real signals.

use std::fs;
use std::io::{PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use estop_tests::guests::{self, Described, Hostile, Imports, Spec, root};
use estop_tests::output::lines;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Generous: a command that needs this long has failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// What ends at once has ended within this, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(8);

/// The command, with nothing of the terminal and the settings of whoever runs the tests.
fn estop(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estop"));
    for variable in ["ESTOP_LOG", "ESTOP_HOME", "RUST_BACKTRACE", "LINES"] {
        command.env_remove(variable);
    }
    command.env("COLUMNS", "100").env("CARGO_NET_OFFLINE", "true").env("ESTOP_HOME", shared_home());
    command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What most tests here do not look at; many processes at once on one home is what it is made for.
fn shared_home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("estop-home")
}

/// A guest's component as an argument, built once.
fn guest(name: &str) -> String {
    guests::path(name).to_str().unwrap().to_owned()
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn has(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked at host/"), "{}", self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self:?}"),
        }
    }
}

/// A command that runs, read line by line.
struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    said: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(lines);
        let stderr = child.stderr.take().map(lines);
        let none = || channel().1;
        Self { child, stdout: stdout.unwrap_or_else(none), stderr: stderr.unwrap_or_else(none), said: String::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Until it says a line with this in it on standard error.
    fn says(&mut self, word: &str) {
        loop {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.said += &line;
                    if line.contains(word) {
                        return;
                    }
                }
                Err(_) => panic!("it never said `{word}`, but: {}", self.said),
            }
        }
    }

    /// Until its status says so. For what it does and does not tell.
    fn until(&mut self, what: &str, mut there: impl FnMut(Pid) -> bool) {
        let begun = Instant::now();
        while !there(self.pid()) {
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended before it {what}");
            assert!(begun.elapsed() < PATIENCE, "it never {what}");
            thread::yield_now();
        }
    }

    fn wait(&mut self, most: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if begun.elapsed() > most {
                let _ = self.child.kill();
                panic!("it has not ended within {most:?}; it said: {}", self.said);
            }
            thread::yield_now();
        }
    }

    /// Its end, once its output has.
    fn ended(mut self) -> Ended {
        let begun = Instant::now();
        let mut stdout = String::new();
        // Blocks until the other end is closed: when it ends, and with a bound.
        while let Ok(line) = self.stdout.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            stdout += &line;
        }
        while let Ok(line) = self.stderr.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            self.said += &line;
        }
        let status = self.wait(PATIENCE.saturating_sub(begun.elapsed()));
        Ended { code: status.code(), stdout, stderr: std::mem::take(&mut self.said) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(args: &[&str]) -> Ended {
    Running::start(estop(args)).ended()
}

/// `estop run` of a guest's component.
fn run_tool(name: &str, args: &[&str]) -> Ended {
    let component = guest(name);
    run(&[&["run", &component], args].concat())
}

/// A file that is there as long as the folder is.
fn file(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn user() -> String {
    let id = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim().to_owned()
}

/// What the kernel says of a process.
fn status(pid: Pid, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

/// It has handlers for Ctrl-C and SIGTERM: from now on it is asked, and not killed.
fn handles_signals(pid: Pid) -> bool {
    let caught = status(pid, "SigCgt").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
    [Signal::INT, Signal::TERM].iter().all(|signal| caught >> (signal.as_raw() - 1) & 1 == 1)
}

/// One of its guest workers has used this much processor time (10 ms each).
fn a_guest_has_run_for(pid: Pid, ticks: u64) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.filter_map(Result::ok).any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let Some((before, after)) = stat.rsplit_once(')') else { return false };
        let utime = after.split_whitespace().nth(11).and_then(|ticks| ticks.parse::<u64>().ok());
        before.contains("(estop-guest") && utime.is_some_and(|used| used >= ticks)
    })
}

// What it prints

/// Shows 1: standard output carries the tool's output and nothing else.
#[test]
fn run_prints_the_output_and_nothing_else() {
    let filter = json!({"filter": ".users[] | select(.age > 30) | .name", "input": {"users": [
        {"name": "Ada", "age": 36}, {"name": "Bob", "age": 20}]}});
    let ended = run_tool("jq", &["-i", &filter.to_string()]).has(0, &[]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("[\"Ada\"]\n", ""));
    let ended = run_tool("echo", &["echo", "-i", r#"{"text":"größe 🛑"}"#]).has(0, &[]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("{\"text\":\"größe 🛑\"}\n", ""));
    // What a guest writes to its own standard output is not the tool's output.
    let ended = run_tool("misc", &["stdout_flood", "-i", r#"{"bytes":100000}"#]).has(0, &[]);
    assert_eq!(ended.stdout.lines().count(), 1);
    assert!(ended.stdout.trim().parse::<u64>().is_ok(), "{ended:?}");
    // An attachment is told and not printed.
    let ended = run_tool("misc", &["attach", "-i", r#"{"bytes":10}"#]).has(0, &["data.bin", "10 bytes"]);
    assert_eq!(ended.json(), json!({"text": "see the attachment"}));
}

/// Replaces what differs from run to run, if it is what it should be.
fn redact(mut outcome: Value) -> Value {
    let hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    let ulid = |text: &str| text.len() == 26 && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let fields = outcome.as_object_mut().unwrap();
    for (key, value) in fields.iter_mut() {
        let redacted = match (key.as_str(), &*value) {
            ("call", Value::String(id)) => id.strip_prefix("call-").is_some_and(ulid),
            ("component", Value::String(digest)) => {
                digest.strip_prefix("sha256:").is_some_and(|digest| digest.len() == 64 && hex(digest))
            }
            ("fuel", Value::Number(fuel)) => fuel.as_u64().is_some_and(|fuel| fuel > 0),
            ("elapsed_us" | "halted_us" | "released_us", Value::Number(time)) => time.as_f64().is_some_and(|t| t > 0.0),
            ("actor", Value::String(actor)) => *actor == user(),
            _ => false,
        };
        if redacted {
            *value = format!("[{key}]").into();
        }
    }
    outcome
}

/// Shows 2: `--json` is one object with every key, whatever happened.
#[test]
fn json_is_one_object_with_every_key() {
    let ended = run_tool("echo", &["--json", "-i", r#"{"text":"a"}"#]).has(0, &[]);
    assert_eq!(ended.stdout.lines().count(), 1);
    insta::assert_json_snapshot!("completed", redact(ended.json()));
    let ended = run_tool("misc", &["fail", "--json", "--agent", "support-7"]).has(3, &["this always fails"]);
    insta::assert_json_snapshot!("failed", redact(ended.json()));
    let ended = run_tool("echo", &["--json", "-i", r#"{"text":1}"#]).has(4, &[]);
    insta::assert_json_snapshot!("invalid_input", redact(ended.json()));
    let ended = run_tool("kv", &["commit_then_fail", "--json", "-i", r#"{"key":"a","value":7}"#]).has(3, &[]);
    insta::assert_json_snapshot!("failed_after_a_commit", redact(ended.json()));
    let ended = run_tool("misc", &["attach", "--json", "-i", r#"{"bytes":3}"#]).has(0, &[]);
    insta::assert_json_snapshot!("with_an_attachment", redact(ended.json()));
    let keys = |ended: &Ended| ended.json().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let refused = run_tool("echo", &["--json", "--agent", "../x", "-i", r#"{"text":""}"#]).has(6, &["../x"]);
    assert_eq!(keys(&refused), keys(&ended));
    assert_eq!(refused.json()["status"], "refused");
}

/// Shows 1: JSON on the command line, from a file, and from standard input.
#[test]
fn input_comes_from_the_command_line_a_file_or_standard_input() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "input.json", r#"{"text":"from a file"}"#);
    let ended = run_tool("echo", &["-i", &format!("@{path}")]).has(0, &[]);
    assert_eq!(ended.json()["text"], "from a file");

    let component = guest("echo");
    let mut command = estop(&["run", &component, "--input", "-"]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.child.stdin.take().unwrap().write_all(br#"{"text":"piped"}"#).unwrap();
    assert_eq!(running.ended().has(0, &[]).json()["text"], "piped");

    run_tool("echo", &["-i", "@/no/such/file"]).has(1, &["/no/such/file", "No such file"]);
    // Not for ever, and not all of it.
    run_tool("echo", &["-i", "@/dev/zero"]).has(4, &["larger than", "bytes"]);
}

/// Promise 18: the guest gets nothing that cannot be its input, and whoever sent it learns where it is wrong.
#[test]
fn invalid_input_names_the_place() {
    run_tool("echo", &["-i", "{\n  \"text\": oops}"]).has(4, &["not JSON", "line 2 column"]);
    run_tool("echo", &["-i", ""]).has(4, &["not JSON", "line 1 column 0"]);
    run_tool("echo", &["-i", r#"{"text":7}"#]).has(4, &["invalid-input", "/text", "string"]);
    run_tool("echo", &[]).has(4, &["invalid-input", "text", "required"]);
    let deep = "[".repeat(100_000);
    run_tool("echo", &["-i", &deep]).has(4, &["not JSON", "recursion limit"]);
    run_tool("misc", &["invalid"]).has(4, &["`nothing` is not enough"]);
}

// What stops a call

/// Shows 1, promise 19: a filter that never ends is stopped at its deadline, and what it cost is told.
#[test]
fn a_deadline_stops_a_filter_that_never_ends() {
    let stopped = |guest: &str, args: &[&str], deadline_ms: u32| {
        let deadline = format!("{deadline_ms}ms");
        let args = [args, &["--json", "--deadline", &deadline]].concat();
        let outcome = run_tool(guest, &args).has(14, &["stopped by host (deadline", "discarded"]).json();
        assert_eq!((&outcome["status"], &outcome["cause"]), (&json!("stopped"), &json!("deadline")));
        assert_eq!(outcome["actor"], "host");
        let elapsed_us = outcome["elapsed_us"].as_f64().unwrap();
        let deadline_us = f64::from(deadline_ms) * 1e3;
        assert!((deadline_us..deadline_us + 20e6).contains(&elapsed_us), "{outcome}");
        assert!(outcome["halted_us"].as_f64().unwrap() <= outcome["released_us"].as_f64().unwrap(), "{outcome}");
        outcome["fuel"].as_u64().unwrap()
    };
    assert!(stopped("jq", &["-i", r#"{"filter":"last(repeat(1))"}"#], 300) > 0);
    let (short, long) = (stopped("runaway", &["spin"], 100), stopped("runaway", &["spin"], 1500));
    assert!(0 < short && short < long, "{short} {long}");
    // Nothing is too short to be told as what it is.
    stopped("runaway", &["spin"], 0);
}

/// Shows 1, promise 19.
#[test]
fn fuel_stops_a_spin() {
    let ended = run_tool("runaway", &["spin", "--json", "--fuel", "50M"]).has(15, &["(fuel"]);
    assert_eq!((&ended.json()["cause"], &ended.json()["fuel"]), (&json!("fuel"), &json!(50_000_000)));
    let used = run_tool("echo", &["--json", "-i", r#"{"text":"a"}"#]).json()["fuel"].as_u64().unwrap();
    run_tool("echo", &["--fuel", &used.to_string(), "-i", r#"{"text":"a"}"#]).has(0, &[]);
    run_tool("echo", &["--fuel", &(used - 1).to_string(), "-i", r#"{"text":"a"}"#]).has(15, &["nothing was committed"]);
}

/// Shows 1, promise 18. Also where the limit is no number of pages, and where there is more of it than a guest can use.
#[test]
fn memory_stops_an_allocation() {
    for memory in ["32MiB", "33000001"] {
        let ended = run_tool("runaway", &["allocate", "--json", "--memory", memory]).has(16, &["(memory", "granted"]);
        assert_eq!(ended.json()["cause"], "memory");
    }
    run_tool("echo", &["--memory", "4GiB", "-i", r#"{"text":"a"}"#]).has(0, &[]);
    // Less than it needs to begin with.
    run_tool("echo", &["--memory", "64KiB", "-i", r#"{"text":"a"}"#]).has(16, &["(memory", "granted 65536"]);
}

/// Shows 4: too much output is a clear error, and the size of the machine's memory has nothing to do with it.
#[test]
fn a_huge_output_is_refused() {
    run_tool("misc", &["big_output", "-i", r#"{"bytes":1073741824}"#]).has(16, &["(memory", "granted 67108864"]);
    let (most, around) = (2 << 20, json!({"text": ""}).to_string().len());
    let ended = run_tool("misc", &["big_output", "-i", &json!({"bytes": most - around}).to_string()]).has(0, &[]);
    assert_eq!(ended.stdout.len(), most + 1);
    let ended = run_tool("misc", &["big_output", "-i", &json!({"bytes": most - around + 1}).to_string()]);
    assert_eq!(ended.has(3, &["2097153 bytes", "limit is 2097152"]).stdout, "");
    let ended = run_tool("misc", &["big_output", "-i", r#"{"bytes":5000000}"#]);
    assert_eq!(ended.has(3, &["limit for a transfer"]).stdout, "");
}

/// Shows 4: who is told that a tool trapped is told why, in the words of its panic.
#[test]
fn a_trap_tells_the_panic() {
    let ended = run_tool("misc", &["panic", "--json"]).has(5, &["trapped", "as asked"]);
    assert!(ended.json()["error"]["message"].as_str().unwrap().contains("as asked"), "{ended:?}");
    run_tool("misc", &["exit"]).has(5, &["exited with status 0"]);
    run_tool("misc", &["stack_overflow"]).has(5, &["trapped"]);
    let ended = run_tool("kv", &["write_then_panic", "--json", "-i", r#"{"key":"a","value":1}"#]);
    let outcome = ended.has(5, &["1 uncommitted writes", "discarded", "nothing was committed"]).json();
    assert_eq!((&outcome["commits"]["writes"], &outcome["discarded"]["writes"]), (&json!(0), &json!(1)));
}

/// A tool that has written three keys and spins.
fn spinning(args: &[&str]) -> Running {
    let component = guest("runaway");
    let input = r#"{"keys":3,"value_bytes":100}"#;
    let args = [&["run", component.as_str(), "write_then_spin", "-i", input, "--deadline", "1h"], args].concat();
    let mut running = Running::start(estop(&args));
    running.says("progress 3/3 written");
    running
}

/// Shows 2, promises 8 and 13: Ctrl-C stops a spin at once, and says by whom and what is gone.
#[test]
fn ctrl_c_stops_at_once_and_says_what_was_discarded() {
    let running = spinning(&["--json"]);
    let begun = Instant::now();
    running.signal(Signal::INT);
    let discarded = "3 uncommitted writes (315 bytes) were discarded; nothing was committed";
    let ended = running.ended().has(10, &[&format!("stopped by {} (operator: Ctrl-C)", user()), discarded]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let outcome = ended.json();
    assert!(outcome["released_us"].as_f64().unwrap() < 2e6, "{outcome}");
    insta::assert_json_snapshot!("stopped_by_ctrl_c", redact(outcome));
}

/// Shows 2: without `--json` nothing is on standard output, because there is no output.
#[test]
fn a_stopped_call_prints_no_output() {
    let running = spinning(&[]);
    running.signal(Signal::INT);
    let ended = running.ended().has(10, &["stopped by", "discarded"]);
    assert_eq!(ended.stdout, "");
}

/// Promise 8: what was committed before Ctrl-C is told apart from what is gone.
#[test]
fn ctrl_c_tells_committed_from_discarded() {
    let component = guest("kv");
    let args = ["run", &component, "commit_then_spin", "-i", r#"{"key":"a","value":1}"#, "--json", "--deadline", "1h"];
    let mut running = Running::start(estop(&args));
    running.says("committed");
    running.signal(Signal::INT);
    let outcome = running.ended().has(10, &["1 uncommitted writes", "1 writes (2 bytes) were committed before"]).json();
    assert_eq!(outcome["commits"], json!({"points": 1, "writes": 1, "bytes": 2}));
    assert_eq!(outcome["discarded"], json!({"writes": 1, "bytes": 2}));
}

/// Shows 1: the README's first command prints what the README says.
#[test]
fn the_first_command_of_the_readme_prints_what_it_says() {
    let input = format!("@{}", root().join("example-tools/jq/example.json").display());
    let folder = root().join("example-tools/jq").display().to_string();
    let ended = run(&["run", &folder, "--install-target", "-i", &input]).has(0, &[]);
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    assert!(readme.contains("run example-tools/jq --install-target -i @example-tools/jq/example.json"));
    assert!(readme.contains(&format!("The first prints `{}`", ended.stdout.trim())), "{}", ended.stdout);
}

/// Shows 2: a service manager's way to ask has a cause of its own.
#[test]
fn sigterm_stops_with_cause_shutdown() {
    let running = spinning(&["--json"]);
    running.signal(Signal::TERM);
    let ended = running.ended().has(12, &["(shutdown: SIGTERM)", "discarded"]);
    assert_eq!((&ended.json()["cause"], &ended.json()["reason"]), (&json!("shutdown"), &json!("SIGTERM")));
}

/// Row 18: whoever runs the tool pulls the switch with no grace, so a tool that ignores requests gets none.
#[test]
fn ctrl_c_gives_no_grace() {
    let running = spinning(&["--grace", "1h"]);
    running.signal(Signal::INT);
    let begun = Instant::now();
    running.ended().has(10, &["operator"]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

/// Promise 4: a component that spins while it describes itself is stopped like any other, and the code says so.
#[test]
fn ctrl_c_stops_a_component_that_is_describing_itself() {
    let folder = TempDir::new().unwrap();
    let tools = [Spec::new("tool")];
    let list = "(loop $again (br $again))";
    let spins = Described { tools: &tools, list, imports: Some(Imports::default()), ..Described::default() };
    let component = file(&folder, "spins.wasm", spins.component());
    let mut running = Running::start(estop(&["run", &component, "--deadline", "1h"]));
    running.until("describes itself", |pid| a_guest_has_run_for(pid, 2));
    running.signal(Signal::INT);
    let ended = running.ended().has(10, &["(operator) while the component was loaded", "nothing has run"]);
    assert_eq!(ended.stdout, "");
}

/// Promise 6: whenever Ctrl-C comes after the command listens for it, it is not lost: the spin does not survive it.
#[test]
fn an_early_ctrl_c_sticks() {
    let component = guest("runaway");
    for step in 0..16 {
        let mut running = Running::start(estop(&["run", &component, "spin", "--deadline", "1h"]));
        running.until("handles signals", handles_signals);
        // Lands at another point of the start each time: building the host, loading, describing, calling.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2 * step * step) {
            std::hint::spin_loop();
        }
        running.signal(Signal::INT);
        let begun = Instant::now();
        running.ended().has(10, &["stopped"]);
        assert!(begun.elapsed() < AT_ONCE, "step {step}: {:?}", begun.elapsed());
    }
}

/// A standard error that takes nothing more, because nobody reads it.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    // The other end is the same pipe for the command, which is not to know.
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer.into())
}

/// A command that spins, on a standard error that takes nothing. It hangs in saying how far it is.
fn hanging() -> (Running, PipeReader) {
    let component = guest("runaway");
    let input = r#"{"keys":3,"value_bytes":100}"#;
    let mut command = estop(&["run", &component, "write_then_spin", "-i", input, "--deadline", "1h"]);
    let (reader, full) = full_pipe();
    command.stderr(full);
    let mut running = Running::start(command);
    running.until("spins", |pid| a_guest_has_run_for(pid, 2));
    (running, reader)
}

/// Promise 17, row 27: a first signal whose stop is not confirmed, because saying so hangs; a second one ends the process
/// at once, though saying that hangs as well.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    let (mut running, _reader) = hanging();
    running.signal(Signal::INT);
    // Another signal: two of the same that come close together can be one.
    running.signal(Signal::TERM);
    assert_eq!(running.wait(AT_ONCE).code(), Some(8));
}

/// Promise 17, row 27: one signal is enough. The watchdog ends what hangs.
#[test]
fn a_process_that_hangs_after_a_signal_is_ended_by_its_watchdog() {
    let (mut running, _reader) = hanging();
    let begun = Instant::now();
    running.signal(Signal::INT);
    assert_eq!(running.wait(Duration::from_secs(60)).code(), Some(8));
    assert!(begun.elapsed() >= Duration::from_secs(9), "the stop was not given its time: {:?}", begun.elapsed());
}

/// Shows 2: two presses of Ctrl-C on a terminal are a stop too, however close together they come.
#[test]
fn ctrl_c_again_and_again_ends_the_process() {
    let (mut running, _reader) = hanging();
    let begun = Instant::now();
    while running.child.try_wait().unwrap().is_none() {
        running.signal(Signal::INT);
        assert!(begun.elapsed() < AT_ONCE);
        thread::yield_now();
    }
    assert_eq!(running.child.wait().unwrap().code(), Some(8));
}

// What may not run

/// Shows 7: whoever gives something else than a component learns what it is.
#[test]
fn bad_components_are_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    let good = fs::read(guest("echo")).unwrap();
    for (name, bytes, words) in [
        ("module.wasm", wat::parse_str("(module)").unwrap(), ["core module", "wasm32-wasip2"]),
        ("cut.wasm", good[..good.len() / 2].to_vec(), ["cut off", "again"]),
        ("random.wasm", b"\x1b[2Jrandom bytes".to_vec(), ["not WebAssembly", r"\x1b[2Jrandom"]),
        ("empty.wasm", vec![], ["empty", "build it again"]),
        ("text.wasm", b"(component)".to_vec(), ["text", "wasm-tools parse"]),
        ("other.wasm", wat::parse_str("(component)").unwrap(), ["does not export", "estop:tool/tool@0.1.0"]),
    ] {
        let path = file(&folder, name, bytes);
        for command in ["run", "inspect"] {
            let ended = run(&[command, &path]).has(6, &words);
            assert_eq!(ended.stdout, "");
            assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
        }
    }
    run(&["run", "/no/such.wasm"]).has(1, &["/no/such.wasm", "No such file"]);
    run(&["run", folder.path().to_str().unwrap()]).has(2, &["no Cargo.toml"]);
    run(&["build", folder.path().to_str().unwrap()]).has(2, &["no Cargo.toml"]);
    run_tool("crm", &["refund", "-i", r#"{"order":1}"#]).has(6, &["example:crm/people@0.1.0", "not granted"]);
}

/// Shows 7: a mistake on the command line is told before anything runs, with what was meant.
#[test]
fn mistakes_on_the_command_line_are_told() {
    run_tool("runaway", &["spni"]).has(2, &["no tool `spni`", "did you mean `spin`?", "It has:", "polite"]);
    run_tool("runaway", &["../x"]).has(2, &["no tool `../x`", "It has:"]);
    run_tool("runaway", &[]).has(2, &["several tools", "spin", "polite"]);
    run_tool("echo", &["--deadline", "soon"]).has(2, &["soon", "500ms"]);
    run_tool("echo", &["--fuel", "much"]).has(2, &["much", "k, M, G or T"]);
    run_tool("echo", &["--memory", "-1"]).has(2, &["-1"]);
    run_tool("echo", &["--agent", "../x", "-i", r#"{"text":""}"#]).has(6, &["agent's name", "../x"]);
    run_tool("echo", &["--agent", "host", "-i", r#"{"text":""}"#]).has(6, &["`host`"]);
    run(&["rnu"]).has(2, &["rnu"]);
    run(&["run"]).has(2, &["COMPONENT"]);
    run(&["drill", "--runs", "0"]).has(2, &["0"]);
}

/// Promise 18: what a component says of itself, or of its work, cannot drive the terminal.
#[test]
fn control_characters_of_a_guest_do_not_reach_the_terminal() {
    let bad = |text: &str| text.contains(|c: char| c.is_control() && c != '\n');
    let evil = "\u{1b}]0;owned\u{7}\u{9b}31m\r\u{8}";
    // In its output, which stays the same for whoever reads it as JSON.
    let hidden = format!("{evil}\u{202e}\u{200b}\u{7f}ä🛑");
    let input = json!({ "text": hidden }).to_string();
    for options in [vec!["-i", &input], vec!["--json", "-i", &input]] {
        let ended = run_tool("echo", &options).has(0, &[]);
        assert!(!bad(&ended.stdout) && !ended.stdout.contains(['\u{202e}', '\u{200b}']), "{ended:?}");
        let output = ended.json();
        assert_eq!(output.get("output").unwrap_or(&output)["text"], hidden);
    }
    // In its description of itself.
    let folder = TempDir::new().unwrap();
    let schema = json!({"description": evil, "title": evil}).to_string();
    let tools = [Spec::new("tool").description(format!("says {evil}\nand more")).input_schema(schema)];
    let message = "\u{1b}[2J\u{9b}Hgone\nprogress 9/9 forged\r";
    let imports = Imports {
        component: &format!(
            r#"(import "estop:tool/call@0.1.0" (instance $call
                (export "progress" (func (param "done" u64) (param "total" (option u64)) (param "message" string)))))
            (core module $words (memory (export "memory") 1) (data (i32.const 0) "{}"))
            (core instance $words (instantiate $words))
            (alias core export $words "memory" (core memory $words-memory))
            (core func $progress (canon lower (func $call "progress") (memory $words-memory)))"#,
            message.bytes().map(|byte| format!("\\{byte:02x}")).collect::<String>()
        ),
        host: r#"(export "progress" (func $progress))"#,
        module: r#"(import "host" "progress" (func $progress (param i64 i32 i64 i32 i32)))"#,
    };
    let reports = format!(
        "(call $progress (i64.const 1) (i32.const 0) (i64.const 0) (i32.const 0) (i32.const {}))
         (loop $again (br $again))",
        message.len()
    );
    let guest = Hostile { call: &reports, ..Hostile::default() };
    let component = Described { tools: &tools, guest, imports: Some(imports), ..Described::default() }.component();
    let path = file(&folder, "evil.wasm", component);
    let ended = run(&["inspect", &path]).has(0, &[]);
    assert!(ended.stdout.contains("says") && ended.stdout.contains("and more"), "{ended:?}");
    assert!(!bad(&ended.stdout) && !bad(&ended.stderr), "{ended:?}");
    let ended = run(&["inspect", &path, "--json"]).has(0, &[]);
    assert!(!bad(&ended.stdout), "{ended:?}");
    assert!(ended.json()["tools"][0]["description"].as_str().unwrap().starts_with(&format!("says {evil}")));
    // In its progress.
    let mut running = Running::start(estop(&["run", &path, "--deadline", "1h"]));
    running.says("progress 1");
    running.signal(Signal::INT);
    let ended = running.ended().has(10, &["Hgone     progress 9/9 forged"]);
    assert!(!bad(&ended.stderr), "{ended:?}");
    assert!(!ended.stderr.lines().any(|line| line.starts_with("progress 9/9")), "{ended:?}");
    // In a failure and in a panic.
    let forged = format!("{evil}\nestop: completed");
    let input = json!({"filter": format!("error({})", json!(forged))}).to_string();
    let ended = run_tool("jq", &["-i", &input]).has(3, &["failed", "owned"]);
    assert!(!bad(&ended.stderr), "{ended:?}");
    assert!(!ended.stderr.lines().any(|line| line.starts_with("estop: completed")), "{ended:?}");
    let input = json!({"key": forged, "value": 1}).to_string();
    let ended = run_tool("kv", &["write_then_panic", "-i", &input]).has(5, &["after writing"]);
    assert!(!bad(&ended.stderr), "{ended:?}");
    assert!(!ended.stderr.lines().any(|line| line.starts_with("estop: completed")), "{ended:?}");
}

/// Promise 18: what a tool logs is for whoever wants it, and is no way to flood or to forge.
#[test]
fn what_a_tool_logs_is_shown_to_whoever_asks_and_bounded() {
    let component = guest("misc");
    let args = ["run", &component, "log", "-i", r#"{"steps":5000}"#];
    assert_eq!(run(&args).has(0, &[]).stderr, "");
    let mut command = estop(&args);
    command.env("ESTOP_LOG", "estop::tool=info");
    let ended = Running::start(command).ended().has(0, &["estop::tool", "step 0", "critical"]);
    assert_eq!(ended.stdout, "null\n");
    let lines = ended.stderr.lines().count();
    assert!((500..=1000).contains(&lines), "{lines} lines");
}

/// Promise 17: a reader that goes away is no failure of the command, and no reason to panic.
#[test]
fn a_closed_output_is_no_panic() {
    let component = guest("misc");
    let input = r#"{"bytes":1000000}"#;
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let mut command = estop(&["run", &component, "big_output", "-i", input]);
    command.stdout(closed());
    let ended = Running::start(command).ended().has(0, &[]);
    assert_eq!(ended.stderr, "");
    for args in [["inspect", &component], ["--help", ""]] {
        let mut command = estop(&args[..if args[1].is_empty() { 1 } else { 2 }]);
        command.stdout(closed());
        Running::start(command).ended().has(0, &[]);
    }
    // Nobody reads what it says beside the output: the code still tells.
    for (args, code) in [
        (vec!["run", &component, "progress", "-i", r#"{"steps":10000}"#], 0),
        (vec!["run", &component, "fail"], 3),
        (vec!["run", &component, "log", "-i", r#"{"steps":10000}"#], 0),
        (vec!["run", "/no/such.wasm"], 1),
        (vec!["run", &component, "spin-that-is-not-there"], 2),
    ] {
        let mut command = estop(&args);
        command.stderr(closed());
        let mut running = Running::start(command);
        assert_eq!(running.wait(PATIENCE).code(), Some(code), "{args:?}");
    }
    let runaway = guest("runaway");
    let mut command = estop(&["run", &runaway, "spin", "--deadline", "1h"]);
    command.stderr(closed());
    let mut running = Running::start(command);
    running.until("spins", |pid| a_guest_has_run_for(pid, 2));
    running.signal(Signal::INT);
    assert_eq!(running.wait(PATIENCE).code(), Some(10));
}

// What else it does

/// Promise 18: what a component could use, and what it would get, before anything runs.
#[test]
fn inspect_tells_tools_imports_and_grants() {
    let component = guest("runaway");
    let text = run(&["inspect", &component]).has(0, &[]).stdout;
    for word in [
        "runaway (sha256:",
        "tools",
        "spin",
        "Compute for ever",
        "imports",
        "wasi:cli/environment@0.2",
        "empty: no arguments",
    ] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    let json = run(&["inspect", &component, "--json"]).has(0, &[]).json();
    let mut keys: Vec<_> = json.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["component", "imports", "name", "tools"]);
    assert_eq!(json["name"], "runaway");
    let tools = json["tools"].as_array().unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["spin", "recurse", "allocate", "write_then_spin", "ignore", "polite"]);
    insta::assert_json_snapshot!("inspected_tool", tools[3]);
    let imports = json["imports"].as_array().unwrap();
    assert!(
        !imports.is_empty()
            && imports.iter().all(|import| import["gets"].as_str().is_some_and(|gets| !gets.is_empty()))
    );
}

/// Shows 3: the drill's report has this shape. How fast it is depends on the machine, and is not asked here.
#[test]
fn drill_reports_every_case() {
    let ended = run(&["drill", "--runs", "3", "--json"]);
    let report = ended.json();
    let passed = report["passed"].as_bool().unwrap();
    let ended = ended.has(if passed { 0 } else { 8 }, &["drilling: spin", "drilling: 1,000 suspended"]);
    assert_eq!(ended.stdout.lines().count(), 1);
    assert!(report["wake_p99_us"].as_f64().unwrap() > 0.0, "{report}");
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<_> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "spin",
            "spin with calls",
            "recursion",
            "host sleep",
            "host function that waits",
            "memory growth",
            "start function spinning",
            "realloc spinning",
            "post-return spinning",
            "stopped before start",
            "1 of 200 spinning",
            "all of 200 spinning",
            "1,000 suspended",
        ]
    );
    for case in cases {
        let mut keys: Vec<_> = case.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "max_us",
            "name",
            "p50_us",
            "p99_us",
            "passed",
            "released_max_us",
            "released_p50_us",
            "released_p99_us",
            "runs",
            "target_us",
            "unconfirmed",
        ];
        assert_eq!(keys, expected);
        assert_eq!(case["unconfirmed"], 0, "{case}");
        assert!(case["runs"].as_u64().unwrap() >= 3, "{case}");
        let time = |key: &str| case[key].as_f64().unwrap();
        assert!(
            0.0 <= time("p50_us") && time("p50_us") <= time("p99_us") && time("p99_us") <= time("max_us"),
            "{case}"
        );
    }
    assert_eq!(passed, cases.iter().all(|case| case["passed"] == true));
}

/// Shows 1: whoever asks for help in a crisis reads first how to stop, and last what the exit codes mean.
#[test]
fn help_puts_stopping_first_and_lists_the_exit_codes() {
    let help = run(&["--help"]).has(0, &[]).stdout;
    let at = |word: &str| help.find(word).unwrap_or_else(|| panic!("`{word}` is not in: {help}"));
    assert!(at("Ctrl-C") < at("Usage:") && at("Usage:") < at("Commands:") && at("  drill") < at("  run"));
    assert!(at("  run") < at("Exit codes:"));
    insta::assert_snapshot!("help", help);
    insta::assert_snapshot!("help_run", run(&["run", "--help"]).has(0, &[]).stdout);
    assert_eq!(run(&["--version"]).has(0, &[]).stdout, format!("estop {}\n", env!("CARGO_PKG_VERSION")));
}

/// Promise 18: a name that is a path makes no folder anywhere, and what is there is left alone.
#[test]
fn new_refuses_names_that_are_paths_and_folders_that_exist() {
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir_all(inner.join("taken")).unwrap();
    let new = |name: &str| {
        let mut command = estop(&["new", "--", name]);
        command.current_dir(&inner);
        Running::start(command).ended()
    };
    for name in ["../x", "a/b", "/tmp/x", "..", "", "Upper", "1st", "-x", "a b", &"n".repeat(65), "a\x1b[31m"] {
        let ended = new(name).has(2, &["no name for a crate"]);
        assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
    }
    new("taken").has(2, &["`taken` is there already"]);
    let left = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!((left(folder.path()), left(&inner), left(&inner.join("taken"))), (1, 1, 0));
    let mut command = estop(&["new", "tool", "--sdk", "/no/sdk"]);
    command.current_dir(&inner);
    Running::start(command).ended().has(2, &["--sdk"]);
    assert!(!inner.join("tool").exists());
}

/// Where the guests are built: what the new crate depends on is there already.
fn target() -> PathBuf {
    root().join("example-tools/target")
}

/// Shows 5: the new crate builds, runs and passes its own tests as it is.
#[test]
fn new_makes_a_crate_that_builds_runs_and_passes_its_tests() {
    static PROVIDED: OnceLock<String> = OnceLock::new();
    // Provides the target for WebAssembly.
    PROVIDED.get_or_init(|| guest("echo"));
    let folder = TempDir::new().unwrap();
    let sdk = root().join("guest-sdk");
    let here = |mut command: Command| {
        command.current_dir(folder.path()).env("CARGO_TARGET_DIR", target());
        Running::start(command).ended()
    };
    let made = here(estop(&["new", "estop-cli-test", "--sdk", sdk.to_str().unwrap()])).has(0, &[]);
    assert!(made.stdout.contains("estop run estop-cli-test"), "{made:?}");
    let krate = folder.path().join("estop-cli-test");
    // The versions that are there, so that nothing has to be fetched.
    fs::copy(root().join("example-tools/Cargo.lock"), krate.join("Cargo.lock")).unwrap();

    let built = here(estop(&["build", "estop-cli-test"])).has(0, &[]);
    let component = PathBuf::from(built.stdout.trim_end());
    assert!(component.is_file() && component.extension().is_some_and(|e| e == "wasm"), "{built:?}");
    let ended = here(estop(&["run", "estop-cli-test", "-i", r#"{"name":"World"}"#])).has(0, &[]);
    assert_eq!(ended.json(), json!({"text": "Hello, World!"}));
    here(estop(&["run", "estop-cli-test", "-i", r#"{"name":""}"#])).has(4, &["there is nobody to greet"]);
    here(estop(&["run", "estop-cli-test"])).has(4, &["name"]);

    let mut command = Command::new("cargo");
    command.args(["test", "--manifest-path"]).arg(krate.join("Cargo.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("CARGO_NET_OFFLINE", "true");
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET"];
    for name in flags {
        command.env_remove(name);
    }
    let tested = here(command).has(0, &[]);
    assert!(tested.stdout.contains("somebody_is_greeted ... ok"), "{tested:?}");

    // What does not build says so, and is no success.
    fs::write(krate.join("src/lib.rs"), "fn broken(").unwrap();
    here(estop(&["build", "estop-cli-test"])).has(1, &["does not build", "error"]);
}
