//! Promise 8 and row 21: interrupts race completions on the real host, and every answer agrees with store and log.

use std::collections::HashMap;
use std::hint::spin_loop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use estop::store::memory::Memory;
use estop::store::{Key, Space, Store};
use estop::{Call, Cause, End, Host, Outcome};
use estop_tests::{load, small, within};
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::json;

/// "100,000 random races of interrupt against completion on the real host".
const RACES: u64 = 100_000;
/// Checked together; what the log keeps in memory has room for a batch.
const BATCH: u64 = 5_000;
/// Under way at one time.
const CALLS: usize = 8;
/// Delays before the interrupt, as long as a call takes.
const DELAY_NS_MAX: u64 = 400_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_races_of_interrupt_and_completion() {
    let store = Arc::new(Memory::new());
    let host = small().store_arc(store.clone()).build().expect("a host");
    let kv = load(&host, "kv").await;
    let agent = host.agent("racer");
    let space = Space { agent: "racer".into(), component: "kv".into() };
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut tally: HashMap<&'static str, u64> = HashMap::new();
    let mut position = host.entries(0, usize::MAX).await.expect("the log can be read").len() as u64;

    for first in (0..RACES).step_by(BATCH as usize) {
        let mut answers: Vec<(u64, Arc<Outcome>)> = Vec::new();
        let mut running: Vec<(u64, Call)> = Vec::new();
        for race in first..first + BATCH {
            let input = json!({ "key": race.to_string(), "value": race });
            running.push((race, agent.call(&kv, "set", input).start()));
            if running.len() == CALLS {
                let victim = below(&mut random, CALLS as u64) as usize;
                wait(Duration::from_nanos(below(&mut random, DELAY_NS_MAX)));
                let _ = running[victim].1.interrupt(Cause::Operator, "racer");
                let _ = running[below(&mut random, CALLS as u64) as usize].1.interrupt(Cause::Cancelled, "other");
                for (race, call) in running.drain(..) {
                    answers.push((race, within(call.outcome()).await));
                }
            }
        }
        for (race, call) in running {
            answers.push((race, within(call.outcome()).await));
        }
        position = check(&host, &store, &space, &answers, position).await;
        for (_, outcome) in &answers {
            *tally.entry(outcome.end.status()).or_default() += 1;
        }
    }
    println!("{tally:?}");
    assert_eq!(tally.values().sum::<u64>(), RACES);
    // A race that only one side ever wins is none.
    assert!(tally["completed"] > RACES / 100 && tally["stopped"] > RACES / 100, "{tally:?}");
}

/// Every answer against the store and the entries since `position`; returns the position after them.
async fn check(host: &Host, store: &Memory, space: &Space, answers: &[(u64, Arc<Outcome>)], position: u64) -> u64 {
    let entries = host.entries(position, usize::MAX).await.expect("the log can be read");
    let mut ends: HashMap<String, Vec<String>> = HashMap::new();
    let mut commits: HashMap<String, u64> = HashMap::new();
    for entry in entries.iter().map(|entry| entry.to_json()) {
        let call = entry["call"].as_str().unwrap_or_default().to_owned();
        match entry["kind"].as_str() {
            Some("end") => ends.entry(call).or_default().push(entry["status"].as_str().unwrap_or_default().to_owned()),
            Some("commit") => *commits.entry(call).or_default() += 1,
            _ => {}
        }
    }
    for (race, outcome) in answers {
        let key = Key { bucket: "test".into(), key: race.to_string().into() };
        let (_, value) = store.get(space, &key).await.expect("a key can be read");
        let call = outcome.call.to_string();
        let committed = match &outcome.end {
            End::Completed(_) => true,
            End::Stopped(_) => false,
            end => panic!("race {race}: {end:?}"),
        };
        assert_eq!(value.is_some(), committed, "race {race}: the store disagrees with {:?}", outcome.end);
        assert_eq!(outcome.commits.points, u64::from(committed), "race {race}");
        assert_eq!(commits.get(&call).copied().unwrap_or(0), u64::from(committed), "race {race}: entry of the commit");
        assert_eq!(ends.get(&call).map(Vec::as_slice), Some(&[outcome.end.status().to_owned()][..]), "race {race}");
        if committed {
            assert_eq!(outcome.discarded.writes, 0, "race {race}");
        }
    }
    position + entries.len() as u64
}

fn below(random: &mut TestRng, end: u64) -> u64 {
    use proptest::prelude::Rng;
    random.next_u64() % end
}

/// Not a wait for something: where in the call the interrupt lands.
fn wait(delay: Duration) {
    let until = Instant::now() + delay;
    while Instant::now() < until {
        spin_loop();
    }
}
