//! A machine with users, folders and services of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{Ended, PATIENCE, Running, tool};

pub(crate) const HALTS: &str = "/var/lib/estop/halts";
/// Who there is, and in which group.
const USERS: [(&str, Option<&str>); 5] = [
    ("op", Some("estop-operators")),
    ("chief", Some("estop-admins")),
    ("ag1", Some("estop-agents")),
    ("ag2", Some("estop-agents")),
    ("out", None),
];

/// See the module's documentation.
pub(crate) struct Machine {
    /// Where everybody can read and run.
    place: PathBuf,
}

#[track_caller]
fn must(program: &str, args: &[&str]) -> String {
    tool(program, args).has(0, &[]).stdout
}

/// Until it is so.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Machine {
    /// In mounts that nobody else sees.
    pub(crate) fn new(guests: &Path) -> Self {
        must("mount", &["-t", "tmpfs", "-o", "mode=755", "estop-test", "/run"]);
        must("mount", &["-t", "tmpfs", "-o", "mode=755", "estop-test", "/var/lib"]);
        // Root looks for hosts there: those of others are none of ours.
        must("mount", &["-t", "tmpfs", "-o", "mode=1777", "estop-test", "/tmp"]);
        let place = PathBuf::from("/run/test");
        let etc = place.join("etc");
        fs::create_dir_all(&etc).unwrap();
        must("cp", &["-a", "/etc/.", etc.to_str().unwrap()]);
        must("mount", &["--bind", etc.to_str().unwrap(), "/etc"]);
        let machine = Self { place };
        let bin = machine.program();
        fs::create_dir_all(bin.parent().unwrap()).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_estop"), &bin).unwrap();
        fs::copy(guests.join("runaway.wasm"), machine.tool()).unwrap();
        for path in [machine.place.clone(), bin, machine.tool()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        machine
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.place.join("bin/estop")
    }

    pub(crate) fn tool(&self) -> PathBuf {
        self.place.join("runaway.wasm")
    }

    /// A folder of this user alone.
    pub(crate) fn folder_of(&self, user: &str, name: &str) -> PathBuf {
        let folder = self.place.join(format!("{user}-{name}"));
        if !folder.exists() {
            fs::create_dir(&folder).unwrap();
            must("chown", &[&format!("{user}:"), folder.to_str().unwrap()]);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        folder
    }

    pub(crate) fn add_users(&self) {
        for (user, group) in USERS {
            let groups = group.map_or(vec![], |group| vec!["--groups", group]);
            must("useradd", &[&["--no-create-home", "--user-group"][..], &groups, &[user]].concat());
        }
    }

    pub(crate) fn remove_users(&self) {
        for (user, _) in USERS {
            // What was killed may take a moment to be gone.
            let gone = || tool("userdel", &[user]).code == Some(0);
            until("nothing of a user to be left", gone);
        }
    }

    /// A program as this user, who has nothing in common with whoever runs the tests.
    pub(crate) fn command(&self, user: &str, place: &str, program: &str, args: &[&str]) -> Command {
        let folder = self.folder_of(user, place);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--init-groups", "--"]).arg(program).args(args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("COLUMNS", "100").env("HOME", &folder);
        command.env("XDG_RUNTIME_DIR", &folder).env("ESTOP_HOME", folder.join("home"));
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, user: &str, program: &str, args: &[&str]) -> Ended {
        Running::start(self.command(user, "a", program, args)).ended()
    }

    #[track_caller]
    pub(crate) fn estop(&self, user: &str, args: &[&str]) -> Ended {
        self.run(user, self.program().to_str().unwrap(), args)
    }

    #[track_caller]
    pub(crate) fn ps(&self, user: &str) -> Value {
        self.estop(user, &["ps", "--json"]).has(0, &[]).json()
    }

    /// A call of a host of the user's own, with everything that a user may choose.
    pub(crate) fn own_call(&self, user: &str, place: &str, tool: &str, input: &str, agent: &str) -> Running {
        let (program, component) = (self.program(), self.tool());
        let args = ["run", component.to_str().unwrap(), tool, "-i", input, "--agent", agent, "--deadline", "10m"];
        Running::start(self.command(user, place, program.to_str().unwrap(), &args))
    }

    /// One that would end at once.
    #[track_caller]
    pub(crate) fn short(&self, user: &str, place: &str, agent: &str) -> Ended {
        self.own_call(user, place, "polite", r#"{"steps":1}"#, agent).ended()
    }

    /// One that spins.
    #[track_caller]
    pub(crate) fn spinning(&self, user: &str, place: &str) -> Running {
        let call = self.own_call(user, place, "write_then_spin", r#"{"keys":1,"value_bytes":1}"#, "anybody");
        call.says("written");
        call
    }

    /// The service.
    #[track_caller]
    pub(crate) fn serve(&self) -> Running {
        let config = format!("[tools.runaway]\npath = \"{}\"\n", self.tool().display());
        fs::write("/etc/estop.toml", config).unwrap();
        let program = self.program();
        let mut serve =
            self.command("estop", "a", program.to_str().unwrap(), &["serve", "--config", "/etc/estop.toml"]);
        serve.env("ESTOP_HOME", "/var/lib/estop/home");
        let host = Running::start(serve);
        host.says("estop: serving");
        host
    }

    /// A call of the service that spins: the stream of its events, its id and its token.
    #[track_caller]
    pub(crate) fn spin(&self, user: &str, host: &Running) -> (Running, String, String) {
        let socket = self.socket(host, "agent.sock");
        let body = json!({"tool": "spin", "deadline_us": 600_000_000}).to_string();
        let args = ["-sN", "--unix-socket", &socket, "-d", &body, "http://estop/v1/call"];
        let stream = Running::start(self.command(user, "a", "curl", &args));
        let begun = loop {
            if let Some(data) = stream.prints().strip_prefix("data: ") {
                break serde_json::from_str::<Value>(data).unwrap();
            }
        };
        let text = |name: &str| begun[name].as_str().unwrap().to_owned();
        (stream, text("call"), text("token"))
    }

    pub(crate) fn socket(&self, host: &Running, name: &str) -> String {
        // `setpriv` becomes what it runs.
        format!("/run/estop/{}/{}/{name}", must("id", &["-u", "estop"]).trim(), host.child.id())
    }

    /// Asks through a socket, as this user. None: there was no connection.
    #[track_caller]
    pub(crate) fn ask(&self, user: &str, socket: &str, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let (url, body) = (format!("http://estop{path}"), body.to_string());
        let mut args =
            vec!["-s", "--max-time", "60", "-w", "\n%{http_code}", "--unix-socket", socket, "-X", method, &url];
        if method != "GET" {
            args.extend(["-d", &body]);
        }
        let asked = self.run(user, "curl", &args);
        if asked.code == Some(7) {
            return None;
        }
        assert_eq!(asked.code, Some(0), "{asked:?}");
        let (answer, status) = asked.stdout.rsplit_once('\n').unwrap();
        Some((status.parse().unwrap(), serde_json::from_str(answer).unwrap_or(Value::Null)))
    }

    /// The service's log.
    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Value> {
        let program = self.program();
        let mut log = self.command("estop", "a", program.to_str().unwrap(), &["log", "show", "--json"]);
        log.env("ESTOP_HOME", "/var/lib/estop/home");
        Running::start(log).ended().has(0, &[]).jsons()
    }

    /// Until the service has entered that.
    #[track_caller]
    pub(crate) fn entered(&self, kind: &str, fits: impl Fn(&Value) -> bool) {
        until(&format!("an entry {kind}"), || self.log().iter().any(|entry| entry["kind"] == kind && fits(entry)));
    }

    /// What is latched for the machine.
    pub(crate) fn latched(&self) -> Vec<String> {
        let names = fs::read_dir(format!("{HALTS}/latched")).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('.'));
        names.map(|name| name.trim_end_matches(".json").to_owned()).collect()
    }
}
