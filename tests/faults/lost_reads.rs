//! A connection that is gone for the client and not for the server: the read that waits on it takes what comes next, and
//! nobody gets it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{Direction, Proxy, Reply, Server, wait_until};
use crate::support::{LIMIT, Line, Scene, assert_quiet, next};

/// What the user may do about its own lost connection: kill it, unblock it, or nothing.
const RULES: [&str; 3] = ["+@all", "-client|kill", "-client"];

/// The connections whose reads wait at the server.
fn blocked(scene: &Scene) -> Vec<String> {
    let clients = scene.server.client_list().into_iter();
    clients.filter(|client| client["flags"].contains('b')).map(|client| client["id"].clone()).collect()
}

/// For each kind of line, each rule, and with claims and without.
fn in_all_ways(check: impl Fn(&Line, &str, bool)) {
    for (line, claim) in Line::all().into_iter().zip([true, false, true]) {
        check(&line, RULES[0], claim);
    }
    for rule in &RULES[1..] {
        let line = Line::plain();
        let accepted = line.scene.server.try_command(&["ACL", "SETUSER", "default", rule]).unwrap();
        // Redis 6.2 cannot forbid a subcommand alone.
        if !matches!(accepted, Reply::Error(_)) {
            check(&line, rule, false);
        }
    }
}

#[test]
fn what_comes_after_the_reconnect_does_not_go_to_the_lost_read() {
    in_all_ways(|line, rule, claim| {
        let Line { scene, proxy, .. } = line;
        let consumer = line.consumer("one").claim(claim).spawn().unwrap();
        wait_until(LIMIT, || blocked(scene).len() == 1);
        let lost = blocked(scene);
        proxy.abandon();
        wait_until(LIMIT, || blocked(scene).iter().any(|client| !lost.contains(client)));
        scene.add("after");
        let delivery = next(&consumer);
        assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), ("after", 1), "{rule}, {claim}");
        delivery.ack().unwrap();
        assert_quiet(&consumer);
        let stats = consumer.close().unwrap();
        assert_eq!((stats.received, stats.reconnects, scene.pending()), (1, 1, 0));
    });
}

#[test]
fn what_the_lost_read_has_taken_comes_as_soon_as_it_is_over_and_for_the_first_time() {
    in_all_ways(|line, rule, claim| {
        let Line { scene, proxy, .. } = line;
        let consumer = line.consumer("one").claim(claim).spawn().unwrap();
        wait_until(LIMIT, || blocked(scene).len() == 1);
        proxy.refuse(true);
        proxy.abandon();
        scene.add("lost");
        scene.server.wait_until(|_| scene.pending() == 1);
        proxy.heal();
        let delivery = next(&consumer);
        assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), ("lost", 1), "{rule}, {claim}");
        delivery.ack().unwrap();
        assert_quiet(&consumer);
        consumer.close().unwrap();
        assert_eq!(scene.pending(), 0);
    });
}

#[test]
fn what_comes_while_the_lost_read_may_still_wait_comes_soon() {
    in_all_ways(|line, rule, claim| {
        let Line { scene, proxy, .. } = line;
        let consumer = line.consumer("one").claim(claim).spawn().unwrap();
        wait_until(LIMIT, || blocked(scene).len() == 1);
        proxy.abandon();
        wait_until(LIMIT, || consumer.stats().reconnects == 1);
        for number in 0..5 {
            let text = format!("entry-{number}");
            scene.add(&text);
            let delivery = next(&consumer);
            assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&*text, 1), "{rule}, {claim}");
            delivery.ack().unwrap();
        }
        assert_quiet(&consumer);
    });
}

#[test]
fn a_client_of_a_restarted_server_is_not_taken_for_the_lost_one() {
    const OTHERS: usize = 60;
    let scene = Scene::on(Server::builder().append_only());
    let proxy = Proxy::start(scene.server.port());
    let others = || (0..OTHERS).map(|_| scene.server.client().unwrap()).collect::<Vec<_>>();
    let before = others();
    let params = step_redis::PoolParams::new("127.0.0.1", proxy.port());
    let consumer = scene.default_consumer(params, "one").spawn().unwrap();
    wait_until(LIMIT, || blocked(&scene).len() == 1);
    let reader: usize = blocked(&scene)[0].parse().unwrap();
    drop(before);

    proxy.refuse(true);
    scene.server.kill();
    scene.server.restart();
    // Ids begin again, and somebody else gets the reader's.
    let mut clients = Vec::new();
    loop {
        let mut client = scene.server.client().unwrap();
        let id = client.command(&["CLIENT", "ID"]).unwrap().int() as usize;
        clients.push(client);
        assert!(id <= reader, "ids have run past {reader}");
        if id == reader {
            break;
        }
    }
    proxy.heal();
    scene.add("after");
    next(&consumer).ack().unwrap();
    let reply = clients.last_mut().unwrap().command(&["PING"]);
    assert!(matches!(reply, Ok(Reply::Simple(_))), "{reply:?}");
    consumer.close().unwrap();
}

#[test]
fn a_lost_read_that_is_on_its_way_yet_takes_nothing_for_good() {
    const HELD_BACK: Duration = Duration::from_millis(300);
    // Longer than a reconnect takes, and shorter than the server may hold a blocked read.
    const LATE: Duration = Duration::from_secs(2);
    for rule in &RULES[1..] {
        let line = Line::plain();
        let Line { scene, proxy, .. } = &line;
        if matches!(scene.server.try_command(&["ACL", "SETUSER", "default", rule]).unwrap(), Reply::Error(_)) {
            continue;
        }
        let consumer = line.consumer("one").claim(false).spawn().unwrap();
        wait_until(LIMIT, || blocked(scene).len() == 1);
        let (reader, _) = scene.connections();
        proxy.delay(Direction::ToServer, HELD_BACK);
        scene.add("before");
        next(&consumer).ack().unwrap();
        // Its next read is on the way when the connection is lost.
        wait_until(LIMIT, || proxy.waiting(&reader) > 0);
        proxy.abandon_late(LATE);
        proxy.delay(Direction::ToServer, Duration::ZERO);
        wait_until(LIMIT, || consumer.stats().reconnects == 1);
        // It has arrived, and takes what comes if nothing else waits there.
        let is_lost_read =
            |client: &BTreeMap<String, String>| client["addr"] == reader && client["flags"].contains('b');
        wait_until(LIMIT, || scene.server.client_list().iter().any(is_lost_read));
        for number in 0..3 {
            let text = format!("after-{number}");
            scene.add(&text);
            let delivery = next(&consumer);
            assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&*text, 1), "{rule}");
            delivery.ack().unwrap();
        }
        assert_quiet(&consumer);
        consumer.close().unwrap();
        scene.server.wait_until(|_| scene.pending() == 0);
    }
}
