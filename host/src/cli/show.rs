//! `estop show`: everything the log has about one call or one interrupt.

use super::log::{tell, tree};
use super::{ExitCode, home, json_text, print};
use crate::log::export::walk;
use crate::store::StoreError;
use crate::{CallId, InterruptId};

use super::exit_code::usage;

/// Show what the log has about a call (call-…) that has ended, or an interrupt (interrupt-…).
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    home: home::Options,
    /// The id
    id: String,
    /// The entries, one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let Args { home, id, json } = args;
    // As the log writes it.
    let (is_interrupt, id) = match (id.parse::<InterruptId>(), id.parse::<CallId>()) {
        (Ok(interrupt), _) => (true, interrupt.to_string()),
        (_, Ok(call)) => (false, call.to_string()),
        _ => return Err(usage(format!("`{id}` is neither a call (call-…) nor an interrupt (interrupt-…)"))),
    };
    let look = home.look()?;
    let last = look.newest()?;
    let mut entries = Vec::new();
    // An id is not in a line by chance, and looking is cheaper than reading.
    walk(&look, last, |_, line| {
        if line.contains(&id) {
            entries.extend(serde_json::from_str(line));
        }
        Ok::<_, StoreError>(())
    })?;
    if entries.is_empty() {
        let home = look.folder().display();
        return Err(usage(format!(
            "the log of `{home}` has nothing about `{id}` (`estop log show` lists what it has)"
        )));
    }
    if is_interrupt && !json {
        print(&tree(&entries, &id))?;
        return Ok(ExitCode::Completed);
    }
    for entry in &entries {
        print(&if json { json_text(entry) } else { tell(entry) })?;
    }
    Ok(ExitCode::Completed)
}
