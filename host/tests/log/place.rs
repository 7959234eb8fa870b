//! Homes of the tests' own: one that has lived, which is made once and copied for whoever damages it, and empty ones.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use estop::Home;
use estop::store::sqlite::Sqlite;
use estop_tests::guests;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Ended, Running, estop};

/// A home, in a folder that goes away with the test.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// Where a home could be, and none is.
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// A copy of a home that has lived: see [`live`].
    pub(crate) fn lived() -> Self {
        static LIVED: OnceLock<Files> = OnceLock::new();
        Self::of(LIVED.get_or_init(|| live().files()))
    }

    /// Another home with the same in it.
    pub(crate) fn copied(&self) -> Self {
        Self::of(&self.files())
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.file("home")
    }

    /// A path beside the home.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same, as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// The store of the home, in this process.
    pub(crate) fn store(&self) -> Sqlite {
        Sqlite::open(&Home::open(self.home()).unwrap()).unwrap()
    }

    pub(crate) fn estop(&self, args: &[&str]) -> Ended {
        Running::start(estop(&self.home(), args)).ended()
    }

    /// `estop run` of a guest.
    pub(crate) fn tool(&self, guest: &str, args: &[&str]) -> Ended {
        self.estop(&[&["run", guests::path(guest).to_str().unwrap()], args].concat())
    }

    /// One call that commits.
    #[track_caller]
    pub(crate) fn call(&self) -> Ended {
        self.tool("kv", &["add", "-i", r#"{"key":"n","delta":1}"#]).has(0, &[])
    }

    /// The public key, as somebody would keep it elsewhere.
    pub(crate) fn keep_key(&self, name: &str) -> String {
        fs::copy(self.home().join("log-key.pub.pem"), self.file(name)).unwrap();
        self.arg(name)
    }

    /// The log as a file, by the command.
    #[track_caller]
    pub(crate) fn export(&self, name: &str) -> Vec<u8> {
        let path = self.arg(name);
        self.estop(&["log", "export", &path]).has(0, &[]);
        fs::read(path).unwrap()
    }

    /// The database as SQLite itself opens it.
    pub(crate) fn database(&self) -> Connection {
        Connection::open(self.home().join("estop.db")).unwrap()
    }

    /// The lines of the log as they are in the database.
    pub(crate) fn lines(&self) -> Vec<String> {
        let database = self.database();
        let mut statement = database.prepare("SELECT line FROM log ORDER BY seq").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The entries of the log.
    pub(crate) fn entries(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Calls that were completed, failed, stopped by a deadline and by fuel, refused and in conflict, in a dozen processes.
fn live() -> Place {
    let place = Place::new();
    place.tool("kv", &["set", "--agent", "ada", "-i", r#"{"key":"a","value":1}"#]).has(0, &[]);
    place.tool("kv", &["write_many", "--agent", "ada", "-i", r#"{"count":3,"bytes":10}"#]).has(0, &[]);
    place.tool("ledger", &["open", "-i", r#"{"account":"ada","cents":10000}"#]).has(0, &[]);
    place.tool("ledger", &["open", "-i", r#"{"account":"bob","cents":0}"#]).has(0, &[]);
    place.tool("ledger", &["transfer", "-i", r#"{"from":"ada","to":"bob","cents":250}"#]).has(0, &[]);
    place.tool("runaway", &["spin", "--deadline", "50ms"]).has(14, &[]);
    place.tool("runaway", &["spin", "--fuel", "1M", "--agent", "bob"]).has(15, &[]);
    place.tool("kv", &["get", "--agent", "../x", "-i", r#"{"key":"a"}"#]).has(6, &["../x"]);
    place.tool("kv", &["commit_then_fail", "-i", r#"{"key":"b","value":7}"#]).has(3, &[]);
    conflict(&place);
    place
}

/// A call that reads and waits, while another writes. Whoever is slow today gets more time.
fn conflict(place: &Place) {
    let kv = guests::path("kv");
    for wait_ms in [300, 3_000, 30_000] {
        let input = json!({"key": "c", "wait_ms": wait_ms}).to_string();
        let args = ["run", kv.to_str().unwrap(), "read_then_wait", "--deadline", "1m", "-i", &input];
        let waits = Running::start(estop(&place.home(), &args));
        waits.says("progress 1/2");
        place.tool("kv", &["set", "-i", r#"{"key":"c","value":1}"#]).has(0, &[]);
        if waits.ended().code == Some(7) {
            return;
        }
    }
    panic!("no call met another");
}

/// What is in a home that nobody uses at the moment, by its path there.
struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Place {
    fn files(&self) -> Files {
        let mut files = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.home().join(&folder)).unwrap().map(Result::unwrap) {
                let path = folder.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(path);
                } else if entry.file_name() != "reserve" {
                    files.push((path, fs::read(entry.path()).unwrap()));
                }
            }
        }
        Files(files)
    }

    fn of(files: &Files) -> Self {
        let place = Self::new();
        Home::open(place.home()).unwrap();
        for (path, bytes) in &files.0 {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(place.home().join(path)).unwrap().write_all(bytes).unwrap();
        }
        place
    }
}
