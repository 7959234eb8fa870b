//! Loading: what may run here, and how somebody whose component may not is told what to do.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use estop::wasmtime::component::Linker;
use estop::{
    AdmissionError, BuildError, CallCtx, CallLimits, Cause, Component, Digest, End, Host, HostLimits, LoadError, Source,
};
use estop_tests::guests::{self, Described, Hostile, Imports, Spec};
use estop_tests::probe::Probe;
use estop_tests::{call, completed, load, small, within};
use futures_util::future::join_all;
use serde_json::{Value, json};

fn host() -> Host {
    Probe::new().grant(small()).build().unwrap()
}

fn described(tools: &[Spec]) -> Source {
    Source::bytes(Described { tools, ..Described::default() }.component())
}

async fn refused(host: &Host, source: Source) -> LoadError {
    match within(host.load(source)).await {
        Ok(component) => panic!("{component:?} was loaded"),
        Err(error) => error,
    }
}

/// Refused because of what it says of its tools, with these words.
async fn describes_badly(host: &Host, spec: Spec, words: &[&str]) {
    let error = refused(host, described(&[spec])).await;
    assert!(matches!(error, LoadError::Tools(_)), "{error:?}");
    contains(&error, words);
}

fn contains(error: &LoadError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
}

/// Promise 18: what is no component does not run, and the message says what it is and what to do.
#[tokio::test]
async fn what_is_no_component_is_refused_and_told_what_it_is() {
    let host = host();
    let component = Hostile::default().component();
    let cases: [(&str, Vec<u8>, &[&str]); 8] = [
        ("empty", vec![], &["empty", "build it again"]),
        ("core module", wat::parse_str("(module)").unwrap(), &["core module", "wasm32-wasip2"]),
        ("cut off", component[..component.len() - 7].to_vec(), &["cut off", "again"]),
        ("only its beginning", component[..3].to_vec(), &["cut off after 3 bytes"]),
        ("other bytes", b"\x7fELF\x1b[31m".to_vec(), &["not WebAssembly", r"\x7fELF", "give a component"]),
        ("text", b"(component)".to_vec(), &["text", "wasm-tools parse"]),
        ("no tool", wat::parse_str("(component)").unwrap(), &["does not export estop:tool/tool@0.1.0", "nothing"]),
        ("damaged", [&component[..8], b"\x63\x01\x00"].concat(), &["not valid at offset"]),
    ];
    for (what, bytes, words) in cases {
        let error = refused(&host, Source::bytes(bytes)).await;
        assert!(matches!(error, LoadError::Admission(_)), "{what}: {error:?}");
        contains(&error, words);
    }
    let other = "(component (instance $i) (export \"estop:tool/tool@9.0.0\" (instance $i)))";
    let error = refused(&host, Source::bytes(wat::parse_str(other).unwrap())).await;
    assert!(matches!(error, LoadError::Admission(AdmissionError::OtherVersion { .. })), "{error:?}");
    contains(&error, &["estop:tool/tool@9.0.0", "estop:tool/tool@0.1.0", "build it with"]);
}

/// Promise 18 (every wait has a bound): a file that is none is refused, also one whose opening would wait for ever.
#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let host = host();
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.wasm");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let missing = folder.path().join("missing.wasm");
    let cases: [(PathBuf, &str); 4] = [
        (missing, "No such file"),
        (folder.path().to_owned(), "not a regular file"),
        (pipe, "not a regular file"),
        ("/dev/zero".into(), "not a regular file"),
    ];
    for (path, why) in cases {
        let loading = tokio::time::timeout(Duration::from_secs(20), host.load(Source::file(&path)));
        let Ok(loaded) = loading.await else { panic!("{} is still being opened", path.display()) };
        let error = loaded.unwrap_err();
        assert!(matches!(error, LoadError::Read { .. }), "{error:?}");
        contains(&error, &[&path.display().to_string(), why]);
    }
}

/// Promise 18: with a digest, these bytes are loaded or none.
#[tokio::test]
async fn expect_digest_admits_these_bytes_and_no_others() {
    let host = host();
    let bytes = Hostile::default().component();
    let (expected, other) = (Digest::of(&bytes), Digest::of(b"other"));
    let error = refused(&host, Source::bytes(bytes.clone()).expect_digest(other)).await;
    assert!(matches!(error, LoadError::Digest { .. }), "{error:?}");
    contains(&error, &[&expected.to_string(), &other.to_string(), "not loaded"]);
    let component = host.load(Source::bytes(bytes.clone()).expect_digest(expected)).await.unwrap();
    assert_eq!(component.digest(), expected);
    // Not even what is loaded already.
    let error = refused(&host, Source::bytes(bytes).expect_digest(other)).await;
    assert!(matches!(error, LoadError::Digest { .. }), "{error:?}");
    assert_eq!(expected.to_string().parse(), Ok(expected));
    assert!("sha256:short".parse::<Digest>().is_err());
}

/// Promise 18: a component's name is a key of its state, so it cannot be a path or drive a terminal.
#[tokio::test]
async fn names_that_could_be_paths_are_refused() {
    let host = host();
    let bytes: std::sync::Arc<[u8]> = Hostile::default().component().into();
    for name in ["", ".", "..", "a/b", "../x", "a\\b", "a\0b", "a\x1b[31m", &"n".repeat(129)] {
        let error = refused(&host, Source::bytes(bytes.clone()).named(name)).await;
        assert!(matches!(error, LoadError::Name(_)), "{name:?}: {error:?}");
        contains(&error, &["name", "128 bytes"]);
    }
    for name in ["a", "größe 🛑", "a.b", &"n".repeat(128)] {
        let component = host.load(Source::bytes(bytes.clone()).named(name)).await.unwrap();
        assert_eq!(component.name(), name);
    }
    let component = host.load(Source::bytes(bytes.clone())).await.unwrap();
    assert_eq!(component.name(), Digest::of(&bytes).to_string());
}

/// Promise 18: nothing that was not granted. The author of a tool learns at once of everything that is missing.
#[tokio::test]
async fn every_missing_import_is_named() {
    let imports = Imports {
        component: r#"
            (import "example:one/first@1.0.0" (instance (export "f" (func (param "x" string) (result u32)))))
            (import "wasi:cli/environment@0.2.6" (instance))
            (import "example:two/second" (instance
                (export "handle" (type $handle (sub resource))) (export "g" (func (result (own $handle))))))
            (import "lone" (func))"#,
        host: "",
        module: "",
    };
    let tools = [Spec::new("tool")];
    let component = Described { tools: &tools, imports: Some(imports), ..Described::default() }.component();
    let error = refused(&host(), Source::bytes(component)).await;
    let LoadError::Imports(mut missing) = error else { panic!("{error:?}") };
    missing.sort();
    assert_eq!(missing, ["example:one/first@1.0.0", "example:two/second", "lone"]);
    let message = LoadError::Imports(missing).to_string();
    assert!(message.contains("example:one/first@1.0.0, example:two/second, lone, which are not granted"), "{message}");
}

/// Promise 18: one missing import, as a real toolchain names it.
#[tokio::test]
async fn an_ungranted_import_of_a_real_tool_is_named() {
    let host = host();
    let error = refused(&host, Source::file(guests::path("crm"))).await;
    let LoadError::Imports(missing) = &error else { panic!("{error:?}") };
    assert_eq!(missing, &["example:crm/people@0.1.0"]);
    contains(&error, &["which is not granted here"]);
}

/// Promise 18: an interface that is granted has the type that it has; a guest cannot make it another one.
#[tokio::test]
async fn an_import_of_another_type_does_not_fit_the_contract() {
    let imports = Imports {
        component: r#"(import "estop:tool/call@0.1.0" (instance (export "progress" (func (param "lift" string)))))"#,
        host: "",
        module: "",
    };
    let tools = [Spec::new("tool")];
    let component = Described { tools: &tools, imports: Some(imports), ..Described::default() }.component();
    let error = refused(&host(), Source::bytes(component)).await;
    assert!(matches!(error, LoadError::Contract(_)), "{error:?}");
    assert!(error.to_string().contains("estop:tool/call@0.1.0"), "{error}");
}

/// Promise 18: what is called like the tool interface and is something else never runs.
#[tokio::test]
async fn an_export_of_another_type_does_not_fit_the_contract() {
    let empty = r#"(component (instance $i) (export "estop:tool/tool@0.1.0" (instance $i)))"#;
    let error = refused(&host(), Source::bytes(wat::parse_str(empty).unwrap())).await;
    assert!(matches!(error, LoadError::Contract(_)), "{error:?}");
    assert!(error.to_string().contains("list-tools"), "{error}");
}

/// Promise 18: what cannot have its place in the pool is refused at the door, not during a call.
#[tokio::test]
async fn a_component_that_cannot_fit_into_the_pool_is_refused() {
    let tools = [Spec::new("tool")];
    let beside = "(core module $m (memory 1)) (core instance (instantiate $m)) (core instance (instantiate $m))";
    let three = Described { tools: &tools, beside, ..Described::default() }.component();
    let limits = HostLimits { sandboxes_max: 2, ..HostLimits::default() };
    let tight = Probe::new().grant(small()).limits(limits).build().unwrap();
    let error = refused(&tight, Source::bytes(three.clone())).await;
    assert!(matches!(error, LoadError::Compile(_)), "{error:?}");
    contains(&error, &["3 Wasm linear memories", "maximum of 2"]);
    let component = host().load(Source::bytes(three)).await.unwrap();
    assert_eq!(component.tools().len(), 1);
}

/// Row 14: `memory.atomic.wait` would block a thread that nothing can interrupt.
#[tokio::test]
async fn threads_are_refused_as_such() {
    let tools = [Spec::new("tool")];
    for beside in [
        "(core module (memory 1 1 shared))",
        "(core module (memory 1 1 shared) (func (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))))",
    ] {
        let component = Described { tools: &tools, beside, ..Described::default() }.component();
        let error = refused(&host(), Source::bytes(component)).await;
        assert!(matches!(error, LoadError::Admission(AdmissionError::Threads { .. })), "{error:?}");
        contains(&error, &["threads", "without threads"]);
    }
}

/// Promise 18: a schema comes from a guest; what it refers to is never fetched, from nowhere.
#[tokio::test]
async fn a_schema_that_refers_outside_is_refused_and_nothing_is_fetched() {
    let host = host();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let remote = format!("http://{}/schema.json", server.local_addr().unwrap());
    for reference in
        [remote.as_str(), "file:///etc/passwd", "other.json", "https://json-schema.org/draft/2020-12/schema"]
    {
        let schema = json!({ "type": "object", "properties": { "a": { "$ref": reference } } }).to_string();
        let spec = Spec::new("tool").input_schema(schema.clone());
        describes_badly(&host, spec, &["input schema of `tool`", reference, "/properties/a", "$defs"]).await;
        let spec = Spec { output_schema: Some(schema.into()), ..Spec::new("tool") };
        describes_badly(&host, spec, &["output schema of `tool`", reference]).await;
    }
    assert_eq!(server.accept().map(drop).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Promise 18: a tool's name is used by agents, in logs and on command lines.
#[tokio::test]
async fn a_bad_tool_name_is_refused() {
    let host = host();
    for name in ["", " ", "a b", "../x", "a.b", "größe", "a\nb", "\x1b[31m", &"n".repeat(65)] {
        describes_badly(&host, Spec::new(name), &["the name", "a-z, A-Z, 0-9, `-` and `_`"]).await;
    }
    let names = ["a", "_", "A-1_z", &"n".repeat(64)];
    let component = host.load(described(&names.map(Spec::new))).await.unwrap();
    let found: Vec<_> = component.tools().iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(found, names);
}

/// Promise 18: which of two tools of one name would a halt of that name mean?
#[tokio::test]
async fn tools_that_are_there_twice_or_not_at_all_are_refused() {
    let host = host();
    let error = refused(&host, described(&["a", "b", "a"].map(Spec::new))).await;
    assert!(matches!(error, LoadError::Tools(_)), "{error:?}");
    contains(&error, &["`a` is there twice"]);
    let error = refused(&host, described(&[])).await;
    assert!(matches!(error, LoadError::Tools(_)), "{error:?}");
    contains(&error, &["it has none"]);
}

/// Promise 18: every string has a bound with a name. A description goes into the context of a model.
#[tokio::test]
async fn a_huge_description_or_version_is_refused() {
    let host = host();
    let text = |bytes: usize| "d".repeat(bytes);
    let spec = Spec::new("tool").description(text((16 << 10) + 1));
    describes_badly(&host, spec, &["description of `tool` has 16385 bytes", "16384"]).await;
    let spec = Spec { version: text(65).into(), ..Spec::new("tool") };
    describes_badly(&host, spec, &["version of `tool` has 65 bytes", "64"]).await;
    let spec = Spec { version: text(64).into(), ..Spec::new("tool").description(text(16 << 10)) };
    let component = host.load(described(&[spec])).await.unwrap();
    assert_eq!((component.tools()[0].description.len(), component.tools()[0].version.len()), (16 << 10, 64));
}

/// Promise 18: a schema that cannot be used says so when the component is loaded, not at the first call.
#[tokio::test]
async fn a_bad_schema_is_refused() {
    let host = host();
    let huge = json!({ "description": "x".repeat(64 << 10) }).to_string();
    let cases: [(&str, &[&str]); 7] = [
        ("", &["not JSON"]),
        ("{\"type\": \u{1b}}", &["not JSON"]),
        ("{\"type\": \"strnig\"}", &["not valid", "type"]),
        ("{\"pattern\": \"(\"}", &["pattern"]),
        ("{\"$schema\": \"http://example.com/mine\"}", &["http://example.com/mine", "$schema"]),
        ("{\"$ref\": \"#\"}", &["refers to itself"]),
        (&huge, &["bytes", "65536"]),
    ];
    for (schema, words) in cases {
        describes_badly(&host, Spec::new("tool").input_schema(schema), words).await;
    }
}

/// Promise 18, row 15: `list-tools` is guest code. It may do what it wants and gets nowhere.
#[tokio::test]
async fn list_tools_that_gives_no_answer_is_refused() {
    let probe = Probe::new();
    let call_limits =
        CallLimits { deadline: Duration::from_millis(300), fuel: 10_000_000_000, ..CallLimits::default() };
    let host = probe.grant(small()).call_limits(call_limits).build().unwrap();
    let cases: [(&str, &str, &[&str]); 8] = [
        ("traps", "unreachable", &["unreachable"]),
        ("spins", "(loop $again (br $again))", &["stopped (cause deadline)"]),
        ("sleeps", "(call $sleep)", &["stopped (cause deadline)"]),
        ("waits", "(call $wait)", &["stopped (cause deadline)"]),
        ("grows", "(drop (memory.grow (i32.const 1023)))", &["stopped (cause memory)"]),
        ("answers from nowhere", "(return (i32.const -8))", &["out of bounds"]),
        ("answers unaligned", "(return (i32.const 1))", &["aligned"]),
        ("answers more than there is", "(i32.store (i32.const 65540) (i32.const -1))", &["out of bounds"]),
    ];
    let tools = [Spec::new("tool")];
    for (what, list, words) in cases {
        let component = Described { tools: &tools, list, pages_max: 2000, ..Described::default() }.component();
        let error = refused(&host, Source::bytes(component)).await;
        assert!(matches!(error, LoadError::Describe(_)), "{what}: {error:?}");
        contains(&error, words);
    }
    assert_eq!(host.live_calls(), 0);
}

/// Promise 18: what is no text is no description.
#[tokio::test]
async fn a_description_that_is_no_text_is_refused() {
    let error = refused(&host(), described(&[Spec::new("tool").description(b"\xff\xfe".to_vec())])).await;
    assert!(matches!(error, LoadError::Describe(_)), "{error:?}");
    contains(&error, &["utf-8"]);
}

/// Row 15: a start function runs while a component describes itself, too.
#[tokio::test]
async fn a_start_function_that_spins_is_stopped_while_describing() {
    let call_limits = CallLimits { deadline: Duration::from_millis(100), ..CallLimits::default() };
    let host = Probe::new().grant(small()).call_limits(call_limits).build().unwrap();
    let start = "(func $spin (loop $again (br $again))) (start $spin)";
    let error = refused(&host, Source::bytes(Hostile { start, ..Hostile::default() }.component())).await;
    assert!(matches!(error, LoadError::Describe(_)), "{error:?}");
    contains(&error, &["cause deadline"]);
}

/// Promise 18: a guest that exits while it describes itself ends only itself.
#[tokio::test]
async fn list_tools_that_exits_is_refused() {
    let imports = Imports {
        component: r#"
            (import "wasi:cli/exit@0.2.6" (instance $exit (export "exit" (func (param "status" (result))))))
            (core func $exit (canon lower (func $exit "exit")))"#,
        host: r#"(export "exit" (func $exit))"#,
        module: r#"(import "host" "exit" (func $exit (param i32)))"#,
    };
    let tools = [Spec::new("tool")];
    let list = "(call $exit (i32.const 0))";
    let component = Described { tools: &tools, list, imports: Some(imports), ..Described::default() }.component();
    let error = refused(&host(), Source::bytes(component)).await;
    assert!(matches!(error, LoadError::Describe(_)), "{error:?}");
    contains(&error, &["exited with status 0"]);
}

/// Promise 18: `list-tools` runs without grants. It has no state to read, to write or to commit.
#[tokio::test]
async fn list_tools_has_no_state() {
    // What is written into a memory that stands beside the guest's is read by functions beside it.
    let component = r#"
        (import "wasi:keyvalue/store@0.2.0-draft2" (instance $store
            (export "bucket" (type $bucket (sub resource)))
            (type $error' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
            (export "error" (type $error (eq $error')))
            (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $error)))))))
        (core module $answers
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "is-error") (result i32) (i32.load8_u (i32.const 64)))
            (func (export "error") (result i32) (i32.load8_u (i32.const 68))))
        (core instance $answers (instantiate $answers))
        (alias core export $answers "memory" (core memory $answers-memory))
        (alias core export $answers "realloc" (core func $answers-realloc))
        (alias core export $answers "is-error" (core func $is-error))
        (alias core export $answers "error" (core func $error))
        (core func $open (canon lower (func $store "open") (memory $answers-memory) (realloc $answers-realloc)))"#;
    let host_exports = r#"
        (export "open" (func $open)) (export "is-error" (func $is-error)) (export "error" (func $error))"#;
    let module = r#"
        (import "host" "open" (func $open (param i32 i32 i32)))
        (import "host" "is-error" (func $is-error (result i32)))
        (import "host" "error" (func $error (result i32)))"#;
    let imports = Imports { component, host: host_exports, module };
    let tools = [Spec::new("tool")];
    // Traps unless the answer is the error `access-denied`.
    let list = "
        (call $open (i32.const 0) (i32.const 0) (i32.const 64))
        (if (i32.ne (call $is-error) (i32.const 1)) (then unreachable))
        (if (i32.ne (call $error) (i32.const 1)) (then unreachable))";
    // Traps unless it is a bucket.
    let open = "
        (call $open (i32.const 0) (i32.const 0) (i32.const 64))
        (if (call $is-error) (then unreachable))";
    let guest = Hostile { call: open, ..Hostile::default() };
    let component =
        Described { tools: &tools, list, guest, imports: Some(imports), ..Described::default() }.component();
    let host = host();
    let component = host.load(Source::bytes(component)).await.unwrap();
    completed(&call(&host, &component, "tool", Value::Null).await);
}

/// Promise 9 and 18: what was unloaded is gone from the host, and can come back.
#[tokio::test]
async fn a_component_can_be_unloaded_and_loaded_again() {
    let limits = HostLimits { components_max: 1, ..HostLimits::default() };
    let host = Probe::new().grant(small()).limits(HostLimits { sandboxes_max: 8, ..limits }).build().unwrap();
    let component = load(&host, "echo").await;
    host.unload(&component);
    // There is room for another one.
    let other = host.load(Source::bytes(Hostile::default().component())).await.unwrap();
    // What still holds it can go on calling it.
    assert_eq!(completed(&call(&host, &component, "echo", json!({"text": "a"})).await)["text"], "a");
    host.unload(&other);
    host.unload(&other);
    let again = load(&host, "echo").await;
    assert_eq!(again.digest(), component.digest());
    assert_eq!(completed(&call(&host, &again, "echo", json!({"text": "b"})).await)["text"], "b");
}

/// Promise 18: many at once get the same component, also where there is room for only one.
#[tokio::test]
async fn concurrent_loads_of_the_same_are_one_component() {
    let limits = HostLimits { components_max: 1, sandboxes_max: 16, ..HostLimits::default() };
    let host = Probe::new().grant(small()).limits(limits).build().unwrap();
    let bytes: std::sync::Arc<[u8]> = Hostile::default().component().into();
    let loads = (0..16).map(|_| host.load(Source::bytes(bytes.clone())));
    let components: Vec<Component> = within(join_all(loads)).await.into_iter().map(Result::unwrap).collect();
    for component in &components {
        assert_eq!(component.digest(), Digest::of(&bytes));
        completed(&call(&host, component, "victim", Value::Null).await);
    }
    // One unload forgets it.
    host.unload(&components[0]);
    let other = Described { tools: &[Spec::new("other")], ..Described::default() }.component();
    host.load(Source::bytes(other)).await.unwrap();
}

/// Promise 5: components that cannot be loaded leave nothing behind that would be in the way of others.
#[tokio::test]
async fn refused_components_take_no_room() {
    let limits = HostLimits { components_max: 1, sandboxes_max: 8, ..HostLimits::default() };
    let host = Probe::new().grant(small()).limits(limits).build().unwrap();
    for _ in 0..20 {
        refused(&host, described(&[Spec::new("bad name")])).await;
    }
    assert_eq!(host.live_calls(), 0);
    let component = host.load(Source::bytes(Hostile::default().component())).await.unwrap();
    completed(&call(&host, &component, "victim", Value::Null).await);
}

/// An embedder whose own interface does not link is told so when the host is built.
#[test]
fn an_interface_that_does_not_link_is_told_when_the_host_is_built() {
    let twice = |linker: &mut Linker<CallCtx>| {
        linker.instance("example:a/b")?.func_wrap("f", |_, (): ()| Ok(()))?;
        linker.instance("example:a/b")?.func_wrap("f", |_, (): ()| Ok(()))
    };
    let Err(error) = small().interface(twice).build() else { panic!("it was built") };
    assert!(matches!(error, BuildError::Interface(_)), "{error:?}");
    assert!(error.to_string().contains("cannot link a host interface"), "{error}");
}

/// The memory that a call is granted at most, but for the pages that the component itself needs.
const BIG_BYTES: usize = 60 << 20;
const BIG_START: usize = 128 << 10;

/// A tool `big` that has `BIG_BYTES` from `BIG_START`, untouched, when it runs these instructions.
fn big(call: &str) -> Source {
    let call =
        format!("(if (i32.eq (memory.grow (i32.const {})) (i32.const -1)) (then unreachable)) {call}", BIG_BYTES >> 16);
    let start = "
        (func $check (param $at i32) (param $expected i32)
            (if (i32.ne (i32.load8_u (local.get $at)) (local.get $expected)) (then unreachable)))";
    let guest = Hostile { call: &call, start, ..Hostile::default() };
    Source::bytes(Described { tools: &[Spec::new("big")], guest, ..Described::default() }.component())
}

/// Row 14: copying and filling the largest memory in a loop is halted like any other loop, in a fraction of the time
/// that one such operation takes.
#[tokio::test]
async fn bulk_memory_operations_are_halted_in_their_middle() {
    let (half, middle) = (BIG_BYTES / 2, BIG_START + BIG_BYTES / 2);
    let operations = [
        format!("(memory.fill (i32.const {BIG_START}) (i32.const 7) (i32.const {BIG_BYTES}))"),
        format!("(memory.copy (i32.const {middle}) (i32.const {BIG_START}) (i32.const {half}))"),
        format!("(memory.copy (i32.const {BIG_START}) (i32.const {middle}) (i32.const {half}))"),
    ];
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    for operation in operations {
        // On fresh memory, where it takes longest.
        let component = host.load(big(&operation)).await.unwrap();
        let outcome = call(&host, &component, "big", Value::Null).await;
        completed(&outcome);
        let one = outcome.elapsed;

        let looped = format!("(drop (call $describing)) (loop $again {operation} (br $again))");
        let component = host.load(big(&looped)).await.unwrap();
        let mut halted = Vec::new();
        for _ in 0..21 {
            let marks = probe.marks();
            let call = host.agent("a").call(&component, "big", Value::Null).start();
            probe.marked(marks + 1).await;
            // It is about to begin, and is left alone until it is in the middle.
            let begun = Instant::now();
            while begun.elapsed() < one / 4 {
                std::thread::yield_now();
            }
            assert_eq!(call.interrupt(Cause::Operator, "test").len(), 1);
            let outcome = within(call.outcome()).await;
            let End::Stopped(stopped) = &outcome.end else { panic!("{:?}", outcome.end) };
            halted.push(stopped.halted);
        }
        halted.sort();
        println!("{operation}: one {one:?}, halted p50 {:?}, max {:?}", halted[10], halted[20]);
        assert!(halted[10] < Duration::from_millis(100), "{halted:?}");
        assert!(halted[10] < one / 4, "{operation} takes {one:?}, and it was halted after {halted:?}");
    }
}

/// Row 14: what is cut into pieces still does what it did, at every edge and in both directions.
#[tokio::test]
async fn bulk_memory_operations_compute_what_they_did() {
    let host = host();
    let end = BIG_START + BIG_BYTES;
    // Bytes around the edges of the area and of its first pieces.
    let places = [0, 1, 65_535, 65_536, 65_537, 131_071, 131_072, BIG_BYTES / 2, BIG_BYTES - 1];
    let checks = |expected: u8| -> String {
        places.iter().map(|at| format!("(call $check (i32.const {}) (i32.const {expected}))", BIG_START + at)).collect()
    };
    let fill = |value: u8, from: usize, bytes: usize| {
        format!("(memory.fill (i32.const {from}) (i32.const {value}) (i32.const {bytes}))")
    };
    let check = |at: usize, expected: u8| format!("(call $check (i32.const {at}) (i32.const {expected}))");
    let filled = format!(
        "{}{}{}{}",
        fill(171, BIG_START, BIG_BYTES),
        checks(171),
        check(BIG_START - 1, 0),
        fill(9, end, 0) + &check(end - 1, 171)
    );
    // Ten bands, moved by 100 000 bytes in either direction over themselves: every band keeps its edges.
    let (band, by) = (1 << 20, 100_000);
    let bands: String = (0..10).map(|n| fill(n as u8 + 1, BIG_START + n * band, band)).collect();
    let edges = |shift: isize| -> String {
        let at = |offset: usize| (BIG_START as isize + offset as isize + shift) as usize;
        (1..9).map(|n| check(at(n * band), n as u8 + 1) + &check(at((n + 1) * band - 1), n as u8 + 1)).collect()
    };
    let copy = |to: usize, from: usize, bytes: usize| {
        format!("(memory.copy (i32.const {to}) (i32.const {from}) (i32.const {bytes}))")
    };
    let up = bands.clone() + &copy(BIG_START + by, BIG_START, 10 * band) + &edges(by as isize);
    let down = bands + &copy(BIG_START, BIG_START + by, 10 * band - by) + &edges(-(by as isize));
    for instructions in [filled, up, down] {
        let component = host.load(big(&instructions)).await.unwrap();
        completed(&call(&host, &component, "big", Value::Null).await);
    }
    // Beyond the end nothing is written, and it traps as it did.
    let outside = copy(end - 10, BIG_START, 70_000);
    let component = host.load(big(&outside)).await.unwrap();
    let outcome = call(&host, &component, "big", Value::Null).await;
    let End::Trapped(why) = &outcome.end else { panic!("{:?}", outcome.end) };
    assert!(why.contains("out of bounds memory access"), "{why}");
}
