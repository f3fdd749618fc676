//! A connection that has failed serves nobody any more, and no reply is ever taken for another command's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::redis::Value;
use step_redis::{EntryId, Error, PoolParams, Protocol, StepPool, StepStream, StreamOutput, redis};

use crate::common::{Behaviour, Peer, Step};
use crate::context::{Context, STREAM, told};

core_suite! {
    what_a_real_server_sends_unasked_is_never_an_answer,
    a_message_beyond_the_servers_limit_is_refused_in_the_servers_words,
}

both_protocols! {
    after_a_failure_the_next_call_has_a_new_connection,
    a_late_reply_is_never_taken_for_the_next_commands,
    a_held_connection_that_failed_refuses_every_further_command,
    a_reply_too_many_is_not_kept_for_the_next_command,
    a_reply_that_nobody_asked_for_retires_an_idle_connection,
    a_stray_reply_is_never_an_answer,
    a_peer_that_closed_an_idle_connection_costs_no_failed_call,
    a_held_connection_that_the_peer_closed_knows_that_nothing_was_sent,
    a_panic_between_request_and_reply_retires_the_connection,
    push_messages_are_set_aside,
    an_interrupter_ends_a_blocked_call_at_once,
}

/// The pool's connections meet these behaviours in turn; from then on a healthy server answers `9-9` to everything.
fn stream_to(protocol: Protocol, behaviours: Vec<Behaviour>) -> (Peer, StepStream) {
    let healthy = Behaviour::custom(|talk| {
        talk.handshake()?;
        talk.answer_each(b"$3\r\n9-9\r\n")
    });
    let peer = Peer::tcp_each(move |index| behaviours.get(index).unwrap_or(&healthy).clone());
    let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol);
    let pool = StepPool::connect(params.socket_timeout(Duration::from_millis(500))).unwrap();
    (peer, StepStream::new(pool))
}

fn publish(stream: &StepStream) -> step_redis::Result<EntryId> {
    stream.publish(&StreamOutput::new(STREAM), "text")
}

fn script(then: &[Step]) -> Behaviour {
    Behaviour::Script([&[Step::Handshake], then].concat())
}

/// Nothing takes that long, however busy the machine is.
const LONG: Duration = Duration::from_secs(20);
const HEALTHY: EntryId = EntryId::new(9, 9);

fn after_a_failure_the_next_call_has_a_new_connection(protocol: Protocol) {
    let send = |bytes: &[u8]| Step::Send(bytes.to_vec());
    let failures: [(&str, &[Step]); 8] = [
        ("Timeout", &[]),
        ("Timeout", &[Step::Request, send(b"$3\r\n1-")]),
        ("Protocol", &[Step::Request, send(b"HTTP/1.1 400 Bad Request\r\n")]),
        ("Protocol", &[Step::Request, send(b"$3\r\n1-1xx")]),
        ("Protocol", &[Step::Request, send(b"$99999999999999999999\r\n")]),
        ("Protocol", &[Step::Request, send(b"*-7\r\n")]),
        ("Lost", &[Step::Request, Step::Close]),
        ("Lost", &[Step::Request, send(b"$3\r\n1"), Step::Reset]),
    ];
    for (kind, steps) in failures {
        let (peer, stream) = stream_to(protocol, vec![script(steps)]);
        let error = publish(&stream).unwrap_err();
        assert!(format!("{error:?}").starts_with(kind), "{steps:?}: {error:?}");
        assert!(error.is_outcome_unknown() && error.is_retryable(), "{error:?}");
        assert_eq!(publish(&stream).unwrap(), HEALTHY, "{steps:?}");
        assert_eq!(publish(&stream).unwrap(), HEALTHY);
        assert_eq!(peer.connections(), 2, "{steps:?}");
    }
}

fn a_late_reply_is_never_taken_for_the_next_commands(context: Context) {
    let pool = context.stream_with(|params| params.socket_timeout(Duration::from_millis(200))).pool().clone();
    let echo = |text: &str| redis::cmd("ECHO").arg(text).query::<String>(&mut pool.get().unwrap());
    assert_eq!(echo("zero").unwrap(), "zero");
    context.server.pause();
    assert!(echo("first").unwrap_err().is_timeout());
    context.server.resume();
    for text in ["second", "third", "fourth"] {
        assert_eq!(echo(text).unwrap(), text);
    }
}

fn a_held_connection_that_failed_refuses_every_further_command(protocol: Protocol) {
    // The reply comes after the time limit, and then more of them.
    let late =
        script(&[Step::Request, Step::Pause(Duration::from_millis(600)), Step::Send(b"$5\r\nstale\r\n".to_vec())]);
    let garbage = script(&[Step::Request, Step::Send(b"?\r\n$5\r\nstale\r\n$5\r\nstale\r\n".to_vec())]);
    for behaviour in [late, garbage] {
        let (peer, stream) = stream_to(protocol, vec![behaviour]);
        let mut connection = stream.pool().get().unwrap();
        let mut ask = || redis::cmd("ECHO").arg("text").query::<String>(&mut connection);
        ask().unwrap_err();
        let sent = peer.received(0).len();
        for _ in 0..5 {
            let error = ask().unwrap_err();
            assert!(error.is_io_error(), "{error:?}");
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(peer.received(0).len(), sent, "it was used again");
        assert!(
            !redis::ConnectionLike::is_open(&*connection) && !redis::ConnectionLike::check_connection(&mut *connection)
        );
        drop(connection);
        assert_eq!(publish(&stream).unwrap(), HEALTHY);
    }
}

fn a_reply_too_many_is_not_kept_for_the_next_command(protocol: Protocol) {
    let twice = script(&[Step::Request, Step::Send(b"$3\r\n1-1\r\n$3\r\n1-2\r\n".to_vec())]);
    let (_peer, stream) = stream_to(protocol, vec![twice]);
    assert_eq!(publish(&stream).unwrap(), EntryId::new(1, 1));
    // At once, while the connection is still warm.
    assert_eq!(publish(&stream).unwrap(), HEALTHY);
}

fn a_reply_that_nobody_asked_for_retires_an_idle_connection(protocol: Protocol) {
    let (go_on, told_to_go_on) = crossbeam_channel::bounded(1);
    let (sent, was_sent) = crossbeam_channel::bounded(1);
    let later = Behaviour::custom(move |talk| {
        talk.handshake()?;
        talk.request()?;
        talk.send(b"$3\r\n1-1\r\n")?;
        let _ = told_to_go_on.recv_timeout(LONG);
        talk.send(b"$3\r\n1-2\r\n")?;
        let _ = sent.send(());
        Ok(())
    });
    let (peer, stream) = stream_to(protocol, vec![later]);
    assert_eq!(publish(&stream).unwrap(), EntryId::new(1, 1));
    go_on.send(()).unwrap();
    was_sent.recv_timeout(LONG).unwrap();
    // However short a time ago the connection was used.
    assert_eq!(publish(&stream).unwrap(), HEALTHY);
    assert_eq!(peer.connections(), 2);
}

fn a_stray_reply_is_never_an_answer(protocol: Protocol) {
    // Answers what it is asked to echo, and then, when it is told to, once more.
    let echo = |text: &[u8]| [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
    let (go_on, told_to_go_on) = crossbeam_channel::bounded(1);
    let (sent, was_sent) = crossbeam_channel::bounded(1);
    let twice = Behaviour::custom(move |talk| {
        talk.handshake()?;
        loop {
            let request = talk.request()?;
            talk.send(&echo(&request[1]))?;
            let Ok(stray) = told_to_go_on.recv_timeout(LONG) else { return Ok(()) };
            talk.send(if stray { b"$5\r\nstray\r\n" } else { b">1\r\n$10\r\ninvalidate\r\n" })?;
            let _ = sent.send(());
        }
    });
    let peer = Peer::tcp(twice);
    let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol).max_connections(1);
    let pool = StepPool::connect(params).unwrap();
    let ask = |connection: &mut step_redis::PooledConnection, text: &str| {
        redis::cmd("ECHO").arg(text).query::<String>(connection)
    };
    for number in 0..30 {
        // By whoever has the connection next.
        let text = number.to_string();
        assert_eq!(ask(&mut pool.get().unwrap(), &text).unwrap(), text);
        go_on.send(true).unwrap();
        was_sent.recv_timeout(LONG).unwrap();
        // By who holds it, with a push before.
        let mut held = pool.get().unwrap();
        assert_eq!(ask(&mut held, &text).unwrap(), text);
        go_on.send(false).unwrap();
        was_sent.recv_timeout(LONG).unwrap();
        assert_eq!(ask(&mut held, &text).unwrap(), text);
        go_on.send(true).unwrap();
        was_sent.recv_timeout(LONG).unwrap();
        let error = ask(&mut held, "last").unwrap_err();
        assert!(error.is_io_error() && error.to_string().contains("before a request was sent"), "{error}");
    }
    assert_eq!(peer.connections(), 60);
}

fn what_a_real_server_sends_unasked_is_never_an_answer(context: Context) {
    let pool = context.stream_with(|params| params.max_connections(1)).pool().clone();
    let is_resp3 = pool.params().protocol == Protocol::Resp3;
    let mut subscriber = pool.get().unwrap();
    let mut subscribe = redis::cmd("SUBSCRIBE");
    // RESP3 confirms by a push, which is no reply.
    subscribe.arg("channel").set_no_response(is_resp3).exec(&mut subscriber).unwrap();
    while context.command(&["PUBLISH", "channel", "stray"]).int() == 0 {}
    // It serves one client after the other, so by now the message has been sent.
    context.command(&["PING"]);
    let answered = redis::cmd("PING").query::<Value>(&mut subscriber);
    match is_resp3 {
        true => assert_eq!(answered.unwrap(), Value::SimpleString("PONG".into())),
        false => assert!(answered.unwrap_err().is_io_error()),
    }
    drop(subscriber);
    let echoed: String = redis::cmd("ECHO").arg("text").query(&mut pool.get().unwrap()).unwrap();
    assert_eq!(echoed, "text");
}

fn a_message_beyond_the_servers_limit_is_refused_in_the_servers_words(context: Context) {
    context.command(&["CONFIG", "SET", "proto-max-bulk-len", "1048576"]);
    let output = context.output();
    let too_large = vec![b'x'; 16 * 1024 * 1024];
    let is_refusal = |error: &Error| {
        let told = told(error);
        assert!(matches!(error, Error::Server { .. }), "{error:?}");
        assert!(error.code() == Some("ERR") && told.contains("invalid bulk length"), "{told}");
        assert!(!error.is_retryable() && !error.is_outcome_unknown(), "{told}");
    };
    for _ in 0..3 {
        is_refusal(&context.stream.publish(&output, &too_large).unwrap_err());
        context.stream.publish(&output, "small").unwrap();
    }
    // In a batch it stops those behind it, and its refusal is what is told.
    let batch = [&b"before"[..], &too_large, b"behind"];
    let Err(Error::Batch { published, source }) = context.stream.publish_batch(&output, batch) else { panic!() };
    is_refusal(&source);
    assert!(published[0].is_some() && published[1].is_none() && published[2].is_none(), "{published:?}");
    assert_eq!(context.length(), 4);
    // What stands behind it in a pipeline was not carried out, and that is known.
    let mut connection = context.pool().get().unwrap();
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg("one").arg(1).cmd("SET").arg("large").arg(&too_large).cmd("SET").arg("two").arg(2);
    let error = pipe.exec(&mut connection).unwrap_err();
    assert!(error.is_io_error() && error.to_string().contains("before a request was sent"), "{error}");
    assert!(!redis::ConnectionLike::is_open(&*connection));
    assert_eq!(context.command(&["EXISTS", "one", "large", "two"]).int(), 1);
}

fn a_held_connection_that_the_peer_closed_knows_that_nothing_was_sent(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let id = connection.id().unwrap().to_string();
    context.command(&["CLIENT", "KILL", "ID", &id]);
    let error = redis::cmd("PING").exec(&mut connection).unwrap_err();
    assert!(error.is_connection_dropped() && error.to_string().contains("before a request was sent"), "{error}");
}

fn a_peer_that_closed_an_idle_connection_costs_no_failed_call(protocol: Protocol) {
    for last in [Step::Close, Step::Reset] {
        let (peer, stream) =
            stream_to(protocol, vec![script(&[Step::Request, Step::Send(b"$3\r\n1-1\r\n".to_vec()), last])]);
        assert_eq!(publish(&stream).unwrap(), EntryId::new(1, 1));
        peer.wait_until(|peer| peer.open() == 0);
        assert_eq!(publish(&stream).unwrap(), HEALTHY);
    }
}

fn a_panic_between_request_and_reply_retires_the_connection(context: Context) {
    let pool = context.stream_with(|params| params.max_connections(1)).pool().clone();
    let stream = StepStream::new(pool.clone());
    // Within the first piece of the batch, with nothing sent, and later, with replies under way.
    for survivors in [0, 5, 200, 400] {
        let messages = (0..1000).map(|number| match number {
            number if number == survivors => panic!("this one is meant to fail"),
            number => number.to_string(),
        });
        catch_unwind(AssertUnwindSafe(|| stream.publish_batch(&context.output(), messages))).unwrap_err();
        for text in ["one", "two"] {
            let echoed: String = redis::cmd("ECHO").arg(text).query(&mut pool.get().unwrap()).unwrap();
            assert_eq!(echoed, text);
        }
        assert_eq!(pool.state().in_use, 0);
    }
}

fn push_messages_are_set_aside(protocol: Protocol) {
    // Only RESP3 has them.
    if protocol == Protocol::Resp3 {
        let push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n";
        let around = [push.as_slice(), b"$3\r\n1-1\r\n", push].concat();
        let apart =
            [Step::Send(push[..9].to_vec()), Step::Pause(Duration::from_millis(20)), Step::Send(push[9..].to_vec())];
        let steps =
            [&[Step::Request, Step::Send(around.clone()), Step::Request][..], &apart, &[Step::AnswerEach(around)]];
        let (peer, stream) = stream_to(protocol, vec![script(&steps.concat())]);
        assert_eq!(publish(&stream).unwrap(), EntryId::new(1, 1));
        assert!(publish(&stream).unwrap_err().is_timeout(), "a push is no reply");
        assert_eq!(publish(&stream).unwrap(), HEALTHY);
        assert_eq!(peer.connections(), 2);
    }
    let context = Context::start_with(protocol, |builder| builder);
    let pool = context.stream_with(|params| params.max_connections(1)).pool().clone();
    let mut connection = pool.get().unwrap();
    if protocol == Protocol::Resp3 {
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST").exec(&mut connection).unwrap();
    }
    for number in 0..50 {
        context.command(&["SET", "key", &number.to_string()]);
        let value: u64 = redis::cmd("GET").arg("key").query(&mut connection).unwrap();
        assert_eq!(value, number);
    }
}

fn an_interrupter_ends_a_blocked_call_at_once(context: Context) {
    let mut waits: Vec<Duration> = (0..3)
        .map(|_| {
            let (send, receive) = mpsc::channel();
            thread::scope(|scope| {
                let blocked = scope.spawn(move || {
                    let mut connection = receive.recv().unwrap();
                    let error = redis::cmd("BLPOP").arg("nothing").arg(20).exec(&mut connection).unwrap_err();
                    (error, Instant::now())
                });
                let connection = context.pool().get().unwrap();
                let interrupter = connection.interrupter();
                send.send(connection).unwrap();
                context.wait_until_blocked(1);
                let interrupted = Instant::now();
                interrupter.interrupt();
                let (error, ended) = blocked.join().unwrap();
                assert!(error.is_io_error() && !error.is_timeout(), "{error:?}");
                ended.saturating_duration_since(interrupted)
            })
        })
        .collect();
    waits.sort();
    assert!(waits[1] < Duration::from_millis(50), "{waits:?}");
}
