//! What comes back: the buffer that holds it, and one complete reply in it.

use std::io::Read;
use std::sync::Arc;

use redis::Value;

use super::KEPT_SIZE;
use crate::error::{Error, Result};
use crate::net::Socket;
use crate::resp::{Cursor, MAX_REPLY, Malformed, Scanner, Token, redis_error};

/// How much is read at once at least.
const READ_SIZE: usize = 64 * 1024;

/// One complete reply, still in the read buffer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(super) address: &'a Arc<str>,
    pub(super) bytes: &'a [u8],
    pub(super) broken: &'a mut bool,
}

impl<'a> Reply<'a> {
    /// The first token, for replies that are one.
    pub(crate) fn token(&self) -> Result<Token<'a>> {
        Cursor::new(self.bytes).next().map_err(|reason| self.error(reason))
    }

    /// Decodes the reply, after a server's error has been turned into ours.
    pub(crate) fn decode<T>(
        self,
        command: &'static str,
        decode: impl FnOnce(&mut Cursor<'a>) -> Result<T, Malformed>,
    ) -> Result<T> {
        if let Some(b'-' | b'!') = self.bytes.first()
            && let Token::Error(line) | Token::BlobError(line) = self.token()?
        {
            return Err(Error::server(command, redis_error(line)));
        }
        decode(&mut Cursor::new(self.bytes)).map_err(|reason| Error::reply(command, reason))
    }

    /// Decodes a reply that should be one string, after a server's error has been turned into ours.
    pub(crate) fn decode_string<T>(
        self,
        command: &'static str,
        decode: impl FnOnce(&'a [u8]) -> Result<T, Malformed>,
    ) -> Result<T> {
        // The scanner has seen that the string is whole, so its length need not be read again.
        if let [b'$', rest @ .., b'\r', b'\n'] = self.bytes
            && let Some(end_of_header) = rest.iter().position(|byte| *byte == b'\n')
            && let Some(string) = rest.get(end_of_header + 1..)
        {
            return decode(string).map_err(|reason| Error::reply(command, reason));
        }
        self.decode(command, |reply| decode(reply.bytes()?))
    }

    /// The reply as the `redis` crate's value; a server's error is a value too.
    pub(crate) fn value(self) -> Result<Value> {
        Cursor::new(self.bytes).value().map_err(|reason| self.malformed(reason))
    }

    /// Retires the connection: what came is no answer to what was asked.
    pub(crate) fn malformed(self, reason: Malformed) -> Error {
        *self.broken = true;
        self.error(reason)
    }

    fn error(&self, reason: Malformed) -> Error {
        Error::Protocol { address: Arc::clone(self.address), reason }
    }
}

/// What was read and not yet taken.
#[derive(Debug, Default)]
pub(super) struct ReplyBuffer {
    /// Bytes `start..end` hold what was read; the rest is room.
    data: Vec<u8>,
    start: usize,
    end: usize,
    scanner: Scanner,
}

impl ReplyBuffer {
    /// Takes the next reply if it is complete: where it starts and ends.
    pub(super) fn next(&mut self) -> Result<Option<(usize, usize)>, Malformed> {
        let unread = self.data.get(self.start..self.end).unwrap_or_default();
        if unread.len() > MAX_REPLY {
            return Err("a reply longer than 2 GiB");
        }
        let length = match short_string(unread) {
            Some(length) if self.scanner.is_at_start() => length,
            _ => match self.scanner.scan(unread)? {
                Some(length) => length,
                None => return Ok(None),
            },
        };
        let start = self.start;
        self.start += length;
        Ok(Some((start, self.start)))
    }

    /// Reads once, making room first: the room grows with what has arrived, never with what was announced.
    pub(super) fn fill(&mut self, socket: &mut Socket) -> std::io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.release();
        } else if self.start > 0 && self.data.len() - self.end < READ_SIZE {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.len() - self.end < READ_SIZE / 2 {
            self.data.resize((self.data.len() * 2).max(READ_SIZE), 0);
        }
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        let read = socket.read(room)?;
        self.end += read;
        Ok(read)
    }

    /// Frees a buffer that one long reply has made large, if that reply has been taken.
    pub(super) fn release(&mut self) {
        if self.start == self.end && self.data.len() > KEPT_SIZE {
            (self.start, self.end) = (0, 0);
            self.data = Vec::new();
        }
    }

    pub(super) fn bytes(&self, start: usize, end: usize) -> &[u8] {
        self.data.get(start..end).unwrap_or_default()
    }

    pub(super) fn first(&self) -> Option<u8> {
        self.byte(self.start).filter(|_| self.start < self.end)
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.data.get(at).copied()
    }
}

/// The length of a complete string of two digits' length at the start, as an entry's id is: it needs no scanner.
fn short_string(unread: &[u8]) -> Option<usize> {
    let [b'$', tens @ b'0'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n', rest @ ..] = unread else { return None };
    let length = usize::from(tens - b'0') * 10 + usize::from(ones - b'0');
    rest.get(length..).is_some_and(|end| end.starts_with(b"\r\n")).then_some(length + 7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The short way must not find what the scanner would not.
        #[test]
        fn short_strings_are_what_the_scanner_takes_for_whole(
            length in "[0-9]{1,3}", header in "\r\n|\r|\n|", content in "[-0-9$\r\n]{0,40}", end in "\r\n|\r|x\r\n|",
        ) {
            let bytes = format!("${length}{header}{content}{end}");
            if let Some(found) = short_string(bytes.as_bytes()) {
                prop_assert_eq!(Scanner::default().scan(bytes.as_bytes()), Ok(Some(found)));
            }
            // And one that is certainly whole is found.
            let whole = format!("${:02}\r\n{content}\r\n{end}", content.len());
            prop_assert_eq!(short_string(whole.as_bytes()), Some(content.len() + 7));
        }
    }

    #[test]
    fn a_large_buffer_is_freed_once_its_reply_is_taken() {
        let reply = [format!("${KEPT_SIZE}\r\n").as_bytes(), &vec![b'x'; KEPT_SIZE], b"\r\n"].concat();
        let mut replies = ReplyBuffer { end: reply.len(), data: reply, ..ReplyBuffer::default() };
        replies.release();
        assert!(replies.data.len() > KEPT_SIZE, "the reply is not taken yet");
        assert_eq!(replies.next(), Ok(Some((0, replies.end))));
        replies.release();
        assert_eq!((replies.data.capacity(), replies.first()), (0, None));
        assert_eq!(replies.next(), Ok(None));
    }
}
