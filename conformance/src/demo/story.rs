//! Tells what the demo does: for each step what was expected and what was observed.

use std::time::Instant;

use anyhow::{Context, Result};

/// A story in steps.
#[derive(Debug)]
pub struct Story {
    begin: Instant,
    /// What each step has proved.
    proved: Vec<&'static str>,
}

impl Story {
    /// Nothing is told yet.
    pub fn begin() -> Self {
        Self {
            begin: Instant::now(),
            proved: Vec::new(),
        }
    }

    /// Carries out a step: `act` returns what was observed, or fails where that is not what was expected.
    ///
    /// # Errors
    /// That of `act`.
    pub fn step(
        &mut self,
        title: &'static str,
        expected: &str,
        act: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        println!("\n{}. {title}", self.proved.len() + 1);
        println!("   expected: {expected}");
        let begin = Instant::now();
        let observed = act().with_context(|| format!("\"{title}\" is not as expected"));
        let observed = observed.inspect_err(|_| println!("   observed: something else"))?;
        for (number, line) in observed.trim_end().lines().enumerate() {
            let label = if number == 0 {
                "observed:"
            } else {
                "         "
            };
            println!("   {label} {line}");
        }
        println!("   ({:.1} s)", begin.elapsed().as_secs_f64());
        self.proved.push(title);
        Ok(())
    }

    /// Says what was proved.
    pub fn end(self) {
        println!("\nProved, in {:.0} s:", self.begin.elapsed().as_secs_f64());
        for title in self.proved {
            println!("  - {title}");
        }
    }
}
