//! What the crate is for works the same under each kind of TLS, with either protocol: publishing, receiving, taking over,
//! giving up, reading back, and the consumer.

use std::time::Duration;

use step_redis::{
    Message, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput, TlsParams, redis::Commands,
};

use crate::common::{Certificates, Server, unique};
use crate::support::{identified, mutual_server, params, server, trusting};

/// Larger than a TLS record and than the buffer of one read.
const LARGE: usize = 300_000;

fn core_suite(params: &PoolParams) {
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let pool = StepPool::connect(params.clone().protocol(protocol)).expect("everything is in order");
        let stream = StepStream::new(pool.clone());
        let name = unique("orders");
        let output = StreamOutput::new(&*name).max_length(100_000).ttl(Duration::from_secs(60));
        let input =
            StreamInput::new(&*name, "kitchen").consumer("cook-1").dead_letter(StreamOutput::new(unique("dead")));
        assert!(stream.create_input_stream(&input).unwrap());
        assert!(!stream.create_input_stream(&input).unwrap());

        publish_and_receive(&stream, &output, &input);
        take_over_and_give_up(&stream, &output, &input);
        consume(&stream, &output, &input);

        assert!(stream.ping().unwrap() < Duration::from_secs(5));
        assert!(stream.update_stream_ttl(&name, Duration::from_secs(30)).unwrap());
        assert_eq!(stream.info(&name).unwrap().groups[0].name, "kitchen");
        let remaining: i64 = pool.get().unwrap().ttl(&name).unwrap();
        assert!((1..=30).contains(&remaining), "{remaining}");
    }
}

fn publish_and_receive(stream: &StepStream, output: &StreamOutput, input: &StreamInput) {
    let id = stream.publish(output, "two coffees").unwrap();
    let large = "x".repeat(LARGE);
    stream.publish(output, Message::new().field("size", "large").field("message", &*large)).unwrap();
    let first = stream.receive(input).unwrap().expect("it was published");
    assert_eq!((first.id(), first.text().unwrap()), (id, "two coffees"));
    first.ack().unwrap();
    let second = stream.receive(input).unwrap().expect("it was published");
    assert_eq!((second.field("size"), second.payload().len()), (Some(b"large".as_slice()), LARGE));
    second.ack().unwrap();

    let ids = stream.publish_batch(output, (0..2_000).map(|number| number.to_string())).unwrap();
    assert_eq!(ids.len(), 2_000);
    let mut received = Vec::new();
    while received.len() < 2_000 {
        for delivery in stream.receive_batch(input, 500).unwrap() {
            received.push(delivery.id());
            delivery.ack().unwrap();
        }
    }
    assert_eq!(received, ids);
    assert!(stream.receive(&input.clone().wait_timeout(Duration::from_millis(100))).unwrap().is_none());
    assert_eq!(stream.pending(input).unwrap().total, 0);
}

fn take_over_and_give_up(stream: &StepStream, output: &StreamOutput, input: &StreamInput) {
    stream.publish(output, "cold soup").unwrap();
    stream.receive(input).unwrap().expect("it was published").leave();
    let other = input.clone().consumer("cook-2");
    let claimed = stream.claim(&other, Duration::ZERO, 10).unwrap().pop().expect("it is pending");
    assert_eq!((claimed.text().unwrap(), claimed.delivery_count()), ("cold soup", 2));
    claimed.dead_letter("nobody wants it").unwrap();
    assert_eq!(stream.pending(input).unwrap().total, 0);
}

fn consume(stream: &StepStream, output: &StreamOutput, input: &StreamInput) {
    let consumer = stream.consumer(input.clone()).spawn().unwrap();
    let ids = stream.publish_batch(output, (0..500).map(|number| number.to_string())).unwrap();
    let stop = consumer.stop_handle();
    let mut received = Vec::new();
    for delivery in &consumer {
        let delivery = delivery.unwrap();
        received.push(delivery.id());
        delivery.ack().unwrap();
        if received.len() == ids.len() {
            stop.stop();
        }
    }
    assert_eq!(received, ids);
    assert_eq!(consumer.close().unwrap().acked, 500);
    assert_eq!(stream.pending(input).unwrap().total, 0);
}

#[test]
fn with_a_server_that_shows_its_certificate() {
    let certificates = Certificates::generate();
    core_suite(&params(&server(&certificates), trusting(&certificates)));
}

#[test]
fn with_certificates_on_both_sides() {
    let certificates = Certificates::generate();
    core_suite(&params(&mutual_server(&certificates), identified(&certificates)));
}

#[cfg(feature = "encrypted-keys")]
#[test]
fn with_an_encrypted_key() {
    let certificates = Certificates::generate();
    let key = certificates.encrypted_client_key("correct horse battery staple");
    let tls = trusting(&certificates).client_cert(certificates.client()).client_key(key);
    core_suite(&params(&mutual_server(&certificates), tls.client_key_password("correct horse battery staple")));
}

#[test]
fn with_a_server_that_speaks_only_one_version() {
    let certificates = Certificates::generate();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::builder().tls(&certificates).require_client_certificate(true);
        core_suite(&params(&server.config("tls-protocols", version).start(), identified(&certificates)));
    }
}

#[test]
fn without_any_verification() {
    let certificates = Certificates::expired();
    core_suite(&params(&server(&certificates), TlsParams::new().danger_accept_invalid_certs(true)));
}
