//! The architectures a filter can be made for, and the numbers of their system calls.

use oci_spec::runtime::Arch as Named;

use rung_spec::syscalls::{N, NUMBERS};

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

/// A system call that some kernel has, by its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call(usize);

impl Call {
    /// The call of that name.
    pub(super) fn find(name: &str) -> Option<Self> {
        let prefix = prefix(name);
        let first = PREFIXES.partition_point(|known| *known < prefix);
        let alike = (first..PREFIXES.len()).take_while(|at| PREFIXES[*at] == prefix);
        let (letters, rest) = (name.len(), name.as_bytes().get(8..));
        let is_rest = |known: &str| known.len() == letters && known.as_bytes().get(8..) == rest;
        alike.map(Self).find(|call| is_rest(NUMBERS[call.0].0))
    }

    /// Its number on one architecture, with the bit that x32 calls carry.
    pub(super) fn number(self, arch: Arch) -> Option<u32> {
        let number = NUMBERS[self.0].1[arch as usize];
        if number == N {
            None
        } else if arch == Arch::X32 {
            Some(number | X32_BIT)
        } else {
            Some(number)
        }
    }

    /// The calls that an architecture has, by number.
    pub(super) fn in_order(arch: Arch) -> impl Iterator<Item = (Self, u32)> {
        let places = ORDER[arch as usize].iter().map(|place| Self(usize::from(*place)));
        places.map_while(move |call| Some((call, call.number(arch)?)))
    }

    /// Its place in the table of [`Self::COUNT`] calls.
    pub(super) const fn place(self) -> usize {
        self.0
    }

    /// How many calls there are.
    pub(super) const COUNT: usize = NUMBERS.len();

    /// What the same thing is called when it is made through `socketcall` or `ipc`: that call, and its first argument.
    pub(super) fn multiplexed(self) -> Option<(Self, u64)> {
        let (through, which) = THROUGH[self.0];
        let call = match through {
            Through::Itself => None,
            Through::SocketCall => Self::find("socketcall"),
            Through::Ipc => Self::find("ipc"),
        };
        call.map(|call| (call, which.into()))
    }
}

/// What the search goes by: a profile has hundreds of names, and numbers are compared in no time.
static PREFIXES: [u64; NUMBERS.len()] = {
    let mut all = [0; NUMBERS.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = prefix(NUMBERS[at].0);
        at += 1;
    }
    all
};

/// For each architecture the places of the calls by their numbers there. Those that it has not come last.
#[allow(long_running_const_eval, reason = "half a second once instead of some microseconds in each start")]
static ORDER: [[u16; NUMBERS.len()]; 8] = {
    let mut all = [[0; NUMBERS.len()]; 8];
    let mut arch = 0;
    while arch < all.len() {
        let mut count: u16 = 0;
        while (count as usize) < NUMBERS.len() {
            let number = NUMBERS[count as usize].1[arch];
            let mut at = count as usize;
            while at > 0 && NUMBERS[all[arch][at - 1] as usize].1[arch] > number {
                all[arch][at] = all[arch][at - 1];
                at -= 1;
            }
            all[arch][at] = count;
            count += 1;
        }
        arch += 1;
    }
    all
};

/// The first eight letters, ordered as names are.
const fn prefix(name: &str) -> u64 {
    if let Some(letters) = name.as_bytes().first_chunk() {
        return u64::from_be_bytes(*letters);
    }
    let (name, mut value, mut at) = (name.as_bytes(), 0, 0);
    while at < 8 {
        value = value << 8 | if at < name.len() { name[at] as u64 } else { 0 };
        at += 1;
    }
    value
}

/// The call that a call can also be made through.
#[derive(Clone, Copy)]
enum Through {
    Itself,
    SocketCall,
    Ipc,
}

/// For each call of the table, what it can be made through and the number it has there.
static THROUGH: [(Through, u8); NUMBERS.len()] = {
    let mut all = [(Through::Itself, 0); NUMBERS.len()];
    let mut which: u8 = 0;
    while (which as usize) < SOCKET.len() {
        all[place(SOCKET[which as usize])] = (Through::SocketCall, which + 1);
        which += 1;
    }
    let mut at = 0;
    while at < IPC.len() {
        all[place(IPC[at].0)] = (Through::Ipc, IPC[at].1);
        at += 1;
    }
    all
};

/// Where a name is in the table. Only the compiler runs it, and it ends with an error for a name that is not there.
const fn place(name: &str) -> usize {
    let mut at = 0;
    while !same(NUMBERS[at].0.as_bytes(), name.as_bytes()) {
        at += 1;
    }
    at
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

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

const IPC: [(&str, u8); 12] = [
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_the_search() {
        assert!(NUMBERS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(NUMBERS.iter().enumerate().all(|(at, (name, _))| Call::find(name) == Some(Call(at))));
    }

    #[test]
    fn calls_are_in_the_order_of_their_numbers() {
        for arch in [Arch::X8664, Arch::X32, Arch::Arm, Arch::S390x] {
            let numbers: Vec<u32> = Call::in_order(arch).map(|(_, number)| number).collect();
            assert!(numbers.is_sorted(), "{arch:?}");
            assert_eq!(
                numbers.len(),
                (0..Call::COUNT).filter(|at| Call(*at).number(arch).is_some()).count(),
                "{arch:?}"
            );
        }
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let found = |name: &str| Arch::NATIVE.and_then(|arch| Call::find(name)?.number(arch)).map(i64::from);
        assert_eq!(found("openat"), Some(libc::SYS_openat));
        assert_eq!(found("execve"), Some(libc::SYS_execve));
        assert_eq!(found("clone3"), Some(libc::SYS_clone3));
        assert_eq!(found("mseal"), Some(libc::SYS_mseal));
        assert_eq!(Call::find("no_such_call"), None);
    }

    #[test]
    fn known_facts_of_each_column() {
        let at = |name: &str, arch| Call::find(name).unwrap().number(arch);
        assert_eq!(at("read", Arch::X86), Some(3));
        assert_eq!(at("execve", Arch::X32), Some(520 | X32_BIT));
        assert_eq!(at("openat", Arch::Aarch64), Some(56));
        assert_eq!(at("set_tls", Arch::Arm), Some(0x000f_0005));
        assert_eq!(at("mmap", Arch::Riscv64), Some(222));
        assert_eq!(at("socketcall", Arch::S390x), Some(102));
        assert_eq!(at("open", Arch::Aarch64), None);
        let through = |name: &str| Call::find(name).unwrap().multiplexed();
        assert_eq!(through("connect"), Call::find("socketcall").map(|call| (call, 3)));
        assert_eq!(through("shmget"), Call::find("ipc").map(|call| (call, 23)));
        assert_eq!(through("read"), None);
    }
}
