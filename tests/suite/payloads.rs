//! Whatever bytes are published are the bytes that arrive.

use std::error::Error as StdError;
use std::time::Duration;

use step_redis::{Error, Message, redis};

use crate::context::Context;

core_suite! {
    any_bytes_arrive_as_they_are,
    a_reply_beyond_the_limit_is_refused_by_its_name,
    sixteen_mebibytes_arrive_as_they_are,
    a_thousand_fields_arrive_in_order,
}

both_protocols! {
    a_payload_that_is_no_text_can_be_read_and_acknowledged,
    repeated_names_and_odd_names_are_kept,
    an_entry_without_the_payloads_field_has_an_empty_payload,
    names_and_values_may_be_of_any_kind_of_text_and_bytes,
    large_and_small_entries_mix,
}

fn any_bytes_arrive_as_they_are(context: Context) {
    let input = context.input();
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads: [&[u8]; 8] = [
        b"",
        b"x",
        b"\0",
        b"\r\n",
        b"\0\r\n$3\r\nabc\r\n*2\r\n-ERR no\r\n>1\r\n",
        "gr\u{fc}\u{df}e \u{1f600}".as_bytes(),
        b"\xff\xfe\xfd",
        &every_byte,
    ];
    for payload in payloads {
        context.stream.publish(&context.output(), payload).unwrap();
        let delivery = context.stream.receive(&input).unwrap().unwrap();
        assert_eq!(delivery.payload(), payload);
        delivery.ack().unwrap();
    }
    context.stream.publish_batch(&context.output(), payloads).unwrap();
    let deliveries = context.stream.receive_batch(&input, payloads.len()).unwrap();
    assert_eq!(deliveries.iter().map(|delivery| delivery.payload()).collect::<Vec<_>>(), payloads);
}

fn a_reply_beyond_the_limit_is_refused_by_its_name(context: Context) {
    let input = context.input();
    let limit = 1024 * 1024;
    let stream = context.stream_with(|params| params.max_reply(limit));
    let payload = vec![b'x'; limit / 2];
    for _ in 0..3 {
        stream.publish(&context.output(), &payload).unwrap();
    }
    let error = stream.receive_batch(&input, 3).unwrap_err();
    let Error::ReplyTooLarge { limit: told, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*told, limit);
    assert!(error.is_retryable() && error.is_outcome_unknown() && !error.is_timeout(), "{error}");
    assert!(error.to_string().contains("max_reply"), "{error}");
    // It has cost the connection and nothing else: what was asked for is pending, and can be had in smaller helpings.
    assert_eq!(stream.pool().state().connections, 0);
    let claimed = stream.claim(&input, Duration::ZERO, 1).unwrap();
    assert!(claimed.len() == 1 && claimed[0].payload() == payload);
    // What just fits is taken.
    let largest = vec![b'y'; limit - "$1048565\r\n\r\n".len()];
    let mut connection = stream.pool().get().unwrap();
    redis::cmd("SET").arg("key").arg(&largest).exec(&mut connection).unwrap();
    let read: Vec<u8> = redis::cmd("GET").arg("key").query(&mut connection).unwrap();
    assert!(read == largest);
    redis::cmd("APPEND").arg("key").arg("z").exec(&mut connection).unwrap();
    redis::cmd("GET").arg("key").exec(&mut connection).unwrap_err();
    // One command whose reply is no value but an array of many small ones.
    let mut connection = stream.pool().get().unwrap();
    let many = "local numbers = {} for number = 1, 300000 do numbers[number] = number end return numbers";
    redis::cmd("EVAL").arg(many).arg(0).exec(&mut connection).unwrap_err();
}

fn sixteen_mebibytes_arrive_as_they_are(context: Context) {
    let input = context.input();
    // No period that divides a buffer's size, so that a piece in the wrong place shows.
    let block: Vec<u8> = (0..=250).collect();
    let mut payload = block.repeat(16 * 1024 * 1024 / block.len() + 1);
    payload.truncate(16 * 1024 * 1024);
    let id = context.stream.publish(&context.output(), &payload).unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!(delivery.id(), id);
    assert!(delivery.payload() == payload, "the payload has changed");
    delivery.ack().unwrap();
}

fn a_thousand_fields_arrive_in_order(context: Context) {
    let input = context.input();
    let fields: Vec<(String, String)> = (0..1000).map(|n| (format!("name {n}"), format!("value {n}"))).collect();
    let message = fields.iter().fold(Message::new(), |message, (name, value)| message.field(name, value));
    context.stream.publish(&context.output(), message).unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert!(delivery.fields().eq(fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))));
    assert_eq!(delivery.field("name 999"), Some(&b"value 999"[..]));
    delivery.ack().unwrap();
}

fn a_payload_that_is_no_text_can_be_read_and_acknowledged(context: Context) {
    let input = context.input();
    let id = context.stream.publish(&context.output(), b"good \xc3\x28").unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    let error = delivery.text().unwrap_err();
    assert!(matches!(&error, Error::NotUtf8 { id: told, .. } if *told == id), "{error:?}");
    assert!(error.to_string().contains(&id.to_string()) && error.source().is_some(), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(delivery.payload(), b"good \xc3\x28");
    delivery.ack().unwrap();
    assert_eq!(context.pending(), []);
}

fn repeated_names_and_odd_names_are_kept(context: Context) {
    let input = context.input();
    let fields: [(&[u8], &[u8]); 6] =
        [(b"a", b"1"), (b"b", b""), (b"a", b"2"), (b"", b"nameless"), (b"a", b"1"), (b"\0\xff\r\n", b"binary")];
    let message = fields.iter().fold(Message::new(), |message, (name, value)| message.field(*name, *value));
    context.stream.publish(&context.output(), message).unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!(delivery.fields().collect::<Vec<_>>(), fields);
    assert_eq!(delivery.field("a"), Some(&b"1"[..]), "the first of them");
    assert_eq!((delivery.field("c"), delivery.field("")), (None, Some(&b"nameless"[..])));
}

fn an_entry_without_the_payloads_field_has_an_empty_payload(context: Context) {
    let input = context.input();
    context.stream.publish(&context.output(), Message::new().field("kind", "speed")).unwrap();
    let delivery = context.stream.receive(&input).unwrap().unwrap();
    assert_eq!((delivery.payload(), delivery.text().unwrap()), (&b""[..], ""));
    assert_eq!(delivery.field("message"), None);
}

fn names_and_values_may_be_of_any_kind_of_text_and_bytes(context: Context) {
    let (input, output) = (context.input(), context.output());
    let (text, bytes) = ("text".to_owned(), b"text".to_vec());
    let publish = [
        context.stream.publish(&output, "text"),
        context.stream.publish(&output, &text),
        context.stream.publish(&output, text.clone()),
        context.stream.publish(&output, bytes.as_slice()),
        context.stream.publish(&output, &bytes),
        context.stream.publish(&output, bytes.clone()),
        context.stream.publish(&output, b"text"),
        context.stream.publish(&output, Message::new().field(text.clone(), 5.to_string()).field("message", bytes)),
    ];
    assert!(publish.iter().all(Result::is_ok), "{publish:?}");
    let deliveries = context.stream.receive_batch(&input, 10).unwrap();
    assert_eq!(deliveries.iter().map(|delivery| delivery.text().unwrap()).collect::<Vec<_>>(), ["text"; 8]);
}

fn large_and_small_entries_mix(context: Context) {
    let input = context.input();
    let sizes = [0, 1, 40_000, 3, 70_000, 65_536, 2, 1_500_000, 100_000, 0, 5];
    let payloads: Vec<Vec<u8>> = sizes.iter().zip(b'a'..).map(|(&size, byte)| vec![byte; size]).collect();
    context.stream.publish_batch(&context.output(), &payloads).unwrap();
    let deliveries = context.stream.receive_batch(&input, 100).unwrap();
    assert!(deliveries.iter().map(|delivery| delivery.payload()).eq(payloads.iter().map(Vec::as_slice)));
}
