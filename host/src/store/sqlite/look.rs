//! What an operator may see of a home: its log and its agents' state. Nothing here can write.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::database::Place;
use super::read;
use crate::home::Home;
use crate::store::StoreError;

/// A home's database, open for looking.
pub struct Look {
    place: Place,
    connection: Connection,
}

/// What one agent keeps with one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// The agent.
    pub agent: String,
    /// The component's name.
    pub component: String,
    /// Keys.
    pub keys: u64,
    /// What counts against its quota (bytes).
    pub bytes: u64,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The agent.
    pub agent: String,
    /// The component's name.
    pub component: String,
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The line of the log whose commit last set it.
    pub version: u64,
    /// What it holds.
    pub value: Vec<u8>,
}

impl Look {
    /// Opens the database of a home that has one.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(home: &Home) -> Result<Self, StoreError> {
        let path = home.database();
        if !path.exists() {
            return Err(StoreError::Io(format!("nothing has run in the home `{}` yet", home.path().display())));
        }
        let place = Place::new(home, None);
        // Checks and migrates first: what is read afterwards is what this version knows.
        drop(place.open()?);
        Ok(Self { connection: place.open_reader()?, place })
    }

    /// The home's folder.
    pub fn folder(&self) -> &Path {
        self.place.home().path()
    }

    /// What is read while this is held is of one moment, whoever prunes meanwhile.
    pub(crate) fn moment(&self) -> Result<Transaction<'_>, StoreError> {
        self.read(self.connection.unchecked_transaction())
    }

    /// Up to `count_max` lines of the log after the line `after`, oldest first, with their numbers.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn lines(&self, after: u64, count_max: usize) -> Result<Vec<(u64, String)>, StoreError> {
        self.read(read::lines(&self.connection, after, count_max))
    }

    /// The number of the newest line; zero if there is none.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn newest(&self) -> Result<u64, StoreError> {
        self.read(self.connection.query_row("SELECT ifnull(max(seq), 0) FROM log", [], |row| row.get(0)))
    }

    /// The home's id.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn home_id(&self) -> Result<String, StoreError> {
        self.meta("home").map(Option::unwrap_or_default)
    }

    /// The public key that signs the log, in Base64, once there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn key(&self) -> Result<Option<String>, StoreError> {
        self.meta("log-key")
    }

    /// Who keeps how much, in order.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn spaces(&self) -> Result<Vec<SpaceInfo>, StoreError> {
        let sql = "SELECT agent, component, bytes, (SELECT count(*) FROM bucket JOIN kv ON kv.bucket = bucket.id \
                   WHERE bucket.space = space.id) FROM space ORDER BY agent, component";
        self.read(self.connection.prepare(sql).and_then(|mut statement| {
            let rows = statement.query_map([], |row| {
                Ok(SpaceInfo { agent: row.get(0)?, component: row.get(1)?, bytes: row.get(2)?, keys: row.get(3)? })
            })?;
            rows.collect()
        }))
    }

    /// Hands every key of an agent to `each`, in order; of one component or bucket only, if one is named. As of one
    /// moment.
    ///
    /// # Errors
    /// The database cannot be read; and whatever `each` says.
    pub fn keys<E: From<StoreError>>(
        &self,
        agent: &str,
        component: Option<&str>,
        bucket: Option<&str>,
        mut each: impl FnMut(KeyInfo) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT space.component, bucket.name, kv.key, kv.version, kv.value FROM space \
                   JOIN bucket ON bucket.space = space.id JOIN kv ON kv.bucket = bucket.id \
                   WHERE space.agent = ?1 AND space.component = ifnull(?2, space.component) \
                   AND bucket.name = ifnull(?3, bucket.name) ORDER BY space.component, bucket.name, kv.key";
        let failed = |error: rusqlite::Error| E::from(self.place.error(&error));
        let mut statement = self.connection.prepare(sql).map_err(failed)?;
        let mut rows = statement.query(params![agent, component, bucket]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let key = || {
                Ok(KeyInfo {
                    agent: agent.to_owned(),
                    component: row.get(0)?,
                    bucket: row.get(1)?,
                    key: row.get(2)?,
                    version: row.get(3)?,
                    value: row.get(4)?,
                })
            };
            each(key().map_err(failed)?)?;
        }
        Ok(())
    }

    fn meta(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT value FROM meta WHERE name = ?1";
        self.read(self.connection.query_row(sql, [name], |row| row.get(0)).optional())
    }

    fn read<T>(&self, found: rusqlite::Result<T>) -> Result<T, StoreError> {
        found.map_err(|error| self.place.error(&error))
    }
}
