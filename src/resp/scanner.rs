//! Where a reply ends, found while it arrives.

use super::{LONGEST_REPLY, MAX_DEPTH, SHORTEST_ELEMENT, Unacceptable, number, read_token};

/// The length of the token at the start of `bytes`, as far as it is announced: for a string that has not arrived in full.
fn announced(bytes: &[u8]) -> usize {
    match bytes.split_first() {
        Some((b'$' | b'=' | b'!', rest)) => match number(rest) {
            Ok(Some((length, header))) => usize::try_from(length).unwrap_or_default().saturating_add(1 + header + 2),
            _ => 0,
        },
        _ => 0,
    }
}

/// Finds where a reply ends, going on where it stopped when more bytes have arrived, so that a long reply which comes in
/// many pieces is looked at once.
#[derive(Debug)]
pub(crate) struct Scanner {
    /// How long a reply may be.
    limit: usize,
    position: usize,
    /// For each aggregate that is still open, how many of its elements are to come.
    pub(super) open: Vec<usize>,
    /// How many elements are to come in all of them together.
    missing: usize,
    /// How long the reply is at least, as far as it has been seen.
    least_length: usize,
}

impl Scanner {
    /// Takes replies of up to this many bytes.
    pub(crate) fn new(limit: usize) -> Scanner {
        Scanner { limit, position: 0, open: Vec::new(), missing: 0, least_length: 0 }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How long the reply is that the last scan did not find complete: at least so long, and if the flag says so, exactly.
    pub(crate) fn expected_length(&self) -> (usize, bool) {
        (self.least_length, self.missing <= 1)
    }

    /// Whether it has seen nothing of the next reply yet.
    pub(crate) fn is_at_start(&self) -> bool {
        self.position == 0
    }

    /// Looks at `bytes`, which start where the reply starts; the reply's length when it is complete.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Unacceptable> {
        loop {
            let rest = bytes.get(self.position..).unwrap_or_default();
            let Some((token, length)) = read_token(rest)? else {
                // What comes behind this token is no less than its share.
                let behind = self.missing.saturating_sub(1).saturating_mul(SHORTEST_ELEMENT);
                self.least_length =
                    self.position.saturating_add(announced(rest).max(rest.len())).saturating_add(behind);
                self.check(self.least_length)?;
                return Ok(None);
            };
            if self.open.len() >= MAX_DEPTH {
                return Err(Unacceptable::Malformed("a reply nested deeper than 100 levels"));
            }
            self.position += length;
            self.missing = self.missing.saturating_sub(1);
            let children = token.children();
            if children > 0 {
                self.missing = self.missing.saturating_add(children);
                self.check(self.position.saturating_add(self.missing.saturating_mul(SHORTEST_ELEMENT)))?;
                self.open.push(children);
                continue;
            }
            while let Some(remaining) = self.open.last_mut() {
                *remaining -= 1;
                if *remaining > 0 {
                    break;
                }
                self.open.pop();
            }
            if self.open.is_empty() {
                self.check(self.position)?;
                return Ok(Some(std::mem::take(&mut self.position)));
            }
        }
    }

    fn check(&self, length: usize) -> Result<(), Unacceptable> {
        if length > self.limit { Err(Unacceptable::TooLarge) } else { Ok(()) }
    }
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new(LONGEST_REPLY)
    }
}
