//! From the overlay of a call to the folder: stage → decision → carry out.
//!
//! Invariants:
//! - Whoever has a [`Staged`] has the lock of the folder, and gives it back only when the stage is gone, or when it is left
//!   to whoever comes next.
//! - The decision is the store's alone. What the store does not know as decided is removed, and the store is told so first:
//!   then it can never be decided any more.

use std::path::PathBuf;
use std::sync::Arc;

use ulid::Ulid;

use super::base::Base;
use super::files::Files;
use super::plan::Plan;
use super::stage::{Lock, Stage, StageError, still_as_read};
use crate::store::Decisions;

/// A commit that is ready to be decided.
#[derive(Debug)]
pub(crate) struct Staged {
    files: Arc<Files>,
    /// `None`: it only reads.
    ready: Option<Ready>,
    lock: Lock,
}

#[derive(Debug)]
struct Ready {
    stage: Stage,
    plan: Plan,
    decision: Decision,
}

/// What the store writes down if it decides for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of this commit, and no other.
    pub id: String,
    /// The folder, without symbolic links.
    pub workspace: PathBuf,
    /// SHA-256 of what is to be done, in hex.
    pub digest: String,
}

/// Makes a call's changes ready. `None`: it has read nothing and changed nothing.
pub(crate) fn stage(
    files: &Arc<Files>,
    decisions: Option<&dyn Decisions>,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Option<Staged>, StageError> {
    if let Some(what) = files.lost() {
        return Err(StageError::Conflict(what.to_owned()));
    }
    let base = &files.base;
    let change = files.overlay().change();
    let change = change.map_err(|error| StageError::Failed(format!("`{}`: {error}", base.path().display())))?;
    let only_reads = change.plan.is_empty();
    if only_reads && change.reads.is_empty() && change.listings.is_empty() {
        return Ok(None);
    }
    let mut lock = Lock::take(base, only_reads, is_stopped)?;
    if Stage::find(base)?.is_some() {
        // Somebody has left it: with the lock for itself alone it can be finished.
        drop(lock);
        lock = Lock::take(base, false, is_stopped)?;
        finish(base, decisions)?;
    }
    still_as_read(base, &change, is_stopped)?;
    if only_reads {
        return Ok(Some(Staged { files: Arc::clone(files), ready: None, lock }));
    }
    let decisions = decisions.ok_or_else(|| StageError::Failed(NOT_DURABLE.into()))?;
    let id = Ulid::generate().to_string();
    let (stage, digest) = Stage::fill(files, &change, &id, decisions, is_stopped)?;
    // That may have taken a while.
    if let Err(error) = still_as_read(base, &change, is_stopped) {
        stage.remove(base);
        return Err(error);
    }
    let decision = Decision { id, workspace: base.path().to_owned(), digest };
    let ready = Some(Ready { stage, plan: change.plan, decision });
    Ok(Some(Staged { files: Arc::clone(files), ready, lock }))
}

pub(crate) const NOT_DURABLE: &str =
    "the store keeps no decisions, so changes of files could be left half done: use one that lasts";

impl Staged {
    /// What has to be decided.
    pub(crate) fn decision(&self) -> Option<&Decision> {
        self.ready.as_ref().map(|ready| &ready.decision)
    }

    /// It is decided, and durable. On an error the stage stays, for whoever comes next.
    pub(crate) fn carry_out(self, decisions: Option<&dyn Decisions>) -> Result<(), StageError> {
        if let (Some(Ready { stage, plan, decision }), Some(decisions)) = (self.ready, decisions) {
            let base = &self.files.base;
            stage.apply(base, &plan)?;
            close(base, stage, &decision.id, decisions)?;
        }
        self.files.rebase();
        drop(self.lock);
        Ok(())
    }

    /// It was not decided, and never will be.
    pub(crate) fn remove(self) {
        if let Some(Ready { stage, .. }) = self.ready {
            // In this order: without a manifest nobody asks about it any more.
            if let Err(error) = stage.close() {
                tracing::warn!(%error, "a commit that was not decided could not be removed");
            }
            stage.remove(&self.files.base);
        }
    }
}

fn close(base: &Base, stage: Stage, id: &str, decisions: &dyn Decisions) -> Result<(), StageError> {
    stage.close()?;
    if let Err(error) = decisions.forget(id) {
        // Nobody asks for it any more.
        tracing::warn!(%error, "a decision that was carried out could not be forgotten");
    }
    stage.remove(base);
    Ok(())
}

/// Finishes what somebody has left: carries it out if it was decided, removes it if not. Needs the lock.
fn finish(base: &Base, decisions: Option<&dyn Decisions>) -> Result<(), StageError> {
    let Some(stage) = Stage::find(base)? else { return Ok(()) };
    let Some((manifest, digest)) = stage.manifest()? else {
        stage.remove(base);
        return Ok(());
    };
    let path = base.path().display();
    let Some(decisions) = decisions.filter(|decisions| decisions.store() == manifest.store) else {
        let home = &manifest.place;
        let why = format!(
            "`{path}` is locked: a commit of the home `{home}` was not finished; call any tool with that home and this \
             workspace"
        );
        return Err(StageError::Failed(why));
    };
    let failed = |error| StageError::Failed(format!("`{path}` is locked: it is not known what was decided: {error}"));
    let decided = decisions.resolve(&manifest.id, base.path()).map_err(failed)?;
    let Some(decided) = decided else {
        if stage.has_begun(&manifest.plan)? {
            let why = "a commit was begun that the home knows nothing of; what it has taken is in `.estop-workspace`";
            return Err(StageError::Failed(format!("`{path}` is locked: {why}")));
        }
        return close(base, stage, &manifest.id, decisions);
    };
    if decided != digest {
        let why = "what was decided is not what is there to be carried out; somebody has changed it";
        return Err(StageError::Failed(format!("`{path}` is locked: {why}")));
    }
    stage.apply(base, &manifest.plan)?;
    close(base, stage, &manifest.id, decisions)
}

/// Finishes what a process that died has left in a folder. What another one is working on is its affair.
pub(crate) fn recover(base: &Base, decisions: Option<&dyn Decisions>) -> Result<(), StageError> {
    if Stage::find(base)?.is_none() {
        return Ok(());
    }
    match Lock::try_take(base, false)? {
        Some(_lock) => finish(base, decisions),
        None => Ok(()),
    }
}
