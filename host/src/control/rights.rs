//! Who may ask for what: one socket for each role, and on each of them the verbs of the others are there to be refused.
//!
//! Invariant: a verb that is not in the list of its socket's role does nothing but enter that somebody asked for it.

use std::sync::Arc;

use axum::Router;
use axum::extract::Extension;
use axum::routing::any;

use super::denials::Denials;
use super::protocol::Role;
use super::server::Peer;

/// What can be asked for.
pub(super) struct Verb {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) roles: &'static [Role],
}

const fn verb(name: &'static str, path: &'static str, roles: &'static [Role]) -> Verb {
    Verb { name, path, roles }
}

/// Everything that anybody might ask for, also what nobody may.
pub(super) const VERBS: &[Verb] = &[
    // Whoever lifts has to see that what the halt covers has come to rest. Not what a call was asked.
    verb("status", "/v1/status", &[Role::Operator, Role::Admin]),
    verb("show", "/v1/calls/{call}", &[Role::Operator]),
    verb("halts", "/v1/halts", &[Role::Operator, Role::Admin]),
    // An agent's is another one: with the token of its own call.
    verb("stop", "/v1/stop", &[Role::Operator, Role::Agent]),
    verb("halt", "/v1/halt", &[Role::Operator]),
    verb("drill", "/v1/drill", &[Role::Operator]),
    verb("events", "/v1/events", &[Role::Operator]),
    verb("metrics", "/v1/metrics", &[Role::Operator]),
    verb("lift", "/v1/lift", &[Role::Admin]),
    verb("load", "/v1/load", &[Role::Admin]),
    verb("unload", "/v1/unload", &[Role::Admin]),
    verb("tools", "/v1/tools", &[Role::Agent]),
    verb("call", "/v1/call", &[Role::Agent]),
    verb("watch", "/v1/agents/{agent}/halted", &[Role::Agent]),
    verb("state", "/v1/state", &[]),
    verb("log", "/v1/log", &[]),
];

/// The verbs that whoever has this role may not ask for.
pub(super) fn denied<S: Clone + Send + Sync + 'static>(role: Role, denials: &Arc<Denials>) -> Router<S> {
    let foreign = VERBS.iter().filter(|verb| !verb.roles.contains(&role));
    foreign.fold(Router::new(), |routes, &Verb { name, path, roles }| {
        let denials = Arc::clone(denials);
        let deny = move |Extension(peer): Extension<Peer>| async move {
            peer.asked.looks();
            denials.deny(role, name, &peer, words(name, role, roles))
        };
        routes.route(path, any(deny))
    })
}

fn words(verb: &str, role: Role, roles: &[Role]) -> String {
    let may: Vec<_> = roles.iter().map(|role| format!("`{}`", role.socket())).collect();
    let may =
        if may.is_empty() { "nobody may ask for it here".into() } else { format!("{} is for that", may.join(" or ")) };
    format!("`{verb}` is refused on `{}`, and the log says who asked: {may}", role.socket())
}
