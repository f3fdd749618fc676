//! Log lines that are told when the work at hand is done: the program's logger may itself wait for what this thread is doing,
//! or panic, and others wait for it.

use std::cell::RefCell;
use std::fmt;

use log::Level;

/// A line that is told later.
#[derive(Debug)]
pub(crate) struct Line {
    level: Level,
    target: &'static str,
    text: String,
}

thread_local! {
    /// The lines of this thread's work at hand, if it keeps them.
    static KEPT: RefCell<Option<Vec<Line>>> = const { RefCell::new(None) };
}

/// Logs at once, or where this thread [keeps](keep) its lines, later.
macro_rules! log_later {
    ($level:ident, $($text:tt)+) => {
        if log::log_enabled!(log::Level::$level) {
            $crate::log_later::log(log::Level::$level, module_path!(), format_args!($($text)+));
        }
    };
}
pub(crate) use log_later;

pub(crate) fn log(level: Level, target: &'static str, text: fmt::Arguments<'_>) {
    let kept = KEPT.try_with(|kept| match &mut *kept.borrow_mut() {
        Some(lines) => {
            lines.push(Line { level, target, text: text.to_string() });
            true
        }
        None => false,
    });
    // While a thread ends, it keeps nothing any more.
    if !kept.unwrap_or(false) {
        log::log!(target: target, level, "{text}");
    }
}

/// Does this work and keeps what it logs with [`log_later!`]; the lines are to be [told](tell) afterwards.
pub(crate) fn keep<T>(lines: &mut Vec<Line>, work: impl FnOnce() -> T) -> T {
    let mut keeping = Keeping { lines, before: swap(Some(Vec::new())) };
    let done = work();
    keeping.end();
    done
}

/// Tells what was [kept](keep), if anything.
pub(crate) fn tell(lines: Vec<Line>) {
    for Line { level, target, text } in lines {
        // Work within other work: the outer one may keep its lines too.
        log(level, target, format_args!("{text}"));
    }
}

/// Ends when the work does, by a panic too.
struct Keeping<'l> {
    lines: &'l mut Vec<Line>,
    before: Option<Vec<Line>>,
}

impl Keeping<'_> {
    fn end(&mut self) {
        if let Some(mut kept) = swap(self.before.take()) {
            self.lines.append(&mut kept);
        }
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end();
        }
    }
}

fn swap(lines: Option<Vec<Line>>) -> Option<Vec<Line>> {
    KEPT.try_with(|kept| kept.replace(lines)).unwrap_or(None)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn say(text: &str) {
        log(Level::Warn, "test", format_args!("{text}"));
    }

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn work_within_work_tells_the_outer_one() {
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let done = keep(&mut outer, || {
            say("before");
            keep(&mut inner, || say("inner"));
            say("between");
            tell(std::mem::take(&mut inner));
            "done"
        });
        assert_eq!((done, texts(outer)), ("done", ["before", "between", "inner"].map(String::from).to_vec()));
    }

    #[test]
    fn a_panic_ends_the_keeping_and_loses_nothing() {
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        keep(&mut outer, || {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                keep(&mut inner, || {
                    say("inner");
                    std::panic::resume_unwind(Box::new(()));
                });
            }));
            assert!(panicked.is_err());
            say("outer");
        });
        assert_eq!((texts(outer), texts(inner)), (vec!["outer".to_owned()], vec!["inner".to_owned()]));
        assert!(swap(None).is_none());
    }
}
