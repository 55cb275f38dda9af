//! The architectures a filter can be made for, and the numbers of their system calls.

use oci_spec::runtime::Arch as Named;

use super::data::{N, NUMBERS};

/// An architecture, in the order of the columns of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arch {
    X8664,
    X86,
    X32,
    Aarch64,
    Arm,
    Riscv64,
    Ppc64le,
    S390x,
}

/// The bit in the number of every x32 call.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// What this program was built for; always part of a filter.
    pub(super) const NATIVE: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X8664)
    } else if cfg!(target_arch = "x86") {
        Some(Self::X86)
    } else if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else if cfg!(target_arch = "arm") {
        Some(Self::Arm)
    } else if cfg!(target_arch = "riscv64") {
        Some(Self::Riscv64)
    } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
        Some(Self::Ppc64le)
    } else if cfg!(target_arch = "s390x") {
        Some(Self::S390x)
    } else {
        None
    };

    /// The architecture of a profile's word. None for those whose programs no kernel that runs this program executes:
    /// a filter cannot meet them.
    pub(super) const fn of(named: Named) -> Option<Self> {
        match named {
            Named::ScmpArchNative => Self::NATIVE,
            Named::ScmpArchX86_64 => Some(Self::X8664),
            Named::ScmpArchX86 => Some(Self::X86),
            Named::ScmpArchX32 => Some(Self::X32),
            Named::ScmpArchAarch64 => Some(Self::Aarch64),
            Named::ScmpArchArm => Some(Self::Arm),
            Named::ScmpArchRiscv64 => Some(Self::Riscv64),
            Named::ScmpArchPpc64le => Some(Self::Ppc64le),
            Named::ScmpArchS390x => Some(Self::S390x),
            _ => None,
        }
    }

    /// The architecture as the kernel shows it to filters. x32 shares the one of x86-64.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X8664 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
            Self::Ppc64le => 0xc000_0015,
            Self::S390x => 0x8000_0016,
        }
    }

    /// Whether arguments have 64 bits; of the others only the lower half counts.
    pub(super) const fn wide(self) -> bool {
        !matches!(self, Self::X86 | Self::Arm)
    }

    /// Whether the upper half of an argument comes first in memory.
    pub(super) const fn big_endian(self) -> bool {
        matches!(self, Self::S390x)
    }

    /// Whether socket and System V calls can also be made through one call for all of them.
    pub(super) const fn multiplexes(self) -> bool {
        matches!(self, Self::X86 | Self::Ppc64le | Self::S390x)
    }
}

/// The numbers of a system call on every architecture; none for a name that no kernel has.
pub(super) fn numbers(name: &str) -> Option<&'static [u32; 8]> {
    let at = NUMBERS.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(&NUMBERS[at].1)
}

/// The number of a system call on one architecture, with the bit that x32 calls carry.
pub(super) fn number(row: &[u32; 8], arch: Arch) -> Option<u32> {
    let number = row[arch as usize];
    if number == N {
        None
    } else if arch == Arch::X32 {
        Some(number | X32_BIT)
    } else {
        Some(number)
    }
}

/// What the same thing is called when it is made through `socketcall` or `ipc`: that call, and its first argument.
pub(super) fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(at) = SOCKET.iter().position(|known| *known == name) {
        return Some(("socketcall", at as u64 + 1));
    }
    IPC.iter().find(|(known, _)| *known == name).map(|(_, number)| ("ipc", *number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_the_search() {
        assert!(NUMBERS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let found = |name: &str| Arch::NATIVE.and_then(|arch| number(numbers(name).unwrap(), arch)).map(i64::from);
        assert_eq!(found("openat"), Some(libc::SYS_openat));
        assert_eq!(found("execve"), Some(libc::SYS_execve));
        assert_eq!(found("clone3"), Some(libc::SYS_clone3));
        assert_eq!(found("mseal"), Some(libc::SYS_mseal));
        assert!(numbers("no_such_call").is_none());
    }

    #[test]
    fn known_facts_of_each_column() {
        let at = |name: &str, arch| number(numbers(name).unwrap(), arch);
        assert_eq!(at("read", Arch::X86), Some(3));
        assert_eq!(at("execve", Arch::X32), Some(520 | X32_BIT));
        assert_eq!(at("openat", Arch::Aarch64), Some(56));
        assert_eq!(at("set_tls", Arch::Arm), Some(0x000f_0005));
        assert_eq!(at("mmap", Arch::Riscv64), Some(222));
        assert_eq!(at("socketcall", Arch::S390x), Some(102));
        assert_eq!(at("open", Arch::Aarch64), None);
        assert_eq!(multiplexed("connect"), Some(("socketcall", 3)));
        assert_eq!(multiplexed("shmget"), Some(("ipc", 23)));
    }
}
