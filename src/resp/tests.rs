//! The decoder against the `redis` crate's parser, with replies of all types, whole, in pieces, cut off and damaged.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::command::header;
use super::*;
use crate::fuzzing::{compare_with_oracle, decode, decode_reply, scan_in_pieces};

/// Text for one line: anything but a line end.
fn line_text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec!["", "OK", "ok", "PONG", "QUEUED", "t", "\r", "a\rb", "a\nb", "\n\r", "subscribe"])
            .prop_map(str::to_owned),
        ".{0,30}".prop_map(|text: String| text.replace("\r\n", "")),
    ]
}

fn error_text() -> impl Strategy<Value = String> {
    let codes =
        ["ERR", "WRONGTYPE", "MOVED", "ASK", "NOGROUP", "LOADING", "READONLY", "NOPERM", "EXECABORT", "", "err"];
    prop_oneof![
        8 => (select(codes.to_vec()), line_text()).prop_map(|(code, text)| format!("{code} {text}").replace("\r\n", "")),
        1 => line_text().prop_map(|text| format!("ERR unknown command 'XADD', with args beginning with: '{text}' ")),
        1 => Just("NOPERM User alice has no permissions to run the 'eval' command".to_owned()),
    ]
}

fn integer() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -1000..1000_i64, select(vec![i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX])]
}

fn double_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<f64>().prop_map(|double| double.to_string()),
        any::<f64>().prop_map(|double| format!("{double:e}")),
        select(vec!["inf", "-inf", "nan", "-nan", "0", "-0", "1.", ".5", "1e400", "5e-324", "+1"])
            .prop_map(str::to_owned),
    ]
}

fn blob_of(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header(&mut out, kind, content.len());
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
    out
}

fn line_of(kind: char, text: impl std::fmt::Display) -> Vec<u8> {
    format!("{kind}{text}\r\n").into_bytes()
}

fn aggregate_of(kind: u8, count: usize, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    header(&mut out, kind, count);
    out.extend(elements.iter().flatten());
    out
}

/// One reply that is no aggregate, in its bytes.
fn leaf() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        line_text().prop_map(|text| line_of('+', text)),
        error_text().prop_map(|text| line_of('-', text)),
        integer().prop_map(|number| line_of(':', number)),
        vec(any::<u8>(), 0..60).prop_map(|content| blob_of(b'$', &content)),
        select(vec!["$-1\r\n", "*-1\r\n", "_\r\n", "#t\r\n", "#f\r\n"]).prop_map(|reply| reply.as_bytes().to_vec()),
        double_text().prop_map(|text| line_of(',', text)),
        "-?[0-9]{1,60}".prop_map(|digits| line_of('(', digits)),
        vec(any::<u8>(), 0..30).prop_map(|content| blob_of(b'!', &content)),
        error_text().prop_map(|text| blob_of(b'!', format!("{text}\r\nmore").as_bytes())),
        (select(vec!["txt", "mkd", "x", ""]), vec(any::<u8>(), 0..30))
            .prop_map(|(format, text)| { blob_of(b'=', &[format.as_bytes(), b":", &text].concat()) }),
    ]
}

fn push_kind_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kinds = ["message", "subscribe", "punsubscribe", "invalidate", "smessage", "something", ""];
    prop_oneof![
        select(kinds.to_vec()).prop_map(|kind| blob_of(b'$', kind.as_bytes())),
        select(kinds.to_vec()).prop_map(|kind| line_of('+', kind)),
    ]
}

/// Any reply, in its bytes.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    leaf().prop_recursive(8, 60, 8, |inner| {
        let elements = vec(inner.clone(), 0..8);
        let pairs = vec((inner.clone(), inner.clone()).prop_map(|(key, value)| [key, value].concat()), 0..4);
        prop_oneof![
            3 => elements.clone().prop_map(|elements| aggregate_of(b'*', elements.len(), &elements)),
            1 => elements.clone().prop_map(|elements| aggregate_of(b'~', elements.len(), &elements)),
            2 => pairs.clone().prop_map(|pairs| aggregate_of(b'%', pairs.len(), &pairs)),
            1 => (pairs, inner).prop_map(|(mut pairs, value)| {
                let count = pairs.len();
                pairs.push(value);
                aggregate_of(b'|', count, &pairs)
            }),
            1 => (push_kind_bytes(), elements).prop_map(|(kind, mut elements)| {
                elements.insert(0, kind);
                aggregate_of(b'>', elements.len(), &elements)
            }),
            1 => Just(b">0\r\n".to_vec()),
        ]
    })
}

/// Bytes that come close to being a reply.
fn nearly_reply() -> impl Strategy<Value = Vec<u8>> {
    let parts: Vec<&[u8]> = vec![
        b"$", b"*", b"%", b"~", b">", b"|", b"=", b"!", b"+", b"-", b":", b",", b"#", b"_", b"(", b"\r\n", b"\r\n",
        b"\r\n", b"\r", b"\n", b"0", b"1", b"2", b"3", b"-1", b"-2", b"t", b"f", b"OK", b"txt:", b"1.5", b"nan", b" ",
        b"\xff", b"\0",
    ];
    vec(select(parts), 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reply_decodes_as_the_oracle_decodes_it(reply in reply()) {
        prop_assert_eq!(Scanner::default().scan(&reply), Ok(Some(reply.len())));
        prop_assert!(redis::parse_redis_value(&reply).is_ok());
        compare_with_oracle(&reply, &decode(&reply).unwrap());
    }

    #[test]
    fn pieces_end_where_the_whole_ends(reply in reply(), sizes in vec(1..40_usize, 1..20)) {
        prop_assert_eq!(scan_in_pieces(&reply, std::iter::repeat(1)), Ok(Some(reply.len())));
        prop_assert_eq!(scan_in_pieces(&reply, sizes.into_iter().cycle()), Ok(Some(reply.len())));
    }

    #[test]
    fn replies_stand_back_to_back(replies in vec(reply(), 1..5)) {
        let bytes = replies.concat();
        let mut rest = bytes.as_slice();
        let mut scanner = Scanner::default();
        for reply in &replies {
            prop_assert_eq!(scanner.scan(rest), Ok(Some(reply.len())));
            rest = &rest[reply.len()..];
        }
        prop_assert_eq!(scanner.scan(rest), Ok(None));
        decode_reply(&bytes);
    }

    #[test]
    fn a_part_of_a_reply_is_not_complete(reply in reply(), end in any::<Index>()) {
        let part = &reply[..end.index(reply.len())];
        prop_assert_eq!(Scanner::default().scan(part), Ok(None));
        prop_assert!(Cursor::new(part).value().is_err());
    }

    #[test]
    fn a_damaged_reply_is_refused_or_still_one(reply in reply(), flips in vec((any::<Index>(), 0..8_u8), 1..4)) {
        let mut bytes = reply;
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
        }
        decode_reply(&bytes);
    }

    #[test]
    fn any_bytes_are_refused_or_decoded_as_the_oracle_does(bytes in prop_oneof![vec(any::<u8>(), 0..200), nearly_reply()]) {
        decode_reply(&bytes);
    }

    #[test]
    fn passing_over_a_reply_takes_all_of_it(reply in reply()) {
        let mut cursor = Cursor::new(&reply);
        cursor.skip().unwrap();
        prop_assert!(cursor.rest.is_empty());
    }

    #[test]
    fn a_command_reads_as_it_was_written(arguments in vec(vec(any::<u8>(), 0..40), 1..6), number in any::<u64>()) {
        let mut request = Vec::new();
        let command = Command::new(&mut request, arguments.len() + 1);
        drop(arguments.iter().fold(command, |command, argument| command.arg(argument)).number(number));
        let mut expected: Vec<_> = arguments.into_iter().map(Value::BulkString).collect();
        expected.push(Value::BulkString(number.to_string().into_bytes()));
        prop_assert_eq!(decode(&request).unwrap(), Value::Array(expected));
    }
}

fn scan(bytes: impl AsRef<[u8]>) -> Result<Option<usize>, Unacceptable> {
    Scanner::default().scan(bytes.as_ref())
}

#[test]
fn a_hundred_levels_and_no_more() {
    for kind in ["*1\r\n", "~1\r\n", "%1\r\n+k\r\n", "|0\r\n", ">2\r\n+k\r\n"] {
        let nested = |depth: usize| format!("{}:1\r\n", kind.repeat(depth - 1));
        let deepest = nested(100);
        assert_eq!(scan(&deepest), Ok(Some(deepest.len())), "{kind:?}");
        compare_with_oracle(deepest.as_bytes(), &decode(deepest.as_bytes()).unwrap());
        let too_deep = nested(101);
        assert!(scan(&too_deep).is_err(), "{kind:?}");
        assert!(Cursor::new(too_deep.as_bytes()).value().is_err(), "{kind:?}");
        assert!(redis::parse_redis_value(too_deep.as_bytes()).is_err(), "{kind:?}");
    }
    // A peer that only ever opens costs a hundred places, not more.
    let mut scanner = Scanner::default();
    assert!(scanner.scan("*1\r\n".repeat(1_000_000).as_bytes()).is_err());
    assert!(scanner.open.capacity() <= 2 * MAX_DEPTH);
}

#[test]
fn announced_lengths_have_bounds() {
    // Each reply is 100 bytes long in the end, if nothing in it is longer than it must be.
    for just_good in ["$93\r\n", "=93\r\n", "!93\r\n", "*31\r\n+\r\n+\r\n", "%15\r\n+k\r\n", "*2\r\n*3\r\n$76\r\n"] {
        for (limit, expected) in [(100, Ok(None)), (90, Err(Unacceptable::TooLarge))] {
            assert_eq!(Scanner::new(limit).scan(just_good.as_bytes()), expected, "{just_good:?}");
        }
    }
    let whole = format!("*2\r\n$43\r\n{0}\r\n$38\r\n{1}\r\n", "x".repeat(43), "x".repeat(38));
    assert_eq!(Scanner::new(whole.len()).scan(whole.as_bytes()), Ok(Some(whole.len())));
    let mut strict = Scanner::new(whole.len() - 1);
    let seen = (0..whole.len()).find(|end| strict.scan(&whole.as_bytes()[..*end]) != Ok(None));
    assert_eq!(seen, Some("*2\r\n$43\r\n\r\n$38\r\n".len() + 43), "as soon as the length is told");
    let longest = i64::MAX;
    for kind in "$=!*%~>|".chars() {
        assert_eq!(scan(format!("{kind}{longest}\r\n")), Err(Unacceptable::TooLarge), "{kind}");
    }
    for kind in "$=!*%~>|".chars() {
        for length in ["-2", "-1", "-0", "-", "", "1a", " 1", "+1", "9223372036854775807", "-9223372036854775808"] {
            let reply = format!("{kind}{length}\r\n");
            let expected = match (kind, length) {
                ('$' | '*' | '~', "-1") => Ok(Some(5)),
                ('*' | '%' | '~' | '>', "-0") => Ok(Some(5)),
                ('$' | '=' | '!' | '|', "-0") => Ok(None),
                _ => Err(()),
            };
            assert_eq!(scan(&reply).map_err(drop), expected, "{reply:?}");
            decode_reply(reply.as_bytes());
        }
    }
}

/// What is announced is not what is allocated: with these announcements, a decoder that trusts them would ask for many
/// gigabytes.
#[test]
fn an_announcement_allocates_nothing() {
    for kind in "*%~>|".chars() {
        // As many as the longest limit lets in, on the way down.
        let announcement = format!("{kind}3500000\r\n");
        let nested = announcement.repeat(99);
        let mut scanner = Scanner::default();
        assert_eq!(scanner.scan(nested.as_bytes()), Ok(None));
        assert!(scanner.open.capacity() <= 2 * MAX_DEPTH);
        let before = most_memory();
        // Only complete replies are ever decoded. Even so, the decoder does not believe a count.
        assert!(Cursor::new(nested.as_bytes()).value().is_err());
        assert!(Cursor::new(announcement.as_bytes()).skip().is_err());
        assert!(most_memory() - before < 1 << 32, "{announcement:?}");
    }
    for announcement in ["$2147483600\r\n", "=2147483600\r\n", "!2147483600\r\n"] {
        assert_eq!(scan(announcement), Ok(None));
    }
}

/// The most address space that this process ever had, where the system tells.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

#[test]
fn lines_have_a_bound() {
    for kind in "+-(".chars() {
        let longest = format!("{kind}{}\r\n", "1".repeat(MAX_LINE));
        assert_eq!(scan(&longest), Ok(Some(longest.len())), "{kind}");
        compare_with_oracle(longest.as_bytes(), &decode(longest.as_bytes()).unwrap());
        // However it comes: with half of the line end too.
        for missing in 1..4 {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.scan(&longest.as_bytes()[..longest.len() - missing]), Ok(None), "{kind} {missing}");
            assert_eq!(scanner.scan(longest.as_bytes()), Ok(Some(longest.len())), "{kind} {missing}");
        }
        let too_long = format!("{kind}{}", "1".repeat(MAX_LINE + 2));
        assert!(scan(&too_long).is_err(), "{kind}");
        assert!(scan(too_long + "\r\n").is_err(), "{kind}");
    }
    assert!(scan(format!(":{}", "0".repeat(100))).is_err());
    assert!(scan(format!("${}", "0".repeat(100))).is_err());
}

#[test]
fn numbers_to_the_bounds_of_64_bits() {
    for number in ["0", "-0", "007", "9223372036854775807", "-9223372036854775808", "0000000000000000000000000001"] {
        let reply = line_of(':', number);
        assert_eq!(decode(&reply).unwrap(), Value::Int(number.parse().unwrap()));
        compare_with_oracle(&reply, &decode(&reply).unwrap());
    }
    for number in
        ["9223372036854775808", "-9223372036854775809", "99999999999999999999", "", "-", "--1", "1-", "1.0", "0x1"]
    {
        assert!(scan(line_of(':', number)).is_err(), "{number}");
        assert!(redis::parse_redis_value(&line_of(':', number)).is_err(), "{number}");
    }
}

#[test]
fn text_that_is_not_utf8_is_kept_readable() {
    let table: [(&[u8], Value); 3] = [
        (b"+a\xFFb\r\n", Value::SimpleString("a\u{FFFD}b".to_owned())),
        (b"=6\r\ntxt:\xFFb\r\n", Value::VerbatimString { format: VerbatimFormat::Text, text: "\u{FFFD}b".to_owned() }),
        (b"$2\r\n\xFFb\r\n", Value::BulkString(b"\xFFb".to_vec())),
    ];
    for (reply, expected) in table {
        assert_eq!(decode(reply).unwrap(), expected);
    }
    assert_eq!(redis_error(b"ERR a\xFFb").detail(), Some("a\u{FFFD}b"));
    // The name that is taken out of the error takes what is wrong with it along.
    decode_reply(b"-NOPERM User al\xFFce has no permissions to run the 'eval' command\r\n");
    decode_reply(b"-ERR unknown command 'XADD', with args beginning with: '\xFF' \r\n");
}

#[test]
fn an_unknown_command_keeps_its_name_and_not_its_arguments() {
    for (line, kept) in [
        ("ERR unknown command 'XADD', with args beginning with: 'orders' '*' 'hidden' ", "unknown command 'XADD'"),
        ("ERR unknown command `XADD`, with args beginning with: `orders`, `hidden`, ", "unknown command `XADD`"),
        ("ERR unknown command 'XADD'", "unknown command 'XADD'"),
        (
            "ERR wrong number of arguments, with args beginning with",
            "wrong number of arguments, with args beginning with",
        ),
    ] {
        for reply in [line_of('-', line), blob_of(b'!', line.as_bytes())] {
            let Ok(Value::ServerError(error)) = decode(&reply) else { panic!("{line}") };
            assert_eq!((error.code(), error.details()), ("ERR", Some(kept)));
            decode_reply(&reply);
        }
        assert_eq!(redis_error(line.as_bytes()).detail(), Some(kept));
    }
}

#[test]
fn what_is_no_reply() {
    for bytes in [
        "\r\n",
        "PING\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "#x\r\n",
        "_x\r\n",
        ",x\r\n",
        "$1\r\nab\r\n",
        ":1\rx",
        "$1\n",
    ] {
        assert!(scan(bytes).is_err(), "{bytes:?}");
    }
    // A push must say what it is.
    for bytes in [">1\r\n:1\r\n", ">1\r\n_\r\n", ">1\r\n+OK\r\n"] {
        assert_eq!(scan(bytes), Ok(Some(bytes.len())));
        assert!(decode(bytes.as_bytes()).is_err(), "{bytes:?}");
        assert!(redis::parse_redis_value(bytes.as_bytes()).is_err(), "{bytes:?}");
    }
    assert!(decode(b"=3\r\nabc\r\n").is_err());
}

/// Replies of a real server, as they came, and what fuzzing began with.
#[test]
fn the_seeds_of_the_fuzz_targets_pass() {
    let seeds = |target: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        // A package from a registry comes without them.
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
    };
    seeds("reply").for_each(|seed| decode_reply(&seed));
    seeds("entries").for_each(|seed| crate::fuzzing::decode_entries(&seed));
    seeds("url").for_each(|seed| crate::fuzzing::parse_url(&String::from_utf8_lossy(&seed)));
    #[cfg(feature = "tls")]
    seeds("pem").for_each(|seed| crate::fuzzing::parse_pem(&seed));
}
