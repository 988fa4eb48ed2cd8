//! The table: a line for each test, a column for each runtime.

use crate::run::{Outcomes, Runtime};
use crate::tap::Verdict;

/// Prints the outcomes, and how many tests each runtime passes.
pub fn print(outcomes: &Outcomes, runtimes: &[Runtime]) {
    let width = outcomes.keys().map(String::len).max().unwrap_or_default();
    let mut heading = format!("{:width$}", "test");
    for runtime in runtimes {
        heading.push_str(&format!("  {:8}", runtime.name));
    }
    println!("{heading}");
    for (test, by_runtime) in outcomes {
        let mut line = format!("{test:width$}");
        let mut reason = None;
        for runtime in runtimes {
            let word = match by_runtime
                .get(&runtime.name)
                .map(|outcome| &outcome.verdict)
            {
                Some(Verdict::Pass) => "pass",
                Some(Verdict::Skip) => "skip",
                Some(Verdict::Fail(text)) => {
                    reason.get_or_insert_with(|| format!("{}: {text}", runtime.name));
                    "fail"
                }
                None => "",
            };
            line.push_str(&format!("  {word:8}"));
        }
        if let Some(reason) = reason {
            line.push_str(&format!("  {}", shortened(&reason)));
        }
        println!("{}", line.trim_end());
    }
    let mut sums = format!("{:width$}", format!("passed of {}", outcomes.len()));
    for runtime in runtimes {
        let passed = outcomes
            .values()
            .filter(|by_runtime| {
                by_runtime
                    .get(&runtime.name)
                    .is_some_and(|outcome| outcome.verdict == Verdict::Pass)
            })
            .count();
        sums.push_str(&format!("  {passed:<8}"));
    }
    println!("{}", sums.trim_end());
}

/// The first 110 characters: what does not fit a line is in the program's own output.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 110;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
