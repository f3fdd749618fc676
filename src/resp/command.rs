//! The encoder for the commands this crate issues itself.

/// Appends one command to a request buffer, argument by argument.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    out: &'a mut Vec<u8>,
    missing: usize,
}

impl<'a> Command<'a> {
    /// Starts a command of `arguments` arguments, its name among them.
    pub(crate) fn new(out: &'a mut Vec<u8>, arguments: usize) -> Command<'a> {
        header(out, b'*', arguments);
        Command::part(out, arguments)
    }

    /// This many arguments of a command that somebody else starts.
    pub(crate) fn part(out: &'a mut Vec<u8>, arguments: usize) -> Command<'a> {
        Command { out, missing: arguments }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<[u8]>) -> Command<'a> {
        self.push(argument.as_ref());
        self
    }

    pub(crate) fn number(mut self, number: u64) -> Command<'a> {
        self.push(itoa::Buffer::new().format(number).as_bytes());
        self
    }

    pub(crate) fn push(&mut self, argument: &[u8]) {
        push_argument(self.out, argument);
        self.missing = self.missing.wrapping_sub(1);
    }
}

/// Appends one argument.
pub(crate) fn push_argument(out: &mut Vec<u8>, argument: &[u8]) {
    // Once for the argument, its length and the line ends.
    out.reserve(argument.len() + 26);
    header(out, b'$', argument.len());
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}

impl Drop for Command<'_> {
    fn drop(&mut self) {
        debug_assert!(
            self.missing == 0 || std::thread::panicking(),
            "the announced number of arguments was not written"
        );
    }
}

#[inline]
pub(crate) fn header(out: &mut Vec<u8>, kind: u8, number: usize) {
    // Nearly all lengths and counts have few digits.
    let digit = |divisor| b'0' + (number / divisor % 10) as u8;
    match number {
        0..10 => out.extend_from_slice(&[kind, digit(1), b'\r', b'\n']),
        10..100 => out.extend_from_slice(&[kind, digit(10), digit(1), b'\r', b'\n']),
        100..1000 => out.extend_from_slice(&[kind, digit(100), digit(10), digit(1), b'\r', b'\n']),
        _ => {
            out.push(kind);
            out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_any_length() {
        for number in [0, 9, 10, 42, 99, 100, 105, 999, 1_000, 1_234_567, usize::MAX] {
            let mut out = Vec::new();
            header(&mut out, b'$', number);
            assert_eq!(out, format!("${number}\r\n").into_bytes());
        }
    }
}
