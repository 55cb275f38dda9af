//! Rules on what snapshots show.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::*;

pub(super) const RULES: &[Rule] = &[
    ("a child shows all that is below it", transitive),
    ("what is removed stays removed", removed),
    ("a directory that comes again is empty", comes_again),
    ("changes are the child's alone", changes),
    ("views cannot be written", views),
    ("the root keeps its attributes", root_attributes),
    ("files keep everything", everything),
    ("many layers fit", many_layers),
    ("usage counts what is the snapshot's own", usage),
    ("ids are mapped", ids),
];

fn write(path: impl AsRef<Path>, text: &str) {
    std::fs::write(path, text).expect("write");
}

#[track_caller]
fn reads(path: impl AsRef<Path>, text: &str) {
    assert_eq!(std::fs::read_to_string(path.as_ref()).ok().as_deref(), Some(text), "{:?}", path.as_ref());
}

fn transitive(it: &Fixture) {
    it.layer("one", "", |dir| {
        std::fs::create_dir(dir.join("d")).expect("directory");
        write(dir.join("d/one"), "1");
    });
    it.layer("two", "one", |dir| write(dir.join("d/two"), "2"));
    it.layer("three", "two", |dir| {
        reads(dir.join("d/one"), "1");
        write(dir.join("d/three"), "3");
    });
    let shown = it.shown("three");
    for (name, text) in [("one", "1"), ("two", "2"), ("three", "3")] {
        reads(shown.join("d").join(name), text);
    }
    assert!(!it.shown("one").join("d/two").exists());
}

fn removed(it: &Fixture) {
    it.layer("one", "", |dir| {
        std::fs::create_dir_all(dir.join("d/e")).expect("directories");
        write(dir.join("d/e/file"), "1");
        write(dir.join("file"), "1");
        write(dir.join("other"), "1");
    });
    it.layer("two", "one", |dir| {
        std::fs::remove_dir_all(dir.join("d")).expect("remove");
        std::fs::remove_file(dir.join("file")).expect("remove");
    });
    it.layer("three", "two", |dir| {
        assert!(!dir.join("d").exists() && !dir.join("file").exists());
        write(dir.join("file"), "again");
    });
    let shown = it.shown("three");
    assert!(!shown.join("d").exists());
    reads(shown.join("file"), "again");
    reads(it.shown("one").join("d/e/file"), "1");
}

fn comes_again(it: &Fixture) {
    it.layer("one", "", |dir| {
        std::fs::create_dir(dir.join("d")).expect("directory");
        write(dir.join("d/old"), "1");
        write(dir.join("f"), "file");
    });
    it.layer("two", "one", |dir| {
        std::fs::remove_dir_all(dir.join("d")).expect("remove");
        std::fs::create_dir(dir.join("d")).expect("directory");
        write(dir.join("d/new"), "2");
        std::fs::remove_file(dir.join("f")).expect("remove");
        std::fs::create_dir(dir.join("f")).expect("a directory where a file was");
    });
    it.layer("three", "two", |_| {});
    let shown = it.shown("three");
    assert!(!shown.join("d/old").exists() && shown.join("f").is_dir());
    reads(shown.join("d/new"), "2");
}

fn changes(it: &Fixture) {
    it.layer("one", "", |dir| {
        write(dir.join("f"), "1");
        std::fs::create_dir(dir.join("d")).expect("directory");
    });
    it.layer("two", "one", |dir| {
        write(dir.join("f"), "2");
        chown(dir.join("d"), Some(7), Some(8)).expect("chown");
        std::fs::rename(dir.join("f"), dir.join("d/g")).expect("rename");
    });
    it.layer("three", "one", |dir| write(dir.join("f"), "3"));
    let (one, two, three) = (it.shown("one"), it.shown("two"), it.shown("three"));
    reads(one.join("f"), "1");
    reads(two.join("d/g"), "2");
    reads(three.join("f"), "3");
    assert!(!two.join("f").exists() && !one.join("d/g").exists());
    let owner = |dir: &Path| std::fs::metadata(dir.join("d")).map(|it| (it.uid(), it.gid())).expect("owner");
    assert_eq!((owner(&one), owner(&two)), ((0, 0), (7, 8)));
}

fn views(it: &Fixture) {
    it.layer("one", "", |dir| write(dir.join("f"), "1"));
    it.layer("two", "one", |_| {});
    let empty = Shown::of(&it.view(&it.ctx, "empty", "", Labels::new()).expect("view of nothing"));
    for shown in [it.shown("one"), it.shown("two"), empty] {
        let error = std::fs::write(shown.join("g"), "x").expect_err("read-only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    reads(it.shown("two").join("f"), "1");
}

fn root_attributes(it: &Fixture) {
    let of = |dir: &Path| std::fs::metadata(dir).map(|it| (it.mode() & 0o7777, it.uid(), it.gid())).expect("root");
    it.layer("plain", "", |dir| assert_eq!(of(dir), (0o755, 0, 0)));
    it.layer("one", "", |dir| {
        chown(dir, Some(3), Some(4)).expect("chown");
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)).expect("chmod");
    });
    it.layer("two", "one", |dir| assert_eq!(of(dir), (0o1777, 3, 4)));
    assert_eq!(of(&it.shown("two")), (0o1777, 3, 4));
}

fn everything(it: &Fixture) {
    use std::os::fd::AsFd;
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    it.layer("one", "", |dir| {
        write(dir.join("f"), "text");
        symlink("f", dir.join("link")).expect("link");
        std::fs::hard_link(dir.join("f"), dir.join("same")).expect("hard link");
        chown(dir.join("f"), Some(1), Some(2)).expect("chown");
        std::fs::set_permissions(dir.join("f"), std::fs::Permissions::from_mode(0o4755)).expect("chmod");
        let fd = std::fs::File::open(dir).expect("open");
        rung_sys::xattr::set(fd.as_fd(), "f".as_ref(), b"security.capability", &capability).expect("capability");
        rung_sys::xattr::set(fd.as_fd(), "f".as_ref(), b"user.note", b"x").expect("attribute");
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("pipe");
        let null = nix::sys::stat::makedev(1, 3);
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::sys::stat::mknod(&dir.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, null).expect("device");
        let sparse = std::fs::File::create(dir.join("sparse")).expect("sparse");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 10 << 20).expect("end");
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789);
        std::fs::File::open(dir.join("f")).expect("open").set_modified(time).expect("time");
    });
    it.layer("two", "one", |dir| write(dir.join("more"), ""));
    let shown = it.shown("two");
    let stat = |name: &str| std::fs::symlink_metadata(shown.join(name)).expect(name);
    let f = stat("f");
    assert_eq!((f.mode() & 0o7777, f.uid(), f.gid(), f.nlink(), f.size()), (0o4755, 1, 2, 2, 4));
    assert_eq!((f.mtime(), f.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(f.ino(), stat("same").ino());
    reads(shown.join("link"), "text");
    let fd = std::fs::File::open(&*shown).expect("open");
    let attribute = |key: &[u8]| rung_sys::xattr::get(fd.as_fd(), "f".as_ref(), key).expect("attribute");
    assert_eq!(attribute(b"security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute(b"user.note").as_deref(), Some(&b"x"[..]));
    assert_eq!(stat("null").rdev(), nix::sys::stat::makedev(1, 3));
    assert_eq!(stat("sparse").size(), (10 << 20) + 3);
    // A file of an image has as many blocks as bytes, whatever the image's own file has.
    assert!(it.unpacking() == Unpacking::Converted || stat("sparse").blocks() * 512 < 1 << 20);
    assert_eq!(std::fs::read(shown.join("sparse")).expect("sparse").iter().filter(|byte| **byte != 0).count(), 3);
}

fn many_layers(it: &Fixture) {
    let mut parent = String::new();
    for number in 0..130 {
        let name = format!("layer-{number}");
        let key = format!("{name}-key");
        let mounts = it.prepare(&it.ctx, &key, &parent, Labels::new()).expect("prepare");
        // Mounting every one of them would only take long.
        if number % 40 == 0 {
            write(Shown::of(&mounts).join(number.to_string()), "x");
        }
        it.commit(&it.ctx, &name, &key, Labels::new(), None).expect("commit");
        parent = name;
    }
    let mounts = it.prepare(&it.ctx, "top", &parent, Labels::new()).expect("prepare");
    let options: usize = mounts.iter().flat_map(|mount| &mount.options).map(String::len).sum();
    assert!(mounts[0].kind == "bind" || options > 4096, "all layers are there: {options}");
    let shown = Shown::of(&mounts);
    for number in [0, 40, 80, 120] {
        reads(shown.join(number.to_string()), "x");
    }
    write(shown.join("new"), "x");
}

fn usage(it: &Fixture) {
    let content = "x".repeat(1 << 20);
    let key = "one-key";
    let mounts = it.prepare(&it.ctx, key, "", Labels::new()).expect("prepare");
    let empty = it.usage(&it.ctx, key).expect("usage");
    {
        let dir = Shown::of(&mounts);
        write(dir.join("f"), &content);
        std::fs::hard_link(dir.join("f"), dir.join("same")).expect("link");
    }
    let active = it.usage(&it.ctx, key).expect("usage");
    assert!((1 << 20..2 << 20).contains(&(active.size - empty.size)), "{empty:?} {active:?}");
    assert_eq!(active.inodes, empty.inodes + 1);
    it.commit(&it.ctx, "one", key, Labels::new(), None).expect("commit");
    let committed = it.usage(&it.ctx, "one").expect("usage");
    assert!((1 << 20..2 << 20).contains(&committed.size), "{committed:?}");
    it.prepare(&it.ctx, "top", "one", Labels::new()).expect("prepare");
    // A copy takes what its parent takes, and says so.
    if mounts[0].kind == "overlay" || it.can(REBASE) {
        assert!(it.usage(&it.ctx, "top").expect("usage").size < 1 << 20);
    }
}

fn ids(it: &Fixture) {
    if !it.can(REMAP_IDS) {
        return;
    }
    it.layer("one", "", |dir| {
        write(dir.join("f"), "1");
        chown(dir.join("f"), Some(5), Some(6)).expect("chown");
    });
    it.layer("two", "one", |dir| write(dir.join("g"), "1"));
    let map = "0:100000:65536";
    let mapped = labels(&[("containerd.io/snapshot/uidmapping", map), ("containerd.io/snapshot/gidmapping", map)]);
    let owner = |path: &Path| std::fs::metadata(path).map(|it| (it.uid(), it.gid())).expect("owner");
    for parent in ["one", "two"] {
        let mounts = it.prepare(&it.ctx, &format!("{parent}-top"), parent, mapped.clone()).expect("prepare");
        let shown = Shown::of(&mounts);
        assert_eq!(owner(&shown.join("f")), (100_005, 100_006));
        assert_eq!(owner(&shown), (100_000, 100_000));
        write(shown.join("f"), "2");
        assert_eq!(owner(&shown.join("f")), (100_005, 100_006));
        let view = it.view(&it.ctx, &format!("{parent}-view"), parent, mapped.clone()).expect("view");
        assert_eq!(owner(&Shown::of(&view).join("f")), (100_005, 100_006));
    }
    assert_eq!(owner(&it.shown("two").join("f")), (5, 6));
    let half = labels(&[("containerd.io/snapshot/uidmapping", map)]);
    fails(it.prepare(&it.ctx, "half", "one", half), Code::InvalidArgument);
}
