//! What an earlier setup has made: a list on the disk, one mark a line.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::step::Step;

/// Root's, in a folder that is root's.
const LIST: &str = "/var/lib/estop/made";

/// See the module's documentation.
pub(super) struct Made(Vec<String>);

impl Made {
    pub(super) fn read() -> anyhow::Result<Self> {
        match fs::read_to_string(LIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(Vec::new())),
            text => {
                let text = text.with_context(|| format!("cannot read `{LIST}`, which says what a setup has made"))?;
                Ok(Self(text.lines().map(str::to_owned).collect()))
            }
        }
    }

    /// Those of one kind, the last one first. What was made again, because somebody had removed it, is one of them once.
    pub(super) fn of(&self, kind: &str) -> Vec<String> {
        let marks = self.0.iter().rev().filter_map(|mark| mark.strip_prefix(kind)?.strip_prefix(' '));
        let mut known = HashSet::new();
        marks.filter(|mark| known.insert(*mark)).map(str::to_owned).collect()
    }

    /// Before it is made: what cannot be noted is not made.
    pub(super) fn note(&self, step: &Step) -> anyhow::Result<()> {
        let Some(mark) = step.mark() else { return Ok(()) };
        let note = || {
            if let Some(folder) = Path::new(LIST).parent() {
                fs::create_dir_all(folder)?;
            }
            let mut list = OpenOptions::new().append(true).create(true).open(LIST)?;
            writeln!(list, "{mark}")?;
            list.sync_all()
        };
        note().with_context(|| format!("cannot note in `{LIST}` what is made, so it is not"))
    }

    /// It is undone, except what was kept.
    pub(super) fn forget(&self, kept: &[PathBuf]) -> anyhow::Result<()> {
        let forget = || match kept {
            [] => {
                match fs::remove_file(LIST) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                // Unless somebody has put something there.
                let _ = Path::new(LIST).parent().map(fs::remove_dir);
                Ok(())
            }
            kept => fs::write(LIST, kept.iter().map(|path| format!("folder {}\n", path.display())).collect::<String>()),
        };
        forget().with_context(|| format!("cannot bring `{LIST}` up to date"))
    }
}
