//! A folder that a tool works on, as files that roll back.
//!
//! The call sees the folder through an [`overlay`](self::overlay): what it reads comes from the folder, what it writes
//! stays in the overlay, and rollback is dropping that. A commit stages the new contents beside the folder's own, has its
//! decision written with the call's keys and its entry, and then carries it out; whoever comes next finishes what was
//! decided and not carried out.
//!
//! Invariants:
//! - The folder is not changed before a commit is decided, but for one hidden directory that is ours.
//! - Nothing outside of the folder is read or written.

mod base;
mod changes;
mod commit;
mod content;
mod files;
mod granted;
mod node;
mod overlay;
mod path;
mod plan;
mod stage;

pub(crate) use self::base::Time;
pub use self::changes::{CHANGES_MAX, Changes, FileChange, Shown};
pub use self::commit::Decision;
pub(crate) use self::files::{Files, Listing, READ_BYTES_MAX, Tally};
pub use self::granted::WorkspaceError;
pub(crate) use self::granted::{Fate, Lent, Reviewer, Workspace, Workspaces};
pub(crate) use self::node::NodeId;
pub use self::overlay::WorkspaceLimits;
pub(crate) use self::overlay::{Open, Status};
pub(crate) use self::stage::StageError;

/// Where a commit is staged, in the folder itself: renaming does not lead from one file system to another.
pub(crate) const HIDDEN: &str = ".estop-workspace";
#[cfg(test)]
mod tests;
