//! Tools that do not end, each in its own way, and one that ends politely. Try to stop them:
//!
//! ```text
//! estop run example-tools/runaway spin --deadline 2s
//! ```

mod polite;
mod rude;

estop_tool::export!(rude::spin, rude::recurse, rude::allocate, rude::write_then_spin, rude::ignore, polite::polite,);
