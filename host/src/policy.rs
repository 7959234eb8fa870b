//! `estop.toml`: which tools a host serves, and what they may use.
//!
//! Invariant: a file is taken as a whole or not at all. What is not known, of the wrong type or contradicts itself is an
//! error that names the line and the column; nothing is guessed and nothing is passed over.

mod budgets;
mod grants;
pub(crate) mod secrets;

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use self::budgets::BudgetTable;
use self::grants::{GrantTable, Rule};
use self::secrets::{SecretTable, Secrets};
use crate::budget::Budget;
use crate::call::{CallLimits, LimitsChange};
use crate::cli::quantity;
use crate::host::HostLimits;
use crate::log::CheckpointTo;
use crate::tools::{Digest, checked_name};
use crate::transaction::StateLimits;

/// A file is never larger (bytes).
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longer would outlast the patience of whoever stops the process.
const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(60);
/// More often it would do little else.
const DRILL_EVERY_MIN: Duration = Duration::from_secs(60);
/// More threads than any machine has processors.
const WORKERS_MAX: usize = 1024;

/// What one file says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) host: HostPolicy,
    pub(crate) tools: BTreeMap<String, ToolPolicy>,
    secret_files: Vec<PathBuf>,
}

/// What holds as long as the host lives.
#[derive(Clone, Debug)]
pub(crate) struct HostPolicy {
    pub(crate) limits: HostLimits,
    pub(crate) call_limits: CallLimits,
    pub(crate) checkpoint_to: Option<CheckpointTo>,
    /// What running calls get to tidy up when the host ends.
    pub(crate) shutdown_grace: Duration,
    /// How often it drills its emergency stop; never, if nothing is said.
    pub(crate) drill_every: Option<Duration>,
    /// Who gets what beyond its own state.
    pub(crate) grants: Vec<Rule>,
    /// Of whom, and how much; of each agent that is not named, if nobody is.
    pub(crate) budgets: Vec<(Option<String>, Budget)>,
}

impl PartialEq for HostPolicy {
    fn eq(&self, other: &Self) -> bool {
        // Plain numbers, all of them shown.
        format!("{self:?}") == format!("{other:?}")
    }
}

/// One component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolPolicy {
    pub(crate) path: PathBuf,
    pub(crate) digest: Option<Digest>,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("cannot read `{}`: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("{}:{line}:{column}: {what}", path.display())]
    At { path: PathBuf, line: usize, column: usize, what: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    host: HostTable,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    tools: BTreeMap<Spanned<String>, ToolTable>,
    #[serde(default)]
    grants: Vec<Spanned<GrantTable>>,
    #[serde(default)]
    budgets: Vec<Spanned<BudgetTable>>,
    #[serde(default)]
    secrets: BTreeMap<Spanned<String>, SecretTable>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    calls_max: Option<Count>,
    sandboxes_max: Option<Spanned<Count>>,
    memory_bytes_max: Option<Bytes>,
    table_elements_max: Option<Count>,
    component_bytes_max: Option<Bytes>,
    components_max: Option<Count>,
    compiling_max: Option<Count>,
    queue_max: Option<Count>,
    tools_max: Option<Count>,
    workers: Option<Spanned<usize>>,
    checkpoint_to: Option<Parsed<CheckpointTo>>,
    shutdown_grace: Option<Spanned<Time>>,
    drill_every: Option<Spanned<Time>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    deadline: Option<Spanned<Time>>,
    grace: Option<Time>,
    fuel: Option<Spanned<Fuel>>,
    memory: Option<Spanned<Bytes>>,
    priority: Option<u8>,
    input_bytes_max: Option<Bytes>,
    output_bytes_max: Option<Bytes>,
    transfer_bytes_max: Option<Bytes>,
    stderr_bytes_max: Option<Bytes>,
    resources_max: Option<Count>,
    effects_max: Option<Count>,
    depth_max: Option<usize>,
    children_max: Option<usize>,
    #[serde(default)]
    state: StateTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateTable {
    key_bytes_max: Option<Bytes>,
    value_bytes_max: Option<Bytes>,
    keys_max: Option<Count>,
    read_bytes_max: Option<Bytes>,
    write_bytes_max: Option<Bytes>,
    space_bytes_max: Option<Bytes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolTable {
    path: Spanned<PathBuf>,
    digest: Option<Digest>,
}

/// How many. None would let nothing in.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match usize::deserialize(deserializer)? {
            0 => Err(de::Error::custom("at least 1")),
            count => Ok(Self(count)),
        }
    }
}

struct Time(Duration);
struct Bytes(usize);
struct Fuel(u64);
struct Parsed<T>(T);

impl Count {
    fn or(given: Option<Self>, default: usize) -> usize {
        given.map_or(default, |Self(count)| count)
    }
}

impl Time {
    fn or(given: Option<Self>, default: Duration) -> Duration {
        given.map_or(default, |Self(time)| time)
    }
}

impl Bytes {
    fn or(given: Option<Self>, default: usize) -> usize {
        given.map_or(default, |Self(bytes)| bytes)
    }

    /// Where they are no memory of this process.
    fn many_or(given: Option<Self>, default: u64) -> u64 {
        given.map_or(default, |Self(bytes)| bytes as u64)
    }
}

/// A quantity as text, as on the command line, or as a number of its unit where it has one.
struct Quantity<T> {
    what: &'static str,
    text: fn(&str) -> Result<T, String>,
    number: Option<fn(u64) -> Option<T>>,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).map_err(|why| E::custom(format!("`{text}`: {why}")))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let given = u64::try_from(number).ok().zip(self.number).and_then(|(number, convert)| convert(number));
        given.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "a duration with its unit, such as \"500ms\" or \"30s\"";
        deserializer.deserialize_any(Quantity { what, text: quantity::duration, number: None }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "a size, such as \"64MiB\", or a number of bytes";
        let number = Some((|bytes| usize::try_from(bytes).ok()) as fn(u64) -> Option<usize>);
        deserializer.deserialize_any(Quantity { what, text: quantity::bytes, number }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Fuel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "an amount of fuel, such as \"10G\", or a number";
        deserializer.deserialize_any(Quantity { what, text: quantity::fuel, number: Some(Some) }).map(Self)
    }
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

impl Policy {
    /// What no tool may change. `path`: where this was read.
    pub(crate) fn kept(&self, path: &Path) -> Vec<PathBuf> {
        let secrets = self.secret_files.iter().cloned();
        self.tools.values().map(|tool| tool.path.clone()).chain(secrets).chain([path.to_owned()]).collect()
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, PolicyError> {
        let failed = |error| PolicyError::Read { path: path.to_owned(), error };
        // Before it is opened: opening a named pipe waits for whoever writes to it.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(PolicyError::TooLarge(path.to_owned()));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => {
                let read = error.as_bytes()[..error.utf8_error().valid_up_to()].to_vec();
                let read = String::from_utf8_lossy(&read).into_owned();
                Err(at(path, &read, read.len()..read.len(), "it is not UTF-8".into()))
            }
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let place = error.span().unwrap_or(0..0);
            at(path, text, place, error.message().to_owned())
        })?;
        let wrong = |place: Range<usize>, what: String| at(path, text, place, what);
        let mut host = file.host.check(file.limits, &wrong)?;
        // A relative path is one from the file, wherever the command is started.
        let folder = path.parent().unwrap_or(Path::new("."));
        let is_known = |component: &str| file.tools.keys().any(|name| name.get_ref() == component);
        let secrets = Secrets::read(file.secrets, folder, &wrong)?;
        let secret_files = secrets.files().to_vec();
        let given = grants::Given {
            is_component: &is_known,
            folder,
            memory_bytes_max: host.limits.memory_bytes_max,
            secrets: &secrets,
            wrong: &wrong,
        };
        host.grants = grants::check(file.grants, &given)?;
        host.budgets = budgets::check(file.budgets, &wrong)?;
        let tools = file.tools.into_iter().map(|(name, tool)| {
            let place = name.span();
            let name = checked_name(name.into_inner()).map_err(|error| wrong(place, error.to_string()))?;
            let place = tool.path.span();
            if tool.path.get_ref().extension().is_none_or(|extension| extension != "wasm") {
                let why =
                    "`path` names no `.wasm` file (`estop build DIR` makes one of a tool's crate, and says where)";
                return Err(wrong(place, why.into()));
            }
            let path = folder.join(tool.path.into_inner());
            Ok((name, ToolPolicy { path, digest: tool.digest }))
        });
        Ok(Self { host, tools: tools.collect::<Result<_, _>>()?, secret_files })
    }
}

impl HostTable {
    fn check(
        self,
        limits: LimitsTable,
        wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
    ) -> Result<HostPolicy, PolicyError> {
        let none = HostLimits::default();
        let sandboxes_max = match self.sandboxes_max {
            None => none.sandboxes_max,
            Some(given) => {
                u32::try_from(given.get_ref().0).map_err(|_| wrong(given.span(), format!("at most {}", u32::MAX)))?
            }
        };
        let workers = match self.workers {
            None => none.workers,
            Some(given) if *given.get_ref() <= WORKERS_MAX => given.into_inner(),
            Some(given) => {
                return Err(wrong(given.span(), format!("at most {WORKERS_MAX} (0: one for each processor)")));
            }
        };
        let shutdown_grace = match self.shutdown_grace {
            None => Duration::ZERO,
            Some(given) if given.get_ref().0 <= SHUTDOWN_GRACE_MAX => given.into_inner().0,
            Some(given) => return Err(wrong(given.span(), format!("at most {}s", SHUTDOWN_GRACE_MAX.as_secs()))),
        };
        let drill_every = match self.drill_every {
            Some(given) if given.get_ref().0 < DRILL_EVERY_MIN => {
                return Err(wrong(
                    given.span(),
                    format!("at least {}s: a drill takes up to 13s", DRILL_EVERY_MIN.as_secs()),
                ));
            }
            given => given.map(|given| given.into_inner().0),
        };
        // Whoever grants it to calls grants it to the host, unless the host says how much there is.
        let asked = limits.memory.as_ref().map_or(0, |memory| memory.get_ref().0);
        let memory_bytes_max = Bytes::or(self.memory_bytes_max, none.memory_bytes_max.max(asked));
        let host_limits = HostLimits {
            calls_max: Count::or(self.calls_max, none.calls_max),
            sandboxes_max,
            memory_bytes_max,
            table_elements_max: Count::or(self.table_elements_max, none.table_elements_max),
            component_bytes_max: Bytes::or(self.component_bytes_max, none.component_bytes_max),
            components_max: Count::or(self.components_max, none.components_max),
            compiling_max: Count::or(self.compiling_max, none.compiling_max),
            queue_max: Count::or(self.queue_max, none.queue_max),
            tools_max: Count::or(self.tools_max, none.tools_max),
            workers,
        };
        let (change, state) = limits.check(memory_bytes_max, wrong)?;
        let mut call_limits = CallLimits { state: state.limits(), ..CallLimits::default() };
        call_limits.memory_bytes_max = call_limits.memory_bytes_max.min(memory_bytes_max);
        change.apply(&mut call_limits);
        let checkpoint_to = self.checkpoint_to.map(|Parsed(to)| to);
        let (grants, budgets) = (Vec::new(), Vec::new());
        Ok(HostPolicy { limits: host_limits, call_limits, checkpoint_to, shutdown_grace, drill_every, grants, budgets })
    }
}

impl LimitsTable {
    /// What it says something about, and the rest as it is. `memory_bytes_max`: of the host.
    fn check(
        self,
        memory_bytes_max: usize,
        wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
    ) -> Result<(LimitsChange, StateTable), PolicyError> {
        let nothing = |place| wrong(place, "more than nothing: every call would be stopped at once".into());
        if let Some(deadline) = self.deadline.as_ref().filter(|given| given.get_ref().0.is_zero()) {
            return Err(nothing(deadline.span()));
        }
        if let Some(fuel) = self.fuel.as_ref().filter(|given| given.get_ref().0 == 0) {
            return Err(nothing(fuel.span()));
        }
        if let Some(memory) = &self.memory {
            match memory.get_ref().0 {
                0 => return Err(nothing(memory.span())),
                asked if asked > memory_bytes_max => {
                    let why = format!(
                        "`memory` is {asked} bytes, and `memory_bytes_max` of [host] is {memory_bytes_max}: raise that, or \
                         lower this"
                    );
                    return Err(wrong(memory.span(), why));
                }
                _ => {}
            }
        }
        let count = |given: Option<Count>| given.map(|Count(count)| count);
        let bytes = |given: Option<Bytes>| given.map(|Bytes(bytes)| bytes);
        let change = LimitsChange {
            deadline: self.deadline.map(|given| given.into_inner().0),
            grace: self.grace.map(|Time(grace)| grace),
            fuel: self.fuel.map(|given| given.into_inner().0),
            memory_bytes_max: self.memory.map(|given| given.into_inner().0),
            priority: self.priority,
            input_bytes_max: bytes(self.input_bytes_max),
            output_bytes_max: bytes(self.output_bytes_max),
            transfer_bytes_max: bytes(self.transfer_bytes_max),
            stderr_bytes_max: bytes(self.stderr_bytes_max),
            resources_max: count(self.resources_max),
            effects_max: count(self.effects_max),
            depth_max: self.depth_max,
            children_max: self.children_max,
        };
        Ok((change, self.state))
    }
}

impl StateTable {
    fn is_empty(&self) -> bool {
        let bytes = [&self.key_bytes_max, &self.value_bytes_max, &self.read_bytes_max, &self.write_bytes_max];
        bytes.iter().all(|given| given.is_none()) && self.space_bytes_max.is_none() && self.keys_max.is_none()
    }

    fn limits(self) -> StateLimits {
        let none = StateLimits::default();
        StateLimits {
            key_bytes_max: Bytes::or(self.key_bytes_max, none.key_bytes_max),
            value_bytes_max: Bytes::or(self.value_bytes_max, none.value_bytes_max),
            keys_max: Count::or(self.keys_max, none.keys_max),
            read_bytes_max: Bytes::many_or(self.read_bytes_max, none.read_bytes_max),
            write_bytes_max: Bytes::many_or(self.write_bytes_max, none.write_bytes_max),
            space_bytes_max: Bytes::many_or(self.space_bytes_max, none.space_bytes_max),
        }
    }
}

/// With the line and the column of where it begins, both from one; columns count characters.
fn at(path: &Path, text: &str, place: Range<usize>, what: String) -> PolicyError {
    let before = &text[..text.floor_char_boundary(place.start)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    PolicyError::At { path: path.to_owned(), line, column, what }
}
