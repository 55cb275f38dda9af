//! Which hierarchies the host has, and where in them a container belongs.
//!
//! The mount table is not read on the way of a start: on a host with a thousand mounts that alone costs a millisecond.
//! What is at `/sys/fs/cgroup` says whether the host is unified; on v1 the hierarchies are the lines of
//! `/proc/self/cgroup`, each mounted where every distribution mounts it. Only where one is not found there the mount
//! table is asked.

use std::path::{Path, PathBuf};

use rung_sys::beneath::lexical;
use rung_sys::cgroupfs::{self, Version, memberships};
use rung_sys::mountinfo::{self, Mounted};

use super::error::{Error, Result};

/// Where cgroups are mounted.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its v1 controllers, or `name=…`; empty for the v2 hierarchy.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The cgroup of this process in it.
    pub(super) own: PathBuf,
}

impl Hierarchy {
    /// Whether this is the v2 hierarchy.
    pub(super) const fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether it holds v1 controller `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.controllers.iter().any(|c| c == name)
    }
}

/// Whether this host has v2 alone.
#[must_use]
pub fn is_unified() -> bool {
    cgroupfs::version_at(Path::new(ROOT)) == Some(Version::V2)
}

/// The hierarchies of this host, v1 controllers first. On a unified host there is one.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let root = Path::new(ROOT);
    let table = read_proc("/proc/self/cgroup")?;
    if is_unified() {
        let own = memberships(&table).find(|(names, _)| names.is_empty()).map(|(_, own)| own).unwrap_or_default();
        return Ok(vec![Hierarchy { controllers: Vec::new(), mount: root.to_owned(), own }]);
    }
    let mut mounts = None;
    let mut found = Vec::new();
    for (controllers, own) in memberships(&table) {
        let mount = match usual_mount(root, &controllers) {
            Some(mount) => Some(mount),
            // Every kernel has a line for v2, mounted or not. Beside v1 it is of use only where it usually is.
            None if controllers.is_empty() => None,
            None => mounted_elsewhere(&controllers, &mut mounts)?,
        };
        if let Some(mount) = mount {
            found.push(Hierarchy { controllers, mount, own });
        }
    }
    if found.is_empty() {
        return Err(Error::Host(format!("no cgroup file system is mounted under {ROOT}")));
    }
    Ok(found)
}

pub(super) fn read_proc(path: &str) -> Result<Vec<u8>> {
    rung_sys::file::read(Path::new(path)).map_err(|e| Error::Host(format!("read {path}: {e}")))
}

/// The mount point that every distribution uses for these controllers, when such a hierarchy is mounted there.
fn usual_mount(root: &Path, controllers: &[String]) -> Option<PathBuf> {
    let (candidates, wanted) = match controllers {
        [] => (vec!["unified".to_owned()], Version::V2),
        [named] if named.starts_with("name=") => (vec![named["name=".len()..].to_owned()], Version::V1),
        [first, ..] => (vec![controllers.join(","), first.clone()], Version::V1),
    };
    candidates.into_iter().map(|name| root.join(name)).find(|path| cgroupfs::version_at(path) == Some(wanted))
}

fn mounted_elsewhere(controllers: &[String], mounts: &mut Option<Vec<Mounted>>) -> Result<Option<PathBuf>> {
    if mounts.is_none() {
        let table = mountinfo::read("self").map_err(|e| Error::Host(format!("read /proc/self/mountinfo: {e}")))?;
        *mounts = Some(table);
    }
    let serves = |mounted: &&Mounted| {
        mounted.kind == "cgroup" && controllers.iter().all(|name| mounted.file_system_options.contains(name))
    };
    Ok(mounts.as_ref().and_then(|all| all.iter().find(serves)).map(|mounted| mounted.point.clone()))
}

/// The directory of a container in `hierarchy`, by the rules of runc: an absolute path counts from the mount point, a
/// relative one from the runtime's own cgroup, or on v2 from the one above, which has no processes of its own.
pub(super) fn container_dir(hierarchy: &Hierarchy, cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf> {
    let wanted = cgroups_path.filter(|path| !path.as_os_str().is_empty());
    let inner = wanted.map_or_else(|| PathBuf::from(id), lexical);
    if inner.as_os_str().is_empty() {
        return Err(Error::invalid("linux.cgroupsPath", "the root cgroup cannot be a container's"));
    }
    if wanted.is_some_and(Path::is_absolute) {
        return Ok(hierarchy.mount.join(inner));
    }
    let own = hierarchy.own.as_path();
    let base = lexical(if hierarchy.is_v2() { own.parent().unwrap_or(Path::new("")) } else { own });
    let above = hierarchy.mount.join(&base);
    // In a container without a cgroup namespace the path is the host's, and what is mounted is only a part of it.
    if base.as_os_str().is_empty() || !above.is_dir() {
        return Ok(hierarchy.mount.join(inner));
    }
    Ok(above.join(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_path_counts_from_the_mount() {
        let pids = Hierarchy {
            controllers: vec!["pids".into()],
            mount: PathBuf::from("/sys/fs/cgroup/pids"),
            own: PathBuf::from("/user/me"),
        };
        let at = |path| container_dir(&pids, path, "web").unwrap();
        assert_eq!(at(Some(Path::new("/gantry/web"))), Path::new("/sys/fs/cgroup/pids/gantry/web"));
        assert_eq!(at(Some(Path::new("/../web"))), Path::new("/sys/fs/cgroup/pids/web"));
        assert!(container_dir(&pids, Some(Path::new("/")), "web").is_err());
    }

    #[test]
    fn mount_table() {
        let table = [
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw",
            "32 31 0:29 / /cg\\040s/both rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct",
            "41 31 0:38 / /cg/two rw,relatime - cgroup2 cgroup2 rw",
        ];
        let mut mounts = Some(table.iter().map(|line| mountinfo::parse(line.as_bytes()).unwrap()).collect());
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let at = |list: &[&str], mounts: &mut _| mounted_elsewhere(&names(list), mounts).unwrap();
        assert_eq!(at(&["cpu", "cpuacct"], &mut mounts), Some(PathBuf::from("/cg s/both")));
        assert_eq!(at(&["pids"], &mut mounts), None);
    }
}
