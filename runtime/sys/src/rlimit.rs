//! Resource limits of a process.

use crate::error::{Result, check};

/// The names of the limits that Linux has, at the place of their number.
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// The number of a limit.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    (0..).zip(NAMES).find(|(_, known)| *known == name).map(|(number, _)| number)
}

/// Sets a limit of process `pid`, 0 being this one. Raising the hard limit needs `CAP_SYS_RESOURCE`.
pub fn set(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit is live for the call; the old value is not asked for.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>())
    };
    let arguments = || {
        let name = (0..).zip(NAMES).find(|(number, _)| *number == resource).map_or("?", |(_, name)| name);
        format!("{pid}, {name}, soft {soft}, hard {hard}")
    };
    check(result, "prlimit64", arguments).map(drop)
}

/// The soft and hard limit of process `pid`, 0 being this one.
pub fn get(pid: i32, resource: u32) -> Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: there is room for the old value; no new one is set.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, pid, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit)
    };
    check(result, "prlimit64", || format!("{pid}, {resource}")).map(|_| (limit.rlim_cur, limit.rlim_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let known = [
            ("RLIMIT_CPU", libc::RLIMIT_CPU),
            ("RLIMIT_RSS", libc::RLIMIT_RSS),
            ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
            ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
            ("RLIMIT_AS", libc::RLIMIT_AS),
            ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
        ];
        for (name, value) in known {
            assert_eq!(number(name).map(i64::from), Some(i64::from(value)), "{name}");
        }
        assert_eq!(number("RLIMIT_MOOD"), None);
    }

    #[test]
    fn a_limit_can_be_lowered() {
        let core = number("RLIMIT_CORE").unwrap();
        let (_, hard) = get(0, core).unwrap();
        set(0, core, 0, hard).unwrap();
        assert_eq!(get(0, core).unwrap(), (0, hard));
        let refused = set(0, core, 2, 1).unwrap_err().to_string();
        assert_eq!(refused, "prlimit64(0, RLIMIT_CORE, soft 2, hard 1): invalid argument");
    }
}
