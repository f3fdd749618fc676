//! Entry ids: reading and writing them.

use std::fmt;
use std::str::FromStr;

/// The id of an entry: milliseconds of the server's clock, and a sequence number within the millisecond.
///
/// Ids are ordered as the stream is.
///
/// ```
/// use step_redis::EntryId;
///
/// let id: EntryId = "1700000000000-7".parse()?;
/// assert_eq!((id.milliseconds, id.sequence), (1_700_000_000_000, 7));
/// assert!(id < EntryId::MAX && id.to_string() == "1700000000000-7");
/// # Ok::<(), step_redis::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970 by the server's clock.
    pub milliseconds: u64,
    /// Distinguishes the entries of one millisecond.
    pub sequence: u64,
}

impl EntryId {
    /// `0-0`, before every entry.
    pub const MIN: EntryId = EntryId::new(0, 0);
    /// The greatest id a stream can hold.
    pub const MAX: EntryId = EntryId::new(u64::MAX, u64::MAX);

    /// The id `milliseconds-sequence`.
    pub const fn new(milliseconds: u64, sequence: u64) -> EntryId {
        EntryId { milliseconds, sequence }
    }

    /// Reads the form the server sends, `milliseconds-sequence`.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<EntryId> {
        let (milliseconds, rest) = leading_number(bytes)?;
        let (sequence, rest) = leading_number(rest.strip_prefix(b"-")?)?;
        rest.is_empty().then_some(EntryId { milliseconds, sequence })
    }

    /// The id in the server's form, in `buffer`.
    pub(crate) fn format(self, buffer: &mut [u8; EntryId::LONGEST]) -> &[u8] {
        let mut length = 0;
        let mut append = |bytes: &[u8]| {
            if let Some(room) = buffer.get_mut(length..length + bytes.len()) {
                room.copy_from_slice(bytes);
                length += bytes.len();
            }
        };
        append(itoa::Buffer::new().format(self.milliseconds).as_bytes());
        append(b"-");
        append(itoa::Buffer::new().format(self.sequence).as_bytes());
        buffer.get(..length).unwrap_or_default()
    }

    /// The length of the longest id as text: two numbers of twenty digits.
    pub(crate) const LONGEST: usize = 41;
}

/// The decimal number at the start, at least one digit of it, and what follows.
fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    // The milliseconds of this century have thirteen digits.
    let eight = bytes.first_chunk().and_then(|digits| eight_digits(*digits));
    let (mut value, mut length) = eight.map_or((0, 0), |value| (value, 8));
    while let Some(digit) = bytes.get(length).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        value = match length {
            // Nineteen digits cannot overflow.
            ..19 => value * 10 + u64::from(digit),
            _ => value.checked_mul(10)?.checked_add(u64::from(digit))?,
        };
        length += 1;
    }
    if length == 0 { None } else { Some((value, bytes.get(length..)?)) }
}

/// The number that eight digits write, all of them read at once: neighbours are joined to pairs, pairs to fours, fours to
/// the whole.
fn eight_digits(digits: [u8; 8]) -> Option<u64> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let digits = u64::from_le_bytes(digits);
    let above_nine = (digits & (0x0f * EACH)) + 6 * EACH;
    if digits & (0xf0 * EACH) != 0x30 * EACH || above_nine & (0x10 * EACH) != 0 {
        return None;
    }
    let ones = digits & (0x0f * EACH);
    let pairs = (ones * 10 + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl FromStr for EntryId {
    type Err = ParseEntryIdError;

    fn from_str(text: &str) -> Result<EntryId, ParseEntryIdError> {
        EntryId::from_bytes(text.as_bytes()).ok_or(ParseEntryIdError(()))
    }
}

/// The text is no entry id. It converts into [`Error::Params`](crate::Error::Params).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry id has the form milliseconds-sequence, such as 1700000000000-0")]
pub struct ParseEntryIdError(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_in_the_servers_form() {
        for text in ["0-0", "1-2", "1700000000000-12345678", "18446744073709551615-18446744073709551615"] {
            let id: EntryId = text.parse().unwrap();
            let mut buffer = [0; EntryId::LONGEST];
            assert_eq!((id.to_string().as_str(), id.format(&mut buffer)), (text, text.as_bytes()));
        }
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1-2-3",
            "a-1",
            "18446744073709551616-0",
            "12345678",
            "12345678-",
            " 1-1",
            "+1-1",
        ] {
            assert!(text.parse::<EntryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn eight_digits_are_read_at_once() {
        for number in [0, 1, 10_203_040, 12_345_678, 90_000_009, 99_999_999] {
            assert_eq!(eight_digits(format!("{number:08}").into_bytes().try_into().unwrap()), Some(number));
        }
        for at in 0..8 {
            for wrong in (0..=u8::MAX).filter(|byte| !byte.is_ascii_digit()) {
                let mut digits = *b"12345678";
                digits[at] = wrong;
                assert_eq!(eight_digits(digits), None, "{digits:?}");
            }
        }
    }
}
