//! `gantry top`: the processes of a container, as this machine sees them.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::table::Table;

/// `gantry top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let id = client.container_id(&self.container).await?;
        let mut pids = client.pids(id).await?;
        pids.sort_unstable();
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
        let mut table = Table::new(&["UID", "PID", "PPID", "STATE", "TIME", "COMMAND"]);
        let mut shown = 0;
        for process in pids.iter().filter_map(|pid| Process::read(*pid)) {
            shown += 1;
            let seconds = process.ticks / ticks.unwrap_or(100).max(1);
            table.row(vec![
                process.uid,
                process.pid.to_string(),
                process.parent,
                process.state,
                format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
                process.command,
            ]);
        }
        if shown == 0 && !pids.is_empty() {
            return Err(Failure::new(format!("top {}: /proc does not show its processes", self.container))
                .hint("gantryd must be on this machine and in this process namespace"));
        }
        output::bytes(table.render().as_bytes())?;
        Ok(Code::SUCCESS)
    }
}

#[derive(Debug, PartialEq)]
struct Process {
    pid: u32,
    uid: String,
    parent: String,
    state: String,
    ticks: u64,
    command: String,
}

impl Process {
    /// What `/proc` says of a process; `None` where it has ended since.
    fn read(pid: u32) -> Option<Self> {
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let text = |name: &str| Some(String::from_utf8_lossy(&file(name)?).into_owned());
        Self::parse(pid, &text("stat")?, &text("status")?, &text("cmdline")?)
    }

    fn parse(pid: u32, stat: &str, status: &str, cmdline: &str) -> Option<Self> {
        // The name is in parentheses and may hold anything, parentheses too.
        let (before, after) = stat.rsplit_once(") ")?;
        let name = before.split_once('(')?.1;
        let fields: Vec<&str> = after.split(' ').collect();
        let number = |place: usize| fields.get(place).and_then(|field| field.parse::<u64>().ok());
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?;
        let command = cmdline.trim_end_matches('\0').replace('\0', " ");
        Some(Self {
            pid,
            uid: uid.to_owned(),
            parent: (*fields.get(1)?).to_owned(),
            state: (*fields.first()?).to_owned(),
            ticks: number(11)? + number(12)?,
            command: if command.is_empty() { format!("[{name}]") } else { command },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_proc_says() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 1 1";
        let status = "Name:\tx\nUid:\t0\t1000\t0\t0\n";
        let process = Process::parse(7, stat, status, "sleep\x001000\x00").unwrap();
        assert_eq!((process.uid.as_str(), process.parent.as_str(), process.ticks), ("1000", "1", 300));
        assert_eq!((process.state.as_str(), process.command.as_str()), ("S", "sleep 1000"));
        assert_eq!(Process::parse(7, stat, status, "").unwrap().command, "[a) b (c]");
        assert_eq!(Process::parse(7, "", status, ""), None);
        assert!(Process::read(std::process::id()).is_some());
    }
}
