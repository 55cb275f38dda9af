//! What the kernel's answer to an exec hides: which other file is missing, or why the format or the permission is wrong.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

/// As much of a program as its headers take.
const HEAD: usize = 4096;

/// A remark to follow the error, or nothing.
pub(super) fn of(path: &Path, errno: i32) -> String {
    if errno == libc::EACCES {
        return denied(path).to_owned();
    }
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    if read.is_err() {
        return String::new();
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(line, errno);
    }
    match (errno, Elf::read(&head)) {
        (libc::ENOENT, Some(elf)) => match elf.loader() {
            Some(loader) => format!(" (its dynamic loader {loader:?} is missing)"),
            None => " (its dynamic loader is missing)".into(),
        },
        (libc::ENOEXEC, Some(elf)) => match elf.machine() {
            Some(machine) => format!(" (built for {machine}, and this is {})", std::env::consts::ARCH),
            None => " (built for another machine, or damaged)".into(),
        },
        (libc::ENOEXEC, None) => " (no program and no #! line)".into(),
        _ => String::new(),
    }
}

fn denied(path: &Path) -> &'static str {
    let bits = std::fs::metadata(path).map(|found| found.permissions().mode());
    if bits.is_ok_and(|mode| mode & 0o111 == 0) {
        return " (it has no permission to be executed: chmod +x)";
    }
    match statvfs(path) {
        Ok(found) if found.flags().contains(FsFlags::ST_NOEXEC) => " (it is on a mount with noexec)",
        _ => "",
    }
}

fn script(line: &[u8], errno: i32) -> String {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.ends_with(b"\r") {
        return " (its #! line ends in a carriage return)".into();
    }
    let interpreter = String::from_utf8_lossy(line).trim().split(' ').next().unwrap_or_default().to_owned();
    if errno == libc::ENOENT { format!(" (its interpreter {interpreter:?} is missing)") } else { String::new() }
}

/// The head of an ELF file of either width and byte order.
struct Elf<'a> {
    head: &'a [u8],
    wide: bool,
    big: bool,
}

impl<'a> Elf<'a> {
    fn read(head: &'a [u8]) -> Option<Self> {
        let wide = *head.strip_prefix(b"\x7fELF")?.first()? == 2;
        Some(Self { head, wide, big: *head.get(5)? == 2 })
    }

    /// The unsigned number of `size` bytes at `at`.
    fn number(&self, at: usize, size: usize) -> Option<usize> {
        let bytes = self.head.get(at..at.checked_add(size)?)?;
        let join = |value: u64, byte: &u8| (value << 8) | u64::from(*byte);
        let value = if self.big { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) };
        usize::try_from(value).ok()
    }

    /// What it was built for, when that is another machine.
    fn machine(&self) -> Option<&'static str> {
        const MACHINES: &[(usize, &str)] = &[
            (3, "x86"),
            (8, "mips"),
            (20, "powerpc"),
            (21, "powerpc64"),
            (22, "s390x"),
            (40, "arm"),
            (62, "x86_64"),
            (183, "aarch64"),
            (243, "riscv64"),
            (258, "loongarch64"),
        ];
        let found = self.number(18, 2)?;
        let (_, name) = MACHINES.iter().find(|(number, _)| *number == found)?;
        Some(*name).filter(|name| *name != std::env::consts::ARCH)
    }

    /// The path of the dynamic loader it asks for.
    fn loader(&self) -> Option<String> {
        const INTERPRETER: usize = 3;
        let (table, size, count) = if self.wide {
            (self.number(32, 8)?, self.number(54, 2)?, self.number(56, 2)?)
        } else {
            (self.number(28, 4)?, self.number(42, 2)?, self.number(44, 2)?)
        };
        // As many as the head has room for.
        let mut headers = (0..count.min(HEAD)).map(|index| table.saturating_add(index.saturating_mul(size)));
        let header = headers.find(|at| self.number(*at, 4) == Some(INTERPRETER))?;
        let (offset, length) = if self.wide {
            (self.number(header.checked_add(8)?, 8)?, self.number(header.checked_add(32)?, 8)?)
        } else {
            (self.number(header.checked_add(4)?, 4)?, self.number(header.checked_add(16)?, 4)?)
        };
        let text = self.head.get(offset..offset.checked_add(length)?)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts() {
        let directory = tempfile::tempdir().expect("temp");
        let path = directory.path().join("script");
        std::fs::write(&path, "#!/no/such/shell -x\n").expect("write");
        assert_eq!(of(&path, libc::ENOENT), " (its interpreter \"/no/such/shell\" is missing)");
        assert!(of(&path, libc::EACCES).contains("chmod +x"));
        std::fs::write(&path, "#!/bin/sh\r\n").expect("write");
        assert!(of(&path, libc::ENOENT).contains("carriage return"));
        std::fs::write(&path, "text").expect("write");
        assert!(of(&path, libc::ENOEXEC).contains("no program"));
    }

    #[test]
    fn programs() {
        let mut head = vec![0; 200];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18] = 22;
        // One program header at 64, which names the loader at 150.
        (head[32], head[54], head[56]) = (64, 56, 1);
        (head[64], head[72], head[96]) = (3, 150, 9);
        head[150..159].copy_from_slice(b"/lib/ld.a");
        let elf = Elf::read(&head).expect("an ELF file");
        assert_eq!(elf.machine(), Some("s390x"));
        assert_eq!(elf.loader().as_deref(), Some("/lib/ld.a"));
        head[72] = 250;
        assert_eq!(Elf::read(&head).expect("an ELF file").loader(), None);
        // Nothing a hostile image says leads out of the head.
        head[32..40].fill(0xff);
        head[56..58].fill(0xff);
        assert_eq!(Elf::read(&head).expect("an ELF file").loader(), None);
        assert!(Elf::read(b"\x7fELF").is_none());
    }
}
