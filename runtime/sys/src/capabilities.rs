//! Capability sets of this thread, by the bare system calls.

use std::fmt;

use nix::errno::Errno;

use crate::error::{Error, Result, check};

/// The names, at the place of their numbers.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// Adds capability `number`; numbers above 63 do not exist.
    #[must_use]
    pub const fn with(self, number: u8) -> Self {
        if number < 64 { Self(self.0 | 1 << number) } else { self }
    }

    /// Whether capability `number` is in the set.
    #[must_use]
    pub const fn has(self, number: u8) -> bool {
        number < 64 && self.0 >> number & 1 == 1
    }

    /// What is in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers in the set, rising.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |&number| self.has(number))
    }

    /// The set with these names, `CAP_` and case being optional; `None` if there is another word among them.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        names.into_iter().try_fold(Self::EMPTY, |set, name| Some(set.with(number(name)?)))
    }

    fn halves(self) -> [u32; 2] {
        // The two 32-bit words that the kernel takes.
        #[allow(clippy::cast_possible_truncation, reason = "each cast keeps exactly its half")]
        [self.0 as u32, (self.0 >> 32) as u32]
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |number: u8| NAMES.get(usize::from(number)).copied().unwrap_or("?");
        f.debug_set().entries(self.numbers().map(name)).finish()
    }
}

/// The number of a capability.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let bare = name.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("CAP_")).map_or(name, |_| &name[4..]);
    let at = NAMES.iter().position(|known| known[4..].eq_ignore_ascii_case(bare))?;
    u8::try_from(at).ok()
}

/// The five sets of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// What it and its descendants can ever get.
    pub bounding: CapabilitySet,
    /// What counts now.
    pub effective: CapabilitySet,
    /// What may be made effective.
    pub permitted: CapabilitySet,
    /// What programs that ask for it inherit.
    pub inheritable: CapabilitySet,
    /// What every program inherits.
    pub ambient: CapabilitySet,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One of the two words of the three sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Version 3: two words, the only one in use since Linux 2.6.26.
const VERSION: u32 = 0x2008_0522;

/// Sets the effective, permitted and inheritable sets.
pub fn set(effective: CapabilitySet, permitted: CapabilitySet, inheritable: CapabilitySet) -> Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let (e, p, i) = (effective.halves(), permitted.halves(), inheritable.halves());
    let words = [0, 1].map(|n: usize| Word { effective: e[n], permitted: p[n], inheritable: i[n] });
    // SAFETY: the header and the two words are live for the call and laid out as the kernel's for this version.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) };
    let arguments = || format!("effective {effective:?}, permitted {permitted:?}, inheritable {inheritable:?}");
    check(result, "capset", arguments).map(drop)
}

/// The sets of this thread as they are.
pub fn current() -> Result<Sets> {
    let header = Header { version: VERSION, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: the header is live for the call, and there is room for the two words that this version writes.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, words.as_mut_ptr()) };
    check(result, "capget", String::new)?;
    let whole = |pick: fn(&Word) -> u32| CapabilitySet(u64::from(pick(&words[1])) << 32 | u64::from(pick(&words[0])));
    let mut sets = Sets {
        effective: whole(|w| w.effective),
        permitted: whole(|w| w.permitted),
        inheritable: whole(|w| w.inheritable),
        ..Sets::default()
    };
    for number in 0..64_u8 {
        match prctl(libc::PR_CAPBSET_READ, number.into(), 0) {
            Ok(found) => {
                if found == 1 {
                    sets.bounding = sets.bounding.with(number);
                }
            }
            // The first number that the kernel does not know.
            Err(_) => break,
        }
        if prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET.cast_unsigned().into(), number.into()) == Ok(1) {
            sets.ambient = sets.ambient.with(number);
        }
    }
    Ok(sets)
}

/// Takes everything but `keep` out of the bounding set, for good.
pub fn limit_bounding(keep: CapabilitySet) -> Result<()> {
    for number in (0..64).filter(|&number| !keep.has(number)) {
        match prctl(libc::PR_CAPBSET_DROP, number.into(), 0) {
            Ok(_) => {}
            // Numbers are given out without gaps: no later one exists.
            Err(Errno::EINVAL) => break,
            Err(errno) => {
                let name = NAMES.get(usize::from(number)).copied().unwrap_or("?");
                return Err(Error::new("prctl", format!("PR_CAPBSET_DROP, {name}"), errno as i32));
            }
        }
    }
    Ok(())
}

/// Makes `wanted` the ambient set and says which of them the kernel refused, because they are not both permitted and
/// inheritable.
pub fn set_ambient(wanted: CapabilitySet) -> Result<CapabilitySet> {
    let clear = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0);
    match clear {
        // Before Linux 4.3 there is no such set: nothing to clear.
        Ok(_) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(Error::new("prctl", "PR_CAP_AMBIENT_CLEAR_ALL", errno as i32)),
    }
    let raise = libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into();
    Ok(wanted.numbers().fold(CapabilitySet::EMPTY, |refused, number| {
        if prctl(libc::PR_CAP_AMBIENT, raise, number.into()).is_ok() { refused } else { refused.with(number) }
    }))
}

/// Keeps the permitted capabilities over a change of the user id; cleared by exec.
pub fn keep_over_setuid(keep: bool) -> Result<()> {
    let set = prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0);
    set.map(drop).map_err(|errno| Error::new("prctl", format!("PR_SET_KEEPCAPS, {keep}"), errno as i32))
}

fn prctl(option: i32, first: u64, second: u64) -> std::result::Result<i32, Errno> {
    // SAFETY: the options used here take numbers only; the kernel reads and writes no memory of this process.
    let result = unsafe { libc::prctl(option, first, second, 0_u64, 0_u64) };
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("cap_Checkpoint_Restore"), Some(40));
        assert_eq!(number("CAP_CAP_KILL"), None);
        assert_eq!(number("é"), None);
        let set = CapabilitySet::from_names(["KILL", "CAP_BPF"]).unwrap();
        assert_eq!(set.numbers().collect::<Vec<_>>(), [5, 39]);
        assert_eq!(format!("{set:?}"), r#"{"CAP_KILL", "CAP_BPF"}"#);
        assert!(CapabilitySet::from_names(["KILL", "NAP"]).is_none());
    }

    #[test]
    fn the_kernel_agrees_with_its_own_report() {
        let sets = current().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let reported = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            CapabilitySet(u64::from_str_radix(line.trim(), 16).unwrap())
        };
        assert_eq!(sets.effective, reported("CapEff:"));
        assert_eq!(sets.permitted, reported("CapPrm:"));
        assert_eq!(sets.inheritable, reported("CapInh:"));
        assert_eq!(sets.bounding, reported("CapBnd:"));
        assert_eq!(sets.ambient, reported("CapAmb:"));
    }

    #[test]
    fn a_thread_can_give_up_what_it_has() {
        // Sets belong to threads: this one does not share them with the other tests.
        std::thread::spawn(|| {
            let before = current().unwrap();
            let keep = CapabilitySet::from_names(["CAP_CHOWN", "CAP_KILL"]).unwrap().and(before.permitted);
            if before.effective.has(8) {
                limit_bounding(keep).unwrap();
                assert_eq!(current().unwrap().bounding, keep);
            }
            set(keep, keep, keep).unwrap();
            assert_eq!(set_ambient(keep.with(21)).unwrap(), CapabilitySet::EMPTY.with(21));
            let after = current().unwrap();
            assert_eq!((after.effective, after.permitted, after.ambient), (keep, keep, keep));
            assert!(set(keep.with(21), keep.with(21), keep).is_err());
        })
        .join()
        .unwrap();
    }
}
