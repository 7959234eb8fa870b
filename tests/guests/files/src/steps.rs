//! Any of the functions of `wasi:filesystem`, one after the other, and what each answered.

use std::collections::HashMap;

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{
    Advice, Descriptor, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags, filesystem_error_code,
};
use wasip2::io::streams::StreamError;

/// One step. Descriptors are named; `root` is open from the beginning.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    Open {
        at: String,
        path: String,
        name: String,
        /// Of `create`, `exclusive`, `directory`, `truncate`, `follow`, `read`, `write`.
        how: Vec<String>,
    },
    Close {
        name: String,
    },
    Read {
        name: String,
        bytes: u64,
        offset: u64,
    },
    Write {
        name: String,
        text: String,
        offset: u64,
    },
    ReadStream {
        name: String,
        bytes: u64,
        offset: u64,
    },
    WriteStream {
        name: String,
        text: String,
        offset: Option<u64>,
    },
    SetSize {
        name: String,
        bytes: u64,
    },
    SetTimes {
        name: String,
        accessed: Option<u64>,
        modified: Option<u64>,
    },
    SetTimesAt {
        at: String,
        path: String,
        follow: bool,
        accessed: Option<u64>,
        modified: Option<u64>,
    },
    Stat {
        name: String,
    },
    StatAt {
        at: String,
        path: String,
        follow: bool,
    },
    List {
        name: String,
    },
    CreateDirectory {
        at: String,
        path: String,
    },
    RemoveDirectory {
        at: String,
        path: String,
    },
    Unlink {
        at: String,
        path: String,
    },
    Rename {
        at: String,
        path: String,
        to: String,
        new_path: String,
    },
    Link {
        at: String,
        path: String,
        to: String,
        new_path: String,
        follow: bool,
    },
    Symlink {
        at: String,
        target: String,
        path: String,
    },
    ReadLink {
        at: String,
        path: String,
    },
    Flags {
        name: String,
    },
    Kind {
        name: String,
    },
    Same {
        name: String,
        other: String,
    },
    Hash {
        name: String,
        at: String,
        path: String,
        follow: bool,
    },
    Advise {
        name: String,
    },
    Sync {
        name: String,
    },
    SyncData {
        name: String,
    },
}

/// What a step answered: text, or the name of an error.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Answer {
    ok: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
pub struct Input {
    steps: Vec<Step>,
    /// Where the directory is seen that is called `root`.
    root: String,
}

/// Takes one step after the other.
#[estop_tool::tool]
pub fn steps(input: Input) -> Result<Vec<Answer>, ToolError> {
    let root = get_directories().into_iter().find(|(_, at)| *at == input.root);
    let (root, _) = root.ok_or_else(|| ToolError::failed("root", "there is no such directory"))?;
    let mut open = HashMap::from([("root".to_owned(), root)]);
    let answers = input.steps.into_iter().map(|step| match take(step, &mut open) {
        Ok(text) => Answer { ok: Some(text), error: None },
        Err(code) => Answer { ok: None, error: Some(code) },
    });
    Ok(answers.collect())
}

fn code(error: ErrorCode) -> String {
    error.name().to_owned()
}

fn stream(error: StreamError) -> String {
    match error {
        StreamError::Closed => "closed".into(),
        StreamError::LastOperationFailed(error) => {
            filesystem_error_code(&error).map_or_else(|| error.to_debug_string(), code)
        }
    }
}

fn follow(follow: bool) -> PathFlags {
    if follow { PathFlags::SYMLINK_FOLLOW } else { PathFlags::empty() }
}

fn time(s: Option<u64>) -> NewTimestamp {
    let moment = |seconds| wasip2::clocks::wall_clock::Datetime { seconds, nanoseconds: 5 };
    s.map_or(NewTimestamp::NoChange, |s| NewTimestamp::Timestamp(moment(s)))
}

fn take(step: Step, open: &mut HashMap<String, Descriptor>) -> Result<String, String> {
    let known = |open: &HashMap<String, Descriptor>, name: &str| {
        if open.contains_key(name) { Ok(()) } else { Err(format!("nothing is open as {name}")) }
    };
    for name in names(&step) {
        known(open, name)?;
    }
    let done = |result: Result<(), ErrorCode>| result.map(|()| String::new()).map_err(code);
    match step {
        Step::Open { at, path, name, how } => {
            let has = |word: &str| how.iter().any(|how| how == word);
            let mut open_flags = OpenFlags::empty();
            open_flags.set(OpenFlags::CREATE, has("create"));
            open_flags.set(OpenFlags::EXCLUSIVE, has("exclusive"));
            open_flags.set(OpenFlags::DIRECTORY, has("directory"));
            open_flags.set(OpenFlags::TRUNCATE, has("truncate"));
            let mut flags = DescriptorFlags::empty();
            flags.set(DescriptorFlags::READ, has("read"));
            flags.set(DescriptorFlags::WRITE, has("write"));
            let opened = open[&at].open_at(follow(has("follow")), &path, open_flags, flags).map_err(code)?;
            open.insert(name, opened);
            Ok(String::new())
        }
        Step::Close { name } => {
            open.remove(&name);
            Ok(String::new())
        }
        Step::Read { name, bytes, offset } => {
            let (data, end) = open[&name].read(bytes, offset).map_err(code)?;
            Ok(format!("{} {end}", String::from_utf8_lossy(&data)))
        }
        Step::Write { name, text, offset } => {
            open[&name].write(text.as_bytes(), offset).map(|written| written.to_string()).map_err(code)
        }
        Step::ReadStream { name, bytes, offset } => {
            let from = open[&name].read_via_stream(offset).map_err(code)?;
            let mut all = Vec::new();
            while (all.len() as u64) < bytes {
                match from.blocking_read(bytes - all.len() as u64) {
                    Ok(data) => all.extend(data),
                    Err(StreamError::Closed) => break,
                    Err(error) => return Err(stream(error)),
                }
            }
            Ok(String::from_utf8_lossy(&all).into_owned())
        }
        Step::WriteStream { name, text, offset } => {
            let to = match offset {
                Some(offset) => open[&name].write_via_stream(offset),
                None => open[&name].append_via_stream(),
            };
            let to = to.map_err(code)?;
            for part in text.as_bytes().chunks(4096) {
                to.blocking_write_and_flush(part).map_err(stream)?;
            }
            Ok(String::new())
        }
        Step::SetSize { name, bytes } => done(open[&name].set_size(bytes)),
        Step::SetTimes { name, accessed, modified } => done(open[&name].set_times(time(accessed), time(modified))),
        Step::SetTimesAt { at, path, follow: follows, accessed, modified } => {
            done(open[&at].set_times_at(follow(follows), &path, time(accessed), time(modified)))
        }
        Step::Stat { name } => open[&name].stat().map(|stat| told(&stat)).map_err(code),
        Step::StatAt { at, path, follow: follows } => {
            open[&at].stat_at(follow(follows), &path).map(|stat| told(&stat)).map_err(code)
        }
        Step::List { name } => {
            let entries = open[&name].read_directory().map_err(code)?;
            let mut all = Vec::new();
            loop {
                match entries.read_directory_entry() {
                    Ok(Some(entry)) => all.push(format!("{:?} {}", entry.type_, entry.name)),
                    Ok(None) => break,
                    Err(error) => all.push(code(error)),
                }
            }
            all.sort();
            Ok(all.join(", "))
        }
        Step::CreateDirectory { at, path } => done(open[&at].create_directory_at(&path)),
        Step::RemoveDirectory { at, path } => done(open[&at].remove_directory_at(&path)),
        Step::Unlink { at, path } => done(open[&at].unlink_file_at(&path)),
        Step::Rename { at, path, to, new_path } => done(open[&at].rename_at(&path, &open[&to], &new_path)),
        Step::Link { at, path, to, new_path, follow: follows } => {
            done(open[&at].link_at(follow(follows), &path, &open[&to], &new_path))
        }
        Step::Symlink { at, target, path } => done(open[&at].symlink_at(&target, &path)),
        Step::ReadLink { at, path } => open[&at].readlink_at(&path).map_err(code),
        Step::Flags { name } => open[&name].get_flags().map(|flags| format!("{flags:?}")).map_err(code),
        Step::Kind { name } => open[&name].get_type().map(|kind| format!("{kind:?}")).map_err(code),
        Step::Same { name, other } => Ok(open[&name].is_same_object(&open[&other]).to_string()),
        Step::Hash { name, at, path, follow: follows } => {
            let one = open[&name].metadata_hash().map_err(code)?;
            let other = open[&at].metadata_hash_at(follow(follows), &path).map_err(code)?;
            Ok(((one.lower, one.upper) == (other.lower, other.upper)).to_string())
        }
        Step::Advise { name } => done(open[&name].advise(0, 0, Advice::Sequential)),
        Step::Sync { name } => done(open[&name].sync()),
        Step::SyncData { name } => done(open[&name].sync_data()),
    }
}

/// Which descriptors a step needs.
fn names(step: &Step) -> Vec<&str> {
    match step {
        Step::Open { at, .. }
        | Step::SetTimesAt { at, .. }
        | Step::StatAt { at, .. }
        | Step::CreateDirectory { at, .. }
        | Step::RemoveDirectory { at, .. }
        | Step::Unlink { at, .. }
        | Step::Symlink { at, .. }
        | Step::ReadLink { at, .. } => vec![at],
        Step::Rename { at, to, .. } | Step::Link { at, to, .. } => vec![at, to],
        Step::Same { name, other } => vec![name, other],
        Step::Hash { name, at, .. } => vec![name, at],
        Step::Close { name }
        | Step::Read { name, .. }
        | Step::Write { name, .. }
        | Step::ReadStream { name, .. }
        | Step::WriteStream { name, .. }
        | Step::SetSize { name, .. }
        | Step::SetTimes { name, .. }
        | Step::Stat { name }
        | Step::List { name }
        | Step::Flags { name }
        | Step::Kind { name }
        | Step::Advise { name }
        | Step::Sync { name }
        | Step::SyncData { name } => vec![name],
    }
}

/// What does not differ between one file system and another.
fn told(stat: &wasip2::filesystem::types::DescriptorStat) -> String {
    use wasip2::filesystem::types::DescriptorType;
    if stat.type_ == DescriptorType::Directory {
        return "Directory".into();
    }
    // Set by a step, or by the clock.
    let set = |at: &Option<wasip2::clocks::wall_clock::Datetime>| {
        at.map_or("none".into(), |at| if at.nanoseconds == 5 { at.seconds.to_string() } else { "some".into() })
    };
    let modified = set(&stat.data_modification_timestamp);
    format!("{:?} {} links {} modified {modified}", stat.type_, stat.size, stat.link_count)
}
