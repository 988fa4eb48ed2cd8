//! `update`: changes the resource limits of a container.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use libcgroups::common::{CgroupManager, ControllerOpt};
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpu, LinuxMemory, LinuxPidsBuilder, LinuxResources,
};

use crate::cli::Update;
use crate::root::Root;
use crate::state::{Container, Status};
use crate::{devices, limits};

/// Changes the limits.
///
/// # Errors
/// If a value is wrong or the kernel refuses it.
pub fn update(args: &Update, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    if container.status() == Status::Stopped {
        bail!("container not running");
    }
    if args.l3_cache_schema.is_some() || args.mem_bw_schema.is_some() {
        bail!("Intel RDT: the schema of a running container cannot be changed by this runtime");
    }
    let resources = match &args.resources {
        Some(file) => read(file)?,
        None => from_flags(args)?,
    };
    let cgroups = &container.record.cgroups;
    if !cgroups.is_unified() {
        return limits::apply(cgroups, &resources, true);
    }
    let resources = cgroups.completed(&resources);
    let manager = libcgroups::common::create_cgroup_manager(cgroups.config(&container.record.id))?;
    manager.apply(&ControllerOpt {
        resources: &resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    })?;
    limits::rdma(cgroups, &resources)?;
    if let (Some(rules), Some(dir)) = (resources.devices(), cgroups.dirs.first()) {
        devices::restrict(&dir.path, rules)?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<LinuxResources> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let mut resources: LinuxResources =
        serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?;
    // Without a list the kernel's is to stay: oci-spec fills in a default.
    if serde_json::from_slice::<serde_json::Value>(&bytes)?
        .get("devices")
        .is_none()
    {
        resources.set_devices(None);
    }
    Ok(resources)
}

fn from_flags(args: &Update) -> Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    if let Some(weight) = args.blkio_weight {
        resources.set_block_io(Some(LinuxBlockIoBuilder::default().weight(weight).build()?));
    }
    if let Some(limit) = args.pids_limit {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(args.cpu_share)
        .set_quota(args.cpu_quota)
        .set_burst(args.cpu_burst)
        .set_period(args.cpu_period)
        .set_realtime_period(args.cpu_rt_period)
        .set_realtime_runtime(args.cpu_rt_runtime)
        .set_idle(args.cpu_idle)
        .set_cpus(args.cpuset_cpus.clone())
        .set_mems(args.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(
            args.memory
                .as_deref()
                .map(|text| bytes(text, "memory"))
                .transpose()?,
        )
        .set_reservation(
            args.memory_reservation
                .as_deref()
                .map(|text| bytes(text, "memory-reservation"))
                .transpose()?,
        )
        .set_swap(
            args.memory_swap
                .as_deref()
                .map(|text| bytes(text, "memory-swap"))
                .transpose()?,
        );
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}

/// A size as runc takes it: bytes, or a number with k, m, g, t or p (1024 each), also written kb or KiB; -1 for no limit.
fn bytes(text: &str, flag: &str) -> Result<i64> {
    let parse = || -> Option<i64> {
        if text == "-1" {
            return Some(-1);
        }
        let lower = text.trim().to_ascii_lowercase();
        let number_end = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let (number, unit) = lower.split_at(number_end);
        let unit = unit.trim().trim_end_matches('b').trim_end_matches('i');
        let power = match unit {
            "" => 0,
            _ => {
                1 + ["k", "m", "g", "t", "p"]
                    .iter()
                    .position(|known| *known == unit)? as u32
            }
        };
        let value = number.parse::<f64>().ok()? * 1024_f64.powi(power as i32);
        (value < i64::MAX as f64).then_some(value as i64)
    };
    parse().with_context(|| format!("invalid value for {flag}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("-1", -1),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("1.5GiB", 3 << 29),
        ] {
            assert_eq!(bytes(text, "memory").unwrap(), size, "{text}");
        }
        for text in ["", "x", "1x", "-2", "9999999999999g"] {
            assert!(bytes(text, "memory").is_err(), "{text}");
        }
    }

    #[test]
    fn flags_that_are_not_given_change_nothing() {
        let resources = from_flags(&Update::default()).unwrap();
        assert!(
            resources.cpu().is_none()
                && resources.memory().is_none()
                && resources.devices().is_none()
        );
    }
}
