//! `stop()` ends the loop in milliseconds, whatever the reader waits for, and loses nothing.

use crate::child::Child;
use crate::common::Server;
use crate::support::{Bench, LONG, distinct, next, number, random};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use step_redis::{Consumer, ConsumerBuilder, Error};

const TRIALS: usize = 200;
/// The documented bound beyond `close_timeout`, and something for a busy machine.
const CLOSE_MARGIN: Duration = Duration::from_millis(100 + 400);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The time from `stop()` to the end of the loop.
fn stop_time(builder: &ConsumerBuilder) -> Duration {
    let consumer = builder.clone().spawn().unwrap();
    let handle = consumer.stop_handle();
    let (ended, end) = channel();
    let looping = thread::spawn(move || {
        let came = (&consumer).into_iter().count();
        ended.send(Instant::now()).unwrap();
        assert_eq!(came, 0);
        consumer.close().unwrap();
    });
    // From before the reader's first request to long after it.
    thread::sleep(Duration::from_micros(random(30_000)));
    let stopped = Instant::now();
    handle.stop();
    let took = end.recv_timeout(LONG).unwrap().duration_since(stopped);
    looping.join().unwrap();
    took
}

/// The time from a push to the end of the plain pop that waits for it: what the machine itself needs to wake somebody who
/// is blocked at the server.
fn wake_time(server: &Server) -> Duration {
    let mut blocked = server.client().unwrap();
    let popping = thread::spawn(move || {
        blocked.command(&["BLPOP", "list", "30"]).unwrap();
        Instant::now()
    });
    server.wait_until(|server| server.info("clients")["blocked_clients"] != "0");
    let pushed = Instant::now();
    server.command(&["RPUSH", "list", "element"]);
    popping.join().unwrap().duration_since(pushed)
}

/// Under 20 ms, beyond what the machine itself needs. As it may be busy, one trial in twenty is forgiven.
#[track_caller]
fn assert_stops_at_once(builder: &ConsumerBuilder, server: &Server) {
    let trials = (0..TRIALS).map(|_| (stop_time(builder), wake_time(server)));
    let (mut stops, mut wakes): (Vec<_>, Vec<_>) = trials.unzip();
    stops.sort_unstable();
    wakes.sort_unstable();
    let most = TRIALS * 19 / 20;
    assert!(stops[TRIALS / 2] < Duration::from_millis(20), "median {:?}", stops[TRIALS / 2]);
    let (stop, wake) = (stops[most], wakes[most]);
    assert!(stop < Duration::from_millis(20) + 2 * wake, "most stops within {stop:?}, most wakes within {wake:?}");
}

#[test]
fn stop_ends_an_idle_loop_in_milliseconds() {
    let bench = Bench::start();
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    assert_stops_at_once(&bench.stream.consumer(input), &bench.server);
}

#[test]
fn stop_ends_an_idle_loop_in_milliseconds_when_the_reader_blocks_for_long() {
    let bench = Bench::start();
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    assert_stops_at_once(&bench.stream.consumer(input).claim(false), &bench.server);
    // It was the server that let the readers go: none was cut off, which would leave its name behind.
    assert_eq!(bench.consumers(), [""; 0]);
}

#[cfg(feature = "tls")]
#[test]
fn stop_ends_an_idle_loop_in_milliseconds_under_tls() {
    use crate::common::{Certificates, server_speaks_tls};
    use step_redis::{PoolParams, StepPool, StepStream, TlsParams};
    if !server_speaks_tls() {
        return;
    }
    let certificates = Certificates::generate();
    let bench = Bench::on(Server::builder().tls(&certificates).start());
    let params = PoolParams::from_url(&bench.server.tls_url()).unwrap();
    let params = params.tls(TlsParams::default().ca_certs(certificates.ca()));
    let stream = StepStream::new(StepPool::connect(params).unwrap());
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    assert_stops_at_once(&stream.consumer(input).claim(false), &bench.server);
}

/// A consumer whose reader blocks at a server that is then paused.
fn consumer_of_paused_server(bench: &Bench) -> Consumer {
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    let consumer = bench.stream.consumer(input).claim(false).close_timeout(CLOSE_TIMEOUT).spawn().unwrap();
    bench.wait_until_blocked();
    bench.server.pause();
    consumer
}

fn assert_within_bound(what: &str, took: Duration) {
    assert!(took < CLOSE_TIMEOUT + CLOSE_MARGIN, "{what} took {took:?}");
}

#[test]
fn stop_ends_the_loop_while_the_server_hangs() {
    let (mut stops, mut ends): (Vec<_>, Vec<_>) = (0..3).map(|_| stop_while_the_server_hangs()).unzip();
    stops.sort_unstable();
    ends.sort_unstable();
    assert!(stops[1] < Duration::from_millis(20), "stop() waits: {stops:?}");
    assert!(ends[1] < Duration::from_millis(300), "{ends:?}");
}

/// How long `stop` takes, and how long after its call the loop ends.
fn stop_while_the_server_hangs() -> (Duration, Duration) {
    let bench = Bench::start();
    let consumer = consumer_of_paused_server(&bench);
    let handle = consumer.stop_handle();
    let stopping = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let stopped = Instant::now();
        handle.stop();
        (stopped, stopped.elapsed())
    });
    assert_eq!(consumer.iter().count(), 0);
    let (stopped, stop) = stopping.join().unwrap();
    let end = stopped.elapsed();

    let started = Instant::now();
    consumer.close().unwrap();
    assert_within_bound("close after stop", started.elapsed());
    (stop, end)
}

#[test]
fn close_and_drop_keep_their_bound_while_the_server_hangs() {
    for close in [true, false] {
        let bench = Bench::start();
        let consumer = consumer_of_paused_server(&bench);
        let started = Instant::now();
        if close {
            consumer.close().unwrap();
        } else {
            drop(consumer);
        }
        assert_within_bound("the end", started.elapsed());
    }
}

#[test]
fn close_says_how_many_acknowledgements_a_server_that_hangs_has_not_confirmed() {
    let bench = Bench::start();
    bench.publish(3);
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    let consumer = bench.stream.consumer(input).claim(false).close_timeout(CLOSE_TIMEOUT).spawn().unwrap();
    let deliveries: Vec<_> = (0..3).map(|_| next(&consumer)).collect();
    bench.wait_until_blocked();
    bench.server.pause();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    let started = Instant::now();
    let error = consumer.close().unwrap_err();
    assert_within_bound("close", started.elapsed());
    assert!(matches!(error, Error::AcksUnconfirmed { count: 3 }), "{error:?}");
}

#[test]
fn close_keeps_its_bound_when_the_server_hangs_amid_the_burying_of_dead_letters() {
    let bench = Bench::start();
    bench.fill(20_000, 1);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    let all = ["XREADGROUP", "GROUP", "group", "one", "COUNT", "20000", "STREAMS", &bench.key, ">"];
    bench.server.command(&all);

    let second = bench.consumer("one").max_deliveries(1).dead_letter(bench.dead()).close_timeout(CLOSE_TIMEOUT);
    let second = second.spawn().unwrap();
    bench.server.wait_until(|_| second.stats().dead_lettered > 50);
    bench.server.pause();
    let started = Instant::now();
    second.close().unwrap();
    assert_within_bound("close", started.elapsed());
    bench.server.resume();
    // What was not buried is pending still.
    let buried = bench.server.command(&["XLEN", bench.dead().stream_id()]).int() as usize;
    assert_eq!(bench.pending() + buried, 20_000);
}

#[test]
fn close_keeps_its_bound_while_the_reader_tries_to_reconnect() {
    let bench = Bench::start();
    let consumer = bench.consumer("one").close_timeout(CLOSE_TIMEOUT).spawn().unwrap();
    bench.server.kill();
    bench.server.restart_without_waiting();
    bench.server.pause();
    // It can connect now, but gets no greeting.
    thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    drop(consumer);
    assert_within_bound("drop", started.elapsed());
}

#[test]
fn a_second_stop_does_nothing_and_what_was_read_is_still_handed_out() {
    let bench = Bench::start();
    bench.publish(10);
    // Some are in the channel, and the reader holds the others.
    let consumer = bench.consumer("one").prefetch(4).batch(10).spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().queued == 4 && bench.pending() == 10);
    let handle = consumer.stop_handle();
    handle.stop();
    handle.clone().stop();
    let numbers: Vec<_> = consumer.iter().map(|delivery| number(&delivery.unwrap())).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    drop(consumer);
    handle.stop();
}

#[test]
fn stopping_at_any_moment_under_load_loses_nothing() {
    const ENTRIES: usize = 20_000;
    let bench = Bench::start();
    bench.fill(ENTRIES, 100);
    let mut acked = Vec::new();
    for round in 0..60 {
        let consumer = bench.consumer("one").prefetch(64).batch(32).spawn().unwrap();
        let handle = consumer.stop_handle();
        let stopping = thread::spawn(move || {
            thread::sleep(Duration::from_micros(random(12_000)));
            handle.stop();
        });
        let mut handed_out = 0;
        for delivery in &consumer {
            let delivery = delivery.unwrap();
            handed_out += 1;
            if handed_out % 7 != 0 {
                acked.push(number(&delivery));
                delivery.ack().unwrap();
            }
        }
        stopping.join().unwrap();
        let stats = consumer.close().unwrap();
        assert_eq!(stats.received, handed_out, "round {round}: what was read is handed out");
        assert_eq!(bench.delivered().0 - bench.pending(), distinct(acked.clone()).len(), "round {round}");
    }
    let rounds = acked.len();
    let consumer = bench.consumer("one").spawn().unwrap();
    while distinct(acked.clone()).len() < ENTRIES {
        for _ in 0..(ENTRIES - distinct(acked.clone()).len()) {
            let delivery = next(&consumer);
            acked.push(number(&delivery));
            delivery.ack().unwrap();
        }
    }
    consumer.close().unwrap();
    assert_eq!((bench.pending(), bench.delivered()), (0, (ENTRIES, true)));
    assert_eq!(acked.len(), ENTRIES, "an acknowledged entry came again");
    assert!(rounds > 500, "the stops came before anything was read: {rounds}");
}

#[test]
fn no_thread_and_no_descriptor_outlives_its_consumer() {
    let bench = Bench::start();
    let mut child = Child::start(&bench, "tidy", "one");
    child.wait_for_line("tidy");
    child.finish();
}

/// Redis 7.0 ends itself when it is to unblock a client whose command it holds back.
#[test]
fn a_stop_while_the_server_holds_writes_back_leaves_the_server_alive() {
    let bench = Bench::start();
    let input = bench.input().wait_timeout(Duration::from_millis(100));
    let consumer = bench.stream.consumer(input).spawn().unwrap();
    bench.server.command(&["CLIENT", "PAUSE", "30000", "WRITE"]);
    // A read that waits for entries has a time limit at the server; one that is held back has none.
    bench.server.wait_until(|server| {
        let clients = server.info("clients");
        clients["blocked_clients"] != "0" && clients["clients_in_timeout_table"] == "0"
    });
    consumer.close().unwrap();
    assert!(bench.server.is_running());
    bench.server.command(&["CLIENT", "UNPAUSE"]);
    bench.server.wait_until(|server| server.connected_clients() <= 1);
}
