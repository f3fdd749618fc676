//! What is lent comes back as it was: whatever a borrower leaves behind on a connection meets nobody.

use std::thread;
use std::time::Duration;

use step_redis::redis::{self, Commands, ConnectionLike, Value};
use step_redis::{Error, PoolParams, PooledConnection, Protocol, StepPool, StepStream, StreamOutput};

use crate::common::{Behaviour, Peer, Step};
use crate::context::{Context, STREAM};

both_protocols! {
    what_is_left_behind_closes_the_connection,
    what_leaves_nothing_behind_keeps_the_connection,
    a_transaction_that_was_left_open_is_nobody_elses,
    a_database_that_was_left_selected_is_nobody_elses,
    a_watch_that_was_left_fails_nobody_elses_transaction,
    an_interrupter_ends_with_the_loan,
    an_interrupter_that_was_used_costs_the_connection,
    a_reply_that_does_not_fit_retires_the_connection,
}

/// A pool of one connection. What it is never answered does not take long.
fn pool_of_one(context: &Context) -> StepPool {
    let change = |params: PoolParams| params.max_connections(1).socket_timeout(Duration::from_millis(300));
    context.stream_with(change).pool().clone()
}

/// Whether the pool lends the same connection again after this.
fn keeps(pool: &StepPool, borrow: impl FnOnce(&mut PooledConnection)) -> bool {
    let mut connection = pool.get().unwrap();
    let id = connection.id();
    assert!(id.is_some());
    borrow(&mut connection);
    drop(connection);
    let again = pool.get().unwrap().id();
    assert!(pool.ping().is_ok());
    again == id
}

/// Sends it as it is; what it is answered with, if with anything, is of no matter.
fn send(connection: &mut PooledConnection, bytes: &[u8]) {
    let _ = connection.req_packed_command(bytes);
}

fn words(text: &str) -> redis::Cmd {
    let mut words = text.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command
}

fn what_is_left_behind_closes_the_connection(context: Context) {
    let pool = pool_of_one(&context);
    for text in [
        "MULTI",
        "multi",
        "WATCH key",
        "Watch key",
        "SELECT 5",
        "select 05",
        "RESET",
        "AUTH default anything",
        "HELLO",
        "HELLO 2",
        "MONITOR",
        "SUBSCRIBE channel",
        "psubscribe chan*",
        "UNSUBSCRIBE",
        "READONLY",
        "READWRITE",
        "ASKING",
        "QUIT",
        "CLIENT REPLY OFF",
        "CLIENT REPLY SKIP",
        "client tracking on",
        "CLIENT NO-EVICT on",
        "CLIENT SETNAME other",
        "CLIENT of-a-later-server",
        "SCRIPT DEBUG YES",
    ] {
        let kept = keeps(&pool, |connection| {
            let _ = words(text).exec(connection);
        });
        assert!(!kept, "{text}");
    }
    let kept = keeps(&pool, |connection| {
        let _ = redis::pipe().cmd("CLIENT").arg("REPLY").arg("OFF").cmd("PING").exec(connection);
    });
    assert!(!kept);
    // Pipelined; raw, as one request of several commands and as one that is none; and inline.
    let kept = keeps(&pool, |connection| {
        let _ = redis::pipe().set("key", 1).cmd("multi").set("key", 2).exec(connection);
    });
    assert!(!kept);
    let raw: [&[u8]; 6] = [
        b"*1\r\n$5\r\nMULTI\r\n",
        b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nmULTI\r\n",
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
        b"MULTI\r\n",
        b"select 5\r\n",
        b"\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n5\r\n",
    ];
    for bytes in raw {
        assert!(!keeps(&pool, |connection| send(connection, bytes)), "{}", bytes.escape_ascii());
    }
    let kept = keeps(&pool, |connection| {
        let two = b"*2\r\n$6\r\nSELECT\r\n$1\r\n5\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n";
        let _ = connection.req_packed_commands(two, 0, 3);
    });
    assert!(!kept);
}

fn what_leaves_nothing_behind_keeps_the_connection(context: Context) {
    let pool = pool_of_one(&context);
    for texts in [
        &["SET key value", "GET key"][..],
        &["MULTI", "SET key value", "EXEC"],
        &["multi", "discard"],
        &["MULTI", "no-such-command", "EXEC"],
        &["WATCH key", "UNWATCH"],
        &["WATCH key", "MULTI", "EXEC"],
        &["WATCH key", "MULTI", "UNWATCH", "DISCARD"],
        &["SELECT 5", "SELECT 0"],
        &["SELECT 0"],
        &["CLIENT ID", "client list", "CLIENT GETNAME", "CLIENT INFO"],
        &["CLIENT REPLY ON"],
        &["SCRIPT EXISTS 0000000000000000000000000000000000000000"],
        &["no-such-command", "INCR"],
    ] {
        let kept = keeps(&pool, |connection| {
            for text in texts {
                let _ = words(text).exec(connection);
            }
        });
        assert!(kept, "{texts:?}");
    }
    let kept = keeps(&pool, |connection| {
        let (count,): (u32,) = redis::transaction(connection, &["count"], |connection, pipe| {
            let count: Option<u32> = connection.get("count")?;
            pipe.set("count", count.unwrap_or(20) + 1).ignore().get("count").query(connection)
        })
        .unwrap();
        assert_eq!(count, 21);
        let values: Vec<Value> = redis::pipe().cmd("MULTI").cmd("PING").cmd("EXEC").query(connection).unwrap();
        assert_eq!(values.len(), 3);
        // The end of one and the begin of another, which is ended too.
        let _: Vec<Value> = redis::pipe().cmd("MULTI").cmd("EXEC").cmd("MULTI").cmd("EXEC").query(connection).unwrap();
    });
    assert!(kept);
    let kept = keeps(&pool, |connection| {
        let _: Vec<Value> = redis::pipe().cmd("MULTI").cmd("EXEC").cmd("MULTI").query(connection).unwrap();
    });
    assert!(!kept, "the last one is open");
    // Queued, it is not carried out.
    let kept = keeps(&pool, |connection| {
        for text in ["SELECT 5", "MULTI", "SELECT 0", "DISCARD"] {
            let _ = words(text).exec(connection);
        }
    });
    assert!(!kept);
}

fn a_transaction_that_was_left_open_is_nobody_elses(context: Context) {
    let pool = pool_of_one(&context);
    let stream = StepStream::new(pool.clone());
    let mut connection = pool.get().unwrap();
    redis::cmd("MULTI").exec(&mut connection).unwrap();
    redis::cmd("SET").arg("abandoned").arg("value").exec(&mut connection).unwrap();
    drop(connection);
    stream.publish(&context.output(), "text").unwrap();
    redis::cmd("EXEC").exec(&mut pool.get().unwrap()).unwrap_err();
    assert_eq!(pool.get().unwrap().get::<_, Option<String>>("abandoned").unwrap(), None);
    assert_eq!(context.length(), 1);
}

fn a_database_that_was_left_selected_is_nobody_elses(context: Context) {
    let stream = context.stream_with(|params| params.max_connections(1).db(3));
    for command in [&["SELECT", "5"][..], &["RESET"]] {
        let mut connection = stream.pool().get().unwrap();
        redis::cmd(command[0]).arg(&command[1..]).exec(&mut connection).unwrap();
        drop(connection);
        stream.publish(&StreamOutput::new(STREAM), "text").unwrap();
    }
    let mut connection = stream.pool().get().unwrap();
    assert_eq!(redis::cmd("XLEN").arg(STREAM).query::<u64>(&mut connection).unwrap(), 2);
}

fn a_watch_that_was_left_fails_nobody_elses_transaction(context: Context) {
    let pool = pool_of_one(&context);
    redis::cmd("WATCH").arg("key").exec(&mut pool.get().unwrap()).unwrap();
    context.command(&["SET", "key", "changed"]);
    let (value,): (Option<String>,) = redis::pipe().atomic().get("key").query(&mut pool.get().unwrap()).unwrap();
    assert_eq!(value.as_deref(), Some("changed"));
}

fn an_interrupter_ends_with_the_loan(context: Context) {
    let pool = pool_of_one(&context);
    let connection = pool.get().unwrap();
    let (interrupter, id) = (connection.interrupter(), connection.id());
    drop(connection);
    // Whether the connection is idle, lent to another, or in the middle of another's command.
    interrupter.interrupt();
    let mut connection = pool.get().unwrap();
    assert_eq!(connection.id(), id);
    interrupter.clone().interrupt();
    redis::cmd("PING").exec(&mut connection).unwrap();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| redis::cmd("BLPOP").arg("list").arg(0.2).exec(&mut connection));
        context.wait_until_blocked(1);
        interrupter.interrupt();
        blocked.join().unwrap().unwrap();
    });
    drop(connection);
    assert_eq!(pool.get().unwrap().id(), id);
}

fn an_interrupter_that_was_used_costs_the_connection(context: Context) {
    let pool = pool_of_one(&context);
    let connection = pool.get().unwrap();
    let (interrupter, id) = (connection.interrupter(), connection.id());
    interrupter.interrupt();
    drop(connection);
    assert!(id.is_some() && pool.get().unwrap().id() != id);
    let mut connection = pool.get().unwrap();
    connection.interrupter().interrupt();
    assert!(redis::cmd("PING").exec(&mut connection).unwrap_err().is_io_error());
}

fn a_reply_that_does_not_fit_retires_the_connection(protocol: Protocol) {
    let healthy = Behaviour::Script(vec![Step::Handshake, Step::AnswerEach(b"$3\r\n9-9\r\n".to_vec())]);
    let strange = Behaviour::Script(vec![Step::Handshake, Step::AnswerEach(b":5\r\n".to_vec())]);
    let peer = Peer::tcp_each(move |index| if index == 0 { strange.clone() } else { healthy.clone() });
    let stream =
        StepStream::new(StepPool::connect(PoolParams::new("127.0.0.1", peer.port()).protocol(protocol)).unwrap());
    let error = stream.publish(&StreamOutput::new(STREAM), "text").unwrap_err();
    assert!(matches!(error, Error::Reply { .. }), "{error:?}");
    stream.publish(&StreamOutput::new(STREAM), "text").unwrap();
    assert_eq!(peer.connections(), 2);
}
