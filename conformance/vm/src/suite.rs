//! The host side of the scenarios: boots what they need, collects the verdicts, prints a line for each.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::{self, Firmware, Power};
use crate::packages::checked;
use crate::scenarios::{self, Boot, Scenario, oci};
use crate::uefi;
use crate::verdict::{PLAN, Plan, Verdict};
use crate::workshop::{IMA, Workshop};

/// A boot may take this long, scenarios included: three times what was seen.
const BOOT_LIMIT: Duration = Duration::from_secs(720);

/// A scenario that takes longer hangs: three times the slowest.
const SCENARIO_LIMIT: Duration = Duration::from_secs(150);

/// The same for the official OCI suite.
const OCI_LIMIT: Duration = Duration::from_secs(1800);

/// The guest's disk, beside the TPM's state: both last over the boots of a machine.
const DISK: &str = "disk.img";

/// Sparse.
const DISK_SIZE: u64 = 2 << 30;

/// Runs all scenarios, or those that are named, or those of the machines that are named.
///
/// The boots of `secureboot` belong together: who names a scenario of one runs all.
///
/// # Errors
/// Some fail: the error names them. Or a name is that of none, or a machine cannot be made or does not end.
pub fn run(workshop: &Workshop, only: &[String]) -> Result<()> {
    let begin = Instant::now();
    let mut failed = Vec::new();
    let boots = chosen(only)?;
    for (boot, scenarios) in &boots {
        let share = workshop.share(boot.name())?;
        failed.extend(run_boot(workshop, *boot, scenarios, &share)?);
    }
    println!("{:<44} {:>6.1} s", "all", begin.elapsed().as_secs_f64());
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs the official OCI suite, whose programs are in `suite`, on cgroup v2, and prints its table. `runner` runs it.
///
/// # Errors
/// trustme fails where runc passes, or not where it is expected; or the machine cannot be made.
pub fn oci(workshop: &Workshop, suite: &Path, runner: &Path) -> Result<()> {
    let share = workshop.share(Boot::Oci.name())?;
    fs::copy(runner, share.join("bin").join(oci::RUNNER))
        .with_context(|| runner.display().to_string())?;
    let programs = share.join(oci::SUITE);
    fs::create_dir(&programs)?;
    for entry in fs::read_dir(suite).with_context(|| suite.display().to_string())? {
        let entry = entry?;
        fs::copy(entry.path(), programs.join(entry.file_name()))?;
    }
    let scenario = scenarios::find("oci").context("no scenario oci")?;
    let failed = run_boot(workshop, Boot::Oci, &[scenario], &share)?;
    // None if the machine came not that far, which is said already.
    println!(
        "{}",
        fs::read_to_string(share.join(oci::TABLE)).unwrap_or_default()
    );
    fs::remove_dir_all(&programs)?;
    ensure!(failed.is_empty(), "the OCI suite on cgroup v2");
    Ok(())
}

/// The scenarios to run, by their boot.
fn chosen(only: &[String]) -> Result<BTreeMap<Boot, Vec<Scenario>>> {
    let all = scenarios::all();
    for name in only {
        if !all.iter().any(|s| s.name == name || machine_of(s) == name) {
            let known: Vec<&str> = all.iter().map(|scenario| scenario.name).collect();
            bail!(
                "no such scenario: {name}; there are direct, secureboot, {}",
                known.join(", ")
            );
        }
    }
    let named = |s: &Scenario| {
        only.iter()
            .any(|name| s.name == name || machine_of(s) == name)
    };
    let secure = all.iter().any(|s| s.boot != Boot::Direct && named(s));
    let mut boots: BTreeMap<Boot, Vec<Scenario>> = BTreeMap::new();
    for scenario in all {
        let together = secure && scenario.boot != Boot::Direct;
        if only.is_empty() || together || named(&scenario) {
            boots.entry(scenario.boot).or_default().push(scenario);
        }
    }
    Ok(boots)
}

fn machine_of(scenario: &Scenario) -> &'static str {
    match scenario.boot {
        Boot::Direct => "direct",
        Boot::Oci => "oci",
        _ => "secureboot",
    }
}

/// Runs the scenarios of one boot, with what is in `share`; the names of those that failed.
fn run_boot(
    workshop: &Workshop,
    boot: Boot,
    scenarios: &[Scenario],
    share: &Path,
) -> Result<Vec<String>> {
    let firmware = firmware(workshop, boot)?;
    let verdicts = share.join("verdicts");
    fs::create_dir_all(&verdicts)?;
    let (boot_limit, limit) = match boot {
        Boot::Oci => (OCI_LIMIT + BOOT_LIMIT, OCI_LIMIT),
        _ => (BOOT_LIMIT, SCENARIO_LIMIT),
    };
    let plan = Plan {
        scenarios: scenarios.iter().map(|s| s.name.to_owned()).collect(),
        limit: limit.as_secs(),
    };
    fs::write(share.join(PLAN), serde_json::to_vec_pretty(&plan)?)?;
    let state = workshop
        .cache()
        .join(format!("state-{}", machine_of(&scenarios[0])));
    if matches!(boot, Boot::Direct | Boot::SecureBoot | Boot::Oci) {
        new_state(&state)?;
    }
    let console = workshop
        .cache()
        .join(format!("console-{}.log", boot.name()));
    let ran = Power {
        firmware: &firmware,
        tpm_state: &state.join("tpm"),
        share,
        disk: &state.join(DISK),
        console_log: &console,
        timeout: boot_limit,
    }
    .run();
    let mut failed = Vec::new();
    for scenario in scenarios {
        let verdict = Verdict::read(share, scenario.name).unwrap_or_else(|error| Verdict {
            scenario: scenario.name.to_owned(),
            failure: Some(format!("{error:#}")),
            milliseconds: 0,
        });
        report(boot, &verdict, share);
        if verdict.failure.is_some() {
            failed.push(scenario.name.to_owned());
        }
    }
    let took = ran.with_context(|| format!("{}; console: {}", boot.name(), console.display()))?;
    println!(
        "{:<16} {:<27} {:>6.1} s",
        boot.name(),
        "boot to power-off",
        took.as_secs_f64()
    );
    if !failed.is_empty() {
        println!("console: {}", console.display());
    }
    Ok(failed)
}

fn report(boot: Boot, verdict: &Verdict, share: &Path) {
    let end = if verdict.failure.is_some() {
        "  FAILED"
    } else {
        ""
    };
    let seconds = Duration::from_millis(verdict.milliseconds).as_secs_f64();
    println!(
        "{:<16} {:<27} {seconds:>6.1} s{end}",
        boot.name(),
        verdict.scenario
    );
    if let Some(failure) = &verdict.failure {
        println!("  {failure}");
        println!(
            "  log: {}",
            Verdict::log_path(share, &verdict.scenario).display()
        );
    }
}

fn firmware(workshop: &Workshop, boot: Boot) -> Result<Firmware> {
    match boot {
        Boot::Direct => workshop.direct(IMA),
        Boot::Oci => workshop.direct(""),
        _ => uefi::machine(workshop, boot.name(), boot != Boot::SecureBootOff),
    }
}

/// A new TPM and an empty disk.
fn new_state(state: &Path) -> Result<()> {
    if state.exists() {
        fs::remove_dir_all(state).with_context(|| format!("{}", state.display()))?;
    }
    machine::new_tpm(&state.join("tpm"))?;
    let disk = state.join(DISK);
    File::create(&disk)?.set_len(DISK_SIZE)?;
    checked(
        Command::new("mkfs.ext4")
            .args(["-q", "-O", "encrypt"])
            .arg(disk),
    )
}

/// Boots the machine `direct` with its console on the caller's terminal and a shell in it.
///
/// # Errors
/// The machine cannot be made, or fails.
pub fn shell(workshop: &Workshop) -> Result<()> {
    let firmware = workshop.direct(&format!("{IMA} trustme.shell"))?;
    let share = workshop.share("shell")?;
    let state = workshop.cache().join("state-shell");
    new_state(&state)?;
    Power {
        firmware: &firmware,
        tpm_state: &state.join("tpm"),
        share: &share,
        disk: &state.join(DISK),
        console_log: Path::new("/dev/null"),
        timeout: BOOT_LIMIT,
    }
    .interactive()
}
