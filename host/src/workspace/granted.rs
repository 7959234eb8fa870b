//! The workspaces of a host, and those of one call.
//!
//! Invariant: whatever works on a commit of a call has ended before the call is released, also if the call was stopped in
//! the middle of it; and it is known whether the commit was handed to the store, so that nothing is carried out that was
//! not decided.

mod nested;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) use self::nested::Lent;
use self::nested::OnLoan;
use super::HIDDEN;
use super::base::{Base, Wait};
use super::changes::Changes;
use super::commit::{self, Decision, Staged};
use super::files::{Files, Tally};
use super::overlay::{Overlay, WorkspaceLimits};
use super::stage::StageError;
use crate::store::{Decisions, Store};

/// How long a commit waits for others of the same host in the same workspace.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// A folder cannot be a workspace.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// It is not there, or may not be read.
    #[error("`{}` cannot be a workspace: {error}", path.display())]
    Open {
        /// As it was given.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A tool could change what the host relies on.
    #[error("`{}` cannot be a workspace: it overlaps `{}`, which is estop's own", path.display(), own.display())]
    Overlaps {
        /// As it was given.
        path: PathBuf,
        /// What it overlaps.
        own: PathBuf,
    },
    /// Nothing could be promised of what is written to it.
    #[error("`{}` cannot be a workspace that is written: {}", .0.display(), commit::NOT_DURABLE)]
    NotDurable(PathBuf),
}

/// A folder that a host may grant to calls.
#[derive(Debug)]
pub(crate) struct Workspace {
    base: Arc<Base>,
    is_read_only: bool,
    limits: WorkspaceLimits,
    /// Commits of this host, in the order in which they come; those that only read beside each other.
    turn: Arc<RwLock<()>>,
}

impl Workspace {
    /// `own`: folders that it may not overlap.
    pub(crate) fn open(
        path: &Path,
        is_read_only: bool,
        limits: WorkspaceLimits,
        own: &[PathBuf],
        store: &dyn Store,
    ) -> Result<Self, WorkspaceError> {
        let failed = |error| WorkspaceError::Open { path: path.to_owned(), error };
        let base = Base::open(path, HIDDEN).map_err(failed)?;
        for own in own {
            // What is not there yet is compared by its name.
            let real = own.canonicalize().unwrap_or_else(|_| own.clone());
            if base.path().starts_with(&real) || real.starts_with(base.path()) {
                return Err(WorkspaceError::Overlaps { path: path.to_owned(), own: real });
            }
        }
        if !is_read_only && store.decisions().is_none() {
            return Err(WorkspaceError::NotDurable(path.to_owned()));
        }
        Ok(Self { base: Arc::new(base), is_read_only, limits, turn: Arc::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.base.path()
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// For whoever looks at a call.
    pub(crate) fn in_words(&self, at: &str) -> String {
        let how = if self.is_read_only { "read" } else { "read and write" };
        format!("{how} {} at {at}", self.base.path().display())
    }

    /// What a call sees of it, once nothing is left undone there.
    async fn enter(
        self: &Arc<Self>,
        store: &Arc<dyn Store>,
        tally: &Arc<Tally>,
        spill_folder: &Path,
        io: &Handle,
    ) -> Result<Arc<Files>, String> {
        let (base, store) = (Arc::clone(&self.base), Arc::clone(store));
        let entered = io.spawn_blocking(move || {
            commit::recover(&base, store.decisions()).map_err(|error| error.to_string())?;
            let root = base.look(Path::new(""), Wait::Allowed).ok().flatten();
            root.ok_or_else(|| format!("the workspace `{}` is gone", base.path().display()))
        });
        let root = entered.await.unwrap_or_else(|_| Err("entering a workspace panicked; please report this".into()))?;
        let overlay = Overlay::new(root, self.is_read_only, self.limits.clone());
        Ok(Files::new(Arc::clone(&self.base), overlay, Arc::clone(tally), spill_folder.to_owned(), io.clone()))
    }
}

/// What became of a commit that was made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Durable,
    /// It never will be.
    Not,
    /// Only the store knows, and not yet.
    Unknown,
}

/// Somebody's turn in a workspace.
#[derive(Debug)]
enum Turn {
    #[expect(dead_code, reason = "held until it is dropped")]
    Alone(OwnedRwLockWriteGuard<()>),
    #[expect(dead_code, reason = "held until it is dropped")]
    Beside(OwnedRwLockReadGuard<()>),
}

/// One workspace of one call.
struct Granted {
    at: String,
    workspace: Arc<Workspace>,
    files: Arc<Files>,
    /// What was changed in it before the call, by the one that invoked it.
    before: (u64, u64),
}

type Working<T> = JoinHandle<Result<T, StageError>>;

/// Says whether these changes are to be committed.
pub(crate) type Reviewer = Arc<dyn Fn(Changes) -> BoxFuture<'static, bool> + Send + Sync>;

/// Those of one call.
#[derive(Default)]
pub(crate) struct Workspaces {
    all: Vec<Granted>,
    reviewer: Option<Reviewer>,
    staging: Option<Working<Vec<Staged>>>,
    staged: Vec<Staged>,
    turns: Vec<Turn>,
    /// What is staged was handed to the store: the call's ticket says what became of it.
    queued: bool,
    finishing: Option<Working<()>>,
    on_loan: OnLoan,
}

impl Workspaces {
    /// Makes ready what a call was granted: where the guest sees it, and which.
    pub(crate) async fn enter(
        granted: &[(String, Arc<Workspace>)],
        reviewer: Option<Reviewer>,
        store: &Arc<dyn Store>,
        tally: &Arc<Tally>,
        spill_folder: &Path,
        io: &Handle,
    ) -> Result<Self, String> {
        let mut all = Vec::with_capacity(granted.len());
        for (at, workspace) in granted {
            let files = workspace.enter(store, tally, spill_folder, io).await?;
            all.push(Granted { at: at.clone(), workspace: Arc::clone(workspace), files, before: (0, 0) });
        }
        // So that two calls with the same workspaces cannot wait for each other for ever.
        all.sort_by(|one, other| one.workspace.path().cmp(other.workspace.path()));
        Ok(Self { all, reviewer, ..Self::default() })
    }

    /// Where the guest sees them.
    pub(crate) fn granted(&self) -> impl Iterator<Item = (&str, &Arc<Files>)> {
        self.all.iter().map(|granted| (&*granted.at, &granted.files))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Names and files changed, and the bytes of that.
    pub(crate) fn changes(&self) -> (u64, u64) {
        let (mut files, mut bytes) = (0, 0);
        for Granted { files: of, before, .. } in &self.all {
            let now = of.changed();
            files += now.0.saturating_sub(before.0);
            bytes += now.1.saturating_sub(before.1);
        }
        let not_ours = self.on_loan.not_ours();
        (files.saturating_sub(not_ours.0), bytes.saturating_sub(not_ours.1))
    }

    /// Something was changed by others since it was read.
    pub(crate) fn lost(&self) -> Option<String> {
        self.all.iter().find_map(|granted| granted.files.lost().map(str::to_owned))
    }

    /// Who has to agree before this is committed, if anybody has to.
    pub(crate) fn reviewer(&self) -> Option<Reviewer> {
        self.reviewer.clone()
    }

    /// What a commit would change.
    pub(crate) async fn describe(&self, io: &Handle) -> Result<Changes, StageError> {
        let files: Vec<_> = self.all.iter().map(|granted| Arc::clone(&granted.files)).collect();
        let described = io.spawn_blocking(move || {
            let (mut changes, mut held) = (Changes::default(), 0);
            for files in &files {
                let described = files.changes(&mut changes, &mut held);
                described.map_err(|error| StageError::Failed(format!("the changes cannot be shown: {error}")))?;
            }
            Ok(changes)
        });
        joined(described.await)
    }

    /// Makes a commit ready and says what has to be decided. May be dropped in the middle: then `finish` sees to the rest.
    pub(crate) async fn stage(
        &mut self,
        store: &Arc<dyn Store>,
        io: &Handle,
        is_stopped: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Vec<Decision>, StageError> {
        for granted in &self.all {
            let turn = Arc::clone(&granted.workspace.turn);
            let only_reads = granted.files.changed().0 == 0;
            let taken = match only_reads {
                true => timeout(TURN_WAIT_MAX, turn.read_owned()).await.map(Turn::Beside),
                false => timeout(TURN_WAIT_MAX, turn.write_owned()).await.map(Turn::Alone),
            };
            let path = granted.workspace.path().display();
            let wait = TURN_WAIT_MAX.as_secs();
            let late = |_| StageError::Failed(format!("other commits have kept `{path}` for {wait} s; try again"));
            self.turns.push(taken.map_err(late)?);
        }
        let files: Vec<_> = self.all.iter().map(|granted| Arc::clone(&granted.files)).collect();
        let store = Arc::clone(store);
        let staging = self.staging.insert(io.spawn_blocking(move || {
            let mut staged: Vec<Staged> = Vec::new();
            for files in &files {
                match commit::stage(files, store.decisions(), &is_stopped) {
                    Ok(more) => staged.extend(more),
                    Err(error) => {
                        staged.into_iter().for_each(Staged::remove);
                        return Err(error);
                    }
                }
            }
            Ok(staged)
        }));
        let staged = joined(staging.await);
        self.staging = None;
        match staged {
            Ok(staged) => self.staged = staged,
            Err(error) => {
                self.turns.clear();
                return Err(error);
            }
        }
        Ok(self.staged.iter().filter_map(Staged::decision).cloned().collect())
    }

    /// From here on the call's ticket tells of this commit.
    pub(crate) fn queued(&mut self) {
        self.queued = true;
    }

    /// Carries out or removes what was made ready. May be dropped in the middle and called again.
    pub(crate) async fn finish(&mut self, store: &Arc<dyn Store>, io: &Handle, fate: Fate) -> Result<(), StageError> {
        if let Some(staging) = &mut self.staging {
            // The call was stopped meanwhile. That it failed is nobody's concern any more.
            self.staged = joined(staging.await).unwrap_or_default();
            self.staging = None;
        }
        let fate = if self.queued { fate } else { Fate::Not };
        if !self.staged.is_empty() {
            let (staged, store) = (std::mem::take(&mut self.staged), Arc::clone(store));
            self.finishing = Some(io.spawn_blocking(move || settle(staged, store.decisions(), fate)));
        }
        let done = match &mut self.finishing {
            Some(finishing) => joined(finishing.await),
            None => Ok(()),
        };
        self.finishing = None;
        self.queued = false;
        self.turns.clear();
        done
    }

    /// Lets go of everything, which may be much, on a thread that may take its time: once nobody else has any of it.
    pub(crate) async fn end(self, io: &Handle) {
        if !self.all.is_empty() {
            let _ = io.spawn_blocking(move || drop(self)).await;
        }
    }
}

fn settle(staged: Vec<Staged>, decisions: Option<&dyn Decisions>, fate: Fate) -> Result<(), StageError> {
    let mut done = Ok(());
    for staged in staged {
        match fate {
            Fate::Durable => done = done.and(staged.carry_out(decisions)),
            Fate::Not => staged.remove(),
            // It stays where it is: whoever comes next asks the store.
            Fate::Unknown => drop(staged),
        }
    }
    done
}

fn joined<T>(ended: Result<Result<T, StageError>, tokio::task::JoinError>) -> Result<T, StageError> {
    ended.unwrap_or_else(|_| Err(StageError::Failed("committing files panicked; please report this".into())))
}
