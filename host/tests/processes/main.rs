//! Programs that tools start: what they get, what they may not, and that nothing of them is left.

mod gone;
mod granted;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use estop::{
    Call, Component, Containment, End, Grantee, Grants, Host, Outcome, ProcessSupervisor, ProgramGrant, ProgramLimits,
};
use estop_tests::processes::{until, with_variable};
use estop_tests::{load, small, within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Marks every process of a test, apart from the marks of estop.
const TOKEN: &str = "ESTOP_TEST_TOKEN";

/// A host whose tools may run a shell, as it is marked.
struct Shell {
    host: Host,
    component: Component,
    token: String,
}

fn supervisor() -> ProcessSupervisor {
    ProcessSupervisor::program(env!("CARGO_BIN_EXE_estop"))
}

fn token() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Shell {
    async fn new() -> Self {
        Self::with(supervisor(), |grant| grant).await
    }

    async fn with(supervisor: ProcessSupervisor, grant: impl FnOnce(ProgramGrant) -> ProgramGrant) -> Self {
        let token = token();
        // Nothing here is gone because its time is over, but where that is what is looked at.
        let limits = ProgramLimits { time: Duration::from_secs(3600), ..ProgramLimits::default() };
        let granted = grant(ProgramGrant::new("/bin/sh").environment(TOKEN, &token).limits(limits));
        let host = small().supervise_with(supervisor).grant(Grantee::everyone(), Grants::new().program(granted));
        let host = host.build().unwrap();
        let component = load(&host, "programs").await;
        Self { host, component, token }
    }

    fn start(&self, tool: &str, script: &str) -> Call {
        self.host.agent("a").call(&self.component, tool, script_input(script)).start()
    }

    async fn call(&self, tool: &str, script: &str) -> Arc<Outcome> {
        within(self.start(tool, script).outcome()).await
    }

    /// A call whose program has said `ready`.
    async fn ready(&self, tool: &str, script: &str) -> Call {
        let call = self.start(tool, script);
        let mut progress = call.progress();
        within(async {
            tokio::select! {
                seen = progress.wait_for(Option::is_some) => drop(seen.unwrap()),
                outcome = call.outcome() => panic!("{outcome:?}"),
            }
        })
        .await;
        call
    }

    fn alive(&self) -> Vec<u32> {
        with_variable(TOKEN, &self.token)
    }
}

impl Drop for Shell {
    /// A test that fails leaves nothing behind.
    fn drop(&mut self) {
        for pid in self.alive() {
            // It may be gone by now.
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
    }
}

fn script_input(script: &str) -> Value {
    json!({ "program": "sh", "arguments": ["-c", script] })
}

#[track_caller]
fn output(outcome: &Arc<Outcome>) -> &Value {
    match &outcome.end {
        End::Completed(output) => &output.json,
        end => panic!("{end:?}"),
    }
}

#[track_caller]
fn failure<'o>(outcome: &'o Arc<Outcome>, code: &str) -> &'o str {
    match &outcome.end {
        End::Failed(failure) if failure.code == code => &failure.message,
        end => panic!("{end:?}"),
    }
}

/// How often something is tried that is random.
fn rounds(few: usize) -> usize {
    std::env::var("ESTOP_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// Every containment that is possible on this machine, and says which those are.
async fn containments() -> Vec<Containment> {
    let mut possible = Vec::new();
    for containment in [Containment::Namespace, Containment::Cgroup, Containment::Subreaper] {
        let shell = Shell::with(supervisor().only([containment]), |grant| grant).await;
        match &shell.call("run", "exit 0").await.end {
            End::Completed(_) => possible.push(containment),
            end => println!("no {} here: {end:?}", containment.word()),
        }
    }
    println!("possible here: {possible:?}");
    assert!(!possible.is_empty());
    possible
}

fn folder(outcome: &Arc<Outcome>) -> PathBuf {
    PathBuf::from(output(outcome)["stdout"].as_str().unwrap().trim())
}
