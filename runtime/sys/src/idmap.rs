//! Writing the id maps of a user namespace.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use crate::error::{Error, Result};
use crate::process::Pid;

/// One range: ids from `inside` on, as seen in the namespace, are the ids from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The kernel takes at most this many ranges.
pub const MAX_RANGES: usize = 340;

/// Ranges in the kernel's text form.
pub fn to_text(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.count);
        text
    })
}

/// Writes the user id map of a process.
pub fn write_uids(pid: Pid, ranges: &[Range]) -> Result<()> {
    write(pid, "uid_map", &to_text(ranges))
}

/// Writes the group id map of a process.
pub fn write_gids(pid: Pid, ranges: &[Range]) -> Result<()> {
    write(pid, "gid_map", &to_text(ranges))
}

/// Takes setgroups(2) away from a user namespace, which an unprivileged group map demands.
pub fn deny_setgroups(pid: Pid) -> Result<()> {
    write(pid, "setgroups", "deny")
}

fn write(pid: Pid, name: &'static str, text: &str) -> Result<()> {
    // The kernel takes a map in one write only.
    let path = format!("/proc/{pid}/{name}");
    let written =
        OpenOptions::new().write(true).open(Path::new(&path)).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Error::from_io("write", format!("{path:?}, {text:?}"), &error))
}
