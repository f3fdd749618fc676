//! A network that swallows everything and says nothing: everyone notices within the documented bounds.

use std::time::{Duration, Instant};

use log::Level;
use step_redis::{Error, StepPool};

use crate::common::{Direction, Proxy};
use crate::support::{LIMIT, SLACK, Scene, connect, quick, take};

const SOCKET_TIMEOUT: Duration = Duration::from_millis(400);
const WAIT_TIMEOUT: Duration = Duration::from_millis(300);
/// The server looks at its clock ten times a second.
const TICK: Duration = Duration::from_millis(100);

fn params(port: u16) -> step_redis::PoolParams {
    quick(port)
        .socket_timeout(SOCKET_TIMEOUT)
        .socket_connect_timeout(SOCKET_TIMEOUT)
        .connection_available_timeout(SOCKET_TIMEOUT)
}

#[test]
fn a_reader_notices_within_its_wait_and_the_socket_timeout() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    reader_notices(&scene, &proxy, params(proxy.port()));
}

#[cfg(feature = "tls")]
#[test]
fn a_reader_over_tls_notices_as_soon() {
    use crate::common::{Certificates, Server};
    use step_redis::TlsParams;

    let certificates = Certificates::generate();
    let scene = Scene::on(Server::builder().tls(&certificates));
    let proxy = Proxy::start(scene.server.tls_port());
    let params = params(proxy.port()).socket_connect_timeout(Duration::from_secs(2));
    reader_notices(&scene, &proxy, params.tls(TlsParams::new().ca_certs(certificates.ca())));
}

fn reader_notices(scene: &Scene, proxy: &Proxy, params: step_redis::PoolParams) {
    let stream = connect(params);
    let input = scene.input().wait_timeout(WAIT_TIMEOUT);
    let backoff = step_redis::Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
    let consumer = stream.consumer(input).backoff(backoff).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.wait_until_blocked();

    proxy.swallow(Direction::Both, true);
    let silent = Instant::now();
    crate::common::wait_until(LIMIT, || !scene.logged(Level::Warn).is_empty());
    let (noticed, _) = scene.logged_with_time(Level::Warn)[0];
    assert!(noticed - silent <= WAIT_TIMEOUT + SOCKET_TIMEOUT + TICK + SLACK, "{:?}", noticed - silent);

    // What the server delivers now goes into the void.
    let mut expected = scene.add_many("void", 10);
    crate::common::wait_until(LIMIT, || scene.logged(Level::Debug).iter().any(|line| line.contains("attempt 1")));
    proxy.heal();
    expected.extend(scene.add_many("healed", 10));
    let mut came = take(&consumer, 20);
    came.sort();
    expected.sort();
    assert_eq!(came, expected);
    scene.assert_one_outage();
    consumer.close().unwrap();
    assert_eq!(scene.pending(), 0);
}

#[test]
fn publishers_notice_within_the_socket_timeout_and_say_that_the_outcome_is_unknown() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let stream = connect(params(proxy.port()));
    let publisher = stream.publisher(scene.output.clone());
    stream.publish(&scene.output, "plain").unwrap();
    publisher.publish("shared").unwrap();

    proxy.swallow(Direction::Both, true);
    for shared in [false, true] {
        let started = Instant::now();
        let error = match shared {
            false => stream.publish(&scene.output, "swallowed").unwrap_err(),
            true => publisher.publish("swallowed").unwrap_err(),
        };
        assert!(matches!(error, Error::Timeout { limit: SOCKET_TIMEOUT, .. }), "{error:?}");
        assert!(error.is_outcome_unknown() && error.is_timeout() && error.is_retryable(), "{error:?}");
        assert!(started.elapsed() >= SOCKET_TIMEOUT && started.elapsed() < SOCKET_TIMEOUT + SLACK);

        // The next attempt needs a new connection, which is accepted and never greeted.
        let started = Instant::now();
        let error = match shared {
            false => stream.publish(&scene.output, "never sent").unwrap_err(),
            true => publisher.publish("never sent").unwrap_err(),
        };
        assert!(!error.is_outcome_unknown() && error.is_retryable(), "{error:?}");
        assert!(started.elapsed() < SOCKET_TIMEOUT + SLACK, "{:?}", started.elapsed());
    }
    proxy.heal();
    crate::common::wait_until(LIMIT, || stream.publish(&scene.output, "healed").is_ok());
    publisher.publish("healed, too").unwrap();
    let content = scene.content();
    assert!(!content.contains_key("swallowed") && !content.contains_key("never sent"), "{content:?}");
}

#[test]
fn a_batch_notices_within_the_socket_timeout_and_tells_what_was_confirmed() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let stream = connect(params(proxy.port()));
    let mut swallowed_at = None;
    // The iterator is asked for more while the first window is under way.
    let messages = (0..10_000).map(|number| {
        if number == 5_000 {
            proxy.swallow(Direction::Both, true);
            swallowed_at = Some(Instant::now());
        }
        format!("message-{number}")
    });
    let error = stream.publish_batch(&scene.output, messages).unwrap_err();
    let noticed = swallowed_at.expect("half of the messages were taken").elapsed();
    assert!(noticed < SOCKET_TIMEOUT + SLACK, "{noticed:?}");
    assert!(error.is_outcome_unknown() && error.is_timeout(), "{error:?}");
    let Error::Batch { published, .. } = error else { panic!("{error:?}") };
    let content = scene.content();
    assert!(content.values().all(|count| *count == 1));
    for (number, id) in published.iter().enumerate() {
        assert!(id.is_none() || content.contains_key(&format!("message-{number}")), "{number}");
    }
    assert!(published.iter().flatten().count() > 0, "the first windows were confirmed");
    assert!(content.len() <= published.len());
}

#[test]
fn a_lost_confirmation_leaves_the_message_in_the_stream_once() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let stream = connect(params(proxy.port()));
    let publisher = stream.publisher(scene.output.clone());
    publisher.publish("connected").unwrap();
    proxy.swallow(Direction::ToClient, true);
    assert!(stream.publish(&scene.output, "plain").unwrap_err().is_outcome_unknown());
    assert!(publisher.publish("shared").unwrap_err().is_outcome_unknown());
    proxy.heal();
    assert_eq!(scene.content(), ["connected", "plain", "shared"].map(|text| (text.to_owned(), 1)).into());
}

#[test]
fn connecting_through_a_silent_network_ends_at_its_limit() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    proxy.swallow(Direction::Both, true);
    let started = Instant::now();
    let error = StepPool::connect(params(proxy.port())).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_timeout() && error.is_retryable(), "{error:?}");
    assert!(started.elapsed() < SOCKET_TIMEOUT + SLACK, "{:?}", started.elapsed());
}
