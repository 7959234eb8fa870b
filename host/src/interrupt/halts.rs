//! Halts: stops that are latched. What a halt covers stays stopped, across restarts, until that halt is lifted.
//!
//! Invariants:
//! - A call registers first and looks here then; a halt enters the list first and walks the calls then. So either the walk
//!   meets the call, or the call meets the halt.
//! - A halt acts when it is in the list, and is acknowledged when its file is on the disk. What cannot be read counts as a
//!   halt of everything.
//! - A halt that another process has put on the disk is met by every call that looks after that: the kernel has queued the
//!   news of it by then, and a call waits until the news has been read.

mod act;
mod files;
mod halt;

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use tokio::sync::watch;

pub(crate) use self::files::MACHINE;
use self::files::{Folder, Found, SETTLES_WITHIN};
pub use self::halt::{Halt, HaltError, HaltScope};
use super::Reached;
use crate::call::CallState;
use crate::heartbeat::Heartbeat;
use crate::home::Home;
use crate::host::Core;
use crate::ids::{HaltId, HostId};

/// The folders are read again after this long, also if there was no news of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a halt has reached is remembered this long, for whoever asks after it was met in another way.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// Halts whose reach is remembered at one time.
const REMEMBERED_MAX: usize = 64;
/// With so many in force a host takes no further one but the first of everything. Fewer than [`files::HALTS_MAX`], so that
/// they can be read and lifted.
const IN_FORCE_MAX: usize = 900;
/// How long a call waits for news of halts to be read; then it is refused.
const NEWS_MAX: Duration = Duration::from_secs(2);

/// What is in force.
#[derive(Default)]
struct List {
    halts: Vec<Arc<Halt>>,
    /// Why nobody knows what else is.
    unreadable: Option<String>,
}

impl List {
    fn has(&self, halt: &Halt) -> bool {
        self.halts.iter().any(|other| other.is(halt))
    }

    /// Whether there is room for one more. For the first one of everything there always is.
    fn takes(&self, halt: &Halt) -> bool {
        let is_first_of_all =
            || halt.scope == HaltScope::All && self.halts.iter().all(|other| other.scope != HaltScope::All);
        // Those of the machine take nobody's room at home.
        self.halts.iter().filter(|other| other.machine == halt.machine).count() < IN_FORCE_MAX || is_first_of_all()
    }
}

/// What a look has found beside the list.
#[derive(Default)]
struct Looked {
    /// Not latched yet.
    dropped: Vec<Dropped>,
    /// There may be more in a moment.
    unsettled: bool,
}

/// A dropped halt.
struct Dropped {
    /// In which of the folders.
    folder: usize,
    halt: Halt,
    path: PathBuf,
}

/// A halt that this process has made.
struct Own {
    halt: Arc<Halt>,
    on_disk: bool,
}

/// What a halt has reached.
struct Acted {
    halt: HaltId,
    scope: HaltScope,
    at: Instant,
    calls: Vec<(Arc<CallState>, Reached)>,
    /// Whoever has made it was told what it has reached.
    told: bool,
}

impl Acted {
    /// An id alone can be anybody's: whoever drops a file may say one.
    fn is_of(&self, halt: &Halt) -> bool {
        self.halt == halt.halt && self.scope == halt.scope
    }
}

/// See the module's documentation.
pub(crate) struct Halts {
    list: ArcSwap<List>,
    /// Orders registering calls and walking halts; see `Core::halt`.
    order: AtomicU64,
    /// Where this host's own halts are, if it has a home; and those of the machine.
    folders: Vec<Folder>,
    /// In force, and not read from the disk yet. Held for a moment only: a halt may not wait for the disk.
    in_memory: Mutex<Vec<Own>>,
    /// Held while the disk is read.
    reading: Mutex<()>,
    /// Held while dropped files are taken, and while a halt is lifted: one that was lifted is not taken again.
    taking: Mutex<()>,
    news: Option<OwnedFd>,
    /// The news is being read.
    looking: AtomicBool,
    /// Held while a halt walks the calls: by threads that stop, and by nobody who waits for anything else.
    acted: Mutex<VecDeque<Acted>>,
    /// Counts looks, for whoever waits for the next one.
    looks: watch::Sender<u64>,
    /// Of the thread that reads the news.
    heartbeat: Heartbeat,
}

impl Halts {
    /// Watches, and then reads what is in force.
    pub(crate) fn open(home: Option<&Home>) -> Self {
        let folders =
            home.map(|home| Folder::new(home.halts())).into_iter().chain([Folder::of_the_machine()]).collect();
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let news = inotify::init(flags).inspect_err(|error| {
            tracing::warn!(%error, "halts of other processes are seen within {LOOK_EVERY:?} only");
        });
        let halts = Self {
            list: ArcSwap::default(),
            order: AtomicU64::new(0),
            folders,
            in_memory: Mutex::default(),
            reading: Mutex::default(),
            taking: Mutex::default(),
            news: news.ok(),
            looking: AtomicBool::new(false),
            acted: Mutex::default(),
            looks: watch::Sender::new(0),
            heartbeat: Heartbeat::new(),
        };
        // A host does not begin while it waits for somebody to write one.
        let began = Instant::now();
        while halts.look().unsettled && began.elapsed() < 2 * SETTLES_WITHIN {
            thread::sleep(SETTLES_WITHIN / 10);
        }
        halts
    }

    /// Starts the thread that reads the news.
    pub(crate) fn start(core: Weak<Core>) -> std::io::Result<()> {
        thread::Builder::new().name("estop-halts".into()).spawn(move || {
            // What was in force before the first call.
            let mut known = core.upgrade().map(|core| core.halts.list.load_full()).unwrap_or_default();
            // Until the host is gone.
            while let Some(core) = core.upgrade() {
                core.halts.heartbeat.beat();
                let halts = &core.halts;
                let taking = halts.taking.lock().unwrap_or_else(PoisonError::into_inner);
                let Looked { dropped, unsettled } = halts.look();
                let list = halts.list.load_full();
                let is_fresh = |halt: &&Arc<Halt>| !known.has(halt) && !halts.has_acted(halt);
                for halt in list.halts.iter().filter(is_fresh) {
                    drop(core.stop_halted(halt, false));
                    core.show(halt);
                }
                known = list;
                halts.acted().retain(|acted| acted.at.elapsed() < REMEMBERED_FOR);
                dropped.into_iter().for_each(|dropped| halts.take(&core, dropped));
                drop(taking);
                let news = halts.news.as_ref().and_then(|news| news.try_clone().ok());
                drop(core);
                wait(news.as_ref(), if unsettled { SETTLES_WITHIN } else { LOOK_EVERY });
            }
        })?;
        Ok(())
    }

    /// Reads what is in force.
    fn look(&self) -> Looked {
        let _one_at_a_time = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        // Said before the news is taken from the queue: see `is_current`.
        self.looking.store(true, Ordering::SeqCst);
        if let Some(news) = &self.news {
            let mut buffer = [0; 4096];
            // Which folder it was does not matter: all are read.
            while rustix::io::read(news, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
            self.folders.iter().for_each(|folder| folder.watch(news));
        }
        // What was on the disk before the folders are read need not be kept in memory after that.
        let on_disk: Vec<HaltId> = self.in_memory().iter().filter(|own| own.on_disk).map(|own| own.halt.halt).collect();
        let mut looked = Looked::default();
        let mut read = Vec::new();
        for (folder, found) in self.folders.iter().map(Folder::read).enumerate() {
            read.push(found.map(|Found { halts, dropped, unsettled }| {
                looked.unsettled |= unsettled;
                looked.dropped.extend(dropped.into_iter().map(|(halt, path)| Dropped { folder, halt, path }));
                halts
            }));
        }
        self.publish(read, &on_disk);
        self.looking.store(false, Ordering::SeqCst);
        self.looks.send_modify(|looks| *looks += 1);
        looked
    }

    /// What was read and what is in memory is the list from now on.
    fn publish(&self, read: Vec<Result<Vec<Halt>, String>>, on_disk: &[HaltId]) {
        let mut list = List::default();
        let mut halts = Vec::new();
        for read in read {
            match read {
                Ok(read) => halts.extend(read.into_iter().map(Arc::new)),
                Err(why) => list.unreadable = Some(why),
            }
        }
        let mut in_memory = self.in_memory();
        in_memory.retain(|own| !on_disk.contains(&own.halt.halt));
        let before = self.list.load_full();
        // Where it cannot be read, what was in force before is so still.
        let kept = before.halts.iter().filter(|_| list.unreadable.is_some());
        halts.extend(kept.chain(in_memory.iter().map(|own| &own.halt)).cloned());
        let mut known = HashSet::new();
        halts.retain(|halt| known.insert((halt.halt, halt.scope.clone())));
        list.halts = halts;
        self.list.store(Arc::new(list));
    }

    /// Waits until everything that is on the disk is in the list. An error if that takes too long.
    pub(crate) async fn current(&self) -> Result<(), String> {
        if self.is_current() {
            return Ok(());
        }
        let mut looks = self.looks.subscribe();
        let caught_up = async {
            while !self.is_current() {
                // The sender lives as long as this.
                let _ = looks.changed().await;
            }
        };
        let waited = tokio::time::timeout(NEWS_MAX, caught_up).await;
        waited.map_err(|_| "there is news of halts that the host has not read; restart it".into())
    }

    /// Whether everything that other processes have put on the disk is in the list.
    fn is_current(&self) -> bool {
        // In this order: a look says that it looks before it takes the news, and takes that back after the list is there.
        let unread =
            self.news.as_ref().is_some_and(|news| rustix::io::ioctl_fionread(news).map_or(true, |bytes| bytes > 0));
        !unread && !self.looking.load(Ordering::SeqCst)
    }

    /// Why a call that is registered may not start, if a halt covers it.
    pub(crate) fn refuses(&self, call: &CallState, host: HostId) -> Option<String> {
        self.order.fetch_add(0, Ordering::AcqRel);
        let list = self.list.load();
        if let Some(why) = &list.unreadable {
            return Some(format!("halted: {why}"));
        }
        let covers = |halt: &&Arc<Halt>| halt.scope.in_host(host).is_some_and(|scope| scope.covers(call));
        list.halts.iter().find(covers).map(|halt| format!("{}: {}", halt.word(), halt.says()))
    }

    /// Why this agent's own program may not go on, if a halt covers it.
    pub(crate) fn on_agent(&self, agent: &str) -> Option<String> {
        let list = self.list.load();
        let covers = list.halts.iter().find(|halt| halt.scope.covers_agent(agent)).map(|halt| halt.says());
        covers.or_else(|| list.unreadable.clone())
    }

    /// Told whenever the list may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.looks.subscribe()
    }

    /// What is in force, and why that may not be all.
    pub(crate) fn in_force(&self) -> (Vec<Halt>, Option<String>) {
        let list = self.list.load();
        (list.halts.iter().map(|halt| (**halt).clone()).collect(), list.unreadable.clone())
    }

    #[cfg(feature = "control")]
    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    fn acted(&self) -> MutexGuard<'_, VecDeque<Acted>> {
        self.acted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_memory(&self) -> MutexGuard<'_, Vec<Own>> {
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a halt on the disk of a home that no host of this process uses. Whether it was not there.
    #[cfg(feature = "cli")]
    pub(crate) fn latch(&self, halt: &Halt) -> Result<bool, HaltError> {
        let list = self.list.load();
        if !list.has(halt) && !list.takes(halt) {
            return Err(HaltError::TooMany { in_force: list.halts.len() });
        }
        self.persist(halt)
    }

    /// Takes a halt from the disk of a home that no host of this process uses.
    #[cfg(feature = "cli")]
    pub(crate) fn lift(&self, halt: HaltId) -> Result<Arc<Halt>, HaltError> {
        self.remove(halt)
    }

    /// Puts a halt on the disk for the whole machine, if this user may: by latching it, or else by dropping it.
    #[cfg(feature = "cli")]
    pub(crate) fn latch_on_the_machine(halt: &Halt) -> Option<Result<(), HaltError>> {
        let machine = Folder::of_the_machine();
        if machine.is_kept_by_us() {
            Some(machine.latch(halt).map(drop))
        } else {
            machine.takes_files().then(|| machine.drop_in(halt))
        }
    }

    fn machine(&self) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.is_machine())
    }

    /// Whether a halt of this host holds for the whole machine: the host keeps those, or it is there already.
    #[cfg(feature = "control")]
    pub(crate) fn is_machine_wide(&self, halt: HaltId) -> bool {
        self.machine().is_some_and(|machine| machine.is_own() || machine.has(halt))
    }

    /// Whether a halt of this name is in force that covers something else.
    #[cfg(feature = "control")]
    pub(crate) fn is_another(&self, halt: HaltId, scope: &HaltScope) -> bool {
        self.list.load().halts.iter().any(|other| other.halt == halt && other.scope != *scope)
    }

    /// In force in this process from now on, if there is room for it.
    fn add(&self, halt: &Arc<Halt>) {
        let mut in_memory = self.in_memory();
        if !self.list.load().takes(halt) {
            return;
        }
        if in_memory.iter().all(|own| !own.halt.is(halt)) {
            in_memory.push(Own { halt: Arc::clone(halt), on_disk: false });
        }
        let list = self.list.load();
        if !list.has(halt) {
            let halts = list.halts.iter().chain([halt]).cloned().collect();
            self.list.store(Arc::new(List { halts, unreadable: list.unreadable.clone() }));
        }
        drop(in_memory);
        self.looks.send_modify(|looks| *looks += 1);
    }

    /// Whether `add` has had room for it, or somebody else has put it on the disk.
    fn holds(&self, halt: &Halt) -> Result<(), HaltError> {
        let list = self.list.load();
        if list.has(halt) || self.folders.iter().any(|folder| folder.has(halt.halt)) {
            return Ok(());
        }
        Err(HaltError::TooMany { in_force: list.halts.len() })
    }

    /// Puts a halt on the disk: that of the machine, if this host keeps the machine's. Whether it was not there.
    fn persist(&self, halt: &Halt) -> Result<bool, HaltError> {
        let latched = match self.folders.first() {
            _ if !halt.permanent && self.machine().is_some_and(Folder::is_own) => {
                self.latch_in(self.machine(), halt)?
            }
            // It covers this home already. Whoever lifts it there need not look for copies.
            _ if self.machine().is_some_and(|machine| machine.has(halt.halt)) => self.latch_in(None, halt)?,
            Some(home) if !home.is_machine() => self.latch_in(Some(home), halt)?,
            // Without a home there is nothing to outlive.
            _ => true,
        };
        Ok(latched)
    }

    /// Puts a halt into this folder, or finds that it is on the disk. Whether it was not there.
    fn latch_in(&self, folder: Option<&Folder>, halt: &Halt) -> Result<bool, HaltError> {
        let latched = folder.map_or(Ok(false), |folder| folder.latch(halt))?;
        self.in_memory().iter_mut().filter(|own| own.halt.is(halt)).for_each(|own| own.on_disk = true);
        Ok(latched)
    }

    /// Latches what somebody has dropped into an inbox, if that is this host's to do. As it was read: whoever has dropped
    /// it may have removed it since.
    fn take(&self, core: &Core, Dropped { folder, halt, path }: Dropped) {
        let Some(folder) = self.folders.get(folder).filter(|folder| folder.is_kept_by_us()) else { return };
        let halt = Arc::new(halt);
        self.add(&halt);
        let latched = if folder.is_machine() { self.latch_in(Some(folder), &halt) } else { self.persist(&halt) };
        match core.enter_latched(&halt, latched) {
            // From here on removing the dropped file changes nothing.
            Ok(()) => drop(std::fs::remove_file(path)),
            Err(error) => tracing::error!(%error, "a halt was dropped into the inbox, and has to stay there"),
        }
    }

    /// Whether a halt that was found on the disk has stopped something lately, and whoever has made it did not ask yet.
    #[cfg(feature = "control")]
    pub(crate) fn has_to_tell(&self, within: Duration) -> bool {
        self.acted().iter().any(|acted| !acted.told && !acted.calls.is_empty() && acted.at.elapsed() < within)
    }

    /// Whether this process has stopped what a halt covers.
    fn has_acted(&self, halt: &Halt) -> bool {
        self.acted().iter().any(|acted| acted.is_of(halt))
    }

    /// Takes a halt from the disk and from the list.
    fn remove(&self, halt: HaltId) -> Result<Arc<Halt>, HaltError> {
        let _not_taken_again = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let find = || self.list.load().halts.iter().find(|other| other.halt == halt).cloned();
        let found = find().ok_or(HaltError::Unknown(halt))?;
        found.may_be_lifted()?;
        for folder in self.folders.iter().filter(|folder| folder.is_kept_by_us()) {
            folder.lift(halt)?;
        }
        let mut in_memory = self.in_memory();
        in_memory.retain(|own| own.halt.halt != halt);
        let list = self.list.load();
        if let Some(unreadable) = &list.unreadable {
            // Where what is in force cannot be read, a look keeps all that was, and everything is halted all the same.
            let halts = list.halts.iter().filter(|other| other.halt != halt).cloned().collect();
            self.list.store(Arc::new(List { halts, unreadable: Some(unreadable.clone()) }));
        }
        drop((in_memory, list));
        self.look();
        match find() {
            Some(left) if left.machine => Err(HaltError::StillInForce {
                halt,
                why: "it holds for the whole machine: lift it as root, or as one of `estop-admins` while the service runs"
                    .into(),
            }),
            Some(_) => Err(HaltError::StillInForce { halt, why: "its file is still there".into() }),
            None => Ok(found),
        }
    }
}

fn wait(news: Option<&OwnedFd>, most: Duration) {
    let Some(news) = news else { return thread::sleep(most) };
    let timeout = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
    let mut polled = [PollFd::new(news, PollFlags::IN)];
    if rustix::event::poll(&mut polled, Some(&timeout)).is_err() {
        // Whatever it is, not in a loop without rest.
        thread::sleep(Duration::from_millis(10));
    }
}
