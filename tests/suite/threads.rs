//! Many threads share a pool and its streams, and every entry arrives exactly once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use step_redis::{
    Connection, DeadLetter, Delivery, Entry, EntryId, Error, Interrupter, Message, PoolParams, PooledConnection,
    StepPool, StepStream, StreamInput, StreamOutput,
};

use crate::context::{Context, STREAM};

both_protocols! {
    eight_publishers_and_four_receivers_share_a_pool_of_four,
    callers_of_one_publisher_come_and_go_at_their_own_pace,
}

const PUBLISHERS: usize = 8;
const RECEIVERS: usize = 4;
const EACH: usize = 10_000;

/// Publishes one message at a time, with its publisher and its number.
fn publish(stream: &StepStream, output: &StreamOutput, publisher: usize) {
    for number in 0..EACH {
        stream.publish(output, format!("{publisher} {number}")).unwrap();
    }
}

/// Receives until everything was published and nothing is left.
fn receive(stream: &StepStream, input: &StreamInput, published: &AtomicBool) -> Vec<(usize, usize)> {
    let mut received = Vec::new();
    loop {
        let last = published.load(Ordering::SeqCst);
        let deliveries = stream.receive_batch(input, 100).unwrap();
        if deliveries.is_empty() && last {
            return received;
        }
        for delivery in deliveries {
            assert_eq!(delivery.delivery_count(), 1);
            let (publisher, number) = delivery.text().unwrap().split_once(' ').unwrap();
            received.push((publisher.parse().unwrap(), number.parse().unwrap()));
            delivery.ack().unwrap();
        }
    }
}

fn eight_publishers_and_four_receivers_share_a_pool_of_four(context: Context) {
    let stream =
        context.stream_with(|params| params.max_connections(4).connection_available_timeout(Duration::from_secs(30)));
    let input = context.input().wait_timeout(Duration::from_millis(20));
    let published = AtomicBool::new(false);
    let received: Vec<(usize, usize)> = thread::scope(|scope| {
        let (stream, input, published) = (&stream, &input, &published);
        let receivers: Vec<_> = (0..RECEIVERS)
            .map(|number| {
                let input = input.clone().consumer(format!("receiver {number}"));
                scope.spawn(move || receive(stream, &input, published))
            })
            .collect();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|number| scope.spawn(move || publish(stream, &StreamOutput::new(STREAM), number)))
            .collect();
        for publisher in publishers {
            publisher.join().unwrap();
        }
        published.store(true, Ordering::SeqCst);
        receivers.into_iter().flat_map(|receiver| receiver.join().unwrap()).collect()
    });

    assert_eq!(received.len(), PUBLISHERS * EACH);
    let distinct: HashSet<_> = received.into_iter().collect();
    assert_eq!(distinct.len(), PUBLISHERS * EACH);
    assert_eq!(context.length(), (PUBLISHERS * EACH) as i64);
    assert_eq!(stream.pending(&input).unwrap().total, 0);
    let state = stream.pool().state();
    assert!(state.connections <= 4 && state.in_use == 0, "{state:?}");
}

/// Some publish without a pause, others pause for longer than a turn waits for them, so that turns are complete, run out
/// of patience and stand open in every mixture.
fn callers_of_one_publisher_come_and_go_at_their_own_pace(context: Context) {
    const EACH: u64 = 400;
    let stream = &context.stream;
    let publisher = stream.publisher(StreamOutput::new(STREAM));
    let told: Vec<Vec<(EntryId, String)>> = thread::scope(|scope| {
        let callers: Vec<_> = (0..12_u64)
            .map(|caller| {
                let publisher = publisher.clone();
                let publish = move |number| {
                    match (caller + number) % 7 * (caller % 4) {
                        0 => {}
                        pause => thread::sleep(Duration::from_micros(20 * pause)),
                    }
                    let text = format!("{caller} {number}");
                    (publisher.publish(&text).unwrap(), text)
                };
                scope.spawn(move || (0..EACH).map(publish).collect())
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });

    for of_one_caller in &told {
        assert!(of_one_caller.is_sorted(), "a caller's messages keep their order");
    }
    let told: HashMap<EntryId, String> = told.into_iter().flatten().collect();
    let mut there = stream.receive_batch(&context.input(), 2 * told.len()).unwrap();
    assert_eq!(there.len(), told.len());
    for delivery in there.drain(..) {
        assert_eq!(told.get(&delivery.id()).map(String::as_str), delivery.text().ok());
        delivery.ack().unwrap();
    }
}

#[test]
fn what_threads_share_and_send_may_be_shared_and_sent() {
    fn send<T: Send>() {}
    fn share<T: Send + Sync>() {}
    share::<StepPool>();
    share::<StepStream>();
    share::<StreamInput>();
    share::<StreamOutput>();
    share::<PoolParams>();
    share::<Interrupter>();
    share::<Error>();
    share::<Entry>();
    share::<DeadLetter>();
    send::<Delivery>();
    send::<Message<'static>>();
    send::<Connection>();
    send::<PooledConnection>();
    fn owned<T: 'static>() {}
    owned::<Delivery>();
    owned::<PooledConnection>();
}
