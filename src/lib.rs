//! A blocking client for Redis Streams with consumer groups. No async runtime.
//!
//! It is made for plain threaded programs, embedded tools and blocking tests: every call waits for a bounded time, memory is
//! bounded, and no entry is lost by the client, whatever fails.
//!
//! A publisher:
//!
//! ```no_run
//! use std::time::Duration;
//! use step_redis::{PoolParams, StepPool, StepStream, StreamOutput};
//!
//! fn main() -> step_redis::Result<()> {
//!     let stream = StepStream::new(StepPool::connect(PoolParams::from_url("redis://127.0.0.1:6379")?)?);
//!     let output = StreamOutput::new("orders").max_length(1000).ttl(Duration::from_secs(120));
//!     let id = stream.publish(&output, "two coffees")?;
//!     println!("published {id}");
//!     Ok(())
//! }
//! ```
//!
//! A consumer:
//!
//! ```no_run
//! use step_redis::{PoolParams, StepPool, StepStream, StreamInput};
//!
//! fn main() -> step_redis::Result<()> {
//!     let stream = StepStream::new(StepPool::connect(PoolParams::from_url("redis://127.0.0.1:6379")?)?);
//!     let consumer = stream.consumer(StreamInput::new("orders", "kitchen")).spawn()?;
//!     for delivery in &consumer {
//!         let delivery = delivery?;
//!         println!("{} {}", delivery.id(), delivery.text()?);
//!         delivery.ack()?;
//!     }
//!     consumer.close()?; // flushes the acknowledgements and reports
//!     Ok(())
//! }
//! ```
//!
//! # The map
//!
//! [`PoolParams`] and [`TlsParams`] say where the server is and how long anything may take. [`StepPool`] holds a bounded
//! number of connections to it. [`StepStream`] publishes, receives and inspects through a pool; its
//! [`consumer`](StepStream::consumer) is a thread that reads ahead and an iterator over what it read, its
//! [`publisher`](StepStream::publisher) lets many threads share round trips. [`StreamInput`] names what to read and how,
//! [`StreamOutput`] what to write and what the stream keeps. A [`Message`] goes in, a [`Delivery`] comes out: the guard of
//! one entry until it is settled. [`Error`] has one variant for each thing a caller would do differently.
//!
//! A pooled [`Connection`] is a [`redis::ConnectionLike`]: every command of the [`redis`] crate runs on it too.
//!
//! # When is an entry acknowledged?
//!
//! Only by [`Delivery::ack`], or by the two settings that ask for it by name: [`OnDrop::Ack`] for what an iterator has
//! handed out, and never while the thread is panicking. A delivery that is dropped, by the end of a scope, by `?` or by a
//! panic, leaves its entry pending at the server, and it comes again: to a consumer of the same name when it starts again,
//! or to any other once it lay idle for [`claim_idle`](StreamInput::claim_idle). [`release`](Delivery::release) offers it at
//! once, [`retry_after`](Delivery::retry_after) later, and [`dead_letter`](Delivery::dead_letter) moves it aside.
//!
//! Deliveries of [`StepStream::receive`] are acknowledged in one confirmed round trip. Deliveries of a [`Consumer`] queue
//! the acknowledgement: they travel together within a few milliseconds, are repeated across reconnects until the server has
//! confirmed them, and [`Consumer::close`] flushes them and reports. [`AckMode::Confirmed`] has `ack()` wait instead. A
//! delivery that outlives its consumer is acknowledged through the pool.
//!
//! Delivery is at least once: handlers should not mind an entry that comes twice. Publishing never repeats itself: when the
//! connection fails after a message has left, the error [says so](Error::is_outcome_unknown), and the caller decides.
//!
//! # What is a delivery?
//!
//! A delivery is a hand-out: a handler gets the entry, from an iterator, from [`Consumer::receiver`], or from
//! [`StepStream::receive`] and [`claim`](StepStream::claim). That is what [`Delivery::delivery_count`] tells and what
//! [`max_deliveries`](ConsumerBuilder::max_deliveries) limits. The server keeps the count, so it outlives the process; its
//! own commands would also count reading and claiming, so a [`Consumer`] writes the count itself: it *marks* an entry with
//! the number of its next hand-out when it takes it, and takes the mark back when the entry goes back untouched.
//!
//! | event | count before | after | who holds the entry | what a crash there costs |
//! |---|---|---|---|---|
//! | published | - | none | nobody: it is in the stream | nothing |
//! | read for the first time (`XREADGROUP >`) | none | 1 | this consumer's queue; marked for hand-out 1 | one count |
//! | the connection is lost before it arrives | 1 | 1 | pending for this consumer, kept fresh, read again, marked for hand-out 1 | one count |
//! | handed out | n | n | a handler; kept fresh at the server | nothing: the handler had it |
//! | kept fresh, or read again after a reconnect | n | n | as before | as before |
//! | acknowledged | n | - | nobody: it is off the pending list | nothing; it may come again until the server has confirmed |
//! | dropped, left, released, to be retried | n | n | pending for this consumer; anyone may claim it in its time | nothing |
//! | found to be claimed | n | n | as before: looking touches nothing | nothing |
//! | claimed, or read again after a restart | n | n + 1 | this consumer's queue; marked for hand-out n + 1 | one count |
//! | given back unseen, or on its way, when a consumer closes | n + 1 | n | pending; anyone may take it at once | one count, if the server is out of reach |
//! | its next hand-out is the last one permitted | limit - 1 | limit - 1 | where it was: it is not read ahead | nothing |
//! | ... and a handler is there for it | limit - 1 | limit | at the head of an empty queue | its last hand-out, if the process is killed before the handler takes it |
//! | a handler had it for the last time | limit | - | the dead letter stream | nothing: it is in one of the two streams, or in both |
//!
//! So without crashes a dead letter was in a handler exactly `max_deliveries` times. A process that is killed, or cut off
//! from the server for longer than [`claim_idle`](StreamInput::claim_idle), costs the entries it had queued one count each,
//! at most `prefetch + 2 * batch` of them, although no handler had them; they may become dead letters a hand-out earlier, but
//! never without the last one. An entry that has only one hand-out left is taken from the server when the queue is empty, a
//! handler waits for it in an iterator, and no other such entry has been in a handler for less than a second: one of them may
//! bring the process down. Where handlers take from [`Consumer::receiver`], nobody sees them wait, and the empty queue must do.
//! With `max_deliveries(1)` that is every entry, and each handler that takes from an iterator may have one. Once such an entry
//! is acknowledged, iterators hand out nothing until the server has confirmed that, for a second at most.
//!
//! An entry that was taken over by another consumer while it was queued here is not handed out by iterators, and comes from a
//! receiver as a delivery that settles nothing. The guard of a delivery that
//! is no longer this consumer's settles nothing, and neither does that of an entry whose stream was deleted and made again,
//! though the ids may be the same.
//!
//! # What blocks, and for how long?
//!
//! | call | waits for | at most |
//! |---|---|---|
//! | any that needs a pooled connection | the checkout | `connection_available_timeout` (2 s) |
//! | [`StepPool::connect`] | name, every address (250 ms apart), TLS, login, first `PING` | `socket_connect_timeout` (30 s) in total |
//! | a command, a pipeline, [`StepStream::publish`] | all of its replies together | `socket_timeout` (30 s) in total |
//! | [`StepStream::publish_batch`] | each window of messages | `socket_timeout` |
//! | [`StepStream::receive`] | an entry, then the server | `wait_timeout` (5 s) + `socket_timeout` |
//! | [`StepStream::claim`] | the search, what follows it | 4 × `socket_timeout` |
//! | [`Publisher::publish`] | room, its turn, the connection, the server | `socket_connect_timeout` + `socket_timeout` in total |
//! | [`ConsumerBuilder::spawn`] | two connections, the group | 2 × `socket_connect_timeout` + 2 × `socket_timeout` |
//! | [`Consumer`]'s `iter` | an entry, or the end | no bound: it is the loop; [`StopHandle::stop`] ends it |
//! | `try_iter`, `timeout_iter` | nothing, the given limit | the given limit |
//! | [`Delivery::ack`] of a consumer | nothing ([`AckMode::Queued`]) | - |
//! | [`Delivery::ack`] otherwise | the checkout, the server | `connection_available_timeout` + `socket_timeout` |
//! | [`StopHandle::stop`] | nothing; the reader wakes within milliseconds, on a slow line within `close_timeout` / 2 | - |
//! | [`Consumer::close`], Drop | last acknowledgements, threads | `close_timeout` (2 s) + 0.1 s |
//!
//! The first row comes on top of the others that need a pooled connection. The limits hold for a call as a whole, against a
//! peer that sends a byte now and then, too, and however many callers there are: a caller of a [`Publisher`] whose time is up
//! leaves the queue, and knows that nothing was sent. A connection with an I/O error,
//! a timeout or a reply that is not RESP is never used again, nor is one whose peer begins a reply longer than
//! [`max_reply`](PoolParams::max_reply) (64 MiB), which bounds the memory it takes. `BLOCK 0` is never sent: long waits are made of several of at
//! most 30 s, and keepalive and `TCP_USER_TIMEOUT` watch the connection meanwhile.
//!
//! A consumer reads on a connection of its own, so it never takes one from publishers. [`StepStream::receive`] does hold a
//! pooled connection while it waits.
//!
//! # What ends the loop?
//!
//! [`StopHandle::stop`], [`Consumer::close`], or a fatal error, which is yielded once: credentials, permissions or a
//! certificate that are refused (ours or the server's, [expired](crate#tls) ones too), a peer that answers TLS with something
//! else, a key that holds something else than a stream, a group that is lost under [`OnGroupLoss::Fail`]. Then the
//! iterator is fused. After a stop, what was read ahead is still handed out, then `None`.
//!
//! A lost connection does not end it. The consumer connects again, with growing, random pauses ([`Backoff`]), for as long as
//! it takes; it logs one warning for the outage, and counts it.
//!
//! # TLS
//!
//! TLS in five lines; `ca_certs` is not needed when the system trusts the server's authority:
//!
//! ```rust,no_run
//! use step_redis::{PoolParams, StepPool, TlsParams};
//!
//! # fn main() -> step_redis::Result<()> {
//! let tls = TlsParams::new().ca_certs("/path/to/ca.pem");
//! let pool = StepPool::connect(PoolParams::new("redis.example.com", 6380).tls(tls))?;
//! # drop(pool);
//! # Ok(())
//! # }
//! ```
//!
//! The same as a URL is `rediss://redis.example.com:6380?ssl_ca_certs=/path/to/ca.pem`. To a server that wants to know the
//! client, show a certificate too. Its key may be encrypted (PKCS#8, as `openssl pkcs8 -topk8 -v2 aes-256-cbc` writes it;
//! feature `encrypted-keys`); the password is never printed or logged, nor is the key:
//!
//! ```rust,no_run
//! use step_redis::{PoolParams, StepPool, TlsParams};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tls = TlsParams::new()
//!     .ca_certs("/path/to/ca.pem")
//!     .client_cert("/path/to/client.pem")
//!     .client_key("/path/to/client-key.pem")
//!     .client_key_password(std::env::var("CLIENT_KEY_PASSWORD")?);
//! let pool = StepPool::connect(PoolParams::new("redis.example.com", 6380).tls(tls))?;
//! # drop(pool);
//! # Ok(())
//! # }
//! ```
//!
//! A certificate that is valid for another name than the one it is reached under needs `server_name`. What else `rustls`
//! can do, a ready `Arc<rustls::ClientConfig>` brings along (`client_config`). Files are read once, when the pool is made;
//! what is wrong with one of them, or with the server's certificate, is one sentence that names the file and the step.
//! `cargo run --example tls` shows it with certificates on both sides, and needs nothing prepared.
//!
//! A handshake that the rules of TLS end is not tried again by itself ([`Error::is_retryable`] says no), whatever the cause:
//! that a certificate has expired or is not valid yet too, which may only mean that the machine's clock is not set, and that
//! the peer answers with something that is no TLS. A program that starts before the clock is right decides itself to try again.
//!
//! # Threads
//!
//! All pools share one thread (`step-redis-pool`), which closes what lies idle; a connection that is opened, or asked whether
//! it is still alive, has one for as long as that takes (`step-redis-pool-connect`). A consumer has `step-redis-reader` and
//! `step-redis-keeper`, and for a moment `step-redis-stop`; a name lookup runs in `step-redis-lookup`. [`StepPool`],
//! [`StepStream`], [`Publisher`] and [`StopHandle`] are `Clone + Send + Sync`; [`Delivery`] is `Send + 'static`.
//!
//! # What the server must allow
//!
//! Redis 6.2 or later, or Valkey. A user under an ACL needs `PING`, `HELLO` (or `AUTH`, with [`Protocol::Resp2`]) and, for
//! another database than 0, `SELECT`; and as far as they are used, `XADD`, `XREADGROUP`, `XACK`, `XGROUP`, `XPENDING`,
//! `XCLAIM`, `XAUTOCLAIM`, `XRANGE`, `XDEL`, `XINFO`, for an expiry `TYPE`, `PTTL` and `PEXPIRE`, and `EVAL`: what must happen in
//! one step at the server (taking entries again, leases, giving back, dead letters, an expiry that touches nothing but streams)
//! is a small script. Without `EVAL`, of these only the expiry works, at the cost of more round trips; a consumer reads and
//! acknowledges, claims nothing, and ends with the refusal when it finds entries from before a restart. `XGROUP` is needed only
//! where the group is to be created.
//!
//! `CLIENT ID` and `CLIENT UNBLOCK` make stopping gentler and claims prompt; `CLIENT KILL` and `INFO` (in a script) let a consumer
//! end its lost connection at once, where it would otherwise wait until the blocked read is over; `CLIENT SETNAME` names the
//! connection. All of them can be missing.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `tls` | yes | TLS through rustls with the ring provider |
//! | `encrypted-keys` | yes | client keys under a password; brings `tls` |
//!
//! `rustls` logs nothing of its own unless the program asks for its feature `logging`.
//!
//! # Log levels
//!
//! | level | what |
//! |---|---|
//! | error | a thread of the library panicked |
//! | warn | an outage begins; a permission is missing; reading waits for acknowledgements |
//! | warn | `claim_idle` is too short for the line; a dead letter stream that takes nothing now |
//! | warn | entries or a group were lost at the server; a stream was made again with the same ids; dead letters |
//! | warn | entries were taken over by another consumer |
//! | warn | a dropped consumer's error or unconfirmed acknowledgements; a dropped delivery that could not be settled |
//! | warn | an expiry that was not refreshed; certificates that are not verified, or left out |
//! | info | an outage is over |
//! | debug | connections opened and discarded, repeated attempts, the number of the system's certificates |
//! | trace | RESP3 push messages that were set aside, streams that cannot be compared for losses |
//!
//! Credentials, key material and payloads are never logged.
//!
//! # Not supported
//!
//! Exactly-once delivery (nobody has it), several streams in one consumer, publish and subscribe channels, Sentinel and
//! Cluster, async programs.

mod commands;
mod connection;
mod consumer;
mod consumer_name;
mod dead_letter;
mod deadline;
mod delivery;
mod endpoint;
mod entry;
mod entry_id;
mod error;
mod latch;
mod log_later;
mod net;
mod params;
mod pool;
mod publisher;
mod resp;
mod stream;
mod sync;
#[cfg(feature = "tls")]
mod tls;

#[cfg(any(fuzzing, test))]
pub mod fuzzing;

pub use commands::{ConsumerPending, GroupInfo, Pending, StreamInfo};
pub use connection::Connection;
pub use consumer::{
    AckMode, Backoff, Consumer, ConsumerBuilder, ConsumerStats, IntoIter, Iter, OnGroupLoss, StatsHandle, StopHandle,
    TimeoutIter, TryIter,
};
/// The channel in [`Consumer::receiver`]'s signature.
pub use crossbeam_channel;
pub use dead_letter::DeadLetter;
pub use delivery::{Delivery, OnDrop};
pub use endpoint::{Retention, StartId, StreamInput, StreamOutput};
pub use entry::{Entry, IntoBytes, Message};
pub use entry_id::{EntryId, ParseEntryIdError};
pub use error::{ConnectStep, Error, Result};
pub use net::Interrupter;
pub use params::{Pem, PoolParams, Protocol, TlsParams};
pub use pool::{PoolState, PooledConnection, StepPool};
pub use publisher::Publisher;
/// The crate whose commands run on a [`Connection`], and whose errors are behind ours.
pub use redis;
/// The TLS library whose configuration [`TlsParams`] takes.
#[cfg(feature = "tls")]
pub use rustls;
pub use stream::StepStream;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
