//! Shims among the machine's processes: for what the state directory does not say any more.
//!
//! A shim's command line says which daemon started it, and for what. Anybody can write such a command line, so a
//! process counts only if it belongs to root and is in the daemon's own mount namespace, which a container's processes
//! are not.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gantry_proto::namespace::Namespace;

use super::Address;
use crate::error::{Doing, Error, Kind, Result};
use crate::id::ContainerId;

/// Longest command line that is looked at.
const MAX_COMMAND: usize = 64 << 10;

/// A shim that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its namespace.
    pub namespace: Namespace,
    /// The container or sandbox that it was started for.
    pub id: ContainerId,
    /// Its program.
    pub program: PathBuf,
    process: PathBuf,
}

/// Every shim that the daemon at `grpc_address` started.
///
/// # Errors
/// When the processes cannot be listed.
pub fn running(grpc_address: &str) -> Result<Vec<Running>> {
    let doing = || "look for shims among the processes";
    let files = fs::metadata("/proc/self/ns/mnt").doing(doing)?.ino();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").doing(doing)? {
        let process = entry.doing(doing)?.path();
        let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if process.file_name().is_some_and(is_number) {
            found.extend(shim_of(process, grpc_address, files));
        }
    }
    Ok(found)
}

/// The process as a shim, where it is one. Processes come and go: what cannot be read is none.
fn shim_of(process: PathBuf, grpc_address: &str, files: u64) -> Option<Running> {
    let command = fs::read(process.join("cmdline")).ok().filter(|command| command.len() <= MAX_COMMAND)?;
    let (namespace, id) = command_of(&command, grpc_address)?;
    let program = fs::read_link(process.join("exe")).ok()?;
    // A program that was replaced meanwhile still has its name.
    let program = program.to_str()?.trim_end_matches(" (deleted)").to_owned();
    let is_shim = Path::new(&program).file_name()?.to_str()?.starts_with("containerd-shim-");
    let is_ours = fs::metadata(&process).ok()?.uid() == 0
        && fs::metadata(process.join("ns/mnt")).ok().is_some_and(|namespace| namespace.ino() == files);
    (is_shim && is_ours).then(|| Running { namespace, id, program: program.into(), process })
}

/// The namespace and identifier in a shim's command line, where it names this daemon.
fn command_of(command: &[u8], grpc_address: &str) -> Option<(Namespace, ContainerId)> {
    let words: Vec<&str> = std::str::from_utf8(command).ok()?.split('\0').collect();
    let program = words.first()?.rsplit('/').next()?;
    if !program.starts_with("containerd-shim-") {
        return None;
    }
    let value = |name: &str| {
        let at = words.iter().position(|word| word.trim_start_matches('-') == name && word.starts_with('-'))?;
        words.get(at + 1).copied()
    };
    if value("address")? != grpc_address {
        return None;
    }
    Some((Namespace::parse(value("namespace")?).ok()?, ContainerId::parse(value("id")?).ok()?))
}

impl Running {
    /// Where it listens.
    ///
    /// # Errors
    /// `NotFound` where it does not, or is gone.
    pub fn address(&self) -> Result<Address> {
        let doing = || format!("find the socket of the shim of {}", self.id);
        let table = fs::read_to_string("/proc/net/unix").doing(doing)?;
        let sockets = listening(&table);
        let mut open = Vec::new();
        for entry in fs::read_dir(self.process.join("fd")).doing(doing)? {
            let path = entry.doing(doing)?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
            let Some((number, target)) = number.zip(fs::read_link(&path).ok()) else { continue };
            let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
            open.extend(inode.and_then(|inode| sockets.get(inode)).map(|path| (number, path.clone())));
        }
        // The one with the lowest descriptor: some shims open another socket for debugging, but later.
        let first = open.into_iter().min().ok_or_else(|| Error::new(Kind::NotFound, "it does not listen"));
        let (_, path) = first.doing(doing)?;
        // A shim that has only an older version of the service says so in its answer to the first call.
        Ok(Address { version: 3, address: format!("unix://{path}"), protocol: "ttrpc".to_owned() })
    }
}

/// The paths of listening sockets by inode, from the text of `/proc/net/unix`: its fourth column has flags, the seventh
/// the inode, and the last the path.
fn listening(table: &str) -> HashMap<&str, String> {
    /// `__SO_ACCEPTCON`.
    const LISTENS: u32 = 1 << 16;
    let mut sockets = HashMap::new();
    for line in table.lines() {
        let mut words = line.split_whitespace();
        let flags = words.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let (inode, path) = (words.nth(2), words.next());
        if let (Some(flags), Some(inode), Some(path)) = (flags, inode, path)
            && flags & LISTENS != 0
            && path.starts_with('/')
        {
            sockets.insert(inode, path.to_owned());
        }
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<u8> {
        words.join("\0").into_bytes()
    }

    #[test]
    fn command_lines() {
        let ours =
            command(&["/usr/bin/containerd-shim-rung-v2", "-namespace", "n", "-address", "/a", "-id", "c", "start"]);
        let (namespace, id) = command_of(&ours, "/a").expect("a shim");
        assert_eq!((namespace.as_str(), id.as_str()), ("n", "c"));
        assert!(command_of(&ours, "/b").is_none(), "another daemon's");
        assert!(command_of(&command(&["sh", "-namespace", "n", "-address", "/a", "-id", "c"]), "/a").is_none());
        let bad = command(&["containerd-shim-rung-v2", "-namespace", "n", "-address", "/a", "-id", "../c"]);
        assert!(command_of(&bad, "/a").is_none());
    }

    #[test]
    fn sockets() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 20434 /run/s/a\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 20435 /run/s/a\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 20436 @abstract\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 20437\n";
        assert_eq!(listening(table), HashMap::from([("20434", "/run/s/a".to_owned())]));
    }
}
