//! What a program gets, and what its call is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use estop::{Containment, EffectState, End, Grantee, Grants, ProgramGrant, ProgramLimits};
use estop_tests::{load, small, within};
use serde_json::json;

use super::{Shell, TOKEN, failure, folder, output, supervisor};

#[tokio::test]
async fn a_program_has_what_its_grant_gives_and_nothing_else() {
    let shell = Shell::new().await;
    let ran = shell.call("run", "cat; echo out; echo err >&2; exit 3").await;
    assert_eq!(output(&ran), &json!({ "code": 3, "signal": null, "stdout": "out\n", "stderr": "err\n" }));
    assert_eq!(ran.effects.len(), 1);
    assert_eq!((&*ran.effects[0].name, ran.effects[0].state), ("program sh", EffectState::Performed));
    assert_eq!(ran.to_json()["subprocesses"], json!(ran.subprocesses.unwrap().word()));
    assert_eq!(output(&shell.call("run", "kill -9 $$").await)["signal"], 9);

    let read = json!({ "program": "/bin/sh", "arguments": ["-c", "wc -c < /dev/stdin"], "stdin": "x".repeat(300_000) });
    let ran = within(shell.host.agent("a").call(&shell.component, "run", read).start().outcome()).await;
    assert_eq!(output(&ran)["stdout"].as_str().unwrap().trim(), "300000");

    // Its environment, its folder, its descriptors.
    let ran = shell.call("run", "exec env").await;
    let environment: BTreeMap<&str, &str> =
        output(&ran)["stdout"].as_str().unwrap().lines().filter_map(|line| line.split_once('=')).collect();
    // One mark is estop's, where there is no namespace; `PWD` is the shell's own.
    let names: Vec<&str> = environment.keys().copied().filter(|name| *name != "ESTOP_TREE").collect();
    assert_eq!(names, [TOKEN, "HOME", "PATH", "PWD", "TMPDIR"]);
    assert_eq!((environment["HOME"], environment["TMPDIR"]), (environment["PWD"], environment["PWD"]));
    let empty = shell.call("run", "ls -A; touch here; ls -ld . | cut -c1-10; pwd").await;
    let said = output(&empty)["stdout"].as_str().unwrap();
    let [mode, path] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert_eq!(mode, "drwx------");
    assert!(!std::path::Path::new(path).exists(), "a folder is left: {path}");
    // One that is open without `O_CLOEXEC`, as an embedder may have it.
    let open = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let ran = shell.call("run", "ls /proc/$$/fd").await;
    assert_eq!(output(&ran)["stdout"], "0\n1\n2\n", "{open:?}");
    assert_ne!(folder(&shell.call("run", "pwd").await), folder(&shell.call("run", "pwd").await));
    assert!(shell.alive().is_empty());
}

#[tokio::test]
async fn what_is_not_granted_is_not_started() {
    let grant = ProgramGrant::new("/bin/echo").arguments(["hello", "*"]);
    let host = small().supervise_with(supervisor()).grant(Grantee::everyone().agent("a"), Grants::new().program(grant));
    let host = host.build().unwrap();
    let component = load(&host, "programs").await;
    let run = async |agent: &str, program: &str, arguments: &[&str]| {
        let input = json!({ "program": program, "arguments": arguments });
        within(host.agent(agent).call(&component, "run", input).start().outcome()).await
    };
    for program in ["echo", "/bin/echo"] {
        assert_eq!(output(&run("a", program, &["hello", "world"]).await)["stdout"], "hello world\n");
    }
    for (agent, program, arguments, why) in [
        ("b", "echo", &["hello", "world"][..], "no program"),
        ("a", "sh", &["-c", "echo"], "no program"),
        ("a", "../bin/echo", &["hello", "world"], "no program"),
        ("a", "/usr/../bin/echo", &["hello", "world"], "no program"),
        ("a", "", &[], "no program"),
        ("a", "echo", &["hello"], "may not give these arguments"),
        ("a", "echo", &["hello", "world", "x"], "may not give these arguments"),
        ("a", "echo", &["bye", "world"], "may not give these arguments"),
    ] {
        let refused = run(agent, program, arguments).await;
        assert!(failure(&refused, "denied").contains(why), "{refused:?}");
        // Nothing has left the sandbox.
        assert!(refused.effects.is_empty() && refused.subprocesses.is_none(), "{refused:?}");
    }
    assert!(failure(&run("a", "echo", &["hello", "nul\0"]).await, "program").contains("null byte"));

    // Where nobody has said how to supervise.
    let grants = || Grants::new().program(ProgramGrant::new("/bin/echo"));
    let bare = small().grant(Grantee::everyone(), grants()).build().unwrap();
    let component = load(&bare, "programs").await;
    let refused = bare.agent("a").call(&component, "run", json!({ "program": "echo" })).start();
    assert!(failure(&within(refused.outcome()).await, "denied").contains("starts no programs"));
    // By a program that does not know how.
    let wrong = small().supervise_with(estop::ProcessSupervisor::program("/bin/true"));
    let wrong = wrong.grant(Grantee::everyone(), grants()).build().unwrap();
    let component = load(&wrong, "programs").await;
    let refused = wrong.agent("a").call(&component, "run", json!({ "program": "echo" })).start();
    assert!(failure(&within(refused.outcome()).await, "program").contains("process_supervisor"));
    // Which a host is told when it is built.
    for grant in
        [ProgramGrant::new("echo"), ProgramGrant::new("/nowhere"), ProgramGrant::new("/bin/sh").arguments(["[x"])]
    {
        let refused = small().grant(Grantee::everyone(), Grants::new().program(grant)).build();
        assert!(refused.err().unwrap().to_string().starts_with("the program"));
    }
}

/// A tool that asks another one lends it nothing that it has not itself, and is lent nothing.
#[tokio::test]
async fn a_child_has_no_more_programs_than_its_parent() {
    let echo = || Grants::new().program(ProgramGrant::new("/bin/echo"));
    let plan = json!({ "steps": [{ "tool": "programs/run", "input": { "program": "echo", "arguments": ["hello"] } }] });
    for (grantee, is_allowed) in [
        (Grantee::everyone(), true),
        (Grantee::everyone().agent("a"), true),
        (Grantee::everyone().component("programs"), false),
        (Grantee::everyone().component("nest"), false),
    ] {
        let host = small().supervise_with(supervisor()).grant(grantee.clone(), echo()).build().unwrap();
        let _programs = load(&host, "programs").await;
        let nest = load(&host, "nest").await;
        let call = host.agent("a").call(&nest, "run", plan.clone()).start();
        let outcome = within(call.outcome()).await;
        let answer = output(&outcome)["answers"][0].to_string();
        let (words, effects) = if is_allowed { ("hello\\n", 1) } else { ("denied", 0) };
        assert!(answer.contains(words), "{grantee:?}: {answer}");
        assert_eq!(outcome.effects.len(), effects, "{outcome:?}");
    }
}

/// Row 40, promise 18: each limit of a program is met.
#[tokio::test]
async fn each_limit_of_a_program_holds() {
    let limited = async |limits: ProgramLimits| Shell::with(supervisor(), |grant| grant.limits(limits)).await;
    let none = ProgramLimits::default;

    let shell = limited(ProgramLimits { time: Duration::from_millis(200), ..none() }).await;
    let over = shell.call("run", "sleep 1000 & sleep 1000").await;
    assert!(failure(&over, "limit").contains("has run for 200ms"), "{over:?}");
    assert_eq!(over.effects[0].state, EffectState::Unknown);
    assert!(shell.alive().is_empty());

    let shell = limited(ProgramLimits { cpu: Duration::from_secs(1), ..none() }).await;
    assert_eq!(output(&shell.call("run", "while :; do :; done").await)["signal"], 9);

    let shell = limited(ProgramLimits { memory_bytes_max: 64 << 20, ..none() }).await;
    let much = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
    assert_ne!(output(&shell.call("run", much).await)["stdout"], "100000000\n");
    assert_eq!(output(&Shell::new().await.call("run", much).await)["stdout"], "100000000\n", "the test is no test");

    let shell = limited(ProgramLimits { file_bytes_max: 1 << 20, ..none() }).await;
    let written = shell.call("run", "head -c 2000000 /dev/zero > much; wc -c < much").await;
    assert_eq!(output(&written)["stdout"], "1048576\n");

    let shell = limited(ProgramLimits { output_bytes_max: 1 << 20, ..none() }).await;
    let over = shell.call("run", "yes").await;
    assert!(failure(&over, "limit").contains("more than 1048576 bytes"), "{over:?}");

    for containment in super::containments().await {
        let limits = ProgramLimits { processes_max: 8, ..none() };
        let shell = Shell::with(supervisor().only([containment]), |grant| grant.limits(limits)).await;
        let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo $i; wait";
        let over = shell.start("run", script);
        let over = within(over.outcome()).await;
        // Where the kernel counts them it gives the shell no more, and that says so and ends.
        let is_told = matches!(&over.end, End::Completed(output) if output.json["stderr"].to_string().contains("fork"));
        let is_kernels = containment == Containment::Namespace && is_told;
        assert!(is_kernels || failure(&over, "limit").contains("more than 8 processes"), "{over:?}");
        assert!(shell.alive().is_empty());
    }

    // Programs of one call at one time.
    assert_eq!(output(&Shell::new().await.call("many", "sleep 1000").await), &json!(16));
}

/// Where nobody can verify that nothing is left, it is refused unless its grant accepts that, and then it is said.
#[tokio::test]
async fn where_nothing_contains_it_a_program_is_refused_or_said_to_be_unverified() {
    let nothing = || supervisor().only([Containment::Unverified]);
    let refused = Shell::with(nothing(), |grant| grant).await.call("run", "exit 0").await;
    assert!(failure(&refused, "denied").contains("does not accept that"), "{refused:?}");
    let shell = Shell::with(nothing(), ProgramGrant::accept_unverified).await;
    let ran = shell.call("run", "exit 0").await;
    assert!(matches!(ran.end, End::Completed(_)) && ran.subprocesses == Some(Containment::Unverified), "{ran:?}");
    assert_eq!(ran.to_json()["subprocesses"], "unverified");
    let call = shell.ready("wait", "echo ready; sleep 1000").await;
    call.interrupt(estop::Cause::Operator, "o");
    assert!(matches!(within(call.outcome()).await.end, End::Stopped(_)));
    // Killed, and nobody has waited for that.
    super::until("the program's group to be gone", || shell.alive().is_empty());
    let none = Shell::with(supervisor().only([]), |grant| grant).await.call("run", "exit 0").await;
    assert!(failure(&none, "denied").contains("no containment is allowed"), "{none:?}");
}
