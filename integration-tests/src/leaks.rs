//! What a test left behind: processes, mounts, cgroups, network namespaces and files that carry its token.
//!
//! Everything a test makes is named after its token ([`Env`](crate::Env)), so a search for the token finds it, however
//! many other tests run at the same time. What is found is reported and then removed, so that one test's mess does not
//! become the next one's failure.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Waits a moment for what is on its way out, then removes and reports the rest.
pub fn settle_and_clear(token: &str) -> Vec<String> {
    remove_empty_parents(token);
    let limit = Instant::now() + Duration::from_secs(4) + Duration::from_secs(2) * wait::patience();
    let mut left = find(token);
    while !left.is_empty() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(20));
        left = find(token);
    }
    let report = left.describe();
    clear(token, left);
    report
}

/// The directories that all containers of a namespace share, named exactly as it: no runtime knows when the last one is
/// gone, so an empty one is nobody's leak. One that is not empty stays, and is found.
fn remove_empty_parents(token: &str) {
    let files = files(token);
    for parent in cgroups(token).iter().chain(&files).rev() {
        if parent.file_name().is_some_and(|name| name == token) {
            let _ = fs::remove_dir(parent);
        }
    }
}

#[derive(Debug, Default)]
struct Left {
    processes: Vec<(i32, String)>,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.cgroups.is_empty() && self.files.is_empty()
    }

    fn describe(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.processes.iter().map(|(pid, command)| format!("process {pid}: {command}")).collect();
        for (kind, paths) in [("mount", &self.mounts), ("cgroup", &self.cgroups), ("file", &self.files)] {
            lines.extend(paths.iter().map(|path| format!("{kind} {}", path.display())));
        }
        lines
    }
}

fn find(token: &str) -> Left {
    Left { processes: processes(token), mounts: mounts(token), cgroups: cgroups(token), files: files(token) }
}

fn clear(token: &str, mut left: Left) {
    // What is killed may have children that show only then, so the search is repeated a few times.
    for _ in 0..50 {
        if left.is_empty() {
            break;
        }
        for (pid, _) in &left.processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for mount in left.mounts.iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        for cgroup in left.cgroups.iter().rev() {
            let _ = fs::remove_dir(cgroup);
        }
        for file in &left.files {
            let _ = fs::remove_file(file).or_else(|_| fs::remove_dir_all(file));
        }
        std::thread::sleep(Duration::from_millis(20));
        left = find(token);
    }
    let _ = fs::remove_dir_all(std::env::temp_dir().join(token));
}

/// Processes whose command line, environment, or root mount carries the token. Zombies are gone in all but name.
fn processes(token: &str) -> Vec<(i32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let read = |name: &str| {
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned()
        };
        let command = read("cmdline").replace('\0', " ");
        let ours =
            command.contains(token) || read("environ").contains(token) || root_mount_has(&read("mountinfo"), token);
        (ours && !command.trim().is_empty()).then(|| (pid, command.trim().chars().take(300).collect()))
    })
    .collect()
}

/// Whether the root of the mount namespace comes from the test: a container's does.
fn root_mount_has(mountinfo: &str, token: &str) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains(token))
}

/// Mounts of this namespace on or from something of the test; a named network namespace is one of them.
fn mounts(token: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = table.lines().filter(|line| line.contains(token));
    ours.filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point))).collect()
}

/// `mountinfo` writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// Where the hierarchies of cgroups are mounted: one on v2.
pub fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

/// Cgroups named after the test, parents before children.
fn cgroups(token: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        search(&hierarchy, token, 8, true, &mut found);
    }
    found
}

/// Files named after the test outside its own directory: sockets, runtime state, lock files.
fn files(token: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    search(Path::new("/run"), token, 5, false, &mut found);
    search(&std::env::temp_dir(), token, 1, false, &mut found);
    let own = std::env::temp_dir().join(token);
    found.retain(|path| *path != own);
    found
}

/// Adds what is named after the token at most `depth` levels below `dir`, on the same file system.
/// Below a match only `nested` searches go on.
fn search(dir: &Path, token: &str, depth: usize, nested: bool, found: &mut Vec<PathBuf>) {
    let Ok(device) = fs::symlink_metadata(dir).map(|meta| meta.dev()) else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let matches = entry.file_name().to_string_lossy().contains(token);
        // Cgroups inside the test's own are left with it, whatever they are called.
        let inside = nested && dir.to_string_lossy().contains(token);
        if (matches || inside) && (is_dir || !nested) {
            found.push(entry.path());
        }
        let same = || entry.metadata().is_ok_and(|meta| meta.dev() == device);
        if is_dir && depth > 1 && (nested || !matches) && same() {
            search(&entry.path(), token, depth - 1, nested, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn finds_and_removes_a_process_and_a_file() {
        let token = crate::env::new_token(0xabc);
        let file = std::env::temp_dir().join(format!("left-by-{token}"));
        fs::write(&file, "").unwrap();
        let mut child = Command::new("sleep").arg("60").env("TOKEN", &token).spawn().unwrap();
        // Right after it is executed the kernel does not show its words yet.
        let seen = || Some(find(&token)).filter(|left| !left.processes.is_empty());
        let left = wait::until("the process to be seen", seen).unwrap();
        assert_eq!(left.processes.len(), 1, "{left:?}");
        assert_eq!(left.files, std::slice::from_ref(&file));
        clear(&token, left);
        assert!(!file.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_container_is_known_by_its_root() {
        let container = "9 1 254:0 /tmp/gt1/rootfs / rw - ext4 /dev/vda rw\n8 9 0:5 / /proc rw - proc proc rw";
        assert!(root_mount_has(container, "gt1"));
        assert!(!root_mount_has("9 1 254:0 / / rw - ext4 /dev/vda rw\n8 9 0:5 /tmp/gt1 /mnt rw - x y rw", "gt1"));
        assert_eq!(unescape("/a\\040b"), "/a b");
    }
}
