//! What ends the loop: a fatal error, yielded once.

use crate::common::Server;
use crate::support::{Bench, LONG, every_way, next, number, stream_at, stream_with, take_until_error};
use std::time::Duration;
use step_redis::{Backoff, Consumer, Error, StepPool, StepStream};

/// The one error, and nothing behind it.
#[track_caller]
fn only_error(consumer: &Consumer) -> Error {
    let mut iterator = consumer.iter();
    let error = iterator.next().expect("an error is yielded").expect_err("a delivery where an error belongs");
    assert!(iterator.next().is_none());
    assert!(iterator.next().is_none());
    assert!(consumer.try_iter().next().is_none());
    assert!(consumer.timeout_iter(LONG).next().is_none(), "it does not wait");
    assert!(consumer.stats().last_error.is_some());
    error
}

#[test]
fn a_key_of_another_type_is_fatal_before_and_during_the_loop() {
    let bench = Bench::start();
    let consumer = bench.consumer("one").claim(false).spawn().unwrap();
    bench.wait_until_blocked();
    bench.server.command(&["SET", &bench.key, "text"]);
    assert!(only_error(&consumer).is_wrong_type());
    consumer.close().unwrap();
    assert!(bench.consumer("one").spawn().unwrap_err().is_wrong_type());
    assert_eq!(bench.server.command(&["GET", &bench.key]).text(), "text");
}

fn bench_with_user() -> (Bench, StepStream) {
    let bench = Bench::on(Server::builder().user("worker", "on >secret ~* &* +@all").start());
    let stream = stream_at(&format!("redis://worker:secret@127.0.0.1:{}", bench.server.port()));
    (bench, stream)
}

#[test]
fn a_user_that_is_deleted_is_fatal() {
    let (bench, stream) = bench_with_user();
    let consumer = stream.consumer(bench.input()).spawn().unwrap();
    bench.wait_until_blocked();
    bench.server.command(&["ACL", "DELUSER", "worker"]);
    let error = only_error(&consumer);
    assert!(matches!(error, Error::Auth { .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("secret"));
    consumer.close().unwrap();
}

#[test]
fn a_permission_that_is_withdrawn_is_fatal() {
    let (bench, stream) = bench_with_user();
    let consumer = stream.consumer(bench.input()).claim(false).spawn().unwrap();
    bench.wait_until_blocked();
    bench.server.command(&["ACL", "SETUSER", "worker", "-xreadgroup"]);
    bench.publish(1);
    let (taken, error) = take_until_error(&consumer);
    // Since 7.2, the server asks again for the permission when it serves a command that waited.
    assert!(taken <= 1, "{taken}");
    assert_eq!(error.code(), Some("NOPERM"), "{error:?}");
    assert!(consumer.iter().next().is_none());
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 0, "what was acknowledged before is confirmed");
}

/// The handlers notice nothing when acknowledgements are queued, so the loop has to tell.
#[test]
fn acknowledgements_that_are_refused_end_the_loop() {
    for way in every_way() {
        let bench = &way.bench;
        bench.server.command(&["ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all"]);
        let stream = stream_with(way.params.clone().username("worker").password("secret"));
        bench.fill(100_000, 10);
        let consumer = stream.consumer(bench.input()).spawn().unwrap();
        next(&consumer).ack().unwrap();
        bench.server.wait_until(|_| consumer.stats().acked == 1);
        bench.server.command(&["ACL", "SETUSER", "worker", "-xack"]);
        let (acked, error) = take_until_error(&consumer);
        assert_eq!(error.code(), Some("NOPERM"), "{error:?}");
        assert!(error.to_string().contains("XACK"), "{error}");
        assert!(consumer.iter().next().is_none());
        let rejected = bench.rejected_calls("xack");
        assert!(rejected < 100, "{rejected} refused for {acked} acknowledgements");
        let error = consumer.close().unwrap_err();
        assert!(matches!(error, Error::AcksUnconfirmed { .. }), "{error:?}");
        assert!(bench.pending() > 0, "what was not acknowledged comes again");
    }
}

#[test]
fn a_fatal_error_comes_behind_what_was_read_before_it() {
    let bench = Bench::start();
    bench.publish(5);
    let consumer = bench.consumer("one").prefetch(2).batch(2).spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().queued == 2);
    bench.server.command(&["SET", &bench.key, "text"]);
    let items: Vec<_> = consumer.iter().collect();
    let (last, before) = items.split_last().unwrap();
    assert!(last.as_ref().is_err_and(Error::is_wrong_type), "{last:?}");
    assert!(before.iter().all(Result::is_ok) && before.len() >= 2);
}

#[test]
fn a_lost_connection_is_not_fatal() {
    let bench = Bench::on(Server::builder().append_only().start());
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
    let consumer = bench.consumer("one").backoff(backoff).spawn().unwrap();
    bench.server.kill();
    bench.server.wait_until(|_| consumer.stats().last_error.is_some());
    bench.server.restart();
    bench.publish(1);
    next(&consumer).ack().unwrap();
    let stats = consumer.close().unwrap();
    assert!(stats.reconnects >= 1);
    assert_eq!((stats.acked, bench.pending()), (1, 0));
}

/// What is given back is a script, and what a script is refused looks different on each version of the server.
#[test]
fn a_master_that_was_demoted_is_noticed_when_an_entry_is_given_back() {
    let bench = Bench::start();
    bench.publish(1);
    let input = bench.input().dead_letter(bench.dead());
    let consumer = bench.stream.consumer(input).spawn().unwrap();
    let held = next(&consumer);
    let pooled = bench.stream.pool().get().unwrap().id().unwrap().to_string();
    let is_there = || bench.server.client_list().iter().any(|client| client["id"] == pooled);
    assert!(is_there());
    // Of a master that is not there, so that the data stays.
    bench.server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = held.dead_letter("not now").unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), (Some("READONLY"), true), "{error:?}");
    bench.server.wait_until(|_| !is_there());
    bench.server.command(&["REPLICAOF", "NO", "ONE"]);
    bench.publish(1);
    assert_eq!(number(&next(&consumer)), 0);
    assert!(consumer.stats().reconnects > 0, "a new connection may lead to another server");
}

#[test]
fn the_password_is_in_no_debug_text() {
    let (bench, stream) = bench_with_user();
    let builder = stream.consumer(bench.input());
    let text = format!("{builder:?}");
    let consumer = builder.spawn().unwrap();
    let text = format!("{text} {consumer:?} {:?} {:?}", consumer.stop_handle(), consumer.stats());
    assert!(!text.contains("secret"), "{text}");
    drop(consumer);
    let _: &StepPool = stream.pool();
}
