//! With `std::fs` and nothing else.

use std::fs::{self, File};
use std::io::{Read, Write};

use estop_tool::{ToolError, commit, progress};
use schemars::JsonSchema;
use serde::Deserialize;

fn failed(error: std::io::Error) -> ToolError {
    ToolError::failed("io", error.to_string())
}

#[derive(Deserialize, JsonSchema)]
pub struct Many {
    count: u32,
    bytes: usize,
    text: String,
}

/// Writes so many files into one folder.
#[estop_tool::tool]
pub fn write_many(input: Many) -> Result<(), ToolError> {
    fs::create_dir_all("many/deep").map_err(failed)?;
    for number in 0..input.count {
        fs::write(format!("many/deep/{number}.txt"), input.text.repeat(input.bytes)).map_err(failed)?;
    }
    Ok(())
}

#[derive(Deserialize, JsonSchema)]
pub struct Much {
    path: String,
    bytes: u64,
    /// And goes on for ever after that.
    spin: bool,
}

/// Writes one large file.
#[estop_tool::tool]
pub fn write_much(input: Much) -> Result<(), ToolError> {
    let mut file = File::create(&input.path).map_err(failed)?;
    let block = vec![b'x'; 1 << 20];
    let mut left = input.bytes;
    while left > 0 {
        let part = left.min(block.len() as u64);
        file.write_all(&block[..part as usize]).map_err(failed)?;
        left -= part;
    }
    drop(file);
    progress(1, None, "written");
    while input.spin {
        std::hint::spin_loop();
    }
    Ok(())
}

#[derive(Deserialize, JsonSchema)]
pub struct Where {
    path: String,
}

/// Changes what is there in every way.
fn edit() -> std::io::Result<()> {
    fs::write("kept.txt", "changed")?;
    fs::write("new.txt", "new")?;
    fs::create_dir("folder")?;
    fs::rename("moved.txt", "folder/moved.txt")?;
    fs::remove_file("removed.txt")?;
    fs::remove_dir_all("tree")?;
    let mut appended = fs::OpenOptions::new().append(true).open("appended.txt")?;
    appended.write_all(b" and more")?;
    appended.flush()
}

/// Changes files, and goes on for ever.
#[estop_tool::tool]
pub fn edit_and_spin() -> Result<(), ToolError> {
    edit().map_err(failed)?;
    progress(1, None, "edited");
    loop {
        std::hint::spin_loop();
    }
}

/// Changes files, and fails, or does not.
#[estop_tool::tool]
pub fn edit_and_fail(input: Much) -> Result<(), ToolError> {
    edit().map_err(failed)?;
    if input.spin { Err(ToolError::failed("asked", "as it was told to")) } else { Ok(()) }
}

/// Changes files, commits, changes more, and goes on for ever. What it has open stays open.
#[estop_tool::tool]
pub fn edit_commit_edit() -> Result<(), ToolError> {
    let mut open = File::create("open.txt").map_err(failed)?;
    open.write_all(b"before").map_err(failed)?;
    let mut gone = fs::OpenOptions::new().read(true).write(true).create(true).open("gone.txt").map_err(failed)?;
    gone.write_all(b"still here").map_err(failed)?;
    edit().map_err(failed)?;
    fs::remove_file("gone.txt").map_err(failed)?;
    commit()?;
    open.write_all(b" after").map_err(failed)?;
    let mut text = String::new();
    use std::io::Seek;
    gone.rewind().and_then(|()| gone.read_to_string(&mut text)).map_err(failed)?;
    if text != "still here" || fs::exists("gone.txt").map_err(failed)? {
        return Err(ToolError::failed("gone", text));
    }
    if fs::read_to_string("open.txt").map_err(failed)? != "before after" {
        return Err(ToolError::failed("open", "what was written is not read"));
    }
    fs::write("kept.txt", "changed again").map_err(failed)?;
    fs::remove_file("new.txt").map_err(failed)?;
    progress(2, None, "edited again");
    loop {
        std::hint::spin_loop();
    }
}

/// Changes files, and ends when the clock has gone on for some seconds.
#[estop_tool::tool]
pub fn edit_and_wait() -> Result<(), ToolError> {
    edit().map_err(failed)?;
    let begun = std::time::SystemTime::now();
    progress(1, None, "edited");
    while begun.elapsed().is_ok_and(|waited| waited.as_secs() < 5) {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Writes the number of each commit into some files, and commits, for ever.
#[estop_tool::tool]
pub fn count_commits() -> Result<(), ToolError> {
    for number in 1_u64.. {
        for file in 0..5 {
            fs::write(format!("count{file}.txt"), number.to_string()).map_err(failed)?;
        }
        commit()?;
        progress(number, None, "committed");
    }
    Ok(())
}

/// Puts each of two folders, and each of two files, in the place of the other.
#[estop_tool::tool]
pub fn swap() -> Result<(), ToolError> {
    for (one, other) in [("src/0", "src/1"), ("src/2/file2.txt", "src/3/file3.txt")] {
        fs::rename(one, "between").map_err(failed)?;
        fs::rename(other, one).map_err(failed)?;
        fs::rename("between", other).map_err(failed)?;
    }
    Ok(())
}

/// Reads a file to its end, and says how long it is.
#[estop_tool::tool(read_only)]
pub fn read_much(input: Where) -> Result<u64, ToolError> {
    let mut from = File::open(&input.path).map_err(failed)?;
    let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
    loop {
        match from.read(&mut buffer).map_err(failed)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

/// Writes one large file, and fails.
#[estop_tool::tool]
pub fn write_and_fail(input: Much) -> Result<(), ToolError> {
    write_much(input)?;
    Err(ToolError::failed("asked", "as it was told to"))
}
