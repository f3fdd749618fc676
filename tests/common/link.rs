//! One connection through the fault proxy: two sockets, and in each direction a queue between a reader and a writer.

use super::acceptor::{Faults, Shared};
use super::lock;
use super::socket::Stream;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much may wait in one direction before its reader stops reading.
const QUEUE_LIMIT: usize = 4 * 1024 * 1024;

/// How a link ends when neither side has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Close,
    Reset,
    /// Only the client's side: the server knows nothing of it.
    Client,
}

/// A client's connection and its continuation to the server. The sockets close when the last handle of the link goes.
#[derive(Debug)]
pub(super) struct Link {
    /// The client's and the server's. Lane 0 leads from the first to the second, lane 1 back.
    sockets: [Stream; 2],
    state: Mutex<State>,
    changed: Condvar,
    client_left: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    /// Everything vanishes, whatever becomes of other links.
    silent: bool,
    /// What a client that was cut off has sent arrives this much later than it was read.
    late: Option<Duration>,
    lanes: [Lane; 2],
}

#[derive(Debug, Default)]
struct Lane {
    /// When each piece was read, and what is left of it.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// The sender has closed its side.
    source_ended: bool,
    /// Something has vanished, so nothing may follow.
    lossy: bool,
    /// When the last dripped bytes were sent.
    dripped: Option<Instant>,
}

/// What a writer does next.
enum Turn {
    Wait(Option<Duration>),
    Send(Vec<u8>),
    SendAndCut(Vec<u8>),
    Finish,
    End(End),
}

impl Link {
    pub(super) fn new(client: Stream, server: Stream) -> Link {
        let client_left = AtomicBool::new(false);
        Link { sockets: [client, server], state: Mutex::default(), changed: Condvar::new(), client_left }
    }

    /// Forwards in both directions until both are over.
    pub(super) fn forward(&self, shared: &Shared) {
        thread::scope(|scope| {
            scope.spawn(|| self.read(0, shared));
            scope.spawn(|| self.read(1, shared));
            scope.spawn(|| self.write(0, shared));
            self.write(1, shared);
        });
        self.count_client_out(shared);
    }

    /// Ends the link. Its threads see it at once, or within 20 ms if one of them is blocked in a write.
    pub(super) fn end(&self, end: End) {
        let mut state = lock(&self.state);
        if !matches!(state.end, None | Some(End::Client)) {
            return;
        }
        state.end = Some(end);
        let sockets = if end == End::Client { &self.sockets[..1] } else { &self.sockets };
        for socket in sockets {
            match end {
                End::Close | End::Client => socket.shutdown(Shutdown::Both),
                End::Reset => {
                    socket.reset_on_close();
                    // Wakes the reader and tells the other side nothing, so that the reset is the first it hears.
                    socket.shutdown(Shutdown::Read);
                }
            }
        }
        self.changed.notify_all();
    }

    /// From now on everything vanishes.
    pub(super) fn silence(&self) {
        lock(&self.state).silent = true;
        self.changed.notify_all();
    }

    /// Ends the client's side alone. What it has sent arrives at the server this much later than it was read here.
    pub(super) fn end_client(&self, late: Duration) {
        lock(&self.state).late = Some(late);
        self.end(End::Client);
    }

    /// By which address the server knows the client.
    pub(super) fn address_at_server(&self) -> Option<SocketAddr> {
        self.sockets[1].local_address()
    }

    /// How much waits to be forwarded to the server.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.state).lanes[0].queued
    }

    /// Makes the writers look at the faults again.
    pub(super) fn wake(&self) {
        // Under the lock, so that no writer is between its look and its wait.
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    fn read(&self, lane: usize, shared: &Shared) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let result = (&self.sockets[lane]).read(&mut buffer);
            if lane == 0 && !matches!(result, Ok(1..)) {
                self.count_client_out(shared);
            }
            let mut state = lock(&self.state);
            let swallow = lock(&shared.faults[lane]).swallow;
            match result {
                Ok(0) => state.lanes[lane].source_ended = true,
                Ok(count) => state.lanes[lane].push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Under swallow, nobody hears of a reset either.
                Err(_) if swallow => state.lanes[lane].source_ended = true,
                Err(_) => {
                    drop(state);
                    return self.end(End::Reset);
                }
            }
            self.changed.notify_all();
            while state.lanes[lane].queued > QUEUE_LIMIT && state.end.is_none() {
                state = self.wait(state, None);
            }
            if state.end == Some(End::Client) && lane == 1 && !state.lanes[lane].source_ended {
                // The server goes on, and nobody listens.
                state.lanes[lane].pieces.clear();
                state.lanes[lane].queued = 0;
                continue;
            }
            if state.lanes[lane].source_ended || state.end.is_some() {
                return;
            }
        }
    }

    fn write(&self, lane: usize, shared: &Shared) {
        let target = &self.sockets[1 - lane];
        loop {
            let mut state = lock(&self.state);
            let turn = loop {
                // What a client has sent before it was cut off is on its way.
                let is_late = lane == 0 && state.end == Some(End::Client) && !state.lanes[lane].pieces.is_empty();
                if state.end.is_some() && !is_late {
                    return;
                }
                let turn = {
                    let mut all = lock(&shared.faults[lane]);
                    let mut faults = *all;
                    faults.swallow |= state.silent;
                    faults.delay = state.late.filter(|_| is_late).unwrap_or(faults.delay);
                    let turn = state.lanes[lane].next_turn(&mut faults, lane, shared);
                    all.cut_after = faults.cut_after;
                    turn
                };
                match turn {
                    Turn::Wait(limit) => state = self.wait(state, limit),
                    turn => break turn,
                }
            };
            // The reader may have waited for room.
            self.changed.notify_all();
            drop(state);
            let (bytes, cut) = match turn {
                Turn::Send(bytes) => (bytes, false),
                Turn::SendAndCut(bytes) => (bytes, true),
                // A server that closes is gone, while a client may close its side and still read.
                Turn::Finish if lane == 1 => return self.end(End::Close),
                Turn::Finish | Turn::Wait(_) => return target.shutdown(Shutdown::Write),
                Turn::End(end) => return self.end(end),
            };
            let is_over = || lock(&self.state).end.is_some_and(|end| lane == 1 || end != End::Client);
            match target.write_unless(&bytes, is_over) {
                Ok(true) => shared.forwarded[lane].fetch_add(bytes.len() as u64, Ordering::SeqCst),
                Ok(false) => return,
                Err(_) => return self.end(End::Reset),
            };
            if cut {
                shared.cuts.fetch_add(1, Ordering::SeqCst);
                return self.end(End::Close);
            }
        }
    }

    fn wait<'state>(&self, state: MutexGuard<'state, State>, limit: Option<Duration>) -> MutexGuard<'state, State> {
        // A delay beyond any test's length is as good as none.
        let limit = limit.unwrap_or(Duration::MAX).min(Duration::from_secs(3600));
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn count_client_out(&self, shared: &Shared) {
        if !self.client_left.swap(true, Ordering::SeqCst) {
            shared.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Lane {
    fn push(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        self.pieces.push_back((Instant::now(), bytes.to_vec()));
    }

    fn next_turn(&mut self, faults: &mut Faults, lane: usize, shared: &Shared) -> Turn {
        if faults.swallow {
            self.lossy |= self.queued > 0 || self.source_ended;
            shared.swallowed[lane].fetch_add(self.queued as u64, Ordering::SeqCst);
            self.pieces.clear();
            self.queued = 0;
            return Turn::Wait(None);
        }
        if self.lossy {
            return Turn::End(End::Reset);
        }
        let now = Instant::now();
        let Some((read_at, piece)) = self.pieces.front_mut() else {
            return if self.source_ended { Turn::Finish } else { Turn::Wait(None) };
        };
        // A delay of `Duration::MAX` holds everything until the fault is changed.
        let since_read = now.duration_since(*read_at);
        if since_read < faults.delay {
            return Turn::Wait(Some(faults.delay - since_read));
        }
        let mut count = piece.len();
        if let Some((bytes, every)) = faults.drip {
            let since_sent = self.dripped.map_or(every, |sent| now.duration_since(sent));
            if since_sent < every {
                return Turn::Wait(Some(every - since_sent));
            }
            self.dripped = Some(now);
            count = count.min(bytes);
        }
        let cut = faults.cut_after.is_some_and(|left| left <= count);
        if let Some(left) = faults.cut_after.take() {
            count = count.min(left);
            faults.cut_after = (!cut).then_some(left - count);
        }
        let rest = piece.split_off(count);
        let bytes = std::mem::replace(piece, rest);
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.queued -= bytes.len();
        if cut { Turn::SendAndCut(bytes) } else { Turn::Send(bytes) }
    }
}
