//! Whatever comes, leaves and is stopped in whatever order: no place is lost, nobody is overtaken by an equal, nobody who
//! could be let in waits, and exactly as many give way as have to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::InterruptId;
use crate::call::Identity;
use crate::call::live::Live;
use crate::interrupt::{Cause, Delivered, Interrupt, Scope};

const PLACES: u32 = 5;
const WAITING_MAX: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Enter { priority: u8, places: u32 },
    Leave(prop::sample::Index),
    Stop(prop::sample::Index),
    Warn(prop::sample::Index),
    Settle(prop::sample::Index),
    TimePasses,
}

fn steps(places_max: u32) -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        6 => (0..4_u8, 1..=places_max).prop_map(|(priority, places)| Step::Enter { priority, places }),
        4 => index().prop_map(Step::Leave),
        1 => index().prop_map(Step::Stop),
        1 => index().prop_map(Step::Warn),
        1 => index().prop_map(Step::Settle),
        1 => Just(Step::TimePasses),
    ];
    prop::collection::vec(step, 1..80)
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A call that has a turn, as its task sees it.
struct Turns {
    ticket: Ticket,
    call: Arc<CallState>,
    woken: Arc<Woken>,
    let_in: bool,
}

struct Stage {
    queue: Queue,
    here: Vec<Turns>,
    now_ns: u64,
    unit: bool,
}

fn call(priority: u8) -> Arc<CallState> {
    let identity = Identity {
        agent: "a".into(),
        tool: "t".into(),
        component: None,
        parent: None,
        grace: Duration::ZERO,
        priority,
        live: Live::new(0, 0),
    };
    Arc::new(CallState::new(usize::MAX, identity))
}

fn interrupt(call: &CallState, at_ns: u64) {
    let interrupt = Interrupt::new(Cause::Operator, "a");
    let delivered = Delivered { id: InterruptId::generate(), scope: Scope::Call(call.id), interrupt, at_ns };
    call.publish(&Arc::new(delivered));
    let _ = call.gate.interrupt();
}

impl Stage {
    fn new(unit: bool) -> Self {
        Self { queue: Queue::new(PLACES, WAITING_MAX), here: Vec::new(), now_ns: 0, unit }
    }

    fn step(&mut self, step: &Step) {
        let before = self.holding();
        let at = |index: &prop::sample::Index| (!self.here.is_empty()).then(|| index.index(self.here.len()));
        let changes = match step {
            Step::Enter { priority, places } => match self.queue.enter(&call(*priority), *places, self.now_ns) {
                Ok(Entered { ticket, has_room, changes }) => {
                    let found = self.queue.waiting.get(&ticket.turn()).map(|waiting| &waiting.call);
                    let found = found.or_else(|| self.queue.holding.get(&ticket.worth()).map(|holding| &holding.call));
                    let call = Arc::clone(found.expect("whoever has entered is there"));
                    let woken = Arc::new(Woken::default());
                    let let_in = self.queue.poll(ticket, &Arc::clone(&woken).into());
                    assert_eq!(let_in, has_room);
                    self.here.push(Turns { ticket, call, woken, let_in });
                    changes
                }
                Err(waiting) => {
                    assert_eq!(waiting, WAITING_MAX, "refused while there was a turn");
                    assert!(self.queue.waiting.values().all(|waiting| waiting.call.priority >= *priority));
                    Changes::default()
                }
            },
            Step::Leave(index) => {
                let Some(at) = at(index) else { return };
                let gone = self.here.swap_remove(at);
                self.queue.leave(gone.ticket, || self.now_ns)
            }
            Step::Stop(index) => {
                let Some(at) = at(index) else { return };
                interrupt(&self.here[at].call, self.now_ns);
                self.queue.look_again(self.now_ns)
            }
            Step::Warn(index) => {
                let Some(at) = at(index) else { return };
                let _ = self.here[at].call.gate.flag();
                self.queue.look_again(self.now_ns)
            }
            Step::Settle(index) => {
                // Only what runs can end by itself.
                let Some(at) = at(index).filter(|at| self.here[*at].let_in) else { return };
                let _ = self.here[at].call.gate.settle();
                self.queue.look_again(self.now_ns)
            }
            Step::TimePasses => {
                self.now_ns += nanos(GIVES_WAY_WITHIN);
                self.queue.look_again(self.now_ns)
            }
        };
        self.check(&before, changes);
    }

    /// Who had places, and whether it had been told to give way.
    fn holding(&self) -> Vec<(Worth, bool)> {
        self.queue.holding.iter().map(|(worth, holding)| (*worth, holding.told_ns.is_some())).collect()
    }

    fn check(&mut self, before: &[(Worth, bool)], changes: Changes) {
        let Changes { let_in, give_way } = changes;
        let_in.into_iter().for_each(Waker::wake);
        let queue = &self.queue;
        let held: u32 = queue.holding.values().map(|holding| holding.places).sum();
        assert_eq!(queue.free + held, PLACES, "places were lost or made");
        assert!(queue.waiting.len() <= WAITING_MAX);
        let first = queue.waiting.values().next();
        assert!(first.is_none_or(|first| first.places > queue.free), "somebody waits and could be let in");

        // Nobody was let in past somebody whose turn was earlier.
        let latest = queue.holding.keys().filter(|worth| !before.iter().any(|(held, _)| held == *worth));
        let latest = latest.map(|(priority, Reverse(arrival))| (Reverse(*priority), *arrival)).max();
        if let (Some(latest), Some((turn, _))) = (latest, queue.waiting.first_key_value()) {
            assert!(latest < *turn, "{latest:?} was let in before {turn:?}");
        }
        for turns in &mut self.here {
            let has_room = queue.holding.contains_key(&turns.ticket.worth());
            assert!(has_room || !turns.let_in, "its places were taken away");
            if has_room && !turns.let_in {
                assert!(turns.woken.0.load(Ordering::Relaxed), "it was let in and not woken");
            }
            turns.let_in = has_room;
        }
        for GiveWay { call, to } in &give_way {
            assert!(call.priority < to.priority);
            assert!(!call.gate.is_interrupted() && !to.gate.is_flagged());
        }
        if self.unit {
            self.exactly_who_has_to(before, &give_way);
        }
        // As the host does: it publishes the cause and closes the gate.
        give_way.iter().for_each(|way| interrupt(&way.call, self.now_ns));
    }

    /// The rule, said once more for calls of one place, step by step.
    fn exactly_who_has_to(&self, before: &[(Worth, bool)], give_way: &[GiveWay]) {
        let was_told = |worth: &Worth| before.iter().any(|(held, told)| held == worth && *told);
        let (mut coming, mut others) = (self.queue.free, Vec::new());
        for (worth, holding) in &self.queue.holding {
            let now_told = holding.told_ns.is_some() && !was_told(worth);
            if !now_told && holding.is_leaving(self.now_ns) {
                coming += 1;
            } else if now_told || !holding.is_stopping() {
                others.push((*worth, &holding.call));
            }
        }
        let mut expected = Vec::new();
        let mut others = others.into_iter().peekable();
        for waiting in self.queue.waiting.values().filter(|waiting| !waiting.call.gate.is_flagged()) {
            if coming > 0 {
                coming -= 1;
            } else if let Some((_, call)) = others.next_if(|((priority, _), _)| *priority < waiting.call.priority) {
                expected.push((call.id, waiting.call.id));
            } else {
                break;
            }
        }
        // Those who wait and have to leave a full queue are checked by their priority alone.
        let held = |way: &&GiveWay| self.queue.holding.values().any(|holding| holding.call.id == way.call.id);
        let told: Vec<_> = give_way.iter().filter(held).map(|way| (way.call.id, way.to.id)).collect();
        assert_eq!(told, expected);
    }

    fn end(mut self) {
        while let Some(turns) = self.here.pop() {
            let before = self.holding();
            let changes = self.queue.leave(turns.ticket, || self.now_ns);
            self.check(&before, changes);
        }
        assert_eq!(self.queue.free, PLACES);
        assert!(self.queue.waiting.is_empty() && self.queue.holding.is_empty());
    }
}

fn run(steps: &[Step], unit: bool) {
    let mut stage = Stage::new(unit);
    steps.iter().for_each(|step| stage.step(step));
    stage.end();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn calls_of_one_place_come_and_go_in_any_order(steps in steps(1)) {
        run(&steps, true);
    }

    #[test]
    fn calls_of_several_places_come_and_go_in_any_order(steps in steps(PLACES)) {
        run(&steps, false);
    }
}

/// One with many places makes those before it unnecessary; what cannot help is not stopped.
#[test]
fn nobody_gives_way_in_vain() {
    let told = |held: &[(u8, u32)], priority: u8, places: u32| {
        let mut queue = Queue::new(PLACES, WAITING_MAX);
        for (priority, places) in held {
            assert!(queue.enter(&call(*priority), *places, 0).is_ok_and(|entered| entered.has_room));
        }
        let Ok(entered) = queue.enter(&call(priority), places, 0) else { panic!("it was refused") };
        entered.changes.give_way.iter().map(|way| way.call.priority).collect::<Vec<_>>()
    };
    assert_eq!(told(&[(1, 1), (2, 1), (3, 3)], 9, 3), [3]);
    assert_eq!(told(&[(1, 1), (2, 1), (3, 3)], 9, 2), [1, 2]);
    assert_eq!(told(&[(1, 1), (2, 1), (3, 3)], 9, 5), [1, 2, 3]);
    assert_eq!(told(&[(1, 1), (2, 1), (9, 3)], 9, 3), [0_u8; 0]);
    assert_eq!(told(&[(1, 1), (2, 2)], 9, 3), [1]);
}
