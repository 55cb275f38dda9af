//! Entering and leaving namespaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Result, check, describe_fd};

/// One kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Namespace {
    /// User and group ids, capabilities.
    User,
    /// Mounts.
    Mount,
    /// Process numbers.
    Pid,
    /// Network devices, addresses, ports.
    Network,
    /// System V and POSIX message queues, semaphores, shared memory.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The cgroup root as seen from inside.
    Cgroup,
    /// Monotonic and boot clocks.
    Time,
}

impl Namespace {
    /// Every kind.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Mount, Self::Pid, Self::Network, Self::Ipc, Self::Uts, Self::Cgroup, Self::Time];

    /// The `CLONE_NEW*` flag.
    pub fn flag(self) -> u64 {
        match self {
            Self::User => 0x1000_0000,
            Self::Mount => 0x0002_0000,
            Self::Pid => 0x2000_0000,
            Self::Network => 0x4000_0000,
            Self::Ipc => 0x0800_0000,
            Self::Uts => 0x0400_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => 0x0000_0080,
        }
    }

    /// The name under `/proc/<pid>/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The kind a namespace descriptor refers to; an error (`ENOTTY`) for any other descriptor.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Option<Self>> {
        /// `NS_GET_NSTYPE` of linux/nsfs.h.
        const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
        // SAFETY: NS_GET_NSTYPE takes no argument and returns a number.
        let returned = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
        let found = check(returned, "ioctl", || format!("{}, NS_GET_NSTYPE", describe_fd(fd)))?;
        Ok(Self::ALL.into_iter().find(|kind| i64::try_from(kind.flag()) == Ok(found)))
    }
}

/// Whether this process is in a user namespace other than the machine's first.
pub fn in_user_namespace() -> bool {
    let map = crate::file::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // The first one maps every id to itself; a kernel without user namespaces has no file.
    !map.is_empty() && map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// Enters namespaces: one by its own descriptor, or those in `flags` of the process behind a process descriptor.
pub fn enter(fd: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let number = libc::c_int::try_from(flags).unwrap_or(0);
    // SAFETY: setns takes two numbers; whatever it changes is kernel state of this process.
    let returned = unsafe { libc::setns(fd.as_raw_fd(), number) };
    check(returned, "setns", || format!("{}, {flags:#x}", describe_fd(fd))).map(drop)
}

/// Makes new namespaces for this process (for its children, with pid and time).
pub fn leave(flags: u64) -> Result<()> {
    let number = libc::c_int::try_from(flags).unwrap_or(0);
    // SAFETY: unshare takes a number; file descriptors and memory stay shared with nobody, as before.
    check(unsafe { libc::unshare(number) }, "unshare", || format!("{flags:#x}")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn own_namespaces_have_their_kind() {
        for kind in Namespace::ALL {
            let file = std::fs::File::open(format!("/proc/self/ns/{}", kind.proc_name())).expect("open");
            assert_eq!(Namespace::of(file.as_fd()).expect("kind"), Some(kind));
        }
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(Namespace::of(file.as_fd()).is_err());
    }
}
