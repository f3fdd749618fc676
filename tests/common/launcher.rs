//! Starts child processes that end with this process, and directories that go with it, even when it is killed.
//!
//! Processes: `setpriv --pdeathsig KILL` asks the kernel to kill the child when its parent dies. The kernel means the
//! parent *thread*: a server started from a test's short-lived thread would be killed when that thread ends. So one
//! thread, which lives as long as the process, starts them all.
//!
//! Directories: all lie in one, and a small shell (the guardian) holds the reading end of a pipe that nobody writes to.
//! The pipe ends with this process, however that happens, and then the guardian removes the directory.

use super::lock;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use tempfile::TempDir;

/// Reads until the pipe ends, then removes the directory. A server that is being killed may still add a file while
/// `rm` runs, hence the repetition.
const GUARDIAN: &str = r#"
while read -r line; do :; done
tries=0
while [ -e "$1" ] && [ "$tries" -lt 50 ]; do
    rm -rf -- "$1" 2>/dev/null || sleep 0.1
    tries=$((tries + 1))
done
"#;

type Job = (Command, Sender<io::Result<Child>>);

/// Spawns the command from the launcher thread; see the module's text for why.
pub fn spawn(command: Command) -> io::Result<Child> {
    static LAUNCHER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        thread::Builder::new()
            .name("launcher".into())
            .spawn(move || {
                for (mut command, answer) in queue {
                    // Whoever asked waits for the answer, unless it has panicked.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("the launcher thread starts");
        Mutex::new(jobs)
    });
    let (answer, result) = channel();
    lock(launcher).send((command, answer)).expect("the launcher thread lives as long as the process");
    result.recv().expect("the launcher thread answers every job")
}

/// A command for a program that is killed when this process ends. Start it with [`spawn`]. Its pid is the program's own.
///
/// Without a `setpriv` that can do this (util-linux has it), the program outlives a test process that is killed.
pub fn end_with_parent(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let possible = *SETPRIV.get_or_init(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    if !possible {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Sends a signal by name ("STOP", "CONT", "TERM", "KILL") to a process.
///
/// Through the shell's own `kill`: the program of that name is missing on small systems, and a system call of our own
/// would need `unsafe`.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid.to_string()]).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "signal {name} to process {pid}: {status:?}");
}

/// A new directory that is removed when dropped, or at the latest when this process ends.
///
/// Its path is short, because the path of a Unix socket is limited to 107 bytes.
pub fn scratch_directory(prefix: &str) -> TempDir {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    let root = ROOT.get_or_init(guarded_root);
    let directory = tempfile::Builder::new().prefix(prefix).rand_bytes(4).tempdir_in(root);
    directory.unwrap_or_else(|error| panic!("cannot create a directory in {}: {error}", root.display()))
}

// The guardian outlives this process, so there is nobody to wait for it here.
#[allow(clippy::zombie_processes)]
fn guarded_root() -> PathBuf {
    let short = Path::new("/tmp");
    let parent = if short.is_dir() { short.to_path_buf() } else { std::env::temp_dir() };
    let root = tempfile::Builder::new().prefix("step-test-").tempdir_in(&parent);
    let root = root.unwrap_or_else(|error| panic!("cannot create a directory in {}: {error}", parent.display())).keep();
    let mut guardian = Command::new("sh");
    guardian.args(["-c", GUARDIAN, "sh"]).arg(&root);
    guardian.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // In a group of its own it survives a test runner that kills the whole group of a test.
    guardian.process_group(0);
    let mut guardian = guardian.spawn().expect("sh starts");
    // The pipe must stay open until the process ends.
    std::mem::forget(guardian.stdin.take());
    root
}

/// Where a program lies: a path as it is, a name looked up in PATH and in the usual places that PATH may lack.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return is_file(Path::new(name)).then(|| name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|directory| directory.join(name)).find(|file| is_file(file))
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}
