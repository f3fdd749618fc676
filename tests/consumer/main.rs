//! The consumer against a real server: what it hands out, what it acknowledges, how it stops, and what it survives.
//!
//! One module for each behaviour. Tests that need another process start this program again with a part to play (`child.rs`).

#[path = "../common/mod.rs"]
mod common;

mod acks;
mod backlog;
mod batch_acks;
mod child;
mod counting;
mod dead_letters;
mod dropping;
mod errors;
mod expiry;
mod group_loss;
mod idling;
mod incarnation;
mod iterators;
mod kills;
mod last_chances;
mod leases;
mod names;
mod own_pending;
mod poison;
mod retries;
mod spawning;
mod stats;
mod stopping;
mod support;
mod takeovers;
mod trimmed;
