//! How callers hand each other the connection: who waits, who sends for all, and who is told what. No clock and no socket in
//! here, so that every order of the steps can be tried (`model.rs`).
//!
//! A message is *in the queue* until a turn takes it, which happens when the connection is ready and right before the request
//! leaves. Until then its caller may withdraw it and knows that nothing was sent.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Answer, Batch, Woken};
use super::queue::{Gathered, Place, Queue, Turn};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// A caller whose turn is under way lets other threads run this many times before it sleeps, if round trips are short: being
/// put to sleep and woken again costs more than a message does.
const YIELDS: usize = if cfg!(step_redis_loom) { 0 } else { 8 };
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(1);

/// One caller with one message, and what it does when it is its turn.
pub(super) trait Caller {
    type Answer: Clone;
    /// Until when it can wait.
    type Until: Copy + Ord;

    fn until(&self) -> Self::Until;

    fn encode(&self, encoded: &mut Vec<u8>);

    /// Waits at `condvar` to be called, for `linger` if it is given, and as long as it can wait at all.
    fn wait<'g, T>(
        &self,
        mutex: &'g Mutex<T>,
        condvar: &Condvar,
        guard: MutexGuard<'g, T>,
        linger: Option<Duration>,
    ) -> (MutexGuard<'g, T>, Wake);

    /// Sees to it that the connection can be used.
    fn prepare(&mut self) -> Result<(), NotReady<Self::Answer>>;

    /// Whether a round trip may take longer than it can wait.
    fn lacks_time(&self) -> bool;

    /// Sends the request, and adds the answer to each of its messages.
    fn round_trip(&mut self, request: &[u8], messages: usize, answers: &mut Vec<Self::Answer>) -> RoundTrip;
}

/// Why a caller woke up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wake {
    Called,
    Lingered,
    Late,
}

/// Why there is no connection to send on.
pub(super) enum NotReady<A> {
    /// For nobody.
    ForAll(A),
    /// This caller had no time to wait for one. Others may have.
    Late(A),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    pub(super) took: Duration,
    /// It brought somebody what he wanted.
    pub(super) succeeded: bool,
}

/// What a caller is told about its message.
#[derive(Debug, PartialEq)]
pub(super) enum Told<A> {
    Answer(A),
    /// Its time was up before the message was sent. It never will be.
    NotSent,
    /// Its time was up while the message was under way.
    Late,
    /// The caller that was to hear the answer is gone.
    Abandoned,
}

/// The queue in front of one connection.
pub(super) struct HandOver<A, U> {
    queue: Mutex<Queue<A, U>>,
    room: Condvar,
}

impl<A: Clone, U: Copy + Ord> HandOver<A, U> {
    pub(super) fn new(most_messages: usize) -> HandOver<A, U> {
        HandOver { queue: Mutex::new(Queue::new(most_messages)), room: Condvar::new() }
    }

    /// Has the caller's message sent, by this caller or another one, and waits for what becomes of it.
    pub(super) fn send(&self, caller: &mut impl Caller<Answer = A, Until = U>) -> Told<A> {
        let mut queue = lock(&self.queue);
        while queue.is_full() {
            let wake;
            (queue, wake) = caller.wait(&self.queue, &self.room, queue, None);
            if wake == Wake::Late {
                return Told::NotSent;
            }
        }
        let place = queue.add(caller.until(), |encoded| caller.encode(encoded));
        let batch = Arc::clone(&queue.batch);
        let mut lingered = false;
        loop {
            let mut linger = None;
            // Otherwise the message is under way already.
            if queue.holds(&batch) {
                match queue.turn {
                    Turn::Free | Turn::Open if lingered || queue.is_complete() => {
                        match self.lead(queue, &batch, place, caller) {
                            Some(told) => return told,
                            None => queue = lock(&self.queue),
                        }
                        // Another one leads now, or has done.
                    }
                    // Callers who are likely on their way save a whole round trip if they are waited for a moment.
                    Turn::Free => {
                        queue.turn = Turn::Open;
                        linger = Some(queue.linger());
                    }
                    Turn::Open | Turn::Taken => {}
                }
            }
            let yields = if queue.last_round_trip < SHORT_ROUND_TRIP { YIELDS } else { 0 };
            drop(queue);
            match batch.wait(caller, place, yields, linger) {
                Woken::Done => return told(&batch, place),
                Woken::YourTurn => {
                    queue = lock(&self.queue);
                    queue.turn = Turn::Free;
                }
                Woken::Lingered => {
                    queue = lock(&self.queue);
                    lingered = true;
                }
                Woken::Late => return self.leave(&batch, place),
            }
        }
    }

    /// Publishes all that has gathered, this caller's message among it, and passes the turn on. `None`: a caller with more time
    /// was told to do it.
    ///
    /// A panic, such as one of a TLS verifier, goes on when the turn is over, so that nobody waits for a caller who is gone.
    fn lead<C>(
        &self,
        mut queue: MutexGuard<'_, Queue<A, U>>,
        batch: &Batch<A>,
        place: Place,
        caller: &mut C,
    ) -> Option<Told<A>>
    where
        C: Caller<Answer = A, Until = U>,
    {
        queue.turn = Turn::Taken;
        drop(queue);
        let prepared = catch_unwind(AssertUnwindSafe(|| caller.prepare()));
        let lacks_time = matches!(prepared, Ok(Ok(()))) && caller.lacks_time();
        let queue = lock(&self.queue);
        match prepared {
            Ok(Ok(())) => {}
            Ok(Err(NotReady::ForAll(answer))) => {
                self.refuse_all(queue, batch, answer);
                return Some(told(batch, place));
            }
            Ok(Err(NotReady::Late(answer))) => {
                self.withdraw(queue, place, true);
                return Some(Told::Answer(answer));
            }
            Err(panic) => {
                self.withdraw(queue, place, true);
                resume_unwind(panic);
            }
        }
        // When the caller who reads the answers gives up, it is over for all of the request.
        let longest = queue.most_patient.filter(|(_, until)| lacks_time && *until > caller.until());
        if let Some((position, _)) = longest {
            batch.pass_turn_to(position);
            return None;
        }

        let gathered = self.take(queue);
        let messages = gathered.messages();
        let mut answers = Vec::with_capacity(messages);
        let round_trip =
            catch_unwind(AssertUnwindSafe(|| caller.round_trip(&gathered.encoded, messages, &mut answers)));
        let (round_trip, panic) = match round_trip {
            Ok(round_trip) => (round_trip, None),
            Err(panic) => (RoundTrip::default(), Some(panic)),
        };
        self.end_turn(batch, gathered, answers, round_trip);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        Some(told(batch, place))
    }

    /// Takes all that has gathered from the queue.
    fn take(&self, mut queue: MutexGuard<'_, Queue<A, U>>) -> Gathered {
        let was_full = queue.is_full();
        let gathered = queue.take();
        self.unlock(queue, was_full);
        gathered
    }

    /// Passes the turn on and answers the callers. Those whose answers are missing learn that they will never come.
    fn end_turn(&self, batch: &Batch<A>, gathered: Gathered, answers: Vec<A>, round_trip: RoundTrip) {
        let mut queue = lock(&self.queue);
        // After a failure nobody is waited for.
        queue.expected = if round_trip.succeeded { gathered.messages() + queue.gathered.messages() } else { 0 };
        queue.last_round_trip = round_trip.took;
        let Gathered { encoded, withdrawn, .. } = gathered;
        queue.gathered.reuse(encoded);
        let next = queue.next_leaders();
        drop(queue);
        // First the next turn, which has the server wait; then the callers of this one.
        if let Some(next) = next {
            next.pass_turn();
        }
        batch.finish(answers, withdrawn);
    }

    /// Gives everybody in the queue this answer, and ends the turn. All of it under the queue's lock, so that nobody takes
    /// a message for sent that is not.
    fn refuse_all(&self, mut queue: MutexGuard<'_, Queue<A, U>>, batch: &Batch<A>, answer: A) {
        let was_full = queue.is_full();
        let gathered = queue.take();
        queue.expected = 0;
        queue.turn = Turn::Free;
        batch.finish(vec![answer; gathered.messages()], gathered.withdrawn);
        self.unlock(queue, was_full);
    }

    /// What a caller knows whose time is up.
    fn leave(&self, batch: &Arc<Batch<A>>, place: Place) -> Told<A> {
        let queue = lock(&self.queue);
        if !queue.holds(batch) {
            drop(queue);
            return batch.answer(place).map_or(Told::Late, Told::from);
        }
        // It may have been told to lead at the last moment, or be the one on whom the others rely to stop waiting for more.
        let has_turn = batch.take_back_turn(place) || queue.turn == Turn::Open;
        self.withdraw(queue, place, has_turn);
        Told::NotSent
    }

    /// Takes a message from the queue, and passes on the turn if its caller had it.
    fn withdraw(&self, mut queue: MutexGuard<'_, Queue<A, U>>, place: Place, has_turn: bool) {
        let was_full = queue.is_full();
        queue.withdraw(place);
        if has_turn && let Some(next) = queue.next_leaders() {
            next.pass_turn();
        }
        self.unlock(queue, was_full);
    }

    /// Ends the work on a queue, and calls those who wait for room, if there was none.
    fn unlock(&self, queue: MutexGuard<'_, Queue<A, U>>, was_full: bool) {
        drop(queue);
        if was_full {
            self.room.notify_all();
        }
    }
}

fn told<A: Clone>(batch: &Batch<A>, place: Place) -> Told<A> {
    batch.answer(place).map_or(Told::Abandoned, Told::from)
}

impl<A> From<Answer<A>> for Told<A> {
    fn from(answer: Answer<A>) -> Told<A> {
        match answer {
            Answer::Given(answer) => Told::Answer(answer),
            Answer::Never => Told::Abandoned,
        }
    }
}

impl<A, U: Copy + Ord> Queue<A, U> {
    /// Those who are to be given the turn; if there are none, it is free.
    fn next_leaders(&mut self) -> Option<Arc<Batch<A>>> {
        let waiting = self.gathered.messages() > 0;
        self.turn = if waiting { Turn::Taken } else { Turn::Free };
        waiting.then(|| Arc::clone(&self.batch))
    }
}

/// For the model.
#[cfg(all(test, step_redis_loom))]
impl<A: Clone, U: Copy + Ord> HandOver<A, U> {
    /// As if there had been turns before.
    pub(super) fn expecting(most_messages: usize, expected: usize) -> HandOver<A, U> {
        let hand_over = HandOver::new(most_messages);
        lock(&hand_over.queue).expected = expected;
        hand_over
    }

    /// Has all who wait look at their deadlines.
    pub(super) fn wake(&self) {
        let queue = lock(&self.queue);
        let mut batches = queue.batches.clone();
        batches.push(Arc::clone(&queue.batch));
        drop(queue);
        self.room.notify_all();
        for batch in batches {
            batch.wake();
        }
    }
}
