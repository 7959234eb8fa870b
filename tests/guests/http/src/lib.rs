//! A guest that asks hosts in every way that there is: with the client of the SDK, and by WASI's own functions.

mod client;
mod raw;

estop_tool::export!(client::ask, client::ask_often, raw::ask_raw, raw::ask_at_once, raw::ask_and_leave);
