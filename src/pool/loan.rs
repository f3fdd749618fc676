//! The loan of a connection: from the checkout until it is dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::lending::{Lending, World};
use super::surroundings::Surroundings;
use crate::connection::Connection;

/// A connection that is lent. Dropping it gives the connection back.
pub(super) struct Loan<W: World> {
    lending: Arc<Lending<W>>,
    /// Gone when the loan has ended.
    connection: Option<W::Connection>,
}

const UNTIL_IT_ENDS: &str = "a loan has its connection until it ends";

impl<W: World> Loan<W> {
    pub(super) fn new(lending: &Arc<Lending<W>>, connection: W::Connection) -> Loan<W> {
        Loan { lending: Arc::clone(lending), connection: Some(connection) }
    }

    pub(super) fn connection(&self) -> &W::Connection {
        // Only `drop` takes it, and nobody has the loan after that.
        self.connection.as_ref().expect(UNTIL_IT_ENDS)
    }

    pub(super) fn connection_mut(&mut self) -> &mut W::Connection {
        self.connection.as_mut().expect(UNTIL_IT_ENDS)
    }
}

impl<W: World> Drop for Loan<W> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.lending.give_back(connection);
        }
    }
}

/// A borrowed connection. It dereferences to [`Connection`], and dropping it gives it back to the pool, which lends it again
/// if it is as it was lent.
///
/// One that is broken or still owed a reply is closed instead, and so is one on which something was left behind that would
/// meet its next user: an open transaction, a watched key, another database, another login, a subscription, or a mode, as
/// set by `CLIENT REPLY`, `CLIENT TRACKING` or `MONITOR`. A transaction that was ended, by `EXEC` or `DISCARD`, leaves nothing.
/// A command that was sent without waiting for its reply (`set_no_response`) leaves the connection as it was lent, and whoever
/// has it next waits for as long as the server is at that command.
///
/// An [`Interrupter`](crate::Interrupter) of it ends with the loan.
pub struct PooledConnection(pub(super) Loan<Surroundings>);

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.connection()
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.connection_mut()
    }
}

impl fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}
