//! A call that a running tool makes: registered, gated, limited and entered like every other one, below the call that
//! invokes it, and within that one's transaction.
//!
//! Invariants:
//! - It is granted at most what the call that invokes it was granted, and gets at most the fuel and the time that this has
//!   left. Counts of a grant (requests of a call, programs at one time) are each call's own; effects are counted for the tree.
//! - It never waits for room: calls that wait for their children, and children that wait for places, could wait for each
//!   other for ever.
//! - It is released before the call that invoked it goes on, or is released itself. So a call has one child at most.

use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Handle;
use wasmtime::StoreContextMut;

use super::live::HostCall;
use super::{CallBuilder, CallLimits, CallState, End, Failure, Outcome, Output};
use crate::grants::Granted;
use crate::host::Core;
use crate::hostcalls::bindings::estop::tool::types;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt};
use crate::sandbox::CallCtx;
use crate::tools::NoTool;
use crate::transaction::Lost;
use crate::transaction::keys::Keys;
use crate::workspace::Lent;

/// Units that invoking a tool takes, beside what the tool does.
const INVOKE_FUEL: u64 = 100_000;
/// A document that is parsed on the guest worker (bytes): in well under a millisecond.
const PARSED_HERE_BYTES_MAX: usize = 64 << 10;

/// What a call has for those that it invokes.
#[derive(Default)]
pub(crate) struct Children {
    granted: Arc<Granted>,
    memory_bytes_max: usize,
    /// How many levels there may be below this one.
    depth_max: usize,
    /// In the whole tree.
    children_max: usize,
    /// There is one: a transaction was begun for it.
    running: Option<Running>,
}

#[derive(Default)]
struct Running {
    /// `None`: it was not registered yet.
    call: Option<Arc<CallState>>,
}

impl Children {
    pub(super) fn of(granted: &Arc<Granted>, limits: &CallLimits) -> Self {
        let CallLimits { memory_bytes_max, depth_max, children_max, .. } = *limits;
        Self { granted: Arc::clone(granted), memory_bytes_max, depth_max, children_max, running: None }
    }
}

/// What a child gets of the call that invokes it.
pub(crate) struct Nest {
    pub(super) keys: Arc<Mutex<Keys>>,
    pub(super) workspaces: Vec<Lent>,
    /// Set if there was no place for it.
    pub(super) no_room: Arc<AtomicBool>,
}

/// The most that a child may have.
pub(super) struct Bounds<'a> {
    pub(super) granted: &'a Granted,
    pub(super) fuel: u64,
    pub(super) memory_bytes_max: usize,
    pub(super) depth_max: usize,
    pub(super) children_max: usize,
    /// What is left of the deadline.
    pub(super) time: Duration,
}

/// Places that are kept for the children of a call, and of those.
#[derive(Default)]
pub(crate) struct Kept(AtomicU32);

impl Kept {
    pub(super) fn keep(&self, places: u32) {
        self.0.store(places, Ordering::Release);
    }

    /// Whether there were so many. They are the taker's until it gives them back.
    pub(super) fn take(&self, places: u32) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |kept| kept.checked_sub(places)).is_ok()
    }

    pub(super) fn give_back(&self, places: u32) {
        self.0.fetch_add(places, Ordering::AcqRel);
    }
}

/// Those that invoked a call, the nearest first.
pub(super) fn ancestors(call: &CallState) -> impl Iterator<Item = &Arc<CallState>> {
    iter::successors(call.parent.as_ref(), |call| call.parent.as_ref())
}

type Answer = Result<types::Output, types::Failure>;

/// `estop:tool/call.invoke`.
pub(crate) async fn invoke(
    mut store: StoreContextMut<'_, CallCtx>,
    tool: &str,
    input: &str,
) -> wasmtime::Result<Answer> {
    // Each has its price, also one that is refused at once: what it costs the host is not the guest's own computing.
    let left = store.get_fuel()?.saturating_sub(INVOKE_FUEL);
    store.set_fuel(left)?;
    // One unit is not given away: it tells whoever has used all of it from whoever has used more.
    let fuel = left.saturating_sub(1);
    let ctx = store.data_mut();
    // Setting the fuel begins a new interval of its meter, so it is looked at here.
    let unseen = ctx.call.live.saw_fuel(ctx.armed_fuel.saturating_sub(left));
    super::charge(&ctx.core, &ctx.call, unseen);
    if left == 0 {
        return Err(wasmtime::Trap::OutOfFuel.into());
    }
    let answered = match prepare(ctx, tool, fuel) {
        Ok(child) => match parsed(ctx.core.io.handle.clone(), input, child.input_bytes_max()).await {
            Ok(input) => run(ctx, child.input(input)).await,
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    let (outcome, no_room) = match answered {
        Ok(answered) => answered,
        Err(failure) => return Ok(Err(failure)),
    };
    ctx.call.live.used_fuel(outcome.fuel);
    let left = store.get_fuel()?.saturating_sub(outcome.fuel);
    store.set_fuel(left)?;
    Ok(told(&outcome, no_room))
}

/// What a child is asked, within its limit. Nothing can preempt a parser: what takes it long is not for a guest worker.
async fn parsed(io: Handle, input: &str, bytes_max: usize) -> Result<Value, types::Failure> {
    let bytes = input.len();
    if bytes > bytes_max {
        return Err(types::Failure::InvalidInput(format!("the input has {bytes} bytes; the limit is {bytes_max}")));
    }
    let parsed = if bytes <= PARSED_HERE_BYTES_MAX {
        serde_json::from_str(input).map_err(|error| error.to_string())
    } else {
        let input = input.to_owned();
        let parsing = io.spawn_blocking(move || serde_json::from_str(&input));
        parsing.await.map_err(|error| error.to_string()).and_then(|parsed| parsed.map_err(|error| error.to_string()))
    };
    parsed.map_err(|why| types::Failure::InvalidInput(format!("the input is not one JSON document: {why}")))
}

/// A child that was not started, and has no input yet.
fn prepare(ctx: &CallCtx, named: &str, fuel: u64) -> Result<CallBuilder, types::Failure> {
    let (core, call) = (&ctx.core, &ctx.call);
    if ctx.describing {
        return Err(failed("refused", "no tool is invoked while tools are listed"));
    }
    if call.gate.is_flagged() {
        return Err(types::Failure::Interrupted);
    }
    if let Some(lost) = ctx.transaction.lost() {
        let code = if matches!(lost, Lost::Conflict(_)) { "conflict" } else { "store" };
        return Err(failed(code, format!("this call's transaction is lost: {lost}")));
    }
    if let Some(what) = ctx.transaction.workspaces.lost() {
        return Err(failed("conflict", format!("this call's transaction is lost: {what}")));
    }
    let Some(depth_max) = ctx.children.depth_max.checked_sub(1) else {
        let depth = ancestors(call).count();
        let why = format!("this call is {depth} levels below the first one, and may invoke no other (`depth_max`)");
        return Err(failed("too-deep", why));
    };
    // Counted where the tree begins: each one is a call with entries of its own.
    let root = ancestors(call).last().unwrap_or(call);
    if !root.live.may_invoke(ctx.children.children_max) {
        let why = format!(
            "the tree of this call has invoked as many tools as it may (`children_max`, {})",
            ctx.children.children_max
        );
        return Err(failed("too-many", why));
    }
    let found = match named.split_once('/') {
        Some((component, tool)) => core.tools.tool_of(component, tool).map(|found| (found, tool)),
        None => core.tools.tool(named, call.component()).map(|found| (found, named)),
    };
    let (component, tool) = found.map_err(|error| {
        let code = if matches!(error, NoTool::Several { .. }) { "ambiguous-tool" } else { "no-such-tool" };
        failed(code, error.to_string())
    })?;
    let deadline_ns = call.deadline_ns.load(Ordering::Acquire);
    let bounds = Bounds {
        granted: &ctx.children.granted,
        fuel,
        memory_bytes_max: ctx.children.memory_bytes_max,
        depth_max,
        children_max: ctx.children.children_max,
        time: Duration::from_nanos(deadline_ns.saturating_sub(core.now_ns())),
    };
    let child = CallBuilder::new(Arc::clone(core), Arc::clone(&call.agent), component, tool.to_owned(), Value::Null);
    Ok(child.below(Arc::clone(call)).at_most(&bounds))
}

/// From the begin of the nested transaction to its end, and whether there was no room. If it is dropped in the middle,
/// `released` sees to the rest.
async fn run(ctx: &mut CallCtx, child: CallBuilder) -> Result<(Arc<Outcome>, bool), types::Failure> {
    let core = Arc::clone(&ctx.core);
    let _in = ctx.call.live.enter(HostCall::Invoke);
    let no_room = Arc::new(AtomicBool::new(false));
    ctx.children.running = Some(Running::default());
    let keys = ctx.transaction.nest();
    let lent = ctx.transaction.workspaces.lend(child.workspaces(), &core.io.handle).await;
    let (outcome, is_kept) = match lent {
        Ok(workspaces) => {
            let nest = Nest { keys, workspaces, no_room: Arc::clone(&no_room) };
            let call = child.nested(nest).start().into_state();
            ctx.children.running = Some(Running { call: Some(Arc::clone(&call)) });
            let outcome = call.outcome().await;
            no_room.fetch_or(call.is_without_slot(), Ordering::AcqRel);
            let is_kept = outcome.merged.is_some();
            (Ok(outcome), is_kept)
        }
        Err(why) => (Err(why), false),
    };
    let returned = ctx.transaction.workspaces.take_back(is_kept, &core.io.handle).await;
    ctx.transaction.nested_ended(is_kept);
    ctx.children.running = None;
    let outcome = returned.and(outcome).map_err(|why| failed("workspace", why))?;
    Ok((outcome, no_room.load(Ordering::Acquire)))
}

/// For a call that has ended, maybe in the middle of `invoke`: its child has to be released first. How much fuel that one
/// has used.
pub(super) async fn released(core: &Core, ctx: &mut CallCtx) -> u64 {
    let Some(Running { call }) = ctx.children.running.take() else { return 0 };
    let (mut fuel, mut is_kept) = (0, false);
    if let Some(child) = call {
        if ctx.call.gate.is_flagged() {
            // Whoever has stopped this call may not have come to the child yet.
            core.stop_late(&child);
        } else if !child.is_released() {
            // A host function has panicked.
            let reason = format!("{}, which invoked it, has ended", ctx.call.id);
            core.interrupt_call(&child, Interrupt::new(Cause::Parent, HOST_ACTOR).reason(reason));
        }
        let outcome = child.outcome().await;
        (fuel, is_kept) = (outcome.fuel, outcome.merged.is_some());
    }
    ctx.transaction.workspaces.forget(is_kept).await;
    ctx.transaction.nested_ended(is_kept);
    fuel
}

fn failed(code: &str, message: impl Into<String>) -> types::Failure {
    let message = message.into();
    types::Failure::Failed(types::Failed { code: code.into(), message, retryable: false, data: None })
}

/// What the caller is told.
fn told(outcome: &Outcome, no_room: bool) -> Answer {
    Err(match &outcome.end {
        End::Completed(output) => return Ok(output.into()),
        End::InvalidInput(why) => types::Failure::InvalidInput(why.clone()),
        End::Failed(failure) => types::Failure::Failed(failure.into()),
        End::Conflict(what) => failed("conflict", what),
        End::Trapped(why) => failed("trapped", why),
        End::Refused(why) if no_room => types::Failure::Failed(types::Failed {
            code: "no-room".into(),
            message: why.clone(),
            retryable: true,
            data: None,
        }),
        End::Refused(why) => failed("refused", why),
        End::Stopped(stopped) => {
            let reason = if stopped.reason.is_empty() { String::new() } else { format!(": {}", stopped.reason) };
            let message = format!("{} was stopped by {} ({}){reason}", outcome.call, stopped.actor, stopped.cause);
            let data = json!({ "call": outcome.call.to_string(), "cause": stopped.cause.as_str() });
            types::Failure::Failed(types::Failed {
                code: "stopped".into(),
                message,
                retryable: false,
                data: Some(data.to_string()),
            })
        }
    })
}

impl From<&Output> for types::Output {
    fn from(output: &Output) -> Self {
        let attachments = output.attachments.iter().cloned().map(|attachment| types::Attachment {
            name: attachment.name,
            media_type: attachment.media_type,
            data: attachment.data,
        });
        Self { json: output.json.to_string(), attachments: attachments.collect() }
    }
}

impl From<&Failure> for types::Failed {
    fn from(failure: &Failure) -> Self {
        let Failure { code, message, retryable, data } = failure.clone();
        Self { code, message, retryable, data: data.map(|data| data.to_string()) }
    }
}
