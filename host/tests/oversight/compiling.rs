//! Loads: bounded, seen and stopped while they compile, and what compiles is gone when that is said.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use estop::{
    Cause, CompileChild, Component, Digest, End, HaltScope, Host, HostLimits, Interrupt, LoadError, Reached, Scope,
    Source,
};
use estop_tests::home::temporary;
use estop_tests::{call, completed, end_entry, guests, load, log, small, within};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::command::{PATIENCE, Running, estop};
use crate::hosts::{Machine, signal};

const ACTOR: &str = "alice";
/// What ends at once has ended within this, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(8);
/// As `estop run` has it (bytes).
const ADDRESS_SPACE_BYTES: u64 = 2 << 30;

/// A component that keeps a compiler busy for much longer than any test here looks.
fn slow() -> &'static [u8] {
    static SLOW: OnceLock<Vec<u8>> = OnceLock::new();
    SLOW.get_or_init(|| guests::slow_to_compile(30))
}

/// The same as a file.
fn slow_file() -> &'static str {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("slow-to-compile.wasm");
        fs::write(&path, slow()).unwrap();
        path
    });
    file.to_str().unwrap()
}

/// The estop command as a compiler, and how to tell its processes from those of other tests: by the last bytes of
/// their address space.
fn compiler() -> (CompileChild, u64) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let bytes = ADDRESS_SPACE_BYTES - 4096 * NEXT.fetch_add(1, Ordering::Relaxed);
    (CompileChild::program(env!("CARGO_BIN_EXE_estop")).address_space_bytes_max(bytes), bytes)
}

/// A host whose components are compiled by processes with this much address space.
fn host() -> (Host, u64) {
    let (child, bytes) = compiler();
    (small().compile_with(child).build().unwrap(), bytes)
}

/// The processes that compile for this process with this much address space.
fn compilers(parent: u32, address_space_bytes: u64) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = arguments.split('\0').collect();
        arguments.get(1..3) == Some(&["estop-compile-child", &parent.to_string()])
            && arguments.contains(&&*address_space_bytes.to_string())
    };
    pids.filter(is_one).collect()
}

/// Neither alive nor waiting to be reaped.
fn is_gone(pid: u32) -> bool {
    !PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Until one process compiles, and has bounded itself.
async fn compiling(parent: u32, address_space_bytes: u64) -> u32 {
    let begun = Instant::now();
    loop {
        if let [pid] = compilers(parent, address_space_bytes)[..]
            && fs::read_to_string(format!("/proc/{pid}/limits"))
                .is_ok_and(|limits| limit(&limits, "Max open files") == "0")
        {
            return pid;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing compiles");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The hard limit.
fn limit(limits: &str, name: &str) -> String {
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn begin(host: &Host, bytes: &'static [u8]) -> JoinHandle<Result<Component, LoadError>> {
    let host = host.clone();
    tokio::spawn(async move { host.load(Source::bytes(bytes)).await })
}

fn operator() -> Interrupt {
    Interrupt::new(Cause::Operator, ACTOR).reason("it takes too long")
}

/// It ended because of this, and nothing of it is left.
#[track_caller]
fn is_stopped(loaded: Result<Component, LoadError>, by: (Cause, &str), compiler: u32) {
    match loaded {
        Err(LoadError::Stopped { cause, actor, .. }) if (cause, &*actor) == by => {}
        other => panic!("{other:?}"),
    }
    assert!(is_gone(compiler), "the load was said to be stopped while its compiler was there");
}

/// Its own entry, and that it is the only one.
#[track_caller]
fn entry_of_the_load(log: &[Value]) -> &Value {
    let found: Vec<_> = log.iter().filter(|entry| entry["kind"] == "end" && entry["tool"] == "load").collect();
    let [entry] = found[..] else { panic!("{found:?}") };
    entry
}

/// A host that loads and runs a component as ever; its output and its fuel.
async fn echoes(what: &str, host: &Host) -> (Value, u64) {
    let bytes = guests::bytes("echo").len();
    let begun = Instant::now();
    let echo = within(load(host, "echo")).await;
    println!("{what}: loading {bytes} bytes took {:?}", begun.elapsed());
    let outcome = call(host, &echo, "echo", json!({ "text": "a" })).await;
    (completed(&outcome).clone(), outcome.fuel)
}

/// Row 16, promises 4, 11 and 13: whatever names it stops it, with its cause; then its process is gone, the host goes on,
/// and the log has it.
#[tokio::test]
async fn a_load_is_stopped_in_the_middle_by_whatever_names_it() {
    let digest = Digest::of(slow());
    let scopes = [
        Scope::Everything,
        Scope::Host,
        Scope::Component(digest),
        Scope::Agent("host".into()),
        Scope::Tool("load".into()),
    ];
    for scope in scopes {
        let (host, bytes) = host();
        let loading = begin(&host, slow());
        let compiler = compiling(std::process::id(), bytes).await;
        assert_eq!(host.live_calls(), 1);
        assert!(host.interrupt(Scope::Component(Digest::of(b"another")), operator()).is_empty());

        let begun = Instant::now();
        let interruption = host.interrupt(scope.clone(), operator());
        let reached: Vec<_> = interruption.reached().map(|(_, reached)| reached).collect();
        assert_eq!(reached, [Reached::Halted], "{scope:?}");
        is_stopped(within(loading).await.unwrap(), (Cause::Operator, ACTOR), compiler);
        assert!(begun.elapsed() < AT_ONCE, "{scope:?}: {:?}", begun.elapsed());
        assert_eq!(host.live_calls(), 0);

        let log = log(&host).await;
        let entry = entry_of_the_load(&log);
        assert_eq!(
            (&entry["agent"], &entry["status"], &entry["cause"]),
            (&json!("host"), &json!("stopped"), &json!("operator"))
        );
        assert_eq!((&entry["actor"], &entry["reason"]), (&json!(ACTOR), &json!("it takes too long")));
        assert_eq!(entry["component"], json!(digest), "{entry}");
        echoes("after the stop", &host).await;
    }
}

/// Promise 1: whoever does not wait any more has stopped it.
#[tokio::test]
async fn a_load_that_nobody_waits_for_is_stopped() {
    let (host, bytes) = host();
    let loading = begin(&host, slow());
    let compiler = compiling(std::process::id(), bytes).await;
    loading.abort();
    within(async {
        while host.live_calls() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(is_gone(compiler));
    let log = log(&host).await;
    assert_eq!(entry_of_the_load(&log)["cause"], json!("cancelled"));
}

/// Row 16: other loads go on meanwhile, and calls as well.
#[tokio::test]
async fn other_loads_go_on_while_one_compiles() {
    let (child, bytes) = compiler();
    let limits = HostLimits { sandboxes_max: 64, workers: 1, compiling_max: 2, ..HostLimits::default() };
    let host = small().limits(limits).compile_with(child).build().unwrap();
    let loading = begin(&host, slow());
    let compiler = compiling(std::process::id(), bytes).await;
    echoes("beside a slow one", &host).await;
    assert!(!is_gone(compiler) && !loading.is_finished(), "the slow one has ended before the others");
    drop(host.interrupt(Scope::Everything, operator()));
    is_stopped(within(loading).await.unwrap(), (Cause::Operator, ACTOR), compiler);
}

/// Promise 18, row 20: no more are compiled at one time than there are places; who waits for one is stopped there.
#[tokio::test]
async fn compiling_max() {
    let (child, bytes) = compiler();
    let limits = HostLimits { sandboxes_max: 64, workers: 1, compiling_max: 1, ..HostLimits::default() };
    let host = small().limits(limits).compile_with(child).build().unwrap();
    let loading = begin(&host, slow());
    let compiler = compiling(std::process::id(), bytes).await;
    static ECHO: OnceLock<Vec<u8>> = OnceLock::new();
    let echo = ECHO.get_or_init(|| guests::bytes("echo"));
    let waiting = begin(&host, echo);
    // Until the component is known by its digest: from then on it waits for a place.
    let interruption = within(async {
        loop {
            let interruption = host.interrupt(Scope::Component(Digest::of(echo)), operator());
            if !interruption.is_empty() {
                break interruption;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    within(interruption.released()).await;
    assert!(matches!(within(waiting).await.unwrap(), Err(LoadError::Stopped { cause: Cause::Operator, .. })));

    let waiting = begin(&host, echo);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(compilers(std::process::id(), bytes), [compiler]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!waiting.is_finished());
    drop(host.interrupt(Scope::Component(Digest::of(slow())), operator()));
    is_stopped(within(loading).await.unwrap(), (Cause::Operator, ACTOR), compiler);
    within(waiting).await.unwrap().unwrap();
}

/// Promises 6 and 12: a halt meets a load in the middle, and the next one before it begins; of a component, once it is
/// known which one that is.
#[tokio::test]
async fn a_halt_stops_a_load_and_keeps_it_out() {
    for scope in [HaltScope::All, HaltScope::Component(Digest::of(slow()))] {
        let (host, bytes) = host();
        let loading = begin(&host, slow());
        let compiler = compiling(std::process::id(), bytes).await;
        let halt = host.halt(scope.clone(), ACTOR, "it takes too long").unwrap();
        is_stopped(within(loading).await.unwrap(), (Cause::Halted, ACTOR), compiler);

        match within(begin(&host, slow())).await.unwrap() {
            Err(LoadError::Refused(why)) => assert!(why.contains("halted") && why.contains(ACTOR), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(compilers(std::process::id(), bytes).is_empty());
        if scope != HaltScope::All {
            echoes("not halted", &host).await;
        }
        host.lift(halt.halt, ACTOR, "it may").unwrap();
        echoes("lifted", &host).await;
    }
}

/// Shutting down stops a load, and is not over before that is.
#[tokio::test]
async fn shutdown_waits_for_the_compiler_to_be_gone() {
    let (host, bytes) = host();
    let loading = begin(&host, slow());
    let compiler = compiling(std::process::id(), bytes).await;
    within(host.shutdown()).await;
    assert!(is_gone(compiler));
    is_stopped(within(loading).await.unwrap(), (Cause::Shutdown, "host"), compiler);
    assert!(matches!(within(begin(&host, slow())).await.unwrap(), Err(LoadError::Closing)));
}

/// Promise 18, row 40: what takes more than a compiler may have is refused with the numbers, and the host lives.
#[tokio::test]
async fn what_is_too_much_to_compile_is_refused() {
    let program = || CompileChild::program(env!("CARGO_BIN_EXE_estop"));
    let size = slow().len().to_string();
    let cases: [(CompileChild, &[&str]); 3] = [
        (program().address_space_bytes_max(160 << 20), &["too big to compile", &size, "167772160 bytes"]),
        (program().cpu_max(Duration::from_secs(1)), &["too slow to compile", &size, "1 s of processor time"]),
        (program().deadline(Duration::from_millis(300)), &["too slow to compile", "300ms"]),
    ];
    for (child, words) in cases {
        let host = small().compile_with(child).build().unwrap();
        let error = within(begin(&host, slow())).await.unwrap().unwrap_err();
        assert!(matches!(error, LoadError::CompileLimit(_)), "{error:?}");
        for word in [words, &["refused", "CompileChild"]].concat() {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
        assert_eq!(host.live_calls(), 0);
        within(host.shutdown()).await;
    }
}

/// A program that is no compiler is not believed, whatever it writes.
#[tokio::test]
async fn a_program_that_is_no_compiler_is_not_believed() {
    let cases =
        [("/bin/true", "is no compiler"), ("/bin/echo", "is no compiler"), ("/no/such/program", "cannot start")];
    for (program, words) in cases {
        let host = small().compile_with(CompileChild::program(program)).build().unwrap();
        let error = host.load(Source::file(guests::path("echo"))).await.unwrap_err();
        assert!(matches!(error, LoadError::Compile(_)), "{error:?}");
        assert!(error.to_string().contains(words) && error.to_string().contains(program), "{error}");
    }
}

/// What compiles has nothing that it does not need.
#[tokio::test]
async fn a_compiler_is_confined() {
    let (host, bytes) = host();
    let loading = begin(&host, slow());
    let pid = compiling(std::process::id(), bytes).await;
    let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let (limits, status, stat) = (of("limits"), of("status"), of("stat"));
    assert_eq!(limit(&limits, "Max address space"), bytes.to_string());
    assert_eq!(limit(&limits, "Max cpu time"), "121");
    for nothing in ["Max open files", "Max core file size", "Max file size", "Max processes"] {
        assert_eq!(limit(&limits, nothing), "0", "{nothing}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(of("environ"), "");
    // Whoever runs the tests may have left some open for every program.
    let ours = descriptors("self").into_iter().filter(|fd| !closes_on_exec(fd));
    let expected: BTreeSet<_> = ours.chain(["0", "1", "2"].map(str::to_owned)).collect();
    assert_eq!(descriptors(&pid.to_string()), expected);
    // After the name: state, parent, process group, …, nice.
    let stat: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(stat[2], pid.to_string(), "a process group of its own");
    assert!(stat[16].parse::<i32>().unwrap() >= 10, "a low priority");
    drop(host.interrupt(Scope::Everything, operator()));
    is_stopped(within(loading).await.unwrap(), (Cause::Operator, ACTOR), pid);
}

fn descriptors(process: &str) -> BTreeSet<String> {
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    open.map(|fd| fd.file_name().into_string().unwrap()).collect()
}

fn closes_on_exec(fd: &str) -> bool {
    const CLOEXEC: u32 = 0o2_000_000;
    // One that is gone was open for the look only.
    let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else { return true };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & CLOEXEC != 0
}

/// What a process has compiled is what would have been compiled here; and what is in the cache is compiled by nobody.
#[tokio::test]
async fn a_component_is_the_same_wherever_it_was_compiled() {
    let home = temporary();
    // Once before, so that all find the file and the machine's memory alike.
    let once = echoes("loaded once", &small().build().unwrap()).await;
    let here = echoes("compiled here", &small().build().unwrap()).await;
    let (child, _) = compiler();
    let compiling = small().compile_with(child).cache(home.home()).build().unwrap();
    let elsewhere = echoes("compiled by a process", &compiling).await;
    // Nobody is there to compile.
    let nobody = CompileChild::program("/no/such/program");
    let cached = echoes("cached", &small().compile_with(nobody).cache(home.home()).build().unwrap()).await;
    assert_eq!([&here, &elsewhere, &cached], [&once; 3]);
}

/// Promise 11: without a process nothing stops a compiler, and nothing says that it was stopped before it is through.
#[tokio::test]
async fn a_load_that_compiles_in_this_process_is_stopping_until_it_is_through() {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    // Takes much longer than this, however fast the machine.
    let (component, least) = (COMPONENT.get_or_init(|| guests::slow_to_compile(3)), Duration::from_millis(200));
    for attempt in 0..40 {
        let host = small().build().unwrap();
        let loading = begin(&host, component);
        within(async { while !log(&host).await.iter().any(|entry| entry["kind"] == "start") {} }).await;
        // Nothing tells that the compiler has begun: later from time to time.
        tokio::time::sleep(Duration::from_millis(attempt * 10)).await;
        let interruption = host.interrupt(Scope::Component(Digest::of(component)), operator());
        assert_eq!((interruption.len(), interruption.unconfirmed().count(), host.live_calls()), (1, 1, 1));
        // Stopped again, while it is stopping.
        assert_eq!(host.interrupt(Scope::Host, operator().reason("again")).len(), 1);
        let [outcome] = &within(interruption.released()).await[..] else { panic!("one call was reached") };
        let End::Stopped(stopped) = &outcome.end else { panic!("{outcome:?}") };
        let loaded = within(loading).await.unwrap();
        assert!(matches!(loaded, Err(LoadError::Stopped { cause: Cause::Operator, .. })), "{loaded:?}");
        assert_eq!(end_entry(&log(&host).await, outcome)["status"], json!("stopped"));
        assert_eq!(host.live_calls(), 0);
        // Before the compiler begins, the load is released at once.
        if stopped.released > least {
            assert!(stopped.halted < stopped.released);
            return;
        }
    }
    panic!("it was never stopped while it was compiled, or nobody has waited for that");
}

/// The `estop run` of a component that takes long to compile, and its compiler.
async fn slow_run(machine: &Machine) -> (Running, u32) {
    let run = Running::start(estop(&machine.home(), &["run", slow_file()]));
    let compiler = compiling(run.child.id(), ADDRESS_SPACE_BYTES).await;
    (run, compiler)
}

/// Row 16: Ctrl-C ends `estop run` while it loads, and what compiles.
#[tokio::test]
async fn ctrl_c_kills_the_compiler_and_exits_with_10() {
    let machine = Machine::new();
    for (with, code, cause) in [(Signal::INT, 10, "operator"), (Signal::TERM, 12, "shutdown")] {
        let (run, compiler) = slow_run(&machine).await;
        let begun = Instant::now();
        signal(&run, with);
        run.ended().has(code, &[cause, "while the component was loaded", "nothing has run"]);
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        assert!(is_gone(compiler));
    }
}

/// `kill -9` of a host leaves no compiler behind, and the next host enters what it was doing.
#[tokio::test]
async fn kill_9_of_a_host_takes_its_compiler_along() {
    let machine = Machine::new();
    let (mut run, compiler) = slow_run(&machine).await;
    signal(&run, Signal::KILL);
    assert!(run.ends_within(AT_ONCE));
    let begun = Instant::now();
    while !is_gone(compiler) {
        assert!(begun.elapsed() < AT_ONCE, "process {compiler} goes on without its host");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    machine.short("anybody").has(0, &[]);
    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let died: Vec<_> = log.iter().filter(|entry| entry["kind"] == "call-died").collect();
    assert!(matches!(died[..], [entry] if entry["tool"] == "load"), "{died:?}");
}

/// Row 16, promises 4 and 11: an operator sees a load, what it is doing, and stops it from elsewhere.
#[tokio::test]
async fn an_operator_sees_a_load_and_stops_it() {
    let machine = Machine::new();
    let (run, compiler) = slow_run(&machine).await;
    let seen = machine.ps();
    let [load] = &seen["calls"].as_array().unwrap()[..] else { panic!("{seen}") };
    assert_eq!((&load["agent"], &load["tool"], &load["state"]), (&json!("host"), &json!("load"), &json!("running")));
    assert_eq!((&load["host_call"], &load["component"]), (&json!("load: compile"), &json!(Digest::of(slow()))));
    assert!(load["time_left_us"].as_u64().is_some_and(|left_us| left_us <= 600_000_000), "{load}");
    machine.estop(&["stop", load["call"].as_str().unwrap(), "--reason", "it takes too long"]).has(0, &[]);
    assert!(is_gone(compiler), "it was said to be stopped while its compiler was there");
    run.ended().has(10, &["stopped by", "operator", "while the component was loaded"]);
    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    assert_eq!(entry_of_the_load(&log)["reason"], json!("it takes too long"));
}

/// Row 16, promise 12: a halt of everything reaches a load like every call, and `estop run` exits with 11.
#[tokio::test]
async fn halting_everything_reaches_a_load() {
    let machine = Machine::new();
    let (run, compiler) = slow_run(&machine).await;
    let halted = machine.estop(&["halt", "--all", "--json"]).has(0, &[]).json();
    assert!(is_gone(compiler), "{halted}");
    assert_eq!(halted["hosts"][0]["calls"][0]["tool"], json!("load"), "{halted}");
    run.ended().has(11, &["halted"]);
    Running::start(estop(&machine.home(), &["run", slow_file()])).ended().has(6, &["was halted by"]);
}
