//! The one place of this crate where `unsafe` is needed: where bytes become machine code.
//!
//! Invariant: whoever makes a [`Trusted`] has seen to what it says.

#![allow(unsafe_code)]

use wasmtime::Engine;
use wasmtime::component::Component;

/// What `Component::serialize` or `Engine::precompile_component` has returned, unchanged; and how that is known.
pub(super) enum Trusted<'a> {
    /// Written by a process of the home's owner, with a MAC by a key that nobody else can read, and the MAC of these very
    /// bytes was checked.
    Authentic(&'a [u8]),
    /// Written by a child of this process into a pipe that only the two of them hold: a program that the embedder named,
    /// that said that it is our compiler, and that ended well.
    OurChild(&'a [u8]),
}

pub(super) fn deserialize(engine: &Engine, code: &Trusted<'_>) -> wasmtime::Result<Component> {
    let (Trusted::Authentic(code) | Trusted::OurChild(code)) = code;
    // SAFETY: the bytes must be what Wasmtime's compiler has returned, unchanged. Those of the cache are: see
    // `Trusted::Authentic`. Those of a child are, as far as the code is the same that runs in this process: the child is
    // `compile_child` of this crate, which gives the admitted component to the same Cranelift that would otherwise compile
    // it here. Whoever could make that child write something else by what it compiles could have taken over this process
    // if it had compiled itself; so trusting the child gives nobody more than compiling here does. Whether the bytes fit
    // this engine is checked by Wasmtime itself.
    unsafe { Component::deserialize(engine, code) }
}
