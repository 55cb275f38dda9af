//! Is a recorded process still the same process? Its number may have been given to another since.

use std::path::Path;

use rung_sys::process::Pid;

/// The kernel's flag of a thread that has begun to exit (`include/linux/sched.h`).
const PF_EXITING: u64 = 0x4;

/// What `/proc/<pid>/stat` says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// One letter, of the first thread: `R`, `S`, `D`, `Z`, `X`, …
    pub state: u8,
    /// Whether the first thread is on its way out, and may have left its namespaces.
    pub leaves: bool,
    /// How many threads there are, the first one included until it is reaped.
    pub threads: u64,
    /// Ticks from boot to the start of the process.
    pub start_time: u64,
}

impl ProcessStat {
    /// Reads it; `None` when there is no such process.
    pub fn read(pid: Pid) -> Option<Self> {
        Self::parse(&rung_sys::file::read(Path::new(&format!("/proc/{pid}/stat"))).ok()?)
    }

    /// A zombie counts as ended, unless it is only the first of several threads: the others run on.
    pub fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }

    /// Whether it has ended, or is about to and cannot be joined any more.
    pub fn is_ending(self) -> bool {
        self.has_ended() || self.leaves && self.threads <= 1
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name is in parentheses and may hold anything: parentheses, spaces, and bytes that are no text.
        let end = text.windows(2).rposition(|pair| pair == b") ")?;
        let mut fields = std::str::from_utf8(&text[end + 2..]).ok()?.split(' ');
        // Fields 3, 9, 20 and 22 of the file.
        let state = *fields.next()?.as_bytes().first()?;
        let flags: u64 = fields.nth(5)?.parse().ok()?;
        let threads = fields.nth(10)?.parse().ok()?;
        let start_time = fields.nth(1)?.parse().ok()?;
        Some(Self { state, leaves: flags & PF_EXITING != 0, threads, start_time })
    }
}

/// Whether the process that was recorded with this start time still runs.
pub fn is_alive(pid: Pid, start_time: u64) -> bool {
    recorded(pid, start_time).is_some_and(|stat| !stat.has_ended())
}

/// Whether it has ended, or is about to and cannot be joined any more.
pub fn is_ending(pid: Pid, start_time: u64) -> bool {
    recorded(pid, start_time).is_none_or(ProcessStat::is_ending)
}

fn recorded(pid: Pid, start_time: u64) -> Option<ProcessStat> {
    if pid.as_raw() <= 0 {
        return None;
    }
    ProcessStat::read(pid).filter(|stat| stat.start_time == start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let text = b"12 (a\xff) R (b) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 3 0 987654 1 1 1";
        let stat = ProcessStat::parse(text).expect("parsed");
        assert_eq!(stat, ProcessStat { state: b'S', leaves: false, threads: 3, start_time: 987_654 });
        assert_eq!(ProcessStat::parse(b"12 (x) S 1"), None);
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        let stat = |state, threads| ProcessStat { state, leaves: state == b'D', threads, start_time: 1 };
        assert!(!stat(b'S', 1).has_ended() && !stat(b'Z', 2).has_ended());
        assert!(stat(b'Z', 1).has_ended() && stat(b'X', 0).has_ended());
        assert!(stat(b'D', 1).is_ending() && !stat(b'D', 2).is_ending() && !stat(b'D', 1).has_ended());
    }

    #[test]
    fn own_process_is_alive_only_with_its_start_time() {
        let own = Pid::this();
        let stat = ProcessStat::read(own).expect("own stat");
        assert!(is_alive(own, stat.start_time));
        assert!(!is_alive(own, stat.start_time + 1));
    }
}
