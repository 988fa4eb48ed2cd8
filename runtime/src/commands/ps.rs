//! `ps`: prints the processes of a container.

use std::process::Command;

use anyhow::{Context, Result, bail};
use liboci_cli::Ps;

use crate::root::Root;
use crate::state::Container;

/// Prints the processes as a JSON list of pids, or the lines that ps(1) prints of them.
///
/// # Errors
/// If the format is unknown, or ps(1) fails or prints no pids.
pub fn ps(args: &Ps, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    let pids = container
        .record
        .cgroups
        .pids()
        .context("cannot list the container's processes")?;
    match args.format.as_str() {
        "json" => println!("{}", serde_json::to_string(&pids)?),
        "table" => {
            let options = match args.ps_options.is_empty() {
                true => &["-ef".to_owned()][..],
                false => &args.ps_options,
            };
            let output = Command::new("ps")
                .args(options)
                .output()
                .context("cannot run ps")?;
            if !output.status.success() {
                bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            print!(
                "{}",
                lines_of(&String::from_utf8_lossy(&output.stdout), &pids)?
            );
        }
        other => bail!("invalid format option: {other}"),
    }
    Ok(())
}

/// The header and the lines whose PID column holds one of `pids`.
fn lines_of(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .context("ps prints no PID column")?;
    let mut text = format!("{header}\n");
    for line in lines {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|pid| pid.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_are_left() {
        let table =
            "UID        PID  PPID CMD\nroot         1     0 init\nroot        42     1 sleep 1\n";
        assert_eq!(
            lines_of(table, &[42]).unwrap(),
            "UID        PID  PPID CMD\nroot        42     1 sleep 1\n"
        );
        assert!(lines_of("CMD\nx\n", &[1]).is_err());
    }
}
