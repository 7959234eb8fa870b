//! `estop build`, and what `run` and `inspect` do with the folder of a crate.
//!
//! Invariant: a nested cargo gets nothing of the one that may have started us: not its flags, profile or toolchain.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use super::exit_code::usage;
use super::{ExitCode, print};

/// What tools are compiled for.
const TARGET: &str = "wasm32-wasip2";
/// Variables of an outer cargo that would change the build.
const CLEARED: &[&str] =
    &["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTUP_TOOLCHAIN"];

/// Build the crate of a tool into a component, and print where it is.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder of the tool's crate
    #[arg(default_value = ".")]
    folder: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// What `run` and `inspect` need to know for a folder.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Install the Rust target wasm32-wasip2 first, if it is missing (`rustup target add`)
    #[arg(long)]
    install_target: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let component = build(&args.folder, args.options.install_target)?;
    print(&component.display().to_string())?;
    Ok(ExitCode::Completed)
}

/// The component that is meant: the file itself, or what the folder's crate is built into.
pub(super) fn component(path: &Path, options: &Options) -> anyhow::Result<PathBuf> {
    if path.is_dir() { build(path, options.install_target) } else { Ok(path.to_owned()) }
}

/// Builds the crate in a folder into a component and says where it is.
///
/// # Errors
/// The folder has no crate, the target is missing (unless `install_target` says to add it), the crate does not build, or
/// it does not build into exactly one component. Each says what to do.
pub fn build(folder: &Path, install_target: bool) -> anyhow::Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        return Err(usage(format!("`{}` is no Rust crate: it has no Cargo.toml", folder.display())));
    }
    provide_target(folder, install_target)?;
    let mut cargo = command("cargo");
    cargo
        .args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo; is Rust installed?")?;
    let Some(stdout) = child.stdout.take() else { bail!("cargo has no standard output") };
    let mut found = Vec::new();
    let manifest = manifest.canonicalize().with_context(|| format!("cannot find `{}`", manifest.display()))?;
    for line in BufReader::new(stdout).lines() {
        found.extend(artifact(&line.context("cannot read what cargo says")?, &manifest));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{}` does not build ({status}); cargo says why above", folder.display());
    }
    match found.as_slice() {
        [component] => Ok(component.clone()),
        [] => bail!("`{}` builds no component: it needs `crate-type = [\"cdylib\"]`", folder.display()),
        several => bail!("`{}` builds {} components, say which file", folder.display(), several.len()),
    }
}

/// The component in one of cargo's messages, if it is about this crate and has one.
fn artifact(message: &str, manifest: &Path) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let ours =
        message["reason"] == "compiler-artifact" && message["manifest_path"].as_str().map(Path::new) == Some(manifest);
    let files = message["filenames"].as_array().filter(|_| ours)?;
    files.iter().filter_map(Value::as_str).map(PathBuf::from).find(|file| file.extension().is_some_and(|e| e == "wasm"))
}

fn provide_target(folder: &Path, install_target: bool) -> anyhow::Result<()> {
    // In the folder: it may pin a toolchain of its own.
    let rustc = command("rustc").args(["--print", "sysroot"]).current_dir(folder).output();
    let rustc = rustc.context("cannot start rustc; is Rust installed?")?;
    if !rustc.status.success() {
        bail!("rustc does not work here: {}", String::from_utf8_lossy(&rustc.stderr).trim());
    }
    let sysroot = PathBuf::from(String::from_utf8_lossy(&rustc.stdout).trim());
    if sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
        return Ok(());
    }
    if !install_target {
        bail!("the Rust target {TARGET} is missing: run `rustup target add {TARGET}`, or give --install-target");
    }
    let status = command("rustup")
        .args(["target", "add", TARGET])
        .current_dir(folder)
        .status()
        .context("cannot start rustup")?;
    if status.success() { Ok(()) } else { bail!("`rustup target add {TARGET}` failed ({status})") }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in CLEARED {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            command.env_remove(name);
        }
    }
    command
}
