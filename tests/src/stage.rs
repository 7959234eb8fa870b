//! Hostile guests and the small host that they perform on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use estop::wasmtime::{self, StoreContextMut};
use estop::{
    Call, CallCtx, CallLimits, Cause, Component, End, Host, HostBuilder, HostLimits, Interrupt, Outcome, Reached,
    Source, Stopped,
};
use serde_json::Value;

use crate::guests::Hostile;
use crate::held::Held;
use crate::{PATIENCE, within};

/// A guest's code: counted by the probe, unless the component is only being described.
pub const MARK: &str = "(drop (call $describing))";
/// A guest's code: never ends.
pub const SPIN: &str = "(loop $again (br $again))";
/// A guest's code: waits in the host.
pub const WAIT: &str = "(call $wait)";
/// Fields of a module: the first instruction of a guest is a mark.
pub const MARK_FIRST: &str = "(func $first (drop (call $describing))) (start $first)";
/// Who stops things in these tests.
pub const ACTOR: &str = "alice";

/// One worker, which takes its tasks in order; and room for this many sandboxes.
pub fn narrow(sandboxes_max: u32) -> HostBuilder {
    sized(1, sandboxes_max)
}

/// For tests that call faster than a loaded machine may let the log's thread write: a host with few slots would refuse.
pub fn sized(workers: usize, sandboxes_max: u32) -> HostBuilder {
    let limits = HostLimits { sandboxes_max, workers, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: PATIENCE, ..CallLimits::default() };
    Host::builder().limits(limits).call_limits(call_limits)
}

/// What a host function of [`grant`] answers with.
pub type Waiting = Pin<Box<dyn Future<Output = wasmtime::Result<()>> + Send>>;

/// The interface of hostile guests, with a `wait` of the test's own; `describing` counts nothing here.
pub fn grant(builder: HostBuilder, wait: impl Fn(&mut CallCtx) -> Waiting + Send + Sync + 'static) -> HostBuilder {
    let wait = Arc::new(wait);
    builder.interface(move |linker| {
        let mut probe = linker.instance("estop:drill/probe@0.1.0")?;
        for name in ["wait", "sleep"] {
            let wait = Arc::clone(&wait);
            probe.func_wrap_async(name, move |mut cx: StoreContextMut<'_, CallCtx>, (): ()| {
                Box::new(wait(cx.data_mut()))
            })?;
        }
        probe.func_wrap("describing", |cx, (): ()| Ok((cx.data().is_describing(),)))
    })
}

/// Loads a component that must load.
///
/// # Panics
/// If it does not.
pub async fn load_bytes(host: &Host, bytes: Vec<u8>) -> Component {
    match within(host.load(Source::bytes(bytes))).await {
        Ok(component) => component,
        Err(error) => panic!("{error}"),
    }
}

/// Loads a hostile guest.
///
/// # Panics
/// If it does not load.
pub async fn hostile(host: &Host, guest: Hostile<'_>) -> Component {
    load_bytes(host, guest.component()).await
}

/// The victim with its text changed: each of these must be there.
///
/// # Panics
/// If one is not, or if the result is not WebAssembly.
pub fn rewritten(guest: Hostile<'_>, changes: &[(&str, &str)]) -> Vec<u8> {
    let mut text = include_str!("../../host/src/drill/wrapper.wat").replace(
        ";;GUEST;;",
        &include_str!("../../host/src/drill/guest.wat")
            .replace(";;START;;", guest.start)
            .replace(";;REALLOC;;", guest.realloc)
            .replace(";;CALL;;", guest.call)
            .replace(";;POST;;", guest.post),
    );
    for (from, to) in changes {
        assert!(text.contains(from), "the victim's text has no {from:?}");
        text = text.replace(from, to);
    }
    match wat::parse_str(text) {
        Ok(bytes) => bytes,
        Err(error) => panic!("{error}"),
    }
}

/// A victim that spins in `list-tools`, after a call of `wait`.
pub fn spins_while_listing() -> Vec<u8> {
    let list = r#"(func (export "list-tools") (result i32)"#;
    rewritten(Hostile::default(), &[(list, &format!("{list} (call $wait) {SPIN}"))])
}

/// A victim that drops a resource of its own, after a mark, whose destructor spins.
pub fn spins_in_destructor() -> Vec<u8> {
    let wait = r#"(core func $wait (canon lower (func $probe "wait")))"#;
    let destructor = r#"
      (core module $undertaker (func (export "destroy") (param i32) (loop $again (br $again))))
      (core instance $undertaker (instantiate $undertaker))
      (type $doomed (resource (rep i32) (dtor (core func $undertaker "destroy"))))
      (core func $new (canon resource.new $doomed))
      (core func $drop (canon resource.drop $doomed))
      (core module $waster
        (import "resource" "new" (func $new (param i32) (result i32)))
        (import "resource" "drop" (func $drop (param i32)))
        (func (export "wait") (call $drop (call $new (i32.const 0)))))
      (core instance $waster (instantiate $waster
        (with "resource" (instance (export "new" (func $new)) (export "drop" (func $drop))))))
      (alias core export $waster "wait" (core func $wait))"#;
    rewritten(Hostile { call: &format!("{MARK} {WAIT}"), ..Hostile::default() }, &[(wait, destructor)])
}

/// Starts the one tool of a hostile guest.
pub fn start(host: &Host, agent: &str, component: &Component) -> Call {
    host.agent(agent).call(component, "victim", Value::Null).start()
}

/// Has short calls, which take no room and run no guest, follow one another on the workers. With one worker whatever was
/// ready before has then been polled as often.
///
/// # Panics
/// If the workers do not take turns.
pub async fn turns(host: &Host, component: &Component, times: usize) {
    for _ in 0..times {
        let outcome = crate::call(host, component, "no-such-tool", Value::Null).await;
        assert_eq!(outcome.end.status(), "refused", "{:?}", outcome.end);
    }
}

/// Until the ticker has looked at what the clock says now: calls without any time are stopped by it. `spinner` never
/// ends, and there has to be room for it.
///
/// # Panics
/// If the ticker does not look.
pub async fn ticks(host: &Host, spinner: &Component) {
    for _ in 0..3 {
        let call = host.agent("canary").call(spinner, "victim", Value::Null).deadline(Duration::ZERO).start();
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Deadline);
    }
}

/// Who stopped the call and why.
///
/// # Panics
/// If nobody did.
pub fn stopped(outcome: &Outcome) -> &Stopped {
    match &outcome.end {
        End::Stopped(stopped) => stopped,
        end => panic!("{} of {} was not stopped: {end:?}", outcome.call, outcome.agent),
    }
}

/// Stops a call as an operator and waits for its release.
///
/// # Panics
/// If it is not stopped by this.
pub async fn stop(call: &Call) -> Arc<Outcome> {
    let _ = call.interrupt(Cause::Operator, ACTOR);
    let outcome = within(call.outcome()).await;
    assert_eq!((stopped(&outcome).cause, stopped(&outcome).actor.as_str()), (Cause::Operator, ACTOR));
    outcome
}

/// Stops a call that must be suspended.
///
/// # Panics
/// If it is not.
pub async fn stop_suspended(call: &Call) -> Arc<Outcome> {
    let interruption = call.interrupt(Cause::Operator, ACTOR);
    assert_eq!(interruption.reached().collect::<Vec<_>>(), [(call.id(), Reached::Halted)]);
    let outcome = within(call.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    outcome
}

/// Until a condition holds that nobody tells of.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// An interrupt by [`ACTOR`], at once.
pub fn operator() -> Interrupt {
    Interrupt::new(Cause::Operator, ACTOR)
}

/// A host on a store that can be held, with one worker; and the tools that read and write state.
///
/// # Panics
/// If it cannot be built.
pub async fn held_host() -> (Held, Host, Component) {
    let held = Held::new();
    let host = match narrow(8).store(held.clone()).build() {
        Ok(host) => host,
        Err(error) => panic!("{error}"),
    };
    let kv = crate::load(&host, "kv").await;
    (held, host, kv)
}

/// What key `k` of agent `default` holds.
///
/// # Panics
/// If it cannot be read.
pub async fn value(host: &Host, kv: &Component) -> Value {
    crate::completed(&crate::call(host, kv, "get", serde_json::json!({ "key": "k" })).await)["value"].clone()
}
