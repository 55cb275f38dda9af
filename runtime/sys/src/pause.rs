//! The pause program: the first process of a group of containers, which holds their namespaces and buries their orphans.
//!
//! It needs no image: it is one page of system calls without a library, so that a group costs a stack and page tables.
//! It waits for SIGCHLD and collects whoever has ended, and for SIGINT or SIGTERM and ends itself with success. The three
//! signals are blocked and waited for: a first process without handlers would not even get them otherwise.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the program is in the root file system that [`install`] fills.
pub const PATH: &str = "/pause";

/// Address at which the program is mapped.
const BASE: u64 = 0x40_0000;
/// ELF's header, and one program header after it.
const HEADERS: u64 = 64 + 56;

/// The machine's number in ELF, and the program.
#[cfg(target_arch = "x86_64")]
const CODE: Option<(u16, &[u8])> = Some((
    62,
    &[
        0x68, 0x02, 0x40, 0x01, 0x00, // push 1 << (SIGINT-1) | 1 << (SIGTERM-1) | 1 << (SIGCHLD-1)
        0x48, 0x89, 0xe6, // mov rsi, rsp: the set
        0x31, 0xff, 0x31, 0xd2, // rdi = SIG_BLOCK, rdx = no old set
        0x6a, 0x08, 0x41, 0x5a, // r10 = 8: the set's size
        0x6a, 0x0e, 0x58, 0x0f, 0x05, // rt_sigprocmask
        0x48, 0x89, 0xe7, // wait: mov rdi, rsp
        0x31, 0xf6, 0x31, 0xd2, // rsi = no details, rdx = no limit
        0x6a, 0x08, 0x41, 0x5a, // r10 = 8
        0xb8, 0x80, 0x00, 0x00, 0x00, 0x0f, 0x05, // rt_sigtimedwait
        0x83, 0xf8, 0x11, 0x74, 0x0d, // SIGCHLD: go to reap
        0x85, 0xc0, 0x78, 0xe5, // interrupted: go to wait
        0x31, 0xff, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0x0f, 0x05, // exit_group(0)
        0x6a, 0xff, 0x5f, 0x31, 0xf6, // reap: rdi = anybody, rsi = no status
        0x6a, 0x01, 0x5a, 0x45, 0x31, 0xd2, // rdx = WNOHANG, r10 = no usage
        0x6a, 0x3d, 0x58, 0x0f, 0x05, // wait4
        0x85, 0xc0, 0x7f, 0xec, // somebody: go to reap
        0xeb, 0xc6, // go to wait
    ],
));
/// The machine's number in ELF, and the program.
#[cfg(target_arch = "aarch64")]
const CODE: Option<(u16, &[u8])> = Some((
    183,
    &[
        0x49, 0x00, 0x88, 0xd2, 0x29, 0x00, 0xa0, 0xf2, // x9 = SIGINT, SIGTERM and SIGCHLD as a set
        0xe9, 0x0f, 0x1f, 0xf8, // push x9
        0x00, 0x00, 0x80, 0xd2, 0xe1, 0x03, 0x00, 0x91, // x0 = SIG_BLOCK, x1 = the set
        0x02, 0x00, 0x80, 0xd2, 0x03, 0x01, 0x80, 0xd2, // x2 = no old set, x3 = 8: the set's size
        0xe8, 0x10, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, // rt_sigprocmask
        0xe0, 0x03, 0x00, 0x91, 0x01, 0x00, 0x80, 0xd2, // wait: x0 = the set, x1 = no details
        0x02, 0x00, 0x80, 0xd2, 0x03, 0x01, 0x80, 0xd2, // x2 = no limit, x3 = 8
        0x28, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, // rt_sigtimedwait
        0x1f, 0x44, 0x00, 0x71, 0xa0, 0x00, 0x00, 0x54, // SIGCHLD: go to reap
        0x00, 0xff, 0xff, 0x37, // interrupted: go to wait
        0x00, 0x00, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, // exit_group(0)
        0x00, 0x00, 0x80, 0x92, 0x01, 0x00, 0x80, 0xd2, // reap: x0 = anybody, x1 = no status
        0x22, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, // x2 = WNOHANG, x3 = no usage
        0x88, 0x20, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, // wait4
        0x1f, 0x00, 0x00, 0x71, 0x2c, 0xff, 0xff, 0x54, // somebody: go to reap
        0xec, 0xff, 0xff, 0x17, // go to wait
    ],
));
/// Not written for this machine.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const CODE: Option<(u16, &[u8])> = None;

/// The program as an ELF file; none for a machine that it is not written for.
fn program() -> Option<Vec<u8>> {
    let (machine, code) = CODE?;
    let size = HEADERS + u64::try_from(code.len()).ok()?;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let short = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let long = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    // An executable of version 1 that begins after the headers; program headers follow this header, sections are none.
    file.extend(short(&[2, machine, 1, 0]));
    file.extend(long(&[BASE + HEADERS, 64, 0]));
    file.extend(short(&[0, 0, 64, 56, 1, 64, 0, 0]));
    // One segment: the whole file, to be read and executed.
    file.extend(short(&[1, 0, 5, 0]));
    file.extend(long(&[0, BASE, BASE, size, size, 0x1000]));
    file.extend_from_slice(code);
    Some(file)
}

/// Writes the program into the directory of a root file system, as [`PATH`]. One that is there already stays.
///
/// # Errors
/// `Unsupported` for a machine that the program is not written for; those of writing.
pub fn install(rootfs: &Path) -> std::io::Result<()> {
    let missing = || std::io::Error::new(ErrorKind::Unsupported, "there is no pause program for this machine");
    let program = program().ok_or_else(missing)?;
    let path = rootfs.join(PATH.trim_start_matches('/'));
    match OpenOptions::new().write(true).create_new(true).mode(0o555).open(path) {
        Ok(mut file) => file.write_all(&program),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn it_runs_until_it_is_told_to_end() {
        let dir = tempfile::tempdir().expect("directory");
        install(dir.path()).expect("install");
        install(dir.path()).expect("install again");
        let mut child = Command::new(dir.path().join("pause")).spawn().expect("spawn");
        let until = |what: &str, is_so: &mut dyn FnMut() -> bool| {
            let begun = Instant::now();
            while !is_so() {
                assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // Before it waits for signals, they end it as they end anybody.
        let status = format!("/proc/{}/status", child.id());
        until("it waits", &mut || std::fs::read_to_string(&status).expect("it runs").contains("State:\tS"));
        assert_eq!(child.try_wait().expect("wait"), None, "it ended by itself");
        let pid = crate::process::Pid::from_raw(i32::try_from(child.id()).expect("a process number"));
        crate::signal::send(pid, libc::SIGCHLD).expect("signal");
        crate::signal::send(pid, libc::SIGTERM).expect("signal");
        let mut ended = None;
        until("it ends", &mut || {
            ended = child.try_wait().expect("wait");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }
}
