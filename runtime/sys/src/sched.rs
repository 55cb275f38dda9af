//! Scheduling of a process: policy, input/output priority, processors and memory nodes.

use crate::error::{Error, Result, check};

/// The argument of `sched_setattr(2)`, in its first published form.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    size: u32,
    /// One of [`POLICIES`].
    pub policy: u32,
    /// Of [`FLAGS`].
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the realtime policies.
    pub priority: u32,
    /// Nanoseconds, for the deadline policy.
    pub runtime: u64,
    /// Nanoseconds, for the deadline policy.
    pub deadline: u64,
    /// Nanoseconds, for the deadline policy.
    pub period: u64,
}

/// The scheduling policies.
pub const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// The flags that go with them.
pub const FLAGS: [(&str, u64); 7] = [
    ("SCHED_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Sets the scheduling of thread `tid`, 0 being this one.
pub fn set(tid: i32, attributes: &Attributes) -> Result<()> {
    let size = u32::try_from(size_of::<Attributes>()).unwrap_or(0);
    let attributes = Attributes { size, ..*attributes };
    // SAFETY: the attributes are live for the call and say their own size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) };
    check(result, "sched_setattr", || format!("{tid}, {attributes:?}")).map(drop)
}

/// The scheduling of thread `tid`, 0 being this one.
pub fn get(tid: i32) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: there is room for as many bytes as the call is told.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attributes, size_of::<Attributes>(), 0) };
    check(result, "sched_getattr", || tid.to_string())?;
    attributes.size = 0;
    Ok(attributes)
}

/// Has this process, and those that it starts from now on, run on no core at the same time as any others.
///
/// # Errors
/// `ENODEV` where the processors' cores run one thread each, `EINVAL` where the kernel cannot do it.
pub fn keep_core_to_itself() -> Result<()> {
    // SAFETY: numbers only; 0 is this process.
    let result = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, SCOPE_THREAD_GROUP, 0) };
    check(result, "prctl", || "PR_SCHED_CORE_CREATE".to_owned()).map(drop)
}

/// What a cookie is given to: all threads of a process.
const SCOPE_THREAD_GROUP: libc::c_ulong = 1;

/// The classes of input/output priority.
pub const IO_CLASSES: [(&str, u32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

const IO_WHO_PROCESS: i32 = 1;
const IO_CLASS_SHIFT: u32 = 13;

/// Sets the input/output priority of process `pid`, 0 being this one.
pub fn set_io_priority(pid: i32, class: u32, level: u32) -> Result<()> {
    // SAFETY: three numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IO_WHO_PROCESS, pid, class << IO_CLASS_SHIFT | level) };
    check(result, "ioprio_set", || format!("{pid}, class {class}, level {level}")).map(drop)
}

/// The class and level of input/output priority of process `pid`, 0 being this one.
pub fn io_priority(pid: i32) -> Result<(u32, u32)> {
    // SAFETY: two numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IO_WHO_PROCESS, pid) };
    let found = check(result, "ioprio_get", || pid.to_string())?;
    let found = u32::try_from(found).unwrap_or(0);
    Ok((found >> IO_CLASS_SHIFT, found & ((1 << IO_CLASS_SHIFT) - 1)))
}

/// A set of processors or memory nodes, as the kernel takes it: a bit for each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumberSet(Vec<u64>);

/// More than any kernel is built for; a list may not make this process allocate without bound.
const MOST: usize = 8192;

impl NumberSet {
    /// Reads a list such as `0-3,7`; `None` for anything else, also for an empty one.
    #[must_use]
    pub fn parse(list: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<usize>().ok().filter(|&n| digits && n < MOST)
            };
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return None;
            }
            (first..=last).for_each(|n| set.add(n));
        }
        Some(set)
    }

    /// Every number below `count`.
    #[must_use]
    pub fn all(count: usize) -> Self {
        let count = count.min(MOST);
        let mut words = vec![u64::MAX; count.div_ceil(64)];
        if let (Some(last), rest @ 1..) = (words.last_mut(), count % 64) {
            *last = (1 << rest) - 1;
        }
        Self(words)
    }

    fn add(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    /// Whether `number` is in the set.
    #[must_use]
    pub fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// The numbers below 64 as bits, for messages.
    #[must_use]
    pub fn low_bits(&self) -> u64 {
        self.0.first().copied().unwrap_or(0)
    }

    fn bytes(&self) -> usize {
        self.0.len() * 8
    }
}

/// Binds thread `tid`, 0 being this one, to processors. Those that do not exist are passed over by the kernel, as
/// long as one does.
pub fn set_affinity(tid: i32, processors: &NumberSet) -> Result<()> {
    // SAFETY: the words are live for the call, and their length in bytes is given.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, processors.bytes(), processors.0.as_ptr()) };
    check(result, "sched_setaffinity", || format!("{tid}, {processors:?}")).map(drop)
}

/// The processors that thread `tid`, 0 being this one, is bound to.
pub fn affinity(tid: i32) -> Result<NumberSet> {
    let mut words = vec![0_u64; MOST / 64];
    // SAFETY: there is room for as many bytes as the call is told.
    let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, words.len() * 8, words.as_mut_ptr()) };
    let used = check(result, "sched_getaffinity", || tid.to_string())?;
    words.truncate(usize::try_from(used).unwrap_or(0) / 8);
    Ok(NumberSet(words))
}

/// Lets thread `tid`, 0 being this one, run on every processor its cpuset has: what was inherited does not count.
pub fn reset_affinity(tid: i32) -> Result<()> {
    set_affinity(tid, &NumberSet::all(MOST))
}

/// The policies of memory placement.
pub const MEMORY_MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// The flags that go with them.
pub const MEMORY_FLAGS: [(&str, i32); 3] =
    [("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];

/// Sets the memory policy of this thread; it is inherited and kept over exec.
pub fn set_memory_policy(mode: i32, flags: i32, nodes: &NumberSet) -> Result<()> {
    // The kernel reads one bit less than it is told.
    let count = if nodes.0.is_empty() { 0 } else { nodes.bytes() * 8 + 1 };
    // One more word, so that no rounding of the kernel's reads behind the end.
    let mut words = nodes.0.clone();
    words.push(0);
    let address = if count == 0 { std::ptr::null() } else { words.as_ptr() };
    // SAFETY: the words are live for the call and one more than the count of bits needs.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode | flags, address, count) };
    if result < 0 {
        let errno = nix::errno::Errno::last_raw();
        return Err(Error::new("set_mempolicy", format!("mode {mode}, flags {flags:#x}, {nodes:?}"), errno));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let set = NumberSet::parse("0-3,7, 70").unwrap();
        let members: Vec<_> = (0..200).filter(|&n| set.has(n)).collect();
        assert_eq!(members, [0, 1, 2, 3, 7, 70]);
        for bad in ["", ",", "1-", "3-1", "a", "-1", "+1", "1-2-3", "99999999", "0-8192"] {
            assert_eq!(NumberSet::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_thread_is_scheduled_as_asked() {
        std::thread::spawn(|| {
            set(0, &Attributes { policy: 3, nice: 5, ..Attributes::default() }).unwrap();
            let found = get(0).unwrap();
            assert_eq!((found.policy, found.nice), (3, 5));
            set_io_priority(0, 2, 6).unwrap();
            assert_eq!(io_priority(0).unwrap(), (2, 6));
            let first = (0..MOST).find(|&n| affinity(0).unwrap().has(n)).unwrap();
            set_affinity(0, &NumberSet::parse(&first.to_string()).unwrap()).unwrap();
            assert!(!affinity(0).unwrap().has(first + 1));
            reset_affinity(0).unwrap();
            match set_memory_policy(2, 0, &NumberSet::parse("0").unwrap()) {
                // A kernel without NUMA has no such call.
                Err(e) => assert!(e.is(&[libc::ENOSYS]), "{e}"),
                Ok(()) => set_memory_policy(0, 0, &NumberSet::default()).unwrap(),
            }
        })
        .join()
        .unwrap();
    }
}
