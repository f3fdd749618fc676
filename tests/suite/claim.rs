//! Taking over what other consumers left behind.

use std::time::Duration;

use crate::context::{Context, STREAM};

core_suite! {
    a_claimed_entry_tells_how_often_it_was_delivered,
}

both_protocols! {
    what_is_not_idle_for_long_enough_is_not_claimed,
    a_claim_takes_no_more_than_it_was_asked_for,
    entries_trimmed_while_pending_are_acknowledged,
    nothing_but_trimmed_entries_is_no_error,
    an_idle_entry_at_the_end_of_a_long_pending_list_is_found,
    a_long_pending_list_is_claimed_whole,
    claiming_from_a_group_that_is_missing_says_so,
}

const IDLE: Duration = Duration::from_secs(60);

fn a_claimed_entry_tells_how_often_it_was_delivered(context: Context) {
    let one = context.input();
    let two = one.clone().consumer("two");
    let first = context.one_delivered(&one);
    let mut counts = vec![first.delivery_count()];
    for input in [&two, &one, &one] {
        let claimed = context.stream.claim(input, Duration::ZERO, 10).unwrap().pop().unwrap();
        assert_eq!((claimed.id(), claimed.text().unwrap()), (first.id(), "one coffee"));
        counts.push(claimed.delivery_count());
    }
    assert_eq!(counts, [1, 2, 3, 4]);
}

fn what_is_not_idle_for_long_enough_is_not_claimed(context: Context) {
    let one = context.input();
    let deliveries = context.delivered(&one, &["a", "b"]);
    assert_eq!(context.stream.claim(&one, IDLE, 10).unwrap().len(), 0);
    let id = deliveries[1].id().to_string();
    // As if an hour had passed.
    context.command(&["XCLAIM", STREAM, "billing", "one", "0", &id, "IDLE", "3600000", "JUSTID"]);
    let claimed = context.stream.claim(&one, IDLE, 10).unwrap();
    assert_eq!(claimed.iter().map(|delivery| delivery.text().unwrap()).collect::<Vec<_>>(), ["b"]);
}

fn a_claim_takes_no_more_than_it_was_asked_for(context: Context) {
    let one = context.input();
    let two = one.clone().consumer("two");
    drop(context.delivered(&one, &["a", "b", "c", "d", "e"]));
    let claimed = context.stream.claim(&two, Duration::ZERO, 3).unwrap();
    assert_eq!(claimed.iter().map(|delivery| delivery.text().unwrap()).collect::<String>(), "abc");
    let owners: String = context.pending().into_iter().map(|(_, owner)| owner).collect();
    assert_eq!(owners, "twotwotwooneone");
}

fn entries_trimmed_while_pending_are_acknowledged(context: Context) {
    let one = context.input();
    let two = one.clone().consumer("two");
    let deliveries = context.delivered(&one, &["a", "b", "c", "d"]);
    context.command(&["XDEL", STREAM, &deliveries[2].id().to_string()]);
    context.command(&["XTRIM", STREAM, "MINID", &deliveries[1].id().to_string()]);
    let claimed = context.stream.claim(&two, Duration::ZERO, 10).unwrap();
    assert_eq!(claimed.iter().map(|delivery| delivery.text().unwrap()).collect::<String>(), "bd");
    assert_eq!(context.pending().len(), 2);
    for delivery in claimed {
        delivery.ack().unwrap();
    }
    assert_eq!(context.pending(), []);
}

fn nothing_but_trimmed_entries_is_no_error(context: Context) {
    let one = context.input();
    drop(context.delivered(&one, &["a"; 50]));
    context.command(&["XTRIM", STREAM, "MAXLEN", "0"]);
    assert_eq!(context.stream.claim(&one, Duration::ZERO, 10).unwrap().len(), 0);
    assert_eq!(context.pending(), []);
}

fn an_idle_entry_at_the_end_of_a_long_pending_list_is_found(context: Context) {
    let one = context.input();
    let mut deliveries = context.delivered(&one, &["busy"; 1500]);
    let last = deliveries.pop().unwrap();
    let id = last.id();
    last.release().unwrap();
    let claimed = context.stream.claim(&one.clone().consumer("two"), IDLE, 1).unwrap();
    assert_eq!(claimed.iter().map(|delivery| delivery.id()).collect::<Vec<_>>(), [id]);
}

fn a_long_pending_list_is_claimed_whole(context: Context) {
    let one = context.input();
    drop(context.delivered(&one, &["left"; 1500]));
    let claimed = context.stream.claim(&one.consumer("two"), Duration::ZERO, 5000).unwrap();
    assert_eq!(claimed.len(), 1500);
    assert!(claimed.is_sorted_by_key(|delivery| delivery.id()));
    assert!(claimed.iter().all(|delivery| delivery.delivery_count() == 2));
}

fn claiming_from_a_group_that_is_missing_says_so(context: Context) {
    let input = step_redis::StreamInput::new(STREAM, "no such group");
    assert!(context.stream.claim(&input, Duration::ZERO, 1).unwrap_err().is_group_missing());
    assert!(context.stream.pending(&input).unwrap_err().is_group_missing());
}
