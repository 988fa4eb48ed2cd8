//! One check: commands of an engine, and what they have to print.

use anyhow::{Result, ensure};

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Its name, of no other check of the engine.
    pub name: &'static str,
    /// Shell commands. `$E` is the engine's command line, `$RUN` its command that makes and runs a container with the
    /// runtime under test, `$IMAGE` the image, `$ID` a name of no other container, `$TMP` a directory,
    /// `$CG` the cgroup (containerd).
    pub script: &'static str,
    /// What they print, among other things.
    pub expect: &'static str,
    /// Engines that cannot do this, by [`Kind::name`](crate::engine::Kind::name); why is said beside the table.
    pub not_with: &'static [&'static str],
}

impl Check {
    /// Compares what was printed with runc and with trustme.
    ///
    /// # Errors
    /// They differ, or lack what is expected.
    pub fn compare(&self, reference: &str, ours: &str) -> Result<()> {
        // Standard output and error come through different pipes: their lines in any order.
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        ensure!(
            sorted(reference) == sorted(ours),
            "--- runc\n{reference}\n--- trustme\n{ours}"
        );
        ensure!(
            ours.contains(self.expect),
            "both lack {:?}:\n{ours}",
            self.expect
        );
        Ok(())
    }
}

/// What was printed, without what differs from run to run: ids, times, the name of the runtime.
pub fn normal(text: &str, runtime: &str) -> String {
    let mut text = text.replace(runtime, "RUNTIME").replace('\0', "");
    // What script(1) echoes for the end of its input, somewhere.
    text = text.replace("^@", "");
    while let Some((before, rest)) = text.split_once("time=\"") {
        let after = rest.split_once('"').map_or("", |(_, after)| after);
        text = format!("{before}{after}");
    }
    let mut out = String::new();
    let mut word = String::new();
    for char in text.chars().chain(['\0']) {
        if char.is_ascii_alphanumeric() {
            word.push(char);
            continue;
        }
        let is_id =
            [12, 40, 64].contains(&word.len()) && word.chars().all(|char| char.is_ascii_hexdigit());
        out.push_str(if is_id { "HEX" } else { &word });
        word.clear();
        if char != '\0' {
            out.push(char);
        }
    }
    // runc puts its name in front of its errors.
    out.replace("runc create failed", "create failed")
        .replace("runc run failed", "run failed")
        .lines()
        // ctr's complaint when a process with a terminal has ended already.
        .filter(|line| !line.contains("resize pty"))
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}
