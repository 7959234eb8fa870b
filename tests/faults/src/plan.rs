//! Which operation meets which fault.
//!
//! An operation is counted exactly once, whatever becomes of it, so that a test which arms a fault at 1, 2, 3 … meets
//! each point of the same run once, and knows that it is through when nothing was hit.

use std::time::Duration;

/// When a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which of the operations that are selected is the first to meet the fault, from 1. None is at 0.
    pub at: u64,
    /// Selects operations.
    pub on: On,
    /// Selects as well: an operation that it cannot befall is not counted towards `at`.
    pub fault: Fault,
    /// All later ones meet it too.
    pub lasting: bool,
}

/// Selects operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Every one that changes something: writes, truncations, syncs, deletions, and opens that create.
    Any,
    /// Writes to any file.
    Write,
    /// Syncs of any file.
    Sync,
    /// Deletions.
    Delete,
    /// Truncations of any file.
    Truncate,
    /// Writes to a write-ahead log.
    WalWrite,
    /// Syncs of a write-ahead log.
    WalSync,
    /// Writes to a database's main file.
    DbWrite,
    /// Syncs of a database's main file.
    DbSync,
}

/// What happens to an operation instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It isn't done, and answers with the `SQLITE_IOERR_*` of its kind; an open with `SQLITE_CANTOPEN`.
    Io,
    /// As if the disk were full. A write isn't done and answers `SQLITE_FULL`; what else there is fails as with [`Io`].
    ///
    /// [`Io`]: Fault::Io
    Full,
    /// Writes only: the first half of the bytes is written, and the answer is `SQLITE_IOERR_WRITE`.
    Torn,
    /// Syncs only: nothing is synced, and the answer is `SQLITE_IOERR_FSYNC`. A later sync makes up for it.
    SyncLost,
    /// Syncs only: as Linux does it. Nothing is synced, the answer is `SQLITE_IOERR_FSYNC`, and what was to be
    /// synced counts as clean from now on: it can be read until the power is cut, but no later sync makes it durable, and
    /// no power cut leaves it, unless it is written again.
    SyncDropped,
    /// Syncs only: nothing is synced, and the answer is success.
    SyncLies,
    /// It takes this much longer, and is done.
    Delay(Duration),
    /// The machine loses power. The operation isn't done, but for a write's first sectors, which count as written; and
    /// whatever comes later fails, reads too. Only what a connection needs to be dropped still works: unlocking,
    /// the locks of shared memory, and closing. Nothing takes it back.
    PowerCut,
}

impl Fault {
    fn befalls(self, act: Act) -> bool {
        match self {
            Self::Io | Self::Full | Self::Delay(_) | Self::PowerCut => true,
            Self::Torn => act == Act::Write,
            Self::SyncLost | Self::SyncDropped | Self::SyncLies => act == Act::Sync,
        }
    }
}

impl On {
    fn selects(self, Operation { act, kind }: Operation) -> bool {
        match self {
            Self::Any => true,
            Self::Write => act == Act::Write,
            Self::Sync => act == Act::Sync,
            Self::Delete => act == Act::Delete,
            Self::Truncate => act == Act::Truncate,
            Self::WalWrite => act == Act::Write && kind == Kind::Wal,
            Self::WalSync => act == Act::Sync && kind == Kind::Wal,
            Self::DbWrite => act == Act::Write && kind == Kind::Db,
            Self::DbSync => act == Act::Sync && kind == Kind::Db,
        }
    }
}

/// Something that changes files, or what is durable of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) act: Act,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Create,
    Write,
    Truncate,
    Sync,
    Delete,
}

/// What SQLite uses a file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Db,
    Wal,
    Other,
}

/// The plan, and how far it is.
#[derive(Default)]
pub(crate) struct Countdown {
    plan: Option<Plan>,
    operations: u64,
    selected: u64,
    hits: u64,
}

impl Countdown {
    pub(crate) fn of(plan: Plan) -> Self {
        Self { plan: Some(plan), ..Self::default() }
    }

    pub(crate) fn disarm(&mut self) {
        self.plan = None;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }

    /// Counts an operation that is about to be done.
    pub(crate) fn meet(&mut self, operation: Operation) -> Option<Fault> {
        self.operations += 1;
        let plan = self.plan.filter(|plan| plan.on.selects(operation) && plan.fault.befalls(operation.act))?;
        self.selected += 1;
        let met = self.selected == plan.at || (plan.lasting && plan.at > 0 && self.selected > plan.at);
        if !met {
            return None;
        }
        self.hits += 1;
        Some(plan.fault)
    }
}
