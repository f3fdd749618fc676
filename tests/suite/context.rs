//! What a test starts with: a server of its own, and a client that reaches it in one of several ways; and the macros that
//! make a test of a function for each way.

use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use step_redis::TlsParams;
use step_redis::{Delivery, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput};

#[cfg(feature = "tls")]
use crate::common::Certificates;
use crate::common::{Reply, Server, ServerBuilder};

/// The key and the group that the tests use; each test has the whole server for itself.
pub(crate) const STREAM: &str = "orders";
pub(crate) const GROUP: &str = "billing";

/// How the client reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    Resp2Tcp,
    Resp3Tcp,
    Resp3Unix,
    /// The server shows a certificate.
    #[cfg(feature = "tls")]
    Resp2Tls,
    /// The client shows one as well.
    #[cfg(feature = "tls")]
    Resp3MutualTls,
    /// And the file of its key is encrypted.
    #[cfg(feature = "tls")]
    Resp3MutualTlsEncryptedKey,
}

impl From<Variant> for Protocol {
    fn from(variant: Variant) -> Protocol {
        match variant {
            Variant::Resp2Tcp => Protocol::Resp2,
            #[cfg(feature = "tls")]
            Variant::Resp2Tls => Protocol::Resp2,
            _ => Protocol::Resp3,
        }
    }
}

impl From<Variant> for Context {
    fn from(variant: Variant) -> Context {
        Context::start_variant(variant, |builder| builder)
    }
}

/// A server and a client of it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) stream: StepStream,
    pub(crate) server: Server,
    params: PoolParams,
    // The files are read again by every further pool.
    #[cfg(feature = "tls")]
    _certificates: Option<Certificates>,
}

impl Context {
    /// Over TCP, with further settings of the server.
    pub(crate) fn start_with(protocol: Protocol, configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Context {
        let variant = if protocol == Protocol::Resp2 { Variant::Resp2Tcp } else { Variant::Resp3Tcp };
        Context::start_variant(variant, configure)
    }

    #[cfg(feature = "tls")]
    fn start_variant(variant: Variant, configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Context {
        const KEY_PASSWORD: &str = "opens the key";
        let mutual = matches!(variant, Variant::Resp3MutualTls | Variant::Resp3MutualTlsEncryptedKey);
        if !mutual && variant != Variant::Resp2Tls {
            return Context::plain(variant, configure);
        }
        let certificates = Certificates::generate();
        let builder = Server::builder().tls(&certificates).require_client_certificate(mutual);
        let server = configure(builder).start();
        let tls = TlsParams::new().ca_certs(certificates.ca());
        let tls = match variant {
            Variant::Resp3MutualTls => tls.client_cert(certificates.client()).client_key(certificates.client_key()),
            Variant::Resp3MutualTlsEncryptedKey => tls
                .client_cert(certificates.client())
                .client_key(certificates.encrypted_client_key(KEY_PASSWORD))
                .client_key_password(KEY_PASSWORD),
            _ => tls,
        };
        let params = PoolParams::new("127.0.0.1", server.tls_port()).tls(tls).protocol(variant.into());
        Context::connect(server, params, Some(certificates))
    }

    #[cfg(not(feature = "tls"))]
    fn start_variant(variant: Variant, configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Context {
        Context::plain(variant, configure)
    }

    fn plain(variant: Variant, configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Context {
        let server = configure(Server::builder()).start();
        let params = match variant {
            Variant::Resp3Unix => PoolParams::unix(server.unix_path()),
            _ => PoolParams::new("127.0.0.1", server.port()),
        };
        Context::connect(
            server,
            params.protocol(variant.into()),
            #[cfg(feature = "tls")]
            None,
        )
    }

    fn connect(
        server: Server,
        params: PoolParams,
        #[cfg(feature = "tls")] certificates: Option<Certificates>,
    ) -> Context {
        let pool = StepPool::connect(params.clone()).unwrap_or_else(|error| panic!("{}", told(&error)));
        Context {
            stream: StepStream::new(pool),
            server,
            params,
            #[cfg(feature = "tls")]
            _certificates: certificates,
        }
    }

    /// The parameters of `stream`'s pool, for another one.
    pub(crate) fn params(&self) -> PoolParams {
        self.params.clone()
    }

    /// Another client of the same server, with its own pool.
    pub(crate) fn stream_with(&self, change: impl FnOnce(PoolParams) -> PoolParams) -> StepStream {
        StepStream::new(StepPool::connect(change(self.params())).unwrap())
    }

    /// The pool of `stream`.
    pub(crate) fn pool(&self) -> &StepPool {
        self.stream.pool()
    }

    /// The server's number of the connection that the pool lends next.
    pub(crate) fn pooled_id(&self) -> Option<u64> {
        self.pool().get().unwrap().id()
    }

    /// Consumer `one` of the group, which is created if need be.
    pub(crate) fn input(&self) -> StreamInput {
        let input = StreamInput::new(STREAM, GROUP).consumer("one").wait_timeout(Duration::from_secs(5));
        self.stream.create_input_stream(&input).unwrap();
        input
    }

    /// The stream of [`Context::input`].
    pub(crate) fn output(&self) -> StreamOutput {
        StreamOutput::new(STREAM)
    }

    /// Publishes each payload and receives it as consumer `one`.
    pub(crate) fn delivered(&self, input: &StreamInput, payloads: &[&str]) -> Vec<Delivery> {
        self.stream.publish_batch(&self.output(), payloads.iter().copied()).unwrap();
        let deliveries = self.stream.receive_batch(input, payloads.len()).unwrap();
        assert_eq!(deliveries.len(), payloads.len());
        deliveries
    }

    /// Publishes one message and receives it.
    pub(crate) fn one_delivered(&self, input: &StreamInput) -> Delivery {
        self.delivered(input, &["one coffee"]).pop().unwrap()
    }

    /// Sends a command beside the crate.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Reply {
        self.server.command(arguments)
    }

    /// The ids and owners of the group's pending entries, asked beside the crate.
    #[track_caller]
    pub(crate) fn pending(&self) -> Vec<(String, String)> {
        let reply = self.command(&["XPENDING", STREAM, GROUP, "-", "+", "10000"]);
        reply.array().iter().map(|entry| (entry.array()[0].text(), entry.array()[1].text())).collect()
    }

    /// How many entries the stream holds.
    #[track_caller]
    pub(crate) fn length(&self) -> i64 {
        self.command(&["XLEN", STREAM]).int()
    }

    /// The key's time to live in milliseconds; -1 for ever, -2 for no key.
    #[track_caller]
    pub(crate) fn time_to_live(&self, key: &str) -> i64 {
        self.command(&["PTTL", key]).int()
    }

    /// Waits until so many clients are blocked at the server.
    #[track_caller]
    pub(crate) fn wait_until_blocked(&self, clients: usize) {
        self.server.wait_until(|server| {
            server.client_list().iter().filter(|client| client["flags"].contains('b')).count() == clients
        });
    }
}

/// An error with all its causes, as a log would show it.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Runs it three times at once, and returns the time it took in the median, with all results.
pub(crate) fn median_of_three<T: Send>(run: impl Fn() -> T + Sync) -> (Duration, Vec<T>) {
    let mut trials: Vec<_> = std::thread::scope(|scope| {
        let timed = || {
            let started = Instant::now();
            let result = run();
            (started.elapsed(), result)
        };
        let threads = [(); 3].map(|()| scope.spawn(timed));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    trials.sort_by_key(|(elapsed, _)| *elapsed);
    (trials[1].0, trials.into_iter().map(|(_, result)| result).collect())
}

/// One test in the module of the variant for each function, which takes a [`Context`] or a [`Protocol`].
macro_rules! tests_of_variant {
    ($module:ident, $variant:ident: $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::context::Variant::$variant.into());
                }
            )*
        }
    };
}

/// Tests over TCP with both protocols.
macro_rules! both_protocols {
    ($($name:ident),* $(,)?) => {
        tests_of_variant! { resp2, Resp2Tcp: $($name)* }
        tests_of_variant! { resp3, Resp3Tcp: $($name)* }
    };
}

/// Tests over every kind of socket.
macro_rules! core_suite {
    ($($name:ident),* $(,)?) => {
        mod core_suite {
            $(use super::$name;)*
            tests_of_variant! { resp2_tcp, Resp2Tcp: $($name)* }
            tests_of_variant! { resp3_tcp, Resp3Tcp: $($name)* }
            tests_of_variant! { resp3_unix, Resp3Unix: $($name)* }
            #[cfg(feature = "tls")]
            tests_of_variant! { resp2_tls, Resp2Tls: $($name)* }
            #[cfg(feature = "tls")]
            tests_of_variant! { resp3_mutual_tls, Resp3MutualTls: $($name)* }
            #[cfg(feature = "tls")]
            tests_of_variant! { resp3_mutual_tls_encrypted_key, Resp3MutualTlsEncryptedKey: $($name)* }
        }
    };
}
