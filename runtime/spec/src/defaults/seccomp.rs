//! The default system call filter: what ordinary programs use is allowed, what reaches into the host is refused.
//!
//! A refused call answers EPERM, as if the privilege were missing. Every other call answers ENOSYS, so that a C library
//! newer than this list takes its own way around a call it cannot know to be filtered.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// Allowed to everybody. Names that an architecture lacks are passed over there.
#[rustfmt::skip]
pub const ALLOWED: &[&str] = &[
    "_llseek", "_newselect", "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat", "capget",
    "capset", "chdir", "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64", "clock_getres",
    "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "close",
    "close_range", "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1",
    "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd",
    "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fadvise64_64",
    "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat",
    "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat",
    "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "get_thread_area",
    "getcpu", "getcwd", "getdents", "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid",
    "getgid32", "getgroups", "getgroups32", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid",
    "getpriority", "getrandom", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage",
    "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getuid32", "getxattr", "getxattrat",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy",
    "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "ioctl", "ioprio_get",
    "ioprio_set", "ipc", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lchown32", "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "lstat",
    "lstat64", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mkdir",
    "mkdirat", "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mq_getsetattr",
    "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64",
    "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall",
    "munmap", "name_to_handle_at", "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open",
    "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64",
    "prctl", "pread64", "preadv", "preadv2", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev",
    "pselect6", "pselect6_time64", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink",
    "readlinkat", "readv", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "remap_file_pages",
    "removexattr", "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop",
    "semtimedop_time64", "send", "sendfile", "sendfile64", "sendmmsg", "sendmsg", "sendto", "set_robust_list",
    "set_thread_area", "set_tid_address", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32",
    "setgroups", "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid",
    "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid", "setsockopt",
    "setuid", "setuid32", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack",
    "signalfd", "signalfd4", "sigprocmask", "sigreturn", "socketcall", "socketpair", "splice", "stat", "stat64",
    "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs",
    "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_gettime64", "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64", "times", "tkill", "truncate", "truncate64", "ugetrlimit", "umask",
    "uname", "unlink", "unlinkat", "uretprobe", "utime", "utimensat", "utimensat_time64", "utimes", "vfork",
    "vmsplice", "wait4", "waitid", "waitpid", "write", "writev",
];

/// Allowed on one family of machines only.
const ALLOWED_HERE: &[&str] = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" | b"x86" => &["arch_prctl", "modify_ldt"],
    b"aarch64" | b"arm" => {
        &["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"]
    }
    b"powerpc64" => &["sync_file_range2", "swapcontext"],
    b"s390x" => &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"],
    b"riscv64" => &["riscv_flush_icache", "riscv_hwprobe"],
    _ => &[],
};

/// Allowed to those who hold the capability, refused to others.
pub const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// Refused to everybody: keys are not namespaced, io_uring goes around the filter, the rest is obsolete or the host's.
pub const REFUSED: &[&str] = &[
    "_sysctl",
    "add_key",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "pivot_root",
    "request_key",
    "swapoff",
    "swapon",
    "sysfs",
    "userfaultfd",
    "uselib",
    "ustat",
    "vm86",
    "vm86old",
];

/// Namespace flags of clone(2). clone3 hides its flags behind a pointer, so it is not offered at all and C libraries
/// fall back to clone.
const CLONE_NAMESPACES: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Execution domains that change nothing the host has to fear: Linux and its 32-bit likeness, with or without
/// `UNAME26`, and the query.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The filter for a container whose processes can at most get the capabilities in `bounding`.
pub fn default(bounding: &Capabilities) -> LinuxSeccomp {
    let mut allowed: Vec<&str> = ALLOWED.iter().chain(ALLOWED_HERE).copied().collect();
    let mut refused: Vec<&str> = REFUSED.to_vec();
    for (capability, names) in WITH_CAPABILITY {
        if bounding.contains(capability) {
            allowed.extend(*names);
        }
    }
    let conditional = WITH_CAPABILITY.iter().flat_map(|(_, names)| names.iter().copied());
    refused.extend(conditional.filter(|name| !allowed.contains(name)));
    refused.sort_unstable();
    refused.dedup();

    let mut rules = vec![];
    if bounding.contains(&Capability::SysAdmin) {
        allowed.extend(["clone", "clone3"]);
    } else {
        rules.extend(clone_without_namespaces());
    }
    rules.extend(PERSONALITIES.iter().map(|value| when("personality", LinuxSeccompOperator::ScmpCmpEq, *value)));
    rules.extend(sockets());
    rules.insert(0, rule(&allowed, LinuxSeccompAction::ScmpActAllow, None));
    rules.push(rule(&refused, LinuxSeccompAction::ScmpActErrno, Some(EPERM)));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(architectures())
        .set_syscalls(Some(rules));
    profile
}

/// Threads and processes, but no namespaces: each flag is refused by its own rule, since a rule compares for equality.
fn clone_without_namespaces() -> Vec<LinuxSyscall> {
    let mask = CLONE_NAMESPACES.iter().fold(0, |mask, flag| mask | flag);
    let flags = |mask, value| argument(LinuxSeccompOperator::ScmpCmpMaskedEq, mask, Some(value));
    let mut allow = rule(&["clone"], LinuxSeccompAction::ScmpActAllow, None);
    allow.set_args(Some(vec![flags(mask, 0)]));
    let refuse = CLONE_NAMESPACES.iter().map(|flag| {
        let mut refuse = rule(&["clone"], LinuxSeccompAction::ScmpActErrno, Some(EPERM));
        refuse.set_args(Some(vec![flags(*flag, *flag)]));
        refuse
    });
    std::iter::once(allow).chain(refuse).collect()
}

/// Every address family but the kernel's crypto interface and the hypervisor's, which no namespace confines. Each rule
/// has one condition: runtimes read two conditions on one argument as "or".
fn sockets() -> Vec<LinuxSyscall> {
    let refuse = |family| {
        let mut refuse = when("socket", LinuxSeccompOperator::ScmpCmpEq, family);
        refuse.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(EAFNOSUPPORT));
        refuse
    };
    vec![
        when("socket", LinuxSeccompOperator::ScmpCmpLt, AF_ALG),
        when("socket", LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1),
        when("socket", LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK),
        refuse(AF_ALG),
        refuse(AF_VSOCK),
    ]
}

/// Allows a call whose first argument compares so.
fn when(name: &str, operator: LinuxSeccompOperator, value: u64) -> LinuxSyscall {
    let mut rule = rule(&[name], LinuxSeccompAction::ScmpActAllow, None);
    rule.set_args(Some(vec![argument(operator, value, None)]));
    rule
}

fn argument(operator: LinuxSeccompOperator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let mut argument = LinuxSeccompArgBuilder::default().index(0_usize).op(operator).value(value);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    argument.build().expect("each field of an argument has a default")
}

fn rule(names: &[&str], action: LinuxSeccompAction, errno: Option<u32>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect()).set_action(action).set_errno_ret(errno);
    rule
}

/// This machine's calling conventions: programs of its 32-bit kind run too.
fn architectures() -> Option<Vec<Arch>> {
    match std::env::consts::ARCH {
        "x86_64" => Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]),
        "aarch64" => Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        "s390x" => Some(vec![Arch::ScmpArchS390x, Arch::ScmpArchS390]),
        "riscv64" => Some(vec![Arch::ScmpArchRiscv64]),
        "powerpc64" if cfg!(target_endian = "little") => Some(vec![Arch::ScmpArchPpc64le]),
        "loongarch64" => Some(vec![Arch::ScmpArchLoongarch64]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::defaults::capabilities;

    fn names(profile: &LinuxSeccomp, action: LinuxSeccompAction) -> HashSet<String> {
        let rules = profile.syscalls().as_ref().unwrap();
        let plain = rules.iter().filter(|rule| rule.action() == action && rule.args().is_none());
        plain.flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        let sets: [Capabilities; 3] = [
            Capabilities::new(),
            capabilities::DEFAULT.iter().copied().collect(),
            capabilities::ALL.iter().copied().collect(),
        ];
        for set in sets {
            let profile = default(&set);
            let allowed = names(&profile, LinuxSeccompAction::ScmpActAllow);
            let refused = names(&profile, LinuxSeccompAction::ScmpActErrno);
            assert_eq!(allowed.intersection(&refused).collect::<Vec<_>>(), Vec::<&String>::new());
            assert!(allowed.len() > 350 && refused.contains("keyctl"));
        }
    }

    #[test]
    fn capabilities_open_calls() {
        let profile = default(&capabilities::DEFAULT.iter().copied().collect());
        let refused = names(&profile, LinuxSeccompAction::ScmpActErrno);
        for name in ["mount", "bpf", "reboot", "setns", "unshare"] {
            assert!(refused.contains(name), "{name}");
        }
        let allowed = names(&profile, LinuxSeccompAction::ScmpActAllow);
        assert!(allowed.contains("chroot") && !allowed.contains("clone") && !allowed.contains("clone3"));
        let allowed = names(&default(&[Capability::SysAdmin].into()), LinuxSeccompAction::ScmpActAllow);
        assert!(["clone", "clone3", "mount", "bpf"].iter().all(|name| allowed.contains(*name)));
    }

    #[test]
    fn unknown_calls_are_not_there() {
        assert_eq!(default(&Capabilities::new()).default_errno_ret(), Some(ENOSYS));
    }
}
