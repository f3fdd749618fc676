//! Every call ends in time, whatever the peer does: says nothing, takes nothing, or sends one byte at a time.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{ConnectStep, Error, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput, redis};

use crate::common::{Behaviour, Peer, Step};
use crate::context::{Context, STREAM, median_of_three, told};

both_protocols! {
    connecting_to_a_silent_or_dripping_peer_ends_in_time,
    connecting_to_a_full_backlog_ends_in_time,
    a_greeting_answered_in_part_ends_in_time,
    a_publish_to_a_silent_or_dripping_peer_ends_in_time,
    a_batch_is_bounded_as_a_whole,
    a_pipeline_is_bounded_as_a_whole,
    a_publish_is_bounded_as_a_whole_where_the_expiry_takes_plain_commands,
    a_request_that_the_peer_does_not_read_ends_in_time,
    a_blocking_read_of_a_silent_server_ends_after_its_wait,
    an_acknowledgement_to_a_silent_server_ends_in_time,
    sixty_four_callers_with_a_mebibyte_each_end_in_time,
    sixty_four_connections_being_made_end_in_time,
}

const LIMIT: Duration = Duration::from_millis(500);
/// The system counts whole milliseconds.
const EARLIEST: Duration = Duration::from_millis(498);
const BOUND: Duration = Duration::from_millis(700);
const DRIP: Duration = Duration::from_millis(200);

/// The same peer on both kinds of socket, each with the parameters to reach it and the address that an error shows.
fn peers(protocol: Protocol, behaviour: &Behaviour) -> [(Peer, PoolParams, String); 2] {
    [Peer::tcp(behaviour.clone()), Peer::unix(behaviour.clone())].map(|peer| reach(peer, protocol))
}

fn reach(peer: Peer, protocol: Protocol) -> (Peer, PoolParams, String) {
    let params = PoolParams::from_url(&peer.url()).unwrap().protocol(protocol);
    let address = match &params.unix_socket {
        Some(path) => path.display().to_string(),
        None => peer.address().to_string(),
    };
    (peer, params.socket_timeout(LIMIT).socket_connect_timeout(LIMIT), address)
}

/// The call takes as long as it may, fails with its timeout, and the text names the peer and the step.
#[track_caller]
fn assert_ends_in_time(names: &[&str], call: impl Fn() -> Error + Sync) -> Error {
    let (median, mut errors) = median_of_three(call);
    assert!((EARLIEST..BOUND).contains(&median), "{median:?}");
    for error in &errors {
        let told = told(error);
        assert!(error.is_timeout() && error.is_retryable(), "{told}");
        assert!(names.iter().all(|name| told.contains(name)), "{names:?}: {told}");
    }
    errors.remove(0)
}

fn connecting_to_a_silent_or_dripping_peer_ends_in_time(protocol: Protocol) {
    let first = if protocol == Protocol::Resp3 { ConnectStep::Hello } else { ConnectStep::Ping };
    for behaviour in [Behaviour::Silent, Behaviour::EndlessDrip(b"+PONG".to_vec(), DRIP)] {
        for (_peer, params, address) in peers(protocol, &behaviour) {
            let error = assert_ends_in_time(&[&address, &first.to_string(), "500ms"], || {
                StepPool::connect(params.clone()).unwrap_err()
            });
            assert!(matches!(error, Error::Connect { step, .. } if step == first), "{error:?}");
            assert!(!error.is_outcome_unknown());
        }
    }
}

fn connecting_to_a_full_backlog_ends_in_time(protocol: Protocol) {
    for (_peer, params, address) in [Peer::tcp_full(), Peer::unix_full()].map(|peer| reach(peer, protocol)) {
        let error = assert_ends_in_time(&[&address, "opening the socket", "500ms"], || {
            StepPool::connect(params.clone()).unwrap_err()
        });
        assert!(matches!(error, Error::Connect { step: ConnectStep::Open, .. }), "{error:?}");
    }
}

fn a_greeting_answered_in_part_ends_in_time(protocol: Protocol) {
    // The first step is answered after 300 ms of the 500, the second one never.
    let behaviour = Behaviour::custom(|talk| {
        talk.request()?;
        talk.pause(DRIP * 3 / 2)?;
        talk.send(b"+OK\r\n")
    });
    for (_peer, params, address) in peers(protocol, &behaviour) {
        let error = assert_ends_in_time(&[&address, "selecting the database (SELECT)"], || {
            StepPool::connect(params.clone().password("password").db(1)).unwrap_err()
        });
        assert!(matches!(error, Error::Connect { step: ConnectStep::Select, .. }), "{error:?}");
    }
}

/// Calls on a peer that greets well, then does this.
fn after_handshake(protocol: Protocol, then: Vec<Step>, call: impl Fn(&StepStream) -> Error + Sync) {
    let steps = [vec![Step::Handshake], then].concat();
    for (_peer, params, address) in peers(protocol, &Behaviour::Script(steps)) {
        // One connection for each trial, made before the clock starts.
        let stream = StepStream::new(StepPool::connect(params).unwrap());
        drop([(); 3].map(|()| stream.pool().get().unwrap()));
        let error = assert_ends_in_time(&[&address, "500ms"], || call(&stream));
        assert!(error.is_outcome_unknown(), "{error:?}");
        assert_eq!(stream.pool().state().connections, 0, "a connection is kept");
    }
}

fn a_publish_to_a_silent_or_dripping_peer_ends_in_time(protocol: Protocol) {
    let drip = Step::Drip(b"$15\r\n1700000000000-0\r\n".to_vec(), DRIP);
    for then in [vec![], vec![Step::Request, drip]] {
        after_handshake(protocol, then, |stream| stream.publish(&StreamOutput::new(STREAM), "text").unwrap_err());
    }
}

fn a_batch_is_bounded_as_a_whole(protocol: Protocol) {
    // Each message is confirmed in time, all of them together are not.
    let confirm = [Step::Pause(DRIP), Step::Send(b"$3\r\n1-1\r\n".to_vec())];
    let then = confirm.iter().cloned().cycle().take(20).collect();
    after_handshake(protocol, then, |stream| {
        let error = stream.publish_batch(&StreamOutput::new(STREAM), ["text"; 10]).unwrap_err();
        let Error::Batch { published, source } = &error else { panic!("{error:?}") };
        assert!((1..=2).contains(&published.iter().flatten().count()), "{published:?}");
        assert!(error.is_outcome_unknown() && error.is_timeout());
        (**source).clone()
    });
}

fn a_pipeline_is_bounded_as_a_whole(protocol: Protocol) {
    let answer = [Step::Pause(DRIP), Step::Send(b":1\r\n".to_vec())];
    let then: Vec<Step> = answer.iter().cloned().cycle().take(20).collect();
    let steps = [vec![Step::Handshake], then].concat();
    for (_peer, params, _) in peers(protocol, &Behaviour::Script(steps)) {
        let pool = StepPool::connect(params).unwrap();
        let (median, errors) = median_of_three(|| {
            let mut pipe = redis::pipe();
            for _ in 0..10 {
                pipe.cmd("INCR").arg("key");
            }
            pipe.query::<Vec<i64>>(&mut pool.get().unwrap()).unwrap_err()
        });
        assert!((EARLIEST..BOUND).contains(&median), "{median:?}");
        assert!(errors.iter().all(redis::RedisError::is_timeout), "{errors:?}");
    }
}

fn a_publish_is_bounded_as_a_whole_where_the_expiry_takes_plain_commands(protocol: Protocol) {
    let refused = b"-NOPERM this user has no permissions to run the 'eval' command\r\n".to_vec();
    let replies = [b"$3\r\n1-1\r\n".to_vec(), refused, b"+stream\r\n".to_vec(), b":-1\r\n".to_vec()];
    let answer = |reply: Vec<u8>| [Step::Request, Step::Pause(DRIP), Step::Send(reply)];
    // Each step is answered in time, all of them together are not.
    let steps = [vec![Step::Handshake], replies.into_iter().flat_map(answer).collect()].concat();
    let output = StreamOutput::new(STREAM).ttl(Duration::from_secs(60));
    for (_peer, params, _) in peers(protocol, &Behaviour::Script(steps)) {
        let stream = StepStream::new(StepPool::connect(params).unwrap());
        for through_a_publisher in [false, true] {
            let publisher = stream.publisher(output.clone());
            let started = std::time::Instant::now();
            let id = if through_a_publisher { publisher.publish("text") } else { stream.publish(&output, "text") };
            // The message is confirmed. The server removes a stream whose expiry was not refreshed, so that is logged.
            assert_eq!(id.unwrap().to_string(), "1-1");
            assert!((EARLIEST..BOUND).contains(&started.elapsed()), "{:?}", started.elapsed());
        }
    }
}

fn a_request_that_the_peer_does_not_read_ends_in_time(protocol: Protocol) {
    // More than the system keeps for a peer that takes nothing.
    let payload = vec![b'x'; 6 * 1024 * 1024];
    after_handshake(protocol, vec![Step::Pause(Duration::from_secs(3600))], |stream| {
        stream.publish(&StreamOutput::new(STREAM), &payload).unwrap_err()
    });
}

fn a_blocking_read_of_a_silent_server_ends_after_its_wait(context: Context) {
    let stream = context.stream_with(|params| params.socket_timeout(Duration::from_millis(300)));
    drop([(); 3].map(|()| stream.pool().get().unwrap()));
    let input = context.input().wait_timeout(Duration::from_millis(200));
    context.server.pause();
    assert_ends_in_time(&["127.0.0.1"], || stream.receive(&input).unwrap_err());
    context.server.resume();
    assert!(stream.receive(&input).unwrap().is_none());
}

fn an_acknowledgement_to_a_silent_server_ends_in_time(context: Context) {
    let stream = context.stream_with(|params| params.socket_timeout(LIMIT));
    let input: StreamInput = context.input();
    stream.publish(&context.output(), "text").unwrap();
    let delivery = stream.receive(&input).unwrap().unwrap();
    context.server.pause();
    let started = std::time::Instant::now();
    let error = delivery.ack().unwrap_err();
    assert!((LIMIT..LIMIT * 3).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert!(error.is_timeout() && error.is_outcome_unknown(), "{error:?}");
    context.server.resume();
    // Carried out or not, the stream is as it should be and the next call works.
    stream.ping().unwrap();
    assert!(context.pending().len() <= 1);
}

const CALLERS: u32 = 64;
/// So many threads have to get the processor, each with its mebibyte, after their time is over. A limit for each system call or
/// each piece of a reply, or one that is shared out among callers, takes seconds.
const BOUND_UNDER_LOAD: Duration = Duration::from_millis(1000);

/// How long the slowest of the callers took, who all begin together once they are ready: of three trials the best, as others
/// use the machine too.
fn slowest_of<R>(ready: impl Fn() -> R + Sync, call: impl Fn(R) + Sync) -> Duration {
    let trial = || {
        let begin = Barrier::new(CALLERS as usize);
        let timed = || {
            let ready = ready();
            begin.wait();
            let started = Instant::now();
            call(ready);
            started.elapsed()
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..CALLERS).map(|_| scope.spawn(timed)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
        })
    };
    (0..3).map(|_| trial()).min().unwrap()
}

fn sixty_four_callers_with_a_mebibyte_each_end_in_time(protocol: Protocol) {
    let (payload, output) = (vec![b'x'; 1024 * 1024], StreamOutput::new(STREAM));
    // Reads nothing; reads and says nothing; answers without an end, with a piece now and then.
    let deaf = Behaviour::custom(|talk| talk.handshake().and_then(|()| talk.pause(Duration::from_secs(60))));
    let silent = Behaviour::Script(vec![Step::Handshake]);
    let dripping = Behaviour::Script(vec![Step::Handshake, Step::Request, Step::Drip(vec![b'+'; 100], DRIP)]);
    for behaviour in [deaf, silent, dripping] {
        for (_peer, params, _) in peers(protocol, &behaviour) {
            let enough = Duration::from_secs(20);
            let params = params.max_connections(CALLERS).connection_available_timeout(enough);
            let stream = StepStream::new(StepPool::new(params.socket_connect_timeout(enough)).unwrap());
            let slowest = slowest_of(
                || stream.pool().get().unwrap(),
                |mut connection| {
                    let error = redis::cmd("SET").arg("key").arg(&payload).exec(&mut connection).unwrap_err();
                    assert!(error.is_timeout(), "{error}");
                },
            );
            assert!((EARLIEST..BOUND_UNDER_LOAD).contains(&slowest), "{behaviour:?}: {slowest:?}");
            // Through a pool that is full: each gives back what it holds and takes one again.
            let slowest = slowest_of(
                || stream.pool().get().unwrap(),
                |connection| {
                    drop(connection);
                    let error = stream.publish(&output, &payload).unwrap_err();
                    assert!(error.is_timeout() && error.is_outcome_unknown(), "{error}");
                },
            );
            assert!((EARLIEST..BOUND_UNDER_LOAD).contains(&slowest), "{behaviour:?}: {slowest:?}");
        }
    }
}

fn sixty_four_connections_being_made_end_in_time(protocol: Protocol) {
    for (_peer, params, _) in peers(protocol, &Behaviour::Silent) {
        let slowest = slowest_of(
            || (),
            |()| {
                let error = StepPool::connect(params.clone()).unwrap_err();
                assert!(error.is_timeout(), "{error}");
            },
        );
        assert!((EARLIEST..BOUND_UNDER_LOAD).contains(&slowest), "{slowest:?}");
    }
}
