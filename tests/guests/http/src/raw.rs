//! By WASI's own functions.

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::Deserialize;
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{Fields, FutureIncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme};

#[derive(Deserialize, JsonSchema)]
pub struct Raw {
    scheme: Option<String>,
    method: String,
    authority: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

fn failed(what: impl std::fmt::Debug) -> ToolError {
    ToolError::failed("raw", format!("{what:?}"))
}

fn start(raw: &Raw) -> Result<FutureIncomingResponse, ToolError> {
    let headers: Vec<_> = raw.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
    let request = OutgoingRequest::new(Fields::from_list(&headers).map_err(failed)?);
    let scheme = raw.scheme.as_deref().map(|scheme| match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    });
    request.set_scheme(scheme.as_ref()).map_err(|()| failed("scheme"))?;
    let method = match raw.method.as_str() {
        "GET" => Method::Get,
        "CONNECT" => Method::Connect,
        "TRACE" => Method::Trace,
        other => Method::Other(other.to_owned()),
    };
    request.set_method(&method).map_err(|()| failed("method"))?;
    request.set_authority(Some(&raw.authority)).map_err(|()| failed("authority"))?;
    request.set_path_with_query(Some(&raw.path)).map_err(|()| failed("path"))?;
    OutgoingBody::finish(request.body().map_err(failed)?, None).map_err(failed)?;
    handle(request, None).map_err(failed)
}

fn status(answer: &FutureIncomingResponse) -> Result<u16, ToolError> {
    loop {
        match answer.get() {
            Some(Ok(Ok(response))) => return Ok(response.status()),
            Some(other) => return Err(failed(other.map(|answer| answer.map(|_| ())))),
            None => answer.subscribe().block(),
        }
    }
}

/// Asks a host, as it is said. Answers the status or the error.
#[estop_tool::tool(open_world)]
pub fn ask_raw(input: Raw) -> Result<String, ToolError> {
    let answer = start(&input).and_then(|answer| status(&answer));
    Ok(answer.map_or_else(|error| error.message().to_owned(), |status| status.to_string()))
}

#[derive(Deserialize, JsonSchema)]
pub struct AtOnce {
    raw: Raw,
    count: usize,
}

/// Sends so many requests at once, and then waits for all of them. Answers the statuses or errors.
#[estop_tool::tool(open_world)]
pub fn ask_at_once(input: AtOnce) -> Result<Vec<String>, ToolError> {
    let answers = (0..input.count).map(|_| start(&input.raw)).collect::<Result<Vec<_>, _>>()?;
    let said = |answer: FutureIncomingResponse| match status(&answer) {
        Ok(status) => status.to_string(),
        Err(error) => error.message().to_owned(),
    };
    Ok(answers.into_iter().map(said).collect())
}

/// Sends a request, and does not wait for its answer.
#[estop_tool::tool(open_world)]
pub fn ask_and_leave(input: Raw) -> Result<(), ToolError> {
    // Dropping it would be the end of it at once.
    std::mem::forget(start(&input)?);
    Ok(())
}
