//! Access to devices on cgroup v2, where an eBPF program decides.

use anyhow::{Result, ensure};
use serde_json::json;

use super::container::Container;
use super::{Boot, Guest, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "cgroup-devices",
    about: "an allowed device opens, a denied one gives EPERM, also after an update",
    boot: Boot::Direct,
    run: devices,
}];

fn devices(guest: &mut Guest) -> Result<()> {
    let mut container = Container::busybox(guest, &["sleep", "1000"], |config| {
        // A loop device that may be read, and one that may not be used at all.
        config["linux"]["devices"] = json!([
            {"path": "/dev/loop5", "type": "b", "major": 7, "minor": 5, "fileMode": 438},
            {"path": "/dev/loop6", "type": "b", "major": 7, "minor": 6, "fileMode": 438},
        ]);
        config["linux"]["resources"] = json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 5, "access": "r"},
        ]});
    })?;
    container.start()?;
    rules_hold(&mut container)?;
    container.ok("update --pids-limit 100 ID")?;
    rules_hold(&mut container)?;
    container.end("KILL")
}

fn rules_hold(container: &mut Container<'_>) -> Result<()> {
    container.script("exec 3< /dev/loop5")?;
    container.script("head -c 1 /dev/zero > /dev/null")?;
    for denied in [
        "exec 3> /dev/loop5",
        "exec 3< /dev/loop6",
        "exec 3> /dev/loop6",
    ] {
        let error = container.script_fails(denied)?;
        ensure!(
            error.contains("Operation not permitted"),
            "{denied}: {error}"
        );
    }
    Ok(())
}
