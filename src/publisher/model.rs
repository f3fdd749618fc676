//! The hand-over in every order of its steps (`make model`): callers whose deadlines pass at any moment, turns that panic, a
//! queue that is full. That nobody waits for ever is checked by loom, which finds threads that all wait.
//!
//! With two threads, all orders are tried; with more of them, all orders in which at most three times a thread is stopped that
//! could go on (waiting for a lock or for a call does not count).
//!
//! A deadline is a thread that may fire at any time. A linger, which is always over soon, is a wait in which the others do what
//! they like, after which it is over: that includes every moment at which it could have been.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool as StdAtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::turn::{Caller, HandOver, NotReady, RoundTrip, Told, Wake};
use crate::latch;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

type Name = u8;
type Queue = HandOver<Result<Name, Failure>, u32>;
type Outcome = Option<Told<Result<Name, Failure>>>;

#[derive(Clone, Debug, PartialEq)]
enum Failure {
    /// Of the one caller.
    Late,
    ForAll,
}

/// The connection and the server behind it.
#[derive(Default)]
struct Line {
    in_use: StdAtomicBool,
    /// Each request.
    sent: StdMutex<Vec<Vec<Name>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Panics {
    Never,
    Preparing,
    /// After this many answers.
    UnderWay(usize),
}

struct ModelCaller {
    name: Name,
    line: Arc<Line>,
    until: u32,
    lacks_time: bool,
    /// Whose deadline has passed knows it from here.
    late: Option<Arc<AtomicBool>>,
    panics: Panics,
    refused: bool,
}

impl ModelCaller {
    fn is_late(&self) -> bool {
        self.late.as_ref().is_some_and(|late| late.load(Ordering::SeqCst))
    }
}

/// Released by a panic too, as a connection's lock is.
struct InUse<'l>(&'l Line);

impl InUse<'_> {
    fn new(line: &Line) -> InUse<'_> {
        assert!(!line.in_use.swap(true, Ordering::SeqCst), "two callers are at the connection");
        InUse(line)
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.in_use.store(false, Ordering::SeqCst);
    }
}

impl Caller for ModelCaller {
    type Answer = Result<Name, Failure>;
    type Until = u32;

    fn until(&self) -> u32 {
        self.until
    }

    fn encode(&self, encoded: &mut Vec<u8>) {
        encoded.push(self.name);
    }

    fn wait<'g, T>(
        &self,
        mutex: &'g Mutex<T>,
        condvar: &Condvar,
        guard: MutexGuard<'g, T>,
        linger: Option<Duration>,
    ) -> (MutexGuard<'g, T>, Wake) {
        if self.is_late() {
            return (guard, Wake::Late);
        }
        if linger.is_some() {
            drop(guard);
            return (lock(mutex), Wake::Lingered);
        }
        // All run on one thread of the system, so where one of them panics, the locks of others are poisoned.
        let guard = condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        let wake = if self.is_late() { Wake::Late } else { Wake::Called };
        (guard, wake)
    }

    fn prepare(&mut self) -> Result<(), NotReady<Self::Answer>> {
        let _in_use = InUse::new(&self.line);
        if self.panics == Panics::Preparing {
            std::panic::resume_unwind(Box::new("preparing"));
        }
        if self.is_late() {
            return Err(NotReady::Late(Err(Failure::Late)));
        }
        if self.refused { Err(NotReady::ForAll(Err(Failure::ForAll))) } else { Ok(()) }
    }

    fn lacks_time(&self) -> bool {
        self.lacks_time
    }

    fn round_trip(&mut self, request: &[u8], messages: usize, answers: &mut Vec<Self::Answer>) -> RoundTrip {
        let _in_use = InUse::new(&self.line);
        assert_eq!(request.len(), messages);
        latch::lock(&self.line.sent).push(request.to_vec());
        for (position, name) in request.iter().enumerate() {
            if self.panics == Panics::UnderWay(position) {
                std::panic::resume_unwind(Box::new("under way"));
            }
            answers.push(Ok(*name));
        }
        RoundTrip { took: Duration::ZERO, succeeded: true }
    }
}

/// A caller, as a test describes it.
#[derive(Clone, Copy)]
struct Plan {
    until: u32,
    lacks_time: bool,
    has_deadline: bool,
    panics: Panics,
    refused: bool,
}

const PATIENT: Plan = Plan { until: 1, lacks_time: false, has_deadline: false, panics: Panics::Never, refused: false };
const WITH_DEADLINE: Plan = Plan { has_deadline: true, until: 0, ..PATIENT };

/// Each caller on a thread of its own, the first on the test's; and a thread for each deadline.
fn check(most_messages: usize, expected: usize, plans: &'static [Plan]) {
    let threads = plans.len() + plans.iter().filter(|plan| plan.has_deadline).count();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = (threads > 2).then_some(3);
    builder.max_branches = 10_000;
    let orders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        run(most_messages, expected, plans);
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

fn run(most_messages: usize, expected: usize, plans: &[Plan]) {
    let queue: Arc<Queue> = Arc::new(HandOver::expecting(most_messages, expected));
    let line: Arc<Line> = Arc::default();
    let mut alarms = Vec::new();
    let mut callers: Vec<ModelCaller> = Vec::new();
    for (plan, name) in plans.iter().zip(b'a'..) {
        let late = plan.has_deadline.then(|| Arc::new(AtomicBool::new(false)));
        alarms.extend(late.clone());
        let Plan { until, lacks_time, panics, refused, .. } = *plan;
        callers.push(ModelCaller { name, line: Arc::clone(&line), until, lacks_time, late, panics, refused });
    }
    let call = |queue: &Queue, mut caller: ModelCaller| -> Outcome {
        catch_unwind(AssertUnwindSafe(|| queue.send(&mut caller))).ok()
    };
    let mut callers = callers.into_iter();
    let first = callers.next().unwrap();
    let others: Vec<_> = callers
        .map(|caller| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || call(&queue, caller))
        })
        .collect();
    let alarms: Vec<_> = alarms
        .into_iter()
        .map(|late| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                late.store(true, Ordering::SeqCst);
                queue.wake();
            })
        })
        .collect();
    let mut outcomes = vec![call(&queue, first)];
    outcomes.extend(others.into_iter().map(|other| other.join().unwrap()));
    for alarm in alarms {
        alarm.join().unwrap();
    }
    judge(plans, &outcomes, &latch::lock(&line.sent));

    // The turn is not lost: who comes later is served.
    let later = ModelCaller {
        name: b'z',
        line: Arc::clone(&line),
        until: 9,
        lacks_time: false,
        late: None,
        panics: Panics::Never,
        refused: false,
    };
    assert_eq!(call(&queue, later), Some(Told::Answer(Ok(b'z'))));
    assert_eq!(latch::lock(&line.sent).last().map(Vec::as_slice), Some(&b"z"[..]), "what was withdrawn is sent");
}

/// Holds what the callers were told against what was sent.
fn judge(plans: &[Plan], outcomes: &[Outcome], sent: &[Vec<Name>]) {
    let may_be_abandoned = plans.iter().any(|plan| matches!(plan.panics, Panics::UnderWay(_)));
    for ((plan, outcome), name) in plans.iter().zip(outcomes).zip(b'a'..) {
        let times = sent.iter().flatten().filter(|one| **one == name).count();
        let right = match outcome {
            Some(Told::Answer(Ok(answer))) => *answer == name && times == 1,
            Some(Told::Answer(Err(Failure::ForAll))) => times == 0 && plans.iter().any(|plan| plan.refused),
            Some(Told::Answer(Err(Failure::Late)) | Told::NotSent) => times == 0 && plan.has_deadline,
            Some(Told::Late) => times == 1 && plan.has_deadline,
            Some(Told::Abandoned) => times == 1 && may_be_abandoned,
            None => plan.panics != Panics::Never && times <= 1,
        };
        assert!(right, "{} was told {outcome:?}, and what was sent is {sent:?}", char::from(name));
    }
}

const PANICS_PREPARING: Plan = Plan { panics: Panics::Preparing, ..PATIENT };
const PANICS_UNDER_WAY: Plan = Plan { panics: Panics::UnderWay(0), ..PATIENT };
const PANICS_AFTER_ONE: Plan = Plan { panics: Panics::UnderWay(1), ..PATIENT };
const REFUSED: Plan = Plan { refused: true, ..PATIENT };
const LACKS_TIME: Plan = Plan { lacks_time: true, until: 0, ..PATIENT };

#[test]
fn two_callers_share_turns() {
    for expected in 0..=3 {
        check(9, expected, &[PATIENT, PATIENT]);
    }
}

#[test]
fn three_callers_share_turns() {
    for expected in 0..=4 {
        check(9, expected, &[PATIENT, PATIENT, PATIENT]);
    }
}

#[test]
fn a_deadline_passes_while_nobody_else_is_there() {
    for expected in [0, 2] {
        check(9, expected, &[WITH_DEADLINE]);
    }
}

#[test]
fn a_deadline_passes_beside_another_caller() {
    for expected in 0..=3 {
        check(9, expected, &[WITH_DEADLINE, PATIENT]);
    }
}

#[test]
fn a_deadline_passes_among_others() {
    check(9, 0, &[WITH_DEADLINE, PATIENT, PATIENT]);
    check(9, 4, &[WITH_DEADLINE, PATIENT, PATIENT]);
}

#[test]
fn two_deadlines_pass() {
    check(9, 0, &[WITH_DEADLINE, WITH_DEADLINE]);
    check(9, 3, &[WITH_DEADLINE, WITH_DEADLINE]);
}

#[test]
fn callers_wait_for_room() {
    check(1, 0, &[PATIENT, PATIENT]);
    check(1, 0, &[PATIENT, PATIENT, PATIENT]);
}

#[test]
fn a_deadline_passes_where_there_is_no_room() {
    check(1, 0, &[WITH_DEADLINE, PATIENT]);
    check(1, 0, &[PATIENT, PATIENT, WITH_DEADLINE]);
}

#[test]
fn a_turn_panics_before_the_request() {
    for expected in 0..=3 {
        check(9, expected, &[PANICS_PREPARING, PATIENT]);
        check(9, expected, &[PANICS_PREPARING, PANICS_PREPARING]);
        check(9, expected, &[PANICS_PREPARING, PATIENT, PATIENT]);
    }
    check(1, 0, &[PANICS_PREPARING, PATIENT, PATIENT]);
}

#[test]
fn a_turn_panics_amid_the_answers() {
    for expected in 0..=3 {
        check(9, expected, &[PANICS_UNDER_WAY, PATIENT]);
        check(9, expected, &[PANICS_AFTER_ONE, PATIENT, PATIENT]);
    }
    check(1, 0, &[PANICS_UNDER_WAY, PATIENT, PATIENT]);
}

#[test]
fn a_turn_panics_and_a_deadline_passes() {
    for panics in [&[WITH_DEADLINE, PANICS_PREPARING], &[WITH_DEADLINE, PANICS_UNDER_WAY]] {
        check(9, 0, panics);
        check(9, 2, panics);
    }
}

#[test]
fn the_connection_cannot_be_had() {
    for expected in [0, 3] {
        check(9, expected, &[REFUSED, PATIENT, PATIENT]);
    }
    check(9, 0, &[REFUSED, WITH_DEADLINE]);
}

#[test]
fn a_caller_without_time_lets_another_one_lead() {
    for expected in 0..=3 {
        check(9, expected, &[LACKS_TIME, PATIENT]);
        check(9, expected, &[LACKS_TIME, PATIENT, PATIENT]);
        check(9, expected, &[LACKS_TIME, PANICS_PREPARING]);
    }
}

#[test]
fn the_caller_that_was_let_lead_has_a_deadline_too() {
    const MORE_PATIENT: Plan = Plan { until: 2, ..WITH_DEADLINE };
    check(9, 0, &[LACKS_TIME, MORE_PATIENT]);
    check(9, 2, &[LACKS_TIME, MORE_PATIENT]);
    check(9, 3, &[LACKS_TIME, MORE_PATIENT]);
}
