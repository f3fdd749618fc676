//! What the tests of the consumer share: a stream on a server of its own, and questions to the server.

#[cfg(feature = "tls")]
use crate::common::{Certificates, server_speaks_tls};
use crate::common::{Reply, Server, ServerBuilder, unique};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
#[cfg(feature = "tls")]
use step_redis::TlsParams;
use step_redis::{
    Consumer, ConsumerBuilder, Delivery, Error, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput,
};

/// More than anything here takes on a slow machine, and a failure where it does.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) const GROUP: &str = "group";

/// One stream with one group on a server of its own.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) stream: StepStream,
    pub(crate) key: String,
}

impl Bench {
    pub(crate) fn start() -> Bench {
        Bench::on(Server::start())
    }

    pub(crate) fn on(server: Server) -> Bench {
        let stream = stream_at(&server.url());
        Bench { server, stream, key: unique("stream") }
    }

    /// An input whose entries nobody takes over during a test.
    pub(crate) fn input(&self) -> StreamInput {
        StreamInput::new(self.key.as_str(), GROUP)
    }

    /// A consumer with this name, to be set up further.
    pub(crate) fn consumer(&self, name: &str) -> ConsumerBuilder {
        self.stream.consumer(self.input().consumer(name))
    }

    /// A consumer with a short `claim_idle`.
    pub(crate) fn claiming(&self, name: &str, claim_idle: Duration) -> ConsumerBuilder {
        self.stream.consumer(self.input().consumer(name).claim_idle(claim_idle))
    }

    pub(crate) fn output(&self) -> StreamOutput {
        StreamOutput::new(self.key.as_str())
    }

    pub(crate) fn dead(&self) -> StreamOutput {
        StreamOutput::new(format!("{}:dead", self.key))
    }

    /// Publishes the numbers from 0, as text.
    pub(crate) fn publish(&self, count: usize) {
        self.stream.publish_batch(&self.output(), (0..count).map(|number| number.to_string())).unwrap();
    }

    /// As [`Bench::publish`], made by the server itself, each entry with a second field of this many bytes.
    pub(crate) fn fill(&self, count: usize, bytes: usize) {
        let script = "local text=string.rep('x',ARGV[3]) for i=ARGV[1],ARGV[2] do \
                      redis.call('XADD',KEYS[1],'*','message',string.format('%d',i),'filling',text) end";
        for first in (0..count).step_by(10_000) {
            let (first, last) = (first.to_string(), (count.min(first + 10_000) - 1).to_string());
            self.server.command(&["EVAL", script, "1", &self.key, &first, &last, &bytes.to_string()]);
        }
    }

    /// Entries that are delivered and not acknowledged.
    pub(crate) fn pending(&self) -> usize {
        self.server.command(&["XPENDING", &self.key, GROUP]).array()[0].int() as usize
    }

    /// Entries that are pending for this consumer, as id, idle time in milliseconds, and deliveries.
    pub(crate) fn pending_of(&self, consumer: &str) -> Vec<(String, i64, i64)> {
        let reply = self.server.command(&["XPENDING", &self.key, GROUP, "-", "+", "1000000", consumer]);
        let entry = |entry: &Reply| (entry.array()[0].text(), entry.array()[2].int(), entry.array()[3].int());
        reply.array().iter().map(entry).collect()
    }

    /// Makes all that is pending for this consumer look as if it had lain idle for the default `claim_idle`.
    pub(crate) fn make_claimable(&self, consumer: &str) {
        for (id, _, _) in self.pending_of(consumer) {
            self.server.command(&["XCLAIM", &self.key, GROUP, consumer, "0", &id, "IDLE", "60000", "JUSTID"]);
        }
    }

    /// The names of the group's consumers.
    pub(crate) fn consumers(&self) -> Vec<String> {
        let reply = self.server.command(&["XINFO", "CONSUMERS", &self.key, GROUP]);
        reply.array().iter().map(|consumer| consumer.array()[1].text()).collect()
    }

    /// Entries that the group has delivered, and whether that is all of them.
    pub(crate) fn delivered(&self) -> (usize, bool) {
        let reply = self.server.command(&["XINFO", "GROUPS", &self.key]);
        let group = reply.array()[0].array();
        let property = |name: &str| {
            let at = group.iter().position(|field| *field == Reply::Bulk(name.into()))?;
            Some(&group[at + 1])
        };
        let Some(read) = property("entries-read") else {
            // Redis counts what a group has read, and what it has not, since 7.0.
            let last = property("last-delivered-id").unwrap().text();
            return self.count_delivered(&last);
        };
        // The server has no numbers for a stream that never held anything.
        let number = |reply: &Reply| (*reply != Reply::Nil).then(|| reply.int() as usize);
        (number(read).unwrap_or_default(), number(property("lag").unwrap()) == Some(0))
    }

    /// The same for a stream from which nothing was removed, by counting the entries up to the last one delivered.
    fn count_delivered(&self, last: &str) -> (usize, bool) {
        let script = "return {#redis.call('XRANGE',KEYS[1],'-',ARGV[1]),redis.call('XLEN',KEYS[1])}";
        let reply = self.server.command(&["EVAL", script, "1", &self.key, last]);
        let (delivered, all) = (reply.array()[0].int(), reply.array()[1].int());
        (delivered as usize, delivered == all)
    }

    /// How often the server has carried out this command.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        self.command_statistic(command, "calls")
    }

    /// How often the server has refused this command without looking at it.
    pub(crate) fn rejected_calls(&self, command: &str) -> u64 {
        self.command_statistic(command, "rejected_calls")
    }

    /// How often somebody has created a group, or tried to, where the test has destroyed one this many times.
    pub(crate) fn groups_created(&self, destroyed: u64) -> u64 {
        // Redis counts subcommands apart since 7.0; before, both are `XGROUP`.
        match self.calls("xgroup") {
            0 => self.calls("xgroup|create"),
            both => both - destroyed,
        }
    }

    fn command_statistic(&self, command: &str, name: &str) -> u64 {
        let stats = self.server.info("commandstats");
        let line = stats.get(&format!("cmdstat_{command}")).cloned().unwrap_or_default();
        let value = line.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// The commands that clients send within this time, each as the server shows it to `MONITOR`, without those that scripts
    /// call. The test itself must not ask the server anything meanwhile.
    pub(crate) fn sent_within(&self, time: Duration) -> Vec<String> {
        const END: &str = "the time is up";
        let mut monitor = self.server.client().unwrap();
        assert!(monitor.command(&["MONITOR"]).unwrap().is_ok());
        thread::sleep(time);
        self.server.command(&["ECHO", END]);
        let mut sent = Vec::new();
        loop {
            let line = monitor.receive(LONG).unwrap().text();
            let Some((from, command)) = line.split_once("] ") else { continue };
            if command.contains(END) {
                return sent;
            }
            if !from.ends_with(" lua") {
                sent.push(command.to_owned());
            }
        }
    }

    /// Waits until the reader blocks at the server.
    pub(crate) fn wait_until_blocked(&self) {
        self.server.wait_until(|server| server.client_list().iter().any(|client| client["flags"].contains('b')));
    }
}

/// A stream on a server of its own, and one of the ways to reach it.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) bench: Bench,
    pub(crate) params: PoolParams,
    /// Their files are read by each new pool.
    #[cfg(feature = "tls")]
    _certificates: Option<Certificates>,
}

impl Way {
    fn new(name: &'static str, server: ServerBuilder, params: impl FnOnce(&Server) -> PoolParams) -> Way {
        let bench = Bench::on(server.start());
        let params = params(&bench.server);
        Way {
            name,
            bench,
            params,
            #[cfg(feature = "tls")]
            _certificates: None,
        }
    }

    #[cfg(feature = "tls")]
    fn over_tls() -> Way {
        let certificates = Certificates::generate();
        let way = Way::new("TLS", Server::builder().tls(&certificates), |server| {
            let tls = TlsParams::new().ca_certs(certificates.ca());
            PoolParams::new("127.0.0.1", server.tls_port()).tls(tls)
        });
        Way { _certificates: Some(certificates), ..way }
    }

    pub(crate) fn stream(&self) -> StepStream {
        stream_with(self.params.clone())
    }
}

/// Over TCP with either protocol, over a Unix socket, and over TLS where the server speaks it.
pub(crate) fn every_way() -> Vec<Way> {
    let tcp = |server: &Server| PoolParams::new("127.0.0.1", server.port());
    let plain = [
        Way::new("RESP3", Server::builder(), tcp),
        Way::new("RESP2", Server::builder(), |server| tcp(server).protocol(Protocol::Resp2)),
        Way::new("Unix socket", Server::builder().unix(), |server| PoolParams::unix(server.unix_path())),
    ];
    #[cfg(feature = "tls")]
    let tls = server_speaks_tls().then(Way::over_tls);
    #[cfg(not(feature = "tls"))]
    let tls = None;
    plain.into_iter().chain(tls).collect()
}

/// A bench for each way, whose stream goes that way.
pub(crate) fn every_bench() -> Vec<Bench> {
    every_way().into_iter().map(|way| Bench { stream: way.stream(), ..way.bench }).collect()
}

pub(crate) fn stream_with(params: PoolParams) -> StepStream {
    StepStream::new(StepPool::connect(params).unwrap())
}

pub(crate) fn stream_at(url: &str) -> StepStream {
    stream_with(PoolParams::from_url(url).unwrap())
}

/// The number that was published.
pub(crate) fn number(delivery: &Delivery) -> usize {
    delivery.text().unwrap().parse().unwrap()
}

/// The next delivery, which must come.
#[track_caller]
pub(crate) fn next(consumer: &Consumer) -> Delivery {
    consumer.timeout_iter(LONG).next().expect("nothing was delivered in time").unwrap()
}

/// Takes and acknowledges this many deliveries; the numbers that were published, in the order of their coming.
#[track_caller]
pub(crate) fn take(consumer: &Consumer, count: usize) -> Vec<usize> {
    let take_one = |_| {
        let delivery = next(consumer);
        let number = number(&delivery);
        delivery.ack().unwrap();
        number
    };
    (0..count).map(take_one).collect()
}

/// Takes and acknowledges what comes, until the error that ends the loop: how many came before it.
#[track_caller]
pub(crate) fn take_until_error(consumer: &Consumer) -> (usize, Error) {
    let mut taken = 0;
    let ended = consumer.timeout_iter(LONG).find_map(|item| match item {
        Ok(delivery) => {
            taken += 1;
            delivery.ack().unwrap();
            None
        }
        Err(error) => Some(error),
    });
    (taken, ended.expect("the loop goes on, and nothing comes"))
}

/// That nothing is delivered for this long.
#[track_caller]
pub(crate) fn assert_nothing_comes(consumer: &Consumer, within: Duration) {
    let came = consumer.timeout_iter(within).next();
    assert!(came.is_none(), "{came:?}");
}

/// A number below `bound` that differs from call to call.
pub(crate) fn random(bound: u64) -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    let mut bits = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) % bound
}

/// Sorted, and each only once.
pub(crate) fn distinct(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
