//! The faults, chosen at random and written down.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Direction, Proxy, Server};
use crate::tools::{Random, say};

/// Tortures the server and the network.
pub(crate) struct Torturer<'world> {
    pub(crate) server: &'world Server,
    pub(crate) proxy: &'world Proxy,
    pub(crate) history: &'world History,
    pub(crate) random: Random,
}

impl Torturer<'_> {
    /// One fault after the other, each for a moment.
    pub(crate) fn torture(&mut self, duration: Duration) {
        let started = Instant::now();
        self.begin();
        while started.elapsed() < duration {
            self.one_fault();
            thread::sleep(Duration::from_millis(self.random.between(20, 400)));
        }
        self.history.note("all is well again");
        self.proxy.heal();
    }

    /// What every run is to have, whatever its seed: messages without an answer, and messages that cannot be sent.
    fn begin(&self) {
        let (proxy, pause) = (self.proxy, Duration::from_millis(900));
        self.history.note("every answer is swallowed, and then every connection refused");
        proxy.swallow(Direction::ToClient, true);
        thread::sleep(pause);
        proxy.refuse(true);
        proxy.reset();
        thread::sleep(pause);
        proxy.heal();
    }

    fn one_fault(&mut self) {
        let random = &mut self.random;
        let direction = [Direction::ToServer, Direction::ToClient, Direction::Both][random.below(3)];
        let pause = Duration::from_millis(random.between(20, 900));
        let (server, proxy, history) = (self.server, self.proxy, self.history);
        // The network's faults pile up at times.
        if random.one_in(3) {
            proxy.heal();
        }
        match random.below(14) {
            0 | 1 => {
                history.note(&format!("the server is killed and comes back after {pause:?}"));
                server.kill();
                thread::sleep(pause / 2);
                server.restart();
            }
            2 => {
                history.note(&format!("the server process is stopped for {pause:?}"));
                server.pause();
                thread::sleep(pause);
                server.resume();
            }
            3 => {
                history.note("CLIENT KILL of all");
                server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            }
            4 => {
                let clients = server.client_list();
                if !clients.is_empty() {
                    let id = &clients[random.below(clients.len())]["id"];
                    history.note(&format!("CLIENT KILL of {id}"));
                    // It may have left by itself.
                    let _ = server.try_command(&["CLIENT", "KILL", "ID", id]);
                }
            }
            5 => {
                history.note(&format!("CLIENT PAUSE {pause:?}"));
                server.command(&["CLIENT", "PAUSE", &pause.as_millis().to_string(), "WRITE"]);
            }
            6 | 7 => {
                let bytes = random.below(3000);
                history.note(&format!("cut after {bytes} bytes {direction:?}"));
                proxy.cut_after(direction, bytes);
            }
            8 => {
                history.note("reset");
                proxy.reset();
            }
            9 => {
                history.note("close");
                proxy.close();
            }
            10 => {
                let bytes = 1 + random.below(200);
                history.note(&format!("drip of {bytes} bytes {direction:?} for {pause:?}"));
                proxy.drip(direction, bytes, Duration::from_millis(random.between(1, 10)));
                thread::sleep(pause);
            }
            11 => {
                let delay = Duration::from_millis(random.between(1, 150));
                history.note(&format!("delay of {delay:?} {direction:?} for {pause:?}"));
                proxy.delay(direction, delay);
                thread::sleep(pause);
            }
            12 => {
                history.note(&format!("swallow {direction:?} for {pause:?}"));
                proxy.swallow(direction, true);
                thread::sleep(pause);
                proxy.heal();
            }
            _ => {
                history.note(&format!("refuse for {pause:?}"));
                proxy.refuse(true);
                proxy.reset();
                thread::sleep(pause);
                proxy.heal();
            }
        }
    }
}

/// The faults so far; printed when the test fails.
pub(crate) struct History {
    seed: u64,
    started: Instant,
    faults: Mutex<Vec<(Duration, String)>>,
}

impl History {
    pub(crate) fn new(seed: u64) -> History {
        History { seed, started: Instant::now(), faults: Mutex::default() }
    }

    fn note(&self, fault: &str) {
        self.faults.lock().unwrap().push((self.started.elapsed(), fault.to_owned()));
    }

    pub(crate) fn len(&self) -> usize {
        self.faults.lock().unwrap().len()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if thread::panicking() {
            for (at, fault) in self.faults.lock().unwrap().iter() {
                say(&format!("{:8.3} s  {fault}", at.as_secs_f64()));
            }
            say(&format!("{:8.3} s  the failure; CHAOS_SEED={}", self.started.elapsed().as_secs_f64(), self.seed));
        }
    }
}
