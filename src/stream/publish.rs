//! Publishing: one message in one round trip, and batches with a window of requests under way.

use std::sync::Arc;

use super::StepStream;
use crate::commands;
use crate::connection::Connection;
use crate::endpoint::StreamOutput;
use crate::entry::Message;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};

/// A batch is sent in pieces of at most this many messages, or bytes if those come first; while one piece is on its way, the
/// next is made.
const PIECE_MESSAGES: usize = 128;
const PIECE_BYTES: usize = 64 * 1024;
/// Room is made in advance for this many ids at most, whatever the iterator promises.
const MOST_EXPECTED: usize = 64 * 1024;

impl StepStream {
    /// Appends a message to the stream, which is created if there is none, and refreshes its expiry if the output has one,
    /// in one round trip (`XADD`, `PEXPIRE`).
    ///
    /// Waits at most `socket_timeout` for the server. Nothing is ever sent twice: when the connection fails after the
    /// request had left, the error [says so](Error::is_outcome_unknown), and the caller decides.
    ///
    /// # Errors
    /// [`Error::Params`] for a message without a field; [`Error::Server`] when the key holds something else
    /// (`WRONGTYPE`) or the server is out of memory (`OOM`).
    pub fn publish<'a>(&self, output: &StreamOutput, message: impl Into<Message<'a>>) -> Result<EntryId> {
        let message = message.into();
        output.check()?;
        commands::check_message(&message)?;
        let mut connection = self.pool.get()?;
        connection.append(1, |request| commands::encode_add(request, output, &message));
        if let Some(ttl) = output.ttl {
            commands::encode_refresh(&mut connection, &output.stream_id, ttl);
        }
        connection.send()?;
        let id = commands::receive_id(&mut connection, "XADD");
        commands::conclude_add(&mut connection, output);
        id
    }

    /// Appends messages, many of them under way at a time, through one connection. The ids come in the messages' order.
    ///
    /// Waits at most `socket_timeout` for each window of messages to be confirmed. Messages are taken from the iterator
    /// as they are sent, so it may be long, and may itself wait.
    ///
    /// # Errors
    /// Those of [`publish`](StepStream::publish). Once a message has left, the error is [`Error::Batch`], which tells which
    /// messages were confirmed: the others were refused, not sent, or
    /// [have an unknown outcome](Error::is_outcome_unknown).
    pub fn publish_batch<'a, I>(&self, output: &StreamOutput, messages: I) -> Result<Vec<EntryId>>
    where
        I: IntoIterator,
        I::Item: Into<Message<'a>>,
    {
        output.check()?;
        let mut messages = messages.into_iter().map(Into::into).peekable();
        let Some(first) = messages.peek() else { return Ok(Vec::new()) };
        commands::check_message(first)?;
        let mut connection = self.pool.get()?;
        let answers = Vec::with_capacity(messages.size_hint().0.min(MOST_EXPECTED));
        let mut batch =
            Batch { output, connection: &mut connection, taken: 0, answers, pieces: Vec::new(), refusal: None };
        match batch.publish(messages) {
            Ok(()) => Ok(batch.answers),
            Err(error) if batch.taken == 0 => Err(error),
            Err(error) => Err(Error::Batch { published: batch.published(), source: Arc::new(error) }),
        }
    }
}

/// A batch that is being published.
struct Batch<'b> {
    output: &'b StreamOutput,
    connection: &'b mut Connection,
    /// How many messages were taken from the caller's iterator.
    taken: usize,
    /// What became of the first of them: their ids, and [`EntryId::MIN`], which no entry has, for those that were refused.
    answers: Vec<EntryId>,
    /// How many messages each piece under way holds; the oldest first, two at most.
    pieces: Vec<usize>,
    /// The first message that the server refused.
    refusal: Option<Error>,
}

impl Batch<'_> {
    fn publish<'a>(&mut self, mut messages: impl Iterator<Item = Message<'a>>) -> Result<()> {
        let mut failure = None;
        while self.refusal.is_none() {
            let piece = match self.encode_piece(&mut messages) {
                Ok(0) => break,
                Ok(piece) => piece,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            self.connection.send()?;
            self.pieces.push(piece);
            if self.pieces.len() == 2 {
                self.confirm_piece()?;
            }
        }
        // What has left is answered, whatever stopped the rest.
        while !self.pieces.is_empty() {
            self.confirm_piece()?;
        }
        failure.or(self.refusal.take()).map_or(Ok(()), Err)
    }

    /// Encodes the next piece; how many messages it holds.
    fn encode_piece<'a>(&mut self, messages: &mut impl Iterator<Item = Message<'a>>) -> Result<usize> {
        let mut piece = 0;
        while piece < PIECE_MESSAGES && self.connection.unsent() < PIECE_BYTES {
            let Some(message) = messages.next() else { break };
            self.taken += 1;
            if let Err(error) = commands::check_message(&message) {
                // The messages before it are not to blame.
                if piece > 0 {
                    self.send_last_piece(piece)?;
                }
                return Err(error);
            }
            let output = self.output;
            self.connection.append(1, |request| commands::encode_add(request, output, &message));
            piece += 1;
        }
        if let (Some(ttl), true) = (self.output.ttl, piece > 0) {
            commands::encode_refresh(self.connection, &self.output.stream_id, ttl);
        }
        Ok(piece)
    }

    fn send_last_piece(&mut self, piece: usize) -> Result<()> {
        if let Some(ttl) = self.output.ttl {
            commands::encode_refresh(self.connection, &self.output.stream_id, ttl);
        }
        self.connection.send()?;
        self.pieces.push(piece);
        Ok(())
    }

    /// Takes the replies to the oldest piece. A refused message does not hide the ids of the others.
    fn confirm_piece(&mut self) -> Result<()> {
        let piece = if self.pieces.is_empty() { 0 } else { self.pieces.remove(0) };
        // The iterator may have taken its time since the piece was sent, and the replies have come long ago.
        self.connection.renew_deadline();
        for _ in 0..piece {
            match commands::receive_id(self.connection, "XADD") {
                Ok(id) => self.answers.push(id),
                // Where the server refused one and hung up, the others were not carried out, and it is the one to tell of.
                Err(error) if self.connection.has_failed() => {
                    return Err(self.refusal.take().filter(|_| !error.is_outcome_unknown()).unwrap_or(error));
                }
                Err(error) => {
                    self.answers.push(EntryId::MIN);
                    self.refusal.get_or_insert(error);
                }
            }
        }
        if self.pieces.is_empty() {
            commands::conclude_add(self.connection, self.output);
        } else if self.output.ttl.is_some() {
            // What may have to follow a refresh needs a connection that is owed nothing: the last piece's will do.
            let _ = commands::receive_refresh(self.connection);
        }
        Ok(())
    }

    /// For each message that was taken, its id if it was confirmed.
    fn published(&self) -> Arc<[Option<EntryId>]> {
        let answered = self.answers.iter().map(|id| Some(*id).filter(|id| *id != EntryId::MIN));
        answered.chain(std::iter::repeat(None)).take(self.taken).collect()
    }
}
