//! A pooled connection against `redis::Connection` as its oracle: the same bytes to both, and the same answers from both, to
//! all that a caller can ask. Where ours is meant to differ, the case stands in a list with the reason.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use step_redis::redis::{self, ConnectionLike, RedisError, RedisResult, Value};
use step_redis::{PoolParams, Protocol, StepPool};

use crate::common::{Behaviour, Peer};

both_protocols! {
    single_replies_are_what_the_oracle_makes_of_them,
    pipelines_are_what_the_oracle_makes_of_them,
    transactions_are_what_the_oracle_makes_of_them,
    a_reply_that_is_cut_off_anywhere_is_the_error_that_the_oracle_makes_of_it,
}

/// What is asked, and what the peer sends to it all.
struct Case {
    /// The reply in readable form, by which the deviations name it.
    name: String,
    ask: Ask,
    reply: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Command,
    Pipeline(usize),
    PipelineWithErrors(usize),
    Transaction(usize),
}

impl Ask {
    fn of(self, connection: &mut dyn ConnectionLike) -> RedisResult<Value> {
        let (mut pipe, count) = match self {
            Ask::Command => return redis::cmd("GET").arg("key").query(connection),
            Ask::Pipeline(count) | Ask::PipelineWithErrors(count) | Ask::Transaction(count) => (redis::pipe(), count),
        };
        match self {
            Ask::Transaction(_) => drop(pipe.atomic()),
            Ask::PipelineWithErrors(_) => drop(pipe.ignore_errors()),
            _ => {}
        }
        for number in 0..count {
            pipe.cmd("GET").arg(number);
        }
        pipe.query(connection)
    }
}

fn case(ask: Ask, reply: impl AsRef<[u8]>) -> Case {
    let reply = reply.as_ref().to_vec();
    let name = reply.strip_suffix(b"\r\n").unwrap_or(&reply).escape_ascii().to_string().replace("\\r\\n", " ");
    Case { name, ask, reply }
}

/// All that a caller can ask of an answer.
fn told(answer: RedisResult<Value>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(error) => told_of(&error),
    }
}

fn told_of(error: &RedisError) -> String {
    let mut text = format!("{:?} {:?}", error.kind(), error.code());
    // The words of a parser are its own.
    if !matches!(error.kind(), redis::ErrorKind::Parse | redis::ErrorKind::Io) {
        write!(text, " {:?}", error.detail()).unwrap();
    }
    write!(text, " dropped={} timeout={}", error.is_connection_dropped(), error.is_timeout()).unwrap();
    write!(text, " refused={} retry={:?}", error.is_connection_refusal(), error.retry_method()).unwrap();
    write!(text, " lost={} {:?}", error.is_unrecoverable_error(), error.redirect_node()).unwrap();
    for (index, error) in error.clone().into_server_errors().iter().flat_map(|errors| errors.iter()) {
        write!(text, " {index}={}:{:?}", error.code(), error.details()).unwrap();
    }
    text
}

/// Cases that are meant to differ, each group with its reason.
type Deviations = &'static [(&'static str, &'static [&'static str])];

const SINGLE: Deviations = &[
    (
        "an error shows neither a user's name nor the arguments of a command, which may be secrets or payloads",
        &[
            r"-NOPERM User alice has no permissions to run the \'get\' command",
            r"-ERR unknown command \'GET\', with args beginning with: \'key\' ",
        ],
    ),
    (
        "no server writes spaces around a number or a sign before a length: what does is no RESP",
        &[": 5", ":5 ", r":\t5", "$+3 abc", "$ 3 abc", "$3  abc", ", 1", ",1 ", "*+1 :1"],
    ),
    ("-1 is the only length that stands for a null, and only where RESP2 has one", &["$-2", "*-2", "~-2", ">-1 +OK"]),
    ("a length that cannot be is refused at once, where the oracle waits for as many bytes", &["=-1", "!-1", "%-1"]),
    ("a null has no content", &["_x"]),
    (
        "a push is set aside without being read: whatever is in it, it does not stand for the reply, and breaks nothing",
        &[">1 :1 +OK", ">1 _ +OK", ">1 *0 +OK", ">1 +OK +text", r">1 $2 a\xff +OK", r">1 +a\xff +OK"],
    ),
    (
        "text that is not UTF-8 is kept readable, and the connection with it",
        &[r"+a\xffb", r"-ERR a\xffb", r"*1 +a\xff"],
    ),
    ("a second reply to one command is no answer to the next", &["*1 >1 +x :1"]),
];

const PIPELINES: Deviations = &[(
    "an error shows no arguments of a command, which may be payloads",
    &[r"-ERR unknown command \'GET\', with args beginning with: \'0\'  :2 :3"],
)];

const TRANSACTIONS: Deviations = &[(
    "only the crate itself can make its error of an aborted transaction; ours has the same kind and code and every cause, but the \
     `EXECABORT` stands before them, in the place of `MULTI`",
    &[
        "+OK -ERR one +QUEUED +QUEUED -EXECABORT discarded",
        "+OK +QUEUED -READONLY two -READONLY three -EXECABORT discarded",
        r"+OK +QUEUED -ERR unknown command \'GET\', with args beginning with: \'1\'  +QUEUED -EXECABORT discarded",
        "+OK -OOM one +QUEUED +QUEUED *2 :2 :3",
    ],
)];

/// What the peer does with a connection after its greeting.
#[derive(Clone, Default)]
struct Part {
    /// How many requests come before the reply.
    requests: usize,
    reply: Vec<u8>,
    hangs_up: bool,
}

/// Serves both kinds of connection with the same bytes: to the first requests what is to be tried, and to each of the others a
/// plain string.
struct Bench {
    part: Arc<Mutex<Part>>,
    client: redis::Client,
    params: PoolParams,
    _peer: Peer,
}

impl Bench {
    fn new(protocol: Protocol) -> Bench {
        let part = Arc::new(Mutex::new(Part::default()));
        let next = Arc::clone(&part);
        let peer = Peer::tcp(Behaviour::custom(move |talk| {
            talk.handshake()?;
            let part = next.lock().unwrap().clone();
            for _ in 0..part.requests {
                talk.request()?;
            }
            talk.send(&part.reply)?;
            if part.hangs_up {
                talk.close();
                return Ok(());
            }
            talk.answer_each(b"+afterwards\r\n")
        }));
        let version = if protocol == Protocol::Resp3 { "resp3" } else { "resp2" };
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/?protocol={version}", peer.port())).unwrap();
        let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol).max_connections(1);
        Bench { part, client, params: params.socket_timeout(LIMIT), _peer: peer }
    }

    /// What the two kinds of connection make of it: ours, and the oracle.
    fn answers(&self, case: &Case, hangs_up: bool) -> [String; 2] {
        let requests = match case.ask {
            Ask::Command => 1,
            Ask::Pipeline(count) | Ask::PipelineWithErrors(count) => count,
            Ask::Transaction(count) => count + 2,
        };
        *self.part.lock().unwrap() = Part { requests, reply: case.reply.clone(), hangs_up };
        let pool = StepPool::connect(self.params.clone()).unwrap();
        let mut ours = pool.get().unwrap();
        let mut theirs = self.client.get_connection_with_timeout(LIMIT).unwrap();
        theirs.set_read_timeout(Some(LIMIT)).unwrap();
        let both: [&mut dyn ConnectionLike; 2] = [&mut *ours, &mut theirs];
        both.map(|connection| {
            let answer = case.ask.of(connection);
            let is_usable = answer
                .as_ref()
                .err()
                .is_none_or(|error| !matches!(error.kind(), redis::ErrorKind::Parse | redis::ErrorKind::Io));
            match is_usable && !hangs_up {
                // Whether it is good for more.
                true => format!(
                    "{}, then open={} {}",
                    told(answer),
                    connection.is_open(),
                    told(Ask::Command.of(connection))
                ),
                false => told(answer),
            }
        })
    }

    /// Compares all of them. Those that differ must be the ones that are meant to, no more and no fewer.
    fn compare(&self, cases: Vec<Case>, deviations: &[(&str, &[&str])]) {
        let mut unexpected = String::new();
        for case in &cases {
            let [ours, theirs] = self.answers(case, false);
            let meant = deviations.iter().find(|(_, names)| names.contains(&case.name.as_str()));
            if (ours == theirs) == meant.is_some() {
                let name = (&case.name, case.ask);
                writeln!(unexpected, "{name:?}\n    ours:   {ours}\n    oracle: {theirs}\n    meant: {meant:?}")
                    .unwrap();
            }
        }
        for name in deviations.iter().flat_map(|(_, names)| names.iter()) {
            if !cases.iter().any(|case| case.name == *name) {
                writeln!(unexpected, "no such case: {name}").unwrap();
            }
        }
        assert!(unexpected.is_empty(), "{} cases in all\n{unexpected}", cases.len());
    }
}

/// How long either of them waits for bytes that do not come.
const LIMIT: Duration = Duration::from_millis(500);

fn single_replies_are_what_the_oracle_makes_of_them(protocol: Protocol) {
    let mut replies: Vec<Vec<u8>> = [
        // Lines.
        "+OK",
        "+",
        "+ok",
        "+text with spaces",
        "+QUEUED",
        "+a\rb",
        "+a\nb",
        "+gr\u{fc}\u{df}e",
        // Errors.
        "-ERR what is wrong",
        "-ERR",
        "-ERR ",
        "-",
        "-WRONGTYPE against a key",
        "-NOGROUP no such group",
        "-NOAUTH needed",
        "-MOVED 1234 host:7001",
        "-ASK 1234 host:7001",
        "-TRYAGAIN later",
        "-CLUSTERDOWN down",
        "-CROSSSLOT keys",
        "-EXECABORT discarded",
        "-NOSCRIPT none",
        "-NOTBUSY none",
        "-NOSUB none",
        "-BUSYGROUP there",
        "-OOM full",
        "-MASTERDOWN down",
        "-READONLY replica",
        "-LOADING the data",
        "-UNBLOCKED forced",
        "-err lower",
        "-err",
        "-NOPERM User alice has no permissions to run the 'get' command",
        "-NOPERM this user has no permissions",
        "-ERR unknown command 'GET', with args beginning with: 'key' ",
        "-ERR unknown command 'GET'",
        "-ERR Protocol error: invalid bulk length",
        // Numbers.
        ":0",
        ":5",
        ":+5",
        ":-5",
        ":-0",
        ":+0",
        ":007",
        ":9223372036854775807",
        ":-9223372036854775808",
        ":9223372036854775808",
        ":-9223372036854775809",
        ":",
        ":x",
        ":1x",
        ":1.5",
        ":--1",
        ":+-1",
        ":-+1",
        ":++1",
        ":+",
        ":-",
        ": 5",
        ":5 ",
        ":\t5",
        ":1 000",
        ":0x10",
        // Strings.
        "$0\r\n",
        "$3\r\nabc",
        "$-1",
        "$-2",
        "$-0\r\n",
        "$03\r\nabc",
        "$+3\r\nabc",
        "$ 3\r\nabc",
        "$3 \r\nabc",
        "$x\r\nabc",
        "$\r\nabc",
        "$3\r\na\r\n",
        "$2\r\nabc",
        "$99999999999999999999\r\n",
        "$5\r\n\u{fc}\u{df}x",
        "=7\r\ntxt:abc",
        "=7\r\nmkd:abc",
        "=5\r\nx:abc",
        "=4\r\ntxt:",
        "=3\r\nabc",
        "=0\r\n",
        "=-1",
        "=8\r\ntxt:a:bc",
        "!7\r\nERR abc",
        "!3\r\nERR",
        "!0\r\n",
        "!-1",
        "!11\r\nERR a\r\nb\r\nc",
        "!13\r\nWRONGTYPE abc",
        // Scalars of RESP3.
        "_",
        "_x",
        "#t",
        "#f",
        "#",
        "#x",
        "#true",
        "#T",
        ",1.5",
        ",-1.5",
        ",1",
        ",1.",
        ",.5",
        ",1e3",
        ",1E-3",
        ",inf",
        ",-inf",
        ",+inf",
        ",nan",
        ",-nan",
        ",1e400",
        ",5e-324",
        ",",
        ",x",
        ", 1",
        ",1 ",
        ",infinity",
        ",+1.5",
        ",0x10",
        ",1_0",
        "(0",
        "(123456789012345678901234567890",
        "(-1",
        "(+1",
        "(",
        "(x",
        "(1.5",
        "( 1",
        // Aggregates.
        "*0",
        "*-1",
        "*-2",
        "*-0",
        "*+1\r\n:1",
        "*1\r\n*1\r\n*1\r\n:1",
        "*2\r\n$1\r\na\r\n$-1",
        "*3\r\n:1\r\n+OK\r\n-ERR inside",
        "*x",
        "*",
        "*1\r\n*-1",
        "*2\r\n-ERR one\r\n-ERR two",
        "*1\r\n*1\r\n-ERR deep",
        "~0",
        "~-1",
        "~-2",
        "~2\r\n:1\r\n:1",
        "%0",
        "%-1",
        "%1\r\n+k\r\n:1",
        "%2\r\n+k\r\n:1\r\n:2\r\n*0",
        "%1\r\n-ERR key\r\n:1",
        "%x",
        "|0\r\n:1",
        "|1\r\n+ttl\r\n:9\r\n$3\r\nabc",
        "|1\r\n+k\r\n:1\r\n-ERR attributed",
        "|-1\r\n:1",
        "*2\r\n|1\r\n+k\r\n:1\r\n:2\r\n:3",
        "|1\r\n+k\r\n:1\r\n|1\r\n+l\r\n:2\r\n:3",
        "|1\r\n+k\r\n:1\r\n_",
        // Pushes, of which none is a reply.
        ">2\r\n+message\r\n+text\r\n+OK",
        ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n:1",
        ">0\r\n+OK",
        ">-1\r\n+OK",
        ">1\r\n+x\r\n>1\r\n+y\r\n+OK",
        ">1\r\n:1\r\n+OK",
        ">1\r\n_\r\n+OK",
        ">1\r\n*0\r\n+OK",
        ">1\r\n+OK\r\n+text",
        "*1\r\n>1\r\n+x",
        "*1\r\n>1\r\n+x\r\n:1",
        ">3\r\n+a\r\n-ERR in a push\r\n:1\r\n:2",
        ">1\r\n$3\r\n\u{fc}x\r\n+OK",
        // Nothing of the kind.
        "",
        "x",
        "PING",
        "HTTP/1.1 400 Bad Request",
        "@1",
        "?",
        ".",
        "\0",
        " +OK",
        "\n+OK",
    ]
    .map(|reply| format!("{reply}\r\n").into_bytes())
    .into();
    replies.extend(
        [
            &b"+a\xffb\r\n"[..],
            b"-ERR a\xffb\r\n",
            b"$3\r\na\xffb\r\n",
            b"=7\r\ntxt:a\xffb\r\n",
            b"!7\r\nERR a\xffb\r\n",
            b":\xff\r\n",
            b">1\r\n$2\r\na\xff\r\n+OK\r\n",
            b">1\r\n+a\xff\r\n+OK\r\n",
            b"*1\r\n+a\xff\r\n",
            b"(\xff\r\n",
        ]
        .map(<[u8]>::to_vec),
    );
    for kind in ["*1\r\n", "~1\r\n", "%1\r\n+k\r\n", "|0\r\n"] {
        replies.extend([50, 99, 100, 101].map(|depth| format!("{}:1\r\n", kind.repeat(depth)).into_bytes()));
    }
    let cases = replies.into_iter().map(|reply| case(Ask::Command, reply)).collect();
    Bench::new(protocol).compare(cases, SINGLE);
}

fn pipelines_are_what_the_oracle_makes_of_them(protocol: Protocol) {
    let replies = [
        ":1\r\n:2\r\n:3\r\n",
        "-ERR one\r\n:2\r\n:3\r\n",
        ":1\r\n-ERR two\r\n:3\r\n",
        ":1\r\n:2\r\n-WRONGTYPE three\r\n",
        "-ERR one\r\n-NOGROUP two\r\n-READONLY three\r\n",
        "-ERR unknown command 'GET', with args beginning with: '0' \r\n:2\r\n:3\r\n",
        ":1\r\n*2\r\n:2\r\n-ERR nested\r\n:3\r\n",
        "*0\r\n$-1\r\n_\r\n",
        "+OK\r\n+OK\r\n+OK\r\n",
        "$-1\r\n$-1\r\n*-1\r\n",
        ">1\r\n+x\r\n:1\r\n:2\r\n:3\r\n",
        ":1\r\n>2\r\n+x\r\n:0\r\n:2\r\n>1\r\n+y\r\n:3\r\n",
        ":1\r\n:2\r\n>1\r\n+x\r\n>1\r\n+y\r\n-ERR three\r\n",
        "|1\r\n+k\r\n:1\r\n:1\r\n:2\r\n|1\r\n+k\r\n:1\r\n-ERR three\r\n",
        ":1\r\n?\r\n:3\r\n",
        ":1\r\n:x\r\n:3\r\n",
        "!7\r\nERR one\r\n:2\r\n:3\r\n",
    ];
    let asks = [Ask::Pipeline(3), Ask::PipelineWithErrors(3)];
    let cases = asks.iter().flat_map(|ask| replies.map(|reply| case(*ask, reply))).collect();
    Bench::new(protocol).compare(cases, PIPELINES);
}

fn transactions_are_what_the_oracle_makes_of_them(protocol: Protocol) {
    let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n";
    let replies = [
        format!("{queued}*3\r\n:1\r\n:2\r\n:3\r\n"), format!("{queued}*3\r\n:1\r\n-ERR two\r\n:3\r\n"),
        format!("{queued}*3\r\n-ERR one\r\n-WRONGTYPE two\r\n-ERR three\r\n"), format!("{queued}*-1\r\n"), format!("{queued}_\r\n"),
        format!("{queued}$-1\r\n"), format!("{queued}-ERR refused\r\n"), format!("{queued}-EXECABORT for reasons\r\n"), format!("{queued}+OK\r\n"),
        format!("{queued}*0\r\n"), format!("{queued}>1\r\n+x\r\n*3\r\n:1\r\n:2\r\n:3\r\n"), format!("{queued}|1\r\n+k\r\n:1\r\n*3\r\n:1\r\n:2\r\n:3\r\n"),
        ">1\r\n+x\r\n+OK\r\n+QUEUED\r\n>1\r\n+x\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n:1\r\n:2\r\n:3\r\n".to_owned(),
        "+OK\r\n-ERR one\r\n+QUEUED\r\n+QUEUED\r\n-EXECABORT discarded\r\n".to_owned(),
        "+OK\r\n+QUEUED\r\n-READONLY two\r\n-READONLY three\r\n-EXECABORT discarded\r\n".to_owned(),
        "+OK\r\n+QUEUED\r\n-ERR unknown command 'GET', with args beginning with: '1' \r\n+QUEUED\r\n-EXECABORT discarded\r\n".to_owned(),
        "+OK\r\n-OOM one\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:2\r\n:3\r\n".to_owned(),
        "+OK\r\n+QUEUED\r\n?\r\n+QUEUED\r\n*3\r\n:1\r\n:2\r\n:3\r\n".to_owned(),
    ];
    let cases = replies.map(|reply| case(Ask::Transaction(3), reply)).into();
    Bench::new(protocol).compare(cases, TRANSACTIONS);
}

fn a_reply_that_is_cut_off_anywhere_is_the_error_that_the_oracle_makes_of_it(protocol: Protocol) {
    let bench = Bench::new(protocol);
    let whole =
        b"*7\r\n$5\r\nab\r\nc\r\n:12\r\n%1\r\n+k\r\n,1.5\r\n-ERR x\r\n=5\r\ntxt:x\r\n|1\r\n+a\r\n#t\r\n_\r\n(12\r\n";
    for end in 0..whole.len() {
        let [ours, theirs] = bench.answers(&case(Ask::Command, &whole[..end]), true);
        assert_eq!(ours, theirs, "{:?}", case(Ask::Command, &whole[..end]).name);
    }
    let pipe = b":1\r\n$3\r\nabc\r\n-ERR x\r\n";
    for end in 0..pipe.len() {
        let [ours, theirs] = bench.answers(&case(Ask::Pipeline(3), &pipe[..end]), true);
        assert_eq!(ours, theirs, "{:?}", case(Ask::Pipeline(3), &pipe[..end]).name);
    }
}
