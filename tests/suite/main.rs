//! The crate against a real server, and against peers that no client should have to meet: one module for each part of its
//! behaviour, over RESP2 and RESP3, and the core of it over every kind of socket as well.

#[path = "../common/mod.rs"]
mod common;
#[macro_use]
mod context;

mod broken;
mod claim;
mod connection_like;
mod contract;
mod dead_letters;
mod deadlines;
mod delivery;
mod errors;
mod inspect;
mod loans;
mod payloads;
mod pool;
mod publish;
mod receive;
mod refusals;
#[cfg(target_os = "linux")]
mod signals;
mod threads;
