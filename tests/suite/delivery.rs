//! How a delivery ends, and that every end but `ack` and `dead_letter` leaves the entry pending.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{Delivery, Error, OnDrop, StreamInput};

use crate::context::{Context, GROUP, STREAM};

core_suite! {
    a_delivery_left_by_an_early_return_stays_pending,
    a_released_entry_is_claimed_by_another_consumer_at_once,
    a_batch_is_acknowledged_with_the_next_read,
}

both_protocols! {
    a_delivery_left_by_a_panic_stays_pending,
    a_delivery_that_goes_out_of_scope_stays_pending,
    an_acknowledged_entry_does_not_come_again,
    an_entry_to_be_retried_later_does_not_come_sooner,
    an_entry_cannot_be_put_off_for_longer_than_the_idle_time_to_claim,
    dropping_with_release_offers_the_entry,
    dropping_with_ack_acknowledges_the_entry,
    dropping_with_ack_in_a_panic_leaves_the_entry,
    leaving_overrules_what_dropping_would_do,
    an_entry_that_another_consumer_took_over_is_not_touched,
    an_end_that_the_server_refuses_leaves_the_entry,
    a_delivery_can_be_ended_in_another_thread,
    an_acknowledgement_with_the_next_read_does_not_wait_for_it,
    a_batch_from_several_streams_is_acknowledged_at_once,
}

const IDLE: Duration = Duration::from_secs(60);

/// What consumer `two` can take over now.
fn claimable(context: &Context, input: &StreamInput) -> Vec<Delivery> {
    context.stream.claim(&input.clone().consumer("two"), IDLE, 10).unwrap()
}

#[track_caller]
fn assert_pending_for_one(context: &Context, input: &StreamInput) {
    let owners: Vec<_> = context.pending().into_iter().map(|(_, owner)| owner).collect();
    assert_eq!(owners, ["one"]);
    assert_eq!(claimable(context, input).len(), 0, "it was offered to others");
    // It comes again to whoever waits long enough.
    let again = context.stream.claim(input, Duration::ZERO, 10).unwrap();
    assert_eq!(again[0].text().unwrap(), "one coffee");
}

fn a_delivery_left_by_an_early_return_stays_pending(context: Context) {
    fn handle(context: &Context, input: &StreamInput) -> Result<(), Box<dyn StdError>> {
        let delivery = context.one_delivered(input);
        let _price: f64 = delivery.text()?.parse()?;
        delivery.ack()?;
        Ok(())
    }
    let input = context.input();
    handle(&context, &input).unwrap_err();
    assert_pending_for_one(&context, &input);
}

fn a_delivery_left_by_a_panic_stays_pending(context: Context) {
    let input = context.input();
    let delivery = context.one_delivered(&input);
    catch_unwind(AssertUnwindSafe(|| {
        let price: Result<f64, _> = delivery.text().unwrap().parse();
        let _price = price.expect("this one is meant to fail");
        delivery.ack().unwrap();
    }))
    .unwrap_err();
    assert_pending_for_one(&context, &input);
}

fn a_delivery_that_goes_out_of_scope_stays_pending(context: Context) {
    let input = context.input();
    drop(context.one_delivered(&input));
    assert_pending_for_one(&context, &input);
}

fn an_acknowledged_entry_does_not_come_again(context: Context) {
    let input = context.input();
    context.one_delivered(&input).ack().unwrap();
    assert_eq!(context.pending(), []);
    assert_eq!(context.stream.claim(&input, Duration::ZERO, 10).unwrap().len(), 0);
    assert!(context.stream.receive(&input.wait_timeout(Duration::ZERO)).unwrap().is_none());
}

fn a_released_entry_is_claimed_by_another_consumer_at_once(context: Context) {
    let input = context.input();
    let delivery = context.one_delivered(&input);
    assert_eq!(claimable(&context, &input).len(), 0);
    let id = delivery.id();
    delivery.release().unwrap();
    let mut claimed = claimable(&context, &input);
    let delivery = claimed.pop().unwrap();
    assert_eq!((delivery.id(), delivery.text().unwrap(), delivery.delivery_count()), (id, "one coffee", 2));
    assert_eq!(context.pending(), [(id.to_string(), "two".to_owned())]);
    delivery.ack().unwrap();
    assert_eq!(context.pending(), []);
}

fn an_entry_to_be_retried_later_does_not_come_sooner(context: Context) {
    let input = context.input();
    let delivery = context.one_delivered(&input);
    let asked = Instant::now();
    delivery.retry_after(Duration::from_secs(1)).unwrap();
    let answered = Instant::now();
    let claimed = loop {
        if let Some(claimed) = claimable(&context, &input).pop() {
            break claimed;
        }
        assert!(answered.elapsed() < Duration::from_secs(10), "it does not come at all");
        thread::sleep(Duration::from_millis(10));
    };
    // The server counts whole milliseconds.
    assert!(asked.elapsed() >= Duration::from_millis(999), "it came after {:?}", asked.elapsed());
    assert!(answered.elapsed() < Duration::from_secs(2), "it came after {:?}", answered.elapsed());
    claimed.ack().unwrap();
}

fn an_entry_cannot_be_put_off_for_longer_than_the_idle_time_to_claim(context: Context) {
    let input = context.input();
    let delivery = context.one_delivered(&input);
    let error = delivery.retry_after(IDLE + Duration::from_millis(1)).unwrap_err();
    assert!(matches!(&error, Error::Params { field, reason } if field == "delay" && reason.contains("60s")), "{error}");
    assert_pending_for_one(&context, &input);
}

fn dropping_with_release_offers_the_entry(context: Context) {
    let input = context.input();
    drop(context.one_delivered(&input).on_drop(OnDrop::Release));
    assert_eq!(claimable(&context, &input).len(), 1);
}

fn dropping_with_ack_acknowledges_the_entry(context: Context) {
    let input = context.input();
    drop(context.one_delivered(&input).on_drop(OnDrop::Ack));
    assert_eq!(context.pending(), []);
}

fn dropping_with_ack_in_a_panic_leaves_the_entry(context: Context) {
    let input = context.input();
    let delivery = context.one_delivered(&input).on_drop(OnDrop::Ack);
    catch_unwind(AssertUnwindSafe(|| {
        let _held = delivery;
        panic!("this one is meant to fail");
    }))
    .unwrap_err();
    assert_pending_for_one(&context, &input);
}

fn leaving_overrules_what_dropping_would_do(context: Context) {
    let input = context.input();
    context.one_delivered(&input).on_drop(OnDrop::Ack).leave();
    assert_pending_for_one(&context, &input);
}

fn an_entry_that_another_consumer_took_over_is_not_touched(context: Context) {
    let input = context.input().dead_letter(step_redis::StreamOutput::new("dead"));
    let two = input.clone().consumer("two");
    type End = fn(Delivery) -> step_redis::Result<()>;
    let ends: [End; 3] = [
        |delivery| delivery.release(),
        |delivery| delivery.retry_after(Duration::from_secs(1)),
        |delivery| delivery.dead_letter("too late"),
    ];
    for end in ends {
        let delivery = context.one_delivered(&input);
        let taken = context.stream.claim(&two, Duration::ZERO, 10).unwrap().pop().unwrap();
        end(delivery).unwrap();
        assert_eq!(context.pending(), [(taken.id().to_string(), "two".to_owned())]);
        assert_eq!(context.stream.claim(&input, IDLE, 10).unwrap().len(), 0, "it was offered to others");
        taken.ack().unwrap();
    }
    assert_eq!(context.command(&["EXISTS", "dead"]).int(), 0);
}

fn an_end_that_the_server_refuses_leaves_the_entry(context: Context) {
    let rules = ["ACL", "SETUSER", "limited", "on", ">password", "~*", "+@all", "-@scripting", "-xack"];
    context.command(&rules);
    let stream = context.stream_with(|params| params.username("limited").password("password"));
    let input = context.input();
    context.stream.publish_batch(&context.output(), ["one coffee"; 2]).unwrap();
    let mut deliveries = stream.receive_batch(&input, 2).unwrap();
    let errors = [deliveries.remove(0).ack().unwrap_err(), deliveries.remove(0).release().unwrap_err()];
    for error in errors {
        assert_eq!((error.code(), error.is_retryable(), error.is_outcome_unknown()), (Some("NOPERM"), false, false));
    }
    assert_eq!(context.pending().len(), 2);
}

fn a_delivery_can_be_ended_in_another_thread(context: Context) {
    let input = context.input();
    let deliveries = context.delivered(&input, &["a", "b", "c"]);
    let threads: Vec<_> =
        deliveries.into_iter().map(|delivery| thread::spawn(move || delivery.ack().unwrap())).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(context.command(&["XPENDING", STREAM, GROUP]).array()[0].int(), 0);
}

fn a_batch_is_acknowledged_with_the_next_read(context: Context) {
    let input = context.input();
    context.stream.publish_batch(&context.output(), ["a", "b", "c", "d", "e"]).unwrap();
    let first = context.stream.ack_and_receive_batch(Vec::new(), &input, 3).unwrap();
    assert_eq!((first.len(), context.pending().len()), (3, 3));
    let second = context.stream.ack_and_receive_batch(first, &input, 3).unwrap();
    assert_eq!(second.iter().map(|delivery| delivery.text().unwrap()).collect::<String>(), "de");
    assert_eq!(context.pending().len(), 2);
    let input = input.wait_timeout(Duration::ZERO);
    assert_eq!(context.stream.ack_and_receive_batch(second, &input, 3).unwrap().len(), 0);
    assert_eq!(context.pending(), []);
}

fn an_acknowledgement_with_the_next_read_does_not_wait_for_it(context: Context) {
    let input = context.input().wait_timeout(Duration::from_secs(20));
    let first = context.delivered(&input, &["a", "b"]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| context.stream.ack_and_receive_batch(first, &input, 2).unwrap());
        context.wait_until_blocked(1);
        assert_eq!(context.pending(), []);
        context.stream.publish(&context.output(), "c").unwrap();
        assert_eq!(reader.join().unwrap().len(), 1);
    });
}

fn a_batch_from_several_streams_is_acknowledged_at_once(context: Context) {
    let input = context.input();
    let other = StreamInput::new("other", GROUP).consumer("one");
    context.stream.create_input_stream(&other).unwrap();
    let mut deliveries = context.delivered(&input, &["a", "b"]);
    context.stream.publish(&step_redis::StreamOutput::new("other"), "c").unwrap();
    deliveries.insert(1, context.stream.receive(&other).unwrap().unwrap());
    Delivery::ack_batch(deliveries).unwrap();
    assert_eq!(context.pending(), []);
    assert_eq!(context.stream.pending(&other).unwrap().total, 0);
    Delivery::ack_batch([]).unwrap();
}
