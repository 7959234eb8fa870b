//! A mistake in a tool's declaration is a readable error at the place of the mistake.
//!
//! The `.stderr` files are those of the compiler that the workspace names. After a change that is
//! meant, `TRYBUILD=overwrite cargo test -p estop-tool --test ui` writes them anew.

#[test]
fn mistakes_are_told_where_they_are() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
