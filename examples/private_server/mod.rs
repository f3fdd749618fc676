//! A Redis server of one's own, so that an example runs with one command: on a Unix socket in a temporary folder, with no
//! port, no password and nothing saved. Dropping it stops the server and removes the folder.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use step_redis::{PoolParams, StepPool};

/// The programs that can serve; the first one that is installed is taken.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// How long the server may take to answer its first `PING`. It takes some 50 ms, unless the machine is very busy.
const START_LIMIT: Duration = Duration::from_secs(10);
/// A Unix socket's path has little room. Where the system's temporary folder has a longer name, `/tmp` serves.
const LONGEST_FOLDER: usize = 60;

/// A server that runs for as long as this value lives.
pub(crate) struct PrivateServer {
    process: Child,
    folder: tempfile::TempDir,
}

impl PrivateServer {
    /// Starts a server, and waits until it answers.
    pub(crate) fn start() -> io::Result<PrivateServer> {
        PrivateServer::start_in(temporary_folder()?, &[])
    }

    /// The same with files that lie in its folder already, and with arguments that say what they are for.
    pub(crate) fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> io::Result<PrivateServer> {
        let process = spawn(folder.path(), arguments)?;
        // From here on, whatever fails, dropping the value stops the server.
        let mut server = PrivateServer { process, folder };
        server.wait_until_ready()?;
        log::info!("started a private server, process {}, on {}", server.process.id(), server.socket().display());
        Ok(server)
    }

    /// How to reach it.
    pub(crate) fn params(&self) -> PoolParams {
        PoolParams::unix(self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("server.sock")
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let started = Instant::now();
        loop {
            // A pool that connects has had its PING answered.
            let Err(error) = StepPool::connect(self.params()) else { return Ok(()) };
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("the private server ended at once ({status}): {}", self.log())));
            }
            if started.elapsed() > START_LIMIT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, error));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server had to say.
    fn log(&self) -> String {
        std::fs::read_to_string(log_file(self.folder.path())).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // There is nothing to save, so it need not be asked politely. It fails only if the server has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &Path, arguments: &[&str]) -> io::Result<Child> {
    for program in PROGRAMS {
        let output = File::create(log_file(folder))?;
        let spawned = Command::new(program)
            .args(["--port", "0", "--unixsocket", "server.sock", "--unixsocketperm", "700"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"])
            .args(arguments)
            .current_dir(folder)
            // Ctrl-C in a terminal reaches every process of the group. The server goes last, when we stop it.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            spawned => return spawned,
        }
    }
    let missing = "neither redis-server nor valkey-server is installed; `make setup` installs one, or set REDIS_URL";
    Err(io::Error::new(io::ErrorKind::NotFound, missing))
}

/// A new folder that is removed when the value is dropped.
pub(crate) fn temporary_folder() -> io::Result<tempfile::TempDir> {
    let usual = std::env::temp_dir();
    let parent = if usual.as_os_str().len() > LONGEST_FOLDER { Path::new("/tmp") } else { &usual };
    tempfile::Builder::new().prefix("step-redis-").tempdir_in(parent)
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("server.log")
}
