//! The durable store's contract: versioned keys, and one operation that validates, writes and logs together.
//!
//! An implementation is trusted with promises 8 and 14. [`conformance`] is a suite that every implementation runs.

pub mod conformance;
pub mod memory;
pub mod sqlite;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::home::Home;
use crate::ids::HostId;
use crate::log::Entry;
use crate::workspace::Decision;

/// Whose state: each agent has its own with each component. Sharing is a grant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space {
    /// The agent's name.
    pub agent: Arc<str>,
    /// The name under which the component was loaded; it survives a new version of the component.
    pub component: Arc<str>,
}

/// A key within a space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The bucket's name.
    pub bucket: Arc<str>,
    /// The key's name in the bucket.
    pub key: Arc<str>,
}

/// What a key costs beside its name and value (bytes), so that many empty ones are not for nothing.
const KEY_OVERHEAD_BYTES: usize = 64;
/// What is counted against limits is rounded up to this (bytes), as disks do: a value that becomes a little longer or
/// shorter does not change what a store has to keep about its space.
const CHARGE_STEP_BYTES: usize = 64;

impl Key {
    /// What the key counts against limits, with a value of this length or removed (bytes).
    pub fn charge(&self, value_bytes: Option<usize>) -> u64 {
        let bytes = KEY_OVERHEAD_BYTES + self.bucket.len() + self.key.len() + value_bytes.unwrap_or(0);
        bytes.next_multiple_of(CHARGE_STEP_BYTES) as u64
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key `{}` of bucket `{}`", self.key, self.bucket)
    }
}

/// When something was last changed, from one sequence for the whole store. `ABSENT` is the version of what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of a key or bucket that does not exist. A key that was deleted is as absent as one that never was:
    /// a transaction is serialised at its commit, and then only what is there counts.
    pub const ABSENT: Version = Version(0);
}

/// A key's value, if it has one, and when that was last changed.
pub type Versioned = (Version, Option<Arc<[u8]>>);

/// The keys of one bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Changes whenever a key appears in the bucket or vanishes from it.
    pub version: Version,
    /// In order.
    pub keys: Vec<Arc<str>>,
}

/// Something a transaction relied on.
#[derive(Clone, Debug)]
pub enum Read {
    /// The key had this version.
    Key(Key, Version),
    /// The bucket's set of keys had this version.
    Listing(Arc<str>, Version),
}

/// A key that a transaction sets, or removes.
#[derive(Clone, Debug)]
pub struct Write {
    /// Which.
    pub key: Key,
    /// The new value; `None` removes the key.
    pub value: Option<Arc<[u8]>>,
}

/// What a transaction relied on and does in one space.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whose state.
    pub space: Space,
    /// What must still be so.
    pub reads: Vec<Read>,
    /// What to do.
    pub writes: Vec<Write>,
}

/// A store cannot do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The agent would keep more with this component than it may.
    #[error("the state of agent `{agent}` with `{component}` would grow to {bytes} bytes; the limit is {bytes_max}")]
    Quota {
        /// Whose state.
        agent: Arc<str>,
        /// With which component.
        component: Arc<str>,
        /// What it would be.
        bytes: u64,
        /// What it may be.
        bytes_max: u64,
    },
    /// More keys than a transaction may list.
    #[error("bucket `{bucket}` has more than {keys_max} keys, too many to list in one transaction")]
    TooManyKeys {
        /// The bucket's name.
        bucket: Arc<str>,
        /// The limit.
        keys_max: usize,
    },
    /// More commits wait than the host has room for.
    #[error("more commits are waiting than the host has room for; try again later")]
    Busy,
    /// Another process has held the database for too long. Names it where the system says which.
    #[error("the store cannot be written: {0}")]
    Held(String),
    /// Changes of files cannot be committed.
    #[error("{0}")]
    Workspace(String),
    /// There is no room on the disk.
    #[error("the store cannot be written: {0}")]
    Full(String),
    /// Reading or writing failed.
    #[error("the store failed: {0}")]
    Io(String),
    /// Writing failed at a moment after which nobody can tell whether the batch is durable.
    #[error("the store could not say whether the commit is durable: {0}")]
    Unknown(String),
}

/// What became of one commit in a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Part of the batch: as durable as the batch.
    Applied,
    /// An interrupt withdrew it; nothing of it was applied.
    Withdrawn,
    /// Something it had read has changed; nothing of it was applied. Names the first such thing.
    Conflict(String),
    /// It may not be applied; nothing of it was.
    Refused(StoreError),
}

/// One call's transaction, with those of the calls that it has invoked, to be committed whole or not at all.
pub struct Commit<'a> {
    /// What must still be so and what to do, one part for each space that was used.
    pub parts: &'a [Part],
    /// Changes of files that are ready to be carried out if the commit is applied: to be written down with it. None for a
    /// store without [`Store::decisions`].
    pub workspaces: &'a [Decision],
    /// What may be kept in each space, by [`Key::charge`]. A commit that does not make it more is never refused for it.
    pub space_bytes_max: u64,
    /// Written if and only if the commit is applied.
    pub entry: Entry,
    /// To be asked once, after validation and before applying: `false` means that the commit was withdrawn. After
    /// `true` the store must apply it, unless the whole batch fails.
    pub decide: &'a dyn Fn() -> bool,
}

/// What a store keeps about changes of files that were decided and may not have been carried out yet.
pub trait Decisions: Send + Sync {
    /// What no other store is called, so that none decides in the place of another.
    fn store(&self) -> &str;

    /// Where it is, for people.
    fn place(&self) -> String;

    /// What was decided about a commit: the digest that was written down with it. `None`: it was not decided, and from now on
    /// it never can be.
    ///
    /// # Errors
    /// The store cannot be written.
    fn resolve(&self, id: &str, workspace: &Path) -> Result<Option<String>, StoreError>;

    /// Nothing is left to be done for this commit.
    ///
    /// # Errors
    /// The store cannot be written.
    fn forget(&self, id: &str) -> Result<(), StoreError>;
}

/// Where state and log live.
///
/// Reads may come from many threads at once; so may `write` if several hosts share the store. Neither is ever called on the
/// path of an interrupt, and `write` never on a guest worker.
pub trait Store: Send + Sync + 'static {
    /// The newest committed value of a key and its version.
    fn get<'a>(&'a self, space: &'a Space, key: &'a Key) -> BoxFuture<'a, Result<Versioned, StoreError>>;

    /// The keys of a bucket, or an error if there are more than `keys_max`.
    fn list<'a>(
        &'a self,
        space: &'a Space,
        bucket: &'a Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// One database transaction: appends `entries`, which is what happened before; then, for each commit, validates its
    /// reads, asks `decide`, applies its writes and appends its entry; then makes it all durable at once. One verdict for
    /// each commit, in order.
    ///
    /// # Errors
    /// Nothing of the batch is durable, and nothing of it ever will be; except after [`StoreError::Unknown`], when it may
    /// be. Then the next batch begins with the same `entries`, and the store leaves out what turns out to be there.
    fn write(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Vec<Verdict>, StoreError>;

    /// As `write`, if that can be done without waiting for anybody else before `decide` is asked. `None`: nothing was
    /// done. Called on a guest worker, by the only call of a host: the I/O after the decision is what a stop waits for
    /// anyway. A store that cannot promise it leaves this as it is.
    fn write_now(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Option<Result<Vec<Verdict>, StoreError>> {
        let _ = (commits, entries);
        None
    }

    /// Up to `count_max` entries of the log from position `from`, oldest first.
    fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError>;

    /// A host begins to use the store. Enters what has to be said of hosts that died meanwhile.
    ///
    /// # Errors
    /// The store cannot be written: then there is no point in a host.
    fn attach(&self, host: HostId) -> Result<(), StoreError> {
        let _ = host;
        Ok(())
    }

    /// The host ends. Not `complete`: it could not enter everything, so whoever attaches next has to take it for dead.
    fn detach(&self, host: HostId, complete: bool) {
        let _ = (host, complete);
    }

    /// What it keeps about changes of files; `None`: nothing, so that no call may change any.
    fn decisions(&self) -> Option<&dyn Decisions> {
        None
    }

    /// Why nothing new should be begun, if so: for example because the disk is nearly full. Asked now and then, by the
    /// thread that writes.
    fn shortage(&self) -> Option<String> {
        None
    }

    /// The home that it is in, if it is in one. The halts that are latched there are those of every host that uses it.
    fn home(&self) -> Option<&Home> {
        None
    }

    /// A file for the stops of this host while the store cannot be written, if the store has a place for one. What is left
    /// in it when the host dies is entered by the next one that attaches.
    fn alternate(&self, host: HostId) -> Option<PathBuf> {
        let _ = host;
        None
    }
}
