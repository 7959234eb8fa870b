//! `estop serve`: a host that stays, with the tools of its configuration.
//!
//! Invariants:
//! - What cannot be loaded changes nothing: what was there before is served until something better is.
//! - This thread waits for nobody but signals and time. Loading is done elsewhere, and a signal meets it at every moment.

mod look;
mod shelf;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::look::Stamp;
use self::shelf::Shelf;
use super::signals::Signals;
use super::systemd::Manager;
use super::watchdog::{self, Watchdog};
use super::{ExitCode, home, policy, printable, say};
use crate::control::{Errand, HostKind, Served};
use crate::drill::LIVE_RUNS_DEFAULT;
use crate::interrupt::HOST_ACTOR;
use crate::policy::Policy;
use crate::store::sqlite::Sqlite;
use crate::{CompileChild, Home, Host, HostBuilder, ProcessSupervisor};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keep a host with its tools, for agents to call (`estop call`) and operators to stop. Tools that have changed are
/// reloaded, at once on SIGHUP; [host], [limits], [[grants]] and [[budgets]] hold until it is started again. SIGTERM or Ctrl-C stops everything and
/// ends it.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Args {
    /// What to serve and how much of it; ./estop.toml, else estop.toml in the home
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    home: home::Options,
}

const EXAMPLE: &str = "\
A configuration; only the path of each tool has to be there:
   [tools.notes]                     # its state is kept under this name
   path = \"memory.wasm\"              # from here; what is there is loaded anew when it changes
   digest = \"sha256:…\"               # nothing else is loaded
   [[grants]]                        # nothing is granted beyond a tool's own state, but what stands here
   component = \"notes\"               # and `agent`, and `tool`: for whom; for everybody, if nothing is said
   workspaces = [{ path = \"docs\", write = true }]    # read only without `write`; at \"/\" without `at`
   hosts = [{ host = \"https://example.com\", methods = [\"GET\"] }]    # GET and HEAD without `methods`
   programs = [{ path = \"/usr/bin/git\", arguments = [[\"status\"], [\"log\", \"**\"]] }]  # any without `arguments`
   environment = { LANG = \"C\" }      # of the guest; `clock = true`: finer than 1 ms; `random = true`: not the same each time
   limits = { deadline = \"5s\" }      # for these calls, in the place of those below
   [secrets]                         # used, and never shown: in `secret_headers` of hosts, `secret_environment` of grants
   TOKEN = { file = \"token\" }        # and of programs; mode 600; or { env = \"VARIABLE\" }
   [[budgets]]                       # of an agent across its calls; of each one that is not named, without `agent`
   agent = \"support-7\"
   calls_per_minute = 600
   fuel_per_minute = \"100G\"          # and requests_per_minute, request_bytes_per_minute: what it sends to hosts and reads
   [limits]                          # of each call; whoever calls may ask for less
   priority = 100                    # 0 to 255, higher is more urgent
   deadline = \"30s\"
   fuel = \"10G\"
   memory = \"64MiB\"
   [host]
   shutdown_grace = \"5s\"
   drill_every = \"1d\"                # it drills its emergency stop at once and then so often; at least 60s
Further keys:
   [host] calls_max sandboxes_max memory_bytes_max table_elements_max component_bytes_max components_max compiling_max
      queue_max tools_max workers checkpoint_to
   [limits] grace input_bytes_max output_bytes_max transfer_bytes_max stderr_bytes_max resources_max effects_max depth_max
      children_max
   [limits.state] key_bytes_max value_bytes_max keys_max read_bytes_max write_bytes_max space_bytes_max
   limits of a grant: those of [limits], without [limits.state]
   workspaces: bytes_max entries_max memory_bytes_max
   hosts: secret_headers private_addresses request_bytes_max response_bytes_max header_bytes_max requests_max live_max connect_within
      first_byte_within between_bytes_within
   programs: environment secret_environment time cpu memory processes_max file_bytes_max output_bytes_max accept_unverified";

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let watchdog = Watchdog::start()?;
    let config = policy::find(args.config.as_deref(), &args.home)?;
    let stamp = Stamp::of(&config);
    let policy = policy::read(&config, "nothing was started")?;
    let ends_within = policy.host.shutdown_grace.saturating_add(watchdog::ENDS_WITHIN);
    let signals = Signals::tell_and_reload(watchdog.clone(), ends_within)?;
    let home = args.home.open()?;
    let served = Served::new();
    let host = build(&config, &policy, &home, &served)?;
    let drill_every = policy.host.drill_every;
    let shelf = Shelf::new(host.clone(), served, config, stamp, policy);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (manager, ready) = (Manager::from_env(), Notify::new());
        let drills = async {
            // What is served is loaded first.
            ready.notified().await;
            drill(&host, drill_every).await;
        };
        tokio::select! {
            () = serve(shelf, &signals, &manager, &ready, &watchdog, ends_within) => {},
            () = drills => {},
        }
    });
    let ended = runtime.block_on(host.shutdown());
    let code = if ended.is_complete() {
        say("estop: everything is stopped and entered; ended");
        ExitCode::Completed
    } else {
        let entered =
            if ended.log_closed { "" } else { "; the log is not closed: the next host of the home completes it" };
        say(&format!("estop: UNCONFIRMED: {} calls did not come to rest{entered}", ended.unconfirmed.len()));
        ExitCode::Unconfirmed
    };
    // Without waiting for threads: what the calls had is released, and nothing else may hold up the end.
    std::process::exit(code as i32)
}

fn build(config: &Path, policy: &Policy, home: &Home, served: &Served) -> anyhow::Result<Host> {
    let mut store = Sqlite::options(home);
    if let Some(to) = &policy.host.checkpoint_to {
        store = store.checkpoint_to(to.clone());
    }
    let builder = Host::builder().limits(policy.host.limits.clone()).call_limits(policy.host.call_limits.clone());
    let builder = builder
        .store(store.open()?)
        .cache(home)
        .compile_with(CompileChild::this_program())
        .supervise_with(ProcessSupervisor::this_program());
    let builder = builder.shutdown_grace(policy.host.shutdown_grace);
    let grant = |builder: HostBuilder, (to, what)| builder.grant(to, what);
    let builder = policy.host.grants.iter().cloned().fold(builder, grant);
    let budget = |builder: HostBuilder, (agent, budget)| match agent {
        Some(agent) => HostBuilder::budget(builder, agent, budget),
        None => builder.budget_of_each_other_agent(budget),
    };
    let builder = policy.host.budgets.iter().cloned().fold(builder, budget);
    let builder = builder.keep_from_tools(policy.kept(config));
    Ok(builder.offer(HostKind::Serve).serve_agents(served).build()?)
}

/// Until somebody asks it to end.
async fn serve(
    mut shelf: Shelf,
    signals: &Signals,
    manager: &Manager,
    ready: &Notify,
    watchdog: &Watchdog,
    ends_within: Duration,
) {
    let asked = tokio::select! {
        biased;
        asked = signals.asked() => asked,
        () = keep(&mut shelf, signals, manager, ready) => return,
    };
    // Armed by whoever has heard the signal. Again, for the unlikely: it can only be sooner.
    watchdog.arm(ends_within);
    let what = format!("ending ({}): stopping {} calls", asked.reason, shelf.host().live_calls());
    manager.stopping(&what);
    say(&format!("estop: {}", printable(&what)));
}

/// Drills the emergency stop again and again, for the first time at once: what is found is entered, and said.
async fn drill(host: &Host, drill_every: Option<Duration>) {
    let Some(drill_every) = drill_every else { return std::future::pending().await };
    let mut every = interval(drill_every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        match host.drill(HOST_ACTOR, LIVE_RUNS_DEFAULT).await {
            Ok(found) if found.passed => say("estop: drill passed: every stop was confirmed, and in time"),
            Ok(found) => {
                if let Some(why) = found.not_held {
                    say(&format!("estop: drill NOT HELD: {}", printable(&why)));
                    continue;
                }
                let failed: Vec<_> = found.cases.iter().filter(|case| !case.passed).map(|case| &*case.name).collect();
                let failed = if failed.is_empty() { "calls of others were stopped".into() } else { failed.join(", ") };
                let how = "`estop log show --kind drill` has what it found";
                say(&format!("estop: drill FAILED: {}; {how}", printable(&failed)));
            }
            Err(error) => say(&format!("estop: drill NOT HELD: {}", printable(&error.to_string()))),
        }
    }
}

/// Why it looks at the files.
enum Woken {
    /// By a signal, at all of them.
    Asked,
    Errand(Errand),
    Time,
}

/// Loads, says that it is ready, and looks again and again.
async fn keep(shelf: &mut Shelf, signals: &Signals, manager: &Manager, ready: &Notify) {
    let mut hangups = signals.hangups();
    let host = shelf.host().clone();
    let alive = async {
        let Some(watches) = manager.watches() else { return std::future::pending().await };
        let mut every = interval(watches / 2);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match host.dead_thread() {
                None => manager.alive(),
                Some(thread) => manager.status(&format!("{thread} gives no sign of life")),
            }
        }
    };
    let work = async {
        shelf.load().await;
        let said = shelf.says();
        let place = host.sockets().map(|folder| folder.display().to_string()).unwrap_or_default();
        manager.ready(&said);
        say(&format!("estop: serving {said}; sockets in {place}"));
        ready.notify_one();
        loop {
            let woken = tokio::select! {
                changed = hangups.changed() => if changed.is_ok() { Woken::Asked } else { Woken::Time },
                errand = shelf.errand() => Woken::Errand(errand),
                () = sleep(LOOK_EVERY) => Woken::Time,
            };
            if !matches!(woken, Woken::Time) {
                manager.reloading();
            }
            let changed = match woken {
                Woken::Time => shelf.look(false).await,
                Woken::Asked => {
                    shelf.look(true).await;
                    true
                }
                Woken::Errand(errand) => {
                    shelf.run(errand).await;
                    true
                }
            };
            if changed {
                let said = shelf.says();
                manager.ready(&said);
                say(&format!("estop: serving {said}"));
            }
        }
    };
    tokio::select! {
        () = alive => {},
        () = work => {},
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::SystemTime;

    use super::*;
    use crate::{Clock, SystemClock};

    /// Whoever looks at it waits while it is stuck: the ticker does.
    struct Stuck {
        is_stuck: Arc<AtomicBool>,
        clock: SystemClock,
    }

    impl Clock for Stuck {
        fn monotonic(&self) -> Duration {
            while self.is_stuck.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            self.clock.monotonic()
        }

        fn wall(&self) -> SystemTime {
            self.clock.wall()
        }
    }

    /// systemd is given no sign of life for a host that could not keep its deadlines.
    #[test]
    fn a_thread_that_is_stuck_is_named() {
        let is_stuck = Arc::new(AtomicBool::new(false));
        let clock = Stuck { is_stuck: Arc::clone(&is_stuck), clock: SystemClock::new() };
        let host = Host::builder().clock(clock).build().unwrap();
        let until = |thread: Option<&str>| {
            let begun = std::time::Instant::now();
            while host.dead_thread() != thread {
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", host.dead_thread());
                thread::yield_now();
            }
        };
        until(None);
        is_stuck.store(true, Ordering::Release);
        until(Some("the ticker"));
        is_stuck.store(false, Ordering::Release);
        until(None);
    }
}
