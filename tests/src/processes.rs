//! Real trees of processes, found by a variable in their environment, in `/proc` and nowhere else.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// What every way to get away does: a session of its own, an orphan of that, one that does not hear SIGTERM, one without
/// an environment, and a loop that forks orphans. Each says that it is there.
pub const EVASIVE: &str = "
trap '' TERM
setsid sh -c 'echo session; exec sleep 1000' &
(setsid sh -c '(echo daemon; exec sleep 1000) & exit' &)
(trap '' TERM; echo deaf; while :; do sleep 1000; done) &
(env -i setsid sh -c 'echo wiped; exec sleep 1000.'$$ &)
(i=0; while [ $i -lt 2000 ]; do (setsid sleep 100 &); i=$((i+1)); [ $i = 30 ] && echo forking; done; wait) &
while :; do sleep 1000; done";
/// How many of them say that.
pub const EVASIVE_SAYS: usize = 5;

/// Everybody's.
///
/// # Panics
/// Without `/proc`.
pub fn processes() -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap_or_else(|error| panic!("/proc: {error}"));
    all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Living processes with this in their environment.
pub fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let entry = format!("{name}={value}");
    let has = |pid: &u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()))
    };
    processes().into_iter().filter(|pid| has(pid) && is_alive(*pid)).collect()
}

/// Living processes whose command line is this.
pub fn with_command(words: &str) -> Vec<u32> {
    let line = words.replace(' ', "\0") + "\0";
    let is_it = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line.as_bytes());
    processes().into_iter().filter(|pid| is_it(pid) && is_alive(*pid)).collect()
}

/// Generous: what needs this long has failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks again and again, where nothing tells.
///
/// # Panics
/// If it is not so for three minutes.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::sleep(LOOK_EVERY);
    }
}
