//! Snapshots whose files are mounted somewhere, whatever the records say: an older copy of the records knows nothing of a
//! container that runs.

use std::collections::HashSet;
use std::path::Path;

/// The numbers of snapshots in `root` whose files a mount shows, in any process's mounts.
pub(super) fn numbers(root: &Path) -> HashSet<u64> {
    let all = format!("{}/snapshots/", root.display());
    let (mut numbers, mut seen) = (HashSet::new(), HashSet::new());
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = processes.filter(|path| path.file_name().is_some_and(is_number));
    for process in std::iter::once("/proc/thread-self".into()).chain(processes) {
        // Most processes see the same mounts as others.
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else { continue };
        if seen.insert(namespace)
            && let Ok(mounts) = std::fs::read(process.join("mountinfo"))
        {
            // Some mount of somebody's may have a name that is no text.
            String::from_utf8_lossy(&mounts).lines().for_each(|line| shown(line, &all, &mut numbers));
        }
    }
    numbers
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

/// Adds those snapshots in `all` that a mount is made of: what it shows, its source, or the layers among its options.
fn shown(line: &str, all: &str, numbers: &mut HashSet<u64>) {
    let Some((head, tail)) = line.split_once(" - ") else { return };
    let mut fields = head.split(' ').skip(3);
    let (Some(root), Some(place)) = (fields.next(), fields.next()) else { return };
    // A snapshotter's own mounts are beneath its directory, and go with the snapshot.
    if place.contains(all) {
        return;
    }
    let mut add = |text: &str| {
        let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        numbers.extend(text[..end].parse::<u64>());
    };
    tail.match_indices(all).for_each(|(at, found)| add(&tail[at + found.len()..]));
    // What it shows is named by its path in its own file system, which is mounted somewhere on the way to it.
    if let Some((before, rest)) = root.split_once("/snapshots/")
        && all.strip_suffix("/snapshots/").is_some_and(|all| all.ends_with(before))
    {
        add(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_made_of_what_it_shows_and_of_its_layers() {
        let of = |line: &str| {
            let mut numbers = HashSet::new();
            shown(line, "/d/overlayfs/snapshots/", &mut numbers);
            let mut numbers: Vec<u64> = numbers.into_iter().collect();
            numbers.sort_unstable();
            numbers
        };
        let overlay = "40 30 0:50 / /run/rootfs rw - overlay overlay \
                       rw,lowerdir=/d/overlayfs/snapshots/2/fs:/d/overlayfs/snapshots/1/fs,\
                       upperdir=/d/overlayfs/snapshots/13/fs,workdir=/d/overlayfs/snapshots/13/work";
        assert_eq!(of(overlay), [1, 2, 13]);
        assert_eq!(of("40 30 8:1 /overlayfs/snapshots/7/fs / ro shared:1 - ext4 /dev/sda1 rw"), [7]);
        let other = "40 30 0:50 / /run/rootfs rw - overlay overlay rw,lowerdir=/e/overlayfs/snapshots/2/fs";
        let own = "40 30 7:0 / /d/overlayfs/snapshots/7/fs ro - erofs /d/overlayfs/snapshots/7/layer.erofs ro";
        for line in [own, other, "40 30 8:1 / / rw - ext4 /dev/sda1 rw"] {
            assert!(of(line).is_empty(), "{line}");
        }
    }
}
