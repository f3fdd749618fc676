//! The table "What blocks, and for how long?" of the crate's documentation, row by row: 64 callers at once, messages of a
//! mebibyte, a pool that is full, and a server that hangs. (`Publisher::publish` is in `publishers.rs`.)

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::redis::ConnectionLike;
use step_redis::{
    AckMode, Consumer, Delivery, Error, PoolParams, PooledConnection, StepPool, StepStream, StreamInput, redis,
};

use crate::common::{Behaviour, Peer, wait_until};
use crate::support::{LIMIT as NEVER, SLACK, Scene, connect, next};

const CALLERS: usize = 64;
const LIMIT: Duration = Duration::from_millis(500);
const MEBIBYTE: usize = 1024 * 1024;

/// What many callers at the same time get, and the longest that one of them waits.
fn at_once<T: Send>(call: impl Fn(usize) -> T + Sync) -> (Vec<T>, Duration) {
    let start = Barrier::new(CALLERS);
    let (call, start) = (&call, &start);
    let (results, times): (Vec<T>, Vec<Duration>) = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn(move || {
                    start.wait();
                    let started = Instant::now();
                    (call(caller), started.elapsed())
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).unzip()
    });
    (results, times.into_iter().max().unwrap())
}

#[track_caller]
fn assert_within(bound: Duration, took: Duration) {
    assert!(took < bound + SLACK, "{took:?} where {bound:?} is the bound");
}

fn params(scene: &Scene) -> PoolParams {
    let params = scene.params().socket_timeout(LIMIT).connection_available_timeout(LIMIT);
    params.socket_connect_timeout(LIMIT).max_connections(CALLERS as u32)
}

/// A stream over a pool whose connections are all open.
fn warm(scene: &Scene) -> StepStream {
    let stream = connect(params(scene));
    let mut all: Vec<PooledConnection> = Vec::new();
    // A busy machine may take its time.
    wait_until(NEVER, || {
        all.extend(stream.pool().get());
        all.len() == CALLERS
    });
    drop(all);
    assert_eq!(stream.pool().state().idle as usize, CALLERS);
    stream
}

#[test]
fn a_checkout_from_a_full_pool() {
    let scene = Scene::new();
    let pool = StepPool::connect(params(&scene)).unwrap();
    let held: Vec<PooledConnection> = (0..CALLERS).map(|_| pool.get().unwrap()).collect();
    let (results, took) = at_once(|_| pool.get());
    assert!(results.iter().all(|result| matches!(result, Err(Error::PoolExhausted { .. }))), "{results:?}");
    assert_within(LIMIT, took);
    drop(held);
}

#[test]
fn a_checkout_whose_connections_hang() {
    let scene = Scene::new();
    let pool = StepPool::connect(params(&scene)).unwrap();
    scene.server.pause();
    let (results, took) = at_once(|_| pool.get().map(|_held| thread::sleep(Duration::from_millis(10))));
    assert!(results.iter().any(Result::is_err));
    assert_within(LIMIT, took);
}

#[test]
fn connecting() {
    let scene = Scene::new();
    scene.server.pause();
    let (results, took) = at_once(|_| StepPool::connect(params(&scene)).map(|_| ()));
    assert!(results.iter().all(|result| matches!(result, Err(Error::Connect { .. }))), "{results:?}");
    assert_within(LIMIT, took);
}

#[test]
fn a_command_and_a_pipeline() {
    let scene = Scene::new();
    let stream = warm(&scene);
    let held: Vec<_> = (0..CALLERS).map(|_| std::sync::Mutex::new(stream.pool().get().unwrap())).collect();
    scene.server.pause();
    // Encoded before, which takes a while in a debug build.
    let payload = vec![b'.'; MEBIBYTE];
    let command = redis::cmd("SET").arg("key").arg(&payload).get_packed_command();
    let mut pipe = redis::pipe();
    for piece in payload.chunks(MEBIBYTE / 16) {
        pipe.cmd("SET").arg("key").arg(piece);
    }
    let pipe = pipe.get_packed_pipeline();
    let (results, took) = at_once(|caller| {
        let mut connection = held[caller].lock().unwrap();
        if caller % 2 == 0 {
            connection.req_packed_command(&command).map(|_| ())
        } else {
            connection.req_packed_commands(&pipe, 0, 16).map(|_| ())
        }
    });
    assert!(results.iter().all(|result| result.as_ref().is_err_and(redis::RedisError::is_timeout)), "{results:?}");
    assert_within(LIMIT, took);
}

#[test]
fn publishing_and_batches() {
    let scene = Scene::new();
    let stream = warm(&scene);
    scene.server.pause();
    let payload = vec![b'.'; MEBIBYTE];
    let (errors, took) = at_once(|caller| {
        if caller % 2 == 0 {
            return stream.publish(&scene.output, &payload).unwrap_err();
        }
        stream.publish_batch(&scene.output, (0..4).map(|_| payload.as_slice())).unwrap_err()
    });
    assert!(errors.iter().all(|error| error.is_timeout() && error.is_outcome_unknown()), "{errors:?}");
    // Each has a connection of its own, which lay idle for a moment.
    assert_within(LIMIT, took);
}

#[test]
fn a_batch_that_is_confirmed_slowly() {
    // Each window is confirmed in time; many of them may take as long as they like.
    let peer = Peer::tcp(Behaviour::custom(|talk| {
        talk.handshake()?;
        loop {
            talk.request()?;
            talk.pause(LIMIT / 5)?;
            talk.send(b"$3\r\n1-1\r\n")?;
        }
    }));
    let params = crate::support::quick(peer.port()).socket_timeout(LIMIT).max_connections(CALLERS as u32);
    let stream = connect(params.connection_available_timeout(NEVER).socket_connect_timeout(NEVER));
    let payload = vec![b'.'; MEBIBYTE];
    let output = step_redis::StreamOutput::new("orders");
    let ids = stream.publish_batch(&output, (0..10).map(|_| payload.as_slice())).unwrap();
    assert_eq!(ids.len(), 10);
}

#[test]
fn receiving() {
    let scene = Scene::new();
    let stream = warm(&scene);
    let wait = Duration::from_millis(300);
    let input = |caller: usize| scene.input().consumer(format!("{caller}")).wait_timeout(wait);
    stream.create_input_stream(&input(0)).unwrap();
    let (results, took) = at_once(|caller| stream.receive(&input(caller)));
    assert!(results.iter().all(|result| matches!(result, Ok(None))), "{results:?}");
    assert_within(wait, took);
    scene.server.pause();
    let (results, took) = at_once(|caller| stream.receive(&input(caller)).map(|_| ()));
    assert!(results.iter().all(|result| result.as_ref().is_err_and(Error::is_timeout)), "{results:?}");
    assert_within(wait + LIMIT, took);
}

#[test]
fn claiming_and_confirmed_acknowledgements() {
    let scene = Scene::new();
    let stream = warm(&scene);
    let input = |caller: usize| scene.input().consumer(format!("{caller}"));
    stream.create_input_stream(&input(0)).unwrap();
    stream.publish_batch(&scene.output, (0..CALLERS).map(|_| vec![b'.'; MEBIBYTE / 4])).unwrap();
    let received = stream.receive_batch(&input(0), CALLERS).unwrap();
    assert_eq!(received.len(), CALLERS);
    scene.server.pause();
    let (results, took) = at_once(|caller| stream.claim(&input(caller), Duration::ZERO, CALLERS).map(|_| ()));
    assert!(results.iter().all(|result| result.as_ref().is_err_and(Error::is_timeout)), "{results:?}");
    assert_within(4 * LIMIT, took);
    let received: Vec<_> = received.into_iter().map(|delivery| std::sync::Mutex::new(Some(delivery))).collect();
    let (results, took) = at_once(|caller| received[caller].lock().unwrap().take().unwrap().ack());
    assert!(results.iter().all(|result| result.as_ref().is_err_and(Error::is_timeout)), "{results:?}");
    // The pool's connections were lost just before, so most of them wait for one.
    assert_within(2 * LIMIT, took);
}

#[test]
fn spawning_a_consumer() {
    let scene = Scene::new();
    let stream = connect(params(&scene));
    scene.server.pause();
    let (results, took) = at_once(|caller| stream.consumer(input(&scene, caller)).spawn().map(|_| ()));
    assert!(results.iter().all(Result::is_err), "{results:?}");
    assert_within(4 * LIMIT, took);
}

#[test]
fn spawning_a_consumer_where_every_answer_takes_its_time() {
    // A connection in time, another one, and then the group in vain.
    let peer = Peer::tcp(Behaviour::custom(|talk| {
        talk.pause(LIMIT / 2)?;
        talk.handshake()?;
        talk.pause(NEVER)
    }));
    let params = crate::support::quick(peer.port()).socket_timeout(LIMIT).socket_connect_timeout(2 * LIMIT);
    let stream = connect(params);
    let (results, took) =
        at_once(|caller| stream.consumer(StreamInput::new("orders", format!("{caller}"))).spawn().map(|_| ()));
    assert!(results.iter().all(Result::is_err), "{results:?}");
    assert_within(2 * 2 * LIMIT + 2 * LIMIT, took);
}

fn input(scene: &Scene, caller: usize) -> StreamInput {
    scene.input().consumer(format!("{caller}")).wait_timeout(Duration::from_secs(30))
}

/// A consumer with many entries of a mebibyte and more in hand, and a server that hangs from now on.
fn consumer_in_hand(scene: &Scene, stream: &StepStream) -> (Consumer, Vec<Delivery>) {
    let payload = vec![b'.'; MEBIBYTE];
    for _ in 0..CALLERS / 16 {
        stream.publish_batch(&scene.output, (0..16).map(|_| payload.as_slice())).unwrap();
    }
    scene.add_many("short", 300);
    let consumer = stream.consumer(input(scene, 0)).batch(16).prefetch(512).claim(false).close_timeout(LIMIT);
    let consumer = consumer.ack_mode(AckMode::Queued { max: 256, delay: Duration::from_millis(5) }).spawn().unwrap();
    let deliveries = (0..CALLERS + 300).map(|_| next(&consumer)).collect();
    scene.server.pause();
    (consumer, deliveries)
}

#[test]
fn iterating_with_a_limit_acknowledging_and_closing() {
    let scene = Scene::new();
    let stream = connect(scene.params().socket_timeout(NEVER));
    let (consumer, deliveries) = consumer_in_hand(&scene, &stream);

    let (results, took) = at_once(|_| consumer.timeout_iter(LIMIT).next().is_none());
    assert!(results.into_iter().all(|none| none));
    assert_within(LIMIT, took);
    let (results, took) = at_once(|_| consumer.try_iter().next().is_none());
    assert!(results.into_iter().all(|none| none));
    assert_within(Duration::ZERO, took);

    let mut shares: Vec<Vec<Delivery>> = (0..CALLERS).map(|_| Vec::new()).collect();
    let count = deliveries.len();
    for (number, delivery) in deliveries.into_iter().enumerate() {
        shares[number % CALLERS].push(delivery);
    }
    let shares: Vec<_> = shares.into_iter().map(|share| std::sync::Mutex::new(Some(share))).collect();
    let (_, took) = at_once(|caller| {
        for delivery in shares[caller].lock().unwrap().take().unwrap() {
            delivery.ack().unwrap();
        }
    });
    assert_within(Duration::ZERO, took);

    let started = Instant::now();
    let error = consumer.close().unwrap_err();
    assert_within(LIMIT + Duration::from_millis(100), started.elapsed());
    assert!(matches!(error, Error::AcksUnconfirmed { count: unconfirmed } if unconfirmed == count), "{error:?}");
}

#[test]
fn stopping_and_closing_many_consumers() {
    let scene = Scene::new();
    let stream = connect(scene.params().socket_timeout(NEVER).socket_connect_timeout(NEVER));
    scene.add_many("short", CALLERS);
    let consumers: Vec<Consumer> = (0..CALLERS)
        .map(|caller| {
            let consumer = stream.consumer(input(&scene, caller)).batch(1).prefetch(1).claim(false);
            consumer.close_timeout(LIMIT).spawn().unwrap()
        })
        .collect();
    scene.server.pause();
    // Some have acknowledgements that nobody will confirm.
    for consumer in &consumers {
        for delivery in consumer.try_iter() {
            delivery.unwrap().ack().unwrap();
        }
    }
    let (_, took) = at_once(|caller| consumers[caller].stop_handle().stop());
    assert_within(Duration::ZERO, took);
    let started = Instant::now();
    wait_until(NEVER, || consumers.iter().all(|consumer| consumer.timeout_iter(Duration::ZERO).next().is_none()));
    assert_within(Duration::ZERO, started.elapsed());
    let consumers: Vec<_> = consumers.into_iter().map(|consumer| std::sync::Mutex::new(Some(consumer))).collect();
    let (results, took) = at_once(|caller| {
        let consumer = consumers[caller].lock().unwrap().take().unwrap();
        consumer.close().map(|_| ())
    });
    assert!(results.iter().any(Result::is_err), "no acknowledgement was under way");
    assert_within(LIMIT + Duration::from_millis(100), took);
}
