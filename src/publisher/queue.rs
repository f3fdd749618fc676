//! The messages that gather for the next turn, and whose turn it is. No lock and no clock in here.

use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;

/// With this much waiting for its turn, later callers block until there is room.
const MOST_BYTES: usize = 1024 * 1024;
/// How long a turn waits for callers who are likely to come: a quarter of the last round trip, within these bounds. The
/// shortest is what it takes a few threads to wake up.
const LINGER: std::ops::RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(2);

/// What waits for the next turn.
pub(super) struct Queue<A, U> {
    /// Where the callers of the messages wait.
    pub(super) batch: Arc<Batch<A>>,
    pub(super) gathered: Gathered,
    pub(super) turn: Turn,
    /// The callers there were when the last turn ended, each with one message: this many are likely to come again.
    pub(super) expected: usize,
    pub(super) last_round_trip: Duration,
    /// The caller of this batch who can wait longest, by the position of its message.
    pub(super) most_patient: Option<(usize, U)>,
    most_messages: usize,
    /// All there ever were.
    #[cfg(all(test, step_redis_loom))]
    pub(super) batches: Vec<Arc<Batch<A>>>,
}

/// Who sees to it that what waits is sent. Exactly one of the callers does, or is told to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    /// Nobody: nothing waits.
    Free,
    /// The caller with whose message the expected ones are complete, or the one who waits for them when that takes too long.
    Open,
    /// A caller who is at the connection, or was told to go there.
    Taken,
}

impl<A, U: Copy + Ord> Queue<A, U> {
    pub(super) fn new(most_messages: usize) -> Queue<A, U> {
        Queue {
            batch: Batch::new(),
            most_messages,
            #[cfg(all(test, step_redis_loom))]
            batches: Vec::new(),
            gathered: Gathered::default(),
            turn: Turn::Free,
            expected: 0,
            last_round_trip: Duration::ZERO,
            most_patient: None,
        }
    }

    pub(super) fn add(&mut self, until: U, encode: impl FnOnce(&mut Vec<u8>)) -> Place {
        let place = self.gathered.add(encode);
        if self.most_patient.is_none_or(|(_, longest)| until >= longest) {
            self.most_patient = Some((place.position, until));
        }
        place
    }

    pub(super) fn withdraw(&mut self, place: Place) {
        self.gathered.withdraw(place);
        // It waited as long as any.
        if self.most_patient.is_some_and(|(position, _)| position == place.position) {
            self.most_patient = None;
        }
    }

    /// Takes what has gathered; the next messages start another batch.
    pub(super) fn take(&mut self) -> Gathered {
        self.most_patient = None;
        let _taken = std::mem::replace(&mut self.batch, Batch::new());
        #[cfg(all(test, step_redis_loom))]
        self.batches.push(_taken);
        std::mem::take(&mut self.gathered)
    }

    pub(super) fn is_full(&self) -> bool {
        self.gathered.messages() >= self.most_messages || self.gathered.encoded.len() >= MOST_BYTES
    }

    /// Whether nobody is likely to come who is not here.
    pub(super) fn is_complete(&self) -> bool {
        self.gathered.messages() >= self.expected || self.is_full()
    }

    pub(super) fn linger(&self) -> Duration {
        (self.last_round_trip / 4).clamp(*LINGER.start(), *LINGER.end())
    }

    /// Whether this batch has not been taken by a turn.
    pub(super) fn holds(&self, batch: &Arc<Batch<A>>) -> bool {
        Arc::ptr_eq(&self.batch, batch)
    }
}

/// Messages, encoded one behind the other.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) encoded: Vec<u8>,
    /// Those that were withdrawn again among them.
    added: usize,
    pub(super) withdrawn: Withdrawn,
}

/// Where a message was put: as if none had ever been withdrawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) position: usize,
    start: usize,
    length: usize,
}

/// The places of the messages whose callers could wait no longer. Hardly ever is there one.
#[derive(Default)]
pub(super) struct Withdrawn(Vec<Place>);

impl Withdrawn {
    /// The position of a message among those that are left.
    pub(super) fn position_without(&self, place: Place) -> usize {
        place.position - self.before(place).count()
    }

    fn before(&self, place: Place) -> impl Iterator<Item = &Place> {
        self.0.iter().filter(move |gone| gone.position < place.position)
    }
}

impl Gathered {
    fn add(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Place {
        let before = self.encoded.len();
        encode(&mut self.encoded);
        let gone: usize = self.withdrawn.0.iter().map(|gone| gone.length).sum();
        let place = Place { position: self.added, start: before + gone, length: self.encoded.len() - before };
        self.added += 1;
        place
    }

    fn withdraw(&mut self, place: Place) {
        let gone: usize = self.withdrawn.before(place).map(|gone| gone.length).sum();
        let start = place.start - gone;
        self.encoded.drain(start..start + place.length);
        self.withdrawn.0.push(place);
    }

    pub(super) fn messages(&self) -> usize {
        self.added - self.withdrawn.0.len()
    }

    /// The emptied buffer of a turn, kept for its capacity.
    pub(super) fn reuse(&mut self, mut encoded: Vec<u8>) {
        if self.encoded.capacity() == 0 {
            encoded.clear();
            encoded.shrink_to(MOST_BYTES);
            self.encoded = encoded;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withdrawn_leaves_the_others_in_their_order() {
        let texts = ["a", "bb", "", "ccc", "d", "ee"];
        for withdrawn in 0..1 << texts.len() {
            for late in [false, true] {
                let is_withdrawn = |position: usize| withdrawn >> position & 1 == 1;
                let mut gathered = Gathered::default();
                let mut places = Vec::new();
                for text in texts {
                    let place = gathered.add(|encoded| encoded.extend_from_slice(text.as_bytes()));
                    if !late && is_withdrawn(place.position) {
                        gathered.withdraw(place);
                    }
                    places.push(place);
                }
                // The later ones first, too.
                for place in places.iter().rev().filter(|place| late && is_withdrawn(place.position)) {
                    gathered.withdraw(*place);
                }
                let left: Vec<usize> = (0..texts.len()).filter(|position| !is_withdrawn(*position)).collect();
                let expected: String = left.iter().map(|position| texts[*position]).collect();
                assert_eq!((gathered.encoded.as_slice(), gathered.messages()), (expected.as_bytes(), left.len()));
                let found: Vec<usize> =
                    left.iter().map(|position| gathered.withdrawn.position_without(places[*position])).collect();
                assert!(found.iter().copied().eq(0..left.len()), "{found:?}");
            }
        }
    }

    #[test]
    fn the_last_of_the_most_patient_is_known_until_it_leaves() {
        let mut queue: Queue<(), u32> = Queue::new(1024);
        let add = |queue: &mut Queue<(), u32>, until| queue.add(until, |encoded| encoded.push(b'x'));
        let first = add(&mut queue, 5);
        assert_eq!(queue.most_patient, Some((0, 5)));
        let second = add(&mut queue, 5);
        // This one waited for room before.
        add(&mut queue, 3);
        assert_eq!(queue.most_patient, Some((1, 5)));
        queue.withdraw(first);
        assert_eq!(queue.most_patient, Some((1, 5)));
        queue.withdraw(second);
        assert_eq!(queue.most_patient, None);
        queue.take();
        assert_eq!((queue.most_patient, queue.gathered.messages()), (None, 0));
    }
}
