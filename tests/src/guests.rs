//! Guests: crates that are built on demand, and modules written as text.

mod described;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

pub use self::described::{Described, Imports, Spec};

/// The root of the repository.
pub fn root() -> &'static Path {
    // This crate is a folder of the root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The component of a guest crate, built with the function that `estop build` uses. Builds each crate once for a process.
///
/// # Panics
/// If it does not build.
pub fn path(guest: &str) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(guest) {
        return path.clone();
    }
    provide_target();
    let folders = [root().join("example-tools").join(guest), root().join("tests/guests").join(guest)];
    let Some(folder) = folders.iter().find(|folder| folder.is_dir()) else { panic!("there is no guest `{guest}`") };
    let path = match estop::cli::build::build(folder, false) {
        Ok(path) => path,
        Err(error) => panic!("guest `{guest}`: {error:#}"),
    };
    built.insert(guest.to_owned(), path.clone());
    path
}

/// The bytes of a guest's component.
///
/// # Panics
/// If it does not build or cannot be read.
pub fn bytes(guest: &str) -> Vec<u8> {
    match std::fs::read(path(guest)) {
        Ok(bytes) => bytes,
        Err(error) => panic!("guest `{guest}`: {error}"),
    }
}

/// Does nothing where the target is there.
fn provide_target() {
    let script = root().join(".ci/wasm-target.sh");
    match Command::new("bash").arg(&script).status() {
        Ok(status) if status.success() => {}
        other => panic!("{}: {other:?}", script.display()),
    }
}

/// What is put into the victim of the drill: see `host/src/drill/guest.wat`.
#[derive(Clone, Copy, Default)]
pub struct Hostile<'a> {
    /// Fields of the module: functions, a start function.
    pub start: &'a str,
    /// Instructions at the beginning of `cabi_realloc`.
    pub realloc: &'a str,
    /// Instructions at the beginning of `call`; there is a local `$page`.
    pub call: &'a str,
    /// Instructions at the beginning of the post-return function.
    pub post: &'a str,
}

impl Hostile<'_> {
    /// The component. Its one tool is called `victim`; it needs the interface of [`probe`](crate::probe).
    ///
    /// # Panics
    /// If the text is not WebAssembly.
    pub fn component(&self) -> Vec<u8> {
        let guest = self.put_into(include_str!("../../host/src/drill/guest.wat"));
        let text = include_str!("../../host/src/drill/wrapper.wat").replace(";;GUEST;;", &guest);
        match wat::parse_str(text) {
            Ok(bytes) => bytes,
            Err(error) => panic!("{error}"),
        }
    }

    fn put_into(&self, guest: &str) -> String {
        guest
            .replace(";;START;;", self.start)
            .replace(";;REALLOC;;", self.realloc)
            .replace(";;CALL;;", self.call)
            .replace(";;POST;;", self.post)
    }
}

/// A component with a tool that answers at once, and beside it functions that take a compiler about a second each, and
/// that nobody calls.
///
/// # Panics
/// If the text is not WebAssembly.
pub fn slow_to_compile(functions: usize) -> Vec<u8> {
    // Many blocks, with many values that live across all of them.
    const BLOCKS: usize = 12_000;
    const LOCALS: usize = 20;
    let mut body = format!("(func (param i32) (local{})", " i32".repeat(LOCALS));
    for block in 0..BLOCKS {
        let [a, b, c] = [block % LOCALS, (block / 3 + 7) % LOCALS, (block / 5 + 11) % LOCALS];
        body += &format!(
            "(if (i32.lt_s (local.get {a}) (local.get {b})) (then (local.set {c} (i32.add (local.get {a}) (local.get 0)))) \
             (else (local.set {b} (i32.mul (local.get {c}) (i32.const {block})))))"
        );
    }
    body += ")";
    let imports = Some(Imports::default());
    let functions = body.repeat(functions);
    let guest = Hostile { start: &functions, ..Hostile::default() };
    Described { tools: &[Spec::new("tool")], imports, guest, ..Described::default() }.component()
}
