//! What a tool sends, and what it makes of the answer, with the web that a test has laid out.

use estop_tool::http::{Method, Problem, Request, get};
use estop_tool::testing::{Answered, Requested, Run};
use estop_tool::{ToolError, http};

const HERE: &str = "https://here.test/a/b";

fn lines(requests: &[Requested]) -> Vec<&str> {
    requests.iter().map(|request| request.line.as_str()).collect()
}

#[test]
fn a_redirect_goes_on_as_browsers_do() {
    for (method, status, then, keeps_body) in [
        (Method::Get, 301, "GET", true),
        (Method::Head, 303, "HEAD", true),
        (Method::Post, 302, "GET", false),
        (Method::Post, 303, "GET", false),
        (Method::Put, 303, "GET", false),
        (Method::Put, 302, "PUT", true),
        (Method::Post, 307, "POST", true),
        (Method::Delete, 308, "DELETE", true),
    ] {
        let run = Run::new()
            .answer(format!("{} {HERE}", method.as_str()), Answered::new(status).header("Location", "../c?d#e"))
            .answer(format!("{then} https://here.test/c?d"), Answered::new(200).body("there"));
        let ended = run.call(|| Request::new(method, HERE).header("content-type", "x").body("body").send());
        let response = ended.result.as_ref().unwrap();
        assert_eq!((response.url(), response.bytes()), ("https://here.test/c?d", &b"there"[..]), "{method:?} {status}");
        let second = &ended.requests()[1];
        assert_eq!(
            (!second.body.is_empty(), !second.headers.is_empty()),
            (keeps_body, keeps_body),
            "{method:?} {status}"
        );
    }
}

#[test]
fn what_is_for_one_server_is_not_taken_to_another() {
    let ask = |to: &'static str| {
        let run = Run::new()
            .answer(format!("GET {HERE}"), Answered::new(302).header("location", to))
            .answer(format!("GET {to}"), Answered::new(204));
        let request = Request::new(Method::Get, HERE).header("Authorization", "mine").header("accept", "*/*");
        let ended = run.call(|| request.send());
        let names: Vec<String> = ended.requests()[1].headers.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(ended.result.unwrap().status(), 204);
        names
    };
    assert_eq!(ask("https://here.test/c"), ["Authorization", "accept"]);
    for other in ["https://other.test/", "http://here.test/", "https://here.test:8443/"] {
        assert_eq!(ask(other), ["accept"], "{other}");
    }
}

#[test]
fn redirects_have_an_end() {
    let run = (0..9)
        .fold(Run::new(), |run, _| run.answer(format!("GET {HERE}"), Answered::new(302).header("location", HERE)));
    let ended = run.clone().call(|| Request::new(Method::Get, HERE).follow(2).send());
    assert_eq!(ended.result.as_ref().unwrap_err().code(), "too-many-redirects");
    assert_eq!(ended.requests().len(), 3);
    let none = run.call(|| Request::new(Method::Get, HERE).follow(0).send());
    assert_eq!((none.result.as_ref().unwrap().status(), none.requests().len()), (302, 1));
    let odd = Run::new().answer(format!("GET {HERE}"), Answered::new(302).header("location", "ftp://a/"));
    assert_eq!(odd.call(|| get(HERE)).result.unwrap_err().code(), "bad-request");
    // Whoever does not say where leaves it at that.
    let nowhere = Run::new().answer(format!("GET {HERE}"), Answered::new(301));
    assert_eq!(nowhere.call(|| get(HERE)).result.unwrap().status(), 301);
}

#[test]
fn a_body_has_a_bound() {
    let run = || Run::new().answer(format!("GET {HERE}"), Answered::new(200).body("12345"));
    let ask = |request: Request| run().call(|| request.send()).result;
    let get = || Request::new(Method::Get, HERE);
    assert_eq!(ask(get().response_bytes_max(4)).unwrap_err().code(), "too-large");
    let whole = ask(get().response_bytes_max(5)).unwrap();
    assert!(whole.bytes() == b"12345" && !whole.is_cut());
    let cut = ask(get().cut_after(4)).unwrap();
    assert!(cut.bytes() == b"1234" && cut.is_cut());
    assert_eq!(whole.json::<u32>().unwrap(), 12345);
    assert_eq!(whole.json::<String>().unwrap_err().code(), "bad-answer");
}

#[test]
fn what_went_wrong_is_told_without_what_may_be_secret() {
    let url = "https://here.test/path?token=s3cr3t";
    let fails = |method: Method, problem: Problem| {
        let run = Run::new().answer(format!("{} {url}", method.as_str()), Answered::failed(problem));
        let error = run.call(|| Request::new(method, url).send()).result.unwrap_err();
        assert!(error.message().contains("https://here.test: ") && !error.message().contains("s3cr3t"), "{error}");
        (error.code().to_owned(), error.is_retryable())
    };
    for (problem, code, passes) in [
        (Problem::Denied, "denied", false),
        (Problem::PrivateAddress, "private-address", false),
        (Problem::Dns, "dns", true),
        (Problem::Connection, "connection", true),
        (Problem::Tls, "tls", false),
        (Problem::Timeout, "timeout", true),
        (Problem::TooLarge("the response"), "too-large", false),
        (Problem::Protocol, "protocol", false),
        (Problem::BadRequest("no".to_owned()), "bad-request", false),
    ] {
        assert_eq!(fails(Method::Get, problem.clone()), (code.to_owned(), passes));
        // It may have been carried out.
        assert_eq!(fails(Method::Post, problem), (code.to_owned(), false));
    }
    // What was not laid out is not granted, and what is no URL is not asked.
    assert_eq!(Run::new().call(|| get("https://other.test/")).result.unwrap_err().code(), "denied");
    let odd = Run::new().call(|| get("here.test"));
    assert_eq!((odd.result.as_ref().unwrap_err().code(), lines(odd.requests())), ("bad-request", vec![]));
}

#[test]
fn a_status_is_an_answer_and_an_error_if_one_wants() {
    let asked = |status: u16| -> Result<http::Response, ToolError> {
        let run = Run::new().answer(format!("GET {HERE}"), Answered::new(status).body("why"));
        run.call(|| get(HERE)).result
    };
    assert_eq!(asked(404).unwrap().text(), "why");
    for (status, passes) in [(404, false), (429, true), (503, true)] {
        let error = asked(status).unwrap().successful().unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("status", passes), "{status}");
    }
    assert_eq!(asked(200).unwrap().successful().unwrap().status(), 200);
    let ended = Run::new()
        .answer("POST https://here.test/", Answered::new(201))
        .call(|| Request::new(Method::Post, "https://here.test").json(&[1, 2])?.send());
    assert_eq!(ended.requests()[0].body, b"[1,2]");
    assert_eq!(ended.requests()[0].headers, [("content-type".to_owned(), "application/json".to_owned())]);
}
