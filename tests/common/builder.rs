//! What a test's server is started with: ports, TLS, users, and lines of its configuration file.

use super::launcher::find_program;
use super::server::Server;
use super::{Certificates, free_port};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The ACL user of the test's own connection, who may do everything whatever happens to the default user.
pub(super) const ADMIN: &str = "test-admin";

/// What to start. Later settings win over earlier ones.
#[derive(Debug, Clone, Default)]
pub struct ServerBuilder {
    pub(super) unix_only: bool,
    tls: Option<Certificates>,
    require_client_certificate: bool,
    pub(super) password: Option<String>,
    lines: Vec<String>,
}

impl ServerBuilder {
    /// A free port on 127.0.0.1, beside the Unix socket that every server has. The default.
    pub fn tcp(mut self) -> Self {
        self.unix_only = false;
        self
    }

    /// The Unix socket only, no TCP port.
    pub fn unix(mut self) -> Self {
        self.unix_only = true;
        self
    }

    /// A TLS port as well, with the server certificate and the CA of `certificates`.
    pub fn tls(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(certificates.clone());
        self
    }

    /// Whether the TLS port demands a certificate of the client, signed by the CA. Defaults to false.
    pub fn require_client_certificate(mut self, required: bool) -> Self {
        self.require_client_certificate = required;
        self
    }

    /// A line of the configuration file. The value may be several arguments; an empty one is written as `""`.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        let value = if value.is_empty() { r#""""# } else { value };
        self.lines.push(format!("{key} {value}"));
        self
    }

    /// Persistence that survives SIGKILL: an append-only file, synced before each reply.
    pub fn append_only(self) -> Self {
        self.config("appendonly", "yes").config("appendfsync", "always")
    }

    /// The password of the default user; [`Server::url`] contains it. For a password without spaces and quotes.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.config("requirepass", password)
    }

    /// An ACL user, such as `user("reader", "on >secret ~orders:* +@read")`. `user("default", "off")` works too.
    pub fn user(self, name: &str, rules: &str) -> Self {
        self.config("user", &format!("{name} {rules}"))
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    ///
    /// When no server is installed, or when it does not start; then with the end of its log.
    pub fn start(self) -> Server {
        // A port may be taken between its choice and the server's start; then another is chosen.
        for _ in 0..20 {
            let port = if self.unix_only { 0 } else { free_port() };
            let tls_port = self.tls.as_ref().map(|_| free_port());
            match Server::try_start(self.clone(), port, tls_port) {
                Ok(server) => return server,
                Err(reason) if reason.contains("Address already in use") => {}
                Err(reason) => panic!("{reason}"),
            }
        }
        panic!("every chosen port was taken by the time the server started");
    }

    pub(super) fn configuration(&self, port: u16, tls_port: Option<u16>, directory: &Path) -> String {
        let directory = directory.display();
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\nunixsocket {directory}/redis.sock\nunixsocketperm 700\n\
             dir {directory}\nlogfile {directory}/redis.log\nloglevel verbose\n\
             save \"\"\nappendonly no\nuser {ADMIN} on nopass ~* &* +@all\n"
        );
        if let (Some(certificates), Some(tls_port)) = (&self.tls, tls_port) {
            let demand = if self.require_client_certificate { "yes" } else { "no" };
            text += &format!(
                "tls-port {tls_port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {demand}\n",
                certificates.server().display(),
                certificates.server_key().display(),
                certificates.ca().display(),
            );
        }
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Whether the program to test against was built with TLS: a Redis 6.2 that somebody has compiled often was not.
pub fn server_speaks_tls() -> bool {
    // With nowhere to listen it ends at once, in either case.
    let tried = Command::new(server_program()).args(["--port", "0", "--tls-port", "0", "--save", ""]).output();
    let output = tried.expect("the server's program can be run");
    !String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).contains("Bad directive")
}

/// The program to test against. `STEP_TEST_SERVER` names another one, for tests with several versions.
pub(super) fn server_program() -> PathBuf {
    if let Some(program) = std::env::var_os("STEP_TEST_SERVER") {
        let program = program.to_string_lossy();
        return find_program(&program).unwrap_or_else(|| panic!("STEP_TEST_SERVER: there is no program {program:?}"));
    }
    find_program("redis-server")
        .or_else(|| find_program("valkey-server"))
        .expect("redis-server not found: install it (apt-get install redis-server), or valkey-server")
}
