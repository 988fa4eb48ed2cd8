//! What a container uses, in the messages of containerd/cgroups, for either version of cgroups.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use anyhow::Result;

use crate::any;
use crate::cgroup::Cgroups;

/// A second of the scheduler's clock, which counts hundredths in `cpuacct.stat`: USER_HZ is 100 everywhere.
const TICK_NANOSECONDS: u64 = 10_000_000;

/// The metrics of a container's cgroups; a file that is not there counts as nothing, since kernels lack some.
///
/// # Errors
/// Never in fact: the messages have no required fields.
pub fn of(cgroups: &Cgroups) -> Result<Any> {
    match cgroups {
        Cgroups::Legacy(_) => any::pack("io.containerd.cgroups.v1", &legacy(cgroups)),
        Cgroups::Unified(dir) => any::pack("io.containerd.cgroups.v2", &unified(dir)),
    }
}

/// A cgroup's directory.
struct Files<'a>(Option<&'a Path>);

impl Files<'_> {
    fn text(&self, name: &str) -> String {
        let path = self.0.map(|dir| dir.join(name));
        path.and_then(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default()
    }

    /// A file that holds one number; `max` is the largest.
    fn number(&self, name: &str) -> u64 {
        number(self.text(name).trim())
    }

    /// A file of names and numbers.
    fn table(&self, name: &str) -> Table {
        Table::parse(&self.text(name))
    }

    /// The names of the files that begin and end so: what is between.
    fn between(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let entries = self.0.and_then(|dir| std::fs::read_dir(dir).ok());
        let mut found: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let inner = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
                Some(inner.to_owned())
            })
            .collect();
        found.sort();
        found
    }
}

fn number(text: &str) -> u64 {
    match text {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// Names and numbers.
struct Table(Vec<(String, u64)>);

impl Table {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), number(value.trim())))
        });
        Self(pairs.collect())
    }

    fn get(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or(0, |(_, value)| *value)
    }
}

/// `8:0 Read 4096`, `8:0 Total 4096`, `Total 4096`: the lines of devices.
fn devices(text: &str) -> impl Iterator<Item = (u64, u64, &str)> {
    text.lines().filter_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?, rest))
    })
}

fn legacy(cgroups: &Cgroups) -> v1::Metrics {
    let files = |controller| Files(cgroups.dir(controller));
    let mut metrics = v1::Metrics::new();
    let pids = files("pids");
    metrics.pids = Some(v1::PidsStat {
        current: pids.number("pids.current"),
        // 0: without a limit, as containerd/cgroups has it.
        limit: pids.text("pids.max").trim().parse().unwrap_or(0),
        ..Default::default()
    })
    .into();
    metrics.cpu = Some(cpu(&files("cpuacct"), &files("cpu"))).into();
    let memory = files("memory");
    metrics.memory = Some(memory_stat(&memory)).into();
    let control = memory.table("memory.oom_control");
    metrics.memory_oom_control = Some(v1::MemoryOomControl {
        oom_kill_disable: control.get("oom_kill_disable"),
        under_oom: control.get("under_oom"),
        oom_kill: control.get("oom_kill"),
        ..Default::default()
    })
    .into();
    metrics.blkio = Some(blkio(&files("blkio"))).into();
    let pages = files("hugetlb");
    for size in pages.between("hugetlb.", ".limit_in_bytes") {
        // hugetlb.2MB.rsvd.limit_in_bytes
        if size.contains('.') {
            continue;
        }
        metrics.hugetlb.push(v1::HugetlbStat {
            usage: pages.number(&format!("hugetlb.{size}.usage_in_bytes")),
            max: pages.number(&format!("hugetlb.{size}.max_usage_in_bytes")),
            failcnt: pages.number(&format!("hugetlb.{size}.failcnt")),
            pagesize: size,
            ..Default::default()
        });
    }
    metrics
}

fn cpu(accounting: &Files<'_>, scheduler: &Files<'_>) -> v1::CPUStat {
    let times = accounting.table("cpuacct.stat");
    let per_cpu = accounting.text("cpuacct.usage_percpu");
    let throttle = scheduler.table("cpu.stat");
    v1::CPUStat {
        usage: Some(v1::CPUUsage {
            total: accounting.number("cpuacct.usage"),
            user: times.get("user") * TICK_NANOSECONDS,
            kernel: times.get("system") * TICK_NANOSECONDS,
            per_cpu: per_cpu.split_whitespace().map(number).collect(),
            ..Default::default()
        })
        .into(),
        throttling: Some(v1::Throttle {
            periods: throttle.get("nr_periods"),
            throttled_periods: throttle.get("nr_throttled"),
            throttled_time: throttle.get("throttled_time"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory_entry(files: &Files<'_>, name: &str) -> v1::MemoryEntry {
    v1::MemoryEntry {
        limit: files.number(&format!("memory.{name}limit_in_bytes")),
        usage: files.number(&format!("memory.{name}usage_in_bytes")),
        max: files.number(&format!("memory.{name}max_usage_in_bytes")),
        failcnt: files.number(&format!("memory.{name}failcnt")),
        ..Default::default()
    }
}

fn memory_stat(files: &Files<'_>) -> v1::MemoryStat {
    let stat = files.table("memory.stat");
    let entry = |name| Some(memory_entry(files, name)).into();
    v1::MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..Default::default()
    }
}

fn blkio(files: &Files<'_>) -> v1::BlkIOStat {
    let entries = |names: &[&str]| {
        let text = names
            .iter()
            .map(|name| files.text(&format!("blkio.{name}")));
        let text = text
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default();
        devices(&text)
            .map(|(major, minor, rest)| {
                let (op, value) = rest.rsplit_once(' ').unwrap_or(("", rest));
                v1::BlkIOEntry {
                    op: op.to_owned(),
                    major,
                    minor,
                    value: number(value),
                    ..Default::default()
                }
            })
            .collect()
    };
    // Without a scheduler that counts, there are only the numbers of the throttle.
    v1::BlkIOStat {
        io_service_bytes_recursive: entries(&[
            "bfq.io_service_bytes_recursive",
            "io_service_bytes_recursive",
            "throttle.io_service_bytes_recursive",
            "throttle.io_service_bytes",
        ]),
        io_serviced_recursive: entries(&[
            "bfq.io_serviced_recursive",
            "io_serviced_recursive",
            "throttle.io_serviced_recursive",
            "throttle.io_serviced",
        ]),
        io_queued_recursive: entries(&["io_queued_recursive"]),
        io_service_time_recursive: entries(&["io_service_time_recursive"]),
        io_wait_time_recursive: entries(&["io_wait_time_recursive"]),
        io_merged_recursive: entries(&["io_merged_recursive"]),
        io_time_recursive: entries(&["time_recursive"]),
        sectors_recursive: entries(&["sectors_recursive"]),
        ..Default::default()
    }
}

fn unified(dir: &Path) -> v2::Metrics {
    let files = Files(Some(dir));
    let mut metrics = v2::Metrics::new();
    metrics.pids = Some(v2::PidsStat {
        current: files.number("pids.current"),
        limit: files.number("pids.max"),
        ..Default::default()
    })
    .into();
    let cpu = files.table("cpu.stat");
    metrics.cpu = Some(v2::CPUStat {
        usage_usec: cpu.get("usage_usec"),
        user_usec: cpu.get("user_usec"),
        system_usec: cpu.get("system_usec"),
        nr_periods: cpu.get("nr_periods"),
        nr_throttled: cpu.get("nr_throttled"),
        throttled_usec: cpu.get("throttled_usec"),
        nr_bursts: cpu.get("nr_bursts"),
        burst_usec: cpu.get("burst_usec"),
        psi: pressure(&files, "cpu").into(),
        ..Default::default()
    })
    .into();
    metrics.memory = Some(unified_memory(&files)).into();
    let events = files.table("memory.events");
    metrics.memory_events = Some(v2::MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..Default::default()
    })
    .into();
    let io = files.text("io.stat");
    let usage = devices(&io).map(|(major, minor, rest)| {
        let table = Table::parse(&rest.replace(' ', "\n").replace('=', " "));
        v2::IOEntry {
            major,
            minor,
            rbytes: table.get("rbytes"),
            wbytes: table.get("wbytes"),
            rios: table.get("rios"),
            wios: table.get("wios"),
            ..Default::default()
        }
    });
    metrics.io = Some(v2::IOStat {
        usage: usage.collect(),
        psi: pressure(&files, "io").into(),
        ..Default::default()
    })
    .into();
    for size in files.between("hugetlb.", ".max") {
        if size.contains('.') {
            continue;
        }
        metrics.hugetlb.push(v2::HugeTlbStat {
            current: files.number(&format!("hugetlb.{size}.current")),
            max: files.number(&format!("hugetlb.{size}.max")),
            failcnt: files.table(&format!("hugetlb.{size}.events")).get("max"),
            pagesize: size,
            ..Default::default()
        });
    }
    metrics
}

fn unified_memory(files: &Files<'_>) -> v2::MemoryStat {
    let stat = files.table("memory.stat");
    v2::MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: stat.get("workingset_refault"),
        workingset_activate: stat.get("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: files.number("memory.current"),
        usage_limit: files.number("memory.max"),
        swap_usage: files.number("memory.swap.current"),
        swap_limit: files.number("memory.swap.max"),
        max_usage: files.number("memory.peak"),
        swap_max_usage: files.number("memory.swap.peak"),
        psi: pressure(files, "memory").into(),
        ..Default::default()
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` likewise; none where the kernel does not count.
fn pressure(files: &Files<'_>, resource: &str) -> Option<v2::PSIStats> {
    let text = files.text(&format!("{resource}.pressure"));
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let field = |name: &str| {
            let mut fields = line
                .split_whitespace()
                .filter_map(|field| field.split_once('='));
            fields
                .find(|(known, _)| *known == name)
                .map_or("", |(_, value)| value)
        };
        Some(v2::PSIData {
            avg10: field("avg10").parse().unwrap_or(0.0),
            avg60: field("avg60").parse().unwrap_or(0.0),
            avg300: field("avg300").parse().unwrap_or(0.0),
            total: number(field("total")),
            ..Default::default()
        })
    };
    (!text.is_empty()).then(|| v2::PSIStats {
        some: line("some ").into(),
        full: line("full ").into(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn files_of_version_two_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 7\nnr_throttled 2\n"),
            ("memory.max", "4096\n"),
            ("memory.stat", "anon 11\n"),
            ("memory.events", "oom_kill 5\n"),
            (
                "memory.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            (
                "io.stat",
                "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
            ),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.current", "2\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let metrics = unified(dir.path());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (7, 2));
        assert_eq!(
            (metrics.memory.usage_limit, metrics.memory.anon),
            (4096, 11)
        );
        assert_eq!(metrics.memory_events.oom_kill, 5);
        let some = &metrics.memory.psi.some;
        assert_eq!((some.avg10, some.total), (1.5, 9));
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.minor, io.wbytes, io.wios), (8, 16, 2, 4));
        assert_eq!(
            (
                metrics.hugetlb[0].pagesize.as_str(),
                metrics.hugetlb[0].current
            ),
            ("2MB", 2)
        );
    }

    #[test]
    fn files_of_version_one_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpuacct.usage_percpu", "4 5 \n"),
            ("memory.limit_in_bytes", "4096\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n",
            ),
            ("blkio.throttle.io_serviced", "8:0 Read 7\nTotal 7\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let dirs: HashMap<_, _> = ["pids", "cpuacct", "memory", "blkio"]
            .map(|name| (name.to_owned(), dir.path().to_owned()))
            .into();
        let metrics = legacy(&Cgroups::Legacy(dirs));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        assert_eq!(metrics.cpu.usage.user, 20_000_000);
        assert_eq!(metrics.cpu.usage.per_cpu, [4, 5]);
        assert_eq!(metrics.memory.usage.limit, 4096);
        assert_eq!(metrics.memory_oom_control.oom_kill, 6);
        let entry = &metrics.blkio.io_serviced_recursive[0];
        assert_eq!((entry.op.as_str(), entry.value), ("Read", 7));
    }
}
