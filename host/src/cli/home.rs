//! Which home a command works on.

use std::path::PathBuf;

use anyhow::bail;

use crate::Home;
use crate::store::sqlite::Look;

/// Flattened into every command that has to do with a home.
#[derive(Default, clap::Args)]
// Others are called `Options` too, and clap takes the name for the group's.
#[group(skip)]
pub(super) struct Options {
    /// Where state, log and keys are kept; ESTOP_HOME, else `estop` under XDG_STATE_HOME or ~/.local/state
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Options {
    /// Where it is, whether or not it is there.
    pub(super) fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.home {
            Some(path) => path.clone(),
            None => Home::default_path()?,
        })
    }

    /// The home, made if it is not there.
    pub(super) fn open(&self) -> anyhow::Result<Home> {
        Ok(Home::open(self.path()?)?)
    }

    /// The home, if there is one.
    pub(super) fn open_if_there(&self) -> anyhow::Result<Option<Home>> {
        let path = self.path()?;
        if matches!(path.try_exists(), Ok(false)) { Ok(None) } else { Ok(Some(Home::open(path)?)) }
    }

    /// The home's database, for looking. Where there is none, none is made.
    pub(super) fn look(&self) -> anyhow::Result<Look> {
        let path = self.path()?;
        if matches!(path.try_exists(), Ok(false)) {
            bail!("nothing has run in the home `{}` yet", path.display());
        }
        Ok(Look::open(&self.open()?)?)
    }
}
