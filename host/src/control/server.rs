//! The host's side: what each role may ask, and the answers.

use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::connections::{Asked, Connections};
use super::place::Offer;
use super::protocol::{
    Answer, CallInfo, CallPhase, HaltRequest, HostInfo, LiftRequest, ProgramInfo, ProgressInfo, ReachedCall, Refusal,
    Role, Status, StopRequest, StoppedBy,
};
use super::{Control, HostKind};
use crate::call::{CallState, Commits, End, NO_DEADLINE_NS};
use crate::host::Core;
use crate::ids::CallId;
use crate::interrupt::halts::{Halt, HaltError};
use crate::interrupt::{Cause, Interrupt, Interruption, Scope};
use crate::{BuildError, user};

/// What is asked (bytes).
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// From connecting to the end of the request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(2);
/// A connection's whole life.
const CONNECTED_MAX: Duration = Duration::from_secs(15);
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

/// What the requests are about. It does not keep the host alive.
struct Desk {
    core: Weak<Core>,
    kind: HostKind,
    home: Option<PathBuf>,
    user: String,
    since: SystemTime,
}

/// Who asks.
#[derive(Clone)]
struct Peer {
    name: Arc<str>,
    asked: Asked,
}

/// Why there is no answer.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

impl Control {
    /// Starts the thread and lets operators find the host.
    pub(crate) fn start(core: &Arc<Core>, kind: HostKind) -> Result<Self, BuildError> {
        let (closed, is_closed) = watch::channel(false);
        let (ended, has_ended) = watch::channel(false);
        let desk = Arc::new(Desk {
            core: Arc::downgrade(core),
            kind,
            home: core.store.home().map(|home| home.path().to_owned()),
            user: user::name(rustix::process::geteuid().as_raw()),
            since: SystemTime::now(),
        });
        let (offer, sockets) = Offer::make()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        thread::Builder::new().name("estop-control".into()).spawn(move || {
            runtime.block_on(async {
                let mut served = tokio::task::JoinSet::new();
                for (role, socket) in sockets {
                    served.spawn(serve(socket, routes(role, Arc::clone(&desk)), is_closed.clone()));
                }
                served.join_all().await;
            });
            ended.send_replace(true);
            // A request that waits for a disk does not hold up the end.
            runtime.shutdown_background();
        })?;
        Ok(Self { offer: Mutex::new(Some(offer)), closed, ended: has_ended })
    }
}

fn routes(role: Role, desk: Arc<Desk>) -> Router {
    let routes = match role {
        Role::Operator => Router::new()
            .route("/v1/status", get(status))
            .route("/v1/calls/{call}", get(show))
            .route("/v1/halts", get(halts))
            .route("/v1/stop", post(stop))
            .route("/v1/halt", post(halt)),
        Role::Admin => Router::new().route("/v1/lift", post(lift)),
    };
    let name = role.socket();
    routes
        .fallback(move || async move {
            Refused(
                StatusCode::NOT_FOUND,
                format!("`{name}` has nothing of this name; `estop help` says what there is"),
            )
        })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(desk)
}

async fn serve(socket: StdListener, routes: Router, mut closed: watch::Receiver<bool>) {
    let Ok(socket) = UnixListener::from_std(socket) else { return };
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let routes = routes.clone();
                connections.add(|asked| connection(stream, routes, asked));
            }
            // Too many open files, most likely: the next one may find some closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    // Who asked what ended this host is still told what it has reached: give those a turn that are on their way.
    let until = Instant::now() + ANSWERED_WITHIN;
    while Instant::now() < until
        && let Ok(Ok((stream, _))) = tokio::time::timeout(LAST_ASKED_WITHIN, socket.accept()).await
    {
        let routes = routes.clone();
        connections.add(|asked| connection(stream, routes, asked));
    }
    let _ = tokio::time::timeout(ANSWERED_WITHIN, connections.finish()).await;
}

/// One request: whoever has more to ask connects again.
async fn connection(stream: UnixStream, routes: Router, asked: Asked) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer { name: user::name(credentials.uid()).into(), asked };
    let service = TowerToHyperService::new(routes.layer(Extension(peer)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever does not read the answer has gone away as far as we are concerned.
    let _ = tokio::time::timeout(CONNECTED_MAX, served).await;
}

impl Desk {
    fn core(&self) -> Result<Arc<Core>, Refused> {
        self.core.upgrade().ok_or_else(|| Refused(StatusCode::GONE, "the host has just ended".into()))
    }
}

/// Whatever type it says it has: `curl -d` says that it is a form.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    let body = if body.iter().all(u8::is_ascii_whitespace) { &b"{}"[..] } else { body };
    serde_json::from_slice(body)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the request cannot be understood: {error}")))
}

async fn status(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Json<Status>, Refused> {
    peer.asked.set();
    let core = desk.core()?;
    let mut found = Vec::new();
    core.inventory.walk(|call| found.push(Arc::clone(call)));
    let calls_left_out = found.len().saturating_sub(LISTED_MAX);
    found.truncate(LISTED_MAX);
    let calls = found.iter().map(|call| desk.call(&core, call)).collect();
    let (halts, halts_unreadable) = core.halts.in_force();
    Ok(Json(Status { host: desk.host(&core), calls, calls_left_out, halts, halts_unreadable }))
}

async fn show(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    Path(call): Path<String>,
) -> Result<Json<CallInfo>, Refused> {
    peer.asked.set();
    let core = desk.core()?;
    let id: Result<CallId, _> = call.parse();
    let mut found = None;
    if let Ok(id) = id {
        core.inventory.walk(|call| found = found.take().or_else(|| (call.id == id).then(|| Arc::clone(call))));
    }
    let call = found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("no call `{call}` runs or waits here")))?;
    Ok(Json(desk.call(&core, &call)))
}

async fn halts(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Json<Vec<Halt>>, Refused> {
    peer.asked.set();
    Ok(Json(desk.core()?.halts.in_force().0))
}

async fn stop(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Answer>, Refused> {
    peer.asked.set();
    let StopRequest { call, reason, grace_us } = parse(&body)?;
    let core = desk.core()?;
    let grace = Duration::from_micros(grace_us);
    let interrupt = Interrupt::new(Cause::Operator, &*peer.name).reason(reason).grace(grace);
    let mut is_here = false;
    core.inventory.walk(|other| is_here |= other.id == call);
    let began = Instant::now();
    // Whoever looks for a call asks every host: only the one that has it enters that.
    let interruption = if is_here { core.interrupt(Scope::Call(call), interrupt) } else { Interruption::default() };
    if interruption.is_empty() {
        return Err(Refused(StatusCode::NOT_FOUND, format!("no call `{call}` runs or waits here")));
    }
    Ok(Json(answer(&core, interruption, began, None, None).await))
}

async fn halt(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Answer>, Refused> {
    peer.asked.set();
    let HaltRequest { scope, reason, halt } = parse(&body)?;
    let core = desk.core()?;
    let new = Halt::new(scope, &*peer.name, reason);
    let new = Arc::new(Halt { halt: halt.unwrap_or(new.halt), ..new });
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
    Ok(Json(Answer { not_on_disk, ..released }))
}

async fn lift(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Halt>, Refused> {
    peer.asked.set();
    let LiftRequest { halt, reason } = parse(&body)?;
    if reason.trim().is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "a halt is lifted for a reason: say which".into()));
    }
    let core = desk.core()?;
    let lifted = tokio::task::spawn_blocking(move || core.lift(halt, &peer.name, &reason)).await;
    match lifted {
        Ok(Ok(halt)) => Ok(Json(halt)),
        Ok(Err(error @ HaltError::Unknown(_))) => Err(Refused(StatusCode::NOT_FOUND, error.to_string())),
        Ok(Err(error)) => Err(Refused(StatusCode::CONFLICT, error.to_string())),
        Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// Waits for what was reached to be released, for a bounded time.
async fn answer(
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
    }
}

#[cfg(feature = "cli")]
fn program(call: &CallState) -> Option<ProgramInfo> {
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
fn program(_: &CallState) -> Option<ProgramInfo> {
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
            home: self.home.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            since: self.since,
            calls: core.inventory.live(),
            refuses: core.refuses(),
        }
    }

    fn call(&self, core: &Core, call: &Arc<CallState>) -> CallInfo {
        let now_ns = core.now_ns();
        let ago = |at_ns: u64| now_ns.saturating_sub(at_ns) / 1000;
        let delivered = call.interrupted();
        let mut children = 0;
        if core.inventory.has_nested() {
            let is_child = |other: &Arc<CallState>| other.parent.as_ref().is_some_and(|parent| parent.id == call.id);
            core.inventory.walk(|other| children += usize::from(is_child(other)));
        }
        let committed = call.commits.committed();
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
            component: call.component,
            parent: call.parent.as_ref().map(|parent| parent.id),
            state: phase(call, stopped.as_ref(), program.as_ref()),
            age_us: ago(call.live.registered_ns),
            time_left_us: (call.has_started() && deadline_ns != NO_DEADLINE_NS)
                .then(|| deadline_ns.saturating_sub(now_ns) / 1000),
            fuel_granted: call.live.fuel_granted,
            memory_bytes: call.live.memory_bytes.load(Ordering::Relaxed),
            host_call: call.live.host_call().map(str::to_owned),
            uncommitted: call.live.uncommitted(),
            commits: Commits {
                points: call.commits.points(),
                writes: committed.writes,
                bytes: committed.bytes,
                unknown: false,
            },
            effects: call.live.effects(),
            progress: progress.map(|(at_ns, progress)| ProgressInfo {
                done: progress.done,
                total: progress.total,
                message: progress.message,
                ago_us: ago(at_ns),
            }),
            children,
            grants: Vec::new(),
            stopped,
            program,
        }
    }
}

fn phase(call: &CallState, stopped: Option<&StoppedBy>, program: Option<&ProgramInfo>) -> CallPhase {
    if program.is_some_and(|program| program.in_grace) && call.gate.is_flagged() {
        return CallPhase::Warned;
    }
    if call.gate.is_interrupted() {
        let long_ago = stopped.is_some_and(|stopped| stopped.ago_us > micros(UNCONFIRMED_AFTER));
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
