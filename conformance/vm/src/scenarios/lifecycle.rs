//! The OCI lifecycle on cgroup v2: limits are in the v2 files, and the kernel keeps to them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::container::Container;
use super::{Boot, Guest, Scenario, kernel_file, says};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cgroup-lifecycle",
        about: "create, start, state, exec, pause, resume, update, events, kill, delete on cgroup v2",
        boot: Boot::Direct,
        run: lifecycle,
    },
    Scenario {
        name: "cgroup-limits",
        about: "limits of memory, pids, cpu, cpuset and io are in the v2 files and hold",
        boot: Boot::Direct,
        run: limits,
    },
];

const MIB: u64 = 1 << 20;

fn lifecycle(guest: &mut Guest) -> Result<()> {
    let mut container = Container::busybox(guest, &["sleep", "1000"], |_| ())?;
    container.ok("create --bundle BUNDLE ID")?;
    container.wait_for("created")?;
    container.ok("start ID")?;
    container.wait_for("running")?;
    let own = container.script("cat /proc/self/cgroup")?;
    ensure!(own.trim() == "0::/", "cgroup namespace: {own}");

    container.ok("pause ID")?;
    container.wait_for("paused")?;
    says(container.cgroup("cgroup.freeze"), "1")?;
    let events = kernel_file(container.cgroup("cgroup.events"))?;
    ensure!(events.contains("frozen 1"), "{events}");
    container.ok("resume ID")?;
    container.wait_for("running")?;
    says(container.cgroup("cgroup.freeze"), "0")?;

    let update = "update --memory 33554432 --pids-limit 16 --cpu-period 100000 --cpu-quota 25000 --cpuset-cpus 0 ID";
    container.ok(update)?;
    says(container.cgroup("memory.max"), &(32 * MIB).to_string())?;
    says(container.cgroup("pids.max"), "16")?;
    says(container.cgroup("cpu.max"), "25000 100000")?;
    says(container.cgroup("cpuset.cpus"), "0")?;
    // runc's swap is memory and swap together: no more than the memory means none beside it.
    container.ok("update --memory 33554432 --memory-swap 33554432 ID")?;
    says(container.cgroup("memory.swap.max"), "0")?;
    container.ok("update --memory 33554432 --memory-swap 50331648 ID")?;
    says(container.cgroup("memory.swap.max"), &(16 * MIB).to_string())?;

    let stats: Value = serde_json::from_str(&container.ok("events --stats ID")?)?;
    let number = |path: &str| -> Result<u64> {
        let found = stats.pointer(path).and_then(Value::as_u64);
        found.with_context(|| format!("events --stats: no {path} in {stats}"))
    };
    ensure!(number("/data/memory/usage/usage")? > 0, "{stats}");
    ensure!(number("/data/memory/usage/limit")? == 32 * MIB, "{stats}");
    ensure!(number("/data/pids/current")? == 1, "{stats}");
    ensure!(number("/data/pids/limit")? == 16, "{stats}");
    ensure!(number("/data/cpu/usage/total")? > 0, "{stats}");
    container.end("KILL")
}

fn limits(guest: &mut Guest) -> Result<()> {
    let mut container = Container::busybox(guest, &["sleep", "1000"], |config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 64 * MIB},
            "pids": {"limit": 24},
            "cpu": {"shares": 512, "quota": 50000, "period": 100_000, "cpus": "1", "mems": "0"},
            "blockIO": {"weight": 300, "throttleReadBpsDevice": [{"major": 7, "minor": 0, "rate": MIB}]},
            "unified": {"memory.min": MIB.to_string()},
        });
    })?;
    container.start()?;
    for (file, wanted) in [
        ("memory.max", (64 * MIB).to_string()),
        ("memory.low", (32 * MIB).to_string()),
        ("memory.swap.max", "0".into()),
        ("memory.min", MIB.to_string()),
        ("pids.max", "24".into()),
        // The mapping of runc 1.3.2 and crun 1.24, which has 1024 shares as weight 100.
        ("cpu.weight", "59".into()),
        ("cpu.max", "50000 100000".into()),
        ("cpuset.cpus", "1".into()),
        ("cpuset.mems", "0".into()),
        (
            "io.max",
            format!("7:0 rbps={MIB} wbps=max riops=max wiops=max"),
        ),
    ] {
        says(container.cgroup(file), &wanted)?;
    }
    let allowed = container.script("grep Cpus_allowed_list /proc/self/status")?;
    ensure!(allowed.split_whitespace().last() == Some("1"), "{allowed}");
    // dd reads one block of 100 MiB into memory; the shell survives and says 137.
    let code = container.script("dd if=/dev/zero of=/dev/null bs=100M count=1; echo $?")?;
    ensure!(code.trim() == "137", "100 MiB of 64: {code}");
    let events = kernel_file(container.cgroup("memory.events"))?;
    ensure!(!events.contains("oom_kill 0"), "{events}");
    let full = container.script_fails("for i in $(seq 40); do sleep 60 & done")?;
    ensure!(full.contains("Resource temporarily unavailable"), "{full}");
    container.end("KILL")
}
