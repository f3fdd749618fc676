//! What the modules share: a server with a stream of its own, and a logger that remembers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use step_redis::{
    Backoff, Consumer, ConsumerBuilder, Delivery, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput,
};

use crate::common::{Proxy, Reply, Server, ServerBuilder, unique, wait_until};

/// How long something may take that has no bound of its own, on a slow, busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// What a loaded scheduler may add to a bound.
pub(crate) const SLACK: Duration = Duration::from_millis(700);

/// A server, and one stream with one consumer, whose names no other test has.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) stream_id: String,
    pub(crate) output: StreamOutput,
    tag: String,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene::on(Server::builder())
    }

    pub(crate) fn on(builder: ServerBuilder) -> Scene {
        remember_logs();
        let server = builder.start();
        // The brackets keep one tag from being the beginning of another.
        let tag = format!("<{}>", unique("fault"));
        let stream_id = format!("orders{tag}");
        Scene { server, output: StreamOutput::new(&*stream_id), stream_id, tag }
    }

    /// The server itself, with limits that suit a test.
    pub(crate) fn params(&self) -> PoolParams {
        quick(self.server.port())
    }

    pub(crate) fn stream(&self) -> StepStream {
        connect(self.params())
    }

    pub(crate) fn input(&self) -> StreamInput {
        StreamInput::new(&*self.stream_id, "group")
            .consumer(format!("consumer{}", self.tag))
            .wait_timeout(Duration::from_millis(500))
    }

    /// A consumer that tries again soon.
    pub(crate) fn consumer(&self, stream: &StepStream) -> ConsumerBuilder {
        stream.consumer(self.input()).backoff(Backoff::new(Duration::from_millis(20), Duration::from_millis(200)))
    }

    /// A consumer with every setting at its default.
    pub(crate) fn default_consumer(&self, params: PoolParams, name: &str) -> ConsumerBuilder {
        connect(params).consumer(StreamInput::new(&*self.stream_id, "group").consumer(name))
    }

    /// Where dead letters go.
    pub(crate) fn dead(&self) -> StreamOutput {
        StreamOutput::new(format!("{}:dead", self.stream_id))
    }

    /// The texts of the dead letters.
    pub(crate) fn buried(&self) -> Vec<String> {
        let entries = self.server.command(&["XRANGE", self.dead().stream_id(), "-", "+"]);
        entries.array().iter().map(|entry| entry.array()[1].array()[1].text()).collect()
    }

    /// As [`Scene::add_many`], each entry with a second field of this many bytes.
    pub(crate) fn add_large(&self, name: &str, count: usize, bytes: usize) -> Vec<String> {
        const SCRIPT: &str = "for i=0,ARGV[2]-1 do redis.call('XADD',KEYS[1],'*',\
                              'message',string.format('%s-%d',ARGV[1],i),'filling',string.rep('x',ARGV[3])) end";
        let (entries, bytes) = (count.to_string(), bytes.to_string());
        self.server.command(&["EVAL", SCRIPT, "1", &self.stream_id, name, &entries, &bytes]);
        (0..count).map(|number| format!("{name}-{number}")).collect()
    }

    /// What is pending, as owner, idle time in milliseconds, and the server's count, in the order of ids.
    pub(crate) fn pending_entries(&self) -> Vec<(String, i64, i64)> {
        let reply = self.server.command(&["XPENDING", &self.stream_id, "group", "-", "+", "100000"]);
        let entry = |entry: &Reply| (entry.array()[1].text(), entry.array()[2].int(), entry.array()[3].int());
        reply.array().iter().map(entry).collect()
    }

    /// Publishes without the crate under test.
    pub(crate) fn add(&self, text: &str) {
        self.server.command(&["XADD", &self.stream_id, "*", "message", text]);
    }

    /// Publishes `name-0`, `name-1` and so on, all in one step, and returns the texts.
    pub(crate) fn add_many(&self, name: &str, count: usize) -> Vec<String> {
        const SCRIPT: &str =
            "for i=0,ARGV[2]-1 do redis.call('XADD',KEYS[1],'*','message',string.format('%s-%d',ARGV[1],i)) end";
        self.server.command(&["EVAL", SCRIPT, "1", &self.stream_id, name, &count.to_string()]);
        (0..count).map(|number| format!("{name}-{number}")).collect()
    }

    /// How many entries of the group are pending.
    pub(crate) fn pending(&self) -> i64 {
        self.server.command(&["XPENDING", &self.stream_id, "group"]).array()[0].int()
    }

    /// How often the server has carried out a command, such as `xreadgroup` or `xgroup|create`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.server.info("commandstats");
        let Some(line) = stats.get(&format!("cmdstat_{command}")) else { return 0 };
        let calls = line.split(',').find_map(|field| field.strip_prefix("calls="));
        calls.and_then(|calls| calls.parse().ok()).expect("commandstats count calls")
    }

    /// The commands that clients send while something is done, each as the server shows it to `MONITOR`, without those that
    /// scripts call.
    pub(crate) fn sent_while<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<String>) {
        const END: &str = "the work is done";
        let mut monitor = self.server.client().unwrap();
        assert!(monitor.command(&["MONITOR"]).unwrap().is_ok());
        let outcome = work();
        self.server.command(&["ECHO", END]);
        let mut sent = Vec::new();
        loop {
            let line = monitor.receive(LIMIT).unwrap().text();
            let Some((from, command)) = line.split_once("] ") else { continue };
            if command.contains(END) {
                return (outcome, sent);
            }
            if !from.ends_with(" lua") {
                sent.push(command.to_owned());
            }
        }
    }

    /// Entries of a consumer that is gone, for anyone to claim, with these counts; see [`Server::leave_behind`].
    pub(crate) fn leave_behind(&self, counts: &[u64]) -> Vec<String> {
        self.server.leave_behind(&self.stream_id, "group", counts)
    }

    /// The addresses of the consumer's connections, as the server knows them, when it has begun to work: that of the one
    /// that reads, and that of the one for housekeeping.
    pub(crate) fn connections(&self) -> (String, String) {
        let mut found = None;
        self.server.wait_until(|server| {
            let clients = server.client_list();
            let address = |is_meant: &dyn Fn(&BTreeMap<String, String>) -> bool| {
                clients.iter().find(|client| is_meant(client)).map(|client| client["addr"].clone())
            };
            let reader = address(&|client| client["cmd"] == "xreadgroup");
            found = reader.zip(address(&|client| client["cmd"] == "eval"));
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Waits until the reader is blocked at the server.
    pub(crate) fn wait_until_blocked(&self) {
        self.server.wait_until(|server| {
            server.client_list().iter().any(|client| client["flags"].contains('b') && client["cmd"] == "xreadgroup")
        });
    }

    /// Every payload that is in the stream, and how often.
    pub(crate) fn content(&self) -> BTreeMap<String, usize> {
        let mut content = BTreeMap::new();
        for entry in self.server.command(&["XRANGE", &self.stream_id, "-", "+"]).array() {
            *content.entry(entry.array()[1].array()[1].text()).or_default() += 1;
        }
        content
    }

    /// What was logged about this stream or consumer at `level`.
    pub(crate) fn logged(&self, level: Level) -> Vec<String> {
        self.logged_with_time(level).into_iter().map(|(_, text)| text).collect()
    }

    pub(crate) fn logged_with_time(&self, level: Level) -> Vec<(Instant, String)> {
        let records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = records.iter().filter(|(_, its, text)| *its == level && text.contains(&self.tag));
        ours.map(|(time, _, text)| (*time, text.clone())).collect()
    }

    /// Asserts that an outage was told as promised: one warning, and one note that it is over.
    #[track_caller]
    pub(crate) fn assert_one_outage(&self) {
        // The line comes right behind the first entry that was read.
        wait_until(LIMIT, || !self.logged(Level::Info).is_empty());
        let (warned, noted) = (self.logged(Level::Warn), self.logged(Level::Info));
        assert_eq!((warned.len(), noted.len()), (1, 1), "{warned:?} {noted:?}");
        assert!(warned[0].contains("lost the server"), "{warned:?}");
        assert!(noted[0].contains("reads again"), "{noted:?}");
        assert!(self.logged(Level::Error).is_empty());
    }
}

/// A scene behind a proxy, and parameters that lead through it, with every limit at its default.
pub(crate) struct Line {
    pub(crate) scene: Scene,
    pub(crate) proxy: Proxy,
    pub(crate) params: PoolParams,
}

impl Line {
    pub(crate) fn plain() -> Line {
        let scene = Scene::new();
        let proxy = Proxy::start(scene.server.port());
        let params = PoolParams::new("127.0.0.1", proxy.port());
        Line { scene, proxy, params }
    }

    pub(crate) fn resp2() -> Line {
        let line = Line::plain();
        Line { params: line.params.protocol(Protocol::Resp2), ..line }
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls() -> Line {
        let certificates = crate::common::Certificates::generate();
        let scene = Scene::on(Server::builder().tls(&certificates));
        let proxy = Proxy::start(scene.server.tls_port());
        let tls = step_redis::TlsParams::new().ca_certs(certificates.ca());
        let params = PoolParams::new("127.0.0.1", proxy.port()).tls(tls);
        Line { scene, proxy, params }
    }

    /// One of each kind that the server and the build have.
    pub(crate) fn all() -> Vec<Line> {
        #[cfg(feature = "tls")]
        if crate::common::server_speaks_tls() {
            return vec![Line::plain(), Line::resp2(), Line::tls()];
        }
        vec![Line::plain(), Line::resp2()]
    }

    /// A consumer through the proxy, with every setting at its default.
    pub(crate) fn consumer(&self, name: &str) -> ConsumerBuilder {
        self.scene.default_consumer(self.params.clone(), name)
    }
}

/// Parameters whose limits suit a test.
pub(crate) fn quick(port: u16) -> PoolParams {
    PoolParams::new("127.0.0.1", port)
        .socket_timeout(Duration::from_secs(2))
        .socket_connect_timeout(Duration::from_secs(2))
        .connection_available_timeout(Duration::from_secs(1))
}

pub(crate) fn connect(params: PoolParams) -> StepStream {
    StepStream::new(StepPool::connect(params).unwrap())
}

/// Waits for the next delivery.
#[track_caller]
pub(crate) fn next(consumer: &Consumer) -> Delivery {
    consumer.timeout_iter(LIMIT).next().expect("nothing came").unwrap()
}

/// Takes and acknowledges so many deliveries; their texts in the order in which they came.
#[track_caller]
pub(crate) fn take(consumer: &Consumer, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let delivery = next(consumer);
            let text = delivery.text().unwrap().to_owned();
            delivery.ack().unwrap();
            text
        })
        .collect()
}

/// Asserts that nothing more comes for a while.
#[track_caller]
pub(crate) fn assert_quiet(consumer: &Consumer) {
    let more = consumer.timeout_iter(Duration::from_millis(300)).next();
    assert!(more.is_none(), "{more:?}");
}

/// The middle one.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

type OnceAt = (&'static str, Box<dyn FnOnce()>);

thread_local! {
    static PANIC_AT: Cell<Option<&'static str>> = const { Cell::new(None) };
    static ONCE_AT: Cell<Option<OnceAt>> = const { Cell::new(None) };
}

/// The next time this thread logs something with this text in it, the logger does this.
pub(crate) fn let_logger_do_once_at(text: &'static str, what: impl FnOnce() + 'static) {
    ONCE_AT.set(Some((text, Box::new(what))));
}

/// From now on the logger panics when this thread logs something with this text in it.
pub(crate) fn let_logger_panic_at(text: &'static str) {
    PANIC_AT.set(Some(text));
}

/// Texts at which the logger panics, whichever thread logs them.
static PANIC_EVERYWHERE_AT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on, until the value is dropped, the logger panics when any thread logs something with this text in it, which no
/// other test's lines have.
#[must_use]
pub(crate) struct PanickingLogger(String);

impl PanickingLogger {
    pub(crate) fn at(text: String) -> PanickingLogger {
        PANIC_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        PanickingLogger(text)
    }
}

impl Drop for PanickingLogger {
    fn drop(&mut self) {
        PANIC_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).retain(|text| *text != self.0);
    }
}

type Action = Arc<dyn Fn() + Send + Sync>;

static ACT_EVERYWHERE_AT: Mutex<Vec<(String, Action)>> = Mutex::new(Vec::new());

/// From now on, until the value is dropped, the logger does something when any thread logs something with this text in it,
/// which no other test's lines have.
#[must_use]
pub(crate) struct ActingLogger(String);

impl ActingLogger {
    pub(crate) fn at(text: String, action: impl Fn() + Send + Sync + 'static) -> ActingLogger {
        let action: Action = Arc::new(action);
        ACT_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).push((text.clone(), action));
        ActingLogger(text)
    }
}

impl Drop for ActingLogger {
    fn drop(&mut self) {
        ACT_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).retain(|(text, _)| *text != self.0);
    }
}

static RECORDS: Mutex<Vec<(Instant, Level, String)>> = Mutex::new(Vec::new());

struct Remember;

impl Log for Remember {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
        let text = record.args().to_string();
        let everywhere = PANIC_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let panics =
            PANIC_AT.get().is_some_and(|part| text.contains(part)) || everywhere.iter().any(|part| text.contains(part));
        records.push((Instant::now(), record.level(), text.clone()));
        drop(records);
        let actions = ACT_EVERYWHERE_AT.lock().unwrap_or_else(PoisonError::into_inner).clone();
        actions.iter().filter(|(part, _)| text.contains(part)).for_each(|(_, action)| action());
        match ONCE_AT.take() {
            Some((part, what)) if text.contains(part) => what(),
            other => ONCE_AT.set(other),
        }
        assert!(!panics, "the logger was told to panic");
    }

    fn flush(&self) {}
}

pub(crate) fn remember_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Remember).unwrap();
        log::set_max_level(LevelFilter::Trace);
    });
}
