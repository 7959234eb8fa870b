//! An evidence bundle is verified by its script, which finds nothing but the tools that it names; and whatever is changed in
//! one is found and named, also by whoever signs the list of files anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use estop::{Cause, HaltScope, Interrupt};
use estop_tests::guests::root;
use estop_tests::{load, within};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::attackers::is_checkpoint;
use crate::command::{Ended, Running};
use crate::forge::{Key, rechained, sha256};
use crate::place::Place;

/// What the script says that it needs, and nothing else.
const TOOLS: [&str; 19] = [
    "sh",
    "sha256sum",
    "jq",
    "sqlite3",
    "openssl",
    "mktemp",
    "base64",
    "split",
    "seq",
    "paste",
    "sort",
    "comm",
    "cut",
    "head",
    "tail",
    "wc",
    "tr",
    "rm",
    "mkdir",
];

/// A folder with these tools, as the only one where programs are found. None if this machine does not have them all.
fn tools() -> Option<&'static Path> {
    static TOOLS_FOLDER: OnceLock<Option<TempDir>> = OnceLock::new();
    let made = TOOLS_FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for tool in TOOLS.iter().chain(&["dirname"]) {
            let Some(found) = std::env::split_paths(&path).map(|path| path.join(tool)).find(|path| path.is_file())
            else {
                println!("SKIPPED: `{tool}` is not on this machine; .ci/tools.sh installs it where that can be done");
                return None;
            };
            symlink(found, folder.path().join(tool)).unwrap();
        }
        Some(folder)
    });
    made.as_ref().map(TempDir::path)
}

/// The script as it is in the sources, on whatever is in this folder.
fn verify_with(tools: &Path, script: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(tools.join("sh"));
    command.arg(script).args(args).env_clear().env("PATH", tools);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command).ended()
}

fn verify(tools: &Path, args: &[&str]) -> Ended {
    verify_with(tools, &root().join("host/src/log/bundle/verify.sh"), args)
}

/// The home that was exported, its bundle, and the key that signed first.
struct Evidence {
    place: Place,
    first_key: String,
}

impl Evidence {
    fn bundle(&self) -> PathBuf {
        self.place.file("bundle")
    }
}

/// Everything that can be in a log has happened in this home.
fn evidence() -> &'static Evidence {
    static EVIDENCE: OnceLock<Evidence> = OnceLock::new();
    EVIDENCE.get_or_init(|| {
        let place = Place::lived();
        place.tool("kv", &["set", "-i", r#"{"key":"what-stays-at-home","value":1}"#]).has(0, &[]);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(oversight(&place));
        drop(runtime);
        let first_key = place.keep_key("first.pem");
        place.estop(&["log", "rotate-key"]).has(0, &[]);
        place.call();
        let checkpoints: Vec<u64> = place.entries().iter().filter(|e| e["kind"] == "checkpoint").map(seq).collect();
        let old = place.arg("old.jsonl");
        place.estop(&["log", "prune", "--before", &checkpoints[2].to_string(), "--to", &old]).has(0, &[]);
        place.call();
        let said = place.estop(&["log", "export", "--bundle", &place.arg("bundle")]).has(0, &["verify.sh"]);
        assert_eq!(said.stdout, "");
        Evidence { place, first_key }
    })
}

fn seq(entry: &Value) -> u64 {
    entry["seq"].as_u64().unwrap()
}

/// A stop, a halt, its lifting, a drill, and a halt that stays.
async fn oversight(place: &Place) {
    let host = estop_tests::small().store(place.store()).build().unwrap();
    let runaway = load(&host, "runaway").await;
    let call = host.agent("ada").call(&runaway, "spin", json!({})).start();
    let _ =
        call.interrupt_with(Interrupt::new(Cause::Operator, "alice").reason("too long | **really**\n# not a title"));
    within(call.outcome()).await;
    let halt = host.halt(HaltScope::Agent("ada".into()), "alice", "it writes nonsense").unwrap();
    host.lift(halt.halt, "bob", "it is mended").unwrap();
    let drilled = within(host.drill("carol", 2)).await.unwrap();
    assert_eq!(drilled.not_held, None);
    host.halt(HaltScope::Tool("shred".into()), "alice", "never again").unwrap();
    within(host.shutdown()).await;
}

/// A copy of the bundle, to be damaged.
struct Copy(TempDir);

impl Copy {
    fn of(bundle: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files(bundle) {
            let path = folder.path().join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arg(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.path(name)).unwrap().lines().map(str::to_owned).collect()
    }

    fn set_lines(&self, name: &str, lines: &[String]) {
        fs::write(self.path(name), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }

    /// Lets the list of files and its signature fit to what is there now.
    fn sealed_by(&self, key: &Key) {
        let mut sums = String::new();
        for (name, _) in files(self.0.path()).iter().filter(|(name, _)| *name != "SHA256SUMS" && *name != "bundle.json")
        {
            let sum = crate::command::tool("sha256sum", &[self.path(name).to_str().unwrap()]).has(0, &[]).stdout;
            sums.push_str(&format!("{}  {name}\n", &sum[..64]));
        }
        fs::write(self.path("SHA256SUMS"), &sums).unwrap();
        let bundle: Value = serde_json::from_slice(&fs::read(self.path("bundle.json")).unwrap()).unwrap();
        let field = |name: &str| bundle["bundle"][name].to_string();
        let home = bundle["bundle"]["home"].as_str().unwrap();
        let number = |name: &str| bundle["bundle"][name].as_u64().unwrap();
        let sum = sha256(sums.strip_suffix('\n').unwrap());
        let signature = key.bundle(home, number("first"), number("last"), &sum);
        let (first, last, key) = (field("first"), field("last"), key.public());
        let line = format!(
            "{{\"bundle\":{{\"home\":\"{home}\",\"first\":{first},\"last\":{last},\"sha256\":\"{sum}\",\"key\":\"{key}\",\
             \"signature\":\"{signature}\"}}}}\n"
        );
        fs::write(self.path("bundle.json"), line).unwrap();
    }
}

/// Every file of a bundle by its name there.
fn files(bundle: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in ["", "keys/", "halts/"] {
        for entry in fs::read_dir(bundle.join(folder)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let name = format!("{folder}{}", entry.file_name().to_str().unwrap());
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

#[track_caller]
fn rejected(tools: &Path, copy: &Copy, words: &[&str]) {
    let words = [&["verify: FAILED: "], words].concat();
    assert_eq!(verify(tools, &[copy.arg()]).has(1, &words).stdout, "");
}

/// What is exported has everything in it and no secret, is for its owner alone, and is not written over anything.
#[test]
fn a_bundle_has_everything_and_no_secret() {
    let evidence = evidence();
    let bundle = evidence.bundle();
    let found = files(&bundle);
    let halts: Vec<_> = found.keys().filter(|name| name.starts_with("halts/halt-")).collect();
    assert_eq!(halts.len(), 1);
    let names: Vec<_> = found.keys().filter(|name| !name.starts_with("halts/")).map(String::as_str).collect();
    let expected = [
        "SHA256SUMS",
        "bundle.json",
        "checkpoints.jsonl",
        "drills.jsonl",
        "keys/1.pem",
        "keys/2.pem",
        "log.db",
        "log.jsonl",
        "report.md",
        "verify.sh",
    ];
    assert_eq!(names, expected);
    for name in found.keys() {
        assert_eq!(fs::metadata(bundle.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    for folder in ["", "keys", "halts"] {
        assert_eq!(fs::metadata(bundle.join(folder)).unwrap().mode() & 0o777, 0o700, "{folder}");
    }
    assert_eq!(found["verify.sh"], fs::read(root().join("host/src/log/bundle/verify.sh")).unwrap());

    let secret = fs::read_to_string(evidence.place.home().join("log-key.pem")).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    for (name, bytes) in &found {
        let has = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
        assert!(!has(secret) && !has("PRIVATE KEY"), "{name} has the private key");
        assert!(!has("what-stays-at-home"), "{name} has state");
    }

    let report = String::from_utf8(found["report.md"].clone()).unwrap();
    for words in [
        "too long \\| \\*\\*really\\*\\* \\# not a title",
        "| alice | halted | agent ada",
        "| bob | lifted | agent ada",
        "it is mended",
        "| carol | spin | 2 |",
        "tool shred",
        "old.jsonl",
        "What this does not show",
    ] {
        assert!(report.contains(words), "`{words}` is not in: {report}");
    }
    let drills = String::from_utf8(found["drills.jsonl"].clone()).unwrap();
    assert_eq!(drills.lines().count(), 1);
    // Checkpoints are in the form in which others are kept.
    let place = &evidence.place;
    let kept = bundle.join("checkpoints.jsonl");
    place.estop(&["log", "verify", "--checkpoint", kept.to_str().unwrap()]).has(0, &[]);
    place.estop(&["log", "verify", bundle.join("log.jsonl").to_str().unwrap()]).has(0, &[]);

    place.estop(&["log", "export", "--bundle", &place.arg("bundle")]).has(1, &["not an empty folder"]);
    place.estop(&["log", "export", "--bundle", &place.arg("old.jsonl")]).has(1, &["not an empty folder"]);
    assert!(files(&bundle) == found, "it was changed");
    let left: Vec<_> = fs::read_dir(place.file(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".estop-bundle")), "{left:?}");
}

/// Shows 9: with nothing but its tools the script accepts what was exported; with the right key, and with checkpoints that
/// were kept before.
#[test]
fn the_script_alone_verifies_a_bundle() {
    let Some(tools) = tools() else { return };
    let evidence = evidence();
    let bundle = evidence.bundle();
    let text = verify_with(tools, &bundle.join("verify.sh"), &[]).has(0, &[]);
    assert!(text.stdout.contains("verified: home-") && text.stdout.contains("is for you to know"), "{text:?}");
    assert_eq!(text.stderr, "");
    let bundle = bundle.to_str().unwrap();
    let kept = evidence.bundle().join("checkpoints.jsonl");
    let args = ["--key", &evidence.first_key, "--checkpoints", kept.to_str().unwrap(), bundle];
    assert!(verify(tools, &args).has(0, &[]).stdout.contains("by the key you gave"));
    // A log that was never pruned, into an empty folder that is there.
    let place = Place::lived();
    fs::create_dir(place.file("empty")).unwrap();
    place.estop(&["log", "export", "--bundle", &place.arg("empty")]).has(0, &[]);
    let whole = verify(tools, &[&place.arg("empty")]).has(0, &[]).stdout;
    assert!(whole.contains(&format!("lines 1 to {}", place.entries().len())), "{whole}");
    // Of another home: another key, and other checkpoints.
    let other = Place::new();
    other.call();
    let other_key = other.keep_key("other.pem");
    verify(tools, &["--key", &other_key, bundle]).has(1, &["has not signed anything"]);
    other.estop(&["log", "export", "--bundle", &other.arg("bundle")]).has(0, &[]);
    let foreign = other.arg("bundle/checkpoints.jsonl");
    verify(tools, &["--checkpoints", &foreign, bundle]).has(1, &["another home"]);
    verify(tools, &["--what"]).has(2, &["usage"]);
    verify(tools, &[&other.arg("nowhere")]).has(2, &[]);
}

/// The key's owner writes the log anew. Only checkpoints that were kept elsewhere show it.
#[test]
fn kept_checkpoints_show_a_log_that_its_owner_wrote_anew() {
    let Some(tools) = tools() else { return };
    let place = Place::lived();
    let other = place.copied();
    for (place, account) in [(&place, "one"), (&other, "two")] {
        place.tool("kv", &["set", "--agent", account, "-i", r#"{"key":"a","value":2}"#]).has(0, &[]);
        place.estop(&["log", "export", "--bundle", &place.arg("bundle")]).has(0, &[]);
    }
    let kept = place.arg("bundle/checkpoints.jsonl");
    verify(tools, &["--checkpoints", &kept, &place.arg("bundle")]).has(0, &[]);
    verify(tools, &[&other.arg("bundle")]).has(0, &[]);
    verify(tools, &["--checkpoints", &kept, &other.arg("bundle")]).has(1, &["it was written anew"]);
    // And one that was cut.
    place.call();
    place.estop(&["log", "export", "--bundle", &place.arg("later")]).has(0, &[]);
    let later = place.arg("later/checkpoints.jsonl");
    verify(tools, &["--checkpoints", &later, &place.arg("bundle")]).has(1, &["its end was removed"]);
}

/// One bit in any file, a file too few or too many: found, and named.
#[test]
fn every_changed_file_is_found_and_named() {
    let Some(tools) = tools() else { return };
    let bundle = evidence().bundle();
    for (name, bytes) in files(&bundle) {
        let copy = Copy::of(&bundle);
        let step = if name == "bundle.json" { 11 } else { bytes.len().div_ceil(2).max(1) };
        let places = (0..bytes.len()).step_by(step).chain([bytes.len() - 1]);
        for at in places {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(copy.path(&name), &damaged).unwrap();
            rejected(tools, &copy, &[&name]);
        }
        fs::write(copy.path(&name), bytes.repeat(2)).unwrap();
        rejected(tools, &copy, &[&name]);
        fs::remove_file(copy.path(&name)).unwrap();
        rejected(tools, &copy, &[&name]);
        symlink(bundle.join(&name), copy.path(&name)).unwrap();
        rejected(tools, &copy, &[&name]);
    }
    for name in ["more", ".hidden", "keys/3.pem", "halts/.hidden"] {
        let copy = Copy::of(&bundle);
        fs::write(copy.path(name), "x").unwrap();
        rejected(tools, &copy, &[name, "does not belong"]);
    }
    // What says the same in other letters was not exported either.
    let line = fs::read_to_string(bundle.join("bundle.json")).unwrap();
    let (before, _) = line.split_once("==\"}}").unwrap();
    let (letters, last) = before.split_at(before.len() - 1);
    // Of the last letter of a signature two bits count: the next letter decodes to the same.
    let neighbour = char::from(last.as_bytes()[0] + 1);
    for other in [
        line.replacen(':', ": ", 1),
        line.replace("}}", ",\"note\":1}}"),
        format!("{letters}{neighbour}==\"}}}}\n"),
        format!("{line}\n"),
    ] {
        let copy = Copy::of(&bundle);
        fs::write(copy.path("bundle.json"), other).unwrap();
        rejected(tools, &copy, &["bundle.json"]);
    }
    let copy = Copy::of(&bundle);
    fs::create_dir(copy.path("folder")).unwrap();
    rejected(tools, &copy, &["folder"]);
    // Unharmed, it is accepted: so it was not the copying.
    verify(tools, &[Copy::of(&bundle).arg()]).has(0, &[]);
}

/// Whoever has the home's key can sign the list of files anew, and still cannot change a line, nor what was taken from the log.
#[test]
fn what_does_not_fit_to_the_log_is_found_however_it_is_sealed() {
    let Some(tools) = tools() else { return };
    let evidence = evidence();
    let bundle = evidence.bundle();
    let key = Key::of(&evidence.place);
    let sealed = Copy::of(&bundle);
    sealed.sealed_by(&key);
    verify(tools, &[sealed.arg()]).has(0, &[]);
    let sealed = Copy::of(&bundle);
    sealed.sealed_by(&Key::new(7));
    rejected(tools, &sealed, &["bundle.json", "and the log by"]);

    let log = Copy::of(&bundle).lines("log.jsonl");
    let (entries, end) = (&log[..log.len() - 1], log.last().unwrap());
    let checkpoints: Vec<usize> = (0..entries.len()).filter(|at| is_checkpoint(&entries[*at])).collect();
    let lie = entries.iter().position(|line| line.contains("\"actor\":\"alice\"")).unwrap();
    let with_end = |mut lines: Vec<String>| {
        lines.push(end.clone());
        lines
    };
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = entries.to_vec();
        change(&mut lines);
        with_end(lines)
    };
    let lied =
        |lines: &mut Vec<String>| lines[lie] = lines[lie].replace("\"actor\":\"alice\"", "\"actor\":\"mallory\"");
    let mut rewritten = entries.to_vec();
    lied(&mut rewritten);
    let logs: Vec<(&str, Vec<String>, &str)> = vec![
        ("removed", changed(&|lines| drop(lines.remove(lie))), "has"),
        ("doubled", changed(&|lines| lines.insert(lie, lines[lie].clone())), "has"),
        ("in the place of another", changed(&|lines| lines[lie] = lines[lie - 1].clone()), "does not fit"),
        ("swapped", changed(&|lines| lines.swap(lie, lie + 1)), "does not fit"),
        ("checkpoints swapped", changed(&|lines| lines.swap(checkpoints[0], checkpoints[1])), "entry 1 does not fit"),
        ("a lie", changed(&|lines| lied(lines)), "does not fit"),
        ("a lie that fits", with_end(rechained(&rewritten, None)), "its signature is wrong"),
        (
            "another's signatures",
            with_end(rechained(&rewritten, Some(&Key::new(7)))),
            "no entry says that it took over",
        ),
        ("no JSON", changed(&|lines| lines[lie] = "x".into()), "does not fit"),
        ("an empty line", changed(&|lines| lines[lie] = String::new()), "does not fit"),
        ("without its end", entries.to_vec(), "has"),
        ("two ends", with_end(with_end(entries.to_vec())), "has"),
    ];
    for (what, lines, words) in logs {
        let copy = Copy::of(&bundle);
        copy.set_lines("log.jsonl", &lines);
        copy.sealed_by(&key);
        println!("{what}");
        rejected(tools, &copy, &["log.jsonl", words]);
    }

    type Attack<'a> = (&'a str, &'a dyn Fn(&Copy));
    let attacks: [Attack<'_>; 9] = [
        ("checkpoints.jsonl", &|copy| {
            let mut lines = copy.lines("checkpoints.jsonl");
            lines.swap(0, 1);
            copy.set_lines("checkpoints.jsonl", &lines);
        }),
        ("checkpoints.jsonl", &|copy| copy.set_lines("checkpoints.jsonl", &copy.lines("checkpoints.jsonl")[1..])),
        ("drills.jsonl", &|copy| copy.set_lines("drills.jsonl", &[])),
        ("drills.jsonl", &|copy| {
            copy.set_lines("drills.jsonl", &[copy.lines("drills.jsonl"), copy.lines("drills.jsonl")].concat())
        }),
        ("log.db: row", &|copy| database(copy, "UPDATE log SET line = replace(line, 'alice', 'mallory')")),
        ("log.db", &|copy| database(copy, "DELETE FROM log WHERE seq = (SELECT max(seq) FROM log)")),
        ("log.db", &|copy| database(copy, "UPDATE log SET seq = seq + 1000000")),
        ("keys/1.pem", &|copy| {
            fs::copy(copy.path("keys/2.pem"), copy.path("keys/1.pem")).unwrap();
        }),
        ("halts/halt-", &|copy| {
            let name = files(copy.0.path()).into_keys().find(|name| name.starts_with("halts/halt-")).unwrap();
            let text = fs::read_to_string(copy.path(&name)).unwrap();
            fs::write(copy.path(&name), text.replace("halt-0", "halt-1")).unwrap();
        }),
    ];
    for (word, attack) in attacks {
        let copy = Copy::of(&bundle);
        attack(&copy);
        copy.sealed_by(&key);
        rejected(tools, &copy, &[word]);
    }
    // A halt that was lifted without an entry is pointed at.
    let copy = Copy::of(&bundle);
    let name = files(&bundle).into_keys().find(|name| name.starts_with("halts/halt-")).unwrap();
    fs::remove_file(copy.path(&name)).unwrap();
    copy.sealed_by(&key);
    verify(tools, &[copy.arg()]).has(0, &["NOTE: the log does not say that halt-"]);
}

fn database(copy: &Copy, sql: &str) {
    let database = rusqlite::Connection::open(copy.path("log.db")).unwrap();
    database.execute_batch(sql).unwrap();
    drop(database);
}
