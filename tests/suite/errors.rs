//! Why no connection can be made: each reason a clear sentence of its own, none with a secret in it, and the right answers
//! to what a caller asks of an error.

use std::time::Duration;

use step_redis::{ConnectStep, Error, PoolParams, Protocol, StepPool, StepStream};

use crate::common::{Behaviour, Peer, Server};
use crate::context::told;

both_protocols! {
    each_reason_is_told_by_its_own_sentence,
    a_server_without_a_password_is_told_where_it_minds,
    a_full_server_is_told_and_may_be_tried_again,
    a_server_that_is_loading_is_told_and_may_be_tried_again,
    a_peer_that_does_not_speak_resp_is_told,
    a_name_that_nobody_knows_is_told,
    bad_parameters_are_refused_before_a_socket_is_opened,
    a_refused_greeting_shows_no_credentials,
    nothing_shows_a_secret,
}

const USER: &str = "hidden-user";
const PASSWORD: &str = "hidden-password";

fn guarded() -> Server {
    let rules = format!("on >{PASSWORD} ~* &* +@all");
    Server::builder().password(PASSWORD).user(USER, &rules).user("disabled", &format!("off >{PASSWORD}")).start()
}

fn refusal(params: PoolParams) -> Error {
    StepPool::connect(params).unwrap_err()
}

/// All that a caller or a log could show of an error.
fn shown(error: &Error) -> String {
    format!("{error} {error:?} {error:#?} {}", told(error))
}

fn each_reason_is_told_by_its_own_sentence(protocol: Protocol) {
    let server = guarded();
    let to = |port| PoolParams::new("127.0.0.1", port).protocol(protocol);
    let good = || to(server.port()).username(USER).password(PASSWORD);
    let gone = Server::start();
    gone.kill();
    let wrong = "the username or the password is wrong, or the user is disabled";
    let table = [
        (good().password("wrong"), wrong),
        // The server says the same, lest anybody find out its users' names.
        (good().username("nobody"), wrong),
        (good().username("disabled"), wrong),
        (to(server.port()).password("wrong"), wrong),
        (to(server.port()), "the server demands a password; set `password`, and `username` if it has users"),
        (good().db(99), "selecting the database (SELECT) failed: "),
        (to(gone.port()), "opening the socket failed: Connection refused"),
        (PoolParams::unix(gone.unix_path()).protocol(protocol), "opening the socket failed: Connection refused"),
        (PoolParams::unix("/no/such.sock").protocol(protocol), "opening the socket failed: No such file or directory"),
    ];
    for (params, reason) in table {
        let address = match &params.unix_socket {
            Some(path) => path.display().to_string(),
            None => format!("127.0.0.1:{}", params.port),
        };
        let error = refusal(params);
        let told = told(&error);
        assert!(told.starts_with(&format!("cannot connect to {address}: {reason}")), "{told}");
        assert!(!shown(&error).contains("hidden"), "{error:?}");
        let passing = reason.starts_with("opening");
        assert_eq!(error.is_retryable(), passing, "{told}");
        assert!(!error.is_timeout() && !error.is_outcome_unknown(), "{told}");
        match &error {
            Error::Auth { .. } => assert!(matches!(error.code(), Some("WRONGPASS" | "NOAUTH")), "{told}"),
            Error::Connect { step, .. } => assert_eq!(*step == ConnectStep::Open, passing, "{told}"),
            other => panic!("{other:?}"),
        }
    }
    StepPool::connect(good().db(15)).unwrap().ping().unwrap();
    StepPool::connect(to(server.port()).password(PASSWORD)).unwrap();
}

fn a_server_without_a_password_is_told_where_it_minds(protocol: Protocol) {
    let server = Server::start();
    let connected =
        StepPool::connect(PoolParams::new("127.0.0.1", server.port()).password(PASSWORD).protocol(protocol));
    // To `HELLO 3 AUTH default ...` such a server says yes, whatever the password.
    if protocol == Protocol::Resp3 {
        connected.unwrap();
        return;
    }
    let error = connected.unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error:?}");
    assert!(error.to_string().contains("no password set but one was given"), "{error}");
    assert!(!error.is_retryable() && !shown(&error).contains("hidden"));
}

fn a_full_server_is_told_and_may_be_tried_again(protocol: Protocol) {
    let server = Server::start();
    let over_tcp = PoolParams::new("127.0.0.1", server.port()).protocol(protocol);
    let over_unix = PoolParams::unix(server.unix_path()).protocol(protocol);
    let _only = StepPool::connect(over_tcp.clone()).unwrap();
    // The pool's connection and the test's own.
    server.command(&["CONFIG", "SET", "maxclients", "2"]);
    // Over a Unix socket the server has hung up as a rule before the greeting is written.
    for params in [&over_tcp, &over_unix].into_iter().cycle().take(20) {
        let error = refusal(params.clone());
        let told = told(&error);
        assert!(told.contains("max number of clients reached") && !told.contains("RESP3"), "{told}");
        assert!(error.is_retryable() && !error.is_timeout(), "{error:?}");
    }
    server.command(&["CONFIG", "SET", "maxclients", "100"]);
    StepPool::connect(over_tcp).unwrap();
    StepPool::connect(over_unix).unwrap();
}

fn a_server_that_is_loading_is_told_and_may_be_tried_again(protocol: Protocol) {
    let server = Server::builder().append_only().config("key-load-delay", "1000").start();
    server.command(&["CONFIG", "SET", "key-load-delay", "0"]);
    for number in 0..3000 {
        server.command(&["SET", &format!("key:{number}"), "value"]);
    }
    server.command(&["CONFIG", "SET", "key-load-delay", "1000"]);
    server.restart_without_waiting();
    let params = PoolParams::new("127.0.0.1", server.port()).protocol(protocol);
    let error = loop {
        // At first the port is not open yet.
        match refusal(params.clone()) {
            Error::Connect { step: ConnectStep::Open, .. } => std::thread::sleep(Duration::from_millis(5)),
            error => break error,
        }
    };
    assert_eq!((error.code(), error.is_retryable()), (Some("LOADING"), true), "{error:?}");
}

fn a_peer_that_does_not_speak_resp_is_told(protocol: Protocol) {
    let peer = Peer::tcp(Behaviour::Garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    let error = refusal(PoolParams::new("127.0.0.1", peer.port()).protocol(protocol));
    assert!(told(&error).contains("the peer does not speak RESP"), "{}", told(&error));
    let peer = Peer::tcp(Behaviour::Garbage(b":1\r\n".to_vec()));
    let error = refusal(PoolParams::new("127.0.0.1", peer.port()).protocol(Protocol::Resp2));
    assert!(told(&error).contains("an answer to PING that is not PONG"), "{}", told(&error));
    assert!(
        matches!(error, Error::Connect { step: ConnectStep::Ping, .. }) && !error.is_outcome_unknown(),
        "{error:?}"
    );
}

fn a_name_that_nobody_knows_is_told(protocol: Protocol) {
    let params = PoolParams::new("no-such-host.invalid", 6379).protocol(protocol);
    let error = refusal(params.socket_connect_timeout(Duration::from_secs(5)));
    assert!(matches!(error, Error::Connect { step: ConnectStep::Resolve, .. }), "{error:?}");
    let begin = "cannot connect to no-such-host.invalid:6379: looking up the host name failed: ";
    assert!(told(&error).starts_with(begin), "{}", told(&error));
    assert!(error.is_retryable());
}

fn bad_parameters_are_refused_before_a_socket_is_opened(protocol: Protocol) {
    let peer = Peer::tcp(Behaviour::Silent);
    let good = || PoolParams::new("127.0.0.1", peer.port()).protocol(protocol);
    let table = [
        (good().host(""), "host"),
        (good().socket_timeout(Duration::ZERO), "socket_timeout"),
        (good().socket_connect_timeout(Duration::ZERO), "socket_connect_timeout"),
        (good().connection_available_timeout(Duration::ZERO), "connection_available_timeout"),
        (good().max_connections(0), "max_connections"),
        (good().db(-1), "db"),
        (good().username(USER), "password"),
        (good().client_name("two words"), "client_name"),
    ];
    let mut texts = Vec::new();
    for (params, expected) in table {
        for error in [refusal(params.clone()), StepPool::new(params).unwrap_err()] {
            assert!(matches!(&error, Error::Params { field, .. } if field == expected), "{expected}: {error:?}");
            assert!(!error.is_retryable() && !error.is_timeout() && !error.is_outcome_unknown());
            assert!(error.to_string().contains(&format!("`{expected}`")) && !shown(&error).contains("hidden"));
            texts.push(error.to_string());
        }
    }
    texts.dedup();
    assert_eq!(texts.len(), 8, "{texts:?}");
    assert_eq!(peer.connections(), 0);
}

/// Old servers and some proxies repeat the arguments of a command that they do not know.
fn a_refused_greeting_shows_no_credentials(protocol: Protocol) {
    let peer = Peer::tcp(Behaviour::custom(|talk| {
        loop {
            let arguments = talk.request()?;
            let words: Vec<_> = arguments.iter().map(|word| String::from_utf8_lossy(word)).collect();
            let (name, rest) = words.split_first().expect("a request has a name");
            talk.send(format!("-ERR unknown command `{name}`, with args beginning with: {rest:?}\r\n").as_bytes())?;
        }
    }));
    let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol);
    let error = refusal(params.clone().username(USER).password(PASSWORD));
    assert!(matches!(error, Error::Connect { step: ConnectStep::Hello, .. }), "{error:?}");
    assert!(!shown(&error).contains("hidden"), "{error:?}");
    assert_eq!((error.code(), error.is_retryable()), (Some("ERR"), false), "{error:?}");
    let told = told(&error);
    assert!(told.contains("unknown command"), "{told}");
    let advice = "does not speak RESP3; set `protocol` to `Protocol::Resp2`";
    assert_eq!(told.contains(advice), protocol == Protocol::Resp3, "{told}");
    // A password alone, and one that is part of other words.
    for password in [PASSWORD, "a", " "] {
        let error = refusal(params.clone().password(password));
        assert!(!shown(&error).contains("hidden"), "{error:?}");
    }
}

fn nothing_shows_a_secret(protocol: Protocol) {
    let server = guarded();
    let params = PoolParams::new("127.0.0.1", server.port()).username(USER).password(PASSWORD).protocol(protocol);
    let pool = StepPool::connect(params.clone()).unwrap();
    let stream = StepStream::new(pool.clone());
    let connection = pool.get().unwrap();
    stream.publish(&step_redis::StreamOutput::new("orders"), "hidden payload").unwrap();
    let input = step_redis::StreamInput::new("orders", "billing");
    stream.create_input_stream(&input).unwrap();
    let delivery = stream.receive(&input).unwrap().unwrap();
    let message = step_redis::Message::from("hidden payload");
    let shown = format!(
        "{params:#?} {pool:#?} {stream:#?} {connection:#?} {delivery:#?} {:#?} {message:#?} {input:#?}",
        delivery.entry()
    );
    assert!(!shown.contains("hidden"), "{shown}");
    assert!(shown.contains("***"), "{shown}");
}
