//! Promises 4, 10 and 18 for requests: only to hosts that are granted, within bounds, told as effects, and closed by a stop.

mod bounds;
mod effects;
mod granted;
mod server;
mod stops;
mod tls;
mod tool;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use estop::{
    Call, Component, End, Grantee, Grants, Host, HostBuilder, HttpGrant, HttpLimits, HttpResolver, Outcome, Resolving,
};
use estop_tests::home::{self, Temporary};
use estop_tests::{PATIENCE, load, small, within};
use serde_json::{Value, json};

use self::server::Server;

/// The guest is compiled once for all these tests.
static CACHE: LazyLock<Temporary> = LazyLock::new(home::temporary);

fn builder() -> HostBuilder {
    small().cache(CACHE.home()).resolve_with(Names)
}

/// Knows the names of these tests.
struct Names;

impl HttpResolver for Names {
    fn resolve(&self, name: &str) -> Resolving {
        let addresses: &[&str] = match name {
            "here.test" | "also-here.test" => &["127.0.0.1"],
            "mixed.test" => &["1.1.1.1", "127.0.0.1"],
            "mapped.test" => &["::ffff:127.0.0.1"],
            "metadata.test" => &["169.254.169.254"],
            "nowhere.test" => &[],
            _ => return Box::pin(async { Err(std::io::Error::other("there is no such name")) }),
        };
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<IpAddr>>();
        Box::pin(async { Ok(addresses) })
    }
}

/// A host with these grants, and the guest.
async fn granting(grants: impl IntoIterator<Item = HttpGrant>) -> (Host, Component) {
    built(builder(), grants).await
}

async fn built(builder: HostBuilder, grants: impl IntoIterator<Item = HttpGrant>) -> (Host, Component) {
    let grants = grants.into_iter().fold(Grants::new(), Grants::http);
    let host = builder.grant(Grantee::everyone(), grants).build().unwrap();
    let guest = within(load(&host, "http")).await;
    (host, guest)
}

/// Everything of this server, with these limits.
fn to(server: &Server, limits: HttpLimits) -> HttpGrant {
    HttpGrant::new(server.url("")).private_addresses(true).methods(["GET", "POST"]).limits(limits)
}

async fn call(host: &Host, guest: &Component, tool: &str, input: Value) -> Arc<Outcome> {
    within(start(host, guest, tool, input).outcome()).await
}

fn start(host: &Host, guest: &Component, tool: &str, input: Value) -> Call {
    host.agent("tester").call(guest, tool, input).start()
}

async fn get(host: &Host, guest: &Component, url: impl Into<String>) -> Arc<Outcome> {
    call(host, guest, "ask", json!({ "url": url.into() })).await
}

#[track_caller]
fn completed(outcome: &Arc<Outcome>) -> &Value {
    match &outcome.end {
        End::Completed(output) => &output.json,
        end => panic!("{end:?}"),
    }
}

#[track_caller]
fn failed(outcome: &Arc<Outcome>, code: &str) {
    match &outcome.end {
        End::Failed(failure) => assert_eq!(failure.code, code, "{failure:?}"),
        end => panic!("{end:?}"),
    }
}

/// Short: for a server from which nothing is expected.
const SOON: Duration = Duration::from_millis(300);
