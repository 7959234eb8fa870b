//! `estop setup --system`: service mode, made ready on this machine, and taken away again.
//!
//! Invariants:
//! - What is done is said before, and nothing else is done. What is there already as it has to be is left alone.
//! - What was made is noted before it is made; undoing takes away that and nothing else. Halts and log stay unless they are
//!   asked for by name.

mod made;
mod plan;
mod step;

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::Context;

use self::made::Made;
use self::step::Step;
use super::exit_code::{WithCode, usage};
use super::{ExitCode, print, say};

/// Make this machine ready for service mode: a user for the host, groups for those who stop (operators), lift (admins) and
/// call (agents), a folder for halts of the whole machine, and a unit for systemd.
///
/// It says what it will do, and asks. Doing it again changes nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// For the whole machine; there is no other kind
    #[arg(long, required = true)]
    system: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    print: bool,
    /// Take away what an earlier setup has made; halts and log stay
    #[arg(long)]
    undo: bool,
    /// Halts, state and log as well
    #[arg(long, requires = "undo")]
    purge: bool,
}

const NEXT: &str = "\
Next:
  usermod -aG estop-operators NAME     who may look, stop and halt
  usermod -aG estop-admins NAME        who may lift
  usermod -aG estop-agents NAME        who may call tools; the agent is called like the user
  $EDITOR /etc/estop.toml              which tools there are
  systemctl enable --now estop         starts the host";

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let made = Made::read()?;
    let steps: Vec<Step> = if args.undo { plan::undo(&made, args.purge) } else { plan::setup()? };
    let steps: Vec<Step> = steps.into_iter().filter(|step| !step.is_done()).collect();
    if steps.is_empty() {
        say("estop: there is nothing to do");
        return Ok(ExitCode::Completed);
    }
    for step in &steps {
        print(&step.to_string())?;
    }
    if args.print {
        return Ok(ExitCode::Completed);
    }
    if !rustix::process::geteuid().is_root() {
        let message = "this is for root to do; nothing was changed (`--print` only says what would be done)".into();
        return Err(WithCode { code: ExitCode::Refused, message }.into());
    }
    if !args.yes && !agrees()? {
        say("estop: nothing was changed");
        return Ok(ExitCode::Refused);
    }
    for step in &steps {
        if !args.undo {
            made.note(step)?;
        }
        step.run().with_context(|| {
            format!("{step}: this failed, what stands before it is done; `estop setup --system` goes on from here")
        })?;
    }
    if args.undo {
        let kept = if args.purge { Vec::new() } else { plan::kept(&made) };
        made.forget(&kept)?;
        for path in &kept {
            say(&format!("estop: left: {}, which is root's now (`--purge` removes it)", path.display()));
        }
        if Path::new(plan::CONFIG).exists() {
            say(&format!("estop: left: {}, which was changed", plan::CONFIG));
        }
    } else {
        print(NEXT)?;
    }
    Ok(ExitCode::Completed)
}

fn agrees() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("nobody is here to be asked: say --yes, or --print to only see it"));
    }
    let _ = write!(std::io::stderr(), "Do this? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
