//! What comes when nothing was asked for: a push, which is set aside, or a reply, which the next command would take for its
//! own. No time is too short for it, so no request is sent without a look at the socket.

use std::io;
use std::time::Duration;

use super::Connection;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::log_later::log_later;

impl Connection {
    /// A look at a connection that is to be used at once: a server that ended meanwhile is noticed before a request is lost
    /// on it. Waits for nothing.
    pub(crate) fn look(&mut self) -> Result<()> {
        self.socket.set_deadline(self.command_deadline());
        self.set_unasked_aside()?;
        self.looked_at = true;
        Ok(())
    }

    /// Has the server show that it is there, by the deadline (`PING`).
    pub(crate) fn prove_alive(&mut self, deadline: Deadline) -> Result<()> {
        match self.ping(deadline) {
            // It lives, and that is the question.
            Err(Error::Server { source, .. }) if source.code() == Some("NOPERM") => Ok(()),
            answered => {
                // A refusal breaks nothing, but this connection would be refused again.
                self.retired |= answered.is_err();
                answered
            }
        }
    }

    /// Looks after a connection that may have lain idle, before it is used again. After more than `health_check_interval` it
    /// must answer a `PING` by the deadline.
    pub(crate) fn check_after_idling(&mut self, health_check_interval: Duration, deadline: Deadline) -> Result<()> {
        self.look()?;
        let idle = self.idle_since(deadline.started());
        if idle <= health_check_interval && !health_check_interval.is_zero() {
            return Ok(());
        }
        self.prove_alive(deadline)
    }

    /// Takes what has come while nothing was under way. A reply among it retires the connection: no later one could be told
    /// from the one that is meant.
    pub(super) fn set_unasked_aside(&mut self) -> Result<()> {
        self.refuse_reply_too_many()?;
        loop {
            match self.socket.has_data() {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => return Err(self.failed(error, false)),
            }
            match self.replies.fill(&mut self.socket) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into(), false)),
                Ok(_) => self.refuse_reply_too_many()?,
                Err(error) => return Err(self.failed(error, false)),
            }
        }
    }

    /// The same for what is in the buffer already.
    fn refuse_reply_too_many(&mut self) -> Result<()> {
        while self.replies.first().is_some_and(|first| first == b'>' || self.unawaited > 0) {
            match self.replies.next() {
                Ok(Some((start, _))) if self.replies.byte(start) == Some(b'>') => {
                    log_later!(Trace, "{}: a push message is set aside", self.address);
                }
                Ok(Some(_)) => self.unawaited -= 1,
                Ok(None) => return Ok(()),
                Err(reason) => return Err(self.unacceptable(reason)),
            }
        }
        if self.replies.first().is_some() {
            let stray = "the peer sent a reply that nobody had asked for";
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidData, stray), false));
        }
        Ok(())
    }

    /// Whether something lies in the buffer that nobody asked for, other than a push.
    pub(super) fn has_reply_too_many(&self) -> bool {
        self.owed == 0 && self.unawaited == 0 && self.replies.first().is_some_and(|first| first != b'>')
    }
}
