//! The end of a consumer whose connections are dead and do not tell: it keeps its bound, and gives back what it can.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Direction, Reply, wait_until};
use crate::support::{LIMIT, Line, SLACK, next};

/// The default `close_timeout`, and a tenth of a second for the threads.
const CLOSE_BOUND: Duration = Duration::from_millis(2_100);

/// The client's id at the server.
fn id_of(line: &Line, address: &str) -> String {
    let clients = line.scene.server.client_list();
    clients.iter().find(|client| client["addr"] == address).expect("it is there")["id"].clone()
}

#[test]
fn what_is_queued_goes_back_uncounted_although_the_housekeeping_connection_is_dead() {
    // More than the queue takes, so that the reader waits for room.
    const ENTRIES: usize = 1_000;
    thread::scope(|scope| {
        for is_silent in [true, false] {
            for line in Line::all() {
                scope.spawn(move || {
                    let scene = &line.scene;
                    let consumer = line.consumer("one").max_deliveries(3).dead_letter(scene.dead()).spawn().unwrap();
                    scene.wait_until_blocked();
                    let (_, keeper) = scene.connections();
                    scene.add_many("entry", ENTRIES);
                    wait_until(LIMIT, || consumer.stats().queued == 256);
                    if is_silent {
                        line.proxy.silence(&keeper);
                    } else {
                        scene.server.command(&["CLIENT", "KILL", "ID", &id_of(&line, &keeper)]);
                    }
                    let started = Instant::now();
                    consumer.close().unwrap();
                    assert!(started.elapsed() < CLOSE_BOUND + SLACK, "{:?}", started.elapsed());
                    let left = scene.pending_entries();
                    assert!(left.len() >= 256);
                    let counted = left.iter().filter(|(_, idle, count)| *count > 0 || *idle < 60_000).count();
                    assert_eq!(counted, 0, "of {}", left.len());
                });
            }
        }
    });
}

/// The stream is made again with the same id, which the reader finds out while an acknowledgement is under way.
fn close_while_the_reader_waits_for_its_turn(line: &Line, is_connecting: bool) {
    let Line { scene, proxy, .. } = line;
    let consumer = line.consumer("one").spawn().unwrap();
    let add = |id: &str| drop(scene.server.command(&["XADD", &scene.stream_id, id, "message", id]));
    add("1-1");
    add("1-2");
    let (acked, held) = (next(&consumer), next(&consumer));
    scene.wait_until_blocked();
    let (_, keeper) = scene.connections();
    let swallowed = proxy.swallowed(Direction::ToServer);
    if is_connecting {
        proxy.silence_new(true);
        scene.server.command(&["CLIENT", "KILL", "ID", &id_of(line, &keeper)]);
    } else {
        proxy.silence(&keeper);
    }
    acked.ack().unwrap();
    // The acknowledgement, or the greeting of the connection that is to carry it.
    proxy.wait_until(|proxy| proxy.swallowed(Direction::ToServer) > swallowed);
    let renew = "redis.call('DEL',KEYS[1]) redis.call('XGROUP','CREATE',KEYS[1],'group','0','MKSTREAM') \
                 return redis.call('XADD',KEYS[1],'1-2','message','again')";
    assert!(!matches!(scene.server.command(&["EVAL", renew, "1", &scene.stream_id]), Reply::Error(_)));
    scene.server.wait_until(|_| scene.pending() == 1);
    thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    let closed = consumer.close();
    assert!(
        started.elapsed() < CLOSE_BOUND + SLACK,
        "connecting: {is_connecting}, {:?}, {closed:?}",
        started.elapsed()
    );
    held.leave();
}

#[test]
fn a_close_keeps_its_bound_while_the_reader_waits_for_housekeeping_that_hangs() {
    thread::scope(|scope| {
        for is_connecting in [true, false] {
            scope.spawn(move || close_while_the_reader_waits_for_its_turn(&Line::plain(), is_connecting));
        }
    });
}
