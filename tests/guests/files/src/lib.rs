//! A guest that uses files in every way that there is: step by step by WASI's own functions, and as programs do that know
//! nothing of either WASI or estop.

mod plain;
mod steps;

estop_tool::export!(
    plain::write_many,
    plain::write_much,
    plain::edit_and_spin,
    plain::edit_and_fail,
    plain::edit_commit_edit,
    plain::count_commits,
    plain::swap,
    plain::read_much,
    plain::write_and_fail,
    plain::edit_and_wait,
    steps::steps,
);
