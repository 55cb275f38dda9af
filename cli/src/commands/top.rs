//! `gantry top`: the processes of a container, as this machine sees them.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use nix::unistd::{SysconfVar, sysconf};
use tokio::process::Command;

use super::Context;
use crate::client::reason;
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
    /// Options of this machine's ps, which shows them then
    #[arg(value_name = "PS_OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// How long `ps` may take on a machine that is busy.
const PS_DEADLINE: Duration = Duration::from_secs(30);
const HEADING: &[&str] = &["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let id = client.container_id(&self.container).await?;
        let mut pids = client.pids(id).await?;
        pids.sort_unstable();
        let rows = if self.options.is_empty() {
            let machine = Machine::look();
            let processes = pids.iter().filter_map(|pid| Process::read(*pid));
            let rows = processes.map(|process| process.row(&machine)).collect();
            (HEADING.iter().map(|word| (*word).to_owned()).collect(), rows)
        } else {
            listed(&ps(&self.options).await?, &pids)?
        };
        if rows.1.is_empty() && !pids.is_empty() {
            return Err(Failure::new(format!("top {}: /proc does not show its processes", self.container))
                .hint("gantryd must be on this machine and in this process namespace"));
        }
        let mut table = Table::new(&rows.0.iter().map(String::as_str).collect::<Vec<_>>());
        rows.1.into_iter().for_each(|row| table.row(row));
        output::bytes(table.render().as_bytes())?;
        Ok(Code::SUCCESS)
    }
}

/// What this machine's `ps` says.
async fn ps(options: &[String]) -> Result<String> {
    let ran = Command::new("ps").args(options).stdin(Stdio::null()).kill_on_drop(true).output();
    let ran = tokio::time::timeout(PS_DEADLINE, ran).await;
    let ran = ran.map_err(|_| Failure::new(format!("top: ps did not end in {} s", PS_DEADLINE.as_secs())))?;
    let ran = ran.map_err(|error| Failure::new(format!("top: execute ps: {}", reason(&error))))?;
    if !ran.status.success() {
        return Err(Failure::new(format!("top: ps: {}", String::from_utf8_lossy(&ran.stderr).trim())));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

type Rows = (Vec<String>, Vec<Vec<String>>);

/// The heading of a table by `ps`, and its rows of these processes.
fn listed(text: &str, pids: &[u32]) -> Result<Rows> {
    let mut lines = text.lines();
    let heading: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let place = heading.iter().position(|word| word == "PID").ok_or_else(|| {
        Failure::new("top: ps does not show PIDs").hint("have it show them, for example with -o pid,comm")
    })?;
    // The last column is the command, which may have spaces.
    let cells = |line: &str| {
        let (mut cells, mut rest) = (Vec::new(), line.trim_start());
        while cells.len() + 1 < heading.len() {
            let (cell, after) = rest.split_once(char::is_whitespace)?;
            cells.push(cell.to_owned());
            rest = after.trim_start();
        }
        cells.push(rest.to_owned());
        Some(cells)
    };
    let is_ours = |row: &Vec<String>| row[place].parse().is_ok_and(|pid| pids.binary_search(&pid).is_ok());
    let rows = lines.filter_map(cells).filter(is_ours).collect();
    Ok((heading, rows))
}

/// What times and names are to be read by.
struct Machine {
    /// Clock ticks a second.
    ticks: u64,
    /// When it was started, in seconds since 1970.
    booted: i64,
    now: Zoned,
    passwd: String,
}

impl Machine {
    fn look() -> Self {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        Self {
            ticks: ticks.unwrap_or(100).max(1),
            booted: booted.unwrap_or(0),
            now: Timestamp::now().to_zoned(TimeZone::system()),
            passwd: fs::read_to_string("/etc/passwd").unwrap_or_default(),
        }
    }

    /// A user's name, or the number of one without.
    fn user(&self, uid: &str) -> String {
        let named = self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
            (number == uid).then(|| name.to_owned())
        });
        named.unwrap_or_else(|| uid.to_owned())
    }

    /// When a process was started: the time of today, or the day.
    fn started(&self, ticks: u64) -> String {
        let seconds = self.booted.saturating_add(i64::try_from(ticks / self.ticks).unwrap_or(0));
        let Ok(at) = Timestamp::from_second(seconds) else { return "?".to_owned() };
        let at = at.to_zoned(self.now.time_zone().clone());
        at.strftime(if at.date() == self.now.date() { "%H:%M" } else { "%b%d" }).to_string()
    }

    /// Which share of a processor a process has had since its start, in percent.
    fn share(&self, process: &Process) -> u64 {
        let up = u64::try_from(self.now.timestamp().as_second() - self.booted).unwrap_or(0);
        let age = up.saturating_sub(process.started / self.ticks);
        (process.ticks * 100 / self.ticks).checked_div(age).unwrap_or(0).min(99)
    }
}

#[derive(Debug, PartialEq)]
struct Process {
    pid: u32,
    uid: String,
    parent: String,
    /// Number of its terminal.
    terminal: u64,
    ticks: u64,
    /// Ticks after the machine's start.
    started: u64,
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
            terminal: number(4).unwrap_or(0),
            ticks: number(11)? + number(12)?,
            started: number(19)?,
            command: if command.is_empty() { format!("[{name}]") } else { command },
        })
    }

    fn row(self, machine: &Machine) -> Vec<String> {
        let seconds = self.ticks / machine.ticks;
        vec![
            machine.user(&self.uid),
            self.pid.to_string(),
            self.parent.clone(),
            machine.share(&self).to_string(),
            machine.started(self.started),
            terminal(self.terminal),
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            self.command,
        ]
    }
}

/// A terminal's name, of the kernel's number for it.
fn terminal(number: u64) -> String {
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00);
    match major {
        4 => format!("tty{minor}"),
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_proc_says() {
        let stat = "7 (a) b (c) S 1 7 7 34817 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 4242 1 1";
        let status = "Name:\tx\nUid:\t0\t1000\t0\t0\n";
        let process = Process::parse(7, stat, status, "sleep\x001000\x00").unwrap();
        assert_eq!((process.uid.as_str(), process.parent.as_str(), process.ticks), ("1000", "1", 300));
        assert_eq!((process.started, process.command.as_str()), (4242, "sleep 1000"));
        assert_eq!((terminal(process.terminal).as_str(), terminal(0).as_str()), ("pts/1", "?"));
        assert_eq!(Process::parse(7, stat, status, "").unwrap().command, "[a) b (c]");
        assert_eq!(Process::parse(7, "", status, ""), None);
        assert!(Process::read(std::process::id()).is_some());
        let now = "2026-01-02T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC);
        let booted = now.timestamp().as_second() - 3600;
        let machine = Machine { ticks: 100, booted, now, passwd: "root:x:0:0::/:\nme:x:1000:1::/:\n".into() };
        assert_eq!(process.row(&machine), ["me", "7", "1", "0", "11:00", "pts/1", "00:00:03", "sleep 1000"]);
        assert_eq!(machine.user("7"), "7");
        let machine = Machine { booted: booted - 86400, ..machine };
        assert_eq!(machine.started(0), "Jan01");
    }

    #[test]
    fn tables_of_ps_are_cut_down() {
        let text = "  PID COMMAND\n    1 init\n   22 sh -c x\n  333 other\n";
        let (heading, rows) = listed(text, &[22, 400]).unwrap();
        assert_eq!(heading, ["PID", "COMMAND"]);
        assert_eq!(rows, [["22", "sh -c x"]]);
        assert!(listed("COMMAND\ninit\n", &[1]).is_err());
    }
}
