//! Admission: what a component's bytes must be before anything else touches them.
//!
//! Invariant: bytes that leave this module are a valid component that uses only [`FEATURES`], stays inside the bounds
//! named here, exports the tool interface, and holds no bulk memory operation that can run for longer than one chunk
//! (`bulk.rs`) without passing an epoch check. No input makes it panic, overflow the stack or take more than time and
//! memory proportional to its length.
//!
//! Compiling what was admitted can still take long: see `docs/interrupts.md`, "Loads".

mod bulk;
mod chunks;
#[cfg(test)]
mod tests;

use thiserror::Error;
use wasmparser::{
    Chunk, ComponentExternalKind, FuncValidatorAllocations, Parser, Payload, ValidPayload, Validator, WasmFeatures,
};

/// What a component may use: WebAssembly 2.0 and what rustc, wasi-sdk, TinyGo, jco and componentize-py emit beside it.
///
/// The engine is configured with the same set. Left out on purpose: threads (`memory.atomic.wait` blocks the thread),
/// garbage collection and exceptions (not built in), more than one memory and 64-bit memories (the rewriting of bulk
/// operations does not know them), and asynchronous components (a second engine).
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::WASM2
    .union(WasmFeatures::RELAXED_SIMD)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL)
    // `externref` and the like: Wasmtime is built without a collector for them.
    .difference(WasmFeatures::GC_TYPES);

/// The interface that makes a component a tool.
pub(crate) const TOOL_INTERFACE: &str = "estop:tool/tool@0.1.0";

const COMPONENT_NESTING_LEVELS_MAX: usize = 8;
const COMPONENTS_MAX: usize = 256;
const MODULES_MAX: usize = 256;
const FUNCTIONS_MAX: usize = 200_000;
/// Each lifted or lowered function costs a compiled trampoline.
const CANONICAL_FUNCTIONS_MAX: usize = 20_000;
const TYPES_MAX: usize = 100_000;
const TOP_LEVEL_NAMES_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 256;
/// Code without a loop or a call passes no epoch check: this bounds how long it runs, and how long one function
/// occupies the compiler.
const FUNCTION_BODY_BYTES_MAX: usize = 1 << 20;
/// wasmparser reads types inside types by recursion, without a bound of its own, and overflows the stack: each level
/// takes about 3 KiB of it. With this bound 1 MiB is enough.
const TYPE_NESTING_LEVELS_MAX: usize = 256;

const MESSAGE_CHARS_MAX: usize = 400;
const EXPORTS_SHOWN_MAX: usize = 8;
const FIRST_BYTES_SHOWN: usize = 16;

/// A component that may be compiled.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The component to compile: what was given, with its bulk memory operations cut into chunks.
    pub(crate) component: Vec<u8>,
    /// What it imports, in its order: `wasi:io/poll@0.2.6`.
    pub(crate) imports: Vec<String>,
    /// How many bulk memory operations were replaced. With 0, `component` is what was given, byte for byte.
    #[cfg(test)]
    pub(crate) rewritten_operations: usize,
}

/// Why bytes are not admitted. Nothing has been compiled or run.
#[derive(Debug, Error)]
pub enum AdmissionError {
    /// A file that was never written, most often.
    #[error("the component is empty (0 bytes): build it again")]
    Empty,
    /// Something else.
    #[error("this is not WebAssembly, it begins with \"{start}\": give a component (`.wasm`)")]
    NotWebAssembly {
        /// The first bytes, escaped.
        start: String,
    },
    /// WebAssembly's text format.
    #[error("this is text, not a WebAssembly binary: parse it first (`wasm-tools parse`)")]
    Text,
    /// A module without the component around it.
    #[error("this is a core module, not a component: build for wasm32-wasip2, or wrap it (`wasm-tools component new`)")]
    CoreModule,
    /// It ends too early.
    #[error("the component is cut off after {bytes} bytes: copy or build it again")]
    Truncated {
        /// How many there are.
        bytes: usize,
    },
    /// It breaks the format.
    #[error("the component is not valid at offset {offset:#x}: {message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// Where (bytes).
        offset: usize,
    },
    /// It shares memory between threads.
    #[error(
        "this component needs threads (shared memory, offset {offset:#x}): estop refuses them because \
         `memory.atomic.wait` blocks the thread; build it without threads"
    )]
    Threads {
        /// Where (bytes).
        offset: usize,
    },
    /// It uses something that the engine has switched off.
    #[error("this component needs `{feature}`, which estop has switched off (offset {offset:#x}): {message}")]
    Feature {
        /// What it is called.
        feature: String,
        /// What is wrong.
        message: String,
        /// Where (bytes).
        offset: usize,
    },
    /// It is over a bound.
    #[error("the component has {found} {what}, at most {max} are admitted: split it")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        max: usize,
    },
    /// It was built for another version of the contract.
    #[error(
        "the component exports {found}, this estop runs {TOOL_INTERFACE}: build it with an estop-tool of that version"
    )]
    OtherVersion {
        /// What it exports.
        found: String,
    },
    /// It is a component of another kind.
    #[error("the component does not export {TOOL_INTERFACE}: it exports {found}")]
    NotATool {
        /// What it exports.
        found: String,
    },
    /// A defect of estop, not of the component.
    #[error("internal error while rewriting bulk memory operations: {0}; please report it with the component")]
    Rewriting(String),
}

/// Checks `bytes`, which may come from anywhere, and makes them interruptible.
///
/// Blocks for as long as it takes (a second for 50 MB): not for a thread that anything waits for.
pub(crate) fn admit(bytes: &[u8]) -> Result<Admitted, AdmissionError> {
    recognise(bytes)?;
    let (imports, exports) = validate(bytes)?;
    check_exports(&exports)?;
    let Some(bulk::Rewritten { component, operations: _operations }) =
        bulk::rewrite(bytes).map_err(|error| AdmissionError::Rewriting(error.to_string()))?
    else {
        return Ok(Admitted {
            component: bytes.to_vec(),
            imports,
            #[cfg(test)]
            rewritten_operations: 0,
        });
    };
    // Nothing here is cheaper than the compilation that follows, and a slip would be a guest that cannot be stopped.
    Validator::new_with_features(FEATURES)
        .validate_all(&component)
        .map_err(|error| AdmissionError::Rewriting(bounded(&error.to_string())))?;
    match bulk::rewrite(&component) {
        Ok(None) => Ok(Admitted {
            component,
            imports,
            #[cfg(test)]
            rewritten_operations: _operations,
        }),
        Ok(Some(_)) => Err(AdmissionError::Rewriting("an operation was left over".into())),
        Err(error) => Err(AdmissionError::Rewriting(error.to_string())),
    }
}

/// Says what `bytes` are where they are not a component at all.
fn recognise(bytes: &[u8]) -> Result<(), AdmissionError> {
    const MAGIC: &[u8] = b"\0asm";
    if bytes.is_empty() {
        return Err(AdmissionError::Empty);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(AdmissionError::CoreModule);
    }
    if MAGIC.starts_with(bytes) {
        return Err(AdmissionError::Truncated { bytes: bytes.len() });
    }
    if bytes.starts_with(MAGIC) {
        return Ok(());
    }
    let text = bytes.trim_ascii_start();
    if text.starts_with(b"(") || text.starts_with(b";;") {
        return Err(AdmissionError::Text);
    }
    let start = bytes.get(..FIRST_BYTES_SHOWN).unwrap_or(bytes);
    Err(AdmissionError::NotWebAssembly { start: start.escape_ascii().to_string() })
}

/// What has been counted so far, over all nested modules and components.
#[derive(Default)]
struct Counts {
    modules: usize,
    components: usize,
    functions: usize,
    canonical_functions: usize,
    types: usize,
}

/// The names at the top level: of the imports, and of the exports with their kinds.
type Names = (Vec<String>, Vec<(String, ComponentExternalKind)>);

/// Validates `bytes` in one pass, each section only after it was found to be within bounds.
fn validate(bytes: &[u8]) -> Result<Names, AdmissionError> {
    let mut validator = Validator::new_with_features(FEATURES);
    let mut counts = Counts::default();
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut functions = Vec::new();
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    let mut outer_parsers = Vec::new();
    let mut rest = bytes;
    loop {
        // Asking first as if more could follow tells "cut off" from "wrong".
        let chunk = match parser.parse(rest, false).map_err(invalid)? {
            Chunk::NeedMoreData(_) => {
                parser.parse(rest, true).map_err(|_| AdmissionError::Truncated { bytes: bytes.len() })?
            }
            parsed => parsed,
        };
        let Chunk::Parsed { consumed, payload } = chunk else {
            return Err(AdmissionError::Truncated { bytes: bytes.len() });
        };
        rest = rest.get(consumed..).unwrap_or_default();
        check_bounds(&payload, &mut counts, bytes, outer_parsers.len())?;
        if outer_parsers.is_empty() {
            read_names(&payload, &mut imports, &mut exports)?;
        }
        match validator.payload(&payload).map_err(invalid)? {
            ValidPayload::Func(function, body) => functions.push((function, body)),
            ValidPayload::Parser(inner) => outer_parsers.push(std::mem::replace(&mut parser, inner)),
            ValidPayload::End(_) => match outer_parsers.pop() {
                Some(outer) => parser = outer,
                None => break,
            },
            ValidPayload::Ok => {}
        }
    }
    let mut allocations = FuncValidatorAllocations::default();
    for (function, body) in functions {
        let mut validator = function.into_validator(allocations);
        validator.validate(&body).map_err(invalid)?;
        allocations = validator.into_allocations();
    }
    Ok((imports, exports))
}

/// Holds one section against the bounds, before it is validated.
fn check_bounds(
    payload: &Payload<'_>,
    counts: &mut Counts,
    bytes: &[u8],
    outer_levels: usize,
) -> Result<(), AdmissionError> {
    match payload {
        Payload::ModuleSection { .. } => add(&mut counts.modules, 1, "core modules", MODULES_MAX),
        Payload::ComponentSection { .. } => {
            add(&mut counts.components, 1, "nested components", COMPONENTS_MAX)?;
            at_most(outer_levels.saturating_add(1), "levels of nested components", COMPONENT_NESTING_LEVELS_MAX)
        }
        Payload::CodeSectionStart { count, .. } => add(&mut counts.functions, *count, "functions", FUNCTIONS_MAX),
        Payload::CodeSectionEntry(body) => {
            at_most(body.as_bytes().len(), "bytes in one function", FUNCTION_BODY_BYTES_MAX)
        }
        Payload::ComponentCanonicalSection(section) => {
            add(&mut counts.canonical_functions, section.count(), "canonical functions", CANONICAL_FUNCTIONS_MAX)
        }
        Payload::TypeSection(section) => add(&mut counts.types, section.count(), "types", TYPES_MAX),
        Payload::CoreTypeSection(section) => add(&mut counts.types, section.count(), "types", TYPES_MAX),
        Payload::ComponentTypeSection(section) => {
            add(&mut counts.types, section.count(), "types", TYPES_MAX)?;
            let items = bytes.get(section.original_position()..section.range().end);
            let levels = type_nesting_levels(items.unwrap_or_default());
            at_most(levels, "levels of nested types", TYPE_NESTING_LEVELS_MAX)
        }
        _ => Ok(()),
    }
}

/// An upper bound for how deeply the types of a section are nested, without reading them.
///
/// A type inside a type is a declaration (0x01) of a component (0x41) or an instance (0x42) type, so every level but
/// the outermost needs such a pair of bytes. Other things can look like one; that many of them do not occur.
fn type_nesting_levels(items: &[u8]) -> usize {
    let pairs = items.windows(2).filter(|pair| matches!(pair, [0x01, 0x41 | 0x42]));
    pairs.count().saturating_add(1)
}

fn add(count: &mut usize, more: u32, what: &'static str, max: usize) -> Result<(), AdmissionError> {
    *count = count.saturating_add(usize::try_from(more).unwrap_or(usize::MAX));
    at_most(*count, what, max)
}

fn at_most(found: usize, what: &'static str, max: usize) -> Result<(), AdmissionError> {
    if found > max { Err(AdmissionError::TooMany { what, found, max }) } else { Ok(()) }
}

fn read_names(
    payload: &Payload<'_>,
    imports: &mut Vec<String>,
    exports: &mut Vec<(String, ComponentExternalKind)>,
) -> Result<(), AdmissionError> {
    let own = |name: &str| {
        at_most(name.len(), "bytes in the name of an import or export", NAME_BYTES_MAX)?;
        Ok(name.to_owned())
    };
    match payload {
        Payload::ComponentImportSection(section) => {
            for import in section.clone() {
                imports.push(own(import.map_err(invalid)?.name.name)?);
                at_most(imports.len(), "imports", TOP_LEVEL_NAMES_MAX)?;
            }
        }
        Payload::ComponentExportSection(section) => {
            for export in section.clone() {
                let export = export.map_err(invalid)?;
                exports.push((own(export.name.name)?, export.kind));
                at_most(exports.len(), "exports", TOP_LEVEL_NAMES_MAX)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn check_exports(exports: &[(String, ComponentExternalKind)]) -> Result<(), AdmissionError> {
    let instances = || exports.iter().filter(|(_, kind)| *kind == ComponentExternalKind::Instance);
    if instances().any(|(name, _)| name == TOOL_INTERFACE) {
        return Ok(());
    }
    let unversioned = |name: &str| name.split_once('@').map_or(name.to_owned(), |(name, _)| name.to_owned());
    if let Some((found, _)) = instances().find(|(name, _)| unversioned(name) == unversioned(TOOL_INTERFACE)) {
        return Err(AdmissionError::OtherVersion { found: found.clone() });
    }
    let mut shown: Vec<_> = exports.iter().take(EXPORTS_SHOWN_MAX).map(|(name, _)| name.as_str()).collect();
    if exports.is_empty() {
        shown.push("nothing");
    } else if exports.len() > EXPORTS_SHOWN_MAX {
        shown.push("…");
    }
    Err(AdmissionError::NotATool { found: shown.join(", ") })
}

/// What wasmparser did not like, with a reason of our own where there is one.
fn invalid(error: wasmparser::Error) -> AdmissionError {
    let (message, offset) = (bounded(error.message()), error.offset());
    let threads = WasmFeatures::THREADS | WasmFeatures::SHARED_EVERYTHING_THREADS | WasmFeatures::CM_THREADING;
    match error.missing_wasm_feature() {
        Some(missing) if threads.intersects(missing) => AdmissionError::Threads { offset },
        Some(missing) => {
            let names: Vec<_> = missing.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-")).collect();
            AdmissionError::Feature { feature: names.join(", "), message, offset }
        }
        None => AdmissionError::Invalid { message, offset },
    }
}

/// `message`, which can quote the component, made fit for a terminal and a log.
fn bounded(message: &str) -> String {
    let mut shown: String = message.chars().take(MESSAGE_CHARS_MAX).flat_map(printable).collect();
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn printable(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    plain.into_iter().chain(escaped.into_iter().flatten())
}
