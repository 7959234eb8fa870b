//! One tool for each odd thing that a guest can do.

mod ambient;
mod endings;
mod floods;

estop_tool::export!(
    endings::panic,
    endings::exit,
    endings::sleep,
    endings::compute_and_sleep,
    endings::fail,
    endings::invalid,
    endings::stack_overflow,
    endings::swallow,
    floods::attach,
    floods::big_output,
    floods::log,
    floods::progress,
    floods::stdout_flood,
    ambient::hash_map,
    ambient::random,
    ambient::clock,
    ambient::env,
    ambient::files,
    ambient::net,
    ambient::reach,
);
