//! Connections to one socket: how many there may be, and who makes room.
//!
//! Invariant: whoever connects and asks at once is heard, however many others have connected and say nothing, ask for much,
//! do not read, or only look on. Whoever waits to hear what came of a stop is let go last. Whether one that waits for an
//! answer makes room for the next at all is the socket's affair: an operator's question does, an agent's call never.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// One in so many of a socket's places is for the newest that have not asked yet: they keep it against all others, so that
/// they can.
const SILENT_KEPT_SHARE: usize = 2;
/// Connections that are taken before those that are there have a turn. Fewer than such places: each has a turn.
pub(super) const ACCEPTED_AT_ONCE_MAX: usize = 16;
/// Watchers hear that the host ends within this, all of them.
const WATCHERS_END_WITHIN: Duration = Duration::from_millis(50);

/// Oldest first.
pub(super) struct Connections {
    open: VecDeque<Connection>,
    connections_max: usize,
    busy_give_way: bool,
}

struct Connection {
    task: JoinHandle<()>,
    asked: Asked,
}

/// What a connection is for, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum For {
    /// It has not brought a whole request.
    Nothing = 0,
    /// What it is told is there, and only has to be read.
    Reading = 1,
    /// It looks on for as long as it likes, and can come again.
    Watching = 2,
    /// It waits for something that it has asked to see.
    Looking = 3,
    /// It waits to hear what came of something that it has asked for.
    Acting = 4,
}

impl For {
    /// It waits for its answer.
    fn is_busy(self) -> bool {
        matches!(self, For::Looking | For::Acting)
    }
}

/// See [`For`]. Shared by a connection and whoever answers it.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<State>);

#[derive(Default)]
struct State {
    what: AtomicU8,
    let_go: Notify,
}

impl Asked {
    pub(super) fn looks(&self) {
        self.0.what.store(For::Looking as u8, Ordering::Release);
    }

    pub(super) fn acts(&self) {
        self.0.what.store(For::Acting as u8, Ordering::Release);
    }

    pub(super) fn watches(&self) {
        self.0.what.store(For::Watching as u8, Ordering::Release);
    }

    pub(super) fn is_told(&self) {
        self.0.what.store(For::Reading as u8, Ordering::Release);
    }

    /// It has brought a whole request.
    pub(super) fn is_set(&self) -> bool {
        self.what() != For::Nothing
    }

    pub(super) fn is_watching(&self) -> bool {
        self.what() == For::Watching
    }

    fn what(&self) -> For {
        match self.0.what.load(Ordering::Acquire) {
            1 => For::Reading,
            2 => For::Watching,
            3 => For::Looking,
            4 => For::Acting,
            _ => For::Nothing,
        }
    }

    /// Whether anybody else knows of it.
    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Ends the connection.
    pub(super) fn let_go(&self) {
        self.0.let_go.notify_one();
    }

    /// Resolves when the connection is to end.
    pub(super) async fn is_let_go(&self) {
        self.0.let_go.notified().await;
    }
}

impl Connections {
    /// `busy_give_way`: when all wait for their answers, one makes room.
    pub(super) fn new(connections_max: usize, busy_give_way: bool) -> Self {
        Self { open: VecDeque::new(), connections_max, busy_give_way }
    }

    /// Whether there is room for one more; somebody may have made it.
    pub(super) fn make_room(&mut self) -> bool {
        self.open.retain(|connection| !connection.task.is_finished());
        let busy_give_way = self.busy_give_way;
        let may_go = |what: For| busy_give_way || !what.is_busy();
        self.open.len() < self.connections_max || self.let_one_go(self.connections_max / SILENT_KEPT_SHARE, may_go)
    }

    /// Serves one more, on this thread's runtime.
    pub(super) fn add<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(Asked) -> F) {
        let asked = Asked::default();
        let task = tokio::spawn(serve(asked.clone()));
        self.open.push_back(Connection { task, asked });
    }

    /// There are too many open files in this process: whoever is not being answered gives up theirs. One for each call,
    /// so that those who come find some.
    pub(super) fn give_up_one(&mut self) {
        self.let_one_go(0, |what| !what.is_busy());
    }

    /// Lets one go that may. So many who have said nothing are kept as long as there are others.
    fn let_one_go(&mut self, silent_kept: usize, may_go: impl Fn(For) -> bool) -> bool {
        let whats = || self.open.iter().map(|connection| connection.asked.what());
        let is_crowded = whats().filter(|what| *what == For::Nothing).count() > silent_kept;
        let place = |what| match what {
            For::Nothing if is_crowded => 0,
            For::Reading => 1,
            For::Watching => 2,
            For::Looking => 3,
            For::Nothing => 4,
            For::Acting => 5,
        };
        // The first of those that are equal: the oldest has had the most time.
        let first = whats().enumerate().filter(|(_, what)| may_go(*what)).min_by_key(|(_, what)| place(*what));
        let connection = first.and_then(|(at, _)| self.open.remove(at));
        connection.inspect(|connection| connection.task.abort()).is_some()
    }

    /// Waits until those that have asked are answered; the others are let go.
    pub(super) async fn finish(self) {
        let (watchers, others): (VecDeque<_>, _) =
            self.open.into_iter().partition(|connection| connection.asked.is_watching());
        for connection in others {
            if connection.asked.is_set() {
                // Whether it went well is for whoever asked to see.
                let _ = connection.task.await;
            } else {
                connection.task.abort();
            }
        }
        let told = async {
            for connection in watchers {
                let _ = connection.task.await;
            }
        };
        // Those that have not read it by then are let go with the thread.
        let _ = timeout(WATCHERS_END_WITHIN, told).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS_MAX: usize = 128;
    const SILENT_KEPT: usize = CONNECTIONS_MAX / SILENT_KEPT_SHARE;

    /// Connections that stay until they are let go, each with its number and what it is for.
    struct Crowd {
        connections: Connections,
        asked: Vec<Asked>,
    }

    impl Crowd {
        fn new(busy_give_way: bool) -> Self {
            Self { connections: Connections::new(CONNECTIONS_MAX, busy_give_way), asked: Vec::new() }
        }

        fn add(&mut self, what: For) {
            assert!(self.connections.make_room());
            let mut made = None;
            self.connections.add(|asked| {
                made = Some(asked.clone());
                async move {
                    asked.is_let_go().await;
                }
            });
            let asked = made.unwrap();
            asked.0.what.store(what as u8, Ordering::Release);
            self.asked.push(asked);
        }

        /// The numbers of those that are open.
        async fn open(&self) -> Vec<usize> {
            // Those that were let go are polled once more, and dropped.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            // Its task, the list, and this.
            (0..self.asked.len()).filter(|at| Arc::strong_count(&self.asked[*at].0) == 3).collect()
        }
    }

    #[tokio::test]
    async fn whoever_wants_the_least_makes_room_first_and_the_oldest_of_those() {
        let mut crowd = Crowd::new(true);
        for what in [For::Acting, For::Looking, For::Watching, For::Reading] {
            crowd.add(what);
        }
        // Ten times as many as there is room for, and not a word.
        while crowd.asked.len() < 10 * CONNECTIONS_MAX {
            crowd.add(For::Nothing);
        }
        let newest = crowd.asked.len() + 4 - CONNECTIONS_MAX;
        assert_eq!(crowd.open().await, (0..4).chain(newest..crowd.asked.len()).collect::<Vec<_>>());
        // As many who want something done: who has said nothing goes until few are left, then who reads, watches, looks.
        let begun = crowd.asked.len();
        let kept = begun - SILENT_KEPT..begun;
        for _ in 4..CONNECTIONS_MAX - SILENT_KEPT {
            crowd.add(For::Acting);
        }
        for left in [vec![0, 1, 2, 3], vec![0, 1, 2], vec![0, 1], vec![0]] {
            let others = kept.clone().chain(begun..crowd.asked.len());
            assert_eq!(crowd.open().await, left.into_iter().chain(others).collect::<Vec<_>>());
            crowd.add(For::Acting);
        }
        // Then who has said nothing after all; and last the oldest who waits for what it has asked for.
        for _ in 0..SILENT_KEPT {
            assert!(crowd.open().await.contains(&0));
            crowd.add(For::Acting);
        }
        assert_eq!(crowd.open().await, (begun..crowd.asked.len()).collect::<Vec<_>>());
    }

    /// Those who ask for much and do not read it leave room for those who have just come.
    #[tokio::test]
    async fn whoever_has_just_come_has_a_turn_among_those_who_do_not_read() {
        for what in [For::Reading, For::Looking] {
            let mut crowd = Crowd::new(true);
            for _ in 0..CONNECTIONS_MAX {
                crowd.add(what);
            }
            for _ in 0..ACCEPTED_AT_ONCE_MAX {
                crowd.add(For::Nothing);
            }
            let open = crowd.open().await;
            let came: Vec<usize> = (CONNECTIONS_MAX..crowd.asked.len()).collect();
            assert!(open.ends_with(&came), "{what:?}: {open:?}");
        }
    }

    /// Where that is the socket's way, whoever waits for an answer keeps its place, and who comes is turned away.
    #[tokio::test]
    async fn whoever_waits_for_an_answer_need_not_make_room() {
        let mut crowd = Crowd::new(false);
        for _ in 1..CONNECTIONS_MAX {
            crowd.add(For::Acting);
        }
        crowd.add(For::Nothing);
        crowd.add(For::Acting);
        assert!(!crowd.connections.make_room());
        assert!(!crowd.open().await.contains(&(CONNECTIONS_MAX - 1)));
    }

    #[tokio::test]
    async fn whoever_is_being_answered_keeps_its_place_when_files_are_short() {
        let mut crowd = Crowd::new(true);
        for what in [For::Looking, For::Nothing, For::Watching, For::Acting] {
            crowd.add(what);
        }
        for _ in 0..3 {
            crowd.connections.give_up_one();
        }
        assert_eq!(crowd.open().await, [0, 3]);
    }
}
