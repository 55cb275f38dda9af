//! Is a recorded process still the same process? Its number may have been given to another since.

use rung_sys::process::Pid;

/// What `/proc/<pid>/stat` says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// One letter: `R`, `S`, `D`, `Z`, `X`, …
    pub state: u8,
    /// Ticks from boot to the start of the process.
    pub start_time: u64,
}

impl ProcessStat {
    /// Reads it; `None` when there is no such process.
    pub fn read(pid: Pid) -> Option<Self> {
        Self::parse(&rung_sys::file::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// A zombie counts as ended.
    pub fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses and may hold anything, parentheses and spaces included.
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = *fields.next()?.as_bytes().first()?;
        // Field 22 of the file; the state was field 3.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }
}

/// Whether the process that was recorded with this start time still runs.
pub fn is_alive(pid: Pid, start_time: u64) -> bool {
    pid.as_raw() > 0 && ProcessStat::read(pid).is_some_and(|stat| !stat.has_ended() && stat.start_time == start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let text = "12 (a) R (b) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 1";
        let stat = ProcessStat::parse(text).expect("parsed");
        assert_eq!(stat, ProcessStat { state: b'S', start_time: 987_654 });
        assert_eq!(ProcessStat::parse("12 (x) S 1"), None);
    }

    #[test]
    fn own_process_is_alive_only_with_its_start_time() {
        let own = Pid::this();
        let stat = ProcessStat::read(own).expect("own stat");
        assert!(is_alive(own, stat.start_time));
        assert!(!is_alive(own, stat.start_time + 1));
    }
}
