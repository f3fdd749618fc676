//! Publishing: single messages and batches, what the stream keeps, how long it lives, and that a lifetime is never put on
//! anything but a stream.

use std::cell::Cell;
use std::time::Duration;

use step_redis::{EntryId, Error, Message, PoolParams, Protocol, Retention, StepPool, StepStream, StreamOutput};

use crate::common::{Behaviour, Peer};
use crate::context::{Context, STREAM};

core_suite! {
    a_message_is_published_received_and_acknowledged,
    a_batch_arrives_whole_and_in_order,
    a_stream_lives_for_its_ttl_after_the_last_message,
}

both_protocols! {
    an_approximate_length_keeps_at_least_so_many_entries,
    an_exact_length_keeps_exactly_so_many_entries,
    a_minimal_id_drops_what_is_older,
    a_retention_that_keeps_nothing_is_refused_before_anything_is_sent,
    a_key_of_another_type_is_refused_and_gets_no_lifetime,
    without_the_right_to_run_scripts_the_lifetime_is_set_all_the_same,
    a_batch_tells_the_position_of_the_refused_message,
    a_batch_into_a_full_server_publishes_nothing_and_may_be_tried_again,
    a_message_without_a_field_stops_a_batch_behind_those_before_it,
    a_message_without_a_field_is_refused_before_anything_is_sent,
    an_empty_batch_asks_for_no_connection,
    a_batch_takes_messages_only_as_fast_as_the_server_confirms_them,
    a_batch_may_wait_for_its_messages_longer_than_for_the_server,
}

const TTL: Duration = Duration::from_secs(60);

#[track_caller]
fn assert_lifetime(context: &Context) {
    let left = context.time_to_live(STREAM);
    assert!((30_000..=60_000).contains(&left), "{left} ms");
}

fn a_message_is_published_received_and_acknowledged(context: Context) {
    let input = context.input();
    let id = context.stream.publish(&context.output(), "one coffee").unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!((delivery.id(), delivery.stream_id(), delivery.delivery_count()), (id, STREAM, 1));
    assert_eq!((delivery.text().unwrap(), delivery.payload()), ("one coffee", &b"one coffee"[..]));
    assert_eq!(delivery.fields().collect::<Vec<_>>(), [(&b"message"[..], &b"one coffee"[..])]);
    assert_eq!(context.pending(), [(id.to_string(), "one".to_owned())]);
    delivery.ack().unwrap();
    assert_eq!(context.pending(), []);
}

fn a_batch_arrives_whole_and_in_order(context: Context) {
    let input = context.input();
    let messages: Vec<String> = (0..1000).map(|number| format!("message {number}")).collect();
    let ids = context.stream.publish_batch(&context.output(), &messages).unwrap();
    assert!(ids.is_sorted() && ids.len() == messages.len());

    let deliveries = context.stream.receive_batch(&input, 2000).unwrap();
    let received: Vec<_> = deliveries.iter().map(|delivery| (delivery.id(), delivery.text().unwrap())).collect();
    let published: Vec<_> = ids.into_iter().zip(messages.iter().map(String::as_str)).collect();
    assert_eq!(received, published);
    for delivery in deliveries {
        delivery.ack().unwrap();
    }
    assert_eq!(context.pending(), []);
}

fn a_stream_lives_for_its_ttl_after_the_last_message(context: Context) {
    context.stream.publish(&context.output(), "stays").unwrap();
    assert_eq!(context.time_to_live(STREAM), -1);

    let output = context.output().ttl(TTL);
    context.stream.publish(&output, "one").unwrap();
    assert_lifetime(&context);
    context.command(&["PEXPIRE", STREAM, "1000"]);
    context.stream.publish_batch(&output, ["two", "three"]).unwrap();
    assert_lifetime(&context);

    assert!(context.stream.update_stream_ttl(STREAM, Duration::from_secs(5)).unwrap());
    assert!((1..=5000).contains(&context.time_to_live(STREAM)));
    assert!(!context.stream.update_stream_ttl("no such stream", TTL).unwrap());
}

fn an_approximate_length_keeps_at_least_so_many_entries(context: Context) {
    context.command(&["CONFIG", "SET", "stream-node-max-entries", "10"]);
    let output = context.output().max_length(50);
    context.stream.publish_batch(&output, (0..200).map(|number| number.to_string())).unwrap();
    context.stream.publish(&output, "last").unwrap();
    // The server drops whole nodes.
    assert!((50..=60).contains(&context.length()), "{}", context.length());
}

fn an_exact_length_keeps_exactly_so_many_entries(context: Context) {
    let output = context.output().exact_length(7);
    context.stream.publish_batch(&output, (0..20).map(|number| number.to_string())).unwrap();
    assert_eq!(context.length(), 7);
    context.stream.publish(&context.output().exact_length(3), "last").unwrap();
    assert_eq!(context.length(), 3);
}

fn a_minimal_id_drops_what_is_older(context: Context) {
    let ids = context.stream.publish_batch(&context.output(), ["old", "older", "kept"]).unwrap();
    context.stream.publish(&context.output().min_id(ids[2]), "last").unwrap();
    assert_eq!(context.stream.info(STREAM).unwrap().first_id, Some(ids[2]));
    assert_eq!(context.length(), 2);
}

fn a_retention_that_keeps_nothing_is_refused_before_anything_is_sent(context: Context) {
    context.stream.publish(&context.output(), "kept").unwrap();
    let microseconds = EntryId::new(1_700_000_000_000_000, 0);
    let retentions = [
        Retention::ExactLength(0),
        Retention::ApproximateLength(0),
        Retention::MinId(EntryId::MAX),
        Retention::MinId(microseconds),
    ];
    for retention in retentions {
        let input = context.input().dead_letter(StreamOutput::new("dead").retention(retention));
        let output = context.output().retention(retention);
        let errors = [
            context.stream.publish(&output, "text").unwrap_err(),
            context.stream.publish_batch(&output, ["text"]).unwrap_err(),
            context.stream.publisher(output.clone()).publish("text").unwrap_err(),
            context.stream.receive(&input).unwrap_err(),
            context.stream.consumer(input).spawn().unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(&error, Error::Params { field, .. } if field == "retention"), "{output:?}: {error:?}");
        }
    }
    assert_eq!(context.length(), 1);
    let year_9999 = EntryId::new(253_402_300_799_999, 0);
    context.stream.publish(&context.output().min_id(year_9999), "text").unwrap();
    context.stream.publish(&context.output().exact_length(1), "text").unwrap();
    assert_eq!(context.length(), 1);
}

fn a_key_of_another_type_is_refused_and_gets_no_lifetime(context: Context) {
    context.command(&["SET", STREAM, "somebody's data"]);
    let output = context.output().ttl(TTL);
    let input = step_redis::StreamInput::new(STREAM, "group").ttl(TTL).wait_timeout(Duration::ZERO);

    let errors = [
        context.stream.publish(&output, "text").unwrap_err(),
        context.stream.publish_batch(&output, ["one", "two"]).unwrap_err(),
        context.stream.create_input_stream(&input).unwrap_err(),
        context.stream.receive(&input).unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_wrong_type() && !error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
    }
    assert!(!context.stream.update_stream_ttl(STREAM, TTL).unwrap());
    assert_eq!(context.time_to_live(STREAM), -1);
    assert_eq!(context.command(&["GET", STREAM]).text(), "somebody's data");
}

fn without_the_right_to_run_scripts_the_lifetime_is_set_all_the_same(context: Context) {
    context.command(&["ACL", "SETUSER", "limited", "on", ">password", "~*", "+@all", "-@scripting"]);
    let stream = context.stream_with(|params| params.username("limited").password("password"));
    let (input, output) = (context.input().ttl(TTL).wait_timeout(Duration::ZERO), context.output().ttl(TTL));

    let shorten = || context.command(&["PEXPIRE", STREAM, "1000"]);
    stream.publish(&output, "one").unwrap();
    assert_lifetime(&context);
    shorten();
    stream.publish_batch(&output, ["two", "three"]).unwrap();
    assert_lifetime(&context);
    shorten();
    assert_eq!(stream.receive(&input).unwrap().unwrap().text().unwrap(), "one");
    assert_lifetime(&context);
    shorten();
    assert!(!stream.create_input_stream(&input).unwrap());
    assert_lifetime(&context);
    shorten();
    assert!(stream.update_stream_ttl(STREAM, TTL).unwrap());
    assert_lifetime(&context);

    // Nothing but a stream, here neither.
    context.command(&["SET", "text", "somebody's data"]);
    assert!(!stream.update_stream_ttl("text", TTL).unwrap());
    assert!(stream.publish(&StreamOutput::new("text").ttl(TTL), "text").unwrap_err().is_wrong_type());
    assert_eq!(context.time_to_live("text"), -1);
}

fn a_batch_tells_the_position_of_the_refused_message(protocol: Protocol) {
    let peer = Peer::tcp(Behaviour::custom(|talk| {
        talk.handshake()?;
        for reply in ["$3\r\n1-1\r\n", "-OOM command not allowed\r\n", "$3\r\n1-2\r\n", "$3\r\n1-3\r\n"] {
            talk.request()?;
            talk.send(reply.as_bytes())?;
        }
        talk.answer_each(b"+PONG\r\n")
    }));
    let stream =
        StepStream::new(StepPool::connect(PoolParams::new("127.0.0.1", peer.port()).protocol(protocol)).unwrap());
    let error = stream.publish_batch(&StreamOutput::new(STREAM), ["a", "b", "c", "d"]).unwrap_err();
    assert_eq!((error.code(), error.is_retryable(), error.is_outcome_unknown()), (Some("OOM"), true, false));
    assert_eq!(error.to_string(), "the batch was published in part: 3 of 4 messages confirmed");
    let Error::Batch { published, .. } = error else { panic!("{error:?}") };
    let id = |sequence| Some(EntryId::new(1, sequence));
    assert_eq!(*published, [id(1), None, id(2), id(3)]);
    // A refusal is an answer: the connection serves on.
    stream.ping().unwrap();
    assert_eq!(peer.connections(), 1);
}

fn a_batch_into_a_full_server_publishes_nothing_and_may_be_tried_again(context: Context) {
    context.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    context.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let output = context.output().ttl(TTL);
    let error = context.stream.publish(&output, "text").unwrap_err();
    assert!(matches!(error, Error::Server { command: "XADD", .. }), "{error:?}");
    assert_eq!((error.code(), error.is_retryable(), error.is_outcome_unknown()), (Some("OOM"), true, false));
    let error = context.stream.publish_batch(&output, vec!["text"; 300]).unwrap_err();
    assert_eq!((error.code(), error.is_retryable(), error.is_outcome_unknown()), (Some("OOM"), true, false));
    let Error::Batch { published, .. } = error else { panic!("{error:?}") };
    assert!(published.iter().all(Option::is_none));

    context.command(&["CONFIG", "SET", "maxmemory", "0"]);
    context.stream.publish_batch(&output, vec!["text"; 300]).unwrap();
    assert_eq!(context.length(), 300);
}

fn a_message_without_a_field_stops_a_batch_behind_those_before_it(context: Context) {
    let good = || Message::from("good");
    for before in [1, 127, 128, 129, 300] {
        context.command(&["DEL", STREAM]);
        let messages = (0..before).map(|_| good()).chain([Message::new(), good()]);
        let error = context.stream.publish_batch(&context.output(), messages).unwrap_err();
        assert!(!error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
        let Error::Batch { published, source } = error else { panic!("{error:?}") };
        assert!(matches!(&*source, Error::Params { field, .. } if field == "message"), "{source:?}");
        // The last one was not taken from the iterator.
        assert_eq!(published.len(), before + 1);
        assert!(published[..before].iter().all(Option::is_some) && published[before].is_none());
        assert_eq!(context.length(), before as i64);
    }
}

fn a_message_without_a_field_is_refused_before_anything_is_sent(context: Context) {
    let errors = [
        context.stream.publish(&context.output(), Message::new()).unwrap_err(),
        context.stream.publish_batch(&context.output(), [Message::new(), "good".into()]).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, Error::Params { field, .. } if field == "message"), "{error:?}");
    }
    assert_eq!(context.length(), 0);
}

fn an_empty_batch_asks_for_no_connection(protocol: Protocol) {
    let peer = Peer::tcp(Behaviour::Silent);
    let stream = StepStream::new(StepPool::new(PoolParams::new("127.0.0.1", peer.port()).protocol(protocol)).unwrap());
    assert_eq!(stream.publish_batch(&StreamOutput::new(STREAM), Vec::<String>::new()).unwrap(), []);
    assert_eq!(peer.connections(), 0);
}

fn a_batch_takes_messages_only_as_fast_as_the_server_confirms_them(context: Context) {
    let taken = Cell::new(0);
    let furthest = Cell::new(0);
    let messages = (0..2000).map(|number: i64| {
        taken.set(number + 1);
        // Now and then, as it costs a round trip.
        if number % 100 == 99 {
            furthest.set(furthest.get().max(taken.get() - context.length()));
        }
        number.to_string()
    });
    context.stream.publish_batch(&context.output(), messages).unwrap();
    assert_eq!((taken.get(), context.length()), (2000, 2000));
    assert!(furthest.get() <= 512, "{} messages were under way", furthest.get());
}

fn a_batch_may_wait_for_its_messages_longer_than_for_the_server(context: Context) {
    let limit = Duration::from_millis(300);
    let stream = context.stream_with(|params| params.socket_timeout(limit));
    // 128 of them fill a piece, which is sent: then the iterator waits before it says that this was all, or goes on.
    for count in [128, 129, 256] {
        let mut messages = 0..count;
        let slow = std::iter::from_fn(|| {
            if messages.start > 0 && messages.start % 128 == 0 {
                std::thread::sleep(limit * 2);
            }
            messages.next().map(|number| number.to_string())
        });
        assert_eq!(stream.publish_batch(&context.output(), slow).unwrap().len(), count);
    }
}
