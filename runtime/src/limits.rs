//! Limits with cgroup v1, written into the directories that were found when the container was created.
//!
//! libcgroups looks every controller up anew, each time through a procfs that it mounts for that (590 system calls of a
//! create), writes period and quota in an order that the kernel may refuse, and knows neither rdma nor the weights of
//! single devices. Order and values are runc's (libcontainer/cgroups/fs).

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxNetwork,
    LinuxRdma, LinuxResources, LinuxThrottleDevice,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup::Cgroups;

/// What every container may do, whatever its rules say (runc's list, without /dev/net/tun): make any node, and use the
/// harmless devices.
const ALWAYS_ALLOWED: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Sets the limits, all of them or, for an update, those that are named. `devices`: the rules for devices count too; an
/// ordinary user may set none.
///
/// # Errors
/// The first that cannot be set; its file is named. A limit whose controller is not there.
pub fn apply(cgroups: &Cgroups, resources: &LinuxResources, devices: bool) -> Result<()> {
    let of = |controller: &'static str| Controller::find(cgroups, controller);
    if let Some(unified) = resources.unified()
        && !unified.is_empty()
    {
        bail!("linux.resources.unified cannot be used with cgroup v1");
    }
    if let Some(limits) = resources.cpu() {
        cpu(&of("cpu"), limits)?;
        cpuset(&of("cpuset"), limits)?;
    }
    if let (Some(rules), true) = (resources.devices(), devices) {
        device_rules(&of("devices"), rules)?;
    }
    if let Some(limits) = resources.memory() {
        memory(&of("memory"), limits)?;
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => (),
            limit if limit > 0 => of("pids").write("pids.max", limit)?,
            _ => of("pids").write("pids.max", "max")?,
        }
    }
    if let Some(limits) = resources.block_io() {
        block_io(&of("blkio"), limits)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        hugepages(&of("hugetlb"), limit)?;
    }
    if let Some(limits) = resources.network() {
        network(&of("net_cls"), &of("net_prio"), limits)?;
    }
    rdma(cgroups, resources)
}

/// Sets the limits of RDMA devices, with either version of cgroups: libcgroups does it with none.
///
/// # Errors
/// As [`apply`].
pub fn rdma(cgroups: &Cgroups, resources: &LinuxResources) -> Result<()> {
    for (device, limits) in resources.rdma().iter().flatten() {
        let line = rdma_line(device, limits);
        Controller::find(cgroups, "rdma").write("rdma.max", line)?;
    }
    Ok(())
}

/// A controller's directory, if there is one.
struct Controller<'a> {
    name: &'static str,
    dir: Option<&'a Path>,
}

impl<'a> Controller<'a> {
    fn find(cgroups: &'a Cgroups, name: &'static str) -> Self {
        let dir = cgroups.dir(name);
        Self { name, dir }
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.with_context(|| {
            format!(
                "cannot set {name}: there is no cgroup controller {}",
                self.name
            )
        })?;
        Ok(dir.join(name))
    }

    fn has(&self, name: &str) -> bool {
        self.dir.is_some_and(|dir| dir.join(name).exists())
    }

    fn write(&self, name: &str, value: impl ToString) -> Result<()> {
        let (file, value) = (self.file(name)?, value.to_string());
        write(&file, &value)
            .with_context(|| format!("cannot write {value:?} to {}", file.display()))
    }

    /// Writes a value if there is one; none and 0 both say that nothing is wanted.
    fn write_some<T: ToString + Default + PartialEq>(
        &self,
        name: &str,
        value: Option<T>,
    ) -> Result<()> {
        match value {
            Some(value) if value != T::default() => self.write(name, value),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<String> {
        let file = self.file(name)?;
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// Never makes a file: where the kernel has none of this name, that is the error.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let handle = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&handle, value.as_bytes())?;
    Ok(())
}

fn cpu(cpu: &Controller<'_>, limits: &LinuxCpu) -> Result<()> {
    cpu.write_some("cpu.shares", limits.shares())?;
    in_some_order(
        cpu,
        ("cpu.cfs_period_us", limits.period()),
        ("cpu.cfs_quota_us", limits.quota()),
    )?;
    if let Some(burst) = limits.burst() {
        cpu.write("cpu.cfs_burst_us", burst)?;
    }
    in_some_order(
        cpu,
        ("cpu.rt_period_us", limits.realtime_period()),
        ("cpu.rt_runtime_us", limits.realtime_runtime()),
    )?;
    match limits.idle() {
        Some(idle) => cpu.write("cpu.idle", idle),
        None => Ok(()),
    }
}

/// Writes a period and the time within it. The kernel refuses a period that does not fit the time it has: then the time
/// comes first.
fn in_some_order(
    cpu: &Controller<'_>,
    (period_file, period): (&str, Option<u64>),
    (time_file, time): (&str, Option<i64>),
) -> Result<()> {
    let written = cpu.write_some(period_file, period);
    if written.is_ok() || time.is_none() {
        written?;
        return cpu.write_some(time_file, time);
    }
    cpu.write_some(time_file, time)?;
    cpu.write_some(period_file, period)
}

fn cpuset(cpuset: &Controller<'_>, limits: &LinuxCpu) -> Result<()> {
    let text = |text: &Option<String>| text.clone();
    cpuset.write_some("cpuset.cpus", text(limits.cpus()))?;
    cpuset.write_some("cpuset.mems", text(limits.mems()))
}

fn device_rules(controller: &Controller<'_>, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    for rule in rules {
        let file = match rule.allow() {
            true => "devices.allow",
            false => "devices.deny",
        };
        controller.write(file, rule)?;
    }
    let file = controller.file("devices.allow")?;
    let allow = || -> io::Result<()> {
        let handle = rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        for rule in ALWAYS_ALLOWED {
            rustix::io::write(&handle, rule.as_bytes())?;
        }
        Ok(())
    };
    allow().with_context(|| format!("cannot write to {}", file.display()))
}

/// The file of the limit of memory and swap together.
const SWAP: &str = "memory.memsw.limit_in_bytes";
const LIMIT: &str = "memory.limit_in_bytes";

fn memory(memory: &Controller<'_>, limits: &LinuxMemory) -> Result<()> {
    let limit = limits.limit().unwrap_or(0);
    let swap = match limits.swap().unwrap_or(0) {
        // No limit of memory means none of swap either, where the kernel counts it.
        0 if limit == -1 && memory.has(SWAP) => -1,
        swap => swap,
    };
    // The limit of memory may never be above that of both.
    let swap_first = limit != 0
        && swap != 0
        && (swap == -1
            || memory
                .read(LIMIT)?
                .parse::<i64>()
                .is_ok_and(|now| now < swap));
    if swap_first {
        memory.write(SWAP, swap)?;
    }
    memory_limit(memory, limit)?;
    if !swap_first {
        memory.write_some(SWAP, Some(swap))?;
    }
    memory.write_some("memory.soft_limit_in_bytes", limits.reservation())?;
    if limits.disable_oom_killer() == Some(true) {
        memory.write("memory.oom_control", 1)?;
    }
    match limits.swappiness() {
        Some(swappiness) => {
            ensure!(
                swappiness <= 100,
                "invalid memory swappiness value: {swappiness}, valid range is 0-100"
            );
            memory.write("memory.swappiness", swappiness)
        }
        None => Ok(()),
    }
}

fn memory_limit(memory: &Controller<'_>, limit: i64) -> Result<()> {
    let written = memory.write_some(LIMIT, Some(limit));
    let is_busy = |err: &anyhow::Error| {
        let cause = err.root_cause().downcast_ref::<io::Error>();
        cause.and_then(Errno::from_io_error) == Some(Errno::BUSY)
    };
    match written {
        Err(err) if is_busy(&err) => bail!(
            "unable to set memory limit to {limit} (current usage: {}, peak usage: {})",
            memory.read("memory.usage_in_bytes")?,
            memory.read("memory.max_usage_in_bytes")?
        ),
        other => other,
    }
}

fn block_io(blkio: &Controller<'_>, limits: &LinuxBlockIo) -> Result<()> {
    // With the scheduler BFQ, which came after CFQ, the weights have other names.
    let [weight, weight_of] = match blkio.has("blkio.weight") {
        true => ["blkio.weight", "blkio.weight_device"],
        false => ["blkio.bfq.weight", "blkio.bfq.weight_device"],
    };
    blkio.write_some(weight, limits.weight())?;
    blkio.write_some("blkio.leaf_weight", limits.leaf_weight())?;
    for device in limits.weight_device().iter().flatten() {
        let place = format!("{}:{}", device.major(), device.minor());
        if let Some(value) = device.weight() {
            blkio.write(weight_of, format!("{place} {value}"))?;
        }
        if let Some(value) = device.leaf_weight() {
            blkio.write("blkio.leaf_weight_device", format!("{place} {value}"))?;
        }
    }
    let throttles: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("read_bps", limits.throttle_read_bps_device()),
        ("write_bps", limits.throttle_write_bps_device()),
        ("read_iops", limits.throttle_read_iops_device()),
        ("write_iops", limits.throttle_write_iops_device()),
    ];
    for (name, devices) in throttles {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            blkio.write(&format!("blkio.throttle.{name}_device"), value)?;
        }
    }
    Ok(())
}

fn hugepages(hugetlb: &Controller<'_>, limit: &LinuxHugepageLimit) -> Result<()> {
    let size = limit.page_size();
    ensure!(
        size.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "hugepageLimits: page size {size:?}"
    );
    hugetlb.write(&format!("hugetlb.{size}.limit_in_bytes"), limit.limit())?;
    // Pages that are reserved but not touched yet, which a kernel may count apart.
    let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
    match hugetlb.has(&reserved) {
        true => hugetlb.write(&reserved, limit.limit()),
        false => Ok(()),
    }
}

fn network(class: &Controller<'_>, priority: &Controller<'_>, limits: &LinuxNetwork) -> Result<()> {
    class.write_some("net_cls.classid", limits.class_id())?;
    for device in limits.priorities().iter().flatten() {
        let value = format!("{} {}", device.name(), device.priority());
        priority.write("net_prio.ifpriomap", value)?;
    }
    Ok(())
}

/// The line for a device in rdma.max.
fn rdma_line(device: &str, limits: &LinuxRdma) -> String {
    let part = |name: &str, value: Option<u32>| match value {
        Some(value) => format!(" {name}={value}"),
        None => String::new(),
    };
    let handles = part("hca_handle", limits.hca_handles());
    let objects = part("hca_object", limits.hca_objects());
    format!("{device}{handles}{objects}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cgroup::CgroupDir;

    /// Cgroups that are plain directories, with files of these names and contents.
    fn fake(dir: &Path, files: &[(&str, &str)]) -> Cgroups {
        let mut cgroups = Cgroups::default();
        for (name, content) in files {
            let controller = name.split_once('.').unwrap().0;
            let path = dir.join(controller);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(name), content).unwrap();
            if cgroups.dir(controller).is_none() {
                cgroups.dirs.push(CgroupDir {
                    controller: controller.to_owned(),
                    path,
                    existed: false,
                });
            }
        }
        cgroups
    }

    fn resources(json: Value) -> LinuxResources {
        let mut resources: LinuxResources = serde_json::from_value(json).unwrap();
        resources.set_devices(None);
        resources
    }

    #[test]
    fn each_limit_is_in_its_file() {
        let cases = [
            (json!({"cpu": {"shares": 512}}), "cpu.shares", "512"),
            (json!({"cpu": {"quota": -1}}), "cpu.cfs_quota_us", "-1"),
            (
                json!({"cpu": {"period": 100_000}}),
                "cpu.cfs_period_us",
                "100000",
            ),
            (json!({"cpu": {"burst": 7}}), "cpu.cfs_burst_us", "7"),
            (
                json!({"cpu": {"realtimePeriod": 9}}),
                "cpu.rt_period_us",
                "9",
            ),
            (
                json!({"cpu": {"realtimeRuntime": 8}}),
                "cpu.rt_runtime_us",
                "8",
            ),
            (json!({"cpu": {"idle": 1}}), "cpu.idle", "1"),
            (json!({"cpu": {"cpus": "0-1"}}), "cpuset.cpus", "0-1"),
            (json!({"cpu": {"mems": "0"}}), "cpuset.mems", "0"),
            (json!({"memory": {"limit": 4096}}), LIMIT, "4096"),
            (json!({"memory": {"swap": 8192}}), SWAP, "8192"),
            (json!({"memory": {"limit": -1}}), SWAP, "-1"),
            (
                json!({"memory": {"reservation": 5}}),
                "memory.soft_limit_in_bytes",
                "5",
            ),
            (
                json!({"memory": {"disableOOMKiller": true}}),
                "memory.oom_control",
                "1",
            ),
            (
                json!({"memory": {"swappiness": 0}}),
                "memory.swappiness",
                "0",
            ),
            (json!({"pids": {"limit": 3}}), "pids.max", "3"),
            (json!({"pids": {"limit": -1}}), "pids.max", "max"),
            (json!({"blockIO": {"weight": 10}}), "blkio.bfq.weight", "10"),
            (
                json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 1, "weight": 9}]}}),
                "blkio.bfq.weight_device",
                "8:1 9",
            ),
            (
                json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 6}]}}),
                "blkio.throttle.read_bps_device",
                "8:0 6",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}),
                "hugetlb.2MB.limit_in_bytes",
                "4",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}),
                "hugetlb.2MB.rsvd.limit_in_bytes",
                "4",
            ),
            (json!({"network": {"classID": 17}}), "net_cls.classid", "17"),
            (
                json!({"network": {"priorities": [{"name": "lo", "priority": 2}]}}),
                "net_prio.ifpriomap",
                "lo 2",
            ),
            (
                json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}}),
                "rdma.max",
                "mlx5_1 hca_handle=3 hca_object=10",
            ),
        ];
        let files: Vec<_> = cases.iter().map(|(_, file, _)| (*file, "")).collect();
        for (json, file, content) in &cases {
            let dir = tempfile::tempdir().unwrap();
            let cgroups = fake(dir.path(), &files);
            let case = json.to_string();
            apply(&cgroups, &resources(json.clone()), false).expect(&case);
            let controller = file.split_once('.').unwrap().0;
            let found = std::fs::read_to_string(dir.path().join(controller).join(file)).unwrap();
            assert_eq!(found, *content, "{case}");
        }
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = fake(dir.path(), &[("memory.swappiness", "")]);
        for (json, expected) in [
            (
                json!({"rdma": {"x": {"hcaHandles": 3}}}),
                "no cgroup controller rdma",
            ),
            (json!({"pids": {"limit": 3}}), "no cgroup controller pids"),
            (
                json!({"memory": {"swappiness": 101}}),
                "valid range is 0-100",
            ),
            (
                json!({"memory": {"reservation": 1}}),
                "memory.soft_limit_in_bytes: No such file",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "../x", "limit": 4}]}),
                "page size \"../x\"",
            ),
            (json!({"unified": {"a": "b"}}), "cgroup v1"),
        ] {
            let err = apply(&cgroups, &resources(json), false).unwrap_err();
            assert!(format!("{err:#}").contains(expected), "{err:#}");
        }
    }

    #[test]
    fn the_limit_of_both_comes_first_where_it_grows() {
        // A file that is not there ends the writing: what was written before shows the order.
        for (now, swap, first) in [("10", 30, true), ("40", 30, false)] {
            let dir = tempfile::tempdir().unwrap();
            let cgroups = fake(dir.path(), &[(LIMIT, now)]);
            let json = json!({"memory": {"limit": 20, "swap": swap}});
            apply(&cgroups, &resources(json), false).unwrap_err();
            let limit = std::fs::read_to_string(dir.path().join("memory").join(LIMIT)).unwrap();
            assert_eq!(limit == now, first);
        }
    }
}
