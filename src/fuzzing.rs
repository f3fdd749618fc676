//! What the fuzz targets in `tests/fuzz` call; the unit tests call it too. A finding is a panic.
//!
//! The `redis` crate's parser is the oracle for everything that our decoder accepts.

use redis::{PushKind, ServerError, Value};

use crate::commands::{claimed, entries, received};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::params::PoolParams;
use crate::resp::{Cursor, Malformed, Scanner, Unacceptable};

/// A decoded reply may take this many times the bytes it came in.
const MOST_GROWTH: usize = 64;

/// Finds and decodes replies that stand one behind the other, in one piece and in small pieces. What our decoder accepts,
/// the `redis` crate must accept with the same result.
pub fn decode_reply(mut bytes: &[u8]) {
    loop {
        let whole = Scanner::default().scan(bytes);
        assert_eq!(scan_in_pieces(bytes, std::iter::repeat(1)), whole, "byte by byte");
        let sizes = bytes.iter().map(|&byte| 1 + usize::from(byte % 16));
        assert_eq!(scan_in_pieces(bytes, sizes.cycle()), whole, "in pieces");

        let Ok(Some(length)) = whole else { return };
        let (reply, rest) = bytes.split_at(length);
        if let Ok(value) = decode(reply) {
            compare_with_oracle(reply, &value);
        }
        bytes = rest;
    }
}

/// Decodes stream entries in each of the forms that commands answer with, and once more by way of a [`Value`].
pub fn decode_entries(bytes: &[u8]) {
    let Ok(Some(length)) = Scanner::default().scan(bytes) else { return };
    let (reply, _) = bytes.split_at(length);
    let value = decode(reply).ok();

    if let (Ok(entries), Some(value)) = (entries(&mut Cursor::new(reply)), &value) {
        let ours = entries.into_iter().map(flat).collect();
        let mut expected = list(value);
        if let Some(expected) = &mut expected {
            expected.retain(|(_, fields)| fields.is_some());
        }
        assert_same_entries(ours, expected);
    }
    if let (Ok(received), Some(value)) = (received(&mut Cursor::new(reply)), &value) {
        let mut expected = match value {
            Value::Nil => Some(Vec::new()),
            Value::Array(streams) => match streams.as_slice() {
                [] => Some(Vec::new()),
                [stream] => items(stream).and_then(|stream| list(stream.get(1)?)),
                _ => panic!("more than one stream was accepted"),
            },
            Value::Map(streams) => streams.first().map_or(Some(Vec::new()), |(_, entries)| list(entries)),
            _ => panic!("accepted, and is no list of streams"),
        };
        if let Some(expected) = &mut expected {
            expected.sort_by_key(|(_, fields)| fields.is_none());
        }
        let deleted = received.deleted.into_iter().map(|id| (id, None));
        let entries = received.entries.into_iter().map(|(entry, _)| flat(entry));
        assert_same_entries(entries.chain(deleted).collect(), expected);
    }
    if let (Ok(claimed), Some(value)) = (claimed(&mut Cursor::new(reply)), &value) {
        let ours = claimed.entries.into_iter().map(flat).collect();
        let mut expected = items(value).and_then(|parts| list(parts.get(1)?));
        if let Some(expected) = &mut expected {
            expected.retain(|(_, fields)| fields.is_some());
        }
        assert_same_entries(ours, expected);
    }
}

/// Reads a connection URL, and checks that no secret of it is shown.
pub fn parse_url(text: &str) {
    let Ok(params) = PoolParams::from_url(text) else { return };
    // Whether the values fit together is not the question; looking whether they do must not panic.
    let _ = params.validate();
    let _ = params.address();
    let shown = format!("{params:?}");
    let mut other = params;
    for secret in [&mut other.username, &mut other.password].into_iter().flatten() {
        secret.insert(0, '~');
    }
    assert_eq!(format!("{other:?}"), shown, "the secrets are shown");
}

/// Reads certificates and keys.
#[cfg(feature = "tls")]
pub fn parse_pem(bytes: &[u8]) {
    use crate::params::{Pem, TlsParams};

    let pem = || Pem::bytes(bytes);
    // The system's certificates are not the question, and take long to load.
    let identity = TlsParams::new().client_cert(pem()).client_key(pem()).danger_accept_invalid_certs(true);
    for params in [TlsParams::new().ca_certs(pem()), identity.clone(), identity.client_key_password("secret")] {
        if let Err(error) = crate::tls::client_config(&params) {
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("-----BEGIN PRIVATE KEY-----\n"), "a key is shown: {shown}");
        }
    }
}

/// Scans as a connection does to which the bytes come in pieces of these sizes.
pub(crate) fn scan_in_pieces(bytes: &[u8], sizes: impl Iterator<Item = usize>) -> Result<Option<usize>, Unacceptable> {
    let mut scanner = Scanner::default();
    let mut arrived = 0;
    for size in sizes {
        arrived = bytes.len().min(arrived + size);
        let scanned = scanner.scan(&bytes[..arrived]);
        if let Ok(Some(length)) = scanned {
            assert!(length <= arrived, "complete before all of it was there");
        }
        if scanned != Ok(None) || arrived == bytes.len() {
            return scanned;
        }
    }
    Ok(None)
}

/// Decodes one complete reply, all of it.
pub(crate) fn decode(reply: &[u8]) -> Result<Value, Malformed> {
    let mut cursor = Cursor::new(reply);
    let value = cursor.value()?;
    assert!(cursor.next().is_err(), "bytes are left over behind a complete reply");
    let growth = footprint(&value) / reply.len();
    assert!(growth <= MOST_GROWTH, "{growth} times the size of the reply was allocated");
    Ok(value)
}

/// Asserts that the oracle comes to the same result.
pub(crate) fn compare_with_oracle(reply: &[u8], ours: &Value) {
    match redis::parse_redis_value(reply) {
        Ok(theirs) => assert!(is_same(ours, &theirs), "{ours:?} is not {theirs:?}"),
        // It refuses text that is not UTF-8 in some places where we replace what is wrong.
        Err(error) => assert!(is_lossy(ours), "accepted {ours:?}, which the oracle refuses: {error}"),
    }
}

/// Equality that takes one NaN for another, "this user" for a user's name, and no arguments for those of an unknown
/// command.
fn is_same(one: &Value, other: &Value) -> bool {
    let all = |one: &[Value], other: &[Value]| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
    };
    let pairs = |one: &[(Value, Value)], other: &[(Value, Value)]| {
        let same =
            |(one, other): (&(Value, Value), &(Value, Value))| is_same(&one.0, &other.0) && is_same(&one.1, &other.1);
        one.len() == other.len() && one.iter().zip(other).all(same)
    };
    match (one, other) {
        (Value::Double(one), Value::Double(other)) => one == other || one.is_nan() && other.is_nan(),
        (Value::Array(one), Value::Array(other)) | (Value::Set(one), Value::Set(other)) => all(one, other),
        (Value::Map(one), Value::Map(other)) => pairs(one, other),
        (
            Value::Attribute { data: one, attributes: of_one },
            Value::Attribute { data: other, attributes: of_other },
        ) => is_same(one, other) && pairs(of_one, of_other),
        (Value::Push { kind: one, data: of_one }, Value::Push { kind: other, data: of_other }) => {
            one == other && all(of_one, of_other)
        }
        (Value::ServerError(ours), Value::ServerError(theirs)) if is_without_user(ours) && ours != theirs => {
            theirs.code() == "NOPERM" && theirs.details().is_some_and(|text| text.starts_with("User "))
        }
        (Value::ServerError(ours), Value::ServerError(theirs)) if is_unknown_command(ours) && ours != theirs => {
            let kept = ours.details().unwrap_or_default();
            let cut = theirs.details().and_then(|text| text.strip_prefix(kept));
            theirs.code() == "ERR" && cut.is_some_and(|text| text.starts_with(", with args beginning with"))
        }
        _ => one == other,
    }
}

/// Whether some bytes that are not UTF-8 may have been replaced, or kept where the oracle wants text.
fn is_lossy(value: &Value) -> bool {
    let replaced = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    match value {
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => replaced(text),
        // What was left out may have been lossy.
        Value::ServerError(error) => {
            let shortened = is_without_user(error) || is_unknown_command(error);
            shortened || replaced(error.code()) || error.details().is_some_and(replaced)
        }
        Value::Array(values) | Value::Set(values) => values.iter().any(is_lossy),
        Value::Map(pairs) => pairs.iter().any(|(key, value)| is_lossy(key) || is_lossy(value)),
        Value::Attribute { data, attributes } => {
            is_lossy(data) || attributes.iter().any(|(key, value)| is_lossy(key) || is_lossy(value))
        }
        Value::Push { kind, data } => {
            matches!(kind, PushKind::Other(kind) if replaced(kind)) || data.iter().any(is_lossy)
        }
        _ => false,
    }
}

/// Whether the decoder may have taken a user's name out.
fn is_without_user(error: &ServerError) -> bool {
    error.code() == "NOPERM" && error.details().is_some_and(|text| text.starts_with("this user has no permission"))
}

/// Whether the decoder may have taken arguments out.
fn is_unknown_command(error: &ServerError) -> bool {
    error.code() == "ERR" && error.details().is_some_and(|text| text.starts_with("unknown command"))
}

/// The bytes that a value has allocated.
fn footprint(value: &Value) -> usize {
    let all =
        |values: &Vec<Value>| values.capacity() * size_of::<Value>() + values.iter().map(footprint).sum::<usize>();
    let pairs = |pairs: &Vec<(Value, Value)>| {
        let inner: usize = pairs.iter().map(|(key, value)| footprint(key) + footprint(value)).sum();
        pairs.capacity() * size_of::<(Value, Value)>() + inner
    };
    match value {
        Value::BulkString(bytes) => bytes.capacity(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.capacity(),
        Value::Array(values) | Value::Set(values) | Value::Push { data: values, .. } => all(values),
        Value::Map(values) => pairs(values),
        Value::Attribute { data, attributes } => size_of::<Value>() + footprint(data) + pairs(attributes),
        _ => 0,
    }
}

/// An entry's id, and its names and values; `None` when the content is gone.
type FlatEntry = (EntryId, Option<Vec<Vec<u8>>>);

fn flat(entry: Entry) -> FlatEntry {
    (entry.id(), Some(entry.fields().flat_map(|(name, value)| [name.to_vec(), value.to_vec()]).collect()))
}

fn assert_same_entries(ours: Vec<FlatEntry>, expected: Option<Vec<FlatEntry>>) {
    // Text that is not UTF-8 was changed on its way through the value, and cannot be compared.
    if let Some(expected) = expected {
        assert_eq!(ours, expected);
    }
}

fn items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        _ => None,
    }
}

fn list(value: &Value) -> Option<Vec<FlatEntry>> {
    let mut entries = Vec::new();
    for entry in items(value).unwrap_or_default() {
        let Some(parts) = items(entry) else { continue };
        let id = EntryId::from_bytes(&string(parts.first()?)?)?;
        let fields = items(parts.get(1)?).map(|fields| fields.iter().map(string).collect::<Option<_>>());
        entries.push(match fields {
            None => (id, None),
            Some(fields) => (id, Some(fields?)),
        });
    }
    Some(entries)
}

fn string(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes.clone()),
        Value::SimpleString(text) if !text.contains(char::REPLACEMENT_CHARACTER) => Some(text.clone().into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}
