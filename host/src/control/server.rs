//! The host's side: what each role may ask, and the answers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};

use super::agents;
use super::connections::{ACCEPTED_AT_ONCE_MAX, Asked, Connections};
use super::denials::Denials;
use super::events::{self, Watchers};
use super::metrics;
use super::patience::Patience;
use super::place::{Mode, Offer};
use super::protocol::{
    Answer, CallInfo, CallPhase, HaltRequest, HostInfo, LiftRequest, ProcessInfo, ProgramInfo, ProgressInfo,
    ReachedCall, Refusal, Role, Status, StopRequest, StoppedBy,
};
use super::rights;
use super::served::Served;
use super::shared_answer::SharedAnswer;
use super::{Control, HostKind};
use crate::call::{CallState, End, NO_DEADLINE_NS};
use crate::heartbeat::{BEAT_EVERY, Heartbeat};
use crate::host::Core;
use crate::ids::CallId;
use crate::interrupt::halts::{Halt, HaltError};
use crate::interrupt::{Cause, Interrupt, Interruption, Scope};
use crate::process::{Processes, Tracked};
use crate::{BuildError, user};

/// What is asked (bytes).
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// From connecting to the end of the request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(2);
/// From connecting until the whole request is there.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// Whoever takes nothing of an answer for this long has gone away.
const READS_WITHIN: Duration = Duration::from_secs(15);
/// Connections to one socket of operators at one time, and the whole life of one that does not watch.
const OPERATORS: Bounds = Bounds { connections_max: 128, connected_max: Some(Duration::from_secs(15)) };
/// How long an answer waits for what was stopped to be released.
const RELEASED_WITHIN: Duration = Duration::from_millis(400);
/// Before a host ends, it still hears who has connected, until nobody has for this long.
const LAST_ASKED_WITHIN: Duration = Duration::from_millis(20);
/// It hears them and answers within this, each.
const ANSWERED_WITHIN: Duration = Duration::from_millis(800);
/// Between two looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A call that was stopped this long ago and is not released is said to be unconfirmed.
const UNCONFIRMED_AFTER: Duration = Duration::from_secs(1);
/// Calls in one list.
const LISTED_MAX: usize = 4096;

/// With a socket each. Agents have one only where they are served.
const ROLES: [Role; 3] = [Role::Operator, Role::Admin, Role::Agent];
/// Between two tries to take a connection while this process has too many open files.
const SHORT_OF_FILES: Duration = Duration::from_millis(2);

/// What the requests are about. It does not keep the host alive.
pub(super) struct Desk {
    core: Weak<Core>,
    pub(super) kind: HostKind,
    home: Option<PathBuf>,
    user: String,
    mode: Mode,
    denials: Arc<Denials>,
    /// What agents are served, if they are.
    pub(super) served: Option<Served>,
    pub(super) since: SystemTime,
    pub(super) watchers: Watchers,
    status: SharedAnswer,
    pub(super) metrics: SharedAnswer,
    /// Of the control thread.
    pub(super) heart: Arc<Heartbeat>,
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) asked: Asked,
}

impl Peer {
    /// Looked up only for those who do something: it reads a file.
    pub(super) fn name(&self) -> Arc<str> {
        user::name(self.uid).into()
    }
}

/// What one socket allows.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Connections at one time.
    pub(super) connections_max: usize,
    /// A connection's whole life. Without one an answer takes as long as it takes, and none that is being given makes room
    /// for another.
    pub(super) connected_max: Option<Duration>,
}

/// Why there is no answer.
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

impl Control {
    /// Starts the thread and lets operators find the host; agents too, if they are served.
    pub(crate) fn start(core: &Arc<Core>, kind: HostKind, served: Option<Served>) -> Result<Self, BuildError> {
        let (closed, is_closed) = watch::channel(false);
        let (ended, has_ended) = watch::channel(false);
        let mut all_ended = vec![has_ended];
        let (heart, short_of_files) = (Arc::new(Heartbeat::new()), Arc::new(Notify::new()));
        let (offer, mut sockets) = Offer::make(if served.is_some() { &ROLES } else { &ROLES[..2] })?;
        let denials = Denials::new(core);
        let desk = Arc::new(Desk {
            core: Arc::downgrade(core),
            kind,
            home: core.store.home().map(|home| home.path().to_owned()),
            user: user::name(rustix::process::geteuid().as_raw()),
            mode: offer.mode(),
            denials: Arc::clone(&denials),
            served: served.clone(),
            since: SystemTime::now(),
            watchers: Watchers::new(Arc::clone(&core.writer.observers.feed)),
            status: SharedAnswer::new(),
            metrics: SharedAnswer::new(),
            heart: Arc::clone(&heart),
        });
        // Agents are not this thread's affair.
        if let Some((_, socket)) = sockets.pop_if(|(role, _)| *role == Role::Agent)
            && let Some(served) = served
        {
            let (denials, short_of_files) = (Arc::clone(&denials), Arc::clone(&short_of_files));
            all_ended.push(agents::start(
                core,
                served,
                offer.mode(),
                denials,
                socket,
                is_closed.clone(),
                short_of_files,
            )?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        thread::Builder::new().name("estop-control".into()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(look_after(Arc::clone(&desk), is_closed.clone()));
                let mut served = tokio::task::JoinSet::new();
                for (role, socket) in sockets {
                    let (routes, short_of_files) =
                        (routes(role, Arc::clone(&desk), &denials), Arc::clone(&short_of_files));
                    served.spawn(serve(socket, routes, is_closed.clone(), OPERATORS, short_of_files));
                }
                served.join_all().await;
            });
            ended.send_replace(true);
            // A request that waits for a disk does not hold up the end.
            runtime.shutdown_background();
        })?;
        let folder = offer.folder().to_owned();
        Ok(Self { offer: Mutex::new(Some(offer)), folder, closed, ended: all_ended, heart })
    }
}

fn routes(role: Role, desk: Arc<Desk>, denials: &Arc<Denials>) -> Router {
    let look = || Router::new().route("/v1/status", get(status)).route("/v1/halts", get(halts));
    let routes = match role {
        Role::Operator => look()
            .route("/v1/stop", post(stop))
            .route("/v1/halt", post(halt))
            .merge(super::show::routes())
            .merge(super::drill::routes())
            .merge(metrics::routes())
            .merge(events::routes()),
        Role::Admin => look().route("/v1/lift", post(lift)).merge(super::shelf::routes()),
        // See `agents.rs`.
        Role::Agent => Router::new(),
    };
    routes
        .merge(rights::denied(role, denials))
        .fallback(move || async move { nothing_of_this_name(role) })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(desk)
}

pub(super) fn nothing_of_this_name(role: Role) -> Refused {
    let name = role.socket();
    Refused(StatusCode::NOT_FOUND, format!("`{name}` has nothing of this name"))
}

/// Tells the watchers, and leaves signs of life.
async fn look_after(desk: Arc<Desk>, closed: watch::Receiver<bool>) {
    let beat = async {
        loop {
            desk.heart.beat();
            tokio::time::sleep(BEAT_EVERY).await;
        }
    };
    // Until the runtime ends.
    tokio::join!(desk.watchers.tell(closed), beat);
}

/// Serves one socket, on this thread's runtime, until the host closes. Whoever finds that there are too many open files
/// says so, and everybody gives up one that is not needed.
pub(super) async fn serve(
    socket: StdListener,
    routes: Router,
    mut closed: watch::Receiver<bool>,
    bounds: Bounds,
    short_of_files: Arc<Notify>,
) {
    let Ok(socket) = UnixListener::from_std(socket) else { return };
    let mut connections = Connections::new(bounds.connections_max, bounds.connected_max.is_some());
    let add = |connections: &mut Connections, stream: UnixStream| {
        let routes = routes.clone();
        if connections.make_room() {
            connections.add(|asked| connection(stream, routes, asked, bounds.connected_max));
        } else {
            turn_away(stream);
        }
    };
    let mut accepted_at_once = 0;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = short_of_files.notified() => {
                connections.give_up_one();
                continue;
            }
            _ = closed.wait_for(|closed| *closed) => break,
        };
        match accepted {
            Ok((stream, _)) => add(&mut connections, stream),
            Err(_) => {
                // Too many open files, most likely.
                short_of_files.notify_waiters();
                connections.give_up_one();
                tokio::time::sleep(SHORT_OF_FILES).await;
            }
        }
        accepted_at_once += 1;
        if accepted_at_once == ACCEPTED_AT_ONCE_MAX {
            accepted_at_once = 0;
            // Those have a turn before others come who would take their places.
            tokio::task::yield_now().await;
        }
    }
    // Who asked what ended this host is still told what it has reached: give those a turn that are on their way.
    let until = Instant::now() + ANSWERED_WITHIN;
    while Instant::now() < until
        && let Ok(Ok((stream, _))) = tokio::time::timeout(LAST_ASKED_WITHIN, socket.accept()).await
    {
        add(&mut connections, stream);
    }
    let _ = tokio::time::timeout(ANSWERED_WITHIN, connections.finish()).await;
}

/// One request: whoever has more to ask connects again.
async fn connection(stream: UnixStream, routes: Router, asked: Asked, connected_max: Option<Duration>) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer { uid: credentials.uid(), asked: asked.clone() };
    let service = TowerToHyperService::new(routes.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Patience::new(stream, READS_WITHIN)), service);
    let is_over = async {
        tokio::time::sleep(connected_max.unwrap_or(ASKED_WITHIN)).await;
        if asked.is_watching() || (connected_max.is_none() && asked.is_set()) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // Whether it went well is for whoever asked to see.
        _ = served => {}
        // Whoever does not read the answer has gone away as far as we are concerned.
        () = is_over => {}
        () = asked.is_let_go() => {}
    }
}

/// Without waiting: whoever does not read it is turned away all the same.
fn turn_away(stream: UnixStream) {
    let Ok(stream) = stream.into_std() else { return };
    let _ = (&stream).write(NO_ROOM.as_bytes());
    // What is unread when it is closed would keep some from reading the answer.
    let _ = (&stream).read(&mut [0; 4096]);
}

/// What whoever finds every connection busy is told.
const NO_ROOM: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 60\r\n\
                       connection: close\r\n\r\n\
                       {\"error\":\"too many connections to this socket; try again\"}\r\n";

impl Desk {
    pub(super) fn core(&self) -> Result<Arc<Core>, Refused> {
        self.core.upgrade().ok_or_else(|| Refused(StatusCode::GONE, "the host has just ended".into()))
    }
}

/// Whatever type it says it has: `curl -d` says that it is a form.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    let body = if body.iter().all(u8::is_ascii_whitespace) { &b"{}"[..] } else { body };
    serde_json::from_slice(body)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the request cannot be understood: {error}")))
}

async fn status(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Response, Refused> {
    peer.asked.looks();
    let work_out = || {
        let core = desk.core()?;
        let mut found = Vec::new();
        core.inventory.walk(|call| found.push(Arc::clone(call)));
        let calls_left_out = found.len().saturating_sub(LISTED_MAX);
        found.truncate(LISTED_MAX);
        let children = children(&core);
        let calls = found.iter().map(|call| desk.call(&core, call, &children)).collect();
        let (halts, halts_unreadable) = core.halts.in_force();
        let status = Status { host: desk.host(&core), calls, calls_left_out, halts, halts_unreadable };
        let text = serde_json::to_vec(&status);
        text.map(Bytes::from).map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    let text = desk.status.get(work_out).await?;
    peer.asked.is_told();
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// How many calls each call has invoked that run.
pub(super) fn children(core: &Core) -> HashMap<CallId, usize> {
    let mut children = HashMap::new();
    if core.inventory.has_nested() {
        core.inventory.walk(|call| {
            if let Some(parent) = &call.parent {
                *children.entry(parent.id).or_default() += 1;
            }
        });
    }
    children
}

async fn halts(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Json<Vec<Halt>>, Refused> {
    peer.asked.is_told();
    Ok(Json(desk.core()?.halts.in_force().0))
}

async fn stop(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Answer>, Refused> {
    peer.asked.acts();
    let StopRequest { call, reason, grace_us } = parse(&body)?;
    let core = desk.core()?;
    let grace = Duration::from_micros(grace_us);
    let interrupt = Interrupt::new(Cause::Operator, &*peer.name()).reason(reason).grace(grace);
    let began = Instant::now();
    let interruption = stop_here(&core, call, interrupt);
    if interruption.is_empty() {
        return Err(Refused(StatusCode::NOT_FOUND, format!("no call `{call}` runs or waits here")));
    }
    let answer = answer(&core, interruption, began, None, None).await;
    peer.asked.is_told();
    Ok(Json(answer))
}

/// Stops a call if it is this host's. Whoever looks for one asks every host: only the one that has it enters that.
pub(super) fn stop_here(core: &Core, call: CallId, interrupt: Interrupt) -> Interruption {
    let mut is_here = false;
    core.inventory.walk(|other| is_here |= other.id == call);
    if is_here { core.interrupt(Scope::Call(call), interrupt) } else { Interruption::default() }
}

fn may_retire(peer: &Peer) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

async fn halt(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Answer>, Refused> {
    peer.asked.acts();
    let HaltRequest { scope, reason, halt, permanent } = parse(&body)?;
    let core = desk.core()?;
    let new = Halt::new(scope, &*peer.name(), reason);
    if permanent && desk.mode == Mode::Service && !may_retire(&peer) {
        let why = "only the host's own user, or root, retires anything for good; halt it".to_owned();
        return Err(desk.denials.deny(Role::Operator, "retire", &peer, why));
    }
    // Whoever asks cannot hide this one behind another of the same name.
    let named = halt.filter(|halt| !core.halts.is_another(*halt, &new.scope)).unwrap_or(new.halt);
    let machine = !permanent && core.halts.is_machine_wide(named);
    let new = Arc::new(Halt { halt: named, permanent, machine, ..new });
    // At once, and before anything that could wait.
    let began = Instant::now();
    let interruption = core.begin_halt(&new);
    let latched = {
        let (core, new) = (Arc::clone(&core), Arc::clone(&new));
        tokio::task::spawn_blocking(move || core.latch(&new))
    };
    let released = answer(&core, interruption, began, Some((*new).clone()), None).await;
    // It goes on also if whoever asked has gone away.
    let not_on_disk = match latched.await {
        Ok(latched) => latched.err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    peer.asked.is_told();
    Ok(Json(Answer { not_on_disk, ..released }))
}

async fn lift(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Halt>, Refused> {
    peer.asked.acts();
    let LiftRequest { halt, reason } = parse(&body)?;
    if reason.trim().is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "a halt is lifted for a reason: say which".into()));
    }
    let core = desk.core()?;
    let lifted = tokio::task::spawn_blocking(move || core.lift(halt, &peer.name(), &reason)).await;
    match lifted {
        Ok(Ok(halt)) => Ok(Json(halt)),
        Ok(Err(error @ HaltError::Unknown(_))) => Err(Refused(StatusCode::NOT_FOUND, error.to_string())),
        Ok(Err(error)) => Err(Refused(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// Waits for what was reached to be released, for a bounded time.
pub(super) async fn answer(
    core: &Core,
    interruption: Interruption,
    began: Instant,
    halt: Option<Halt>,
    not_on_disk: Option<String>,
) -> Answer {
    let until = began + RELEASED_WITHIN;
    while Instant::now() < until && interruption.unconfirmed().next().is_some() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let calls: Vec<ReachedCall> = interruption.calls().map(|(call, reached)| reached_call(call, reached)).collect();
    let halted: Option<Vec<u64>> = calls.iter().map(|call| call.halted_us).collect();
    let halted_us = halted.map(|halted| halted.into_iter().max().unwrap_or(0));
    Answer { host: core.id, pid: std::process::id(), halt, not_on_disk, halted_us, calls }
}

fn reached_call(call: &Arc<CallState>, reached: crate::Reached) -> ReachedCall {
    let outcome = call.try_outcome();
    let stopped = outcome.as_ref().map(|outcome| match &outcome.end {
        End::Stopped(stopped) => (stopped.halted, stopped.released),
        // It had ended by itself: nothing of it was running.
        _ => (Duration::ZERO, Duration::ZERO),
    });
    let delivered = call.interrupted();
    let halted = stopped.map(|(halted, _)| halted);
    let halted = halted.or_else(|| delivered.as_ref().and_then(|delivered| call.halted_after(delivered)));
    ReachedCall {
        call: call.id,
        agent: call.agent.to_string(),
        tool: call.tool.to_string(),
        reached,
        halted_us: halted.map(micros),
        released_us: stopped.map(|(_, released)| micros(released)),
        effects: call.live.effects(),
        program: program(call),
        processes: processes(call),
    }
}

fn processes(call: &CallState) -> Vec<ProcessInfo> {
    let running = call.live.any_processes().map(Processes::running).unwrap_or_default();
    let info = |tracked: &Arc<Tracked>| ProcessInfo {
        supervisor: tracked.pid(),
        command: tracked.shown.clone(),
        trouble: tracked.trouble(),
    };
    running.iter().map(info).collect()
}

#[cfg(feature = "cli")]
pub(super) fn program(call: &CallState) -> Option<ProgramInfo> {
    let program = call.live.program.as_ref()?;
    let left = program.left().borrow().clone();
    let process = |left: &estop_supervise::Left| super::protocol::LeftProcess {
        pid: left.pid,
        name: left.name.clone(),
        state: left.state,
    };
    Some(ProgramInfo {
        pid: program.pid(),
        command: program.shown.clone(),
        in_grace: program.is_asked(),
        left: left.processes.iter().map(process).collect(),
        trouble: left.trouble,
    })
}

/// Programs are only run by the command.
#[cfg(not(feature = "cli"))]
pub(super) fn program(_: &CallState) -> Option<ProgramInfo> {
    None
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Desk {
    fn host(&self, core: &Core) -> HostInfo {
        HostInfo {
            host: core.id,
            pid: std::process::id(),
            kind: self.kind,
            user: self.user.clone(),
            mode: self.mode,
            home: self.home.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            since: self.since,
            calls: core.inventory.live(),
            refuses: core.refuses(),
        }
    }

    pub(super) fn call(&self, core: &Core, call: &Arc<CallState>, children: &HashMap<CallId, usize>) -> CallInfo {
        let now_ns = core.now_ns();
        let ago = |at_ns: u64| now_ns.saturating_sub(at_ns) / 1000;
        let delivered = call.interrupted();
        let stopped = delivered.map(|delivered| StoppedBy {
            cause: delivered.interrupt.cause,
            actor: delivered.interrupt.actor.clone(),
            reason: delivered.interrupt.reason.clone(),
            ago_us: ago(delivered.at_ns),
        });
        let progress = call.live.progress_ns().zip(call.progress().borrow().clone());
        let program = program(call);
        let deadline_ns = call.deadline_ns.load(Ordering::Acquire);
        CallInfo {
            call: call.id,
            host: core.id,
            agent: call.agent.to_string(),
            owner: self.user.clone(),
            tool: call.tool.to_string(),
            component: call.component(),
            parent: call.parent.as_ref().map(|parent| parent.id),
            priority: call.priority,
            state: phase(call, stopped.as_ref().map(|stopped| stopped.ago_us), program.as_ref()),
            age_us: ago(call.live.registered_ns),
            time_left_us: (deadline_ns < NO_DEADLINE_NS).then(|| deadline_ns.saturating_sub(now_ns) / 1000),
            fuel_granted: call.live.fuel_granted,
            fuel_used: call.live.fuel_used(),
            fuel_left: call.live.fuel_granted.saturating_sub(call.live.fuel_used()),
            memory_bytes: call.live.memory_bytes.load(Ordering::Relaxed),
            host_call: call.live.host_call().map(str::to_owned),
            uncommitted: call.live.uncommitted(),
            commits: call.commits.durable_so_far(),
            effects: call.live.effects(),
            progress: progress.map(|(at_ns, progress)| ProgressInfo {
                done: progress.done,
                total: progress.total,
                message: progress.message,
                ago_us: ago(at_ns),
            }),
            children: children.get(&call.id).copied().unwrap_or(0),
            grants: call.live.grants.clone(),
            stopped,
            program,
            processes: processes(call),
        }
    }
}

/// Where a call stands that was stopped so long ago, if it was.
pub(super) fn phase(call: &CallState, stopped_ago_us: Option<u64>, program: Option<&ProgramInfo>) -> CallPhase {
    if program.is_some_and(|program| program.in_grace) && call.gate.is_flagged() {
        return CallPhase::Warned;
    }
    if call.gate.is_interrupted() {
        let long_ago = stopped_ago_us.is_some_and(|ago_us| ago_us > micros(UNCONFIRMED_AFTER));
        return if long_ago { CallPhase::Unconfirmed } else { CallPhase::Stopping };
    }
    if call.gate.is_flagged() {
        return CallPhase::Warned;
    }
    if !call.has_started() {
        return CallPhase::Queued;
    }
    if call.gate.ticket() == crate::gate::Ticket::None { CallPhase::Running } else { CallPhase::Committing }
}
