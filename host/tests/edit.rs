//! Promise 8 for files: `edit` renames an identifier across a copy of this repository. Stopped half-way, nothing is changed;
//! killed with `kill -9` at any moment of its commit, everything is or nothing, as the log says.

mod ledger;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use estop::log::Entry;
use estop::{CallLimits, Cause, Component, End, Grantee, Grants, Home, Host, Outcome, Source, WorkspaceGrant};
use estop_tests::home::{Temporary, temporary};
use estop_tests::{PATIENCE, guests, small, within};
use serde_json::{Value, json};

/// "500 random moments of such commits".
const KILLS: usize = 500;
/// Files in the folder of the kills.
const FILES: usize = 30;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn tree(folder: &Path) -> Tree {
    let mut all = Tree::new();
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in fs::read_dir(&here).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                left.push(path.clone());
                all.insert(path, Vec::new());
            } else {
                let content = fs::read(&path).unwrap();
                all.insert(path, content);
            }
        }
    }
    all
}

/// This repository, without what is built.
fn copy_of_this_repository(to: &Path) {
    let mut left = vec![PathBuf::new()];
    while let Some(here) = left.pop() {
        fs::create_dir_all(to.join(&here)).unwrap();
        for entry in fs::read_dir(guests::root().join(&here)).unwrap().map(Result::unwrap) {
            let (path, name) = (here.join(entry.file_name()), entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && name != "target" && name != ".git" {
                left.push(path);
            } else if kind.is_file() {
                fs::copy(entry.path(), to.join(path)).unwrap();
            }
        }
    }
}

async fn host(home: &Temporary, folder: &Path) -> Host {
    let limits = CallLimits { deadline: PATIENCE, ..CallLimits::default() };
    let grants = Grants::new().workspace(WorkspaceGrant::new(folder));
    let host = small().store_arc(home.store()).cache(home.home()).call_limits(limits);
    host.grant(Grantee::everyone(), grants).build().unwrap()
}

async fn load(host: &Host, guest: &str) -> Component {
    host.load(Source::file(guests::path(guest))).await.unwrap()
}

fn rename(from: &str, to: &str) -> Value {
    json!({ "find": from, "replace": to, "word": true })
}

#[tokio::test]
async fn a_rename_across_this_repository_is_complete_or_did_not_happen() {
    let home = temporary();
    let folder = home.folder().join("work");
    copy_of_this_repository(&folder);
    let before = tree(&folder);
    let host = host(&home, &folder).await;
    let edit = load(&host, "edit").await;

    let call = host.agent("default").call(&edit, "replace", rename("Interrupt", "Halting")).start();
    let mut progress = call.progress();
    progress.mark_changed();
    within(async {
        loop {
            let now = progress.borrow_and_update().clone();
            if now.is_some_and(|now| now.total.is_some_and(|total| now.done >= total / 2)) {
                break;
            }
            progress.changed().await.unwrap();
        }
    })
    .await;
    let _ = call.interrupt(Cause::Operator, "alice");
    let stopped = within(call.outcome()).await;
    assert!(matches!(&stopped.end, End::Stopped(_)), "{:?}", stopped.end);
    assert!(stopped.discarded.files > 10, "it had changed {:?}", stopped.discarded);
    assert!(tree(&folder) == before, "something is changed");

    let call = host.agent("default").call(&edit, "replace", rename("Interrupt", "Halting")).start();
    let done = within(call.outcome()).await;
    let changed = completed(&done)["files"].as_u64().unwrap();
    let expected: Tree = before.into_iter().map(|(path, content)| (path, renamed(content))).collect();
    assert!(tree(&folder) == expected, "not everything is changed, or something else");
    assert_eq!(done.commits.files, changed);
}

/// `--dry-run` shows what would change, as a diff that another program understands, and changes nothing.
#[test]
fn a_dry_run_shows_a_diff_that_can_be_applied() {
    let home = temporary();
    let folder = home.folder().join("work");
    fill(&folder);
    let before = tree(&folder);
    let component = guests::path("edit").display().to_string();
    let input = rename("alpha", "beta").to_string();
    let words = ["run", &component, "replace", "-i", &input, "--workspace", folder.to_str().unwrap()];
    let shown = ledger::command::run(home.home(), &[&words[..], &["--dry-run"]].concat());
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stderr.contains("nothing was changed"), "{shown:?}");
    assert!(tree(&folder) == before);
    let diff = home.folder().join("diff");
    fs::write(&diff, json!({ "diff": shown.stdout }).to_string()).unwrap();
    let input = format!("@{}", diff.display());
    let folder_name = folder.to_str().unwrap();
    let apply = ["run", &component, "apply_diff", "-i", &input, "--workspace", folder_name];
    let applied = ledger::command::run(home.home(), &apply);
    assert_eq!(applied.code, Some(0), "{applied:?}");
    assert!(tree(&folder) == state_of(before, "beta"));
    let asked = ledger::command::run(home.home(), &[&words[..], &["--ask"]].concat());
    assert_eq!(asked.code, Some(2), "{asked:?}");
}

/// As a program does it that is not the tool.
fn renamed(content: Vec<u8>) -> Vec<u8> {
    let Ok(text) = String::from_utf8(content.clone()) else { return content };
    if text.contains('\0') {
        return content;
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("Interrupt") {
        let (head, tail) = rest.split_at(at);
        let after = &tail["Interrupt".len()..];
        out += head;
        let alone = !out.chars().next_back().is_some_and(is_word) && !after.chars().next().is_some_and(is_word);
        out += if alone { "Halting" } else { "Interrupt" };
        rest = after;
    }
    (out + rest).into_bytes()
}

fn completed(outcome: &Arc<Outcome>) -> &Value {
    match &outcome.end {
        End::Completed(output) => &output.json,
        end => panic!("{end:?}"),
    }
}

/// What the kills have met.
#[derive(Debug, Default)]
struct Met {
    before: usize,
    after: usize,
    /// Of those: a stage was left behind.
    undecided: usize,
    finished_later: usize,
    not_killed: usize,
}

#[tokio::test]
async fn killed_at_any_moment_of_a_commit_everything_is_changed_or_nothing() {
    let home = temporary();
    let folder = home.folder().join("work");
    fill(&folder);
    let host = host(&home, &folder).await;
    let (edit, files) = (load(&host, "edit").await, load(&host, "files").await);
    drop(edit);
    let [component, swapper] = ["edit", "files"].map(|guest| guests::path(guest).display().to_string());
    // Which word it is, and what is where.
    let states = [state(&folder, "alpha"), state(&folder, "beta")].map(|tree| [tree.clone(), swapped(&folder, tree)]);
    let states = states.concat();
    let mut now = 0;
    let mut met = Met::default();
    let mut commit = Duration::from_millis(3);
    let mut seen = 0;
    let mut chance = ledger::Chance::new("kills in the commit of an edit");
    for kill in 0..KILLS {
        let words = [["alpha", "beta"], ["beta", "alpha"]][now / 2];
        let (next, mut child) = if kill % 2 == 0 {
            let input = rename(words[0], words[1]).to_string();
            ((now + 2) % 4, run(home.home(), [&component, "replace", "-i", &input], &folder))
        } else {
            (now ^ 1, run(home.home(), [&swapper, "swap", "-i", "{}"], &folder))
        };
        let is_killed = kill_in_commit(&mut child, &folder, &mut commit, &mut chance);
        let left = folder.join(".estop-workspace").exists();
        let as_found = tree(&folder);
        // Whoever comes next finishes it.
        look(&host, &files).await;
        let found = tree(&folder);
        let Some(state) = states.iter().position(|state| *state == found) else {
            let odd: Vec<_> =
                found.keys().filter(|path| states.iter().all(|state| state.get(*path) != found.get(*path))).collect();
            panic!("kill {kill}: neither before nor after: {odd:?}");
        };
        assert!(state == now || state == next, "kill {kill}: it did something else");
        let commits = commits_since(&host, &mut seen).await;
        assert_eq!(commits, usize::from(state != now), "kill {kill}: the log says otherwise");
        match (is_killed, state != now) {
            (false, _) => met.not_killed += 1,
            (true, false) => {
                met.before += 1;
                met.undecided += usize::from(left);
            }
            (true, true) => {
                met.after += 1;
                met.finished_later += usize::from(as_found != found);
            }
        }
        now = state;
    }
    println!("{met:?}; a commit takes about {commit:?}");
    assert!(met.before > KILLS / 20 && met.after > KILLS / 20, "the moments are not spread: {met:?}");
    assert!(met.undecided > 0 && met.finished_later > 0, "no kill was in the middle: {met:?}");
    let verified = ledger::command::run(home.home(), &["log", "verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

fn fill(folder: &Path) {
    for number in 0..FILES {
        let path = folder.join(format!("src/{}/file{number}.txt", number % 4));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("alpha {number} alpha\n").repeat(50)).unwrap();
    }
}

fn state(folder: &Path, word: &str) -> Tree {
    state_of(tree(folder), word)
}

fn state_of(tree: Tree, word: &str) -> Tree {
    let content = |content: Vec<u8>| String::from_utf8(content).unwrap().replace("alpha", word).into_bytes();
    tree.into_iter().map(|(path, before)| (path, content(before))).collect()
}

/// Enters the folder as any call does. A disk that is slow for a moment keeps it out.
async fn look(host: &Host, files: &Component) {
    within(async {
        loop {
            let call = host.agent("default").call(files, "steps", json!({ "root": "/", "steps": [] })).start();
            let outcome = call.outcome().await;
            match &outcome.end {
                End::Refused(why) if why.contains("the log has been waiting") => {}
                _ => return drop(completed(&outcome).clone()),
            }
        }
    })
    .await;
}

/// As the guest's `swap` does it.
fn swapped(folder: &Path, tree: Tree) -> Tree {
    let swaps = [("src/0", "src/1"), ("src/2/file2.txt", "src/3/file3.txt")];
    let other = |path: PathBuf| {
        for (one, other) in swaps {
            let (one, other) = (folder.join(one), folder.join(other));
            for (from, to) in [(&one, &other), (&other, &one)] {
                match path.strip_prefix(from) {
                    Ok(rest) if rest.as_os_str().is_empty() => return to.clone(),
                    Ok(rest) => return to.join(rest),
                    Err(_) => {}
                }
            }
        }
        path
    };
    tree.into_iter().map(|(path, content)| (other(path), content)).collect()
}

fn run(home: &Home, words: [&str; 4], folder: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estop"));
    for variable in ["ESTOP_LOG", "ESTOP_HOME", "RUST_BACKTRACE"] {
        command.env_remove(variable);
    }
    command.arg("run").args(words).arg("--home").arg(home.path()).arg("--workspace").arg(folder);
    command.env("XDG_RUNTIME_DIR", home.path().parent().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills it some time after its commit has begun, up to a little longer than one takes. Whether it was killed.
fn kill_in_commit(child: &mut Child, folder: &Path, commit: &mut Duration, chance: &mut ledger::Chance) -> bool {
    let stage = folder.join(".estop-workspace");
    let begun = Instant::now();
    while !stage.exists() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not commit");
        thread::yield_now();
    }
    let staged = Instant::now();
    let wait = chance.up_to(commit.mul_f64(1.2));
    while staged.elapsed() < wait {
        if !stage.exists() {
            // As long as that takes here.
            *commit = (*commit + staged.elapsed()) / 2;
            break;
        }
        thread::yield_now();
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    if stage.exists() && staged.elapsed() >= *commit {
        *commit = commit.mul_f64(1.1);
    }
    !status.success()
}

/// Commits that have changed files, since this was asked last.
async fn commits_since(host: &Host, seen: &mut u64) -> usize {
    let new: Vec<Value> = host.entries(*seen, usize::MAX).await.unwrap().iter().map(Entry::to_json).collect();
    *seen += new.len() as u64;
    new.iter()
        .filter(|entry| entry["kind"] == "commit" && entry["files"].as_u64().is_some_and(|files| files > 0))
        .count()
}
