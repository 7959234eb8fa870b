//! `estop new`: the crate of a new tool.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::exit_code::usage;
use super::{ExitCode, print};

/// Length of a crate's name (bytes).
const NAME_BYTES_MAX: usize = 64;

/// Make the crate of a new tool.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The name of the crate, and of the folder that is made: a-z, 0-9 and `-`
    name: String,
    /// Depend on the SDK in this folder instead of the published one
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let Args { name, sdk } = args;
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || name.len() > NAME_BYTES_MAX || !name.chars().all(letters) {
        let message = format!(
            "{name:?} is no name for a crate: up to {NAME_BYTES_MAX} of a-z, 0-9 and `-`, beginning with a letter"
        );
        return Err(usage(message));
    }
    let folder = Path::new(&name);
    if folder.exists() {
        return Err(usage(format!("`{name}` is there already; choose another name or remove it")));
    }
    let dependency = match sdk {
        None => "estop-tool = \"0.1\"".to_owned(),
        Some(path) => {
            let path = path.canonicalize().ok().filter(|path| path.join("Cargo.toml").is_file());
            let path = path.ok_or_else(|| usage("--sdk names no folder with a Cargo.toml"))?;
            // As a TOML string with escapes: a folder may be called anything.
            format!("estop-tool = {{ path = {:?} }}", path.display().to_string())
        }
    };
    fs::create_dir_all(folder.join("src")).with_context(|| format!("cannot make the folder `{name}`"))?;
    write(&folder.join("Cargo.toml"), &MANIFEST.replace("{name}", &name).replace("{sdk}", &dependency))?;
    write(&folder.join("src/lib.rs"), SOURCE)?;
    write(&folder.join(".gitignore"), "/target\n")?;
    print(&format!("made `{name}`; try it with: estop run {name} -i '{{\"name\":\"World\"}}'"))?;
    Ok(ExitCode::Completed)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

const MANIFEST: &str = r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib", "rlib"]

[dependencies]
{sdk}
schemars = "1"
serde = { version = "1", features = ["derive"] }

[profile.release]
lto = true
codegen-units = 1
strip = true

# A workspace of its own, wherever the folder stands.
[workspace]
"#;

const SOURCE: &str = r#"//! Tools for agents.

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whom to greet.
#[derive(Deserialize, JsonSchema)]
pub struct Input {
    /// The name of a person.
    pub name: String,
}

/// A greeting.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Greeting {
    /// The words.
    pub text: String,
}

/// Greet somebody by name.
#[estop_tool::tool(read_only, idempotent)]
pub fn greet(input: Input) -> Result<Greeting, ToolError> {
    if input.name.is_empty() {
        return Err(ToolError::invalid_input("name: there is nobody to greet"));
    }
    Ok(Greeting { text: format!("Hello, {}!", input.name) })
}

estop_tool::export!(greet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_greeted() {
        let greeting = greet(Input { name: "World".into() }).ok();
        assert_eq!(greeting, Some(Greeting { text: "Hello, World!".into() }));
    }
}
"#;
