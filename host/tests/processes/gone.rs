//! Rows 2, 13 and 23 to 26: whatever ends a call, nothing of its programs is left when it is released.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use estop::{Cause, Containment, EffectState, End, Interrupt, ProgramLimits};
use estop_tests::processes::{EVASIVE, EVASIVE_SAYS, with_command, with_variable};
use estop_tests::{end_entry, guests, load, log, within};
use rustix::process::{Pid, Signal, kill_process};

use super::{Shell, TOKEN, containments, failure, output, rounds, script_input, supervisor, token, until};

/// Becomes ready once every one that tries to get away is there; and the command of the one without an environment.
fn evasive(forks: usize) -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = format!("{}{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let script = EVASIVE.replace("2000", &forks.to_string()).replace("= 30", "= 10");
    let (script, lines) = (script.replace("'$$", &format!("{number}'")), "1 ".repeat(EVASIVE_SAYS));
    let script = format!("({script}) | {{ for i in {lines}; do read said; done; echo ready; cat; }}");
    (script, format!("sleep 1000.{number}"))
}

/// Somebody who looks like a part of it and is none.
struct Bystander(Child);

impl Bystander {
    fn new(token: &str) -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("1000").env(TOKEN, format!("{token}-bystander")).stdin(Stdio::null()).spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Rows 23 and 25, promise 11: a program that forks, forks twice, calls `setsid`, does not hear SIGTERM, wipes its
/// environment and spawns in a loop is gone when its call is released, and nobody else was signalled.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_does_everything_to_get_away_is_gone_when_its_call_is_released() {
    let limits = ProgramLimits { processes_max: 10_000, time: Duration::from_secs(3600), ..ProgramLimits::default() };
    for containment in containments().await {
        let limits = limits.clone();
        let shell = Shell::with(supervisor().only([containment]), |grant| grant.limits(limits)).await;
        let mut bystander = Bystander::new(&shell.token);
        let mut slowest = Duration::ZERO;
        let rounds = rounds(10);
        for round in 0..rounds {
            let tool = if round % 2 == 0 { "wait" } else { "spin" };
            let (script, wiped) = evasive(2_000);
            let call = shell.ready(tool, &script).await;
            // Each says that it is there before it becomes what is looked for.
            until("something to be stopped", || shell.alive().len() > EVASIVE_SAYS && with_command(&wiped).len() == 1);
            call.interrupt(Cause::Operator, "o");
            let outcome = within(call.outcome()).await;
            let left = (shell.alive(), with_command(&wiped));
            assert_eq!(left, (vec![], vec![]), "{containment:?} has left processes in round {round}");
            let End::Stopped(stopped) = &outcome.end else { panic!("{outcome:?}") };
            assert_eq!((stopped.cause, outcome.subprocesses), (Cause::Operator, Some(containment)));
            assert_eq!(outcome.effects.iter().map(|effect| effect.state).collect::<Vec<_>>(), [EffectState::Unknown]);
            slowest = slowest.max(stopped.released);
        }
        assert!(bystander.is_alive());
        println!("{containment:?}: {rounds} trees, the slowest was released after {slowest:?}");
    }
}

/// Row 26: a stop at any moment of a start, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_races_a_start_leaves_nothing() {
    for containment in containments().await {
        let shell = Shell::with(supervisor().only([containment]), |grant| grant).await;
        // How long a start takes here, to spread the stops over it.
        let begun = Instant::now();
        let first = shell.ready("wait", "echo ready; sleep 1000").await;
        let whole = begun.elapsed();
        first.interrupt(Cause::Operator, "o");
        within(first.outcome()).await;
        let (mut met, rounds) = (0, u32::try_from(rounds(60)).unwrap());
        for round in 0..rounds {
            let call = shell.start("wait", "setsid sleep 1000 & echo ready; sleep 1000");
            // Also some time after it.
            let until = Instant::now() + whole * round * 2 / rounds;
            while Instant::now() < until && call.try_outcome().is_none() {
                std::hint::spin_loop();
            }
            call.interrupt(Cause::Operator, "o");
            let outcome = within(call.outcome()).await;
            assert!(matches!(outcome.end, End::Stopped(_)), "{outcome:?}");
            assert_eq!(shell.alive(), [0; 0], "{containment:?} has left processes in round {round}");
            met += u32::from(outcome.subprocesses.is_some());
        }
        println!("{containment:?}: {met} of {rounds} stops came after the program's start ({whole:?})");
    }
}

/// However a call ends, and whatever a guest lets go of.
#[tokio::test]
async fn nothing_outlives_its_call_or_its_handle() {
    let shell = Shell::new().await;
    let script = "setsid sleep 1000 & echo ready; sleep 1000";
    let left = shell.call("leave", script).await;
    assert!(matches!(left.end, End::Completed(_)), "{left:?}");
    assert_eq!(left.effects[0].state, EffectState::Unknown);
    assert_eq!(shell.alive(), [0; 0]);
    let late = shell.host.agent("a").call(&shell.component, "wait", script_input(script));
    let late = within(late.deadline(Duration::from_millis(300)).start().outcome()).await;
    assert_eq!(late.end.stopped().map(|stopped| stopped.cause), Some(Cause::Deadline));
    assert_eq!(shell.alive(), [0; 0]);
    let cancelled = shell.ready("spin", script).await;
    drop(cancelled);
    until("the cancelled call to be released", || shell.host.live_calls() == 0);
    assert_eq!(shell.alive(), [0; 0]);

    let call = shell.ready("drop_it", script).await;
    until("what was let go of to be gone", || shell.alive().is_empty());
    call.interrupt(Cause::Operator, "o");
    // It was not its call's end that has ended it.
    let stopped = within(call.outcome()).await;
    assert_eq!(stopped.end.stopped().map(|stopped| stopped.cause), Some(Cause::Operator));
    let asked = shell.call("terminate", "trap 'exit 7' TERM; echo ready; sleep 1000 & wait").await;
    assert_eq!(output(&asked)["code"], 7);
}

/// Whatever contains it: a program that its tool has killed has not ended by itself.
#[tokio::test]
async fn a_program_that_was_killed_is_told_as_that() {
    for containment in containments().await {
        let shell = Shell::with(supervisor().only([containment]), |grant| grant).await;
        let killed = shell.call("kill", "setsid sleep 1000 & echo ready; sleep 1000").await;
        assert!(failure(&killed, "program").contains("was killed"), "{containment:?}: {killed:?}");
        assert_eq!(killed.effects[0].state, EffectState::Unknown);
        assert_eq!(shell.alive(), [0; 0]);
    }
}

/// What a child has started is gone before its parent is released.
#[tokio::test]
async fn the_programs_of_children_end_with_their_parent() {
    let shell = Shell::new().await;
    let nest = load(&shell.host, "nest").await;
    let script = script_input("setsid sleep 1000 & echo ready; sleep 1000");
    let plan = serde_json::json!({ "steps": [{ "tool": "programs/wait", "input": script }] });
    let call = shell.host.agent("a").call(&nest, "run", plan).start();
    until("the program of the child", || shell.alive().len() >= 3);
    call.interrupt(Cause::Operator, "o");
    let outcome = within(call.outcome()).await;
    assert_eq!(shell.alive(), [0; 0]);
    assert_eq!(outcome.end.stopped().map(|stopped| stopped.cause), Some(Cause::Operator));
    assert_eq!(outcome.effects.iter().map(|effect| effect.state).collect::<Vec<_>>(), [EffectState::Unknown]);
}

/// Row 2: what a grandchild does stands still from `stopped` on. And the log says what there was.
#[tokio::test]
async fn a_grandchilds_heartbeat_stands_still_from_stopped_on() {
    let shell = Shell::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (beats, control) = (folder.path().join("beats"), folder.path().join("control"));
    let beating = |file: &std::path::Path| {
        format!("(setsid sh -c 'while :; do echo >> {}; done' &); echo ready; sleep 1000", file.display())
    };
    let count = |file: &std::path::Path| fs::metadata(file).map_or(0, |found| found.len());
    let call = shell.ready("spin", &beating(&beats)).await;
    let other = shell.ready("spin", &beating(&control)).await;
    until("both hearts", || count(&beats) > 0 && count(&control) > 0);
    call.interrupt(Cause::Operator, "o");
    let outcome = within(call.outcome()).await;
    let (at_stop, before) = (count(&beats), count(&control));
    until("some hundred beats of the other one", || count(&control) > before + 300);
    assert_eq!(count(&beats), at_stop);
    other.interrupt(Cause::Operator, "o");
    within(other.outcome()).await;
    let log = log(&shell.host).await;
    let end = end_entry(&log, &outcome);
    assert_eq!(end["effects"], serde_json::json!([{ "name": "program sh", "state": "unknown" }]));
    assert_eq!(end["subprocesses"], outcome.subprocesses.unwrap().word());
}

/// With a grace the programs are asked first, and may tidy up as long as the tool may.
#[tokio::test]
async fn a_program_has_the_grace_of_its_call() {
    let shell = Shell::new().await;
    let folder = tempfile::tempdir().unwrap();
    let tidy = folder.path().join("tidy");
    let script =
        format!("trap 'echo done > {}; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done", tidy.display());
    let call = shell.ready("wait", &script).await;
    call.interrupt_with(Interrupt::new(Cause::Operator, "o").grace(Duration::from_secs(60)));
    let outcome = within(call.outcome()).await;
    assert_eq!(fs::read_to_string(&tidy).unwrap(), "done\n");
    assert!(outcome.end.stopped().is_some(), "{outcome:?}");

    let deaf = shell.ready("wait", "trap '' TERM; echo ready; while :; do sleep 1000; done").await;
    deaf.interrupt_with(Interrupt::new(Cause::Operator, "o").grace(Duration::from_millis(300)));
    let outcome = within(deaf.outcome()).await;
    let stopped = outcome.end.stopped().unwrap();
    assert!(stopped.released >= Duration::from_millis(300), "{stopped:?}");
    // Whoever asks again without one ends it.
    let deaf = shell.ready("wait", "trap '' TERM; echo ready; while :; do sleep 1000; done").await;
    deaf.interrupt_with(Interrupt::new(Cause::Operator, "o").grace(Duration::from_secs(600)));
    deaf.interrupt(Cause::Operator, "o");
    within(deaf.outcome()).await;
    assert_eq!(shell.alive(), [0; 0]);
}

/// Row 24: a supervisor that somebody kills takes its tree with it, and its call is told.
#[tokio::test]
async fn a_supervisor_that_is_killed_takes_its_tree_with_it() {
    for containment in containments().await {
        let shell = Shell::with(supervisor().only([containment]), |grant| grant).await;
        let call = shell.ready("wait", "setsid sleep 1000 & (setsid sleep 1000 &); echo ready; sleep 1000").await;
        let found = supervisors_of(&shell.alive(), containment);
        for supervisor in &found {
            kill_process(Pid::from_raw(supervisor.cast_signed()).unwrap(), Signal::KILL).unwrap();
        }
        let outcome = within(call.outcome()).await;
        assert!(failure(&outcome, "program").contains("killed"), "{outcome:?}");
        assert_eq!(shell.alive(), [0; 0], "{containment:?}: killed {found:?}");
        // Somebody without an environment and without a parent could have got away.
        let is_sure = containment == Containment::Namespace;
        assert_eq!(outcome.subprocesses, Some(if is_sure { containment } else { Containment::Unverified }));
    }
}

/// The processes of ours that those descend from.
fn supervisors_of(members: &[u32], containment: Containment) -> Vec<u32> {
    let parent = |pid: u32| -> u32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
    };
    let mut found: Vec<u32> = Vec::new();
    for member in members {
        let mut above = vec![*member];
        while let Some(pid) = above.last().copied().filter(|pid| *pid > 1 && *pid != std::process::id()) {
            above.push(parent(pid));
        }
        if above.pop() == Some(std::process::id()) {
            found.extend(above.pop());
        }
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 1, "{containment:?}: {members:?}");
    found
}

/// A host that is killed takes the trees of its tools with it.
#[test]
fn the_trees_of_a_host_that_is_killed_are_gone_soon_after() {
    let home = tempfile::tempdir().unwrap();
    let rounds = rounds(3);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        // Within the number of processes that a program may have by default.
        let (token, (script, wiped)) = (token(), evasive(20));
        let script = format!("{TOKEN}={token}; export {TOKEN}; {script}");
        let mut host = Command::new(env!("CARGO_BIN_EXE_estop"))
            .args(["run", guests::path("programs").to_str().unwrap(), "wait", "--deadline", "10m"])
            .args(["--allow-program", "/bin/sh", "-i", &script_input(&script).to_string()])
            .env("ESTOP_HOME", home.path().join("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the tree", || with_variable(TOKEN, &token).len() > EVASIVE_SAYS && with_command(&wiped).len() == 1);
        host.kill().unwrap();
        host.wait().unwrap();
        let killed = Instant::now();
        until("the tree to be gone", || with_variable(TOKEN, &token).is_empty() && with_command(&wiped).is_empty());
        slowest = slowest.max(killed.elapsed());
    }
    // Generous: a look at every process of the machine is part of it.
    println!("{rounds} trees, the slowest was gone {slowest:?} after its host");
    assert!(slowest < Duration::from_secs(10));
}
