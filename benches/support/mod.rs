//! Support for the benches: a private server, the contenders, interleaved rounds, and tables.

// Each bench is a program of its own and uses a part of this. What is `pub` here reaches nobody else.
#![allow(dead_code, unreachable_pub, clippy::print_stdout, clippy::print_stderr)]

#[path = "../../tests/common/mod.rs"]
pub mod common;
pub mod raw;
pub mod record;
pub mod rounds;
pub mod session;
pub mod ways;
