//! Every order of the steps that callers, attempts and time can take, with loom: `make model`.
//!
//! The world has places after r2d2's source (a count under a lock; a place that is dropped is counted again), attempts that end
//! as the script says, and a clock that a thread moves on, which may happen at any time. A caller who is not woken where he
//! should be is a deadlock, which loom reports.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loom::thread::JoinHandle;

use super::attempt::{Attempt, Job};
use super::lending::{Denied, Lending, World};
use super::loan::Loan;
use super::state::{Counts, Pace};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any model's clock runs.
const LONG: Duration = Duration::from_secs(1_000_000);
const PACE: Pace = Pace {
    retry: SECOND,
    beside_check: SECOND,
    beside_opening: Duration::from_secs(10),
    longest_check: Duration::from_secs(10),
    longest_opening: Duration::from_secs(20),
    least_opening: Duration::from_secs(20),
    most_opening: Duration::from_secs(60),
};

/// What an attempt comes to.
#[derive(Clone, Copy)]
enum Turn {
    Works,
    Fails,
    IsRefused,
    Panics,
    /// Until it is interrupted.
    Hangs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Passing,
    Final,
    Panicked,
}

struct Model {
    free: Arc<Mutex<usize>>,
    began: Instant,
    /// Seconds; moved on under the lock of the lending, as who waits must not miss it.
    clock: AtomicU64,
    /// What is to become of the attempts, in their order; then all of them work. No lock of the model: it is never waited for.
    script: std::sync::Mutex<VecDeque<Turn>>,
    threads: std::sync::Mutex<Vec<JoinHandle<()>>>,
    has_threads: bool,
    timer: Arc<(Mutex<Timer>, Condvar)>,
}

/// What the clock's thread waits for.
#[derive(Default)]
struct Timer {
    runs: bool,
    /// When those who wait want to be woken.
    dues: Vec<Instant>,
    /// Callers who wait no more.
    done: usize,
}

struct Place(Arc<Mutex<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0) += 1;
    }
}

struct Connection {
    _place: Place,
    broken: bool,
    stale: bool,
}

/// The end of an attempt that hangs.
#[derive(Clone)]
struct Reins(Arc<(Mutex<bool>, Condvar)>);

impl World for Model {
    type Place = Place;
    type Connection = Connection;
    type Failure = Failure;
    type Handle = Reins;

    fn now(&self) -> Instant {
        self.began + Duration::from_secs(self.clock.load(Ordering::SeqCst))
    }

    fn wait<'a, T>(&self, changed: &Condvar, guard: MutexGuard<'a, T>, until: Instant) -> MutexGuard<'a, T> {
        if self.now() >= until {
            return guard;
        }
        if until < self.began + LONG {
            let mut timer = lock(&self.timer.0);
            if timer.runs {
                timer.dues.push(until);
                self.timer.1.notify_one();
            }
        }
        changed.wait(guard).unwrap()
    }

    fn empty_place(&self) -> Option<Place> {
        let mut free = lock(&self.free);
        *free = free.checked_sub(1)?;
        Some(Place(Arc::clone(&self.free)))
    }

    fn vacate(&self, connection: Connection) -> Place {
        connection._place
    }

    fn is_stale(&self, connection: &Connection, _: Instant) -> bool {
        connection.stale
    }

    fn look(&self, connection: &mut Connection) -> Result<(), Failure> {
        if connection.broken { Err(Failure::Passing) } else { Ok(()) }
    }

    fn is_as_lent(&self, connection: &mut Connection) -> bool {
        !connection.broken
    }

    fn handle(&self, _: &Job<Model>) -> Reins {
        Reins(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn interrupt(&self, reins: &Reins) {
        *lock(&reins.0.0) = true;
        reins.0.1.notify_one();
    }

    fn carry_out(&self, job: Job<Model>, reins: &Reins, _: Option<Duration>) -> Result<Connection, Failure> {
        let turn = self.script.lock().unwrap().pop_front();
        match turn.unwrap_or(Turn::Works) {
            Turn::Works => Ok(match job {
                Job::Open(place) => Connection { _place: place, broken: false, stale: false },
                Job::Check(connection) => Connection { stale: false, ..connection },
            }),
            Turn::Fails => Err(Failure::Passing),
            Turn::IsRefused => Err(Failure::Final),
            Turn::Panics => {
                // As unwinding does; but loom cannot switch threads in the middle of it.
                drop(job);
                panic!("the script says so");
            }
            Turn::Hangs => {
                let mut ended = lock(&reins.0.0);
                while !*ended {
                    ended = reins.0.1.wait(ended).unwrap();
                }
                Err(Failure::Passing)
            }
        }
    }

    fn panicked(&self, _: &Reins) -> Failure {
        Failure::Panicked
    }

    fn is_final(&self, failure: &Failure) -> bool {
        *failure == Failure::Final
    }

    fn spawn(&self, attempt: Attempt<Model>) -> Result<(), Attempt<Model>> {
        if !self.has_threads {
            return Err(attempt);
        }
        let thread = loom::thread::spawn(move || {
            let _ = catch_unwind(AssertUnwindSafe(|| attempt.carry_out(None)));
        });
        self.threads.lock().unwrap().push(thread);
        Ok(())
    }
}

/// What only a model does.
impl Lending<Model> {
    /// Moves a model's clock on.
    fn alarm<T>(&self, ring: impl FnOnce(&Model) -> T) {
        let state = lock(&self.state);
        ring(&self.world);
        self.changed.notify_all();
        drop(state);
    }

    /// What a model looks at when all is over: counts, callers who wait, attempts.
    fn at_rest(&self) -> (Counts, usize, usize) {
        let state = lock(&self.state);
        (state.counts(), state.waiting, state.under_way.len())
    }
}

#[derive(Clone)]
struct Pool(Arc<Lending<Model>>);

impl Pool {
    fn new(places: usize, script: &[Turn]) -> Pool {
        Pool::with(places, script, true)
    }

    fn with(places: usize, script: &[Turn], has_threads: bool) -> Pool {
        let model = Model {
            free: Arc::new(Mutex::new(places)),
            began: Instant::now(),
            clock: AtomicU64::new(0),
            script: std::sync::Mutex::new(script.iter().copied().collect()),
            threads: std::sync::Mutex::default(),
            has_threads,
            timer: Arc::default(),
        };
        Pool(Arc::new(Lending::new(model, PACE)))
    }

    /// A failed attempt may be followed by another at once.
    fn without_pauses(places: usize, script: &[Turn]) -> Pool {
        let pool = Pool::new(places, script);
        let world = Arc::into_inner(pool.0).map(|lending| lending.world);
        Pool(Arc::new(Lending::new(world.unwrap(), Pace { retry: Duration::ZERO, ..PACE })))
    }

    /// One connection is open from the start.
    fn lent(&self) -> Loan<Model> {
        assert!(self.0.open().is_ok());
        self.0.checkout_ready().unwrap()
    }

    fn spawn<T: 'static>(&self, run: impl FnOnce(&Pool) -> T + 'static) -> JoinHandle<T> {
        let pool = self.clone();
        loom::thread::spawn(move || run(&pool))
    }

    /// Somebody who waits as long as it takes.
    fn caller(&self) -> JoinHandle<()> {
        self.spawn(|pool| assert!(pool.0.checkout(LONG).is_ok()))
    }

    /// Lets time pass until so many callers are done: the clock moves on to when somebody wants to be woken, whenever this
    /// thread gets to run.
    fn let_time_pass_for(&self, callers: usize) {
        let (timer, changed) = &*self.0.world.timer;
        loop {
            let mut guard = lock(timer);
            while guard.dues.is_empty() && guard.done < callers {
                guard = changed.wait(guard).unwrap();
            }
            if guard.done == callers {
                return;
            }
            let due = guard.dues.drain(..).min();
            drop(guard);
            self.0.alarm(|model| {
                let seconds = due.map_or(0, |due| due.saturating_duration_since(model.began).as_secs());
                model.clock.fetch_max(seconds, Ordering::SeqCst);
            });
        }
    }

    /// A caller who waits as time passes.
    fn timed<T: 'static>(&self, run: impl FnOnce(&Pool) -> T + 'static) -> JoinHandle<T> {
        lock(&self.0.world.timer.0).runs = true;
        self.spawn(|pool| {
            let result = run(pool);
            lock(&pool.0.world.timer.0).done += 1;
            pool.0.world.timer.1.notify_one();
            result
        })
    }

    /// When all is over, nobody waits, nothing is lent or under way, and every place is free or holds an idle connection.
    fn end(self, places: usize) {
        loop {
            let thread = self.0.world.threads.lock().unwrap().pop();
            let Some(thread) = thread else { break };
            thread.join().unwrap();
        }
        let (counts, waiting, under_way) = self.0.at_rest();
        assert_eq!((counts.lent, waiting, under_way), (0, 0, 0));
        assert_eq!(*lock(&self.0.world.free) + counts.idle, places);
    }
}

/// Every order.
fn model(run: impl Fn() + Send + Sync + 'static) {
    bounded_model(None, run);
}

/// Every order in which threads are preempted so many times: where more threads take part, all would take hours.
fn bounded_model(preemptions: impl Into<Option<usize>>, run: impl Fn() + Send + Sync + 'static) {
    // The panics of the scripts are no news, nor are those by which loom ends threads that a failure leaves behind.
    std::panic::set_hook(Box::new(|panic| {
        if !["the script says so", "yield_.rs"].iter().any(|known| panic.to_string().contains(known)) {
            eprintln!("{panic}");
        }
    }));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions.into();
    builder.check(run);
}

#[test]
fn a_connection_that_comes_back_broken_makes_place_for_one_who_waits() {
    model(|| {
        let pool = Pool::new(1, &[]);
        let mut lent = pool.lent();
        let caller = pool.caller();
        lent.connection_mut().broken = true;
        drop(lent);
        caller.join().unwrap();
        pool.end(1);
    });
}

#[test]
fn a_connection_that_comes_back_goes_from_hand_to_hand() {
    model(|| {
        let pool = Pool::new(1, &[]);
        let lent = pool.lent();
        let callers = [pool.caller(), pool.caller()];
        drop(lent);
        for caller in callers {
            caller.join().unwrap();
        }
        pool.end(1);
    });
}

#[test]
fn one_whose_time_is_up_passes_on_what_he_was_woken_for() {
    bounded_model(2, || {
        let pool = Pool::new(1, &[]);
        let mut lent = pool.lent();
        let hasty = pool.spawn(|pool| drop(pool.0.checkout(SECOND)));
        let patient = pool.caller();
        loom::thread::yield_now();
        // He sees it when he is woken for something else. (A clock that woke him would wake the other, too.)
        pool.0.world.clock.fetch_add(1, Ordering::SeqCst);
        lent.connection_mut().broken = true;
        drop(lent);
        hasty.join().unwrap();
        patient.join().unwrap();
        pool.end(1);
    });
}

#[test]
fn callers_of_an_empty_pool_have_a_connection_opened_each() {
    bounded_model(2, || {
        let pool = Pool::new(2, &[]);
        let caller = pool.caller();
        assert!(pool.0.checkout(LONG).is_ok());
        caller.join().unwrap();
        pool.end(2);
    });
}

#[test]
fn callers_share_the_places_there_are() {
    bounded_model(2, || {
        let pool = Pool::new(1, &[]);
        let callers = [pool.caller(), pool.caller()];
        for caller in callers {
            caller.join().unwrap();
        }
        pool.end(1);
    });
}

#[test]
fn after_a_failure_or_a_panic_another_attempt_follows_in_time() {
    for first in [Turn::Fails, Turn::Panics] {
        bounded_model(1, move || {
            let pool = Pool::new(1, &[first]);
            let caller = pool.timed(|pool| assert!(pool.0.checkout(LONG).is_ok()));
            pool.let_time_pass_for(1);
            caller.join().unwrap();
            pool.end(1);
        });
    }
}

#[test]
fn a_refusal_is_told_to_all_who_wait() {
    bounded_model(2, || {
        // One who comes too late for the first attempt has another one made.
        let pool = Pool::without_pauses(1, &[Turn::IsRefused; 4]);
        let refused = |pool: &Pool| matches!(pool.0.checkout(LONG), Err(Denied::Refused(Failure::Final)));
        let other = pool.spawn(refused);
        assert!(refused(&pool) && other.join().unwrap());
        pool.end(1);
    });
}

#[test]
fn an_attempt_that_hangs_does_not_hold_up_another() {
    bounded_model(1, || {
        let pool = Pool::new(2, &[Turn::Hangs]);
        let caller = pool.timed(|pool| assert!(pool.0.checkout(LONG).is_ok()));
        pool.let_time_pass_for(1);
        caller.join().unwrap();
        pool.0.close();
        pool.end(2);
    });
}

#[test]
fn an_attempt_that_hangs_gives_way_where_no_place_is_left() {
    bounded_model(2, || {
        let pool = Pool::new(1, &[Turn::Hangs]);
        let caller = pool.timed(|pool| assert!(pool.0.checkout(LONG).is_ok()));
        pool.let_time_pass_for(1);
        caller.join().unwrap();
        pool.end(1);
    });
}

#[test]
fn an_idle_connection_that_does_not_answer_is_replaced() {
    for first in [Turn::Works, Turn::Fails, Turn::Panics] {
        bounded_model(2, move || {
            let pool = Pool::new(1, &[Turn::Works, first]);
            let mut lent = pool.lent();
            lent.connection_mut().stale = true;
            drop(lent);
            let caller = pool.caller();
            assert!(pool.0.checkout(LONG).is_ok());
            caller.join().unwrap();
            pool.end(1);
        });
    }
}

#[test]
fn one_who_leaves_hands_the_watch_over() {
    bounded_model(0, || {
        let pool = Pool::new(1, &[Turn::Works, Turn::Hangs]);
        let mut lent = pool.lent();
        // One of them has the attempt begun that hangs; the other one, who sleeps, must see to it when the first has gone.
        let hasty = pool.timed(|pool| drop(pool.0.checkout(SECOND * 5)));
        let patient = pool.timed(|pool| assert!(pool.0.checkout(LONG).is_ok()));
        lent.connection_mut().broken = true;
        drop(lent);
        pool.let_time_pass_for(2);
        hasty.join().unwrap();
        patient.join().unwrap();
        pool.end(1);
    });
}

#[test]
fn a_pool_that_is_closed_ends_what_is_under_way() {
    for first in [Turn::Works, Turn::Hangs] {
        model(move || {
            let pool = Pool::new(1, &[first]);
            let caller = pool.spawn(|pool| pool.0.checkout(LONG).is_ok());
            pool.0.close();
            let lent = caller.join().unwrap();
            assert!(!lent || matches!(first, Turn::Works));
            assert!(matches!(pool.0.checkout(LONG), Err(Denied::Closed)));
            let places = pool.clone();
            pool.end(1);
            assert_eq!(*lock(&places.0.world.free), 1);
        });
    }
}

#[test]
fn without_a_thread_the_caller_sees_to_it() {
    model(|| {
        let pool = Pool::with(1, &[], false);
        let caller = pool.caller();
        assert!(pool.0.checkout(LONG).is_ok());
        caller.join().unwrap();
        pool.end(1);
    });
}
