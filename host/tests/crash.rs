//! Promises 8, 13 and 14 across `kill -9`: real processes settle batches on one home and are killed at random moments.
//! Every transfer is there entirely or not at all, every sum is right, the log verifies, every commit has its entry, and
//! whoever opens the home next says of every call that died that it did.

mod ledger;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use estop::store::sqlite::Look;
use estop_tests::guests::{Described, Imports, Spec};
use estop_tests::home::{Temporary, temporary};

use ledger::book::Book;
use ledger::command::{Ended, Running, printed, run};
use ledger::trail::Trail;
use ledger::{Accounts, Batch, Chance, component, spin};

/// "500 random moments of commits, one and four processes on one home".
const KILLS: usize = 250;
const TRANSFERS: (usize, usize) = (20, 60);
const COMMIT_EVERY_MAX: usize = 3;
/// Homes whose makers are killed.
const HOMES: usize = 30;
/// Kills between two runs of `estop log verify`.
const VERIFY_EVERY: usize = 25;
/// Exit codes.
const COMPLETED: i32 = 0;
const USAGE: i32 = 2;
const CONFLICT: i32 = 7;

/// A home in which processes die.
struct Scene {
    home: Temporary,
    component: String,
    pace: Pace,
    /// As far as it was read.
    trail: Mutex<Trail>,
    /// Of all processes.
    tally: Mutex<Tally>,
    kills: AtomicUsize,
}

/// How long the parts of a process's life take, measured.
#[derive(Default)]
struct Pace {
    /// Until it says that the first transfer is made.
    start: Duration,
    /// From one transfer to the next.
    transfer: Duration,
    /// From the answer to the end of the process.
    end: Duration,
}

#[derive(Debug, Default)]
struct Tally {
    processes: usize,
    killed: usize,
    /// Of the killed: after the first commit of their call and before the last of their batch.
    between_commits: usize,
    /// Of the killed: before their first commit.
    before_commits: usize,
    conflicts: usize,
    batches: usize,
}

/// When a process is killed.
enum Moment {
    /// After so long.
    Start(Duration),
    /// Once it says that so many transfers are made, and then after a while.
    Commits(usize, Duration),
    /// Once it has answered, and then after a while.
    End(Duration),
    Never,
}

impl Moment {
    fn choose(done: usize, total: usize, pace: &Pace, chance: &mut Chance) -> Self {
        match chance.below(20) {
            0..2 => Moment::Start(chance.up_to(pace.start)),
            2..4 => Moment::End(chance.up_to(pace.end)),
            _ => {
                let first = (done + 2).min(total);
                let said = chance.between(first, first + (total - first) * 2 / 3);
                Moment::Commits(said, chance.up_to(pace.transfer * 4))
            }
        }
    }
}

/// Who settles one batch after the other, in processes that may die.
struct Clerk<'a> {
    scene: &'a Scene,
    accounts: Accounts,
    name: String,
    batch: Batch,
    /// Those of the same accounts, of all clerks.
    batches: &'a Mutex<Vec<Batch>>,
    chance: Chance,
}

impl<'a> Clerk<'a> {
    fn new(
        scene: &'a Scene,
        name: &str,
        accounts: &Accounts,
        batches: &'a Mutex<Vec<Batch>>,
        mut chance: Chance,
    ) -> Self {
        let batch = next_batch(name, accounts, batches, &mut chance);
        Self { scene, accounts: accounts.clone(), name: name.to_owned(), batch, batches, chance }
    }

    /// Until there are enough kills; then to the end of the batch.
    fn work(mut self) {
        while self.scene.kills.load(Ordering::Acquire) < KILLS {
            self.turn(true);
        }
        while self.turn(false) < self.batch.total() {}
    }

    /// One process that settles what is left of the batch. Says how much is made afterwards.
    fn turn(&mut self, kill: bool) -> usize {
        let scene = self.scene;
        let mut done = scene.look(&self.accounts.agent).0.done(&self.batch);
        if done == self.batch.total() && kill {
            lock(&scene.tally).batches += 1;
            self.batch = next_batch(&self.name, &self.accounts, self.batches, &mut self.chance);
            done = 0;
        }
        let commit_every = self.chance.between(1, COMMIT_EVERY_MAX);
        let moment = match kill {
            true => Moment::choose(done, self.batch.total(), &scene.pace, &mut self.chance),
            false => Moment::Never,
        };
        let (ended, was_killed) = self.settle(commit_every, &moment);
        let now = self.check();
        if was_killed && (scene.kills.fetch_add(1, Ordering::AcqRel) + 1).is_multiple_of(VERIFY_EVERY) {
            printed(scene.home.home(), &["log", "verify"]);
        }

        assert!(now >= done, "{now} of {} are made, and {done} were before", self.batch.id);
        let whole = (now - done).is_multiple_of(commit_every) || now == self.batch.total();
        assert!(whole, "from {done} to {now}, {commit_every} at a time");
        // It says that a transfer is made before it commits it, and goes on only after it has.
        let said = ended.stderr.lines().filter_map(progress).max();
        let durable = said.map_or(done, |said| done + (said - 1 - done) / commit_every * commit_every);
        assert!(now >= durable, "{now} of {} are made, and it had gone on after {durable}", self.batch.id);
        if let Some(answer) = ended.stdout.strip_suffix('\n') {
            assert_eq!((now, answer), (self.batch.total(), &*self.batch.settled(done).to_string()), "{ended:?}");
        }

        let mut tally = lock(&scene.tally);
        tally.processes += 1;
        tally.killed += usize::from(was_killed);
        tally.between_commits += usize::from(was_killed && done < now && now < self.batch.total());
        tally.before_commits += usize::from(was_killed && now == done);
        now
    }

    /// Runs the process. Also says whether it was killed.
    fn settle(&mut self, commit_every: usize, moment: &Moment) -> (Ended, bool) {
        let scene = self.scene;
        let input = scene.home.folder().join(format!("{}.json", self.name));
        fs::write(&input, self.batch.input(commit_every).to_string()).expect("the input can be written");
        let mut process = scene.start(&self.accounts.agent, "settle", &format!("@{}", input.display()));
        match moment {
            Moment::Start(delay) => spin(*delay),
            Moment::Commits(said, delay) => {
                while process.says().is_some_and(|line| progress(&line).is_none_or(|done| done < *said)) {}
                spin(*delay);
            }
            Moment::End(delay) => {
                process.answers();
                spin(*delay);
            }
            Moment::Never => {}
        }
        if !matches!(moment, Moment::Never) {
            process.kill();
        }
        let ended = process.ended();
        for word in ["panicked", "locked", "UNKNOWN", "cannot"] {
            assert!(!ended.stderr.contains(word), "`{word}`: {ended:?}");
        }
        let was_killed = match ended.code {
            None => true,
            Some(COMPLETED) => false,
            Some(CONFLICT) => {
                lock(&scene.tally).conflicts += 1;
                false
            }
            Some(_) => panic!("{ended:?}"),
        };
        assert!(!was_killed || !matches!(moment, Moment::Never), "{ended:?}");
        (ended, was_killed)
    }

    /// What is there, whatever others do meanwhile. Says how much of the batch is made.
    fn check(&self) -> usize {
        let (book, newest) = self.scene.look(&self.accounts.agent);
        // As of now: more than there were then, and of those nothing is made.
        let batches = lock(self.batches).clone();
        book.audit(&self.accounts, &batches.iter().collect::<Vec<_>>());
        let mut trail = lock(&self.scene.trail);
        trail.follow(&Look::open(self.scene.home.home()).expect("the home can be read"));
        trail.explains(&self.accounts.agent, &book, newest);
        book.done(&self.batch)
    }
}

fn next_batch(name: &str, accounts: &Accounts, batches: &Mutex<Vec<Batch>>, chance: &mut Chance) -> Batch {
    let mut batches = lock(batches);
    let id = format!("{name}-{}", batches.len());
    let batch = accounts.batch(&id, chance.between(TRANSFERS.0, TRANSFERS.1), chance);
    batches.push(batch.clone());
    batch
}

impl Scene {
    /// A home in which these accounts are open, and how long things take in it.
    fn open(all: &[Accounts]) -> Self {
        let (trail, tally, kills) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        let mut scene = Self { home: temporary(), component: component(), pace: Pace::default(), trail, tally, kills };
        all.iter().for_each(|accounts| scene.open_accounts(accounts));
        scene.pace = scene.measure(&all[0].names);
        scene
    }

    fn open_accounts(&self, accounts: &Accounts) {
        for account in accounts.openings() {
            let ended = self.start(&accounts.agent, "open", &account.to_string()).ended();
            assert_eq!(ended.code, Some(COMPLETED), "{ended:?}");
        }
    }

    /// With an agent of its own.
    fn measure(&self, names: &[String]) -> Pace {
        let accounts = Accounts { agent: "pacemaker".to_owned(), names: names.to_vec() };
        self.open_accounts(&accounts);
        let batch = accounts.batch("pace", TRANSFERS.0, &mut Chance::from(0));
        let began = Instant::now();
        let mut process = self.start(&accounts.agent, "settle", &batch.input(1).to_string());
        while process.says().is_some_and(|line| progress(&line).is_none()) {}
        let start = began.elapsed();
        process.answers();
        let settled = began.elapsed();
        assert_eq!(process.ended().code, Some(COMPLETED));
        Pace { start, transfer: (settled - start) / batch.total() as u32, end: began.elapsed() - settled }
    }

    fn start(&self, agent: &str, tool: &str, input: &str) -> Running {
        Running::start(self.home.home(), &["run", &self.component, tool, "-i", input, "--agent", agent])
    }

    /// What the agent keeps, and a line of the log that was there before.
    fn look(&self, agent: &str) -> (Book, u64) {
        let look = Look::open(self.home.home()).expect("the home can be read");
        let newest = look.newest().expect("the log can be read");
        (Book::look(&look, agent), newest)
    }

    /// Once the last process has ended in order: of everything that was begun, the log tells the end.
    fn close(self, began: Instant) -> Tally {
        printed(self.home.home(), &["log", "verify"]);
        let mut trail = self.trail.into_inner().unwrap_or_else(PoisonError::into_inner);
        trail.follow(&Look::open(self.home.home()).expect("the home can be read"));
        let amounts = trail.is_complete();
        let tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{tally:?}, {amounts:?}, {:?}", began.elapsed());
        assert!(tally.killed >= KILLS && amounts.hosts_died <= tally.killed, "each host that died was killed");
        // One that was killed in the midst of its batch has died, or had just been told of a conflict.
        let conflicts = trail.ended("conflict");
        assert!(amounts.calls_died + conflicts >= tally.between_commits, "{conflicts} conflicts");
        assert!(conflicts >= tally.conflicts, "{conflicts} conflicts");
        tally
    }
}

/// Which transfer a line of standard error says is made.
fn progress(line: &str) -> Option<usize> {
    line.strip_prefix("progress ")?.split_once('/')?.0.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One process after the other, each killed: whoever comes next finds the database as the crash has left it.
#[test]
fn a_process_killed_at_250_random_moments_leaves_whole_transfers_and_their_entries() {
    let began = Instant::now();
    let accounts = Accounts::new("alone", 5);
    let scene = Scene::open(std::slice::from_ref(&accounts));
    let batches = Mutex::default();
    Clerk::new(&scene, "alone", &accounts, &batches, Chance::new("one process")).work();
    let tally = scene.close(began);
    assert!(tally.between_commits >= KILLS / 5 * 2 && tally.conflicts == 0, "the moments are not those of commits");
}

/// Four at a time, of which two share their accounts: whoever dies does so while others commit, conflict, and look who has
/// died.
#[test]
fn four_processes_killed_at_250_random_moments_leave_whole_transfers_and_their_entries() {
    let began = Instant::now();
    let mut chance = Chance::new("four processes");
    let pairs = [Accounts::new("red", 8), Accounts::new("blue", 8)];
    let scene = Scene::open(&pairs);
    let batches = [Mutex::default(), Mutex::default()];
    thread::scope(|scope| {
        for (accounts, batches) in pairs.iter().zip(&batches) {
            for clerk in ["one", "other"] {
                let name = format!("{}-{clerk}", accounts.agent);
                let clerk = Clerk::new(&scene, &name, accounts, batches, chance.branch());
                scope.spawn(move || clerk.work());
            }
        }
    });
    let tally = scene.close(began);
    assert!(tally.between_commits >= KILLS / 4, "the moments are not those of commits");
    assert!(tally.conflicts > 0, "nobody met anybody");
}

/// A home has keys and a database that somebody makes first. Here two do at once, and one of them is killed meanwhile.
#[test]
fn a_home_one_of_whose_makers_is_killed_can_be_used() {
    let mut chance = Chance::new("makers");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("small.wasm");
    let tools = [Spec::new("victim")];
    let small = Described { tools: &tools, imports: Some(Imports::default()), ..Described::default() };
    fs::write(&path, small.component()).expect("a component");
    // A host comes and goes, with nothing to call.
    let begin = ["run", path.to_str().expect("a path"), "nothing"];
    let make = || {
        let begun = Instant::now();
        assert_eq!(run(temporary().home(), &begin).code, Some(USAGE));
        begun.elapsed()
    };
    // What the first has read from the disk, others need not.
    let (longest, mut killed) = (make().min(make()), 0);
    for _ in 0..HOMES {
        let home = temporary();
        let [mut one, other] = [(); 2].map(|()| Running::start(home.home(), &begin));
        spin(chance.up_to(longest));
        one.kill();
        killed += usize::from(one.ended().code.is_none());
        let other = other.ended();
        assert_eq!(other.code, Some(USAGE), "{other:?}");
        printed(home.home(), &["log", "rotate-key"]);
        printed(home.home(), &["log", "verify"]);
    }
    println!("{killed} of {HOMES} were killed in time");
    assert!(killed >= HOMES / 6, "these moments are too late");
}
