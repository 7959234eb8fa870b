//! The seam to the host.
//!
//! On wasm32 these are the imports of the contract, natively the fakes of [`testing`](crate::testing).
//! Invariant: everything else in this crate is the same on both, so that what a tool's own tests show
//! is what the host gets.

#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "wasm32")]
mod web;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::fake::process::{Child, start_program};
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use crate::testing::fake::{Bucket, Cas, commit, interrupted, invoke, log, open, progress, send};
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::process::{Child, start_program};
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::{Bucket, Cas, commit, interrupted, invoke, log, open, progress};
#[cfg(target_arch = "wasm32")]
pub(crate) use web::send;

/// Keys with their values, in any order.
pub(crate) type Found = Vec<(String, Option<Vec<u8>>)>;

/// Why `commit` did nothing.
pub(crate) enum CommitError {
    Interrupted,
    /// The message names the key.
    Conflict(String),
    Store(String),
}

/// Why an operation on a bucket failed.
pub(crate) enum StoreError {
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "the fake has them all"))]
    NoSuchStore,
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "the fake grants all"))]
    AccessDenied,
    Other(String),
}

/// Why a compare-and-swap changed nothing.
pub(crate) enum SwapError {
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "the fake cannot fail"))]
    Store(StoreError),
    /// The value was changed meanwhile: a handle on what it is now.
    Changed(Cas),
}
