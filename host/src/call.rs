//! One call, from end to end: [`drive`] is the whole of it, [`settle`] the whole of interrupt → rollback → entry.
//!
//! Invariant: every path out of a call leads through `settle`. It asks the gate how the call ended, and only then is
//! anything committed, discarded, entered or told.

mod builder;
pub(crate) mod child;
mod gated;
mod limits;
pub(crate) mod live;
pub(crate) mod load;
mod meter;
pub(crate) mod outcome;
#[cfg(feature = "cli")]
pub(crate) mod program;
pub(crate) mod room;
mod state;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

pub(crate) use self::builder::Request;
pub use self::builder::{Call, CallBuilder, PRIORITY_DEFAULT};
#[cfg(feature = "control")]
pub(crate) use self::builder::{Lowered, PRIORITY_MIN};
use self::child::Children;
use self::gated::{Ended, Gated};
pub use self::limits::{CallLimits, LimitsChange};
pub use self::outcome::{Attachment, Commits, Effect, EffectState, End, Failure, Outcome, Output, Stopped};
use self::room::Place;
pub(crate) use self::state::{CallState, Identity, NO_DEADLINE_NS};
use crate::agent;
use crate::gate::Ticket;
use crate::host::Core;
use crate::hostcalls::bindings::exports::estop::tool::tool as wit;
use crate::hostcalls::call::{CommitUnknown, NotCarriedOut};
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt};
use crate::log::{EntryKind, Record};
use crate::process::Processes;
use crate::sandbox::{Given, MemoryLimitReached, Remains, Sandbox};
use crate::store::{Space, StoreError};
use crate::tools::Component;
use crate::trace;
use crate::transaction::{self, Committed, Lost, Size, Transaction};
use crate::workspace::Workspaces;

/// How far a tool says it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Of how many, if that is known.
    pub total: Option<u64>,
    /// In the words of the tool, cut to a bound.
    pub message: String,
}

/// What a call is to do.
pub(crate) enum Operation {
    Call(Value),
    /// Of agent `host`, without state and grants.
    Describe(oneshot::Sender<Vec<wit::Spec>>),
}

/// An operation whose input was checked.
enum Work {
    Call(Arc<String>),
    Describe(oneshot::Sender<Vec<wit::Spec>>),
}

/// What the guest answered.
enum Answer {
    Call(Result<wit::Output, wit::Failure>),
    Specs,
    Loaded(load::Loaded),
    #[cfg(feature = "cli")]
    Program(End),
}

/// Why there is no answer.
enum Fault {
    Refused(String),
    InvalidInput(String),
    Failed(Failure),
    Guest(wasmtime::Error),
}

impl From<wasmtime::Error> for Fault {
    fn from(error: wasmtime::Error) -> Self {
        Fault::Guest(error)
    }
}

/// An input is checked on the guest worker if its length times that of the schema (bytes) is at most this: well under a
/// millisecond.
const CHECK_HERE_MAX: usize = 256 << 10;

/// The code of a call whose changes of files were not approved.
pub(crate) const DECLINED: &str = "declined";

/// What a call holds while it runs. Dropped in this order.
#[derive(Default)]
struct Run<'a> {
    sandbox: Option<Sandbox>,
    room: Option<Place<'a>>,
    /// What has to end before the call is released.
    held: load::Held<'a>,
    started_ns: Option<u64>,
}

impl Run<'_> {
    /// Waiting is over: from here on time is billed.
    fn start(&mut self, core: &Core, call: &Arc<CallState>, deadline: Option<Duration>) {
        let started_ns = core.now_ns();
        self.started_ns = Some(started_ns);
        start_deadline(core, call, started_ns, deadline);
        core.log.record(Record::Started(Arc::downgrade(call)));
    }
}

/// Runs a call that is registered already, on the guest workers.
pub(crate) async fn drive(core: Arc<Core>, call: Arc<CallState>, request: Request, span: Span) {
    let mut run = Run::default();
    let ended = {
        let guest = pin!(Some(carry_out(&core, &call, request, &mut run).instrument(span.clone())));
        Gated::new(&core, &call, guest).await
    };
    end(&core, &call, ended, run, &span).await;
}

async fn end(core: &Arc<Core>, call: &Arc<CallState>, ended: Ended<Result<Answer, Fault>>, run: Run<'_>, span: &Span) {
    let outcome = settle(core, call, ended, run).await;
    finish(core, call, outcome, span);
}

/// Enters how it ended, and tells.
fn finish(core: &Core, call: &CallState, outcome: Outcome, span: &Span) {
    let outcome = Arc::new(outcome);
    core.log.record(Record::Ended(EntryKind::ended(call, &outcome)));
    core.inventory.release(call);
    #[cfg(feature = "control")]
    call.live.set_input(None);
    call.finish(Arc::clone(&outcome));
    trace::ended(span, call, &outcome);
}

/// Everything up to the guest's answer. An interrupt can meet it at every `await` and at every epoch check.
async fn carry_out<'a>(
    core: &'a Arc<Core>,
    call: &Arc<CallState>,
    request: Request,
    run: &mut Run<'a>,
) -> Result<Answer, Fault> {
    let Request { code, component, operation, name, limits, refused, granted, reviewer, nest, kept, .. } = request;
    if let Some(why) = refused {
        return Err(Fault::Refused(why));
    }
    may_start(core, call).await.map_err(Fault::Refused)?;
    if let Some(account) = &call.live.account {
        account.admit().map_err(Fault::Refused)?;
    }
    let describing = matches!(operation, Operation::Describe(_));
    let work = match operation {
        Operation::Describe(answer) => Work::Describe(answer),
        Operation::Call(input) => {
            let input = Arc::new(checked_input(core, component.as_ref(), &call.tool, input, &limits).await?);
            #[cfg(feature = "control")]
            call.live.set_input(Some(Arc::clone(&input)));
            Work::Call(input)
        }
    };
    if code.places.saturating_add(kept) > core.limits.sandboxes_max {
        let (places, all) = (code.places, core.limits.sandboxes_max);
        let why =
            format!("it takes {places} places, and {kept} for the calls that it invokes, of {all} (`sandboxes_max`)");
        return Err(Fault::Refused(why));
    }
    let place = match &nest {
        None => core.let_in(call, code.places, kept).await.map_err(|full| Fault::Refused(full.to_string()))?,
        Some(nest) => core.let_in_at_once(call, code.places).ok_or_else(|| {
            nest.no_room.store(true, Ordering::Release);
            Fault::Refused("there is no room for a call that another one invokes; try again later".into())
        })?,
    };
    let has_waited = place.has_waited;
    run.room = Some(place);
    if has_waited {
        // A halt that is walking the calls may have freed the place, and has not come to this one yet.
        may_start(core, call).await.map_err(Fault::Refused)?;
    }

    let (store, io) = (&core.store, &core.io.handle);
    let (keys, workspaces) = match nest {
        Some(nest) => (Some(nest.keys), Workspaces::nested(nest.workspaces)),
        None => {
            let spill_folder = &core.spill_folder;
            let entered =
                Workspaces::enter(&granted.workspaces, reviewer, store, &call.live.tally, spill_folder, io).await;
            (None, entered.map_err(Fault::Refused)?)
        }
    };
    run.start(core, call, Some(limits.deadline));
    let space = Space { agent: Arc::clone(&call.agent), component: name };
    let children = Children::of(&granted, &limits);
    let given = Given { describing, granted, workspaces, children };
    let sandbox = run.sandbox.insert(Sandbox::new(core, call, &code, space, &limits, given)?);
    if let Some(keys) = keys {
        sandbox.store().data_mut().transaction.nest_in(keys);
    }
    let guest = sandbox.instantiate(&code).await?;
    let tool = guest.estop_tool_tool();
    match work {
        Work::Describe(answer) => {
            let specs = tool.call_list_tools(sandbox.store()).await?;
            // Whoever asked may have gone away.
            let _ = answer.send(specs);
            Ok(Answer::Specs)
        }
        Work::Call(input) => Ok(Answer::Call(tool.call_call(sandbox.store(), &call.tool, &input).await?)),
    }
}

/// Decides how the call ended and undoes what has to be undone. The gate has the last word: whatever the guest
/// answered, a call that was interrupted first is stopped, and nothing that it had not committed remains.
async fn settle(
    core: &Arc<Core>,
    call: &Arc<CallState>,
    ended: Ended<Result<Answer, Fault>>,
    mut run: Run<'_>,
) -> Outcome {
    // The store is at rest: no guest instruction runs any more, nor anything of a program.
    if call.gate.is_flagged() {
        call.halted(core.now_ns());
    }
    // Nor does anything leave any more, whatever the end waits for.
    if let Some(sandbox) = &mut run.sandbox {
        sandbox.store().data_mut().http.close();
    }
    let mut end = match ended {
        Ended::Interrupted => None,
        Ended::Panicked(message) => Some(End::Trapped(format!("a host function panicked: {message}"))),
        Ended::Ready(Ok(answer)) => conclude(core, call, answer, run.sandbox.as_mut()).await,
        Ended::Ready(Err(fault)) => failed(core, call, fault, run.sandbox.as_mut()),
    };
    // Completed calls were settled by their commit. Everything else is settled here, or was stopped before.
    if !call.gate.is_settled() && call.gate.settle().is_err() {
        end = None;
    }

    // If it was stopped while it waited for a child: that ends first.
    let child_fuel = match &mut run.sandbox {
        Some(sandbox) => child::released(core, sandbox.store().data_mut()).await,
        None => 0,
    };

    // A commit point that was decided before the interrupt cannot be taken back: the answer waits for it.
    let ticket = transaction::decided(call).await;
    let pending = call.commits.pending();
    let transaction = run.sandbox.as_mut().map(|sandbox| &sandbox.store().data().transaction);
    let lost = transaction.map(Transaction::uncommitted).unwrap_or_default();
    let unknown = ticket == Ticket::Failed && pending != Size::default();
    let discarded = if unknown { lost } else { lost + pending };
    // What has completed below another call is that one's from here on.
    let is_merged = transaction.is_some_and(Transaction::is_nested) && matches!(end, Some(End::Completed(_)));
    let (merged, discarded) = if is_merged { (Some(lost), Size::default()) } else { (None, discarded) };

    // What works on files for this call is told what became of it.
    let mut workspaces = Workspaces::default();
    if let Some(sandbox) = &mut run.sandbox {
        let transaction = &mut sandbox.store().data_mut().transaction;
        transaction.end(core, ticket).await;
        workspaces = std::mem::take(&mut transaction.workspaces);
    }

    // Rollback is dropping the store with the transaction in it; then the room is free for somebody else.
    // An embedder's resource that panics while it is dropped may not take the call's outcome with it.
    let sandbox = run.sandbox.take();
    let remains = catch_unwind(AssertUnwindSafe(|| sandbox.map(Sandbox::dismantle))).unwrap_or_else(|_| {
        tracing::error!(call = %call.id, "a resource of the call panicked while it was dropped");
        None
    });
    let Remains { fuel, stderr } = remains.unwrap_or_default();
    if let Some(account) = &call.live.account {
        // What was seen while it ran is charged already.
        account.use_fuel(fuel.saturating_sub(call.live.fuel_seen()));
    }
    workspaces.end(&core.io.handle).await;
    drop(run.room.take());
    run.held.end().await;
    if let Some(processes) = call.live.any_processes() {
        processes.end().await;
    }
    let released_ns = core.now_ns();

    let elapsed_ns = run.started_ns.map_or(0, |started_ns| released_ns.saturating_sub(started_ns));
    Outcome {
        call: call.id,
        agent: Arc::clone(&call.agent),
        tool: Arc::clone(&call.tool),
        component: call.component(),
        end: end.unwrap_or_else(|| stopped(call, released_ns)),
        commits: Commits { unknown, ..call.commits.durable_so_far() },
        merged,
        discarded,
        effects: call.live.effects(),
        subprocesses: call.live.any_processes().and_then(Processes::containment),
        fuel: fuel + child_fuel,
        elapsed: Duration::from_nanos(elapsed_ns),
        stderr,
    }
}

/// Why this call may not start, if it may not.
async fn may_start(core: &Core, call: &CallState) -> Result<(), String> {
    // What others have halted by now.
    core.halts.current().await?;
    core.refuses().or_else(|| refuse(core, call)).map_or(Ok(()), Err)
}

fn refuse(core: &Core, call: &CallState) -> Option<String> {
    core.halts.refuses(call, core.id).or_else(|| agent::refused_name(&call.agent))
}

impl Core {
    /// Why no call may start, if none may.
    pub(crate) fn refuses(&self) -> Option<String> {
        // A read-modify-write: either this sees that the host closes, or the closing host's walk sees this call.
        if self.closing.fetch_or(false, Ordering::AcqRel) {
            return Some("the host is shutting down".into());
        }
        if !self.ticker.is_alive() {
            let why = "the host's ticker gives no sign of life, so deadlines could not be kept; restart the host";
            return Some(why.into());
        }
        self.log.refuses()
    }
}

fn start_deadline(core: &Core, call: &CallState, started_ns: u64, deadline: Option<Duration>) {
    let at_ns = deadline.map_or(NO_DEADLINE_NS, |deadline| started_ns.saturating_add(crate::clock::nanos(deadline)));
    let at_ns = at_ns.min(NO_DEADLINE_NS);
    call.deadline_ns.store(at_ns, Ordering::Release);
    core.inventory.look_at(call.slot, at_ns);
}

/// The input as text, if the tool exists and its schema admits it.
async fn checked_input(
    core: &Core,
    component: Option<&Component>,
    tool: &str,
    input: Value,
    limits: &CallLimits,
) -> Result<String, Fault> {
    let unknown = || Fault::Refused(format!("there is no tool `{tool}`"));
    let component = component.ok_or_else(unknown)?;
    let info = component.tool(tool).ok_or_else(|| {
        let names: Vec<_> = component.tools().iter().map(|tool| tool.name.as_str()).collect();
        Fault::Refused(format!("`{}` has no tool `{tool}`; it has: {}", component.name(), names.join(", ")))
    })?;
    let text = input.to_string();
    if text.len() > limits.input_bytes_max {
        let (bytes, bytes_max) = (text.len(), limits.input_bytes_max);
        return Err(Fault::InvalidInput(format!("the input has {bytes} bytes; the limit is {bytes_max}")));
    }
    let checked = if text.len().saturating_mul(info.schema_bytes) <= CHECK_HERE_MAX {
        info.schema.check(&input)
    } else {
        // It may take a second, and nothing can preempt it: not on a guest worker.
        let schema = Arc::clone(&info.schema);
        let check = core.io.handle.spawn_blocking(move || schema.check(&input));
        check.await.map_err(|_| Fault::Refused("checking the input panicked; please report this".into()))?
    };
    checked.map_err(|violations| {
        let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
        Fault::InvalidInput(lines.join("; "))
    })?;
    Ok(text)
}

/// The guest has answered. `None`: it was interrupted before its commit was decided.
async fn conclude(
    core: &Arc<Core>,
    call: &Arc<CallState>,
    answer: Answer,
    sandbox: Option<&mut Sandbox>,
) -> Option<End> {
    let output_bytes_max = sandbox.as_ref().map_or(0, |sandbox| sandbox.output_bytes_max());
    let answer = match answer {
        Answer::Loaded(loaded) => return loaded.conclude(core, call),
        #[cfg(feature = "cli")]
        Answer::Program(end) => return Some(end),
        Answer::Specs => Ok(Output { json: Value::Null, attachments: Vec::new() }),
        Answer::Call(Ok(output)) => outcome::output(output, output_bytes_max),
        Answer::Call(Err(failure)) => Err(outcome::failure(failure, output_bytes_max)),
    };
    let sandbox = sandbox?;
    if sandbox.is_out_of_fuel() {
        return out_of_fuel(core, call);
    }
    let transaction = &mut sandbox.store().data_mut().transaction;
    // What the guest believed may have been false, whatever it made of it.
    if let Some(what) = transaction.workspaces.lost() {
        return Some(End::Conflict(what));
    }
    match transaction.lost() {
        None => {}
        Some(Lost::Conflict(what)) => return Some(End::Conflict(what.clone())),
        Some(Lost::Refused(error)) => return Some(refused_commit(error)),
        Some(Lost::Declined) => return Some(declined()),
    }
    let output = match answer {
        Ok(output) => output,
        Err(end) => return Some(end),
    };
    match transaction.commit(core, call, true).await {
        // That of the call that invoked this one, from here on.
        Committed::Nested => call.gate.settle().ok().map(|()| End::Completed(output)),
        Committed::Durable => Some(End::Completed(output)),
        Committed::Interrupted => None,
        Committed::Conflict(what) => Some(End::Conflict(what)),
        Committed::Refused(error) => Some(refused_commit(&error)),
        Committed::Unknown(why) => Some(commit_unknown(why)),
        Committed::NotCarriedOut(why) => Some(not_carried_out(why)),
        Committed::Declined => Some(declined()),
    }
}

fn refused_commit(error: &StoreError) -> End {
    let code = match error {
        StoreError::Quota { .. } => "quota",
        StoreError::Workspace(_) => "workspace",
        _ => "store",
    };
    let retryable = matches!(error, StoreError::Busy | StoreError::Held(_) | StoreError::Full(_));
    End::Failed(Failure { code: code.into(), message: error.to_string(), retryable, data: None })
}

fn declined() -> End {
    let message = "the changes of files were not approved; nothing of them was committed".into();
    End::Failed(Failure { code: DECLINED.into(), message, retryable: false, data: None })
}

/// What was committed is: seen through a workspace that is opened again it is there.
fn not_carried_out(why: String) -> End {
    let message = format!(
        "it is committed, and the files could not be changed yet: {why}; the workspace is locked until they are"
    );
    End::Failed(Failure { code: "not-carried-out".into(), message, retryable: false, data: None })
}

fn commit_unknown(why: String) -> End {
    End::Failed(Failure { code: "commit-unknown".into(), message: why, retryable: false, data: None })
}

/// There is no answer. Fuel and memory that ran out stop the call by the same way as everything else that stops calls.
fn failed(core: &Arc<Core>, call: &Arc<CallState>, fault: Fault, sandbox: Option<&mut Sandbox>) -> Option<End> {
    let error = match fault {
        Fault::Refused(why) => return Some(End::Refused(why)),
        Fault::InvalidInput(why) => return Some(End::InvalidInput(why)),
        Fault::Failed(failure) => return Some(End::Failed(failure)),
        Fault::Guest(error) => error,
    };
    if let Some(limit) = error.downcast_ref::<MemoryLimitReached>() {
        return stop(core, call, Cause::Memory, limit.to_string());
    }
    if matches!(error.downcast_ref(), Some(wasmtime::Trap::OutOfFuel)) {
        return out_of_fuel(core, call);
    }
    if let Some(CommitUnknown(why)) = error.downcast_ref() {
        return Some(commit_unknown(why.clone()));
    }
    if let Some(NotCarriedOut(why)) = error.downcast_ref() {
        return Some(not_carried_out(why.clone()));
    }
    let stderr = sandbox.map(|sandbox| sandbox.store().data().stderr_text()).unwrap_or_default();
    Some(outcome::trapped(&error, &stderr))
}

/// Fuel that the call has used is charged to its agent. What is more than that has stops the call.
fn charge(core: &Core, call: &Arc<CallState>, fuel: u64) {
    let Some(account) = call.live.account.as_ref().filter(|_| fuel > 0) else { return };
    if !account.use_fuel(fuel) {
        stop(core, call, Cause::Fuel, "the agent has used up its fuel for this minute".into());
    }
}

fn out_of_fuel(core: &Core, call: &Arc<CallState>) -> Option<End> {
    stop(core, call, Cause::Fuel, "the fuel granted to the call is used up".into())
}

fn stop(core: &Core, call: &Arc<CallState>, cause: Cause, reason: String) -> Option<End> {
    core.interrupt_call(call, Interrupt::new(cause, HOST_ACTOR).reason(reason));
    None
}

fn stopped(call: &CallState, released_ns: u64) -> End {
    // Always there: the cause is published before the gate is closed.
    let Some(delivered) = call.interrupted() else {
        return End::Trapped("the call was stopped without a cause; please report this".into());
    };
    call.halted(released_ns);
    End::Stopped(Stopped {
        cause: delivered.interrupt.cause,
        actor: delivered.interrupt.actor.clone(),
        reason: delivered.interrupt.reason.clone(),
        halted: call.halted_after(&delivered).unwrap_or_default(),
        released: Duration::from_nanos(released_ns.saturating_sub(delivered.at_ns)),
    })
}
