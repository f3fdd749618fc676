//! Publishers whose connection fails: each caller learns what became of its message, and nothing is sent twice.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{EntryId, Error, PoolParams, Publisher, Result, StepStream};

use crate::common::{Behaviour, Direction, Peer, Proxy, Server};
use crate::support::{LIMIT, Scene, connect, let_logger_do_once_at, let_logger_panic_at, quick, remember_logs};

const CALLERS: usize = 12;

/// What the caller of one message was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Confirmed(EntryId),
    Unknown,
    NotSent,
}

impl Told {
    fn of(result: &Result<EntryId>) -> Told {
        match result {
            Ok(id) => Told::Confirmed(*id),
            Err(error) => Told::by(error),
        }
    }

    fn by(error: &Error) -> Told {
        if error.is_outcome_unknown() { Told::Unknown } else { Told::NotSent }
    }
}

#[test]
fn a_shared_publisher_under_faults_tells_each_caller_the_truth() {
    under_faults(|scene, stream| {
        let publisher = stream.publisher(scene.output.clone());
        move |text: &str| vec![(text.to_owned(), Told::of(&publisher.publish(text)))]
    });
}

#[test]
fn a_shared_publisher_that_refreshes_the_expiry_does_too() {
    under_faults(|scene, stream| {
        let publisher = stream.publisher(scene.output.clone().ttl(Duration::from_secs(600)));
        move |text: &str| vec![(text.to_owned(), Told::of(&publisher.publish(text)))]
    });
}

#[test]
fn publishing_through_the_pool_under_faults_tells_each_caller_the_truth() {
    under_faults(|scene, stream| {
        let (stream, output) = (stream.clone(), scene.output.clone());
        move |text: &str| vec![(text.to_owned(), Told::of(&stream.publish(&output, text)))]
    });
}

#[test]
fn batches_under_faults_tell_the_truth_about_each_message() {
    under_faults(|scene, stream| {
        let (stream, output) = (stream.clone(), scene.output.clone());
        move |text: &str| {
            let texts: Vec<String> = (0..300).map(|number| format!("{text}/{number}")).collect();
            let told = match stream.publish_batch(&output, texts.iter().map(String::as_str)) {
                Ok(ids) => ids.into_iter().map(Told::Confirmed).collect(),
                Err(error) => {
                    let lost = Told::by(&error);
                    let Error::Batch { published, .. } = error else { return tell(texts, vec![lost; 300]) };
                    let mut told: Vec<Told> = published.iter().map(|id| id.map_or(lost, Told::Confirmed)).collect();
                    told.resize(300, Told::NotSent);
                    told
                }
            };
            tell(texts, told)
        }
    });
}

fn tell(texts: Vec<String>, told: Vec<Told>) -> Vec<(String, Told)> {
    texts.into_iter().zip(told).collect()
}

/// Several callers publish while the connection and the server fail in turn, and what they were told is compared with what
/// is in the stream.
fn under_faults<P, F>(make: F)
where
    F: FnOnce(&Scene, &StepStream) -> P,
    P: Fn(&str) -> Vec<(String, Told)> + Sync,
{
    let scene = Scene::on(Server::builder().append_only());
    let proxy = Proxy::start(scene.server.port());
    let limit = Duration::from_millis(500);
    let params = quick(proxy.port()).socket_timeout(limit).socket_connect_timeout(limit);
    let stream = connect(params.connection_available_timeout(limit));
    let publish = make(&scene, &stream);
    let ended = AtomicBool::new(false);
    // What each caller was told, in its order.
    let told: Vec<Mutex<Vec<(String, Told)>>> = (0..CALLERS).map(|_| Mutex::default()).collect();
    let count = |wanted: fn(&Told) -> bool| -> usize {
        told.iter().map(|told| told.lock().unwrap().iter().filter(|(_, told)| wanted(told)).count()).sum()
    };
    let is_confirmed = |told: &Told| matches!(told, Told::Confirmed(_));

    thread::scope(|scope| {
        for (caller, told) in told.iter().enumerate() {
            let (publish, ended) = (&publish, &ended);
            scope.spawn(move || {
                for number in 0.. {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    let results = publish(&format!("{caller}-{number}"));
                    let failed = !results.iter().all(|(_, told)| is_confirmed(told));
                    told.lock().unwrap().extend(results);
                    if failed {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            });
        }
        let faults: [&dyn Fn(); 7] = [
            &|| proxy.cut_after(Direction::ToClient, 333),
            &|| proxy.cut_after(Direction::ToServer, 777),
            &|| proxy.reset(),
            &|| proxy.close(),
            &|| drop(scene.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
            &|| {
                proxy.swallow(Direction::ToClient, true);
                proxy.wait_until(|proxy| proxy.swallowed(Direction::ToClient) > 0);
                proxy.heal();
            },
            &|| {
                scene.server.kill();
                scene.server.restart();
            },
        ];
        for _ in 0..3 {
            for fault in faults {
                // In between all is well for a moment.
                let confirmed = count(is_confirmed);
                crate::common::wait_until(LIMIT, || count(is_confirmed) > confirmed + 3);
                fault();
            }
        }
        ended.store(true, Ordering::SeqCst);
    });

    assert!(count(|told| *told == Told::Unknown) > 0, "no fault hit a message on its way");
    let entries = entries(&scene);
    for told in told {
        let told = told.into_inner().unwrap();
        for (text, told) in &told {
            let found = entries.get(text).map(Vec::as_slice).unwrap_or_default();
            let right = match told {
                Told::Confirmed(id) => found == [*id],
                Told::Unknown => found.len() <= 1,
                Told::NotSent => found.is_empty(),
            };
            assert!(right, "{text} was told {told:?} and is in the stream as {found:?}");
        }
        let there: Vec<EntryId> = told.iter().filter_map(|(text, _)| entries.get(text)).flatten().copied().collect();
        assert!(there.is_sorted(), "a caller's messages keep their order");
    }
}

/// The ids under which each text is in the stream.
fn entries(scene: &Scene) -> BTreeMap<String, Vec<EntryId>> {
    let mut entries: BTreeMap<String, Vec<EntryId>> = BTreeMap::new();
    for entry in scene.server.command(&["XRANGE", &scene.stream_id, "-", "+"]).array() {
        let [id, fields] = entry.array() else { panic!("{entry:?}") };
        entries.entry(fields.array()[1].text()).or_default().push(id.text().parse().unwrap());
    }
    entries
}

#[test]
fn a_refused_message_is_its_own_callers_error() {
    let peer = Peer::tcp(Behaviour::custom(|conversation| {
        conversation.handshake()?;
        for number in 1.. {
            let request = conversation.request()?;
            match request.last().map(Vec::as_slice) {
                Some(b"bad") => conversation.send(b"-ERR refused\r\n")?,
                _ => conversation.send(format!("$3\r\n{:01}-1\r\n", number % 10).as_bytes())?,
            }
        }
        Ok(())
    }));
    let stream = connect(quick(peer.port()));
    let publisher = stream.publisher(step_redis::StreamOutput::new("orders"));
    let start = Barrier::new(CALLERS);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (publisher, start): (&Publisher, _) = (&publisher, &start);
            scope.spawn(move || {
                start.wait();
                for number in 0..200 {
                    let bad = (caller + number) % 5 == 0;
                    let result = publisher.publish(if bad { "bad" } else { "good" });
                    match result {
                        Ok(_) => assert!(!bad),
                        Err(error) => assert!(bad && error.code() == Some("ERR"), "{error:?}"),
                    }
                }
            });
        }
    });
    // The pool's connection and the publisher's: a refusal breaks nothing.
    assert_eq!(peer.connections(), 2);
}

/// The texts that a peer received, without their padding.
type Received = Arc<Mutex<Vec<String>>>;

/// Peers that take every request and answer none.
fn hanging_peers() -> [(Peer, PoolParams, Received); 2] {
    let hang = |received: &Received| {
        let received = Arc::clone(received);
        Behaviour::custom(move |talk| {
            talk.handshake()?;
            loop {
                let request = talk.request()?;
                received.lock().unwrap().push(text_of(request.last().unwrap()));
            }
        })
    };
    let (on_tcp, on_unix) = (Arc::default(), Arc::default());
    let (tcp, unix) = (Peer::tcp(hang(&on_tcp)), Peer::unix(hang(&on_unix)));
    [(tcp, on_tcp), (unix, on_unix)].map(|(peer, received)| {
        let params = PoolParams::from_url(&peer.url()).unwrap();
        (peer, params, received)
    })
}

/// A message of a mebibyte that begins with a text.
fn padded(text: &str) -> Vec<u8> {
    let mut payload = vec![b'.'; 1024 * 1024];
    payload[..text.len()].copy_from_slice(text.as_bytes());
    payload
}

fn text_of(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == b'.').unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

#[test]
fn many_callers_with_long_messages_wait_no_longer_than_one_alone() {
    const MANY: usize = 64;
    let limit = Duration::from_millis(500);
    for (_peer, params, received) in hanging_peers() {
        let stream = connect(params.socket_timeout(limit).socket_connect_timeout(limit));
        let publisher = &stream.publisher(step_redis::StreamOutput::new("orders"));
        let start = &Barrier::new(MANY);
        let told: Vec<(String, Told, Duration)> = thread::scope(|scope| {
            let callers: Vec<_> = (0..MANY)
                .map(|caller| {
                    scope.spawn(move || {
                        let message = padded(&format!("{caller}"));
                        start.wait();
                        // Half of them come one by one, while others wait.
                        thread::sleep(limit * (caller / (MANY / 2) * caller) as u32 / MANY as u32);
                        let started = Instant::now();
                        let error = publisher.publish(&message).unwrap_err();
                        let took = started.elapsed();
                        assert!(error.is_timeout() && error.is_retryable(), "{error:?}");
                        (format!("{caller}"), Told::by(&error), took)
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let slowest = told.iter().map(|(.., took)| *took).max().unwrap();
        assert!(slowest < 2 * limit + crate::support::SLACK, "{slowest:?}");
        let received = received.lock().unwrap();
        for (text, told, _) in &told {
            let times = received.iter().filter(|received| *received == text).count();
            assert!(
                times <= 1 && (*told == Told::Unknown || times == 0),
                "{text} was told {told:?}, received {times} times"
            );
        }
        let unknown = told.iter().filter(|(_, told, _)| *told == Told::Unknown).count();
        assert!((1..MANY / 2).contains(&unknown), "of {unknown} messages the outcome is unknown");
    }
}

#[test]
fn callers_who_wait_when_nothing_answers_are_served_again_once_it_does() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let limit = Duration::from_millis(500);
    let stream = connect(quick(proxy.port()).socket_timeout(limit).socket_connect_timeout(limit));
    let publisher = stream.publisher(scene.output.clone());
    publisher.publish("connected").unwrap();
    proxy.swallow(Direction::Both, true);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let publisher = &publisher;
            scope.spawn(move || {
                let started = Instant::now();
                publisher.publish(format!("{caller}")).unwrap_err();
                assert!(started.elapsed() < limit * 2 + crate::support::SLACK, "{:?}", started.elapsed());
            });
        }
    });
    proxy.heal();
    publisher.publish("healed").unwrap();
    assert_eq!(scene.content().len(), 2);
}

#[test]
fn a_caller_whose_message_is_under_way_waits_for_its_own_deadline_too() {
    // The first request hangs; its caller reads for `socket_timeout`. The second caller joins nothing: its message is sent when
    // the first gives up, over another connection, and confirmed then.
    let limit = Duration::from_millis(400);
    let (seen, first) = crossbeam_channel::bounded(1);
    let peer = Peer::tcp_each(move |connection| {
        let seen = seen.clone();
        // The pool's is the first.
        Behaviour::custom(move |talk| {
            talk.handshake()?;
            loop {
                talk.request()?;
                if connection > 1 {
                    talk.send(b"$3\r\n1-1\r\n")?;
                } else {
                    let _ = seen.try_send(());
                }
            }
        })
    });
    let stream = connect(quick(peer.port()).socket_timeout(limit).socket_connect_timeout(LIMIT));
    let publisher = stream.publisher(step_redis::StreamOutput::new("orders"));
    thread::scope(|scope| {
        let hangs = scope.spawn(|| publisher.publish("hangs").unwrap_err());
        first.recv_timeout(LIMIT).unwrap();
        let (started, told) = (Instant::now(), publisher.publish("goes on"));
        assert_eq!(told.unwrap(), EntryId::new(1, 1));
        assert!(started.elapsed() < limit + crate::support::SLACK, "{:?}", started.elapsed());
        assert!(hangs.join().unwrap().is_outcome_unknown());
    });
}

#[test]
fn a_logger_that_publishes_through_the_same_publisher_waits_for_nobody() {
    // This user may not refresh the expiry, so each turn ends with a warning.
    let scene = Scene::on(Server::builder().user("service", "on >secret ~* &* +@all -eval -pexpire"));
    let stream = connect(patient(scene.params()).username("service").password("secret"));
    for (number, part) in ["connected to", "was not refreshed"].into_iter().enumerate() {
        for on_another_thread in [false, true] {
            let publisher = stream.publisher(scene.output.clone().ttl(Duration::from_secs(60)));
            let (told, outcome) = crossbeam_channel::bounded(2);
            let name = format!("{number} {on_another_thread}");
            let texts = [format!("outer {name}"), format!("inner {name}")];
            let [outer, inner] = texts.clone();
            thread::spawn(move || {
                let (again, tell) = (publisher.clone(), told.clone());
                let log = move || tell.send(again.publish(&inner)).unwrap();
                let_logger_do_once_at(part, move || {
                    if on_another_thread {
                        // A logger that waits for the thread that writes.
                        thread::spawn(log).join().unwrap();
                    } else {
                        log();
                    }
                });
                told.send(publisher.publish(&outer)).unwrap();
            });
            for _ in 0..2 {
                outcome.recv_timeout(LIMIT).expect("the logger waits for itself").unwrap();
            }
            let content = scene.content();
            assert!(texts.iter().all(|text| content.get(text) == Some(&1)), "{content:?}");
        }
    }
}

#[test]
fn a_user_who_may_run_no_scripts_publishes_batches_with_an_expiry() {
    let scene = Scene::on(Server::builder().user("service", "on >secret ~* &* +@all -eval"));
    let stream = connect(scene.params().username("service").password("secret"));
    let output = scene.output.clone().ttl(Duration::from_secs(60));
    let ids = stream.publish_batch(&output, (0..1000).map(|number| format!("message-{number}"))).unwrap();
    assert_eq!(ids.len(), 1000);
    assert!(ids.is_sorted());
    assert_eq!(scene.content().len(), 1000);
    assert!(scene.server.command(&["PTTL", &scene.stream_id]).int() > 0);
}

#[test]
fn a_logger_that_panics_after_the_replies_leaves_no_caller_without_its_own() {
    // This user may not refresh the expiry, so each turn ends with a warning.
    let scene = Scene::on(Server::builder().user("service", "on >secret ~* &* +@all -eval -pexpire"));
    let stream = connect(patient(scene.params()).username("service").password("secret"));
    let publisher = stream.publisher(scene.output.clone().ttl(Duration::from_secs(60)));
    let outcomes = publish_with_a_logger_that_panics_at("was not refreshed", &publisher);
    publisher.publish("after").unwrap();

    let entries = scene.server.command(&["XRANGE", &scene.stream_id, "-", "+"]);
    let ids: BTreeMap<String, String> =
        entries.array().iter().map(|entry| (entry.array()[1].array()[1].text(), entry.array()[0].text())).collect();
    assert_eq!((entries.array().len(), ids.len()), (outcomes.len() + 1, outcomes.len() + 1), "each of them once");
    for (message, outcome) in outcomes {
        if let Some(told) = outcome {
            assert_eq!(told.unwrap().to_string(), ids[&message]);
        }
    }
}

#[test]
fn a_logger_that_panics_at_something_amid_the_replies_costs_no_other_caller_its_own() {
    let received: Arc<Mutex<Vec<String>>> = Arc::default();
    let peer = Peer::tcp(Behaviour::custom({
        let received = Arc::clone(&received);
        move |conversation| {
            conversation.handshake()?;
            loop {
                let request = conversation.request()?;
                let mut received = received.lock().unwrap();
                received.push(String::from_utf8_lossy(request.last().unwrap()).into_owned());
                let number = received.len();
                drop(received);
                if number.is_multiple_of(3) {
                    conversation.send(b">2\r\n$10\r\ninvalidate\r\n*0\r\n")?;
                }
                let id = format!("1-{number}");
                conversation.send(format!("${}\r\n{id}\r\n", id.len()).as_bytes())?;
            }
        }
    }));
    remember_logs();
    let publisher = connect(patient(quick(peer.port()))).publisher(step_redis::StreamOutput::new("orders"));
    let outcomes = publish_with_a_logger_that_panics_at("a push message", &publisher);
    // What is left on the connection would be taken for the reply to this one.
    let after = publisher.publish("after").unwrap();

    let mut received = received.lock().unwrap().clone();
    assert_eq!(received[after.sequence as usize - 1], "after");
    let told = outcomes.into_iter().filter_map(|(message, outcome)| Some((message, outcome?)));
    for (message, id) in told {
        // The logger was called after the turn.
        assert_eq!(received[id.unwrap().sequence as usize - 1], message);
    }
    let all = received.len();
    received.sort();
    received.dedup();
    assert_eq!(received.len(), all, "nothing is sent twice");
}

/// Nothing is to time out, however busy the machine is.
fn patient(params: PoolParams) -> PoolParams {
    params.socket_timeout(LIMIT).socket_connect_timeout(LIMIT)
}

/// What many callers are told while turns panic in the thread of one of them. `None`: it was this caller who panicked.
fn publish_with_a_logger_that_panics_at(
    text: &'static str,
    publisher: &Publisher,
) -> Vec<(String, Option<Result<EntryId>>)> {
    const MESSAGES: usize = 20;
    let (told, outcomes) = crossbeam_channel::unbounded();
    let start = Arc::new(Barrier::new(CALLERS));
    for caller in 0..CALLERS {
        let (publisher, told, start) = (publisher.clone(), told.clone(), Arc::clone(&start));
        thread::spawn(move || {
            let_logger_panic_at(text);
            start.wait();
            for number in 0..MESSAGES {
                let message = format!("{caller}-{number}");
                let outcome = catch_unwind(AssertUnwindSafe(|| publisher.publish(&*message)));
                told.send((message, outcome.ok())).unwrap();
            }
        });
    }
    let outcomes: Vec<_> = (0..CALLERS * MESSAGES)
        .map(|_| outcomes.recv_timeout(LIMIT).expect("a caller waits for somebody who is gone"))
        .collect();
    let panics = outcomes.iter().filter(|(_, outcome)| outcome.is_none()).count();
    assert!(panics > 0 && panics < outcomes.len(), "{panics} of {} calls panicked", outcomes.len());
    outcomes
}
