//! What the log says happened, as it is found from outside; and whether it fits what is kept.

use std::collections::{BTreeMap, HashMap};

use estop::store::sqlite::Look;
use serde_json::{Value, json};

use super::book::Book;

/// Lines that are read at once.
const LINES_AT_ONCE: usize = 10_000;

/// The log, from its first line.
#[derive(Default)]
pub(crate) struct Trail {
    newest: u64,
    /// Entries of commits, by their number.
    commits: BTreeMap<u64, Value>,
    calls: HashMap<String, Traces>,
    hosts: HashMap<String, Host>,
    interrupts: HashMap<String, Vec<Value>>,
}

/// What there is of one call.
#[derive(Default)]
pub(crate) struct Traces {
    starts: usize,
    pub(crate) commits: Vec<u64>,
    /// How it ended, and who says so.
    ends: Vec<Value>,
}

#[derive(Default)]
struct Host {
    pid: u64,
    closed: usize,
    died: usize,
}

/// What a whole log amounts to.
#[derive(Debug)]
pub(crate) struct Amounts {
    pub(crate) calls: usize,
    pub(crate) calls_died: usize,
    pub(crate) hosts: usize,
    pub(crate) hosts_died: usize,
}

impl Trail {
    /// What `estop log show --json` prints.
    pub(crate) fn shown(text: &str) -> Self {
        let mut trail = Self::default();
        text.lines().for_each(|line| trail.take(line));
        trail
    }

    /// Reads on, up to the end.
    pub(crate) fn follow(&mut self, look: &Look) {
        loop {
            let lines = look.lines(self.newest, LINES_AT_ONCE).expect("the log can be read");
            if lines.is_empty() {
                return;
            }
            lines.iter().for_each(|(_, line)| self.take(line));
        }
    }

    fn take(&mut self, line: &str) {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        self.newest += 1;
        assert_eq!(entry["seq"], self.newest, "lines are numbered without a gap: {line}");
        let text = |name: &str| entry[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
        let call = |calls: &mut HashMap<String, Traces>, note: &dyn Fn(&mut Traces)| {
            note(calls.entry(text("call")).or_default());
        };
        match text("kind").as_str() {
            "start" => call(&mut self.calls, &|call| call.starts += 1),
            "commit" => {
                call(&mut self.calls, &|call| call.commits.push(self.newest));
                self.commits.insert(self.newest, entry);
            }
            "end" | "call-died" => call(&mut self.calls, &|call| call.ends.push(entry.clone())),
            "interrupt" => self.interrupts.entry(text("interrupt")).or_default().push(entry),
            "opened" => {
                let pid = entry["pid"].as_u64().unwrap_or_else(|| panic!("no pid: {line}"));
                let twice = self.hosts.insert(text("host"), Host { pid, closed: 0, died: 0 });
                assert!(twice.is_none(), "a host opens the home once: {line}");
            }
            "closed" => self.host(&text("host")).closed += 1,
            "died" => self.host(&text("died")).died += 1,
            "checkpoint" => {}
            _ => panic!("nothing of this kind should have happened: {line}"),
        }
    }

    fn host(&mut self, host: &str) -> &mut Host {
        self.hosts.get_mut(host).unwrap_or_else(|| panic!("{host} ended and was never opened"))
    }

    pub(crate) fn call(&self, call: &str) -> &Traces {
        self.calls.get(call).unwrap_or_else(|| panic!("the log has nothing of {call}"))
    }

    pub(crate) fn interrupts(&self, interrupt: &str) -> &[Value] {
        self.interrupts.get(interrupt).map(Vec::as_slice).unwrap_or_default()
    }

    /// The one entry of the call's end.
    pub(crate) fn end(&self, call: &str) -> &Value {
        match self.call(call).ends.as_slice() {
            [end] => end,
            ends => panic!("{call} should have one end: {ends:?}"),
        }
    }

    /// How many calls ended so.
    pub(crate) fn ended(&self, status: &str) -> usize {
        self.calls.values().flat_map(|call| &call.ends).filter(|end| end["status"] == status).count()
    }

    /// What the entries of the call's commits amount to, as the entry of its end has it.
    pub(crate) fn committed(&self, call: &str) -> Value {
        let mut sum = (0, 0);
        for (index, seq) in self.call(call).commits.iter().enumerate() {
            let commit = &self.commits[seq];
            assert_eq!(commit["point"], index + 1, "commits are counted within their call: {commit}");
            sum.0 += commit["writes"].as_u64().unwrap_or_else(|| panic!("no writes: {commit}"));
            sum.1 += commit["bytes"].as_u64().unwrap_or_else(|| panic!("no bytes: {commit}"));
        }
        json!({ "points": self.call(call).commits.len(), "writes": sum.0, "bytes": sum.1 })
    }

    /// Every version is the number of a commit's entry, and every commit of the agent is in the book with as many writes
    /// as its entry says. Of entries after `newest` the book need not know.
    pub(crate) fn explains(&self, agent: &str, book: &Book, newest: u64) {
        for version in book.versions() {
            let commit = self.commits.get(&version);
            assert!(commit.is_some_and(|commit| commit["agent"] == *agent), "version {version} is of {commit:?}");
        }
        let written = book.commits();
        for (seq, writes) in &written {
            let commit = &self.commits[seq];
            assert_eq!((&commit["tool"], &commit["writes"]), (&json!("settle"), &json!(writes)), "{commit}");
        }
        for (seq, commit) in self.commits.range(..=newest) {
            // A batch that had been made already is only read.
            let wrote = commit["agent"] == *agent && commit["tool"] == "settle" && commit["writes"] != 0;
            assert!(!wrote || written.contains_key(seq), "nothing is there of a commit that is in the log: {commit}");
        }
    }

    /// Everything that was begun has one end, and the end tells what was committed. So it is once somebody has opened the
    /// home after the last crash.
    pub(crate) fn is_complete(&self) -> Amounts {
        let mut calls_died = 0;
        for id in self.calls.keys() {
            let end = self.end(id);
            assert_eq!(end["commits"], self.committed(id), "{end}");
            assert!(self.call(id).starts <= 1, "{id} has started twice");
            calls_died += usize::from(end["kind"] == "call-died");
        }
        for (id, Host { pid, closed, died }) in &self.hosts {
            assert_eq!(closed + died, 1, "{id}, process {pid}, should have closed or died, once");
        }
        let hosts_died = self.hosts.values().map(|host| host.died).sum();
        Amounts { calls: self.calls.len(), calls_died, hosts: self.hosts.len(), hosts_died }
    }
}
