//! The log, and what it claims against whoever would rather it said something else: shown from outside, by the command, by
//! `sha256sum` and `openssl`, and by an attacker with the database open in SQLite.
//!
//! `host/docs/log-format.md` says what is claimed. What a test cannot claim (a log that was cut back to an earlier
//! checkpoint verifies by itself) is written down in one as well.

mod attackers;
mod bundle;
mod checkpoints;
mod command;
mod damaged;
mod evidence;
mod forge;
mod homes;
mod kept;
mod keys;
mod place;
mod retention;
mod shown;
mod terminal;
mod tree;
