//! `POST /v1/load` and `/v1/unload`, on the admin's socket: which tools a host serves, from outside.
//!
//! Invariant: the control thread only hands it on and waits for a bounded time: reading, compiling and stopping is done by
//! whoever keeps the shelf, one request after the other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use tokio::sync::oneshot;

use super::protocol::{LoadRequest, ToolList, UnloadAnswer, UnloadRequest};
use super::served::{Asked, Errand};
use super::server::{Desk, Peer, Refused, parse};

/// How long an answer waits for a component to be loaded. It is loaded all the same.
const DONE_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/v1/load", post(load)).route("/v1/unload", post(unload))
}

async fn load(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<ToolList>, Refused> {
    peer.asked.acts();
    let LoadRequest { component } = parse(&body)?;
    let core = desk.core()?;
    done(&desk, |done| Errand::Load { component, actor: peer.name().to_string(), done }).await?;
    let served = desk.served.as_ref().ok_or_else(not_served)?;
    let (components, trouble) = served.list();
    Ok(Json(ToolList { host: core.id, components, trouble }))
}

async fn unload(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<UnloadAnswer>, Refused> {
    peer.asked.acts();
    let UnloadRequest { component, reason } = parse(&body)?;
    if reason.trim().is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "a tool is taken away for a reason: say which".into()));
    }
    let stopped =
        done(&desk, |done| Errand::Unload { component, actor: peer.name().to_string(), reason, done }).await?;
    Ok(Json(UnloadAnswer { stopped }))
}

/// Hands it on, and waits until it is done.
async fn done<T>(desk: &Desk, errand: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Errand) -> Result<T, Refused> {
    let served = desk.served.as_ref().ok_or_else(not_served)?;
    let (done, is_done) = oneshot::channel();
    match served.ask(errand(done)) {
        Asked::Taken => {}
        Asked::Busy => {
            let why = "others have asked for so much that there is no room for more; try again".into();
            return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Asked::Nobody => return Err(not_served()),
    }
    match tokio::time::timeout(DONE_WITHIN, is_done).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(why))) => Err(Refused(StatusCode::CONFLICT, why)),
        Ok(Err(_)) => Err(Refused(StatusCode::GONE, "the host is ending".into())),
        Err(_) => Err(Refused(
            StatusCode::GATEWAY_TIMEOUT,
            "it is still being done; `estop log tail` tells when it is".into(),
        )),
    }
}

fn not_served() -> Refused {
    let why = "the tools of this host are loaded by its own program, and by nobody else (`estop serve` can be asked)";
    Refused(StatusCode::NOT_IMPLEMENTED, why.into())
}
