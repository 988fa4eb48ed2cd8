//! Benchmarks: the programs against others of their kind, interleaved in one run, as medians and ratios.

mod conversion;
mod lifecycle;
mod peers;
mod trust;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::command;
use crate::fixtures::Fixtures;
use crate::programs::Programs;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A few runs: checks that the benchmark works.
    Quick,
    /// Enough for medians.
    Full,
}

impl Effort {
    /// Number of runs.
    fn runs(self, quick: usize, full: usize) -> usize {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// Runs the benchmarks, or the one called `only`, with the programs in a directory and prints a table for each.
///
/// # Errors
/// A program fails.
pub fn run(programs: &Path, effort: Effort, only: Option<&str>) -> Result<()> {
    let fixtures = Fixtures::with(Programs::in_dir(programs)?)?;
    let parts: [(&str, Part); 4] = [
        ("lifecycle", lifecycle::run),
        ("trust", trust::run),
        ("conversion", conversion::run),
        ("big", conversion::run_big),
    ];
    for (name, part) in parts {
        if only.is_none_or(|only| only == name) {
            part(&fixtures, effort)?;
        }
    }
    Ok(())
}

type Part = fn(&Fixtures, Effort) -> Result<()>;

/// What is compared: names, and the times that each one's runs took.
#[derive(Debug)]
struct Table {
    title: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    times: Vec<Duration>,
    /// Something else worth knowing.
    note: String,
}

impl Table {
    fn new(title: &str, names: &[&str]) -> Self {
        let row = |name: &&str| Row {
            name: (*name).to_owned(),
            times: Vec::new(),
            note: String::new(),
        };
        Self {
            title: title.to_owned(),
            rows: names.iter().map(row).collect(),
        }
    }

    /// Prints medians, and ratios to the last row.
    fn print(&self) {
        println!("\n{}", self.title);
        let Some(base) = self.rows.last().map(Row::median) else {
            return;
        };
        for row in &self.rows {
            let (median, least) = (
                row.median(),
                row.times.iter().min().copied().unwrap_or_default(),
            );
            println!(
                "  {:<38} {:>9.1} ms  (least {:>8.1}, {:>2} runs)  {:>6.2} x  {}",
                row.name,
                milliseconds(median),
                milliseconds(least),
                row.times.len(),
                median.as_secs_f64() / base.as_secs_f64(),
                row.note
            );
        }
    }
}

impl Row {
    fn median(&self) -> Duration {
        median(&self.times)
    }
}

/// The middle one, the upper of two.
fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A table of one figure for each of the runtimes that are compared.
#[derive(Debug)]
struct Grid {
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Grid {
    fn new(title: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push((name.to_owned(), cells.into_iter().collect()));
    }

    fn print(&self) {
        println!("\n{}", self.title);
        let line = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:>18}")).collect();
            println!("  {name:<28}{cells}");
        };
        line("", &self.columns);
        for (name, cells) in &self.rows {
            line(name, cells);
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How long commands take, one after the other; each has to succeed.
fn timed(commands: &mut [Command]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for command in commands {
        let shown = command::shown(command);
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null());
        let errors = tempfile::NamedTempFile::new()?;
        command.stderr(errors.reopen()?);
        let begin = Instant::now();
        let status = command.status()?;
        all += begin.elapsed();
        let said = std::fs::read_to_string(errors.path())?;
        anyhow::ensure!(status.success(), "{shown}: {status}: {said}");
    }
    Ok(all)
}
