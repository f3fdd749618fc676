//! A real Redis (or Valkey) server as a value: started in a directory of its own, on free ports, and gone when dropped.
//!
//! ```ignore
//! let server = Server::start();
//! let server = Server::builder().unix().append_only().config("maxmemory", "10mb").start();
//! let server = Server::builder().tls(&Certificates::generate()).require_client_certificate(true).start();
//! server.command(&["XADD", "stream", "*", "message", "text"]);
//! server.kill();
//! server.restart();
//! ```
//!
//! Every method takes `&self`, so that a test can torture the server from another thread while clients use it.
//!
//! The test's own commands go through a Unix socket as an ACL user of their own. So they work whatever a test does to the
//! default user, its password, the TCP port or TLS, and a server of another test that has snatched the port is never
//! mistaken for ours. That connection is left out of [`Server::client_list`].

use super::builder::{ADMIN, ServerBuilder, server_program};
use super::launcher::{end_with_parent, scratch_directory, signal, spawn};
use super::resp::{Reply, RespClient};
use super::{lock, wait_until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start, a graceful end, or a condition on the server may take on a slow, busy machine.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Process {
    child: Option<Child>,
    paused: bool,
    /// Where in the log the present start begins.
    log_start: usize,
}

/// A running server; see the module's text.
#[derive(Debug)]
pub struct Server {
    builder: ServerBuilder,
    port: u16,
    tls_port: Option<u16>,
    process: Mutex<Process>,
    admin: Mutex<Option<RespClient>>,
    // Last, so that the process has ended when the directory goes.
    directory: TempDir,
}

impl Server {
    /// A server with a TCP port and a Unix socket, without persistence.
    pub fn start() -> Server {
        Server::builder().start()
    }

    /// A server with other settings.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// The process id. Panics when the server is not running.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        lock(&self.process).child.as_ref().expect("the server is not running").id()
    }

    /// The plain TCP port on 127.0.0.1; 0 under `unix()`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The TLS port on 127.0.0.1. Panics without `tls(..)`.
    #[track_caller]
    pub fn tls_port(&self) -> u16 {
        self.tls_port.expect("the server was started without tls(..)")
    }

    /// The Unix socket, which every server has.
    pub fn unix_path(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// `redis://127.0.0.1:port`, or `unix:///path` under `unix()`; with the default user's password, if there is one.
    pub fn url(&self) -> String {
        match (&self.builder.password, self.builder.unix_only) {
            (None, false) => format!("redis://127.0.0.1:{}", self.port),
            (Some(password), false) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            (None, true) => format!("unix://{}", self.unix_path().display()),
            (Some(password), true) => format!("unix://{}?password={password}", self.unix_path().display()),
        }
    }

    /// `rediss://127.0.0.1:port` of the TLS port, with the default user's password, if there is one.
    pub fn tls_url(&self) -> String {
        let credentials = self.builder.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("rediss://{credentials}127.0.0.1:{}", self.tls_port())
    }

    /// The server's own directory: its socket, log and data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the server has logged since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("redis.log")).unwrap_or_default()
    }

    /// Stops the process with SIGSTOP: connections stay open, nothing is answered. Returns once it has stopped.
    pub fn pause(&self) {
        let pid = self.pid();
        signal(pid, "STOP");
        lock(&self.process).paused = true;
        wait_until(LIMIT, || is_stopped(pid));
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
        lock(&self.process).paused = false;
    }

    /// Kills the process with SIGKILL and waits for its end. Does nothing when it is not running.
    pub fn kill(&self) {
        let child = lock(&self.process).child.take();
        if let Some(mut child) = child {
            // This also ends a paused process.
            let _ = child.kill();
            child.wait().expect("a killed server can be waited for");
        }
        *lock(&self.admin) = None;
    }

    /// Asks the server to end in an orderly way (SHUTDOWN) and waits for it; kills it when it does not. A paused server is
    /// resumed for it. Does nothing when it is not running.
    pub fn shutdown(&self) {
        if lock(&self.process).paused && self.is_running() {
            self.resume();
        }
        if self.is_running() && self.try_command(&["SHUTDOWN"]).is_err() {
            let started = Instant::now();
            while self.is_running() && started.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(2));
            }
        }
        self.kill();
    }

    /// Starts the server again with the same ports, socket and data, and waits until it answers. A running one is shut
    /// down first. What CONFIG SET and ACL SETUSER changed is forgotten.
    pub fn restart(&self) {
        self.restart_without_waiting();
        self.wait_until_ready().unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// Like [`Server::restart`], but returns before the server answers: for tests of the time in between, such as LOADING.
    /// That is slowed down by `config("key-load-delay", "100")`, in microseconds for each command of the append-only file;
    /// the server answers only once in 1024 of them.
    pub fn restart_without_waiting(&self) {
        self.shutdown();
        self.launch().unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// Whether the process is there, paused or not.
    pub fn is_running(&self) -> bool {
        lock(&self.process).child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a command through the test's own connection.
    ///
    /// # Panics
    ///
    /// When the server answers with an error or not at all; [`Server::try_command`] returns both.
    #[track_caller]
    pub fn command<A: AsRef<[u8]>>(&self, arguments: &[A]) -> Reply {
        match self.try_command(arguments) {
            Ok(Reply::Error(message)) => panic!("{}: {message}", shown(arguments)),
            Ok(reply) => reply,
            Err(error) => panic!("{}: {error}", shown(arguments)),
        }
    }

    /// Sends a command through the test's own connection, and waits at most 10 seconds for its reply. An error of the
    /// server is `Ok(Reply::Error(..))`. Nothing is ever sent twice.
    pub fn try_command<A: AsRef<[u8]>>(&self, arguments: &[A]) -> io::Result<Reply> {
        let mut admin = lock(&self.admin);
        // The server may have been restarted, or have been told to kill its clients.
        let kept = admin.take().filter(|client| !client.is_closed());
        let mut client = kept.map_or_else(|| self.client(), Ok)?;
        let reply = client.command(arguments)?;
        // A connection that has killed itself is closed some time after its reply.
        let killed = arguments.get(1).is_some_and(|word| word.as_ref().eq_ignore_ascii_case(b"KILL"));
        *admin = Some(client).filter(|_| !killed);
        Ok(reply)
    }

    /// A connection of the test's own, for commands that block or that belong to one connection.
    pub fn client(&self) -> io::Result<RespClient> {
        let mut client = RespClient::connect_unix(&self.unix_path())?;
        match client.command(&["AUTH", ADMIN, "any"])? {
            Reply::Error(message) => Err(io::Error::other(message)),
            _ => Ok(client),
        }
    }

    /// Publishes entries, `left-0` and so on, and leaves them to a consumer `gone` of the group, all in one step: as delivered
    /// to it with these counts, and idle for 100 s. The texts.
    ///
    /// The group is created if there is none. Everything before must have been delivered.
    pub fn leave_behind(&self, stream_id: &str, group: &str, counts: &[u64]) -> Vec<String> {
        const SCRIPT: &str = "\
            redis.pcall('XGROUP','CREATE',KEYS[1],ARGV[1],'0','MKSTREAM') \
            for i=2,#ARGV do \
              local id=redis.call('XADD',KEYS[1],'*','message',string.format('left-%d',i-2)) \
              local read=redis.call('XREADGROUP','GROUP',ARGV[1],'gone','COUNT',1,'STREAMS',KEYS[1],'>') \
              assert(read[1][2][1][1]==id) \
              redis.call('XCLAIM',KEYS[1],ARGV[1],'gone',0,id,'IDLE',100000,'RETRYCOUNT',ARGV[i],'JUSTID') \
            end";
        let counts_as_text: Vec<String> = counts.iter().map(u64::to_string).collect();
        let mut command = vec!["EVAL", SCRIPT, "1", stream_id, group];
        command.extend(counts_as_text.iter().map(String::as_str));
        self.command(&command);
        (0..counts.len()).map(|number| format!("left-{number}")).collect()
    }

    /// A section of INFO, such as `stats` or `commandstats`.
    #[track_caller]
    pub fn info(&self, section: &str) -> BTreeMap<String, String> {
        let text = self.command(&["INFO", section]).text();
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.into(), value.into())).collect()
    }

    /// CLIENT LIST without the test's own connections: for each client the fields by name (`id`, `name`, `flags`, `cmd`,
    /// `age`, `idle`, ...).
    #[track_caller]
    pub fn client_list(&self) -> Vec<BTreeMap<String, String>> {
        let text = self.command(&["CLIENT", "LIST"]).text();
        let clients = text.lines().map(|line| {
            let fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>()
        });
        clients.filter(|client| client.get("user").is_none_or(|user| user != ADMIN)).collect()
    }

    /// How many clients are connected, without the test's own connections.
    #[track_caller]
    pub fn connected_clients(&self) -> usize {
        self.client_list().len()
    }

    /// Waits until the condition holds. Panics after 20 seconds, naming the line of the call.
    #[track_caller]
    pub fn wait_until(&self, mut condition: impl FnMut(&Server) -> bool) {
        wait_until(LIMIT, || condition(self));
    }

    pub(super) fn try_start(builder: ServerBuilder, port: u16, tls_port: Option<u16>) -> Result<Server, String> {
        let server = Server {
            builder,
            port,
            tls_port,
            process: Mutex::default(),
            admin: Mutex::default(),
            directory: scratch_directory("server-"),
        };
        server.launch()?;
        server.wait_until_ready()?;
        Ok(server)
    }

    fn launch(&self) -> Result<(), String> {
        let directory = self.directory.path();
        let file = directory.join("redis.conf");
        fs::write(&file, self.builder.configuration(self.port, self.tls_port, directory))
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        // What it says before the log is open: a bad line of the configuration, for instance.
        let output = File::create(directory.join("output")).map_err(|error| error.to_string())?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let mut command = end_with_parent(&server_program());
        command.arg(&file).stdin(Stdio::null()).stdout(output).stderr(errors);
        let log_start = self.log().len();
        let child = spawn(command).map_err(|error| format!("the server cannot be started: {error}"))?;
        *lock(&self.process) = Process { child: Some(child), paused: false, log_start };
        Ok(())
    }

    fn wait_until_ready(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if !self.is_running() {
                return Err(format!("the server ended while starting\n{}", self.last_words()));
            }
            // Refused before the socket is there, an error while the data are being loaded.
            let reply = self.try_command(&["PING"]);
            if reply.as_ref().is_ok_and(|reply| !reply.is_error()) {
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                return Err(format!("the server did not answer within {LIMIT:?}: {reply:?}\n{}", self.last_words()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn last_words(&self) -> String {
        let output = fs::read_to_string(self.directory.path().join("output")).unwrap_or_default();
        let log = self.log();
        let log = log.get(lock(&self.process).log_start..).unwrap_or(&log);
        let lines: Vec<&str> = output.lines().chain(log.lines()).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a stop signal has taken effect; where there is no /proc, that is taken for granted.
fn is_stopped(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')),
        Err(_) => true,
    }
}

fn shown<A: AsRef<[u8]>>(arguments: &[A]) -> String {
    let words: Vec<_> = arguments.iter().map(|argument| String::from_utf8_lossy(argument.as_ref())).collect();
    words.join(" ")
}
