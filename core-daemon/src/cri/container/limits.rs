//! Whose memory limit was reached when the kernel ended a container's process: the container's own, that of its pod, or one
//! further up. Who sees `OOMKilled` raises the container's limit first, which is no use where another was too low.

use std::path::{Path, PathBuf};

use rung_sys::cgroupfs::{Version, flat_value, single, version_at};

use crate::cri::stats::slice_path;

/// Where the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// What the kernel asks for at once, in bytes: usage that is less than this below a limit has reached it.
const PIECE: u64 = 256 << 10;

/// What to say of a container in `cgroup`, a path in its hierarchy, that still is there.
pub(super) fn reached(cgroup: &Path) -> String {
    let mount = Path::new(MOUNT);
    match version_at(mount) {
        Some(Version::V2) => told(mount, cgroup, unified),
        _ => told(&mount.join("memory"), cgroup, legacy),
    }
}

/// Looks from the cgroup upwards for one that reached its limit, with `limit`, which is told whether it is the first.
fn told(mount: &Path, cgroup: &Path, limit: fn(&Path, bool) -> Option<u64>) -> String {
    let levels = cgroup.ancestors().filter(|level| *level != Path::new("/"));
    let directory = |level: &Path| mount.join(level.strip_prefix("/").unwrap_or(level));
    let found = levels.enumerate().find_map(|(up, level)| Some((up, level, limit(&directory(level), up == 0)?)));
    match found {
        Some((0, _, bytes)) => format!("the container reached its memory limit of {bytes} bytes"),
        Some((_, level, bytes)) => {
            format!("cgroup {}, which the container is in, reached its memory limit of {bytes} bytes", level.display())
        }
        None => "no cgroup of the container reached a memory limit: the machine had no memory left".to_owned(),
    }
}

/// The limit that was reached, on v2. The container's events are those of cgroups that were made in it, too; above it, only
/// a cgroup's own count.
fn unified(dir: &Path, is_container: bool) -> Option<u64> {
    let file = if is_container { "memory.events" } else { "memory.events.local" };
    flat_value(&read(dir, file)?, "oom").filter(|count| *count > 0)?;
    single(&read(dir, "memory.max")?)
}

/// The limit that was reached, on v1, which does not say what for: the nearest one. Kernels differ in whether they count its
/// failures, and whether those of memory and swap together come first.
fn legacy(dir: &Path, _: bool) -> Option<u64> {
    let number = |file: &str| single(&read(dir, file)?);
    let failed = |file: &&str| number(file).is_some_and(|count| count > 0);
    let (limit, most) = (number("memory.limit_in_bytes")?, number("memory.max_usage_in_bytes").unwrap_or(0));
    let is_reached = most.saturating_add(PIECE) > limit;
    (is_reached || ["memory.failcnt", "memory.memsw.failcnt"].iter().any(failed)).then_some(limit)
}

fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

/// The path that a `cgroupsPath` stands for: a directory, or `slice:prefix:name` with systemd.
pub(super) fn path_of(cgroups_path: &Path) -> PathBuf {
    let text = cgroups_path.to_string_lossy();
    let mut parts = text.splitn(3, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(slice), Some(prefix), Some(name)) => Path::new(&slice_path(slice)).join(format!("{prefix}-{name}.scope")),
        _ => cgroups_path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
        let dir = root.join(path);
        std::fs::create_dir_all(&dir).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.join(name), text).unwrap());
    }

    #[test]
    fn the_level_is_named() {
        let (root, container) = (tempfile::tempdir().unwrap(), Path::new("/pods/pod1/c"));
        let events = |dir: &str, own: &str, all: &str, max: &str| {
            let (own, all) = (format!("low 0\noom {own}\noom_kill 1\n"), format!("low 0\noom {all}\noom_kill 1\n"));
            cgroup(root.path(), dir, &[("memory.events.local", &own), ("memory.events", &all), ("memory.max", max)]);
        };
        events("pods", "0", "3", "max\n");
        events("pods/pod1", "0", "2", "900\n");
        events("pods/pod1/c", "0", "0", "800\n");
        let told = || told(root.path(), container, unified);
        assert!(told().contains("the machine had no memory left"), "{}", told());
        events("pods/pod1", "2", "2", "900\n");
        assert_eq!(told(), "cgroup /pods/pod1, which the container is in, reached its memory limit of 900 bytes");
        // What was made in the container counts for it.
        events("pods/pod1/c", "0", "1", "800\n");
        assert_eq!(told(), "the container reached its memory limit of 800 bytes");
    }

    #[test]
    fn the_nearest_counts_on_v1() {
        let (root, container) = (tempfile::tempdir().unwrap(), Path::new("/pods/c"));
        let used = |dir: &str, most: &str, limit: &str| {
            cgroup(root.path(), dir, &[("memory.max_usage_in_bytes", most), ("memory.limit_in_bytes", limit)]);
        };
        let told = || told(root.path(), container, legacy);
        used("pods", "8000000", "9000000");
        used("pods/c", "1000000", "9223372036854771712");
        assert!(told().contains("the machine had no memory left"), "{}", told());
        used("pods", "8999999", "9000000");
        assert!(told().starts_with("cgroup /pods, "), "{}", told());
        used("pods/c", "1000000", "2000000");
        cgroup(root.path(), "pods/c", &[("memory.memsw.failcnt", "1\n")]);
        assert_eq!(told(), "the container reached its memory limit of 2000000 bytes");
    }

    #[test]
    fn paths_of_both_drivers() {
        assert_eq!(path_of(Path::new("/pods/c")), Path::new("/pods/c"));
        assert_eq!(path_of(Path::new("x-y.slice:cri:c")), Path::new("/x.slice/x-y.slice/cri-c.scope"));
    }
}
