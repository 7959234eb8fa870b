//! Rounds of two things in turn, and the medians of both.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Rounds of each comparison.
pub(crate) const ROUNDS: usize = 21;

/// A caller that has nothing else to do and does not let its thread sleep: waking it would cost more than the call.
pub(crate) fn spin<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return value;
        }
        std::hint::spin_loop();
    }
}

/// Rounds of both in turn; prints the medians for each unit of work.
pub(crate) fn compare_for(name: &str, rounds: usize, units: usize, ours: impl Fn(), floor: impl Fn()) {
    let (mut our_times, mut floor_times) = (Vec::new(), Vec::new());
    // The first round warms up and is not counted.
    for round in 0..=rounds {
        for (times, run) in [(&mut our_times, &ours as &dyn Fn()), (&mut floor_times, &floor as &dyn Fn())] {
            let begun = Instant::now();
            run();
            if round > 0 {
                times.push(begun.elapsed() / u32::try_from(units).expect("a small number"));
            }
        }
    }
    our_times.sort();
    floor_times.sort();
    let (ours, floor) = (our_times[rounds / 2], floor_times[rounds / 2]);
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    println!("{name:<44} {:>12} {:>12} {ratio:>6.2}x", shown(ours), shown(floor));
}

fn shown(time: Duration) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6)
}
