//! Where a process's cgroup is, and the plain files in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rung_sys::cgroupfs::{CgroupDir, is_missing, memberships};

use crate::{Doing, Error, Result};

/// Where the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The directories of one cgroup.
#[derive(Debug, Clone)]
pub enum Cgroup {
    /// Version 2: one directory.
    Unified(PathBuf),
    /// Version 1: one directory for each controller.
    Legacy(BTreeMap<String, PathBuf>),
}

impl Cgroup {
    /// The cgroup of process `pid`, as far as it is not the shim's own: a runtime may have left it where it was.
    pub fn of(pid: i32) -> Option<Self> {
        let theirs = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
        Self::beside(&theirs, &fs::read("/proc/self/cgroup").unwrap_or_default(), is_unified())
    }

    /// The cgroup that `theirs` says, as far as it is not what `own` says. Both are whatever bytes people name cgroups with.
    fn beside(theirs: &[u8], own: &[u8], unified: bool) -> Option<Self> {
        let own: Vec<_> = memberships(own).collect();
        let mut directories = BTreeMap::new();
        for (controllers, path) in memberships(theirs).filter(|line| !own.contains(line)) {
            let path = path.strip_prefix("/").unwrap_or(&path);
            if unified && controllers.is_empty() {
                return Some(Self::Unified(Path::new(MOUNT).join(path)));
            }
            for controller in controllers {
                // `cpu` is a link to `cpu,cpuacct` where the two are mounted together.
                let name = controller.strip_prefix("name=").unwrap_or(&controller);
                directories.insert(name.to_owned(), Path::new(MOUNT).join(name).join(path));
            }
        }
        (!unified && !directories.is_empty()).then_some(Self::Legacy(directories))
    }

    /// The directory of `controller`.
    pub fn controller(&self, controller: &str) -> Option<PathBuf> {
        match self {
            Self::Unified(dir) => Some(dir.clone()),
            Self::Legacy(directories) => directories.get(controller).cloned(),
        }
    }

    /// Every process in the cgroup and below.
    ///
    /// # Errors
    /// Where the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let dir = match self {
            Self::Unified(dir) => Some(dir),
            // Whichever hierarchy the runtime used: all of them hold the same processes.
            Self::Legacy(directories) => {
                ["pids", "memory", "devices", "freezer"].iter().find_map(|name| directories.get(*name))
            }
        };
        let dir = dir.ok_or_else(|| Error::not_found("the container has no cgroup"))?;
        let mut pids = Vec::new();
        CgroupDir::open(dir)?.walk(&mut |dir| {
            match dir.procs() {
                Ok(found) => {
                    pids.extend(found.into_iter().filter_map(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0))
                }
                // One that goes away while we look has no processes left.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

fn is_unified() -> bool {
    statfs(MOUNT).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Moves process `pid` into the existing cgroup `path` of every hierarchy that has it.
///
/// # Errors
/// Where none has it, or the kernel refuses.
pub fn join(path: &str, pid: i32) -> Result<()> {
    let relative = path.trim_start_matches('/');
    if relative.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("shim cgroup {path:?} leaves the hierarchy")));
    }
    let mut directories = vec![Path::new(MOUNT).join(relative)];
    if !is_unified() {
        let mounts = fs::read_dir(MOUNT).doing(|| format!("list {MOUNT}"))?;
        directories = mounts.flatten().map(|entry| entry.path().join(relative)).collect();
    }
    let mut joined = false;
    for procs in directories.iter().map(|dir| dir.join("cgroup.procs")).filter(|procs| procs.exists()) {
        let written = fs::OpenOptions::new().write(true).open(&procs);
        let written = written.and_then(|mut file| file.write_all(pid.to_string().as_bytes()));
        written.doing(|| format!("join shim cgroup {}", procs.display()))?;
        joined = true;
    }
    if joined { Ok(()) } else { Err(Error::not_found(format!("shim cgroup {path:?} does not exist"))) }
}

/// The number in `file`; `max` is the largest there is.
pub(super) fn number(dir: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    parse(text.trim())
}

pub(super) fn parse(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// The `key value` lines of `file`.
pub(super) fn keyed(dir: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), parse(value.trim())?))
    };
    text.lines().filter_map(pair).collect()
}

/// Names of the files in `dir` that start with `prefix` and end with `suffix`: what is between them.
pub(super) fn between(dir: &Path, prefix: &str, suffix: &str) -> Vec<String> {
    let names =
        fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some(name.strip_prefix(prefix)?.strip_suffix(suffix)?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn cgroups_may_have_any_name() {
        let own = b"3:cpu,cpuacct:/s\xe9rvice\n2:memory:/shim\n1:name=systemd:/s\xe9rvice\n0::/\n";
        let theirs = b"3:cpu,cpuacct:/s\xe9rvice/c\n2:memory:/c\n1:name=systemd:/s\xe9rvice\n0::/\n";
        let Some(Cgroup::Legacy(found)) = Cgroup::beside(theirs, own, false) else { panic!("no cgroup") };
        let at = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
        let cpu =
            [("cpu", &b"/sys/fs/cgroup/cpu/s\xe9rvice/c"[..]), ("cpuacct", b"/sys/fs/cgroup/cpuacct/s\xe9rvice/c")];
        let expected = cpu.into_iter().chain([("memory", &b"/sys/fs/cgroup/memory/c"[..])]);
        assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), at(path))).collect());
        assert!(Cgroup::beside(own, own, false).is_none(), "a cgroup of its own");
        let Some(Cgroup::Unified(found)) = Cgroup::beside(b"0::/s\xe9\n", b"0::/s\n", true) else {
            panic!("no cgroup")
        };
        assert_eq!(found, at(b"/sys/fs/cgroup/s\xe9"));
    }
}
