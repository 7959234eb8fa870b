//! The workspaces of a call that is invoked by another one: the same files, for as long as it lives.
//!
//! Invariant: what a call gets back from one that it has invoked is what that one has left, or what was there before it; and
//! whatever works on that has ended before the call is released.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{Granted, Workspace, Workspaces};
use crate::workspace::files::Files;

/// A workspace that a call gets from the one that invokes it.
pub(crate) struct Lent {
    at: String,
    workspace: Arc<Workspace>,
    files: Arc<Files>,
    before: (u64, u64),
}

/// What a call has given to one that it invokes.
#[derive(Default)]
pub(super) struct OnLoan {
    /// With names and files changed before, and the bytes of that.
    files: Vec<(Arc<Files>, (u64, u64))>,
    returning: Option<JoinHandle<()>>,
    /// Changes of one that has failed, which the files still have because this call has ended, too.
    not_ours: (u64, u64),
}

impl OnLoan {
    pub(super) fn not_ours(&self) -> (u64, u64) {
        self.not_ours
    }
}

impl Workspaces {
    /// For a call that this one invokes, and that is granted these.
    pub(crate) async fn lend(
        &mut self,
        granted: &[(String, Arc<Workspace>)],
        io: &Handle,
    ) -> Result<Vec<Lent>, String> {
        let (mut lent, mut begun) = (Vec::new(), Vec::new());
        for (at, workspace) in granted {
            let Some(own) = self.all.iter().find(|own| own.workspace.path() == workspace.path()) else { continue };
            let (files, before) = (Arc::clone(&own.files), own.files.changed());
            self.on_loan.files.push((Arc::clone(&files), before));
            begun.push((Arc::clone(&files), workspace.is_read_only));
            lent.push(Lent { at: at.clone(), workspace: Arc::clone(&own.workspace), files, before });
        }
        if lent.is_empty() {
            return Ok(lent);
        }
        let begin = move || begun.iter().for_each(|(files, is_read_only)| files.begin(*is_read_only));
        let began = self.on_loan.returning.insert(io.spawn_blocking(begin)).await;
        self.on_loan.returning = None;
        began.map(|()| lent).map_err(|_| "beginning with the files of a call panicked; please report this".into())
    }

    /// That call is released. If it is not `kept`, the files are as they were before it.
    pub(crate) async fn take_back(&mut self, is_kept: bool, io: &Handle) -> Result<(), String> {
        if self.on_loan.files.is_empty() {
            return Ok(());
        }
        let files: Vec<_> = self.on_loan.files.iter().map(|(files, _)| Arc::clone(files)).collect();
        let end = move || files.iter().for_each(|files| files.end(is_kept));
        let returned = self.on_loan.returning.insert(io.spawn_blocking(end)).await;
        self.on_loan = OnLoan::default();
        returned.map_err(|_| "ending with the files of a call panicked; please report this".into())
    }

    /// As `take_back`, by a call that has ended: only what is counted matters.
    pub(crate) async fn forget(&mut self, is_kept: bool) {
        if let Some(returning) = self.on_loan.returning.take() {
            let _ = returning.await;
        }
        let loan = std::mem::take(&mut self.on_loan);
        if is_kept {
            return;
        }
        for (files, before) in loan.files {
            let now = files.changed();
            self.on_loan.not_ours.0 += now.0.saturating_sub(before.0);
            self.on_loan.not_ours.1 += now.1.saturating_sub(before.1);
        }
    }

    /// What a call has that another one has invoked.
    pub(crate) fn nested(lent: Vec<Lent>) -> Self {
        let all =
            lent.into_iter().map(|Lent { at, workspace, files, before }| Granted { at, workspace, files, before });
        Self { all: all.collect(), ..Self::default() }
    }
}
