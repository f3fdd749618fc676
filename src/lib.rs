//! A blocking client for Redis Streams. No async runtime.

mod commands;
mod connection;
mod consumer;
mod delivery;
mod endpoint;
mod entry;
mod error;
mod net;
mod params;
mod pool;
mod resp;
mod signal;
mod stream;
#[cfg(feature = "tls")]
mod tls;

pub use connection::Connection;
pub use consumer::{
    AckMode, Backoff, Consumer, ConsumerBuilder, ConsumerStats, IntoIter, Iter, OnGroupLoss, StopHandle, TimeoutIter,
    TryIter,
};
pub use crossbeam_channel;
pub use delivery::{Delivery, OnDrop};
pub use endpoint::{Retention, StartId, StreamInput, StreamOutput};
pub use entry::{Entry, EntryId, IntoBytes, Message};
pub use error::{ConnectStep, Error, Result};
pub use net::Interrupter;
pub use params::{Pem, PoolParams, Protocol, TlsParams};
pub use pool::{PoolState, PooledConnection, StepPool};
pub use redis;
pub use stream::{ConsumerPending, DeadLetter, GroupInfo, Pending, StepStream, StreamInfo};
