//! The agents' socket: calling tools, stopping one's own calls, and learning of halts.
//!
//! Invariants:
//! - It is served by the host's own runtime, never by the control thread: agents cannot delay operators.
//! - Nobody stops a call here without its token, and no other user than the one who made it.
//! - In service mode the agent is the user at the other end of the socket, whatever the request says.
//! - What is asked for can only lower what the host grants.

mod events;
mod places;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::{Notify, watch};

use self::places::Places;
use super::denials::Denials;
use super::place::Mode;
use super::protocol::{Answer, CallBegun, CallRequest, CancelRequest, Role, ToolList};
use super::rights;
use super::served::{NotServed, Served};
use super::server::{Bounds, Peer, Refused, answer, nothing_of_this_name, parse, serve, stop_here};
use super::token::Tokens;
use crate::agent::{self, Agent, DEFAULT_AGENT};
use crate::call::Lowered;
use crate::host::Core;
use crate::interrupt::{Cause, Interrupt};

/// Connections of agents at one time.
const CONNECTIONS_MAX: usize = 256;
/// What a request may have beside the tool's input (bytes).
const BESIDE_INPUT_BYTES_MAX: usize = 64 << 10;

/// What the requests are about. It does not keep the host alive.
struct Counter {
    core: Weak<Core>,
    served: Served,
    tokens: Tokens,
    closed: watch::Receiver<bool>,
    mode: Mode,
    denials: Arc<Denials>,
    places: Arc<Places>,
}

impl Counter {
    fn core(&self) -> Result<Arc<Core>, Refused> {
        self.core.upgrade().ok_or_else(|| Refused(StatusCode::GONE, "the host has just ended".into()))
    }

    /// On whose behalf a request is. In personal mode every program is the same user's, and says which agent it works for; in
    /// service mode the agent is the user.
    fn agent_of(&self, verb: &'static str, peer: &Peer, asked: Option<String>) -> Result<String, Refused> {
        match (self.mode, asked) {
            (Mode::Personal, asked) => Ok(asked.unwrap_or_else(|| DEFAULT_AGENT.to_owned())),
            (Mode::Service, Some(asked)) if asked != *peer.name() => {
                let why = format!("user {} is agent `{0}` here, and no other one", peer.name());
                Err(self.denials.deny(Role::Agent, verb, peer, why))
            }
            (Mode::Service, _) => Ok(peer.name().to_string()),
        }
    }
}

/// Serves agents until the host closes.
pub(super) fn start(
    core: &Arc<Core>,
    served: Served,
    mode: Mode,
    denials: Arc<Denials>,
    socket: std::os::unix::net::UnixListener,
    closed: watch::Receiver<bool>,
    short_of_files: Arc<Notify>,
) -> std::io::Result<watch::Receiver<bool>> {
    let (ended, has_ended) = watch::channel(false);
    let (core_later, is_closed) = (Arc::downgrade(core), closed.clone());
    let foreign = rights::denied(Role::Agent, &denials);
    let (tokens, places) = (Tokens::new()?, Places::new(CONNECTIONS_MAX, mode));
    let counter = Arc::new(Counter { core: core_later, served, tokens, closed, mode, denials, places });
    let request_bytes_max = core.call_limits.input_bytes_max.saturating_add(BESIDE_INPUT_BYTES_MAX);
    let routes = routes().merge(foreign).layer(DefaultBodyLimit::max(request_bytes_max)).with_state(counter);
    let bounds = Bounds { connections_max: CONNECTIONS_MAX, connected_max: None };
    core.io.handle.spawn(async move {
        serve(socket, routes, is_closed, bounds, short_of_files).await;
        ended.send_replace(true);
    });
    Ok(has_ended)
}

fn routes() -> Router<Arc<Counter>> {
    Router::new()
        .route("/v1/tools", get(tools))
        .route("/v1/call", post(call))
        .route("/v1/stop", post(stop))
        .route("/v1/agents/{agent}/halted", get(halted))
        .fallback(|| async { nothing_of_this_name(Role::Agent) })
}

async fn tools(
    State(counter): State<Arc<Counter>>,
    Extension(peer): Extension<Peer>,
) -> Result<Json<ToolList>, Refused> {
    peer.asked.acts();
    let host = counter.core()?.id;
    let (components, trouble) = counter.served.list();
    peer.asked.is_told();
    Ok(Json(ToolList { host, components, trouble }))
}

async fn call(
    State(counter): State<Arc<Counter>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<impl IntoResponse, Refused> {
    peer.asked.acts();
    let request: CallRequest = parse(&body)?;
    let core = counter.core()?;
    let agent = counter.agent_of("call", &peer, request.agent)?;
    let place = counter.places.take(peer.uid).map_err(|why| Refused(StatusCode::SERVICE_UNAVAILABLE, why))?;
    let asked = Lowered {
        deadline: request.deadline_us.map(Duration::from_micros),
        grace: request.grace_us.map(Duration::from_micros),
        fuel: request.fuel,
        memory_bytes: request.memory_bytes,
        priority: request.priority,
    };
    let agent = Agent::new(Arc::clone(&core), agent);
    let (tool, input) = (request.tool, request.input);
    let call = counter.served.start(&tool, request.component.as_deref(), |component| {
        agent.call(component, &*tool, input).lower(&asked).start()
    });
    let call = call.map_err(|error| {
        let status = match error {
            NotServed::NotLoaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::NOT_FOUND,
        };
        Refused(status, error.to_string())
    })?;
    let begun = CallBegun { call: call.id(), token: counter.tokens.of(call.id(), peer.uid) };
    Ok(events::of_call(call, begun, peer, place))
}

async fn stop(
    State(counter): State<Arc<Counter>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Answer>, Refused> {
    peer.asked.acts();
    let CancelRequest { call, token, reason } = parse(&body)?;
    let core = counter.core()?;
    if !counter.tokens.fits(call, peer.uid, &token) {
        // Whether there is such a call is nobody's business without its token.
        let why = format!(
            "the token is not that of `{call}` and of this user, so it is not stopped; the call's first event has it"
        );
        return Err(counter.denials.deny(Role::Agent, "stop", &peer, why));
    }
    let began = Instant::now();
    let cancelled = Interrupt::new(Cause::Cancelled, &*peer.name()).reason(reason);
    let interruption = stop_here(&core, call, cancelled);
    let answer = answer(&core, interruption, began, None, None).await;
    peer.asked.is_told();
    Ok(Json(answer))
}

async fn halted(
    State(counter): State<Arc<Counter>>,
    Extension(peer): Extension<Peer>,
    Path(agent): Path<String>,
) -> Result<impl IntoResponse, Refused> {
    peer.asked.watches();
    let agent = counter.agent_of("watch", &peer, Some(agent))?;
    if let Some(why) = agent::refused_name(&agent) {
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    Ok(events::of_halts(&counter.core()?, agent, counter.closed.clone()))
}
