//! `events`: prints statistics, and tells when a process was killed for want of memory.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use libcgroups::common::CgroupManager;
use libcgroups::stats::{BlkioDeviceStat, MemoryData, Stats};
use serde_json::{Value, json};

use crate::cgroup::Cgroups;
use crate::cli::Events;
use crate::root::Root;
use crate::state::{Container, Status};

/// Prints an event a line as JSON, in runc's form, until the container has stopped; with `--stats`, one.
///
/// # Errors
/// If the container is not running or its cgroup cannot be read.
pub fn events(args: &Events, root: &Root) -> Result<()> {
    let interval = duration(&args.interval)?;
    let container = Container::load(root, &args.container_id)?;
    if container.status() == Status::Stopped {
        bail!("container with id {} is not running", container.record.id);
    }
    let cgroups = &container.record.cgroups;
    let mut kills = oom_kills(cgroups);
    loop {
        print_event("stats", &container, statistics(&container)?);
        if args.stats {
            return Ok(());
        }
        std::thread::sleep(interval);
        let now = oom_kills(cgroups);
        if now > kills {
            print_event("oom", &container, Value::Null);
        }
        kills = now;
        if container.status() == Status::Stopped {
            return Ok(());
        }
    }
}

fn print_event(kind: &str, container: &Container, data: Value) {
    let mut event = json!({"type": kind, "id": container.record.id});
    if !data.is_null() {
        event["data"] = data;
    }
    println!("{event}");
}

/// How often the kernel killed a process of the cgroup for want of memory.
fn oom_kills(cgroups: &Cgroups) -> u64 {
    let file = if cgroups.is_unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let text = cgroups
        .dir("memory")
        .and_then(|dir| std::fs::read_to_string(dir.join(file)).ok())
        .unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        .unwrap_or(0)
}

fn statistics(container: &Container) -> Result<Value> {
    let record = &container.record;
    let manager = libcgroups::common::create_cgroup_manager(record.cgroups.config(&record.id))?;
    let stats = manager
        .stats()
        .context("cannot read the container's statistics")?;
    Ok(in_runcs_form(&stats))
}

/// libcgroups' statistics under the names that runc prints them (its types/events.go).
fn in_runcs_form(stats: &Stats) -> Value {
    let usage = &stats.cpu.usage;
    let throttling = &stats.cpu.throttling;
    let memory = |data: &MemoryData| json!({"limit": data.limit, "usage": data.usage, "max": data.max_usage, "failcnt": data.fail_count});
    let devices = |list: &[BlkioDeviceStat]| -> Value {
        list.iter()
            .map(|device| {
                json!({"major": device.major, "minor": device.minor, "op": device.op_type, "value": device.value})
            })
            .collect()
    };
    let huge: serde_json::Map<_, _> = stats
        .hugetlb
        .iter()
        .map(|(size, page)| {
            (
                size.clone(),
                json!({"usage": page.usage, "max": page.max_usage, "failcnt": page.fail_count}),
            )
        })
        .collect();
    json!({
        "cpu": {
            "usage": {
                "total": usage.usage_total,
                "percpu": usage.per_core_usage_total,
                "percpu_kernel": usage.per_core_usage_kernel,
                "percpu_user": usage.per_core_usage_user,
                "kernel": usage.usage_kernel,
                "user": usage.usage_user,
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": throttling.throttled_time,
            },
        },
        "memory": {
            "cache": stats.memory.cache,
            "usage": memory(&stats.memory.memory),
            "swap": memory(&stats.memory.memswap),
            "kernel": memory(&stats.memory.kernel),
            "kernelTCP": memory(&stats.memory.kernel_tcp),
            "raw": stats.memory.stats,
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": devices(&stats.blkio.service_bytes),
            "ioServicedRecursive": devices(&stats.blkio.serviced),
            "ioQueueRecursive": devices(&stats.blkio.queued),
            "ioServiceTimeRecursive": devices(&stats.blkio.service_time),
            "ioWaitTimeRecursive": devices(&stats.blkio.wait_time),
            "ioMergedRecursive": devices(&stats.blkio.merged),
            "ioTimeRecursive": devices(&stats.blkio.time),
            "sectorsRecursive": devices(&stats.blkio.sectors),
        },
        "hugetlb": huge,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// A positive duration as Go writes the simple ones: a number with ms, s, m or h.
fn duration(text: &str) -> Result<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let value = number
        .parse::<u64>()
        .ok()
        .zip(milliseconds)
        .and_then(|(number, unit)| number.checked_mul(unit));
    match value {
        Some(0) => bail!("duration interval must be greater than 0"),
        Some(value) => Ok(Duration::from_millis(value)),
        None => bail!("invalid interval {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_understood() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "0s", "x", "5d", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
