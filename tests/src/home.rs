//! Homes that go away with the test, and what other processes see of them.

use std::sync::Arc;

use estop::store::StoreError;
use estop::store::sqlite::{Look, Sqlite};
use estop::{Home, HostBuilder};
use serde_json::Value;
use tempfile::TempDir;

/// A home in a folder of its own.
pub struct Temporary {
    folder: TempDir,
    home: Home,
}

/// An empty home.
///
/// # Panics
/// If there is no place for one.
pub fn temporary() -> Temporary {
    let made = tempfile::tempdir().and_then(|folder| {
        let home = Home::open(folder.path().join("home")).map_err(std::io::Error::other)?;
        Ok(Temporary { folder, home })
    });
    match made {
        Ok(temporary) => temporary,
        Err(error) => panic!("{error}"),
    }
}

impl Temporary {
    /// The home.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The folder that the home is in, for other things of the test.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The store of this home.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn store(&self) -> Arc<Sqlite> {
        match Sqlite::open(&self.home) {
            Ok(store) => Arc::new(store),
            Err(error) => panic!("{error}"),
        }
    }

    /// The store of this home, reached through a VFS of SQLite.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn store_through(&self, vfs: &str) -> Result<Arc<Sqlite>, StoreError> {
        Sqlite::options(&self.home).vfs(vfs).open().map(Arc::new)
    }

    /// A small host on this home.
    pub fn host(&self) -> HostBuilder {
        crate::small().store_arc(self.store())
    }

    /// The log as it is on disk, as JSON.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn log(&self) -> Vec<Value> {
        log(&self.home)
    }
}

/// The log of a home as it is on disk, as JSON.
///
/// # Panics
/// If it cannot be read.
pub fn log(home: &Home) -> Vec<Value> {
    let lines = Look::open(home).and_then(|look| look.lines(0, usize::MAX));
    let lines = match lines {
        Ok(lines) => lines,
        Err(error) => panic!("{error}"),
    };
    lines.iter().map(|(_, line)| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}
