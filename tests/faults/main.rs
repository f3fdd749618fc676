//! Nothing lost, nothing hung: what a program that uses this crate sees when the server or the network fails.
//!
//! Each module proves one kind of fault: outages and reconnects, a server that is killed again and again, streams and groups
//! that vanish, states in which a server refuses, half-open networks, the pool without a server, who has connections opened
//! and when, entries that are trimmed before anyone saw them, shared publishers whose connection fails, damaged replies, the
//! bounds of every call under load, slow lines, servers that are far away, ends on connections that are dead, reads that outlive their connection, and what of all that counts as a
//! delivery.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod closing;
mod counting;
mod damage;
mod far_away;
mod groups;
mod half_open;
mod loss;
mod lost_reads;
mod opening;
mod outage;
mod pool;
mod publishers;
mod reconnect;
mod sigkill;
mod slow_lines;
mod states;
mod support;
