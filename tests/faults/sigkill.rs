//! A server that is killed again and again, and writes everything down before it answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Server;
use crate::support::{LIMIT, Scene, connect, median};

const KILLS: usize = 20;

#[test]
fn twenty_kills_lose_no_confirmed_message_and_the_consumer_goes_on_within_a_second() {
    let scene = Scene::on(Server::builder().append_only());
    let stream = connect(scene.params().connection_available_timeout(Duration::from_millis(200)));
    // The settings that a program has which chooses none.
    let consumer = stream.consumer(scene.input()).spawn().unwrap();
    let stopper = consumer.stop_handle();
    let (ended, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (seen, markers) = mpsc::channel();

    let (confirmed, handled, times) = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut confirmed = BTreeSet::new();
            for number in 0.. {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let text = format!("message-{number}");
                match stream.publish(&scene.output, &*text) {
                    Ok(_) => drop(confirmed.insert(text)),
                    Err(_) => drop(refused.fetch_add(1, Ordering::SeqCst)),
                }
                // Leaves the machine some time for the server's start.
                thread::sleep(Duration::from_millis(1));
            }
            confirmed
        });
        let handler = scope.spawn(|| {
            let mut handled = BTreeSet::new();
            for delivery in &consumer {
                let delivery = delivery.unwrap();
                let text = delivery.text().unwrap().to_owned();
                delivery.ack().unwrap();
                if text.starts_with("marker") {
                    seen.send((Instant::now(), text.clone())).unwrap();
                }
                handled.insert(text);
            }
            handled
        });

        let mut times = Vec::new();
        for round in 0..KILLS {
            let before = refused.load(Ordering::SeqCst);
            scene.server.kill();
            crate::common::wait_until(LIMIT, || refused.load(Ordering::SeqCst) > before);
            scene.server.restart();
            let returned = Instant::now();
            let marker = format!("marker-{round}");
            scene.add(&marker);
            let (at, text) = markers.recv_timeout(LIMIT).expect("the consumer did not go on");
            assert_eq!(text, marker);
            times.push(at - returned);
        }
        ended.store(true, Ordering::SeqCst);
        let confirmed = publisher.join().unwrap();
        scene.server.wait_until(|_| unread(&scene) == 0 && scene.pending() == 0);
        stopper.stop();
        (confirmed, handler.join().unwrap(), times)
    });

    let lost: Vec<_> = confirmed.difference(&handled).collect();
    assert!(lost.is_empty(), "{} of {} confirmed messages were lost: {lost:?}", lost.len(), confirmed.len());
    assert!(confirmed.len() > KILLS, "only {} messages were confirmed", confirmed.len());
    assert!(median(times.clone()) < Duration::from_secs(1), "{times:?}");
}

/// How many entries the group has not read yet.
fn unread(scene: &Scene) -> usize {
    let groups = scene.server.command(&["XINFO", "GROUPS", &scene.stream_id]);
    let group = groups.array()[0].array();
    let position = group.iter().position(|item| *item == crate::common::Reply::Bulk(b"last-delivered-id".to_vec()));
    let last = group[position.expect("a group says where it stands") + 1].text();
    scene.server.command(&["XRANGE", &scene.stream_id, &format!("({last}"), "+"]).array().len()
}
