//! `ps`.

use std::process::{Command, Stdio};

use crate::cli::PsArgs;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::launch::cgroup_error;

pub(super) fn run(settings: &Settings, args: &PsArgs) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    let mut pids: Vec<i32> =
        container.cgroup().pids().map_err(cgroup_error)?.into_iter().map(nix::unistd::Pid::as_raw).collect();
    pids.sort_unstable();
    if pids.is_empty() && container.is_alive() {
        // That of a user whose cgroup nobody has given him.
        return Err(Error::unsupported("ps: the container has no cgroup of its own to find its processes by"));
    }
    match args.format.as_str() {
        "json" => {
            let text = serde_json::to_string(&pids).map_err(|error| Error::invalid(error.to_string()))?;
            super::print(&(text + "\n"))
        }
        "table" => super::print(&filter(&list(&args.options)?, &pids)?),
        _ => Err(Error::invalid("invalid format option")),
    }
}

fn list(options: &[String]) -> Result<String> {
    let mut command = Command::new("ps");
    if options.is_empty() {
        command.arg("-ef");
    }
    command.args(options).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = rung_sys::spawn::cleanly(&mut command).spawn();
    let output = child.and_then(std::process::Child::wait_with_output).doing(|| "run ps")?;
    if !output.status.success() {
        return Err(Error::new(Kind::Invalid, format!("ps ended with {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Keeps the header and the lines of these processes.
fn filter(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::invalid("couldn't find PID field in ps output"))?;
    let mut kept = format!("{header}\n");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|text| text.parse::<i32>().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_column() {
        let table = "UID PID CMD\nroot 12 sh\nroot 13 cat 12\n";
        assert_eq!(filter(table, &[12]).expect("filtered"), "UID PID CMD\nroot 12 sh\n");
        assert!(filter("CMD\n", &[12]).is_err());
    }
}
