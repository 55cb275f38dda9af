//! The tables of mounts, `/proc/<pid>/mountinfo` of proc_pid_mountinfo(5). Their paths are any bytes: every user who may
//! mount with FUSE chooses some of them, and nobody else's container may suffer from that.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Its number.
    pub id: u64,
    /// Which part of its file system it shows.
    pub root: PathBuf,
    /// Where it is, from the root of the process.
    pub point: PathBuf,
    /// Its own options.
    pub options: Vec<String>,
    /// How it takes part in propagation: `shared:7`, `master:7`, `unbindable`.
    pub propagation: Vec<String>,
    /// The type of its file system.
    pub kind: String,
    /// The options of its file system.
    pub file_system_options: Vec<String>,
}

/// The mounts of a process, `self` or a number, from the bottom to the top.
///
/// # Errors
/// When there is no such process, and with `InvalidData` when a line has another form.
pub fn read(process: &str) -> io::Result<Vec<Mounted>> {
    let text = crate::file::read(Path::new(&format!("/proc/{process}/mountinfo")))?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let table: Option<_> = lines.map(parse).collect();
    table.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form"))
}

/// Reads one line; `None` when it has another form.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Mounted> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let list = |word: &[u8]| text(word).split(',').map(str::to_owned).collect();
    // The fields of propagation, any number of them, end with a hyphen.
    let optional = words.get(6..)?;
    let end = optional.iter().position(|word| *word == b"-")?;
    Some(Mounted {
        id: text(words[0]).parse().ok()?,
        root: unescape(words[3]),
        point: unescape(words[4]),
        options: list(words[5]),
        propagation: optional[..end].iter().map(|word| text(word)).collect(),
        kind: text(optional.get(end + 1)?),
        file_system_options: list(optional.get(end + 3)?),
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn lines_are_read() {
        let line = b"36 35 98:0 /mnt1 /a\\040b\\134\xff rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=x";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.kind.as_str()), (36, "ext3"));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/a b\\\xff");
        assert_eq!(mount.options, ["rw", "noatime"]);
        assert_eq!(mount.propagation, ["master:1", "shared:2"]);
        assert_eq!(mount.file_system_options, ["rw", "errors=x"]);
        assert!(parse(b"36 35 98:0 / / rw - ext3 /dev/root rw").unwrap().propagation.is_empty());
        for broken in [&b""[..], b"36 35 98:0", b"36 35 98:0 / / rw shared:1", b"36 35 98:0 / / rw - ext3"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn own_table_is_read() {
        let table = read("self").unwrap();
        assert!(table.iter().any(|mount| mount.point == Path::new("/proc") && mount.kind == "proc"));
        assert_eq!(read("0").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
