//! `wasi:http`, as the client needs it. A tool that does not use it does not import it.

use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    self, ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, OutgoingBody, OutgoingRequest,
    RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

use crate::http::{Method, Problem, Request, Response, Url};

/// What is asked for at one time (bytes).
const READ_BYTES: u64 = 64 << 10;

pub(crate) fn send(request: &Request, url: &Url) -> Result<Response, Problem> {
    let mut headers: Vec<(String, Vec<u8>)> =
        request.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
    if !request.body.is_empty() {
        headers.push(("content-length".to_owned(), request.body.len().to_string().into_bytes()));
    }
    let bad = |what: &str| Problem::BadRequest(format!("the host does not take {what}"));
    let headers = Fields::from_list(&headers).map_err(|_| bad("one of the headers"))?;
    let outgoing = OutgoingRequest::new(headers);
    outgoing.set_method(&method(request.method)).map_err(|()| bad("the method"))?;
    outgoing
        .set_scheme(Some(if url.is_tls { &Scheme::Https } else { &Scheme::Http }))
        .map_err(|()| bad("the scheme"))?;
    outgoing.set_authority(Some(&url.authority)).map_err(|()| bad("the name of the server"))?;
    outgoing.set_path_with_query(Some(&url.path)).map_err(|()| bad("the path"))?;
    let options = RequestOptions::new();
    if let Some(within) = request.within {
        let within_ns = Some(u64::try_from(within.as_nanos()).unwrap_or(u64::MAX));
        let set = [options.set_connect_timeout(within_ns), options.set_first_byte_timeout(within_ns)];
        set.into_iter()
            .chain([options.set_between_bytes_timeout(within_ns)])
            .collect::<Result<(), ()>>()
            .map_err(|()| bad("a time"))?;
    }
    let body = if request.body.is_empty() { None } else { Some(outgoing.body().map_err(|()| bad("a body"))?) };
    let answer = handle(outgoing, Some(options)).map_err(|error| problem(&error))?;
    if let Some(body) = body {
        // Whoever does not want to hear all of it may have answered, or is gone: the answer tells.
        if write(&body, &request.body).is_ok() {
            let _ = OutgoingBody::finish(body, None);
        }
    }
    read(wait(&answer)?, request)
}

fn write(body: &OutgoingBody, mut bytes: &[u8]) -> Result<(), ()> {
    let stream = body.write()?;
    while !bytes.is_empty() {
        let room = stream.check_write().map_err(drop)?;
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        stream.write(now).map_err(drop)?;
        bytes = later;
    }
    Ok(())
}

fn wait(answer: &FutureIncomingResponse) -> Result<IncomingResponse, Problem> {
    loop {
        match answer.get() {
            Some(Ok(Ok(response))) => return Ok(response),
            Some(Ok(Err(error))) => return Err(problem(&error)),
            Some(Err(())) => return Err(Problem::Protocol),
            None => answer.subscribe().block(),
        }
    }
}

fn read(response: IncomingResponse, request: &Request) -> Result<Response, Problem> {
    let (status, headers) = (response.status(), response.headers().entries());
    let incoming = response.consume().map_err(|()| Problem::Protocol)?;
    let (body, is_cut) = read_body(&incoming, request)?;
    Ok(Response { status, headers, body, is_cut, url: String::new() })
}

fn read_body(incoming: &IncomingBody, request: &Request) -> Result<(Vec<u8>, bool), Problem> {
    let stream = incoming.stream().map_err(|()| Problem::Protocol)?;
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(part) => body.extend_from_slice(&part),
            Err(StreamError::Closed) => return Ok((body, false)),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(types::http_error_code(&error).map_or(Problem::Connection, |error| problem(&error)));
            }
        }
        let bytes_max = usize::try_from(request.response_bytes_max).unwrap_or(usize::MAX);
        if body.len() > bytes_max {
            if !request.may_be_cut {
                return Err(Problem::TooLarge("the response"));
            }
            body.truncate(bytes_max);
            return Ok((body, true));
        }
    }
}

fn method(method: Method) -> types::Method {
    match method {
        Method::Get => types::Method::Get,
        Method::Head => types::Method::Head,
        Method::Post => types::Method::Post,
        Method::Put => types::Method::Put,
        Method::Delete => types::Method::Delete,
        Method::Patch => types::Method::Patch,
        Method::Options => types::Method::Options,
    }
}

fn problem(error: &ErrorCode) -> Problem {
    match error {
        ErrorCode::HttpRequestDenied => Problem::Denied,
        ErrorCode::DestinationIpProhibited => Problem::PrivateAddress,
        ErrorCode::DnsTimeout | ErrorCode::DnsError(_) | ErrorCode::DestinationNotFound => Problem::Dns,
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::ConnectionLimitReached
        | ErrorCode::HttpResponseTimeout => Problem::Timeout,
        ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::ConnectionTerminated
        | ErrorCode::HttpResponseIncomplete => Problem::Connection,
        ErrorCode::TlsProtocolError | ErrorCode::TlsCertificateError | ErrorCode::TlsAlertReceived(_) => Problem::Tls,
        ErrorCode::HttpRequestBodySize(_)
        | ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpRequestUriTooLong => Problem::TooLarge("the request"),
        ErrorCode::HttpResponseBodySize(_)
        | ErrorCode::HttpResponseHeaderSectionSize(_)
        | ErrorCode::HttpResponseHeaderSize(_) => Problem::TooLarge("the response"),
        ErrorCode::HttpRequestUriInvalid | ErrorCode::HttpRequestMethodInvalid => {
            Problem::BadRequest("the host does not take it".to_owned())
        }
        _ => Problem::Protocol,
    }
}
