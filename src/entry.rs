//! What a stream holds: entries, and the messages that become entries. Pure data, no I/O.

use std::borrow::Cow;
use std::fmt;

use crate::entry_id::EntryId;
use crate::error::{Error, Result};

/// The field that carries the payload of a message made of a plain string or bytes.
pub(crate) const PAYLOAD_FIELD: &[u8] = b"message";

/// One entry of a stream: its id and its fields, in the order and with the repeats the publisher gave them.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    id: EntryId,
    /// All fields in one allocation, each as: length of the name, length of the value (`u32`, little endian), name, value.
    fields: Box<[u8]>,
}

impl Entry {
    /// The entry's id.
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// The value of the field `message`; empty when there is no such field.
    pub fn payload(&self) -> &[u8] {
        self.find(PAYLOAD_FIELD).unwrap_or_default()
    }

    /// The payload as text.
    ///
    /// # Errors
    /// [`Error::NotUtf8`] when it is not UTF-8; [`payload`](Entry::payload) still has the bytes.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(self.payload()).map_err(|source| Error::NotUtf8 { id: self.id, source })
    }

    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.find(name.as_bytes())
    }

    /// All fields as `(name, value)`, in order, repeats included.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        Fields { rest: &self.fields }
    }

    /// The bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Entry>() + self.fields.len()
    }

    #[cfg(test)]
    pub(crate) fn without_fields(id: EntryId) -> Entry {
        Entry { id, fields: Box::default() }
    }

    fn find(&self, name: &[u8]) -> Option<&[u8]> {
        Fields { rest: &self.fields }.find(|(field, _)| *field == name).map(|(_, value)| value)
    }
}

/// The names only: values are payload, and payloads do not belong in logs.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.fields().map(|(name, _)| String::from_utf8_lossy(name)).collect();
        f.debug_struct("Entry").field("id", &self.id).field("fields", &names).finish()
    }
}

/// Collects the fields of an entry in their packed form. It serves one entry after another, so that each takes a single
/// allocation of just its size.
#[derive(Debug, Default)]
pub(crate) struct FieldPacker(Vec<u8>);

impl FieldPacker {
    /// `None` when a name or value is longer than a `u32` counts; the server's own bound is far below.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.0.reserve(8 + name.len() + value.len());
        self.0.extend_from_slice(&u32::try_from(name.len()).ok()?.to_le_bytes());
        self.0.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(value);
        Some(())
    }

    /// An entry of the fields pushed since the last one.
    pub(crate) fn take(&mut self, id: EntryId) -> Entry {
        let fields = Box::from(self.0.as_slice());
        self.0.clear();
        Entry { id, fields }
    }
}

/// Walks over packed fields.
#[derive(Clone, Debug)]
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name_length, rest) = self.rest.split_first_chunk()?;
        let (value_length, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_length) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_length) as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// What is published: one payload, or named fields.
///
/// Made of `&str`, `String`, `&[u8]`, `Vec<u8>` and their references, it has one field named `message`. With
/// [`Message::new`] and [`field`](Message::field) it has any fields; order and repeats are kept.
///
/// ```
/// use step_redis::Message;
///
/// let plain: Message = "hello".into();
/// let fields = Message::new().field("kind", "speed").field("value", 52.to_string());
/// # let _ = (plain, fields);
/// ```
#[derive(Clone)]
pub struct Message<'a>(Content<'a>);

type Bytes<'a> = Cow<'a, [u8]>;

#[derive(Clone)]
enum Content<'a> {
    Payload(Bytes<'a>),
    Fields(Vec<(Bytes<'a>, Bytes<'a>)>),
}

impl<'a> Message<'a> {
    /// A message without a field yet. It needs at least one to be published.
    pub fn new() -> Message<'a> {
        Message(Content::Fields(Vec::new()))
    }

    /// Adds a field behind those already there. A message made of a payload keeps it as its first field.
    pub fn field(mut self, name: impl IntoBytes<'a>, value: impl IntoBytes<'a>) -> Message<'a> {
        let field = (name.into_bytes(), value.into_bytes());
        match &mut self.0 {
            Content::Fields(fields) => fields.push(field),
            Content::Payload(payload) => {
                let payload = std::mem::take(payload);
                self.0 = Content::Fields(vec![(Cow::Borrowed(PAYLOAD_FIELD), payload), field]);
            }
        }
        self
    }

    /// The number of fields.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Content::Payload(_) => 1,
            Content::Fields(fields) => fields.len(),
        }
    }

    /// The payload, if that is all there is.
    pub(crate) fn payload(&self) -> Option<&[u8]> {
        match &self.0 {
            Content::Payload(payload) => Some(payload),
            Content::Fields(_) => None,
        }
    }

    /// Calls `each` with the name and value of every field, in order.
    pub(crate) fn for_each_field(&self, mut each: impl FnMut(&[u8], &[u8])) {
        match &self.0 {
            Content::Payload(payload) => each(PAYLOAD_FIELD, payload),
            Content::Fields(fields) => fields.iter().for_each(|(name, value)| each(name, value)),
        }
    }
}

impl Default for Message<'_> {
    fn default() -> Self {
        Message::new()
    }
}

/// Sizes only: values are payload, and payloads do not belong in logs.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_map();
        self.for_each_field(|name, value| {
            fields.entry(&String::from_utf8_lossy(name), &format_args!("{} bytes", value.len()));
        });
        fields.finish()
    }
}

impl<'a, T: IntoBytes<'a>> From<T> for Message<'a> {
    fn from(payload: T) -> Message<'a> {
        Message(Content::Payload(payload.into_bytes()))
    }
}

/// Text or bytes, borrowed or owned, that can be a field's name or value.
///
/// Implemented for `&str`, `String`, `&[u8]`, `Vec<u8>`, byte arrays, their references and `Cow`s.
pub trait IntoBytes<'a>: sealed::Sealed {
    /// The bytes, copied only if they have to be.
    fn into_bytes(self) -> Cow<'a, [u8]>;
}

mod sealed {
    /// Keeps the list of byte-like types ours, so that it can grow without breaking anyone.
    pub trait Sealed {}
}

macro_rules! into_bytes {
    ($($type:ty: $this:ident => $bytes:expr;)*) => {$(
        impl<'a> sealed::Sealed for $type {}
        impl<'a> IntoBytes<'a> for $type {
            fn into_bytes(self) -> Cow<'a, [u8]> {
                let $this = self;
                $bytes
            }
        }
    )*};
}

into_bytes! {
    &'a str: text => Cow::Borrowed(text.as_bytes());
    &'a String: text => Cow::Borrowed(text.as_bytes());
    &'a [u8]: bytes => Cow::Borrowed(bytes);
    &'a Vec<u8>: bytes => Cow::Borrowed(bytes);
    String: text => Cow::Owned(text.into_bytes());
    Vec<u8>: bytes => Cow::Owned(bytes);
    Cow<'a, [u8]>: bytes => bytes;
    Cow<'a, str>: text => match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
}

impl<const LENGTH: usize> sealed::Sealed for &[u8; LENGTH] {}
impl<'a, const LENGTH: usize> IntoBytes<'a> for &'a [u8; LENGTH] {
    fn into_bytes(self) -> Cow<'a, [u8]> {
        Cow::Borrowed(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_order_and_repeats() {
        let mut packer = FieldPacker::default();
        for (name, value) in [("a", "1"), ("b", ""), ("a", "2"), ("", "x")] {
            packer.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let entry = packer.take(EntryId::MIN);
        let fields: Vec<_> = entry.fields().collect();
        assert_eq!(fields, [(&b"a"[..], &b"1"[..]), (b"b", b""), (b"a", b"2"), (b"", b"x")]);
        assert_eq!(entry.field("a"), Some(&b"1"[..]));
        assert_eq!(entry.field("c"), None);
        assert_eq!(entry.payload(), b"");
    }

    #[test]
    fn a_payload_keeps_its_place_when_fields_follow() {
        let message = Message::from("hello").field("kind", vec![1, 2]);
        let mut fields = Vec::new();
        message.for_each_field(|name, value| fields.push((name.to_vec(), value.to_vec())));
        assert_eq!(fields, [(b"message".to_vec(), b"hello".to_vec()), (b"kind".to_vec(), vec![1, 2])]);
    }

    #[test]
    fn debug_shows_no_payload() {
        let message = Message::new().field("token", "top secret");
        assert!(!format!("{message:?}").contains("secret"));
    }
}
