//! What a guest can ask of the host: one file for each WIT interface.
//!
//! Invariant: an interface that is not linked here, or by the embedder, does not exist for a guest; and what is linked
//! without a grant is empty, not open.

pub(crate) mod call;
pub(crate) mod clocks;
pub(crate) mod filesystem;
pub(crate) mod http;
pub(crate) mod keyvalue;
pub(crate) mod logging;
pub(crate) mod process;

use wasmtime::component::{HasSelf, Linker};

use crate::sandbox::CallCtx;

/// The contract's own interfaces and the drafts it builds on, generated from `wit/`.
#[allow(missing_docs, unreachable_pub, reason = "generated; the WIT has the documentation")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "guest",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "wasi:keyvalue/store.bucket": super::keyvalue::Bucket,
            "estop:tool/process.child": super::process::Child,
            "wasi:keyvalue/atomics.cas": super::keyvalue::Cas,
        },
    });
}

/// Links everything that a component may import without a grant of its own.
pub(crate) fn add_to_linker(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    filesystem::add_to_linker(linker)?;
    http::add_to_linker(linker)?;
    bindings::estop::tool::types::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    call::add_to_linker(linker)?;
    bindings::estop::tool::process::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    bindings::wasi::keyvalue::store::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    bindings::wasi::keyvalue::atomics::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    bindings::wasi::keyvalue::batch::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)?;
    bindings::wasi::logging::logging::add_to_linker::<_, HasSelf<_>>(linker, |ctx| ctx)
}

/// What a component that imports this interface gets without any grant, in words.
#[cfg(feature = "cli")]
pub(crate) fn grant(import: &str) -> &'static str {
    let interface = import.split('@').next().unwrap_or(import);
    match interface {
        "estop:tool/types" => "types only",
        "estop:tool/call" => {
            "its own call: interrupted, progress, commit; and other tools, with at most what it has itself"
        }
        "estop:tool/process" => "the programs that the call is granted",
        "wasi:keyvalue/store" | "wasi:keyvalue/atomics" | "wasi:keyvalue/batch" => {
            "its own state for each agent, inside the call's transaction"
        }
        "wasi:logging/logging" => "lines for whoever listens, bounded",
        "wasi:cli/environment" => "empty: no arguments, and no variables but those that are granted",
        "wasi:cli/stdin" => "empty: closed",
        "wasi:cli/stdout" => "empty: thrown away",
        "wasi:cli/stderr" => "the newest part is kept for errors",
        "wasi:clocks/wall-clock" | "wasi:clocks/monotonic-clock" => "coarse, unless they are granted: one millisecond",
        name if name.starts_with("wasi:random/") => "seeded, unless randomness is granted: the same for each call",
        name if name.starts_with("wasi:filesystem/") => "the workspaces that the call is granted, in its transaction",
        name if name.starts_with("wasi:http/") => "requests to the hosts that the call is granted",
        name if name.starts_with("wasi:sockets/") => "empty: every address is refused",
        name if name.starts_with("wasi:cli/terminal-") => "empty: no terminal",
        name if name.starts_with("wasi:") => "plumbing of the others",
        _ => "granted by the embedder",
    }
}
