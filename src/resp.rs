//! RESP2 and RESP3: one token reader, on which the frame scanner, the decoder to [`redis::Value`] and the entry decoder
//! stand; and the encoder for the commands this crate issues itself.
//!
//! Nothing is ever allocated because a length was announced: the buffer grows with the bytes that arrive, and values are
//! made only of replies that are complete.
//!
//! Protocol: <https://redis.io/docs/latest/develop/reference/protocol-spec/>

mod command;
mod refusal;
mod scanner;

use redis::{PushKind, Value, VerbatimFormat};

pub(crate) use command::{Command, header, push_argument};
pub(crate) use refusal::{answer_within_script, redis_error, server_error as error_value};
use refusal::{big_number, server_error};
pub(crate) use scanner::Scanner;

/// How deep a reply may nest; the same bound as the `redis` crate's parser.
const MAX_DEPTH: usize = 100;
/// What an element takes at least on the wire: a type byte and a line end.
const SHORTEST_ELEMENT: usize = 3;
/// The longest line of a simple string, error or number.
const MAX_LINE: usize = 64 * 1024;
/// The longest reply that any limit lets in; a program of 32 bits could not hold it.
pub(crate) const LONGEST_REPLY: usize = i32::MAX as usize;

/// Why bytes are not RESP.
pub(crate) type Malformed = &'static str;

/// Why a reply is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unacceptable {
    Malformed(Malformed),
    /// It is, or will be, longer than the limit.
    TooLarge,
}

impl From<Malformed> for Unacceptable {
    fn from(reason: Malformed) -> Unacceptable {
        Unacceptable::Malformed(reason)
    }
}

/// One element of a reply; an aggregate announces how many elements follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Bulk(&'a [u8]),
    Verbatim(&'a [u8]),
    BlobError(&'a [u8]),
    Nil,
    Double(f64),
    Boolean(bool),
    BigNumber(&'a [u8]),
    Array(usize),
    Set(usize),
    Push(usize),
    Map(usize),
    Attribute(usize),
}

impl Token<'_> {
    /// How many elements follow that belong to this one.
    fn children(&self) -> usize {
        match *self {
            Token::Array(count) | Token::Set(count) | Token::Push(count) => count,
            Token::Map(pairs) => pairs.saturating_mul(2),
            // The value that the attributes describe comes right after them.
            Token::Attribute(pairs) => pairs.saturating_mul(2).saturating_add(1),
            _ => 0,
        }
    }
}

/// Reads one token at the start of `bytes`, with the number of bytes it took; `None` when more bytes are needed.
#[inline]
fn read_token(bytes: &[u8]) -> Result<Option<(Token<'_>, usize)>, Malformed> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    match kind {
        // The null of RESP2. It has the shape of a string or an array, and no other type has one.
        b'$' | b'*' | b'~' if rest.starts_with(b"-1\r\n") => Ok(Some((Token::Nil, 5))),
        b'$' => blob(rest, Token::Bulk),
        b'=' => blob(rest, Token::Verbatim),
        b'!' => blob(rest, Token::BlobError),
        b':' => Ok(signed(rest)?.map(|(value, length)| (Token::Int(value), 1 + length))),
        b'*' => aggregate(rest, Token::Array),
        b'%' => aggregate(rest, Token::Map),
        b'~' => aggregate(rest, Token::Set),
        b'>' => aggregate(rest, Token::Push),
        b'|' => aggregate(rest, Token::Attribute),
        b'+' | b'-' | b',' | b'#' | b'_' | b'(' => {
            let Some(line) = line(rest)? else { return Ok(None) };
            let token = match kind {
                b'+' => Token::Simple(line),
                b'-' => Token::Error(line),
                b'(' => Token::BigNumber(line),
                b',' => Token::Double(double(line)?),
                b'#' => match line {
                    b"t" => Token::Boolean(true),
                    b"f" => Token::Boolean(false),
                    _ => return Err("a boolean that is neither t nor f"),
                },
                _ if line.is_empty() => Token::Nil,
                _ => return Err("a null with content"),
            };
            Ok(Some((token, 1 + line.len() + 2)))
        }
        _ => Err("an unknown type byte"),
    }
}

/// The bytes before the next CRLF.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let end = bytes.windows(2).take(MAX_LINE + 1).position(|pair| pair == b"\r\n");
    match end {
        Some(end) => Ok(bytes.get(..end)),
        // One byte more may be the carriage return of a line that is just not too long.
        None if bytes.len() > MAX_LINE + 1 => Err("a line longer than 64 KiB"),
        None => Ok(None),
    }
}

/// A decimal number up to its CRLF, with the bytes it took, CRLF included.
#[inline]
fn number(bytes: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    let digit = |byte: u8| i64::from(byte - b'0');
    // Nearly all numbers are short and positive lengths.
    match *bytes {
        [a @ b'0'..=b'9', b'\r', b'\n', ..] => Ok(Some((digit(a), 3))),
        [a @ b'0'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => Ok(Some((10 * digit(a) + digit(b), 4))),
        [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Ok(Some((100 * digit(a) + 10 * digit(b) + digit(c), 5)))
        }
        _ => any_number(bytes),
    }
}

/// The same for what may have a plus in front, as no length may.
fn signed(bytes: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    match bytes {
        [b'+', rest @ ..] if rest.first().is_none_or(u8::is_ascii_digit) => {
            Ok(number(rest)?.map(|(value, length)| (value, 1 + length)))
        }
        _ => number(bytes),
    }
}

/// The same for numbers of any length and sign, and for what is none.
fn any_number(bytes: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    let (negative, digits) = match bytes.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, bytes),
    };
    let mut value = 0_u64;
    for (count, &byte) in digits.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 && count < 40 {
            let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit)));
            value = next.ok_or("a number beyond 64 bits")?;
        } else if byte == b'\r' && count > 0 {
            let length = count + usize::from(negative) + 2;
            return match digits.get(count + 1) {
                Some(b'\n') => {
                    let signed = if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() };
                    Ok(Some((signed.ok_or("a number beyond 64 bits")?, length)))
                }
                Some(_) => Err("a carriage return without a line feed"),
                None => Ok(None),
            };
        } else {
            return Err("a number with a byte that is no digit, or with too many digits");
        }
    }
    Ok(None)
}

#[inline]
fn blob<'a>(
    bytes: &'a [u8],
    token: impl FnOnce(&'a [u8]) -> Token<'a>,
) -> Result<Option<(Token<'a>, usize)>, Malformed> {
    let Some((length, header)) = number(bytes)? else { return Ok(None) };
    let length = usize::try_from(length).map_err(|_| "a negative length")?;
    let Some((content, rest)) = bytes.get(header..).and_then(|rest| rest.split_at_checked(length)) else {
        return Ok(None);
    };
    match rest {
        [b'\r', b'\n', ..] => Ok(Some((token(content), 1 + header + length + 2))),
        [] | [_] => Ok(None),
        _ => Err("a string that does not end where its length says"),
    }
}

#[inline]
fn aggregate(
    bytes: &[u8],
    token: impl FnOnce(usize) -> Token<'static>,
) -> Result<Option<(Token<'_>, usize)>, Malformed> {
    let Some((count, header)) = number(bytes)? else { return Ok(None) };
    let count = usize::try_from(count).map_err(|_| "a negative count")?;
    Ok(Some((token(count), 1 + header)))
}

fn double(line: &[u8]) -> Result<f64, Malformed> {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or("a double that is no number")
}

/// Walks over the tokens of a complete reply without copying.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(reply: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: reply }
    }

    pub(crate) fn next(&mut self) -> Result<Token<'a>, Malformed> {
        let (token, length) = read_token(self.rest)?.ok_or("a reply that ends early")?;
        self.rest = self.rest.get(length..).unwrap_or_default();
        Ok(token)
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The number of elements of the array or set that comes next; `None` for a null.
    pub(crate) fn array(&mut self) -> Result<Option<usize>, Malformed> {
        match self.next()? {
            Token::Array(count) | Token::Set(count) => Ok(Some(count)),
            Token::Nil => Ok(None),
            _ => Err("something else where an array belongs"),
        }
    }

    /// The bytes of the string that comes next.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.next()? {
            Token::Bulk(bytes) | Token::Simple(bytes) => Ok(bytes),
            _ => Err("something else where a string belongs"),
        }
    }

    /// Passes over the element that comes next, whatever it holds.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        let mut to_skip = 1_usize;
        while to_skip > 0 {
            to_skip = to_skip - 1 + self.next()?.children();
        }
        Ok(())
    }

    /// The element that comes next as the `redis` crate's value.
    pub(crate) fn value(&mut self) -> Result<Value, Malformed> {
        self.value_at(1)
    }

    fn value_at(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err("a reply nested deeper than 100 levels");
        }
        Ok(match self.next()? {
            Token::Simple(b"OK") => Value::Okay,
            Token::Simple(line) => Value::SimpleString(text(line)),
            Token::Error(line) => server_error(line)?,
            Token::BlobError(content) => server_error(content)?,
            Token::Int(value) => Value::Int(value),
            Token::Bulk(content) => Value::BulkString(content.to_vec()),
            Token::Verbatim(content) => verbatim(content)?,
            Token::Nil => Value::Nil,
            Token::Double(value) => Value::Double(value),
            Token::Boolean(value) => Value::Boolean(value),
            Token::BigNumber(line) => big_number(line)?,
            Token::Array(count) => Value::Array(self.values(count, depth)?),
            Token::Set(count) => Value::Set(self.values(count, depth)?),
            Token::Map(pairs) => Value::Map(self.pairs(pairs, depth)?),
            Token::Attribute(pairs) => {
                let attributes = self.pairs(pairs, depth)?;
                Value::Attribute { data: Box::new(self.value_at(depth + 1)?), attributes }
            }
            Token::Push(count) => self.push(count, depth)?,
        })
    }

    fn values(&mut self, count: usize, depth: usize) -> Result<Vec<Value>, Malformed> {
        // The reply is complete, so `count` elements of at least three bytes each are really there.
        let mut values = Vec::with_capacity(count.min(self.rest.len() / 3 + 1));
        for _ in 0..count {
            values.push(self.value_at(depth + 1)?);
        }
        Ok(values)
    }

    fn pairs(&mut self, pairs: usize, depth: usize) -> Result<Vec<(Value, Value)>, Malformed> {
        let mut values = Vec::with_capacity(pairs.min(self.rest.len() / 6 + 1));
        for _ in 0..pairs {
            values.push((self.value_at(depth + 1)?, self.value_at(depth + 1)?));
        }
        Ok(values)
    }

    fn push(&mut self, count: usize, depth: usize) -> Result<Value, Malformed> {
        let mut data = self.values(count, depth)?.into_iter();
        let kind = match data.next() {
            None => PushKind::Other(String::new()),
            Some(Value::BulkString(kind)) => push_kind(text(&kind)),
            Some(Value::SimpleString(kind)) => push_kind(kind),
            Some(_) => return Err("a push without a kind"),
        };
        Ok(Value::Push { kind, data: data.collect() })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn verbatim(content: &[u8]) -> Result<Value, Malformed> {
    let content = text(content);
    let (format, text) = content.split_once(':').ok_or("a verbatim string without a format")?;
    let format = match format {
        "txt" => VerbatimFormat::Text,
        "mkd" => VerbatimFormat::Markdown,
        other => VerbatimFormat::Unknown(other.to_owned()),
    };
    Ok(Value::VerbatimString { format, text: text.to_owned() })
}

fn push_kind(kind: String) -> PushKind {
    match kind.as_str() {
        "invalidate" => PushKind::Invalidate,
        "message" => PushKind::Message,
        "pmessage" => PushKind::PMessage,
        "smessage" => PushKind::SMessage,
        "unsubscribe" => PushKind::Unsubscribe,
        "punsubscribe" => PushKind::PUnsubscribe,
        "sunsubscribe" => PushKind::SUnsubscribe,
        "subscribe" => PushKind::Subscribe,
        "psubscribe" => PushKind::PSubscribe,
        "ssubscribe" => PushKind::SSubscribe,
        _ => PushKind::Other(kind),
    }
}

#[cfg(test)]
#[path = "resp/tests.rs"]
mod tests;
