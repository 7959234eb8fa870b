//! The atomics that the gate is built from.
//!
//! The gate and the registration of children are model-checked by compiling their source files a second time against
//! the model checker's atomics; naming them through this module is what makes that possible.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
