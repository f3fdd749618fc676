//! The reader's connection: while it waits for the server, others know where to find it.

use std::sync::Arc;

use crate::connection::Connection;
use crate::consumer::shared::Shared;
use crate::error::Result;

/// A connection whose waits can be ended by other threads.
pub(super) struct WatchedConnection {
    connection: Connection,
    shared: Arc<Shared>,
}

impl WatchedConnection {
    pub(super) fn new(connection: Connection, shared: Arc<Shared>) -> WatchedConnection {
        shared.reader.set_client_id(connection.id());
        WatchedConnection { connection, shared }
    }

    /// Issues commands and waits for their replies.
    pub(super) fn ask<T>(&mut self, ask: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        self.shared.reader.waiting(|| ask(&mut self.connection))
    }

    /// The id by which the server knows it.
    pub(super) fn id(&self) -> Option<u64> {
        self.connection.id()
    }

    pub(super) fn is_reusable(&self) -> bool {
        self.connection.is_reusable()
    }
}

impl Drop for WatchedConnection {
    fn drop(&mut self) {
        self.shared.reader.set_client_id(None);
    }
}
