//! Entries that bring down every process that handles them: they cost no other entry its chances.

use crate::child::{Child, POISON, POISON_DELIVERIES};
use crate::common::wait_until;
use crate::support::{Bench, LONG, distinct};

const ENTRIES: usize = 256;

fn assert_only_poison_is_buried(poison: &[usize]) {
    let bench = Bench::start();
    bench.stream.create_input_stream(&bench.input()).unwrap();
    let text = |number: usize| if poison.contains(&number) { format!("{POISON} {number}") } else { number.to_string() };
    bench.stream.publish_batch(&bench.output(), (0..ENTRIES).map(text)).unwrap();

    let mut processes = 0;
    let mut child = Child::start(&bench, "aborting", "one");
    wait_until(6 * LONG, || {
        if child.has_ended() {
            processes += 1;
            assert!(processes <= poison.len() * POISON_DELIVERIES as usize, "it is handed out too often");
            child = Child::start(&bench, "aborting", "one");
        }
        bench.delivered().1 && bench.pending() == 0
    });
    child.finish();

    let lines = child.lines();
    let texts: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("got ")).collect();
    let handled: Vec<usize> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    assert_eq!(distinct(handled).len(), ENTRIES - poison.len());
    let hand_outs = |number: usize| texts.iter().filter(|handed| **handed == text(number)).count() as u64;
    assert_eq!(hand_outs(poison[0]), POISON_DELIVERIES);
    // What is queued when a process is killed has had one chance less.
    assert!(poison.iter().all(|number| (1..=POISON_DELIVERIES).contains(&hand_outs(*number))), "{lines:?}");
    let dead = bench.stream.dead_letters(&bench.dead(), ENTRIES).unwrap();
    let mut buried: Vec<_> = dead.iter().map(|letter| String::from_utf8_lossy(letter.payload()).into_owned()).collect();
    buried.sort_unstable();
    let mut expected: Vec<_> = poison.iter().map(|number| text(*number)).collect();
    expected.sort_unstable();
    assert_eq!(buried, expected);
}

#[test]
fn poison_that_aborts_every_process_is_the_only_dead_letter() {
    assert_only_poison_is_buried(&[100]);
}

#[test]
fn two_poisons_take_nothing_with_them_either() {
    assert_only_poison_is_buried(&[0, ENTRIES - 1]);
}
