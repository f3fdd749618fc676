//! The messages of one turn as their callers see them: the place where they wait for it.

use std::sync::Arc;
// A hint only, so that nothing depends on its order with the lock.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::queue::{Place, Withdrawn};
use super::turn::{Caller, Wake};
use crate::sync::{Condvar, Mutex, lock};

pub(super) struct Batch<A> {
    state: Mutex<State<A>>,
    changed: Condvar,
    /// The state is no longer [`Phase::Waiting`]: for callers who look without locking it.
    has_news: AtomicBool,
}

struct State<A> {
    phase: Phase<A>,
    /// Callers to be woken.
    asleep: usize,
}

enum Phase<A> {
    Waiting,
    /// The connection is free: one of the waiting callers is to see to the next turn; if a position is given, the caller of
    /// this message.
    YourTurn(Option<usize>),
    /// The answers in the order of the messages that were sent. Those that are missing will never come.
    Done(Vec<A>, Withdrawn),
}

/// Why a caller stopped waiting.
#[derive(Debug, PartialEq)]
pub(super) enum Woken {
    Done,
    YourTurn,
    /// It has waited for others long enough.
    Lingered,
    /// Its own time is up.
    Late,
}

impl<A: Clone> Batch<A> {
    /// What the turn brought this message, once it is over.
    pub(super) fn answer(&self, place: Place) -> Option<Answer<A>> {
        match &lock(&self.state).phase {
            Phase::Done(answers, withdrawn) => {
                Some(answers.get(withdrawn.position_without(place)).cloned().map_or(Answer::Never, Answer::Given))
            }
            Phase::Waiting | Phase::YourTurn(_) => None,
        }
    }
}

/// What a turn that is over brought a message.
pub(super) enum Answer<A> {
    Given(A),
    /// Whoever was to hear it is gone.
    Never,
}

impl<A> Batch<A> {
    pub(super) fn new() -> Arc<Batch<A>> {
        Arc::new(Batch {
            state: Mutex::new(State { phase: Phase::Waiting, asleep: 0 }),
            changed: Condvar::new(),
            has_news: AtomicBool::new(false),
        })
    }

    /// Waits until the batch is done, until it is this caller's turn, for `linger`, or as long as the caller can wait; sleeps
    /// only after this many yields.
    pub(super) fn wait(&self, caller: &impl Caller, place: Place, yields: usize, linger: Option<Duration>) -> Woken {
        for _ in 0..yields {
            if self.has_news.load(Ordering::Acquire) {
                break;
            }
            std::thread::yield_now();
        }
        let mut state = lock(&self.state);
        let mut wake = Wake::Called;
        loop {
            if let Phase::Done(..) = state.phase {
                return Woken::Done;
            }
            if self.accept_turn(&mut state, place) {
                return Woken::YourTurn;
            }
            match wake {
                Wake::Called => {}
                Wake::Lingered => return Woken::Lingered,
                Wake::Late => return Woken::Late,
            }
            state.asleep += 1;
            (state, wake) = caller.wait(&self.state, &self.changed, state, linger);
            state.asleep -= 1;
        }
    }

    /// Takes the turn from this batch if it lies here for the caller of this message and no other.
    pub(super) fn take_back_turn(&self, place: Place) -> bool {
        let mut state = lock(&self.state);
        matches!(state.phase, Phase::YourTurn(Some(_))) && self.accept_turn(&mut state, place)
    }

    fn accept_turn(&self, state: &mut State<A>, place: Place) -> bool {
        let accepted =
            matches!(state.phase, Phase::YourTurn(whose) if whose.is_none_or(|position| position == place.position));
        if accepted {
            state.phase = Phase::Waiting;
            self.has_news.store(false, Ordering::Release);
        }
        accepted
    }

    /// Gives the turn to any of the callers. If all of them have left, it lies ready for the next to come.
    pub(super) fn pass_turn(&self) {
        if self.change(Phase::YourTurn(None)) > 0 {
            self.changed.notify_one();
        }
    }

    /// Gives the turn to the caller of the message at this position, who has not left.
    pub(super) fn pass_turn_to(&self, position: usize) {
        if self.change(Phase::YourTurn(Some(position))) > 0 {
            self.changed.notify_all();
        }
    }

    pub(super) fn finish(&self, answers: Vec<A>, withdrawn: Withdrawn) {
        if self.change(Phase::Done(answers, withdrawn)) > 0 {
            self.changed.notify_all();
        }
    }

    /// How many callers are to be woken for it.
    fn change(&self, phase: Phase<A>) -> usize {
        let mut state = lock(&self.state);
        state.phase = phase;
        self.has_news.store(true, Ordering::Release);
        state.asleep
    }

    /// Has those who wait look at their deadlines.
    #[cfg(all(test, step_redis_loom))]
    pub(super) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }
}
