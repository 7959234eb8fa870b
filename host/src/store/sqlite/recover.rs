//! What became of hosts whose process ended without closing the home: entered by the next host that opens it.
//!
//! Invariant: a call is entered as ended by its own host, or by this, and never by both: it is done in one database
//! transaction with the removal of the host's row.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::params;
use serde_json::Value;

use super::read;
use super::write::Batch;
use crate::call::Commits;
use crate::home::Home;
use crate::ids::{CallId, HostId};
use crate::log::{Entry, EntryKind};
use crate::store::StoreError;

/// Lines of the log that are read at once.
const LINES_AT_ONCE: usize = 4096;

/// A call that was begun and has no end.
struct Open {
    /// Its first line.
    since: u64,
    agent: Arc<str>,
    tool: Arc<str>,
    commits: Commits,
}

/// Enters what there is to say of dead hosts, in the name of the host that has found them. Answers who they are.
pub(super) fn dead_hosts(batch: &mut Batch<'_>, home: &Home, finder: HostId) -> Result<Vec<HostId>, StoreError> {
    let mut dead = Vec::new();
    for (text, pid, first_seq) in rows(batch)? {
        let Ok(host) = text.parse::<HostId>() else { continue };
        if host == finder || !is_dead(home, host)? {
            continue;
        }
        let at = SystemTime::now();
        let calls = open_calls(batch, host, first_seq)?;
        for entry in alternate(home, host) {
            batch.append(&Entry { at, host: finder, kind: EntryKind::Alternate { died: host, entry } })?;
        }
        let count = calls.len() as u64;
        batch.append(&Entry { at, host: finder, kind: EntryKind::Died { died: host, pid, calls: count } })?;
        for (call, Open { agent, tool, commits, .. }) in calls {
            let kind = EntryKind::CallDied { call, agent, tool, died: host, commits };
            batch.append(&Entry { at, host: finder, kind })?;
        }
        batch.execute("DELETE FROM host WHERE id = ?1", params![text])?;
        dead.push(host);
    }
    Ok(dead)
}

/// Once that is durable.
pub(super) fn bury(home: &Home, dead: &[HostId]) {
    for host in dead {
        home.bury(*host);
        // What was taken over is in the log.
        let _ = fs::remove_file(alternate_path(home, *host));
    }
}

/// The first line that still belongs to a call that has not ended: what is pruned has to end before it.
pub(super) fn oldest_open(batch: &Batch<'_>) -> Result<Option<u64>, StoreError> {
    let mut oldest = None;
    for (text, _, first_seq) in rows(batch)? {
        let Ok(host) = text.parse::<HostId>() else { continue };
        let calls = open_calls(batch, host, first_seq)?;
        oldest = calls.iter().map(|(_, open)| open.since).chain(oldest).min();
    }
    Ok(oldest)
}

/// Where a host writes its stops while the log cannot be written.
pub(super) fn alternate_path(home: &Home, host: HostId) -> PathBuf {
    home.alternate().join(format!("{host}.jsonl"))
}

/// Once the host has closed. What is in it stays, for whoever looks.
pub(super) fn remove_empty_alternate(home: &Home, host: HostId) {
    let path = alternate_path(home, host);
    if fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
        // One that stays is empty, and takes no room.
        let _ = fs::remove_file(path);
    }
}

fn rows(batch: &Batch<'_>) -> Result<Vec<(String, u32, u64)>, StoreError> {
    let read = || {
        let mut statement = batch.connection().prepare_cached("SELECT id, pid, first_seq FROM host ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<_>>()
    };
    read().map_err(|error| batch.error(&error))
}

fn is_dead(home: &Home, host: HostId) -> Result<bool, StoreError> {
    home.is_dead(host).map_err(|error| StoreError::Io(format!("cannot tell whether {host} is alive: {error}")))
}

/// The calls of a host that were begun and not ended, in the order of their ids.
fn open_calls(batch: &Batch<'_>, host: HostId, first_seq: u64) -> Result<Vec<(CallId, Open)>, StoreError> {
    let mut open: HashMap<CallId, Open> = HashMap::new();
    let mut after = first_seq.saturating_sub(1);
    let name = host.to_string();
    loop {
        let lines = read::lines(batch.connection(), after, LINES_AT_ONCE).map_err(|error| batch.error(&error))?;
        let Some((last, _)) = lines.last() else { break };
        after = *last;
        // Most lines of a shared home are somebody else's, and looking is cheaper than reading.
        for (seq, line) in lines.iter().filter(|(_, line)| line.contains(&name)) {
            // One that a newer version wrote, or that was damaged, is `verify`'s affair.
            let Ok(entry) = read::entry(line) else { continue };
            if entry.host == host {
                note(&mut open, *seq, entry.kind);
            }
        }
    }
    let mut open: Vec<_> = open.into_iter().collect();
    open.sort_unstable_by_key(|(call, _)| *call);
    Ok(open)
}

fn note(open: &mut HashMap<CallId, Open>, since: u64, kind: EntryKind) {
    match kind {
        EntryKind::Start { call, agent, tool, .. } => {
            open.entry(call).or_insert(Open { since, agent, tool, commits: Commits::default() });
        }
        EntryKind::Commit { call, agent, tool, size, .. } => {
            let open = open.entry(call).or_insert(Open { since, agent, tool, commits: Commits::default() });
            open.commits.points += 1;
            open.commits.writes += size.writes;
            open.commits.bytes += size.bytes;
        }
        EntryKind::End(end) => {
            open.remove(&end.call);
        }
        _ => {}
    }
}

fn alternate(home: &Home, host: HostId) -> Vec<Value> {
    let text = fs::read_to_string(alternate_path(home, host)).unwrap_or_default();
    // The last line may be torn, and the rest of a file that was made larger beforehand is zeros.
    text.lines().filter_map(|line| serde_json::from_str(line.trim_matches('\0')).ok()).collect()
}
