//! Entries that were given up on: what is kept of them, and how they get another chance.

use std::time::Duration;

use step_redis::{Error, Message, StreamInput, StreamOutput};

use crate::context::{Context, GROUP, STREAM};

core_suite! {
    a_dead_letter_has_its_fields_its_origin_and_the_reason,
}

both_protocols! {
    an_entry_cannot_be_given_up_on_without_a_place_for_it,
    a_dead_letter_stream_that_cannot_be_written_keeps_the_entry_pending,
    dead_letters_are_kept_as_their_output_says,
    a_requeued_dead_letter_is_received_again_and_gone_from_the_dead_letters,
    a_dead_letter_is_requeued_once_only,
    an_entry_of_five_thousand_fields_is_given_up_on_and_requeued,
    what_is_no_dead_letter_is_left_out,
    more_dead_letters_than_a_reply_may_hold_are_not_asked_for,
    an_entry_is_not_given_up_on_to_the_stream_it_is_in,
}

const DEAD: &str = "orders:dead";

fn input(context: &Context) -> StreamInput {
    context.input().dead_letter(StreamOutput::new(DEAD))
}

fn a_dead_letter_has_its_fields_its_origin_and_the_reason(context: Context) {
    let input = input(&context);
    let message = Message::from("one coffee").field("size", "small").field("size", "large").field("reason", "thirst");
    let id = context.stream.publish(&context.output(), message).unwrap();
    drop(context.stream.receive(&input).unwrap().unwrap());
    let delivery = context.stream.claim(&input, Duration::ZERO, 1).unwrap().pop().unwrap();
    delivery.dead_letter("no milk: \"empty\"\r\n").unwrap();
    assert_eq!(context.pending(), []);

    let letters = context.stream.dead_letters(&StreamOutput::new(DEAD), 10).unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.stream_id(), letter.group(), letter.consumer()), (STREAM, GROUP, "one"));
    assert_eq!((letter.origin_id(), letter.deliveries(), letter.reason()), (id, 2, "no milk: \"empty\"\r\n"));
    let fields: Vec<_> = letter.fields().collect();
    let expected: [(&[u8], &[u8]); 4] =
        [(b"message", b"one coffee"), (b"size", b"small"), (b"size", b"large"), (b"reason", b"thirst")];
    assert_eq!(fields, expected);
    assert_eq!((letter.payload(), letter.field("size")), (&b"one coffee"[..], Some(&b"small"[..])));
}

fn an_entry_cannot_be_given_up_on_without_a_place_for_it(context: Context) {
    let error = context.one_delivered(&context.input()).dead_letter("no milk").unwrap_err();
    assert!(matches!(&error, Error::Params { field, .. } if field == "dead_letter"), "{error:?}");
    assert_eq!(context.pending().len(), 1);
}

fn a_dead_letter_stream_that_cannot_be_written_keeps_the_entry_pending(context: Context) {
    context.command(&["SET", DEAD, "somebody's data"]);
    let error = context.one_delivered(&input(&context)).dead_letter("no milk").unwrap_err();
    assert!(error.is_wrong_type(), "{error:?}");
    assert_eq!(context.pending().len(), 1);
    assert_eq!(context.command(&["GET", DEAD]).text(), "somebody's data");
}

fn dead_letters_are_kept_as_their_output_says(context: Context) {
    let output = StreamOutput::new(DEAD).exact_length(2).ttl(Duration::from_secs(60));
    let input = context.input().dead_letter(output.clone());
    for delivery in context.delivered(&input, &["a", "b", "c"]) {
        delivery.dead_letter("no milk").unwrap();
    }
    let letters = context.stream.dead_letters(&output, 10).unwrap();
    assert_eq!(letters.iter().map(|letter| letter.payload()).collect::<Vec<_>>(), [b"b", b"c"]);
    assert!((1..=60_000).contains(&context.time_to_live(DEAD)));
    assert_eq!(context.stream.dead_letters(&output, 1).unwrap().len(), 1);
}

fn a_requeued_dead_letter_is_received_again_and_gone_from_the_dead_letters(context: Context) {
    let (input, dead) = (input(&context), StreamOutput::new(DEAD));
    let message = Message::from("one coffee").field("size", "small").field("size", "large");
    let first_id = context.stream.publish(&context.output(), message).unwrap();
    context.stream.receive(&input).unwrap().unwrap().dead_letter("no milk").unwrap();

    let letter = context.stream.dead_letters(&dead, 1).unwrap().remove(0);
    let second_id = context.stream.requeue(&dead, &letter).unwrap();
    assert!(second_id > first_id);
    assert_eq!(context.stream.dead_letters(&dead, 1).unwrap(), []);
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!((delivery.id(), delivery.delivery_count()), (second_id, 1));
    // Its own fields, and nothing of its way through the dead letters.
    let expected: [(&[u8], &[u8]); 3] = [(b"message", b"one coffee"), (b"size", b"small"), (b"size", b"large")];
    assert_eq!(delivery.fields().collect::<Vec<_>>(), expected);
    delivery.ack().unwrap();
}

fn a_dead_letter_is_requeued_once_only(context: Context) {
    let dead = StreamOutput::new(DEAD);
    context.one_delivered(&input(&context)).dead_letter("no milk").unwrap();
    let letter = context.stream.dead_letters(&dead, 1).unwrap().remove(0);
    context.stream.requeue(&dead, &letter).unwrap();
    let error = context.stream.requeue(&dead, &letter).unwrap_err();
    assert!(matches!(&error, Error::NoSuchEntry { stream_id, id } if stream_id == DEAD && *id == letter.id()));
    assert!(!error.is_retryable());
    assert_eq!(context.length(), 2);
}

fn an_entry_of_five_thousand_fields_is_given_up_on_and_requeued(context: Context) {
    let (input, dead) = (input(&context), StreamOutput::new(DEAD));
    let fields: Vec<(String, String)> = (0..5000).map(|n| (format!("name {n}"), format!("value {n}"))).collect();
    let message = fields.iter().fold(Message::new(), |message, (name, value)| message.field(name, value));
    let bytes = || fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    context.stream.publish(&context.output(), message).unwrap();

    context.stream.receive(&input).unwrap().unwrap().dead_letter("too much").unwrap();
    assert_eq!(context.pending(), []);
    let letter = context.stream.dead_letters(&dead, 1).unwrap().remove(0);
    assert!(letter.fields().eq(bytes()) && letter.reason() == "too much");
    context.stream.requeue(&dead, &letter).unwrap();
    assert_eq!(context.command(&["XLEN", DEAD]).int(), 0);
    assert!(matches!(context.stream.requeue(&dead, &letter).unwrap_err(), Error::NoSuchEntry { .. }));
    assert_eq!(context.length(), 2);
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert!(delivery.fields().eq(bytes()));

    // What another consumer took over is left to it, however many fields it has.
    let taken = context.stream.claim(&input.clone().consumer("two"), Duration::ZERO, 1).unwrap();
    delivery.dead_letter("too late").unwrap();
    assert_eq!(context.command(&["XLEN", DEAD]).int(), 0);
    assert_eq!(context.pending(), [(taken[0].id().to_string(), "two".to_owned())]);
}

fn what_is_no_dead_letter_is_left_out(context: Context) {
    let dead = StreamOutput::new(DEAD);
    context.stream.publish(&dead, "no dead letter").unwrap();
    context.one_delivered(&input(&context)).dead_letter("no milk").unwrap();
    let letters = context.stream.dead_letters(&dead, 10).unwrap();
    assert_eq!(letters.iter().map(|letter| letter.reason()).collect::<Vec<_>>(), ["no milk"]);
    assert_eq!(context.stream.dead_letters(&StreamOutput::new("no such stream"), 10).unwrap(), []);
}

fn more_dead_letters_than_a_reply_may_hold_are_not_asked_for(context: Context) {
    let output = StreamOutput::new(DEAD);
    for max in [0, (1 << 20) + 1, 1 << 40, usize::MAX] {
        let error = context.stream.dead_letters(&output, max).unwrap_err();
        assert!(matches!(&error, Error::Params { field, .. } if field == "max"), "{max}: {error:?}");
    }
    context.one_delivered(&input(&context)).dead_letter("no milk").unwrap();
    assert_eq!(context.stream.dead_letters(&output, 1 << 20).unwrap().len(), 1);
}

/// It would come again as a new entry.
fn an_entry_is_not_given_up_on_to_the_stream_it_is_in(context: Context) {
    let input = context.input().dead_letter(context.output());
    let error = context.stream.receive(&input).unwrap_err();
    assert!(matches!(&error, Error::Params { field, .. } if field == "dead_letter"), "{error:?}");
}
