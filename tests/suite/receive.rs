//! Receiving: what arrives, in which order, for whom, how long a read waits, and what happens to the stream meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use step_redis::{Error, StartId, StreamInput};

use crate::context::{Context, GROUP, STREAM, median_of_three};

core_suite! {
    a_blocked_receive_gets_what_is_published_meanwhile,
    a_batch_takes_what_is_there_up_to_its_limit,
    a_receive_without_an_entry_ends_with_its_wait,
}

both_protocols! {
    the_longest_durations_overflow_nothing,
    each_entry_goes_to_one_consumer_of_a_group_and_to_every_group,
    a_group_starts_where_it_was_told_to,
    creating_a_group_again_changes_nothing,
    without_a_wait_a_receive_returns_at_once,
    a_wait_longer_than_the_socket_timeout_is_no_timeout,
    a_stream_does_not_expire_while_a_reader_waits_longer_than_its_ttl,
    a_stream_without_readers_expires,
    a_stream_deleted_under_a_waiting_reader_is_told_at_once,
    a_missing_group_is_told_and_can_be_created,
    a_generated_consumer_name_stays_the_same,
    what_cannot_be_read_is_refused_before_anything_is_sent,
}

fn a_blocked_receive_gets_what_is_published_meanwhile(context: Context) {
    let input = context.input().wait_timeout(Duration::from_secs(20));
    thread::scope(|scope| {
        let reader = scope.spawn(|| context.stream.receive(&input).unwrap().unwrap());
        context.wait_until_blocked(1);
        let published = Instant::now();
        let id = context.stream.publish(&context.output(), "one coffee").unwrap();
        let delivery = reader.join().unwrap();
        assert!(published.elapsed() < Duration::from_secs(5), "{:?}", published.elapsed());
        assert_eq!((delivery.id(), delivery.text().unwrap()), (id, "one coffee"));
        delivery.ack().unwrap();
    });
}

fn a_batch_takes_what_is_there_up_to_its_limit(context: Context) {
    let input = context.input();
    let ids = context.stream.publish_batch(&context.output(), ["a", "b", "c", "d", "e"]).unwrap();
    let first = context.stream.receive_batch(&input, 3).unwrap();
    assert_eq!(first.iter().map(|delivery| delivery.id()).collect::<Vec<_>>(), ids[..3]);
    let second = context.stream.receive_batch(&input, 3).unwrap();
    assert_eq!(second.iter().map(|delivery| delivery.text().unwrap()).collect::<Vec<_>>(), ["d", "e"]);
    assert_eq!(context.pending().len(), 5);
}

fn a_receive_without_an_entry_ends_with_its_wait(context: Context) {
    let wait = Duration::from_millis(300);
    let input = context.input().wait_timeout(wait);
    let (median, results) = median_of_three(|| context.stream.receive(&input).unwrap().is_none());
    assert_eq!(results, [true; 3]);
    // The server looks at its clock ten times a second.
    assert!((wait..wait * 2).contains(&median), "{median:?}");
}

fn each_entry_goes_to_one_consumer_of_a_group_and_to_every_group(context: Context) {
    let (one, two) = (context.input(), context.input().consumer("two"));
    let audit = StreamInput::new(STREAM, "audit").consumer("one");
    context.stream.create_input_stream(&audit).unwrap();
    context.stream.publish_batch(&context.output(), ["a", "b"]).unwrap();

    let first = context.stream.receive(&one).unwrap().unwrap();
    let second = context.stream.receive(&two).unwrap().unwrap();
    assert_eq!((first.text().unwrap(), second.text().unwrap()), ("a", "b"));
    assert!(context.stream.receive(&one.wait_timeout(Duration::ZERO)).unwrap().is_none());
    assert_eq!(context.stream.receive_batch(&audit, 10).unwrap().len(), 2);
}

fn a_group_starts_where_it_was_told_to(context: Context) {
    let ids = context.stream.publish_batch(&context.output(), ["a", "b", "c"]).unwrap();
    let read = |group: &str, start: Option<StartId>| {
        let input = StreamInput::new(STREAM, group).wait_timeout(Duration::ZERO);
        let input = start.into_iter().fold(input, StreamInput::start);
        assert!(context.stream.create_input_stream(&input).unwrap());
        let deliveries = context.stream.receive_batch(&input, 10).unwrap();
        deliveries.iter().map(|delivery| delivery.text().unwrap()).collect::<String>()
    };
    assert_eq!(read("default", None), "abc");
    assert_eq!(read("beginning", Some(StartId::Beginning)), "abc");
    assert_eq!(read("after", Some(StartId::After(ids[0]))), "bc");
    assert_eq!(read("new", Some(StartId::New)), "");
    context.stream.publish(&context.output(), "d").unwrap();
    let input = StreamInput::new(STREAM, "new");
    assert_eq!(context.stream.receive(&input).unwrap().unwrap().text().unwrap(), "d");
}

fn creating_a_group_again_changes_nothing(context: Context) {
    let input = StreamInput::new(STREAM, GROUP).wait_timeout(Duration::ZERO).ttl(Duration::from_secs(60));
    assert!(context.stream.create_input_stream(&input).unwrap());
    assert!((1..=60_000).contains(&context.time_to_live(STREAM)));
    context.stream.publish(&context.output(), "a").unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert!(!context.stream.create_input_stream(&input.clone().start(StartId::Beginning)).unwrap());
    assert!(context.stream.receive(&input).unwrap().is_none());
    delivery.ack().unwrap();
}

fn without_a_wait_a_receive_returns_at_once(context: Context) {
    let input = context.input().wait_timeout(Duration::ZERO);
    context.command(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    let receive = || context.stream.receive(&input).unwrap().is_none();
    assert!(receive());
    let (median, results) = median_of_three(receive);
    assert_eq!(results, [true; 3]);
    assert!(median < Duration::from_millis(50), "{median:?}");
    // Not even a short block: the command was sent without one.
    let log = context.command(&["SLOWLOG", "GET", "20"]);
    let commands: Vec<Vec<String>> =
        log.array().iter().map(|entry| entry.array()[3].array().iter().map(|word| word.text()).collect()).collect();
    let reads: Vec<_> = commands.iter().filter(|command| command[0] == "XREADGROUP").collect();
    assert_eq!(reads.len(), 4, "{commands:?}");
    assert!(reads.iter().all(|read| !read.contains(&"BLOCK".to_owned())), "{reads:?}");
}

fn a_wait_longer_than_the_socket_timeout_is_no_timeout(context: Context) {
    let stream = context.stream_with(|params| params.socket_timeout(Duration::from_millis(200)));
    let input = context.input().wait_timeout(Duration::from_millis(800));
    let (median, results) = median_of_three(|| stream.receive(&input).unwrap().is_none());
    assert_eq!(results, [true; 3]);
    assert!(median >= Duration::from_millis(800), "{median:?}");
}

fn a_stream_does_not_expire_while_a_reader_waits_longer_than_its_ttl(context: Context) {
    let input = context.input().ttl(Duration::from_secs(1)).wait_timeout(Duration::from_millis(2500));
    assert!(context.stream.receive(&input).unwrap().is_none());
    let left = context.time_to_live(STREAM);
    assert!((1..=1000).contains(&left), "{left} ms");
    assert_eq!(context.server.info("stats")["expired_keys"], "0");
}

fn a_stream_without_readers_expires(context: Context) {
    let input = context.input().ttl(Duration::from_millis(50)).wait_timeout(Duration::ZERO);
    assert!(context.stream.receive(&input).unwrap().is_none());
    context.server.wait_until(|server| server.command(&["EXISTS", STREAM]).int() == 0);
    assert!(context.stream.receive(&input).unwrap_err().is_group_missing());
}

fn a_stream_deleted_under_a_waiting_reader_is_told_at_once(context: Context) {
    let input = context.input().wait_timeout(Duration::from_secs(20));
    let (error, waited) = thread::scope(|scope| {
        let reader = scope.spawn(|| context.stream.receive(&input).unwrap_err());
        context.wait_until_blocked(1);
        let deleted = Instant::now();
        context.command(&["DEL", STREAM]);
        (reader.join().unwrap(), deleted.elapsed())
    });
    assert!(matches!(error, Error::Server { .. }), "{error:?}");
    assert!(matches!(error.code(), Some("UNBLOCKED" | "NOGROUP")), "{error:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    // The connection is as good as before, and the group can be made again.
    assert!(context.stream.receive(&input).unwrap_err().is_group_missing());
    assert_eq!(context.server.connected_clients(), 1);
    assert!(context.stream.create_input_stream(&input).unwrap());
    context.one_delivered(&input).ack().unwrap();
}

fn a_missing_group_is_told_and_can_be_created(context: Context) {
    let input = StreamInput::new(STREAM, GROUP);
    for _ in 0..2 {
        let error = context.stream.receive(&input).unwrap_err();
        assert!(error.is_group_missing() && !error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
        // The stream without the group is the same.
        context.stream.publish(&context.output(), "early").unwrap();
    }
    assert!(context.stream.create_input_stream(&input).unwrap());
    assert_eq!(context.stream.receive(&input).unwrap().unwrap().text().unwrap(), "early");
}

fn a_generated_consumer_name_stays_the_same(context: Context) {
    context.input();
    for _ in 0..3 {
        // A new value each time, as a program may make it.
        let _pending = context.one_delivered(&StreamInput::new(STREAM, GROUP));
    }
    let pending = context.pending();
    assert!(!pending[0].1.is_empty());
    assert!(pending.iter().all(|(_, owner)| *owner == pending[0].1), "{pending:?}");
}

fn what_cannot_be_read_is_refused_before_anything_is_sent(context: Context) {
    let good = context.input();
    let refused = [
        (StreamInput::new("", GROUP), 1, "stream_id"),
        (StreamInput::new(STREAM, ""), 1, "group"),
        (good.clone().consumer(""), 1, "consumer"),
        (good.clone().ttl(Duration::ZERO), 1, "ttl"),
        (good.clone().claim_idle(Duration::ZERO), 1, "claim_idle"),
        (good.clone(), 0, "max"),
        (good.clone(), (1 << 20) + 1, "max"),
        (good.clone(), usize::MAX, "max"),
    ];
    for (input, max, expected) in refused {
        let errors = [
            context.stream.receive_batch(&input, max).unwrap_err(),
            context.stream.claim(&input, Duration::ZERO, max).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(&error, Error::Params { field, .. } if field == expected), "{expected}: {error:?}");
            assert!(!error.is_retryable());
        }
    }
    context.one_delivered(&good).ack().unwrap();
}

fn the_longest_durations_overflow_nothing(context: Context) {
    let (longest, output) = (Duration::MAX, context.output().ttl(Duration::MAX));
    let input = context.input().wait_timeout(longest).ttl(longest).claim_idle(longest);
    assert!(!context.stream.create_input_stream(&input).unwrap());
    let id = context.stream.publish(&output, "text").unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!(delivery.id(), id);
    assert_eq!(context.stream.claim(&input, longest, 1).unwrap().len(), 0);
    assert!(context.stream.update_stream_ttl(STREAM, longest).unwrap());
    assert!(context.time_to_live(STREAM) > 0);
    delivery.ack().unwrap();
}
