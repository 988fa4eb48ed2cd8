//! What launch mode enforce costs over off: the demo GuestOS's first start on a machine, and its second.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{Effort, Table, timed};
use crate::command::{line, ok};
use crate::fixtures::{Fixtures, NAME};
use crate::machine::Machine;

pub(super) fn run(fixtures: &Fixtures, effort: Effort) -> Result<()> {
    let mut machine = Machine::new(fixtures, "enforce")?;
    let store = machine.path("store");
    ok(&mut fixtures.convert(&fixtures.demo_image()?, &store, 1)?)?;
    let bundle = machine.make_bundle(&store.join(format!("{NAME}-1.conf")))?;
    // With launch mode off nobody mounts the image.
    let plain = machine.path("plain");
    fs::create_dir(&plain)?;
    fs::copy(bundle.join("config.json"), plain.join("config.json"))?;
    ok(line("unsquashfs -quiet -no-progress -dest")
        .arg(plain.join("rootfs"))
        .arg(store.join(format!("{NAME}-1/root.img"))))?;

    let mut table = Table::new(
        "create + start + delete of the demo GuestOS (nginx, one volume, swtpm)",
        &[
            "enforce, first start",
            "enforce, second start",
            "off, unpacked root",
        ],
    );
    for _ in 0..effort.runs(1, 9) {
        // A machine that has never seen it: no volume, no log, PCRs at zero.
        for dir in ["volumes", "measure.log"] {
            ok(Command::new("rm").arg("-rf").arg(machine.path(dir)))?;
        }
        machine.tpm.reboot()?;
        for (row, mode) in table.rows.iter_mut().zip(["enforce", "enforce", "off"]) {
            machine.set_mode(mode)?;
            let bundle = if mode == "off" { &plain } else { &bundle };
            let mut create = machine.trustme("create");
            create.arg("--bundle").arg(bundle).arg(&machine.id);
            let mut commands = [
                create,
                machine.trustme("start ID"),
                machine.trustme("delete --force ID"),
            ];
            row.times.push(timed(&mut commands)?);
        }
    }
    table.print();
    Ok(())
}
