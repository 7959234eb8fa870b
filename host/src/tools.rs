//! Components and the tools they export: loading, checking, compiling, describing.
//!
//! Invariant: what is in the table was admitted, compiled by this engine, and has described itself in a gated, limited
//! call without grants. A component is known by the digest of the bytes that were given, not of what they became.

pub(crate) mod admission;
pub(crate) mod cache;
pub(crate) mod compile;
pub(crate) mod describe;
mod digest;
pub(crate) mod schema;
mod trusted;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component as Compiled, InstancePre, Linker, ResourceType};

pub use self::admission::AdmissionError;
use self::cache::Found;
pub use self::compile::{CompileChild, compile_child};
use self::compile::{Compiler, Switch};
pub use self::describe::{Hints, ToolInfo};
pub use self::digest::Digest;
pub(crate) use self::digest::Hex;
use crate::engine::TABLES_PER_SANDBOX;
use crate::host::Core;
use crate::hostcalls::bindings::GuestPre;
use crate::interrupt::Cause;
use crate::log::{EntryKind, Record};
use crate::sandbox::CallCtx;

/// Length of the name under which a component is loaded (bytes).
pub(crate) const NAME_BYTES_MAX: usize = 128;

/// Where a component comes from, and what is known about it beforehand.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    name: Option<String>,
    expected: Option<Digest>,
}

#[derive(Clone, Debug)]
enum Bytes {
    File(PathBuf),
    Memory(Arc<[u8]>),
}

impl Source {
    /// A `.wasm` file. Its stem is the component's name.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { bytes: Bytes::File(path.into()), name: None, expected: None }
    }

    /// The bytes of a component. Without a name its digest stands for it.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self { bytes: Bytes::Memory(bytes.into()), name: None, expected: None }
    }

    /// The name whose state the component gets: components of one name share what an agent keeps with them, so that a
    /// new version finds what the old one left.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Refuses to load anything else.
    #[must_use]
    pub fn expect_digest(mut self, digest: Digest) -> Self {
        self.expected = Some(digest);
        self
    }

    /// The name under which it is loaded.
    pub(crate) fn name(&self, digest: Digest) -> Result<Arc<str>, LoadError> {
        let stem = match &self.bytes {
            Bytes::File(path) => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()),
            Bytes::Memory(_) => None,
        };
        checked_name(self.name.clone().or(stem).unwrap_or_else(|| digest.to_string())).map(Arc::from)
    }

    /// Whether this is what the caller expects.
    pub(crate) fn check(&self, found: Digest) -> Result<(), LoadError> {
        match self.expected {
            Some(expected) if expected != found => Err(LoadError::Digest { expected, found }),
            _ => Ok(()),
        }
    }

    /// The bytes and their digest. Blocks.
    pub(crate) fn read(&self, bytes_max: usize) -> Result<(Arc<[u8]>, Digest), LoadError> {
        let (bytes, path) = match &self.bytes {
            Bytes::Memory(bytes) => (Arc::clone(bytes), None),
            Bytes::File(path) => {
                let read = read_file(path, bytes_max);
                let bytes = read.map_err(|error| LoadError::Read { path: path.clone(), error })?;
                (bytes.into(), Some(path.clone()))
            }
        };
        if bytes.len() > bytes_max {
            return Err(LoadError::TooLarge { path, bytes_max });
        }
        let digest = Digest::of(&bytes);
        Ok((bytes, digest))
    }
}

/// Reads one byte more than allowed at most, so that a file that is too large is noticed and not read.
fn read_file(path: &std::path::Path, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    // Before it is opened: opening a named pipe waits for whoever writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take((bytes_max as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A component could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// More bytes than the host accepts.
    #[error("the component{} is larger than {bytes_max} bytes; raise `component_bytes_max` if it is meant to be",
        path.as_ref().map(|path| format!(" `{}`", path.display())).unwrap_or_default())]
    TooLarge {
        /// Which file, if it was one.
        path: Option<PathBuf>,
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes are not the expected ones.
    #[error("expected {expected}, but the component is {found}; it was not loaded")]
    Digest {
        /// What the caller expects.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// The name cannot be used.
    #[error(
        "the component's name {0:?} cannot be used: 1 to {NAME_BYTES_MAX} bytes without `/`, `\\` and control \
             characters, and not `.` or `..`"
    )]
    Name(String),
    /// Not a component that can be run here.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// It needs interfaces that nobody grants it.
    #[error("the component imports {}, which {} not granted here", .0.join(", "), if .0.len() == 1 { "is" } else { "are" })]
    Imports(Vec<String>),
    /// It has what is needed, but of another type than the contract says.
    #[error("the component does not fit the contract: {0}")]
    Contract(String),
    /// Cranelift does not compile it, or the pool cannot hold it.
    #[error("cannot compile the component: {0}")]
    Compile(String),
    /// Compiling it takes more than a compiler's process may have.
    #[error("refused: the component is {0}; if it is meant to be, give `CompileChild` more")]
    CompileLimit(String),
    /// It could not say what tools it has.
    #[error("the component's `list-tools` did not answer: {0}")]
    Describe(String),
    /// What it says of its tools is not acceptable.
    #[error("the component describes its tools badly: {0}")]
    Tools(String),
    /// No room.
    #[error("{0} components are loaded, and there is no room for more; unload one")]
    TooMany(usize),
    /// Nothing may begin now: see [`End::Refused`](crate::End::Refused).
    #[error("the component was not loaded: {0}")]
    Refused(String),
    /// Somebody stopped the load. Whatever worked on it is gone.
    #[error("the load was stopped by {actor} ({cause}{})", if reason.is_empty() { String::new() } else { format!(": {reason}") })]
    Stopped {
        /// Why.
        cause: Cause,
        /// Who.
        actor: String,
        /// In the words of the actor.
        reason: String,
    },
    /// The host is going away.
    #[error("the host is shutting down")]
    Closing,
}

impl LoadError {
    /// Short and stable, for programs and for the log.
    pub fn code(&self) -> &'static str {
        match self {
            LoadError::Read { .. } => "read",
            LoadError::TooLarge { .. } => "too-large",
            LoadError::Digest { .. } => "digest",
            LoadError::Name(_) => "name",
            LoadError::Admission(_) => "admission",
            LoadError::Imports(_) => "imports",
            LoadError::Contract(_) => "contract",
            LoadError::Compile(_) => "compile",
            LoadError::CompileLimit(_) => "compile-limit",
            LoadError::Describe(_) => "describe",
            LoadError::Tools(_) => "tools",
            LoadError::TooMany(_) => "too-many",
            LoadError::Refused(_) => "refused",
            LoadError::Stopped { .. } => "stopped",
            LoadError::Closing => "closing",
        }
    }
}

/// There is not exactly one such tool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoTool {
    #[error("no tool `{0}` is loaded here")]
    None(String),
    #[error("several components have a tool `{tool}`: say which one, as in `{first}/{tool}` or `{second}/{tool}`")]
    Several { tool: String, first: Arc<str>, second: Arc<str> },
}

/// A loaded component. Cloning is cheap.
#[derive(Clone)]
pub struct Component {
    pub(crate) inner: Arc<Loaded>,
}

pub(crate) struct Loaded {
    pub(crate) digest: Digest,
    pub(crate) name: Arc<str>,
    pub(crate) tools: Vec<ToolInfo>,
    pub(crate) code: Arc<Code>,
    /// Of what was loaded later it is higher.
    order: u64,
}

/// What is needed to run a component.
pub(crate) struct Code {
    pub(crate) digest: Digest,
    pub(crate) pre: GuestPre<CallCtx>,
    /// Places that an instance takes in the pool.
    pub(crate) places: u32,
    imports: Vec<String>,
}

impl Component {
    pub(crate) fn new(digest: Digest, name: Arc<str>, tools: Vec<ToolInfo>, code: Arc<Code>) -> Self {
        static ORDER: AtomicU64 = AtomicU64::new(0);
        let order = ORDER.fetch_add(1, Ordering::Relaxed);
        Self { inner: Arc::new(Loaded { digest, name, tools, code, order }) }
    }

    /// The SHA-256 of the bytes that were loaded.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// The name whose state it has.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What it exports.
    pub fn tools(&self) -> &[ToolInfo] {
        &self.inner.tools
    }

    /// What it imports, as the component names it.
    pub fn imports(&self) -> &[String] {
        &self.inner.code.imports
    }

    pub(crate) fn tool(&self, name: &str) -> Option<&ToolInfo> {
        self.inner.tools.iter().find(|tool| tool.name == name)
    }
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tools: Vec<_> = self.tools().iter().map(|tool| &tool.name).collect();
        f.debug_struct("Component").field("digest", &self.digest()).field("tools", &tools).finish_non_exhaustive()
    }
}

/// The components of a host.
pub(crate) struct Tools {
    pub(crate) compiler: Compiler,
    linker: Linker<CallCtx>,
    loaded: RwLock<HashMap<(Digest, Arc<str>), Component>>,
}

impl Tools {
    pub(crate) fn new(linker: Linker<CallCtx>, compiler: Compiler) -> Self {
        Self { compiler, linker, loaded: RwLock::new(HashMap::new()) }
    }

    pub(crate) fn unload(&self, component: &Component) {
        let key = (component.inner.digest, Arc::clone(&component.inner.name));
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    pub(crate) fn find(&self, digest: Digest, name: &Arc<str>) -> Option<Component> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(&(digest, Arc::clone(name))).cloned()
    }

    /// The component of this name, if it has this tool; of several versions the one that was loaded last.
    pub(crate) fn tool_of(&self, component: &str, tool: &str) -> Result<Component, NoTool> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let named = loaded.values().filter(|found| *found.inner.name == *component);
        let newest = named.max_by_key(|found| found.inner.order).filter(|found| found.tool(tool).is_some());
        newest.cloned().ok_or_else(|| NoTool::None(format!("{component}/{tool}")))
    }

    /// The component that has a tool of this name. The caller's own is meant, if it has one.
    pub(crate) fn tool(&self, tool: &str, own: Option<Digest>) -> Result<Component, NoTool> {
        let mut found: BTreeMap<Arc<str>, Component> = BTreeMap::new();
        for component in self.loaded.read().unwrap_or_else(PoisonError::into_inner).values() {
            if own == Some(component.digest()) && component.tool(tool).is_some() {
                return Ok(component.clone());
            }
            let newest = found.entry(Arc::clone(&component.inner.name)).or_insert_with(|| component.clone());
            if newest.inner.order < component.inner.order {
                newest.clone_from(component);
            }
        }
        found.retain(|_, component| component.tool(tool).is_some());
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (None, _) => Err(NoTool::None(tool.to_owned())),
            (Some((_, only)), None) => Ok(only),
            (Some((first, _)), Some((second, _))) => Err(NoTool::Several { tool: tool.to_owned(), first, second }),
        }
    }

    /// Compiled already, under another name.
    pub(crate) fn code(&self, digest: Digest) -> Option<Arc<Code>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.values().find(|component| component.inner.digest == digest).map(|c| Arc::clone(&c.inner.code))
    }

    pub(crate) fn insert(&self, component: Component, components_max: usize) -> Result<Component, LoadError> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let key = (component.inner.digest, Arc::clone(&component.inner.name));
        // Somebody may have loaded the same one meanwhile; then theirs is as good, and it needs no room.
        if loaded.len() >= components_max && !loaded.contains_key(&key) {
            return Err(LoadError::TooMany(components_max));
        }
        Ok(loaded.entry(key).or_insert(component).clone())
    }

    /// What this home has compiled before. Blocks for as long as reading a file takes.
    pub(crate) fn cached(&self, core: &Core, digest: Digest) -> Result<Option<Code>, LoadError> {
        cached(core, digest).map(|found| self.finish(core, digest, found)).transpose()
    }

    /// Admits and compiles. Blocks until it is done, or until the switch is thrown: see [`Compiler::compile`].
    pub(crate) fn compile(
        &self,
        core: &Core,
        digest: Digest,
        bytes: &[u8],
        switch: &Switch,
    ) -> Result<Code, LoadError> {
        let admitted = admission::admit(bytes)?;
        let compiled = self.compiler.compile(&core.engine, &admitted.component, switch)?;
        if let Some(cache) = &core.cache {
            cache.put(&core.engine, digest, &admitted.imports, &compiled);
        }
        self.finish(core, digest, Found { compiled, imports: admitted.imports })
    }

    fn finish(&self, core: &Core, digest: Digest, found: Found) -> Result<Code, LoadError> {
        let Found { compiled, imports } = found;
        let pre = self.link(core, &compiled)?;
        let pre = GuestPre::new(pre).map_err(|error| LoadError::Contract(format!("{error:#}")))?;
        let places = places(&compiled, core.limits.sandboxes_max)?;
        // Before the first call instead of during it. Failing costs speed only.
        let _ = compiled.initialize_copy_on_write_image();
        Ok(Code { digest, pre, places, imports })
    }

    fn link(&self, core: &Core, compiled: &Compiled) -> Result<InstancePre<CallCtx>, LoadError> {
        let first = match self.linker.instantiate_pre(compiled) {
            Ok(pre) => return Ok(pre),
            Err(error) => error,
        };
        // Wasmtime names one missing import at a time; the author of a tool wants to know them all. So what is missing is
        // stubbed in a copy of the linker until nothing is, or until something does not fit in another way.
        let ty = compiled.component_type();
        let imports: HashMap<_, _> = ty.imports(&core.engine).map(|(name, item)| (name, item.ty)).collect();
        let mut linker = self.linker.clone();
        let mut missing = Vec::new();
        let mut error = first;
        loop {
            let text = format!("{error:#}");
            let name = text.split('`').nth(1).and_then(|name| imports.get_key_value(name));
            let Some((name, item)) = name.filter(|(name, _)| !missing.iter().any(|m| m == *name)) else {
                return Err(LoadError::Contract(text));
            };
            if stub(&mut linker, core, name, item).is_err() {
                return Err(LoadError::Contract(text));
            }
            missing.push((*name).to_owned());
            match linker.instantiate_pre(compiled) {
                Ok(_) => return Err(LoadError::Imports(missing)),
                Err(next) => error = next,
            }
        }
    }
}

/// What this home has compiled before. A file that cannot be trusted is entered, and gone.
fn cached(core: &Core, component: Digest) -> Option<Found> {
    match core.cache.as_ref()?.get(&core.engine, component) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%component, %error, "a file of the cache is not used; the component is compiled anew");
            core.log.record(Record::Noted(EntryKind::Cache { component, why: error.to_string() }));
            None
        }
    }
}

fn stub(linker: &mut Linker<CallCtx>, core: &Core, name: &str, item: &ComponentItem) -> wasmtime::Result<()> {
    let ComponentItem::ComponentInstance(instance) = item else {
        return linker.root().func_new(name, |_, _, _, _| Ok(()));
    };
    let mut stub = linker.instance(name)?;
    for (export, item) in instance.exports(&core.engine) {
        match item.ty {
            ComponentItem::ComponentFunc(_) => stub.func_new(export, |_, _, _, _| Ok(()))?,
            ComponentItem::Resource(_) => stub.resource(export, ResourceType::host::<()>(), |_, _| Ok(()))?,
            _ => {}
        }
    }
    Ok(())
}

fn places(compiled: &Compiled, sandboxes_max: u32) -> Result<u32, LoadError> {
    let unknown = || LoadError::Compile("it instantiates modules that it imports, so its size is unknown".into());
    let resources = compiled.resources_required().ok_or_else(unknown)?;
    let places = resources.num_memories.max(resources.num_tables.div_ceil(TABLES_PER_SANDBOX)).max(1);
    if places > sandboxes_max {
        return Err(LoadError::Compile(format!("it takes {places} places in a pool of {sandboxes_max}")));
    }
    Ok(places)
}

pub(crate) fn checked_name(name: String) -> Result<String, LoadError> {
    let bad = |c: char| c.is_control() || c == '/' || c == '\\';
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(bad) && name != "." && name != "..";
    if fits { Ok(name) } else { Err(LoadError::Name(name)) }
}
