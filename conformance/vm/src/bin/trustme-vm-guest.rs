//! The guest side: runs the scenarios of the plan and writes a verdict for each.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use trustme_vm::scenarios::{self, Guest};
use trustme_vm::verdict::{PLAN, Plan, Verdict};

fn main() -> Result<()> {
    let host = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("usage: trustme-vm-guest SHARED-DIRECTORY")?,
    );
    let plan: Plan = serde_json::from_slice(&std::fs::read(host.join(PLAN)).context(PLAN)?)?;
    let known = scenarios::all();
    for name in plan.scenarios {
        let started = Instant::now();
        let scenario = known
            .iter()
            .find(|s| s.name == name)
            .with_context(|| format!("{name}: no such scenario"))?;
        let mut guest = Guest::new(&host, Path::new("/tmp"), &name)?;
        let outcome = (scenario.run)(&mut guest);
        let verdict = Verdict {
            failure: outcome.err().map(|error| format!("{error:#}")),
            milliseconds: u64::try_from(started.elapsed().as_millis())?,
            log: guest.into_log(),
            scenario: name,
        };
        let path = Verdict::path(&host, &verdict.scenario);
        std::fs::write(&path, serde_json::to_vec_pretty(&verdict)?)
            .with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}
