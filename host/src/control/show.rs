//! One call, with what somebody needs to know to decide about it.
//!
//! Invariant: what a call was asked stays where it is, unless somebody asks for it: otherwise its size and digest stand for
//! it.

use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, Uri};
use axum::routing::get;
use axum::{Json, Router};
use sha2::{Digest as _, Sha256};

use super::protocol::{InputInfo, Shown};
use super::server::{Desk, Peer, Refused, children};
use crate::ids::CallId;
use crate::tools::Hex;

/// What is shown of an input (bytes).
const INPUT_SHOWN_BYTES_MAX: usize = 1 << 20;

pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/v1/calls/{call}", get(show))
}

async fn show(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    Path(call): Path<String>,
    uri: Uri,
) -> Result<Json<Shown>, Refused> {
    peer.asked.looks();
    let core = desk.core()?;
    let id: Result<CallId, _> = call.parse();
    let mut found = None;
    if let Ok(id) = id {
        core.inventory.walk(|call| found = found.take().or_else(|| (call.id == id).then(|| Arc::clone(call))));
    }
    let call = found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("no call `{call}` runs or waits here")))?;
    let with_input = uri.query().is_some_and(|query| query.split('&').any(|asked| asked == "input=true"));
    let input = match call.live.input() {
        // Not on the thread that stops calls: it may be long.
        Some(input) => tokio::task::spawn_blocking(move || info(&input, with_input)).await.ok(),
        None => None,
    };
    Ok(Json(Shown { call: desk.call(&core, &call, &children(&core)), input }))
}

fn info(input: &str, with_text: bool) -> InputInfo {
    let sha256 = Hex::of(&Sha256::digest(input).into()).as_str().to_owned();
    let text = with_text.then(|| input[..input.floor_char_boundary(INPUT_SHOWN_BYTES_MAX)].to_owned());
    InputInfo { bytes: input.len() as u64, sha256, text }
}
