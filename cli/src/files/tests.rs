use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::header::{Entry, Kind};
use super::*;

fn open(path: &Path) -> std::os::fd::OwnedFd {
    fs::File::open(path).expect("directory").into()
}

fn target(path: &Path, called: Option<&str>) -> Target {
    Target { within: open(path), called: called.map(OsString::from), bare: false, owners: false }
}

fn entry(path: &str, kind: Kind, link: &str, size: u64) -> Entry {
    let (path, link) = (path.as_bytes().to_vec(), link.as_bytes().to_vec());
    Entry { path, link, kind, mode: 0o644, owner: (0, 0), size, mtime: 1 }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, data) in entries {
        entry.write(&mut bytes).expect("header");
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len() + usize::try_from(padding(data.len() as u64)).expect("small"), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

#[test]
fn what_is_packed_is_unpacked() {
    let dir = tempfile::tempdir().expect("directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let long = "n".repeat(150);
    fs::create_dir_all(from.join("tree/empty")).expect("tree");
    fs::create_dir(&to).expect("directory");
    fs::write(from.join("tree").join(&long), "long").expect("file");
    fs::write(from.join("tree/run"), vec![7; 5000]).expect("file");
    fs::set_permissions(from.join("tree/run"), fs::Permissions::from_mode(0o4751)).expect("mode");
    fs::set_permissions(from.join("tree/empty"), fs::Permissions::from_mode(0o500)).expect("mode");
    fs::hard_link(from.join("tree/run"), from.join("tree/same")).expect("link");
    symlink("../elsewhere", from.join("tree/link")).expect("link");
    let pack_as = |called: &str| {
        let mut bytes = Vec::new();
        let source = Source { within: open(&from), name: "tree".into(), called: called.into(), owners: false };
        assert_eq!(pack(&source, &mut bytes).expect("pack"), 5004);
        bytes
    };
    let total = unpack(&mut pack_as("tree").as_slice(), &target(&to, Some("copy"))).expect("unpack");
    assert_eq!(total, 5004);
    let copy = to.join("copy");
    assert_eq!(fs::read(copy.join(&long)).expect("read"), b"long");
    assert_eq!(fs::read(copy.join("run")).expect("read"), vec![7; 5000]);
    let run = fs::metadata(copy.join("run")).expect("run");
    assert_eq!(run.permissions().mode() & 0o7777, 0o751, "nothing gains privileges");
    assert_eq!(run.ino(), fs::metadata(copy.join("same")).expect("same").ino());
    assert_eq!(run.mtime(), fs::metadata(from.join("tree/run")).expect("run").mtime());
    assert_eq!(fs::metadata(copy.join("empty")).expect("empty").permissions().mode() & 0o7777, 0o500);
    assert_eq!(fs::read_link(copy.join("link")).expect("link"), Path::new("../elsewhere"));
    // The content alone, over what is there.
    let bare = Target { bare: true, ..target(&copy, None) };
    unpack(&mut pack_as("").as_slice(), &bare).expect("once more");
    assert_eq!(fs::read(copy.join("run")).expect("read"), vec![7; 5000]);
}

/// A directory with another in it, and so on, and a file in the last; beside each a file that comes after it.
fn deep(dir: &Path, levels: usize, name: &str) {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let mut within = open(dir);
    for _ in 0..levels {
        mkdirat(&within, name, Mode::S_IRWXU).expect("directory");
        openat(&within, "e", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).expect("file");
        within = openat(&within, name, OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty()).expect("directory");
    }
}

#[test]
fn a_deep_tree_takes_neither_the_stack_nor_all_files() {
    let dir = tempfile::tempdir().expect("directory");
    // More levels than a process may usually have files open, and more than a path can have.
    for (name, levels, each) in [("deep", 1100, "d"), ("deeper", 5000, "directory")] {
        fs::create_dir(dir.path().join(name)).expect("directory");
        deep(&dir.path().join(name), levels, each);
    }
    let packed = |name: &str| {
        let source = Source { within: open(dir.path()), name: name.into(), called: "t".into(), owners: false };
        let mut bytes = Vec::new();
        let packed = pack(&source, &mut bytes).map(|_| bytes);
        packed.map_err(|error| error.to_string())
    };
    let (deep, deeper) = (packed("deep"), packed("deeper"));
    // What walks with a file for each level cannot remove them.
    let removed = std::process::Command::new("rm").arg("-rf").arg(dir.path()).status().expect("rm");
    assert!(removed.success());
    assert_eq!(deeper.expect_err("too deep"), "holds a path that is longer than 4095 bytes");
    let (deep, mut paths) = (deep.expect("pack"), Vec::new());
    let mut from = deep.as_slice();
    while let Some(entry) = Entry::read(&mut from).expect("read") {
        paths.push(String::from_utf8(entry.path).expect("text"));
    }
    assert_eq!(paths.len(), 2201);
    assert_eq!(paths[..3], ["t/", "t/d/", "t/d/d/"]);
    assert_eq!(paths[2199..], ["t/d/e", "t/e"]);
}

#[test]
fn no_entry_leads_elsewhere() {
    let dir = tempfile::tempdir().expect("directory");
    let (to, victim) = (dir.path().join("to"), dir.path().join("victim"));
    fs::create_dir_all(&victim).expect("victim");
    fs::write(victim.join("secret"), "mine").expect("secret");
    let root = (entry("d/", Kind::Directory, "", 0), &b""[..]);
    let bad = |path: &str| (entry(path, Kind::File, "", 3), &b"bad"[..]);
    let link = |path: &str, to: &str| (entry(path, Kind::Symlink, to, 0), &b""[..]);
    let outside = victim.to_str().expect("a path");
    let secret = victim.join("secret");
    let secret = secret.to_str().expect("a path");
    for (entries, harmless) in [
        (vec![bad("d/../../victim/secret")], false),
        (vec![bad("../victim/secret")], false),
        (vec![bad(secret)], false),
        // A link, and then something through it.
        (vec![link("d/out", outside), bad("d/out/secret")], false),
        (vec![link("d/out", outside), (entry("d/out/", Kind::Directory, "", 0), &b""[..]), bad("d/out/secret")], true),
        // A link, and then a file in its place.
        (vec![link("d/file", secret), bad("d/file")], true),
        (vec![(entry("d/hard", Kind::HardLink, "../victim/secret", 0), &b""[..]), bad("d/hard")], false),
        (vec![(entry("d/hard", Kind::HardLink, secret, 0), &b""[..])], false),
        (vec![link("d/out", outside), (entry("d/hard", Kind::HardLink, "d/out/secret", 0), &b""[..])], false),
        (vec![(entry("d/null", Kind::Device, "", 0), &b""[..])], false),
    ] {
        fs::create_dir_all(&to).expect("directory");
        let paths: Vec<_> =
            entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect();
        let mut bytes = archive(&[&[root.clone()][..], &entries[..]].concat());
        if entries.iter().any(|(entry, _)| entry.kind == Kind::Device) {
            // Nothing here writes one.
            bytes[BLOCK + 156] = b'3';
            let sum: u64 =
                (0..BLOCK).map(|at| u64::from(if (148..156).contains(&at) { b' ' } else { bytes[BLOCK + at] })).sum();
            bytes[BLOCK + 148..BLOCK + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let outcome = unpack(&mut bytes.as_slice(), &target(&to, Some("copy")));
        assert_eq!(outcome.is_ok(), harmless, "{paths:?}: {outcome:?}");
        assert_eq!(fs::read(victim.join("secret")).expect("secret"), b"mine", "{paths:?}");
        assert_eq!(fs::metadata(victim.join("secret")).expect("secret").nlink(), 1, "{paths:?}");
        assert_eq!(fs::read_dir(&victim).expect("victim").count(), 1, "{paths:?}");
        fs::remove_dir_all(&to).expect("clean");
    }
    // A link that was there before is not followed either.
    fs::create_dir_all(&to).expect("directory");
    symlink(&victim, to.join("copy")).expect("link");
    unpack(&mut archive(&[root, bad("d/secret")]).as_slice(), &target(&to, Some("copy"))).expect("replaced");
    assert_eq!(fs::read(victim.join("secret")).expect("secret"), b"mine");
    assert_eq!(fs::read(to.join("copy/secret")).expect("copied"), b"bad");
}

#[test]
fn damaged_archives_are_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let whole = archive(&[(entry("d", Kind::File, "", 3), b"abc")]);
    let refused = |bytes: &[u8]| unpack(&mut &*bytes, &target(dir.path(), Some("x"))).is_err();
    assert!(refused(&whole[..BLOCK + 1]) && refused(&whole[..100]));
    let mut changed = whole.clone();
    changed[0] = b'e';
    assert!(refused(&changed));
    assert!(!refused(&whole));
}
