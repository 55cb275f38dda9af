//! What a container's processes hold, found in `/proc`.

use super::cgroup::Cgroup;

/// Processes of one container that are looked at.
const MAX_PROCESSES: usize = 4096;

/// Processes and their descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cri) struct Processes {
    pub(in crate::cri) count: u64,
    pub(in crate::cri) descriptors: u64,
    pub(in crate::cri) sockets: u64,
}

impl Processes {
    /// Those of a cgroup. What ends meanwhile does not count.
    pub(super) fn of(cgroup: &Cgroup) -> Self {
        let mut pids = Vec::new();
        let dir = match cgroup {
            Cgroup::Unified(dir) => Some(dir),
            Cgroup::Legacy(dirs) => dirs.get("pids").or_else(|| dirs.values().next()),
        };
        if let Some(dir) = dir {
            let _ = dir.walk(&mut |cgroup| {
                pids.extend(cgroup.procs().unwrap_or_default());
                Ok(())
            });
        }
        let mut all = Self { count: pids.len() as u64, ..Self::default() };
        for pid in pids.into_iter().take(MAX_PROCESSES) {
            let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for entry in entries {
                all.descriptors += 1;
                let target = std::fs::read_link(entry.path());
                let socket = target.is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
                all.sockets += u64::from(socket);
            }
        }
        all
    }
}

/// How many files a process may have open.
pub(in crate::cri) fn open_files_limit(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    parse_limit(&text)
}

fn parse_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(parse_limit(text), Some(1024));
        assert_eq!(parse_limit(""), None);
    }
}
