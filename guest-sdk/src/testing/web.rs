//! The web that a tool sees natively: answers that the test has laid out, and the requests that were made.

use std::collections::VecDeque;

use crate::http::{Problem, Request, Response, Url};

/// What a server answers, in a test.
#[derive(Clone, Debug)]
pub struct Answered(Result<Response, Problem>);

impl Answered {
    /// With this status, without headers and body.
    pub fn new(status: u16) -> Self {
        Self(Ok(Response { status, headers: Vec::new(), body: Vec::new(), is_cut: false, url: String::new() }))
    }

    /// There is no answer, for this reason.
    pub fn failed(problem: Problem) -> Self {
        Self(Err(problem))
    }

    /// With this header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        if let Ok(response) = &mut self.0 {
            response.headers.push((name.into(), value.into()));
        }
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        if let Ok(response) = &mut self.0 {
            response.body = body.into();
        }
        self
    }
}

/// A request that a tool has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// Method and URL, as in `GET https://example.com/`.
    pub line: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// What there is, and what was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Web {
    answers: VecDeque<(String, Answered)>,
    pub(super) requests: Vec<Requested>,
}

impl Web {
    pub(super) fn add(&mut self, line: String, answer: Answered) {
        self.answers.push_back((line, answer));
    }

    /// Takes the first answer to this that is left. What nobody has laid out is not granted.
    pub(super) fn send(&mut self, request: &Request, url: &Url) -> Result<Response, Problem> {
        let line = format!("{} {url}", request.method.as_str());
        let found = self.answers.iter().position(|(known, _)| *known == line);
        self.requests.push(Requested { line, headers: request.headers.clone(), body: request.body.clone() });
        let (_, answer) = found.and_then(|at| self.answers.remove(at)).ok_or(Problem::Denied)?;
        let mut response = answer.0?;
        let bytes_max = usize::try_from(request.response_bytes_max).unwrap_or(usize::MAX);
        if response.body.len() > bytes_max {
            if !request.may_be_cut {
                return Err(Problem::TooLarge("the response"));
            }
            response.body.truncate(bytes_max);
            response.is_cut = true;
        }
        Ok(response)
    }
}
