//! The host processes of this machine, asked all at once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use hyper::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{printable_line, say};
use crate::control::Mode;
use crate::control::client::{ANSWERS_WITHIN, AskError, Nothing, ask_text, parse};
use crate::control::place::{self, Found};
use crate::control::protocol::{HostInfo, Role, Status};
use crate::{Home, user};

/// Hosts of one user that are asked at one time.
const ASKED_AT_ONCE_MAX: usize = 16;
/// All hosts of one user have as long to answer as so many of them, one after the other.
const TURNS_MAX: u32 = 3;
/// What the hosts of one user may answer, all of them (bytes).
const TOLD_BYTES_MAX: usize = 64 << 20;
const TOO_MUCH: &str = "the hosts of this user answer with too much";
const TOO_MANY: &str = "this user has too many hosts that do not answer, so it was not asked";
/// A host that has broken off and is not gone by then was not ending.
const GOES_WITHIN: Duration = Duration::from_millis(300);

/// What was found.
pub(super) struct Survey {
    /// Hosts that have answered.
    pub(super) hosts: Vec<(Found, Status)>,
    /// Hosts that have not, and what could not be looked at.
    pub(super) unseen: Vec<Unseen>,
    /// Where it was looked.
    pub(super) places: Vec<PathBuf>,
}

/// What nobody can tell about.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Unseen {
    /// Where.
    pub(super) place: PathBuf,
    /// The process, if it is one.
    pub(super) pid: Option<u32>,
    /// The host, if it is one that did not answer.
    #[serde(skip)]
    pub(super) host: Option<Found>,
    /// Why.
    pub(super) why: String,
    /// What to do.
    pub(super) how: String,
}

impl From<(PathBuf, std::io::Error)> for Unseen {
    fn from((place, error): (PathBuf, std::io::Error)) -> Self {
        Self { place, pid: None, host: None, why: error.to_string(), how: "ask as root".to_owned() }
    }
}

impl Unseen {
    fn silent(host: &Found, error: &AskError) -> Self {
        let how = match error {
            _ if error.is_shut_out() && host.mode() == Mode::Service => {
                format!("ask as root, or as one of `{}`", Role::Operator.group())
            }
            AskError::Silent(_) => format!(
                "`kill -CONT {0}` if it is stopped; `estop halt --all --force` ends it, with every program that it \
                 supervises (`kill -9 {0}` would leave what those have started)",
                host.pid
            ),
            AskError::Connect(..) => "ask as root, or as the user whose process it is".to_owned(),
            AskError::Garbled(_) | AskError::Refused(_) => {
                "`estop halt --all --force` ends it, with what it supervises".to_owned()
            }
        };
        let (place, pid, why) = (host.folder.clone(), Some(host.pid), error.to_string());
        Self { place, pid, host: Some(host.clone()), why, how }
    }
}

/// Runs what asks on a runtime of its own.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

/// Asks all of them the same. Each user's hosts are asked apart from those of others, and as much as one user can have
/// is bounded: nobody hides another one's hosts behind many of his own.
pub(super) async fn ask_all<T: DeserializeOwned>(
    hosts: &[Found],
    (role, method, path): (Role, Method, &str),
    body: Option<&(impl Serialize + Sync)>,
    within: Duration,
) -> (Vec<(Found, T)>, Vec<(Found, AskError)>) {
    allow_files();
    let mut users: HashMap<u32, Vec<&Found>> = HashMap::new();
    for host in hosts {
        users.entry(host.owner).or_default().push(host);
    }
    let of_users = users.into_values().map(|hosts| {
        let question = (role, method.clone(), path);
        async move {
            let user = OfUser { until: Instant::now() + within * TURNS_MAX, told_bytes: AtomicUsize::new(0) };
            let asked = hosts.into_iter().map(|host| user.ask::<T>(host, question.clone(), body, within));
            stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX).collect::<Vec<_>>().await
        }
    });
    let mut answers: Vec<_> = join_all(of_users).await.into_iter().flatten().flatten().collect();
    answers.sort_by(|(one, _), (other, _)| one.folder.cmp(&other.folder));
    let (mut answered, mut silent) = (Vec::new(), Vec::new());
    for (host, answer) in answers {
        match answer {
            Ok(answer) => answered.push((host, answer)),
            Err(error) => silent.push((host, error)),
        }
    }
    (answered, silent)
}

/// As many open files as this process may have: each host is one while it is asked, and the first bound is low.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where that cannot be, those that find none try again.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// What the hosts of one user have left.
struct OfUser {
    until: Instant,
    told_bytes: AtomicUsize,
}

impl OfUser {
    /// `None`: it has ended while it was asked.
    async fn ask<T: DeserializeOwned>(
        &self,
        host: &Found,
        (role, method, path): (Role, Method, &str),
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Option<(Found, Result<T, AskError>)> {
        let within = within.min(self.until.saturating_duration_since(Instant::now()));
        if within.is_zero() {
            return Some((host.clone(), Err(AskError::Garbled(TOO_MANY.into()))));
        }
        let text = ask_text(host, role, method, path, body, within).await;
        let read = text.and_then(|text| {
            let told_bytes = self.told_bytes.fetch_add(text.len(), Ordering::Relaxed);
            if told_bytes > TOLD_BYTES_MAX { Err(AskError::Garbled(TOO_MUCH.into())) } else { parse(&text) }
        });
        let is_gone = match &read {
            // It is there, and not for this user.
            Err(error) if error.is_shut_out() => false,
            Err(AskError::Connect(..) | AskError::Garbled(_)) => goes(host, self.until).await,
            _ => false,
        };
        (!is_gone).then(|| (host.clone(), read))
    }
}

/// Whether the host is ending.
async fn goes(host: &Found, until: Instant) -> bool {
    let until = until.min(Instant::now() + GOES_WITHIN);
    while !host.is_gone() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Everything that can be seen: by those who may stop, and by those who may lift.
pub(super) async fn survey() -> Survey {
    let looked = place::look();
    let mut hosts = Vec::new();
    let mut silent: Vec<(Found, AskError)> = Vec::new();
    let mut left = looked.hosts;
    for role in [Role::Operator, Role::Admin] {
        let status = (role, Method::GET, "/v1/status");
        let (answered, others) = ask_all(&left, status, None::<&Nothing>, ANSWERS_WITHIN).await;
        hosts.extend(answered.into_iter().map(|(host, status): (Found, Status)| {
            // Who it is and whose is seen from outside; what it says of that it may say as it likes.
            let (pid, user, mode) = (host.pid, user::name(host.owner), host.mode());
            let info = HostInfo { pid, user, mode, ..status.host };
            (host, Status { host: info, ..status })
        }));
        silent.retain(|(host, _)| left.iter().all(|asked| asked.folder != host.folder));
        left = others.iter().filter(|(_, error)| error.is_shut_out()).map(|(host, _)| host.clone()).collect();
        silent.extend(others);
    }
    let mut unseen = unseen(silent);
    unseen.extend(looked.unseen.into_iter().map(Unseen::from));
    Survey { hosts, unseen, places: looked.places }
}

/// Those of the hosts that use this home; and those that do not say which they use, so that they are named later.
pub(super) async fn of_home(hosts: Vec<Found>, home: &Home) -> Vec<Found> {
    let status = (Role::Operator, Method::GET, "/v1/status");
    let (answered, silent) = ask_all::<Status>(&hosts, status, None::<&Nothing>, ANSWERS_WITHIN).await;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let of_home = |status: &Status| status.host.home.as_deref().map(real) == Some(real(home.path()));
    let own = answered.into_iter().filter(|(_, status)| of_home(status)).map(|(host, _)| host);
    own.chain(silent.into_iter().map(|(host, _)| host)).collect()
}

/// Those that did not answer.
pub(super) fn unseen(silent: Vec<(Found, AskError)>) -> Vec<Unseen> {
    silent.iter().map(|(host, error)| Unseen::silent(host, error)).collect()
}

/// Says what could not be seen.
pub(super) fn tell_unseen(unseen: &[Unseen]) {
    for Unseen { place, pid, why, how, .. } in unseen {
        let who = pid.map_or_else(|| format!("`{}`", place.display()), |pid| format!("process {pid}"));
        // Whoever's host it is has chosen these words, and root may read them.
        let (who, why) = (printable_line(&who), printable_line(why));
        say(&format!("estop: NOT SEEN: {who}: {why}; {how}"));
    }
}
