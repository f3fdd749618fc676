//! One setter for each field of [`PoolParams`], in the fields' order; the fields' docs say what they do.

use std::path::PathBuf;
use std::time::Duration;

use super::{PoolParams, Protocol, TlsParams};

impl PoolParams {
    /// Sets [`PoolParams::host`].
    pub fn host(mut self, host: impl Into<String>) -> PoolParams {
        self.host = host.into();
        self
    }

    /// Sets [`PoolParams::port`].
    pub fn port(mut self, port: u16) -> PoolParams {
        self.port = port;
        self
    }

    /// Sets [`PoolParams::unix_socket`].
    pub fn unix_socket(mut self, path: impl Into<PathBuf>) -> PoolParams {
        self.unix_socket = Some(path.into());
        self
    }

    /// Sets [`PoolParams::username`].
    pub fn username(mut self, username: impl Into<String>) -> PoolParams {
        self.username = Some(username.into());
        self
    }

    /// Sets [`PoolParams::password`].
    pub fn password(mut self, password: impl Into<String>) -> PoolParams {
        self.password = Some(password.into());
        self
    }

    /// Sets [`PoolParams::db`].
    pub fn db(mut self, db: i64) -> PoolParams {
        self.db = db;
        self
    }

    /// Sets [`PoolParams::socket_timeout`].
    pub fn socket_timeout(mut self, limit: Duration) -> PoolParams {
        self.socket_timeout = limit;
        self
    }

    /// Sets [`PoolParams::socket_connect_timeout`].
    pub fn socket_connect_timeout(mut self, limit: Duration) -> PoolParams {
        self.socket_connect_timeout = limit;
        self
    }

    /// Sets [`PoolParams::socket_keep_idle`].
    pub fn socket_keep_idle(mut self, silence: Duration) -> PoolParams {
        self.socket_keep_idle = silence;
        self
    }

    /// Sets [`PoolParams::socket_keep_alive`].
    pub fn socket_keep_alive(mut self, interval: Duration) -> PoolParams {
        self.socket_keep_alive = interval;
        self
    }

    /// Sets [`PoolParams::socket_keep_cnt`].
    pub fn socket_keep_cnt(mut self, probes: u32) -> PoolParams {
        self.socket_keep_cnt = probes;
        self
    }

    /// Sets [`PoolParams::tls`].
    pub fn tls(mut self, tls: TlsParams) -> PoolParams {
        self.tls = Some(tls);
        self
    }

    /// Sets [`PoolParams::health_check_interval`].
    pub fn health_check_interval(mut self, interval: Duration) -> PoolParams {
        self.health_check_interval = interval;
        self
    }

    /// Sets [`PoolParams::max_connections`].
    pub fn max_connections(mut self, connections: u32) -> PoolParams {
        self.max_connections = connections;
        self
    }

    /// Sets [`PoolParams::connection_available_timeout`].
    pub fn connection_available_timeout(mut self, limit: Duration) -> PoolParams {
        self.connection_available_timeout = limit;
        self
    }

    /// Sets [`PoolParams::protocol`].
    pub fn protocol(mut self, protocol: Protocol) -> PoolParams {
        self.protocol = protocol;
        self
    }

    /// Sets [`PoolParams::client_name`].
    pub fn client_name(mut self, name: impl Into<String>) -> PoolParams {
        self.client_name = name.into();
        self
    }

    /// Sets [`PoolParams::max_reply`].
    pub fn max_reply(mut self, bytes: usize) -> PoolParams {
        self.max_reply = bytes;
        self
    }
}
