//! A pooled connection serves the `redis` crate: commands, pipelines, transactions and its typed methods.

use std::collections::HashMap;
use std::ops::Deref;
use std::time::Duration;

use step_redis::redis::streams::{StreamInfoGroupsReply, StreamRangeReply};
use step_redis::redis::{self, Cmd, Commands, ConnectionLike, ErrorKind, RedisError, ServerErrorKind, Value};
use step_redis::{Error, PoolParams, Protocol, StepPool};

use crate::common::{Behaviour, Peer, Server};
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
    an_aborted_transaction_tells_every_cause,
    a_transaction_that_may_not_begin_is_refused_as_such,
    an_empty_command_is_refused_at_once,
    a_reply_that_nobody_waits_for_is_no_other_commands,
    a_server_that_was_told_not_to_answer_is_not_waited_for,
    a_user_who_may_not_ping_is_let_in,
    a_connection_that_cannot_be_made_answers_as_the_oracles_error,
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

fn an_aborted_transaction_tells_every_cause(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let () = connection.set("key", 1).unwrap();
    context.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let mut pipe = redis::pipe();
    pipe.atomic().ping().set("key", 2).ignore().get("key").cmd("NO-SUCH-COMMAND").arg("hidden");
    let error = pipe.exec(&mut connection).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ExecAbort));
    assert_eq!(error.code(), Some("EXECABORT"));
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("NO-SUCH-COMMAND") && !shown.contains("hidden"), "{shown}");
    let causes = error.into_server_errors().unwrap();
    let causes: Vec<_> = causes.iter().map(|(at, error)| (*at, error.code())).collect();
    // In the place of the `MULTI` stands what became of it.
    assert_eq!(causes, [(0, "EXECABORT"), (2, "READONLY"), (4, "ERR")]);
    assert_eq!(connection.get::<_, u32>("key").unwrap(), 1);
}

fn a_transaction_that_may_not_begin_is_refused_as_such(protocol: Protocol) {
    let context = Context::start_with(protocol, |builder| builder.user("user", "on >password ~* &* +@all -multi"));
    let pool = context.stream_with(|params| params.username("user").password("password")).pool().clone();
    let mut connection = pool.get().unwrap();
    let error = redis::pipe().atomic().set("key", 1).exec(&mut connection).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::NoPerm), "{error:?}");
    assert_eq!(redis::cmd("ECHO").arg("text").query::<String>(&mut connection).unwrap(), "text");
}

fn an_empty_command_is_refused_at_once(context: Context) {
    let mut connection = context.pool().get().unwrap();
    let id = connection.deref().id();
    let mut silent = Cmd::new();
    silent.set_no_response(true);
    let mut with_one = redis::pipe();
    with_one.set("key", 1).add_command(Cmd::new()).set("key", 2);
    let mut atomic_with_one = redis::pipe();
    atomic_with_one.atomic().set("key", 1).add_command(Cmd::new());
    let refused = [
        Cmd::new().exec(&mut connection),
        silent.exec(&mut connection),
        redis::pipe().exec(&mut connection),
        with_one.exec(&mut connection),
        atomic_with_one.exec(&mut connection),
        connection.req_packed_command(b"*0\r\n").map(drop),
    ];
    for refusal in refused {
        let error = refusal.unwrap_err();
        assert_eq!((error.kind(), error.is_timeout()), (ErrorKind::Client, false), "{error:?}");
    }
    // A transaction of nothing is one all the same.
    redis::pipe().atomic().exec(&mut connection).unwrap();
    assert!(!connection.exists::<_, bool>("key").unwrap(), "something was sent");
    drop(connection);
    assert_eq!(context.pooled_id(), id);
}

fn a_reply_that_nobody_waits_for_is_no_other_commands(context: Context) {
    let pool = context.stream_with(|params| params.max_connections(1)).pool().clone();
    let id = pool.get().unwrap().id();
    let mut incr = redis::cmd("INCR");
    incr.arg("count").set_no_response(true);
    for number in 0..50 {
        // Held, and lent again; with errors, too, and several at once.
        let mut connection = pool.get().unwrap();
        assert_eq!(incr.query::<Value>(&mut connection).unwrap(), Value::Nil);
        assert_eq!(incr.query::<Value>(&mut connection).unwrap(), Value::Nil);
        redis::cmd("LPUSH").arg("count").arg(1).set_no_response(true).exec(&mut connection).unwrap();
        if number % 2 == 0 {
            drop(connection);
            connection = pool.get().unwrap();
        }
        let echoed: Vec<String> =
            redis::pipe().cmd("ECHO").arg(number).cmd("ECHO").arg("text").query(&mut connection).unwrap();
        assert_eq!(echoed, [number.to_string(), "text".to_owned()]);
        incr.exec(&mut connection).unwrap();
    }
    let mut connection = pool.get().unwrap();
    assert_eq!(connection.get::<_, u32>("count").unwrap(), 150);
    assert_eq!(connection.id(), id);
}

fn a_server_that_was_told_not_to_answer_is_not_waited_for(context: Context) {
    let pool = context.pool();
    let reply = |mode: &str| redis::cmd("client").arg("Reply").arg(mode).clone();
    for is_said in [true, false] {
        let mut connection = pool.get().unwrap();
        let id = connection.id();
        reply("OFF").set_no_response(is_said).exec(&mut connection).unwrap();
        for number in 0..5 {
            redis::cmd("SET").arg("key").arg(number).set_no_response(is_said).exec(&mut connection).unwrap();
        }
        let error = redis::pipe().get("key").exec(&mut connection).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Client, "{error:?}");
        assert!(connection.is_open() && connection.check_connection());
        reply("on").exec(&mut connection).unwrap();
        assert_eq!(connection.get::<_, u32>("key").unwrap(), 4);
        reply("SKIP").set_no_response(is_said).exec(&mut connection).unwrap();
        redis::cmd("SET").arg("key").arg(9).set_no_response(is_said).exec(&mut connection).unwrap();
        assert_eq!(connection.get::<_, u32>("key").unwrap(), 9);
        drop(connection);
        // It is as it was, so it is lent again; one on which the server stays silent is not.
        let mut connection = pool.get().unwrap();
        assert_eq!(connection.id(), id);
        reply("OFF").set_no_response(is_said).exec(&mut connection).unwrap();
        drop(connection);
        assert_ne!(context.pooled_id(), id);
        pool.ping().unwrap();
    }
}

fn a_user_who_may_not_ping_is_let_in(protocol: Protocol) {
    let context = Context::start_with(protocol, |builder| builder.user("user", "on >password ~* &* +@all -ping"));
    let params = context.params().username("user").password("password").max_connections(1);
    let pool = StepPool::connect(params.health_check_interval(Duration::ZERO)).unwrap();
    let id = pool.get().unwrap().id();
    for _ in 0..3 {
        redis::cmd("SET").arg("key").arg(1).exec(&mut pool.get().unwrap()).unwrap();
    }
    assert_eq!(pool.get().unwrap().id(), id);
    assert_eq!(pool.ping().unwrap_err().code(), Some("NOPERM"));
}

fn a_connection_that_cannot_be_made_answers_as_the_oracles_error(protocol: Protocol) {
    let limit = Duration::from_millis(300);
    let version = if protocol == Protocol::Resp3 { "resp3" } else { "resp2" };
    let server = Server::builder().password("password").start();
    let gone = Server::start();
    gone.kill();
    let (silent, hole) = (Peer::tcp(Behaviour::Silent), Peer::tcp_full());
    let asked = |error: &RedisError| {
        format!(
            "timeout={} refused={} dropped={} lost={} retry={:?}",
            error.is_timeout(),
            error.is_connection_refusal(),
            error.is_connection_dropped(),
            error.is_unrecoverable_error(),
            error.retry_method()
        )
    };
    let of = |params: PoolParams| {
        let params = params.protocol(protocol).socket_connect_timeout(limit);
        let error = StepPool::connect(params).unwrap_err();
        let code = error.code().map(str::to_owned);
        let error = RedisError::from(error);
        assert_eq!(error.code(), code.as_deref(), "a refusal keeps its code");
        error
    };
    let theirs = |url: String| {
        let client = redis::Client::open(url).unwrap();
        // Its time limit is for the connecting alone.
        client.get_connection_with_timeout(limit).err().unwrap()
    };
    let table = [
        (PoolParams::new("127.0.0.1", gone.port()), format!("redis://127.0.0.1:{}/?protocol={version}", gone.port())),
        (PoolParams::new("127.0.0.1", hole.port()), format!("redis://127.0.0.1:{}/?protocol={version}", hole.port())),
        (PoolParams::unix("/no/such.sock"), format!("unix:///no/such.sock?protocol={version}")),
        (PoolParams::unix(gone.unix_path()), format!("unix://{}?protocol={version}", gone.unix_path().display())),
    ];
    for (params, url) in table {
        assert_eq!(asked(&of(params)), asked(&theirs(url.clone())), "{url}");
    }
    assert!(of(PoolParams::new("127.0.0.1", silent.port())).is_timeout());
    let refused = of(PoolParams::new("127.0.0.1", server.port()));
    assert_eq!((refused.code(), refused.is_io_error()), (Some("NOAUTH"), false));
    let refused = of(PoolParams::new("127.0.0.1", server.port()).password("password").db(99));
    assert_eq!(refused.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "{refused:?}");
    // What cannot work the next time either.
    let error = RedisError::from(StepPool::new(PoolParams::new("", 1)).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::InvalidClientConfig);
    assert!(matches!(error.retry_method(), redis::RetryMethod::NoRetry));
    let error = Error::ReplyTooLarge { address: "host:1".into(), limit: 1 };
    assert!(matches!(RedisError::from(error).retry_method(), redis::RetryMethod::Reconnect));
}
