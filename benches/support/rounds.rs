//! Interleaved rounds: every contender once, then every contender once more, so that whatever disturbs the machine
//! disturbs all of them. Ratios are computed round by round; what is printed are medians, and how far the ratios lie apart.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::record::{Ratio, Row};
use super::session::Session;

/// What is compared: one job, done by several contenders.
pub struct Scenario<'a> {
    pub name: &'a str,
    /// Bytes; 0 where there is none.
    pub payload: usize,
    /// How many things a contender does in one round.
    pub count: usize,
    /// What these things are, in the plural.
    pub unit: &'a str,
    pub rounds: usize,
    /// The contenders that the others are measured by.
    pub references: &'a [&'a str],
}

/// One way to do the job. Returns how long it took; what it does to prepare is not counted.
pub struct Contender<'a> {
    name: &'a str,
    run: Box<dyn FnMut() -> Duration + 'a>,
}

pub fn contender<'a>(name: &'a str, run: impl FnMut() -> Duration + 'a) -> Contender<'a> {
    Contender { name, run: Box::new(run) }
}

pub fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Runs `work` in `count` threads at once: from the start of the first to the end of the last.
pub fn in_threads(count: usize, work: impl Fn(usize) + Sync) -> Duration {
    let (barrier, work) = (Barrier::new(count), &work);
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|index| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let started = Instant::now();
                    work(index);
                    (started, Instant::now())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the thread has worked")).collect()
    });
    let started = spans.iter().map(|(started, _)| *started).min();
    let ended = spans.iter().map(|(_, ended)| *ended).max();
    started.zip(ended).map_or(Duration::ZERO, |(started, ended)| ended - started)
}

/// Runs all contenders in rounds, prints the table and records it.
pub fn compare(session: &Session, scenario: &Scenario<'_>, mut contenders: Vec<Contender<'_>>) {
    for contender in &mut contenders {
        (contender.run)();
    }
    let mut times = vec![Vec::with_capacity(scenario.rounds); contenders.len()];
    for _ in 0..scenario.rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            times.push((contender.run)().as_secs_f64());
        }
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    let results: Vec<String> =
        times.iter().map(|times| per_second(scenario.count as f64 / median(times.clone()))).collect();
    // Twice as fast is a ratio of two.
    let ratio = |own: &[f64], reference: &[f64]| -> Vec<f64> {
        own.iter().zip(reference).map(|(own, reference)| reference / own).collect()
    };
    report(session, scenario, &names, &results, &times, ratio);
}

/// Prints and records a result for each contender, with its ratios to the references.
pub fn report(
    session: &Session,
    scenario: &Scenario<'_>,
    names: &[&str],
    results: &[String],
    rounds: &[Vec<f64>],
    ratio: impl Fn(&[f64], &[f64]) -> Vec<f64>,
) {
    let payload = if scenario.payload > 0 { format!(", {} B", scenario.payload) } else { String::new() };
    println!(
        "\n{} ({}{payload}; {} {} in each of {} rounds)",
        scenario.name,
        session.cores.name(),
        scenario.count,
        scenario.unit,
        scenario.rounds
    );
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    let references: Vec<(&str, &Vec<f64>)> = scenario
        .references
        .iter()
        .map(|reference| {
            let at = names.iter().position(|name| name == reference).expect("a reference is a contender");
            (*reference, &rounds[at])
        })
        .collect();
    for ((name, result), own) in names.iter().zip(results).zip(rounds) {
        let ratios: Vec<Ratio> = references
            .iter()
            .map(|(reference, times)| {
                let ratios = ratio(own, times);
                Ratio {
                    reference: (*reference).to_owned(),
                    lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
                    highest: ratios.iter().copied().fold(0.0, f64::max),
                    median: median(ratios),
                }
            })
            .collect();
        print!("  {name:width$}  {result:>12}");
        for ratio in &ratios {
            print!("   {:5.2} of {} ({:.2}..{:.2})", ratio.median, ratio.reference, ratio.lowest, ratio.highest);
        }
        println!();
        session.record.add(&Row {
            bench: session.record.bench().to_owned(),
            cores: session.cores.name().to_owned(),
            scenario: scenario.name.to_owned(),
            payload: scenario.payload,
            contender: (*name).to_owned(),
            result: result.clone(),
            ratios,
        });
    }
}

/// The median; with an even number, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => (values[middle - 1] + value) / 2.0,
        (None, _) => f64::NAN,
    }
}

/// A rate with three significant digits: `47,100/s`.
fn per_second(rate: f64) -> String {
    let scale = 10_f64.powf((rate.max(1.0).log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (rate / scale).round() * scale);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + "/s"
}
