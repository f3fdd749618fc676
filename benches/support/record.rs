//! The results of a run as lines of text, from which the report makes the table and the chart.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

/// Where results go: `bench` in cargo's target directory.
pub fn directory() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    directory
}

/// One contender's result in one scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub bench: String,
    pub cores: String,
    pub scenario: String,
    /// Bytes; 0 where there is none.
    pub payload: usize,
    pub contender: String,
    /// Such as `47,100/s`.
    pub result: String,
    /// How it compares with each reference.
    pub ratios: Vec<Ratio>,
}

/// A ratio that was computed round by round.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    pub reference: String,
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Row {
    /// Tab-separated, on one line.
    fn line(&self) -> String {
        let mut line = [
            self.bench.as_str(),
            &self.cores,
            &self.scenario,
            &self.payload.to_string(),
            &self.contender,
            &self.result,
        ]
        .join("\t");
        for Ratio { reference, median, lowest, highest } in &self.ratios {
            line += &format!("\t{reference}\t{median:.4}\t{lowest:.4}\t{highest:.4}");
        }
        line
    }

    fn parse(line: &str) -> Option<Row> {
        let mut parts = line.split('\t').map(str::to_owned);
        let mut row = Row {
            bench: parts.next()?,
            cores: parts.next()?,
            scenario: parts.next()?,
            payload: parts.next()?.parse().ok()?,
            contender: parts.next()?,
            result: parts.next()?,
            ratios: Vec::new(),
        };
        while let Some(reference) = parts.next() {
            let mut number = || parts.next()?.parse().ok();
            row.ratios.push(Ratio { reference, median: number()?, lowest: number()?, highest: number()? });
        }
        Some(row)
    }
}

/// Where a bench writes what it has measured.
#[derive(Debug)]
pub struct Record {
    bench: &'static str,
    path: PathBuf,
}

impl Record {
    /// Forgets what an earlier run has left.
    pub fn begin(bench: &'static str) {
        let _ = fs::remove_file(Record::append(bench).path);
    }

    pub fn append(bench: &'static str) -> Record {
        Record { bench, path: directory().join(format!("{bench}.tsv")) }
    }

    pub fn bench(&self) -> &'static str {
        self.bench
    }

    pub fn add(&self, row: &Row) {
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let written = file.and_then(|mut file| writeln!(file, "{}", row.line()));
        written.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
    }
}

/// What a bench has recorded last; nothing when it did not run.
pub fn read(bench: &str) -> Vec<Row> {
    let text = fs::read_to_string(directory().join(format!("{bench}.tsv"))).unwrap_or_default();
    text.lines().filter_map(Row::parse).collect()
}
