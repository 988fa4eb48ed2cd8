//! `list`: prints the containers of a root directory.

use std::collections::HashMap;

use anyhow::{Result, bail};
use liboci_cli::List;

use crate::root::Root;
use crate::state::Container;
use crate::{creation, log};

use super::state::Printed;

const HEADER: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
/// runc's table: columns at least this wide, this much apart.
const MIN_WIDTH: usize = 12;
const PADDING: usize = 3;

/// Prints the containers as a table, as JSON, or only their ids. What a killed command left is named on standard error.
///
/// # Errors
/// If the format is unknown or the root directory cannot be read.
pub fn list(args: &List, root: &Root) -> Result<()> {
    let containers = containers(root)?;
    if args.quiet {
        for container in &containers {
            println!("{}", container.record.id);
        }
        return Ok(());
    }
    let owners: HashMap<u32, String> = containers
        .iter()
        .map(|found| found.record.owner)
        .map(|uid| (uid, name_of(uid)))
        .collect();
    let printed: Vec<_> = containers
        .iter()
        .map(|found| (Printed::new(found, &owners[&found.record.owner]), found))
        .collect();
    match args.format.as_str() {
        "json" => {
            let states: Vec<_> = printed.iter().map(|(state, _)| state).collect();
            let json = if states.is_empty() {
                "null".to_owned()
            } else {
                serde_json::to_string(&states)?
            };
            print!("{json}");
        }
        "table" => {
            let mut rows = vec![HEADER.map(str::to_owned)];
            for (state, found) in &printed {
                let [pid, status, bundle, created] = state.columns();
                let owner = owners[&found.record.owner].clone();
                rows.push([found.record.id.clone(), pid, status, bundle, created, owner]);
            }
            print!("{}", table(&rows));
        }
        other => bail!("invalid format option: {other}"),
    }
    Ok(())
}

/// All containers, by id.
fn containers(root: &Root) -> Result<Vec<Container>> {
    let entries = match std::fs::read_dir(root.path()) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(dir) = name
            .to_str()
            .and_then(|id| root.container(id).ok())
            .filter(|dir| dir.is_dir())
        else {
            continue;
        };
        match Container::read(&dir) {
            Ok(Some(container)) => found.push(container),
            Ok(None) if creation::is_left_over(root, &dir)? => {
                let id = name.display();
                log::warning(&format!(
                    "{id} was left by a killed command: `trustme delete {id}` cleans it up"
                ));
            }
            Ok(None) => (),
            Err(err) => log::warning(&format!("load container {}: {err:#}", name.display())),
        }
    }
    found.sort_by(|a, b| a.record.id.cmp(&b.record.id));
    Ok(found)
}

fn name_of(uid: u32) -> String {
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => format!("#{uid}"),
    }
}

/// A table as Go's tabwriter lays it out for runc.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let longest = rows
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0);
        (longest + PADDING).max(MIN_WIDTH)
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == N {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:<0$}", widths[column]));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_look_like_runcs() {
        let rows = [
            ["ID", "PID", "X"].map(str::to_owned),
            ["x1", "1234567890", "y"].map(str::to_owned),
        ];
        assert_eq!(
            table(&rows),
            "ID          PID          X\nx1          1234567890   y\n"
        );
    }
}
