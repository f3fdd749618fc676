//! What a server says to a single command, and what a caller can ask of the error.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use step_redis::{Error, PoolParams, Protocol, StepPool, StepStream, StreamOutput};

use crate::common::{Behaviour, Peer, Step};
use crate::context::{Context, STREAM, told};

both_protocols! {
    every_refusal_has_its_code_and_says_whether_to_try_again,
    a_refusal_within_a_script_is_told_as_without_one,
    a_command_that_the_user_may_not_use_is_told,
    a_reply_that_does_not_fit_the_command_is_told,
    a_lost_connection_says_whether_the_request_had_left,
    an_error_of_the_crate_stays_one_in_the_redis_crates_terms,
}

fn stream_to(peer: &Peer, protocol: Protocol) -> StepStream {
    let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol);
    StepStream::new(StepPool::connect(params.socket_timeout(Duration::from_millis(200))).unwrap())
}

fn every_refusal_has_its_code_and_says_whether_to_try_again(protocol: Protocol) {
    let table = [
        ("OOM command not allowed when used memory > 'maxmemory'.", true),
        ("LOADING Redis is loading the dataset in memory", true),
        ("READONLY You can't write against a read only replica.", true),
        ("MASTERDOWN Link with MASTER is down", true),
        ("CLUSTERDOWN Hash slot not served", true),
        ("TRYAGAIN Multiple keys request during rehashing of slot", true),
        ("BUSY Redis is busy running a script.", true),
        ("NOREPLICAS Not enough good replicas to write.", true),
        ("MISCONF Redis is configured to save RDB snapshots", true),
        ("UNBLOCKED force unblock from blocking operation", true),
        ("MOVED 1234 127.0.0.1:7001", false),
        ("ASK 1234 127.0.0.1:7001", false),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", false),
        ("NOGROUP No such key 'orders'", false),
        ("NOPERM this user has no permissions", false),
        ("ERR syntax error", false),
        ("NEWCODE of a server yet to come", false),
    ];
    let lines = Arc::new(Mutex::new(table.map(|(line, _)| line).into_iter()));
    let peer = Peer::tcp(Behaviour::custom(move |talk| {
        talk.handshake()?;
        loop {
            talk.request()?;
            let line = lines.lock().unwrap().next().unwrap_or("ERR too many requests");
            talk.send(format!("-{line}\r\n").as_bytes())?;
        }
    }));
    let stream = stream_to(&peer, protocol);
    for (line, passing) in table {
        let error = stream.publish(&StreamOutput::new(STREAM), "text").unwrap_err();
        let code = line.split(' ').next().unwrap();
        assert!(matches!(error, Error::Server { command: "XADD", .. }), "{error:?}");
        assert_eq!(error.code(), Some(code), "{error:?}");
        assert_eq!(error.is_retryable(), passing, "{error:?}");
        assert!(!error.is_timeout() && !error.is_outcome_unknown(), "{error:?}");
        assert_eq!(error.is_wrong_type(), code == "WRONGTYPE");
        assert_eq!(error.is_group_missing(), code == "NOGROUP");
        assert_eq!(error.to_string(), format!("the server answered XADD with {code}"));
        // The server's own words are the cause.
        let words = line.split_once(' ').unwrap().1;
        assert!(told(&error).contains(words), "{}", told(&error));
    }
    // A refusal does not break a connection, but the next one may lead to another master: after LOADING, READONLY,
    // MASTERDOWN, CLUSTERDOWN and UNBLOCKED.
    assert_eq!(peer.connections(), 6);
}

/// Redis 6.2 tells which script it was first, later versions last.
fn a_refusal_within_a_script_is_told_as_without_one(protocol: Protocol) {
    const SCRIPT: &str =
        "ERR Error running script (call to f_0c54fef4a6a6d7a8fb1cd8dd9c6a0d8a9b0c1d2e): @user_script:1: ";
    let table = [
        (format!("{SCRIPT}WRONGTYPE Operation against a key"), "WRONGTYPE: Operation against a key", false),
        (format!("{SCRIPT}@user_script: 1: -OOM command not allowed"), "OOM: command not allowed", true),
        (format!("{SCRIPT}@user_script: 1: -MISCONF no snapshots"), "MISCONF: no snapshots", true),
        (format!("{SCRIPT}@user_script: 1: -READONLY You can't write"), "READONLY: You can't write", true),
        ("OOM command not allowed script: 0c54fef4, on @user_script:1.".into(), "OOM: command not allowed", true),
        ("READONLY You can't write script: on @user_script:1.".into(), "READONLY: You can't write", true),
    ];
    let lines = Arc::new(Mutex::new(table.clone().map(|(line, ..)| line).into_iter()));
    let peer = Peer::tcp(Behaviour::custom(move |talk| {
        talk.handshake()?;
        loop {
            talk.request()?;
            let line = lines.lock().unwrap().next().unwrap_or("ERR too many requests".into());
            talk.send(format!("-{line}\r\n").as_bytes())?;
        }
    }));
    let stream = stream_to(&peer, protocol);
    for (line, expected, passing) in table {
        let error = stream.update_stream_ttl(STREAM, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.is_retryable(), passing, "{line}: {error:?}");
        let (code, words) = expected.split_once(": ").unwrap();
        assert_eq!(error.to_string(), format!("the server answered EVAL with {code}"));
        assert!(told(&error).ends_with(words) && !told(&error).contains("script"), "{}", told(&error));
    }
    // A demoted master is noticed, so that the name is looked up again.
    assert_eq!(peer.connections(), 2);
}

fn a_command_that_the_user_may_not_use_is_told(context: Context) {
    context.command(&["ACL", "SETUSER", "limited", "on", ">password", "~other:*", "+@all"]);
    let stream = context.stream_with(|params| params.username("limited").password("password"));
    let error = stream.publish(&context.output(), "text").unwrap_err();
    assert_eq!((error.code(), error.is_retryable(), error.is_outcome_unknown()), (Some("NOPERM"), false, false));
    stream.publish(&StreamOutput::new("other:orders"), "text").unwrap();
    // Not even PING, CLIENT ID and CLIENT SETNAME; the last two are conveniences.
    context.command(&["ACL", "SETUSER", "writer", "on", ">password", "~*", "-@all", "+xadd", "+ping", "+hello"]);
    let stream = context.stream_with(|params| params.username("writer").password("password"));
    stream.publish(&context.output(), "text").unwrap();
}

fn a_reply_that_does_not_fit_the_command_is_told(protocol: Protocol) {
    for answer in [":7\r\n", "+OK\r\n", "*0\r\n", "$-1\r\n", "$5\r\n12345\r\n"] {
        let peer = Peer::tcp(Behaviour::GarbageAfterHandshake(answer.into()));
        let error = stream_to(&peer, protocol).publish(&StreamOutput::new(STREAM), "text").unwrap_err();
        assert!(matches!(error, Error::Reply { command: "XADD", .. }), "{answer:?}: {error:?}");
        assert!(!error.is_retryable() && error.is_outcome_unknown());
    }
}

fn a_lost_connection_says_whether_the_request_had_left(protocol: Protocol) {
    let end =
        |last: Step| Behaviour::Script(vec![Step::Handshake, Step::Request, Step::Send(b"$9\r\n1".to_vec()), last]);
    for last in [Step::Close, Step::Reset] {
        let peer = Peer::tcp(end(last.clone()));
        let error = stream_to(&peer, protocol).publish(&StreamOutput::new(STREAM), "text").unwrap_err();
        assert!(matches!(error, Error::Lost { outcome_unknown: true, .. }), "{last:?}: {error:?}");
        assert!(error.is_outcome_unknown() && error.is_retryable() && !error.is_timeout());
        let begin =
            format!("the connection to {} was lost; the request had left, so its outcome is unknown", peer.address());
        assert!(told(&error).starts_with(&begin), "{}", told(&error));
    }
    let peer = Peer::tcp(Behaviour::Script(vec![Step::Handshake]));
    let error = stream_to(&peer, protocol).publish(&StreamOutput::new(STREAM), "text").unwrap_err();
    assert!(matches!(error, Error::Timeout { outcome_unknown: true, .. }), "{error:?}");
    assert!(error.is_outcome_unknown() && error.is_retryable() && error.is_timeout());
    let begin = format!("no whole reply from {} within 200ms; the request had left", peer.address());
    assert!(told(&error).starts_with(&begin), "{}", told(&error));
}

fn an_error_of_the_crate_stays_one_in_the_redis_crates_terms(protocol: Protocol) {
    use step_redis::redis;
    let peer = Peer::tcp_each(|index| match index {
        0 => Behaviour::Script(vec![Step::Handshake]),
        1 => Behaviour::Script(vec![Step::Handshake, Step::Request, Step::Reset]),
        _ => Behaviour::GarbageAfterHandshake(b"?\r\n".to_vec()),
    });
    let stream = stream_to(&peer, protocol);
    let ask = || redis::cmd("GET").arg("key").query::<String>(&mut stream.pool().get().unwrap()).unwrap_err();
    let error = ask();
    assert!(error.is_timeout() && error.is_io_error(), "{error:?}");
    let error = ask();
    assert!(error.is_connection_dropped() && error.is_io_error(), "{error:?}");
    let error = ask();
    assert_eq!(error.kind(), redis::ErrorKind::Parse, "{error:?}");
}
