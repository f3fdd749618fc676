//! What the server knows about a stream, told without loss.

use std::time::Duration;

use step_redis::{EntryId, Error, Pending, StreamInput};

use crate::context::{Context, GROUP, STREAM};

core_suite! {
    the_pending_entries_are_told_for_each_consumer,
    a_stream_and_its_groups_are_described,
}

both_protocols! {
    nothing_pending_has_no_ids,
    an_empty_stream_has_no_first_entry,
    a_deleted_entry_makes_the_lag_unknown,
    what_does_not_exist_is_an_error_of_the_server,
    a_ping_is_answered,
}

fn the_pending_entries_are_told_for_each_consumer(context: Context) {
    let one = context.input();
    let two = one.clone().consumer("two");
    let ids = context.stream.publish_batch(&context.output(), ["a", "b", "c", "d"]).unwrap();
    let _first = context.stream.receive_batch(&one, 3).unwrap();
    let _second = context.stream.receive_batch(&two, 3).unwrap();
    let pending = context.stream.pending(&one).unwrap();
    assert_eq!((pending.total, pending.first_id, pending.last_id), (4, Some(ids[0]), Some(ids[3])));
    let consumers: Vec<_> = pending.consumers.iter().map(|share| (share.name.as_str(), share.count)).collect();
    assert_eq!(consumers, [("one", 3), ("two", 1)]);
}

fn nothing_pending_has_no_ids(context: Context) {
    let input = context.input();
    assert_eq!(context.stream.pending(&input).unwrap(), Pending::default());
    context.one_delivered(&input).ack().unwrap();
    assert_eq!(context.stream.pending(&input).unwrap(), Pending::default());
}

fn a_stream_and_its_groups_are_described(context: Context) {
    let input = context.input();
    context.stream.create_input_stream(&StreamInput::new(STREAM, "audit")).unwrap();
    let ids = context.stream.publish_batch(&context.output(), ["a", "b", "c", "d", "e"]).unwrap();
    let mut deliveries = context.stream.receive_batch(&input, 3).unwrap();
    deliveries.remove(0).ack().unwrap();

    let info = context.stream.info(STREAM).unwrap();
    assert_eq!((info.length, info.first_id, info.last_id), (5, Some(ids[0]), ids[4]));
    assert_eq!(info.entries_added, Some(5));
    let [audit, billing] = info.groups.as_slice() else { panic!("{info:?}") };
    assert_eq!((audit.name.as_str(), audit.consumers, audit.pending), ("audit", 0, 0));
    assert_eq!((audit.last_delivered_id, audit.lag), (EntryId::MIN, Some(5)));
    assert_eq!((billing.name.as_str(), billing.consumers, billing.pending), (GROUP, 1, 2));
    assert_eq!((billing.last_delivered_id, billing.entries_read, billing.lag), (ids[2], Some(3), Some(2)));
}

fn an_empty_stream_has_no_first_entry(context: Context) {
    context.input();
    let info = context.stream.info(STREAM).unwrap();
    assert_eq!((info.length, info.first_id, info.last_id), (0, None, EntryId::MIN));
    assert_eq!(info.groups[0].lag, Some(0));

    let id = context.stream.publish(&context.output(), "a").unwrap();
    context.command(&["XDEL", STREAM, &id.to_string()]);
    let info = context.stream.info(STREAM).unwrap();
    assert_eq!((info.length, info.first_id, info.last_id), (0, None, id));
}

fn a_deleted_entry_makes_the_lag_unknown(context: Context) {
    let input = context.input();
    let ids = context.stream.publish_batch(&context.output(), ["a", "b", "c", "d"]).unwrap();
    let _first = context.stream.receive(&input).unwrap();
    assert_eq!(context.stream.info(STREAM).unwrap().groups[0].lag, Some(3));
    context.command(&["XDEL", STREAM, &ids[2].to_string()]);
    assert_eq!(context.stream.info(STREAM).unwrap().groups[0].lag, None);
}

fn what_does_not_exist_is_an_error_of_the_server(context: Context) {
    let error = context.stream.info("no such stream").unwrap_err();
    assert!(matches!(&error, Error::Server { command: "XINFO STREAM", .. }), "{error:?}");
    assert_eq!((error.code(), error.is_retryable()), (Some("ERR"), false));
    assert!(context.stream.pending(&StreamInput::new(STREAM, GROUP)).unwrap_err().is_group_missing());
    // Both requests of `info` were answered, so the connection serves on.
    assert_eq!(context.stream.publish_batch(&context.output(), ["a", "b"]).unwrap().len(), 2);
    assert_eq!(context.server.connected_clients(), 1);
}

fn a_ping_is_answered(context: Context) {
    let elapsed = context.stream.ping().unwrap();
    assert!(Duration::ZERO < elapsed && elapsed < Duration::from_secs(5), "{elapsed:?}");
}
