//! A thread that does nothing but be in a namespace, so that what `/proc` says of the thread it says of the namespace.
//!
//! It costs what the kernel keeps of a thread, and nothing else. It is a few instructions without a stack that wait in the
//! kernel, and the C library does not know of it. No signal comes to it, so that it never wakes up before it is to end.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, check, describe_fd};
use crate::file;
use crate::namespace::Namespace;
use crate::process::{Pid, pid_of};

/// How long a thread may take to enter its namespace, or to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// What [`Words::outcome`] is before there is one: no error number.
const NONE_YET: i32 = 1;
/// How many such threads this process has.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// A thread in a namespace, which ends when this is dropped.
#[derive(Debug)]
pub struct Parked {
    tid: Pid,
    /// The thread reads them for as long as it is there. They are never freed, which is twelve bytes for each thread.
    words: &'static Words,
}

/// What a thread and its maker tell each other. The instructions below know the places.
#[derive(Debug)]
#[repr(C)]
struct Words {
    /// 0 until the thread is to end.
    end: AtomicU32,
    /// Not 0 as long as the thread is there; the kernel clears it.
    there: AtomicU32,
    /// What setns answered.
    outcome: AtomicI32,
}

impl Parked {
    /// Has a new thread wait in the namespace behind `target`, which is of this kind.
    ///
    /// # Errors
    /// When no thread can be made, or when it cannot enter the namespace; `ENOSYS` on a machine that this is not written
    /// for.
    pub fn inside(target: BorrowedFd<'_>, kind: Namespace) -> Result<Self> {
        let words: &'static Words = Box::leak(Box::new(Words {
            end: AtomicU32::new(0),
            there: AtomicU32::new(1),
            outcome: AtomicI32::new(NONE_YET),
        }));
        let started = without_signals(|| start(words, target.as_raw_fd(), kind.flag()))?;
        if started < 0 {
            let errno = i32::try_from(started.saturating_neg()).unwrap_or(libc::EINVAL);
            return Err(Error::new("clone", "CLONE_THREAD", errno));
        }
        let tid = pid_of(started);
        THREADS.fetch_add(1, Ordering::SeqCst);
        let parked = Self { tid, words };
        let begun = Instant::now();
        loop {
            let errno = match words.outcome.load(Ordering::SeqCst) {
                0 => return Ok(parked),
                NONE_YET if begun.elapsed() > PATIENCE => libc::ETIMEDOUT,
                NONE_YET => {
                    sleep_on(words.outcome.as_ptr().cast(), libc::FUTEX_PRIVATE_FLAG, NONE_YET.unsigned_abs());
                    continue;
                }
                outcome => outcome.saturating_neg(),
            };
            return Err(Error::new("setns", format!("{}, {:#x}", describe_fd(target), kind.flag()), errno));
        }
    }

    /// The thread's number. `/proc` has it under this, though no listing of `/proc` names it.
    pub fn tid(&self) -> Pid {
        self.tid
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let Words { end, there, .. } = self.words;
        end.store(1, Ordering::SeqCst);
        // SAFETY: the kernel compares and writes nothing for this operation; the word is never freed.
        unsafe { libc::syscall(libc::SYS_futex, end.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
        let begun = Instant::now();
        // The kernel's own wake-up is for every process that has the memory.
        while there.load(Ordering::SeqCst) != 0 && begun.elapsed() < PATIENCE {
            sleep_on(there.as_ptr(), 0, 1);
        }
        THREADS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether this process has no thread but its first and parked ones. Those hold no lock and touch no memory but their
/// words, so that a copy of the process without them is whole.
pub(crate) fn only_others() -> bool {
    let parked = THREADS.load(Ordering::SeqCst);
    // The 18th word after the name, which may have any letters in it.
    let threads = || {
        let stat = file::read_to_string("/proc/self/stat").ok()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(17)?.parse::<usize>().ok()
    };
    parked > 0 && threads() == Some(parked + 1)
}

/// Sleeps as long as the word has this value, for a moment at most.
fn sleep_on(word: *const u32, flags: c_int, value: u32) {
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // SAFETY: the kernel reads the word, which is never freed, and `limit`, which outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT | flags, value, &raw const limit) };
}

/// Calls `work` with every signal blocked that the kernel lets anybody block, which a new thread takes over.
fn without_signals<T>(work: impl FnOnce() -> T) -> Result<T> {
    let (all, mut before) = (u64::MAX, 0_u64);
    // By the bare call: the C library's leaves out two signals.
    let set = |new: *const u64, old: *mut u64| {
        // SAFETY: both point to sets of the size that is said, or the second to nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, size_of::<u64>()) }
    };
    check(set(&raw const all, &raw mut before), "rt_sigprocmask", || "SIG_SETMASK, all".into())?;
    let done = work();
    check(set(&raw const before, std::ptr::null_mut()), "rt_sigprocmask", || "SIG_SETMASK".into())?;
    Ok(done)
}

/// `CLONE_*` of a thread whose end clears a word.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const THREAD: c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_CHILD_CLEARTID;

/// Makes the thread. Answers with its number, or with a negative error number.
#[cfg(target_arch = "x86_64")]
fn start(words: &'static Words, namespace: c_int, kind: u64) -> c_long {
    let mut returned = libc::SYS_clone;
    // SAFETY: the new thread has the caller's stack pointer and thread-local storage, and uses neither: it makes system calls
    // from registers and reads and writes only `words`, which is never freed, until it ends without returning. All signals
    // are blocked, so that nothing else runs on it. In the caller only the registers change that are outputs.
    unsafe {
        core::arch::asm!(
            "syscall", // clone
            "test rax, rax",
            "jnz 4f",
            "mov edi, r13d",
            "mov rsi, r14",
            "mov eax, 308", // setns
            "syscall",
            "mov dword ptr [r12 + 8], eax",
            "lea rdi, [r12 + 8]",
            "mov esi, 129", // FUTEX_WAKE, private
            "mov edx, 1",
            "mov eax, 202", // futex
            "syscall",
            "2:",
            "mov rdi, r12",
            "mov esi, 128", // FUTEX_WAIT, private
            "xor edx, edx", // as long as it is 0
            "xor r10d, r10d", // without a limit
            "mov eax, 202", // futex
            "syscall",
            "cmp dword ptr [r12], 0",
            "je 2b",
            "xor edi, edi",
            "mov eax, 60", // exit, of the thread alone
            "syscall",
            "ud2",
            "4:",
            inlateout("rax") returned,
            in("rdi") u64::from(THREAD.unsigned_abs()),
            in("rsi") 0_u64,
            in("rdx") 0_u64,
            in("r10") words.there.as_ptr(),
            in("r8") 0_u64,
            in("r12") words,
            in("r13") namespace,
            in("r14") kind,
            out("rcx") _,
            out("r11") _,
        );
    }
    returned
}

/// Makes the thread. Answers with its number, or with a negative error number.
#[cfg(target_arch = "aarch64")]
fn start(words: &'static Words, namespace: c_int, kind: u64) -> c_long {
    let mut returned = c_long::from(THREAD);
    // SAFETY: the new thread has the caller's stack pointer and thread-local storage, and uses neither: it makes system calls
    // from registers and reads and writes only `words`, which is never freed, until it ends without returning. All signals
    // are blocked, so that nothing else runs on it. In the caller only the register changes that is an output.
    unsafe {
        core::arch::asm!(
            "svc #0", // clone
            "cbnz x0, 4f",
            "mov w0, w21",
            "mov x1, x22",
            "mov x8, #268", // setns
            "svc #0",
            "add x23, x20, #8",
            "stlr w0, [x23]",
            "mov x0, x23",
            "mov x1, #129", // FUTEX_WAKE, private
            "mov x2, #1",
            "mov x8, #98", // futex
            "svc #0",
            "2:",
            "mov x0, x20",
            "mov x1, #128", // FUTEX_WAIT, private
            "mov x2, xzr", // as long as it is 0
            "mov x3, xzr", // without a limit
            "mov x8, #98", // futex
            "svc #0",
            "ldr w23, [x20]",
            "cbz w23, 2b",
            "mov x0, xzr",
            "mov x8, #93", // exit, of the thread alone
            "svc #0",
            "brk #0",
            "4:",
            inlateout("x0") returned,
            in("x1") 0_u64,
            in("x2") 0_u64,
            in("x3") 0_u64,
            in("x4") words.there.as_ptr(),
            in("x8") libc::SYS_clone,
            in("x20") words,
            in("x21") namespace,
            in("x22") kind,
        );
    }
    returned
}

/// It is not written for this machine.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn start(_: &'static Words, _: c_int, _: u64) -> c_long {
    -c_long::from(libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    fn inode(path: &str) -> u64 {
        std::fs::metadata(path).expect("namespace").ino()
    }

    #[test]
    fn a_thread_shows_its_namespace_until_it_is_dropped() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (made, namespace) = std::thread::spawn(|| {
            crate::namespace::leave(Namespace::Network.flag()).expect("a namespace");
            crate::network::bring_loopback_up().expect("loopback");
            let path = "/proc/thread-self/ns/net";
            (inode(path), std::fs::File::open(path).expect("open"))
        })
        .join()
        .expect("thread");
        let parked = Parked::inside(namespace.as_fd(), Namespace::Network).expect("a thread");
        drop(namespace);
        let tid = parked.tid();
        assert_eq!(inode(&format!("/proc/{tid}/ns/net")), made);
        assert_ne!(inode("/proc/thread-self/ns/net"), made);
        // What is looked at by way of the number is the thread's, and not that of the process it belongs to.
        let text = std::fs::read_to_string(format!("/proc/{tid}/net/dev")).expect("interfaces");
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines.len() == 1 && lines[0].trim().starts_with("lo:"), "{text}");
        let status = || std::fs::read_to_string(format!("/proc/{tid}/status")).expect("status");
        let begun = Instant::now();
        while !status().contains("State:\tS") {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not sleep");
        }
        let status = status();
        // All but SIGKILL and SIGSTOP.
        assert!(status.contains("SigBlk:\tfffffffffffbfeff\n"), "{status}");
        drop(parked);
        // Its memory is given back before the kernel forgets its number, which another thread may have by now.
        let own = || std::fs::metadata(format!("/proc/self/task/{tid}/ns/net")).ok().map(|file| file.ino());
        let begun = Instant::now();
        while own() == Some(made) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is there still");
        }
    }

    #[test]
    fn what_is_no_such_namespace_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("open");
        let refused = Parked::inside(file.as_fd(), Namespace::Network).expect_err("no namespace");
        assert!(refused.is(&[libc::EINVAL, libc::EPERM]), "{refused}");
    }
}
