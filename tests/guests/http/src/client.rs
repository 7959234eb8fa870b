//! With the client of the SDK.

use std::collections::BTreeMap;
use std::time::Duration;

use estop_tool::http::{Method, Request};
use estop_tool::{ToolError, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
pub struct Ask {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Bytes of the request's body.
    #[serde(default)]
    body_bytes: usize,
    #[serde(default)]
    redirects_max: Option<u32>,
    #[serde(default)]
    response_bytes_max: Option<u64>,
    #[serde(default)]
    cut_after: Option<u64>,
    #[serde(default)]
    within_ms: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
pub struct Answer {
    status: u16,
    url: String,
    headers: BTreeMap<String, String>,
    body: String,
    bytes: usize,
    is_cut: bool,
}

fn method(name: &str) -> Result<Method, ToolError> {
    let all = [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Patch, Method::Options];
    let found = all.into_iter().find(|method| method.as_str() == name);
    found.ok_or_else(|| ToolError::invalid_input(format!("there is no {name}")))
}

/// Asks a host.
#[estop_tool::tool(open_world)]
pub fn ask(input: Ask) -> Result<Answer, ToolError> {
    let mut request = Request::new(method(input.method.as_deref().unwrap_or("GET"))?, input.url);
    for (name, value) in input.headers {
        request = request.header(name, value);
    }
    if input.body_bytes > 0 {
        request = request.body(vec![b'x'; input.body_bytes]);
    }
    if let Some(most) = input.redirects_max {
        request = request.follow(most);
    }
    if let Some(most) = input.response_bytes_max {
        request = request.response_bytes_max(most);
    }
    if let Some(most) = input.cut_after {
        request = request.cut_after(most);
    }
    if let Some(within_ms) = input.within_ms {
        request = request.within(Duration::from_millis(within_ms));
    }
    progress(1, None, "asking");
    let response = request.send()?;
    let headers = response
        .headers()
        .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    // What is large is not part of the answer.
    let body = response.text().chars().take(4096).collect();
    Ok(Answer {
        status: response.status(),
        url: response.url().to_owned(),
        headers,
        body,
        bytes: response.bytes().len(),
        is_cut: response.is_cut(),
    })
}

#[derive(Deserialize, JsonSchema)]
pub struct Often {
    url: String,
    times: u32,
}

/// Asks a host so many times, one after the other. Answers how often it got an answer, and what stopped it.
#[estop_tool::tool(open_world)]
pub fn ask_often(input: Often) -> Result<(u32, Option<String>), ToolError> {
    for done in 0..input.times {
        if let Err(error) = estop_tool::http::get(&input.url) {
            return Ok((done, Some(error.code().to_owned())));
        }
    }
    Ok((input.times, None))
}
