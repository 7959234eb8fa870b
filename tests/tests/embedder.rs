//! Promises 10 and 13: what an embedder gives to its tools and what it gets to see; nothing of it gets in the way of a stop.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use estop::log::Entry;
use estop::wasmtime::Error;
use estop::{CallCtx, CallLimits, Cause, Component, EffectState, Host, Interrupt, Observer};
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{
    ACTOR, WAIT, Waiting, grant, hostile, narrow, operator, sized, start, stop, stopped, turns, until,
};
use estop_tests::{end_entry, log, small, within};
use serde_json::{Value, json};

fn call_code(code: &str) -> Hostile<'_> {
    Hostile { call: code, ..Hostile::default() }
}

/// What the embedder shares with its host function.
#[derive(Default)]
struct Ledger {
    lines: Mutex<Vec<String>>,
}

/// Sends mail. What becomes of it depends on the agent.
fn mail(ctx: &mut CallCtx) -> Waiting {
    let ledger = ctx.shared::<Ledger>().expect("it was shared");
    assert!(ctx.shared::<String>().is_none());
    ledger.lines.lock().unwrap().push(format!("{} {}", ctx.agent(), ctx.tool()));
    let count = if ctx.agent() == "flood" { 3 } else { 1 };
    let mut guards = Vec::new();
    for _ in 0..count {
        match ctx.effect("mail") {
            Ok(guard) => guards.push(guard),
            Err(too_many) => return Box::pin(async move { Err(Error::new(too_many)) }),
        }
    }
    let (agent, interrupted) = (ctx.agent().to_owned(), ctx.interrupted());
    Box::pin(async move {
        match agent.as_str() {
            "unsure" => std::future::pending().await,
            "warned" => {
                let cause = interrupted.await;
                ledger.lines.lock().unwrap().push(cause.to_string());
            }
            _ => {}
        }
        guards.into_iter().for_each(estop::EffectGuard::performed);
        Ok(())
    })
}

/// Promise 10: effects are told as `performed` or `unknown`, by outcome and entry, however the call ended; and bounded.
#[tokio::test]
async fn effects_are_told_as_performed_or_unknown() {
    let limits = CallLimits { effects_max: 2, ..CallLimits::default() };
    let host = grant(narrow(4).call_limits(limits).share(Ledger::default()), mail).build().unwrap();
    let mailer = hostile(&host, call_code(WAIT)).await;
    for (agent, grace, status, states) in [
        ("sure", None, "completed", &[EffectState::Performed][..]),
        ("unsure", Some(Duration::ZERO), "stopped", &[EffectState::Unknown]),
        ("warned", Some(Duration::from_secs(60)), "stopped", &[EffectState::Performed]),
        ("flood", None, "trapped", &[EffectState::Unknown, EffectState::Unknown]),
    ] {
        let call = start(&host, agent, &mailer);
        turns(&host, &mailer, 20).await;
        if let Some(grace) = grace {
            assert!(call.try_outcome().is_none(), "{agent} does not wait");
            let _ = call.interrupt_with(operator().grace(grace));
        }
        let outcome = within(call.outcome()).await;
        assert_eq!(outcome.end.status(), status, "{agent}: {:?}", outcome.end);
        let found: Vec<_> = outcome.effects.iter().map(|effect| (effect.name.as_str(), effect.state)).collect();
        assert_eq!(found, states.iter().map(|state| ("mail", *state)).collect::<Vec<_>>(), "{agent}");
        let log = log(&host).await;
        assert_eq!(end_entry(&log, &outcome)["effects"], json!(outcome.effects), "{agent}");
        if agent == "flood" {
            assert!(outcome.end.error().is_some_and(|error| error.contains("has had 2 effects")), "{:?}", outcome.end);
        }
    }
}

/// The embedder's view: host functions get what was shared, know for whom they work, and learn of a stop in its grace.
#[tokio::test]
async fn a_host_function_has_what_was_shared_and_is_told_of_a_stop() {
    let (lines, count) = (Arc::new(Ledger::default()), Counter::new());
    let (shared, counted) = (Arc::clone(&lines), count.clone());
    let builder = grant(small().share(shared), move |ctx| {
        let ledger = Arc::clone(&*ctx.shared::<Arc<Ledger>>().expect("it was shared"));
        ledger.lines.lock().unwrap().push(format!("{} {} {}", ctx.agent(), ctx.tool(), ctx.call_id()));
        counted.add();
        let interrupted = ctx.interrupted();
        Box::pin(async move {
            // In a task of its own, as a host function may.
            let cause = tokio::spawn(interrupted).await?;
            ledger.lines.lock().unwrap().push(cause.to_string());
            Ok(())
        })
    });
    let host = builder.build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    let call = start(&host, "anna", &waiter);
    count.reached(1).await;
    let _ = call.interrupt_with(Interrupt::new(Cause::Priority, ACTOR).grace(Duration::from_secs(60)));
    assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Priority);
    assert_eq!(*lines.lines.lock().unwrap(), [format!("anna victim {}", call.id()), "priority".into()]);
}

struct Tells(mpsc::Sender<Value>);

impl Observer for Tells {
    fn entry(&mut self, entry: &Entry) {
        let _ = self.0.send(entry.to_json());
    }
}

/// Never comes back from its first entry until it is let go.
struct Stuck(mpsc::Receiver<()>, Counter);

impl Observer for Stuck {
    fn entry(&mut self, _: &Entry) {
        self.1.add();
        let _ = self.0.recv();
    }
}

async fn stopped_call(host: &Host, probe: &Probe, waiter: &Component) {
    let call = start(host, "default", waiter);
    probe.waiting(1).await;
    stop(&call).await;
}

/// The embedder's view: an observer is told what the log is told, in its order.
#[tokio::test]
async fn an_observer_is_told_what_the_log_is_told() {
    let (probe, (tell, told)) = (Probe::new(), mpsc::channel());
    let host = probe.grant(small()).observer(Tells(tell)).build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    stopped_call(&host, &probe, &waiter).await;
    let log = log(&host).await;
    assert!(log.iter().any(|entry| entry["kind"] == "interrupt"));
    let mut seen = Vec::new();
    until(|| {
        seen.extend(told.try_iter());
        seen.len() >= log.len()
    })
    .await;
    assert_eq!(seen, log);
}

/// Promise 13: an observer that is stuck loses entries and delays neither stops, nor calls, nor the log.
#[tokio::test]
async fn a_stuck_observer_delays_nobody() {
    const CALLS: usize = 6_000;
    let (probe, entered, (let_go, stuck)) = (Probe::new(), Counter::new(), mpsc::channel());
    let host = probe.grant(sized(2, 8)).observer(Stuck(stuck, entered.clone())).build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    entered.reached(1).await;
    turns(&host, &waiter, CALLS).await;
    stopped_call(&host, &probe, &waiter).await;
    let log = log(&host).await;
    // Too many to be entered one by one, and none is forgotten.
    let refused = log.iter().map(|entry| match entry["kind"].as_str() {
        Some("refusal") => 1,
        Some("refusals") => entry["count"].as_u64().expect("a number"),
        _ => 0,
    });
    assert_eq!(refused.sum::<u64>(), CALLS as u64);
    assert_eq!(log.iter().filter(|entry| entry["kind"] == "interrupt").count(), 1);
    assert_eq!(entered.get(), 1, "the observer was not stuck");
    drop(let_go);
}
