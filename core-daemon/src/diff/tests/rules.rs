//! What entries make, of each other and of what is below.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rung_sys::xattr;

use super::*;

#[test]
fn opaque_marks_hide_what_is_below_wherever_they_stand() {
    let low =
        || Tar::default().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/old", "1").dir("e").file("e/old", "1");
    for late in [false, true] {
        let (first, last) = (Tar::default().file("d/.wh..wh..opq", ""), Tar::default().dir("d").file("d/new", "2"));
        let (first, last) = if late { (last, first) } else { (first, last) };
        let mut top = first;
        top.0.extend(last.0);
        each(&[low(), top, Tar::default().file("d/third", "3")], |dir, _| {
            assert_eq!((names(&dir.join("d")).as_str(), names(&dir.join("e")).as_str()), ("new third", "old"));
        });
    }
}

#[test]
fn whiteouts_do_not_remove_what_their_own_layer_makes() {
    let low = Tar::default().file("a", "1").file("b", "1").dir("d").file("d/old", "1").file("kept", "1");
    let top = Tar::default()
        .file("a", "2")
        .file(".wh.a", "")
        .file(".wh.b", "")
        .file("b", "2")
        .file(".wh.d", "")
        .file("d/new", "2")
        .file(".wh.none", "")
        .file(".wh..wh.plnk", "")
        .file(".wh..wh.aufs", "");
    each(&[low, top], |dir, _| {
        assert_eq!(names(dir), "a b d kept");
        assert_eq!((text(dir.join("a")).as_str(), text(dir.join("b")).as_str()), ("2", "2"));
        assert_eq!(names(&dir.join("d")), "new");
    });
}

#[test]
fn a_whiteout_that_hides_nothing_is_not_listed() {
    let low = Tar::default().file("old/below", "").file("file", "").symlink("lib", "old").dir("merged/own");
    let top = Tar::default()
        .dir("new")
        .file("new/.wh.a", "")
        .dir("new/deep")
        .file("new/deep/.wh.b", "")
        .file("old/.wh.c", "")
        .file("old/.wh..wh..opq", "")
        .dir("file")
        .file("file/.wh.d", "")
        .file("merged/own/.wh.e", "")
        .file("merged/.wh.f", "")
        .dir("lib/in")
        .file("lib/in/.wh.g", "")
        .dir("new/there")
        .symlink("way", "new/there")
        .file("way/.wh.h", "")
        .file("way", "");
    each(&[low.clone(), top.clone(), Tar::default().dir("new/deep").dir("merged")], |dir, way| {
        let all = ["new/deep", "new/there", "old/in", "file", "merged/own"].map(|path| names(&dir.join(path)));
        assert_eq!(all, [""; 5], "{way:?}");
    });
    each(&[low, top], |dir, way| {
        let all = ["", "new", "old", "merged"].map(|path| names(&dir.join(path)));
        assert_eq!(all, ["file lib merged new old way", "deep there", "in", "own"], "{way:?}");
    });
}

#[test]
fn what_comes_replaces_what_is_there() {
    let low = Tar::default()
        .dir("dir-file")
        .file("dir-file/x", "1")
        .file("file-dir", "1")
        .dir("dir-dir")
        .file("dir-dir/x", "1")
        .dir("dir-link")
        .file("dir-link/x", "1")
        .dir("target")
        .file("target/x", "1")
        .symlink("link-dir", "target");
    let top = Tar::default()
        .file("dir-file", "2")
        .dir("file-dir")
        .file("file-dir/y", "2")
        .with(b'5', "dir-dir", b"", With { mode: 0o700, owner: (5, 6), ..PLAIN })
        .symlink("dir-link", "target")
        .dir("link-dir")
        .file("link-dir/y", "2")
        .file("twice", "first")
        .file("twice", "second")
        .file("thrice", "file")
        .dir("thrice")
        .file("thrice/in", "it");
    each(&[low, top], |dir, way| {
        assert_eq!(text(dir.join("dir-file")), "2", "{way:?}");
        assert_eq!(names(&dir.join("file-dir")), "y");
        let kept = stat(&dir.join("dir-dir"));
        assert_eq!((names(&dir.join("dir-dir")).as_str(), kept.mode() & 0o7777, kept.uid()), ("x", 0o700, 5));
        assert_eq!(std::fs::read_link(dir.join("dir-link")).expect("link"), Path::new("target"));
        assert_eq!((names(&dir.join("link-dir")).as_str(), names(&dir.join("target")).as_str()), ("y", "x"));
        assert_eq!((text(dir.join("twice")).as_str(), names(&dir.join("thrice")).as_str()), ("second", "in"));
    });
}

#[test]
fn hard_links_reach_lower_layers() {
    let low = Tar::default()
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .pax(b'x', &[("SCHILY.xattr.user.note", b"kept")])
        .with(b'0', "usr/lib/f", b"data", With { mode: 0o4755, owner: (3, 4), mtime: 1_000_000, ..PLAIN })
        .symlink("sym", "usr/lib/f");
    let alike = |link| With { mode: 0o4755, owner: (3, 4), mtime: 1_000_000, link, ..PLAIN };
    let top = Tar::default()
        .with(b'1', "same", b"", alike("usr/lib/f"))
        .with(b'1', "usr/also", b"", alike("lib/f"))
        .file("own", "x")
        .link("own2", "./own");
    each(&[low, top], |dir, way| {
        let (same, original) = (stat(&dir.join("same")), stat(&dir.join("usr/lib/f")));
        assert_eq!((same.ino(), same.nlink()), (original.ino(), 3), "{way:?}");
        assert_eq!((same.mode() & 0o7777, same.uid(), same.gid(), same.mtime()), (0o4755, 3, 4, 1_000_000));
        assert_eq!(text(dir.join("usr/also")), "data");
        let fd = std::fs::File::open(dir).expect("open");
        let note = xattr::get(fd.as_fd(), "same".as_ref(), b"user.note").expect("attribute");
        assert_eq!(note.as_deref(), Some(&b"kept"[..]));
        assert_eq!(stat(&dir.join("own")).ino(), stat(&dir.join("own2")).ino());
    });
    refused(&[Tar::default().file("f", ""), Tar::default().link("g", "none")]);
    refused(&[Tar::default().dir("d"), Tar::default().dir("e").link("g", "e")]);
    refused(&[Tar::default().link("g", "..")]);
}

#[test]
fn a_hard_link_to_a_link_is_that_link() {
    each(&[Tar::default().symlink("sym", "/nowhere").link("same", "sym")], |dir, _| {
        assert_eq!(std::fs::read_link(dir.join("same")).expect("link"), Path::new("/nowhere"));
        assert_eq!(stat(&dir.join("same")).ino(), stat(&dir.join("sym")).ino());
    });
}

#[test]
fn directories_without_an_entry_look_as_below() {
    let low = Tar::default()
        .with(b'5', "d", b"", With { mode: 0o1770, owner: (7, 8), mtime: 1_234_567, ..PLAIN })
        .symlink("way", "real")
        .with(b'5', "real", b"", With { mode: 0o711, ..PLAIN })
        .file("real/old", "1");
    let top = Tar::default().file("d/new", "2").file("way/new", "2").file("fresh/deep/new", "2");
    each(&[low, top], |dir, way| {
        let d = stat(&dir.join("d"));
        assert_eq!((d.mode() & 0o7777, d.uid(), d.gid()), (0o1770, 7, 8), "{way:?}");
        if way != Way::Direct {
            assert_eq!(d.mtime(), 1_234_567);
        }
        assert!(stat(&dir.join("way")).is_symlink());
        assert_eq!((names(&dir.join("real")).as_str(), stat(&dir.join("real")).mode() & 0o7777), ("new old", 0o711));
        assert_eq!(stat(&dir.join("fresh/deep")).mode() & 0o7777, 0o755);
    });
}

#[test]
fn names_do_not_lead_out() {
    let tar = Tar::default()
        .file("../../up", "1")
        .file("/top", "1")
        .file("./dot/../plain", "1")
        .symlink("out", "/../../..")
        .file("out/through", "1")
        .symlink("way", "/etc")
        .file("way/passwd", "1")
        .symlink("loop", "loop");
    each(&[tar], |dir, _| {
        for name in ["up", "top", "plain", "through"] {
            assert_eq!(text(dir.join(name)), "1", "{name}");
        }
        // The link leads to a directory of the layer's own.
        assert_eq!(names(&dir.join("etc")), "passwd");
    });
    assert!(!std::fs::read_to_string("/etc/passwd").expect("the machine's own").starts_with('1'));
    refused(&[Tar::default().symlink("loop", "loop").file("loop/x", "")]);
    refused(&[Tar::default().file("f", "").file("f/x", "")]);
}

/// CVE-2021-32760, CVE-2021-29136: an entry that changes what a link of the layer leads to, or makes a link of its root.
#[test]
fn a_link_takes_nothing_to_what_it_leads_to() {
    let outside = tempfile::tempdir().expect("directory");
    let seen = || {
        let it = stat(outside.path());
        (it.mode(), it.uid(), it.mtime(), names(outside.path()))
    };
    let (before, to) = (seen(), outside.path().to_str().expect("path"));
    let open = With { mode: 0o777, owner: (7, 7), mtime: 1, ..PLAIN };
    let tar = Tar::default()
        .symlink("d", to)
        .with(b'5', "d", b"", open)
        .symlink("l", to)
        .with(b'1', "h", b"", With { link: "l", ..open })
        .with(b'2', "again", b"", With { link: to, ..open })
        .symlink(".", to)
        .symlink("./", to)
        .symlink("/", to)
        .link(".", "l")
        .file("kept", "1");
    each(&[tar], |dir, way| {
        assert!(stat(dir).is_dir() && stat(&dir.join("d")).is_dir(), "{way:?}");
        assert!(stat(&dir.join("h")).is_symlink());
        assert_eq!(text(dir.join("kept")), "1");
    });
    assert_eq!(seen(), before);
}

#[test]
fn attributes_survive_each_other() {
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .with(b'5', "./", b"", With { mode: 0o1755, owner: (9, 9), ..PLAIN })
        .pax(
            b'x',
            &[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"a\nb"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ],
        )
        .with(b'0', "f", b"x", With { mode: 0o6755, owner: (1, 2), ..PLAIN })
        .pax(b'x', &[("SCHILY.xattr.user.note", b"x")])
        .symlink("s", "f")
        .dir("d")
        .file("d/late", "x")
        .with(b'5', "d", b"", With { mode: 0o500, mtime: 77, ..PLAIN })
        .file("d/later", "x");
    each(&[tar], |dir, way| {
        let f = stat(&dir.join("f"));
        assert_eq!((f.mode() & 0o7777, f.uid(), f.gid()), (0o6755, 1, 2), "{way:?}");
        let fd = std::fs::File::open(dir).expect("open");
        let get = |key: &[u8]| xattr::get(fd.as_fd(), "f".as_ref(), key).expect("attribute");
        assert_eq!(get(b"security.capability").as_deref(), Some(&capability[..]));
        assert_eq!(get(b"user.note").as_deref(), Some(&b"a\nb"[..]));
        let names = xattr::list(fd.as_fd(), "f".as_ref()).expect("list");
        assert!(!names.iter().any(|name| name.windows(8).any(|part| part == b"overlay.")), "{names:?}");
        if way == Way::Direct {
            assert_eq!((stat(dir).mode() & 0o7777, stat(dir).uid()), (0o1755, 9));
        }
        assert_eq!((stat(&dir.join("d")).mode() & 0o7777, stat(&dir.join("d")).mtime()), (0o500, 77));
    });
}

#[test]
fn special_files_are_made() {
    let tar = Tar::default()
        .with(b'3', "null", b"", With { mode: 0o666, device: (1, 3), ..PLAIN })
        .with(b'4', "disk", b"", With { mode: 0o660, device: (259, 70_000), ..PLAIN })
        .with(b'6', "pipe", b"", With { mode: 0o600, ..PLAIN });
    each(&[tar], |dir, _| {
        let (null, disk) = (stat(&dir.join("null")), stat(&dir.join("disk")));
        assert!(null.file_type().is_char_device() && disk.file_type().is_block_device());
        assert_eq!((null.rdev(), disk.rdev()), (nix::sys::stat::makedev(1, 3), nix::sys::stat::makedev(259, 70_000)));
        assert!(stat(&dir.join("pipe")).file_type().is_fifo());
    });
}

#[test]
fn what_is_no_layer_removes_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("kept"), "").expect("file");
    let tar = Tar::default().file(".wh.kept", "1").file(".wh..wh..opq", "2").end();
    apply(Root::open(dir.path()).expect("open"), &tar[..], Mode::Files, LIMIT).expect("apply");
    assert_eq!(names(dir.path()), ".wh..wh..opq .wh.kept kept");
}

#[test]
fn a_directory_that_comes_again_is_kept_once() {
    let dir = tempfile::tempdir().expect("directory");
    let tar = Tar::default().dir("d").dir("d").with(b'5', "d", b"", With { mode: 0o755, mtime: 7, ..PLAIN }).end();
    let applied = apply(Root::open(dir.path()).expect("open"), &tar[..], Mode::Lowest, LIMIT).expect("apply");
    assert_eq!(applied.deferred.times.len(), 1);
    assert_eq!(stat(&dir.path().join("d")).mtime(), 7);
}

#[test]
fn links_that_lead_ever_deeper_exhaust_nothing() {
    let deep = "d/".repeat(120);
    let named =
        |tar: Tar, path: &str, link: &str| tar.pax(b'x', &[("path", path.as_bytes()), ("linkpath", link.as_bytes())]);
    let mut tar = named(Tar::default(), &deep, "").dir("x");
    let mut way = deep.clone();
    for number in 0..6 {
        let link = format!("l{number}");
        tar = named(tar, &link, &way).symlink("x", "x");
        way = format!("{link}/{deep}");
        tar = named(tar, &way, "").dir("x");
    }
    let tar = tar.end();
    // In memory a tree is gone through by recursion; on disk it is not, and can be removed.
    let images = unpack(Way::Images, std::slice::from_ref(&tar)).map(drop);
    assert_eq!(images.expect_err("too deep").kind(), Code::InvalidArgument);
    for mode in [Mode::Lowest, Mode::Direct] {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("layer");
        std::fs::create_dir(&path).expect("directory");
        let open = || Root::open(&path).expect("open");
        apply(open(), &tar[..], mode, LIMIT).expect("apply");
        assert!(create(&Changes::All(&open()), Wanted::default(), Vec::new()).is_err(), "a layer of any depth");
        rung_sys::beneath::remove(&path).expect("remove");
    }
}

#[test]
fn a_link_below_is_followed_to_where_nothing_is_and_to_where_it_is_itself() {
    let below = Tar::default()
        .symlink("nowhere", "made/deep")
        .symlink("top", ".")
        .dir("sub")
        .symlink("sub/up", "..")
        .symlink("sub/here", "../sub")
        .file("file", "")
        .symlink("blocked", "file");
    let top = Tar::default()
        .file("nowhere/a", "a")
        .file("top/b", "b")
        .file("top/top/c", "c")
        .file("sub/up/d", "d")
        .file("sub/here/e", "e")
        .file("sub/here/here/f", "f");
    each(&[below.clone(), top.clone()], |dir, way| {
        let all = ["made/deep/a", "b", "c", "d", "sub/e", "sub/f"].map(|name| text(dir.join(name)));
        assert_eq!(all, ["a", "b", "c", "d", "e", "f"], "{way:?}");
        for link in ["nowhere", "top", "sub/up", "sub/here"] {
            assert!(stat(&dir.join(link)).is_symlink(), "{way:?}: {link}");
        }
        let made = stat(&dir.join("made"));
        assert_eq!((made.mode() & 0o7777, made.uid()), (0o755, 0), "{way:?}");
        assert_eq!(names(dir), "b blocked c d file made nowhere sub top", "{way:?}");
    });
}
