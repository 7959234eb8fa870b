//! `POST /v1/drill`, on the operator's socket: the host tests its own emergency stop.
//!
//! Invariant: the control thread only waits; what is measured, and whoever measures, is elsewhere.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::server::{Desk, Peer, Refused, parse};
use crate::drill::{DrillError, LIVE_RUNS_DEFAULT, live};
use crate::ids::HostId;
use crate::log::Drilled;

/// What is asked. An empty body asks for the usual number of runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillRequest {
    /// How many times each case is stopped.
    #[serde(default = "usual")]
    pub runs: u32,
}

fn usual() -> u32 {
    LIVE_RUNS_DEFAULT
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrillAnswer {
    /// The host.
    pub host: HostId,
    /// Its process.
    pub pid: u32,
    /// What it found.
    #[serde(flatten)]
    pub found: Drilled,
}

pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/v1/drill", post(drill))
}

async fn drill(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<DrillAnswer>, Refused> {
    peer.asked.acts();
    let DrillRequest { runs } = parse(&body)?;
    let core = desk.core()?;
    let found = live::hold(&core, peer.name().to_string(), runs).await.map_err(|error| {
        let status = match error {
            DrillError::Runs(_) => StatusCode::BAD_REQUEST,
            DrillError::Busy => StatusCode::CONFLICT,
            DrillError::Refused(_) => StatusCode::LOCKED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused(status, error.to_string())
    })?;
    Ok(Json(DrillAnswer { host: core.id, pid: std::process::id(), found }))
}
