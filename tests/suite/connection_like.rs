//! A pooled connection serves the `redis` crate: commands, pipelines, transactions and its typed methods.

use std::collections::HashMap;
use std::ops::Deref;

use step_redis::redis::streams::{StreamInfoGroupsReply, StreamRangeReply};
use step_redis::redis::{self, Commands, ConnectionLike, ErrorKind, ServerErrorKind, Value};

use crate::context::{Context, STREAM};

core_suite! {
    a_command_is_sent_and_its_reply_typed,
    a_pipeline_returns_its_replies_in_order,
}

both_protocols! {
    a_refused_command_leaves_the_connection_good,
    an_error_inside_a_pipeline_leaves_no_reply_behind,
    a_transaction_returns_its_replies,
    an_error_inside_a_transaction_leaves_no_reply_behind,
    the_typed_methods_work,
    a_scan_iterates_over_every_key,
    the_connection_tells_what_it_is,
    a_large_reply_arrives_whole,
}

fn a_command_is_sent_and_its_reply_typed(context: Context) {
    let mut connection = context.pool().get().unwrap();
    redis::cmd("SET").arg("key").arg(b"\0\r\n").exec(&mut connection).unwrap();
    let value: Vec<u8> = redis::cmd("GET").arg("key").query(&mut connection).unwrap();
    assert_eq!(value, b"\0\r\n");
    let missing: Option<String> = redis::cmd("GET").arg("no such key").query(&mut connection).unwrap();
    assert_eq!(missing, None);
    redis::cmd("HSET").arg("hash").arg("a").arg(1).arg("b").arg(2).exec(&mut connection).unwrap();
    let hash: HashMap<String, u32> = redis::cmd("HGETALL").arg("hash").query(&mut connection).unwrap();
    assert_eq!(hash, HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]));
}

fn a_pipeline_returns_its_replies_in_order(context: Context) {
    let mut pipe = redis::pipe();
    pipe.set("key", 0).ignore();
    for _ in 0..2000 {
        pipe.incr("key", 1);
    }
    let counts: Vec<u32> = pipe.query(&mut context.pool().get().unwrap()).unwrap();
    assert!(counts.into_iter().eq(1..=2000));
}

fn a_refused_command_leaves_the_connection_good(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let id = connection.deref().id();
    redis::cmd("SET").arg("key").arg("text").exec(&mut connection).unwrap();
    let error = redis::cmd("INCR").arg("key").exec(&mut connection).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "{error:?}");
    let error = redis::cmd("LPUSH").arg("key").arg("text").exec(&mut connection).unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"), "{error:?}");
    // A reply that does not fit the wanted type is the caller's matter alone.
    redis::cmd("GET").arg("key").query::<u32>(&mut connection).unwrap_err();
    drop(connection);
    assert_eq!(context.pooled_id(), id);
}

fn an_error_inside_a_pipeline_leaves_no_reply_behind(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let mut pipe = redis::pipe();
    pipe.set("key", "text").cmd("INCR").arg("key").get("key").cmd("NO-SUCH-COMMAND").cmd("ECHO").arg("last");
    pipe.query::<Value>(&mut connection).unwrap_err();
    for text in ["one", "two"] {
        let echoed: String = redis::cmd("ECHO").arg(text).query(&mut connection).unwrap();
        assert_eq!(echoed, text);
    }
}

fn a_transaction_returns_its_replies(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let (first, second): (u32, String) =
        redis::pipe().atomic().set("key", "text").ignore().incr("count", 5).get("key").query(&mut connection).unwrap();
    assert_eq!((first, second.as_str()), (5, "text"));

    let (count,): (u32,) = redis::transaction(&mut connection, &["count"], |connection, pipe| {
        let count: u32 = connection.get("count")?;
        pipe.set("count", count * 2).ignore().get("count").query(connection)
    })
    .unwrap();
    assert_eq!(count, 10);
}

fn an_error_inside_a_transaction_leaves_no_reply_behind(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let id = connection.deref().id();
    // Refused when it is carried out, and refused when it is queued, which refuses all of it.
    let mut run = redis::pipe();
    run.atomic().set("key", "text").cmd("INCR").arg("key").get("key");
    let mut queue = redis::pipe();
    queue.atomic().set("key", "other").cmd("NO-SUCH-COMMAND").get("key");
    for pipe in [run, queue] {
        pipe.query::<Value>(&mut connection).unwrap_err();
        for text in ["one", "two"] {
            let echoed: String = redis::cmd("ECHO").arg(text).query(&mut connection).unwrap();
            assert_eq!(echoed, text);
        }
    }
    assert_eq!(connection.get::<_, String>("key").unwrap(), "text");
    drop(connection);
    assert_eq!(context.pooled_id(), id);
}

fn the_typed_methods_work(context: Context) {
    context.input();
    let mut connection = context.pool().get().unwrap();
    let id: String = connection.xadd(STREAM, "*", &[("message", "one coffee"), ("size", "small")]).unwrap();
    let range: StreamRangeReply = connection.xrange_all(STREAM).unwrap();
    assert_eq!(range.ids[0].id, id);
    assert_eq!(range.ids[0].get::<String>("message").as_deref(), Some("one coffee"));
    let groups: StreamInfoGroupsReply = connection.xinfo_groups(STREAM).unwrap();
    assert_eq!(groups.groups[0].name, "billing");
    let length: usize = connection.xlen(STREAM).unwrap();
    assert_eq!(length, 1);
}

fn a_scan_iterates_over_every_key(context: Context) {
    let mut connection = context.pool().get().unwrap();
    for number in 0..500 {
        let () = connection.set(format!("key:{number}"), number).unwrap();
    }
    let keys: redis::RedisResult<Vec<String>> = connection.scan_match("key:*").unwrap().collect();
    let mut keys = keys.unwrap();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 500);
}

fn the_connection_tells_what_it_is(context: Context) {
    let stream = context.stream_with(|params| params.db(3).client_name("teller"));
    let mut connection = stream.pool().get().unwrap();
    assert_eq!(connection.get_db(), 3);
    assert!(connection.is_open() && connection.check_connection());
    let client = context.server.client_list().into_iter().find(|client| client["name"] == "teller").unwrap();
    assert_eq!((client["db"].as_str(), client["id"].parse().ok()), ("3", connection.deref().id()));
}

fn a_large_reply_arrives_whole(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let mut pipe = redis::pipe();
    for number in 0..20_000 {
        pipe.rpush("list", number).ignore();
    }
    pipe.exec(&mut connection).unwrap();
    let numbers: Vec<u32> = connection.lrange("list", 0, -1).unwrap();
    assert!(numbers.into_iter().eq(0..20_000));
}
