//! What comes back: the buffer that holds it, and one complete reply in it.

use std::io::Read;
use std::sync::Arc;

use redis::Value;

use super::KEPT_SIZE;
use crate::error::{Error, Result};
use crate::resp::{Cursor, Malformed, Scanner, Token, Unacceptable, redis_error};

/// How much is read at once at least.
const READ_SIZE: usize = 64 * 1024;

/// One complete reply, still in the read buffer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(super) address: &'a Arc<str>,
    pub(super) bytes: &'a [u8],
    pub(super) broken: &'a mut bool,
    pub(super) retired: &'a mut bool,
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
        decode(&mut Cursor::new(self.bytes)).map_err(|reason| self.unexpected(command, reason))
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
            return decode(string).map_err(|reason| self.unexpected(command, reason));
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

    /// It may be another command's: nobody uses the connection after this request.
    fn unexpected(self, command: &'static str, reason: Malformed) -> Error {
        *self.retired = true;
        Error::reply(command, reason)
    }

    fn error(&self, reason: Malformed) -> Error {
        Error::Protocol { address: Arc::clone(self.address), reason }
    }
}

/// What was read and not yet taken.
#[derive(Debug)]
pub(super) struct ReplyBuffer {
    /// Bytes `start..end` hold what was read; the rest is room.
    data: Vec<u8>,
    start: usize,
    end: usize,
    scanner: Scanner,
}

impl ReplyBuffer {
    /// Takes replies of up to this many bytes.
    pub(super) fn new(limit: usize) -> ReplyBuffer {
        ReplyBuffer { data: Vec::new(), start: 0, end: 0, scanner: Scanner::new(limit) }
    }

    /// How long a reply may be.
    pub(super) fn limit(&self) -> usize {
        self.scanner.limit()
    }

    /// Takes the next reply if it is complete: where it starts and ends.
    pub(super) fn next(&mut self) -> Result<Option<(usize, usize)>, Unacceptable> {
        let unread = self.data.get(self.start..self.end).unwrap_or_default();
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
    pub(super) fn fill(&mut self, socket: &mut impl Read) -> std::io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.release();
        } else if self.start > 0 && self.data.len() - self.end < READ_SIZE {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.len() - self.end < READ_SIZE / 2 {
            self.grow();
        }
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        let read = socket.read(room)?;
        self.end += read;
        Ok(read)
    }

    /// Makes room: twice as much as there was, but no more than the reply may need.
    fn grow(&mut self) {
        let (length, is_exact) = self.scanner.expected_length();
        let needed = if is_exact { length } else { length.max(self.end + self.end / 4) };
        let most = self.end.max(needed.min(self.limit())) + READ_SIZE;
        let size = (self.data.len() * 2).clamp(READ_SIZE, most);
        // Exactly, as a vector would take twice as much on its own.
        self.data.reserve_exact(size.saturating_sub(self.data.len()));
        self.data.resize(size, 0);
    }

    /// Frees a buffer that one long reply has made large, if that reply has been taken.
    pub(super) fn release(&mut self) {
        if self.start == self.end && self.data.len() > KEPT_SIZE {
            (self.start, self.end) = (0, 0);
            self.data = Vec::new();
        }
    }

    /// Hands over the string that was just taken, if it is long and alone in the buffer: to copy it would take as much again.
    pub(super) fn take_long_string(&mut self, start: usize, end: usize) -> Option<Vec<u8>> {
        let reply = self.bytes(start, end);
        if reply.len() <= KEPT_SIZE || end != self.end || reply.first() != Some(&b'$') {
            return None;
        }
        let header = reply.iter().position(|byte| *byte == b'\n')? + 1;
        let mut string = std::mem::take(&mut self.data);
        (self.start, self.end) = (0, 0);
        string.truncate(end - b"\r\n".len());
        string.drain(..start + header);
        Some(string)
    }

    /// Frees what is large, as nobody will ask for it any more. The first bytes of a greeting that failed tell who sent them.
    pub(super) fn abandon(&mut self) {
        if self.data.len() > KEPT_SIZE {
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

    /// Takes what comes until a reply is complete or refused, as a connection does: the result, and the most room that was
    /// ever taken.
    fn receive(limit: usize, mut peer: impl Read) -> (Result<Option<(usize, usize)>, Unacceptable>, usize) {
        let mut replies = ReplyBuffer::new(limit);
        let mut most = 0;
        loop {
            let next = replies.next();
            most = most.max(replies.data.capacity());
            if next != Ok(None) || replies.fill(&mut peer).unwrap() == 0 {
                return (next, most);
            }
        }
    }

    #[test]
    fn a_long_reply_takes_its_length_and_little_more() {
        const MEBIBYTE: usize = 1024 * 1024;
        let (limit, slack) = (16 * MEBIBYTE, 2 * READ_SIZE);
        // As one string, whose length is known; as many, of which only the number is; as a push.
        let string = |length: usize| format!("${length}\r\n{}\r\n", "x".repeat(length));
        for (length, elements) in [(9, 1), (16, 1), (15, 15), (15, 15 * 1024), (9, 3)] {
            let each = string(length * MEBIBYTE / elements - 20);
            let reply = format!("*{elements}\r\n{}", each.repeat(elements));
            let (taken, most) = receive(limit, reply.as_bytes());
            assert_eq!(taken, Ok(Some((0, reply.len()))));
            let bound = if elements == 1 { reply.len() } else { (reply.len() * 5 / 4).min(limit) };
            assert!(most <= bound + slack, "{most} bytes for {} in {elements} strings", reply.len());
        }
        // Whatever a peer sends that never comes to an end.
        let endless: [(&[u8], &[u8]); 4] = [
            (b"*5000000\r\n", b"$1\r\nx\r\n"),
            (b"*5000000\r\n", b"+OK\r\n"),
            (b"*10\r\n", b"$4194304\r\n"),
            (b"*1000000\r\n", b"|1\r\n+k\r\n+v\r\n"),
        ];
        for (start, rest) in endless {
            let peer = start.chain(std::io::Cursor::new(rest.repeat(32 * MEBIBYTE / rest.len())));
            let (refused, most) = receive(limit, peer);
            assert!(refused.is_err(), "{}: {refused:?}", String::from_utf8_lossy(rest));
            assert!(most <= limit + slack, "{most} bytes");
        }
        // An announcement that is too long is refused before anything of it arrives.
        let (refused, most) = receive(limit, format!("*1\r\n${}\r\n", limit).as_bytes());
        assert_eq!(refused, Err(Unacceptable::TooLarge));
        assert!(most <= slack);
    }

    #[test]
    fn a_long_string_is_handed_over_and_not_copied() {
        let text: Vec<u8> = (0..=250).cycle().take(2 * KEPT_SIZE).collect();
        let reply = [b"+OK\r\n", format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat();
        let mut replies = ReplyBuffer { end: reply.len(), data: reply, ..ReplyBuffer::new(4 * KEPT_SIZE) };
        let (start, end) = replies.next().unwrap().unwrap();
        assert_eq!(replies.take_long_string(start, end), None, "it is short");
        let (start, end) = replies.next().unwrap().unwrap();
        let before = replies.data.as_ptr();
        let taken = replies.take_long_string(start, end).unwrap();
        assert!(taken == text && taken.as_ptr() == before);
        assert_eq!((replies.data.capacity(), replies.first(), replies.next()), (0, None, Ok(None)));
    }

    #[test]
    fn a_large_buffer_is_freed_once_its_reply_is_taken() {
        let reply = [format!("${KEPT_SIZE}\r\n").as_bytes(), &vec![b'x'; KEPT_SIZE], b"\r\n"].concat();
        let mut replies = ReplyBuffer { end: reply.len(), data: reply, ..ReplyBuffer::new(2 * KEPT_SIZE) };
        replies.release();
        assert!(replies.data.len() > KEPT_SIZE, "the reply is not taken yet");
        assert_eq!(replies.next(), Ok(Some((0, replies.end))));
        replies.release();
        assert_eq!((replies.data.capacity(), replies.first()), (0, None));
        assert_eq!(replies.next(), Ok(None));
    }
}
