//! Hard links to files of lower layers, which are made last, as if they had been made in their turn.

use std::os::unix::fs::MetadataExt;

use rung_sys::xattr;

use super::*;

/// One file below, and one in a directory that a link leads to.
fn below() -> Tar {
    Tar::default().file("a", "old").dir("usr").dir("usr/lib").file("usr/lib/f", "lib").symlink("lib", "usr/lib")
}

#[test]
fn what_comes_after_a_link_to_a_lower_file_does_not_change_it() {
    let top = Tar::default()
        .link("replaced", "a")
        .file("a", "new")
        .link("removed", "usr/lib/f")
        .link("again", "usr/lib/f")
        .file("usr/lib/.wh.f", "");
    each(&[below(), top], |dir, way| {
        assert_eq!((text(dir.join("replaced")).as_str(), text(dir.join("a")).as_str()), ("old", "new"), "{way:?}");
        assert_eq!((text(dir.join("removed")).as_str(), names(&dir.join("usr/lib")).as_str()), ("lib", ""), "{way:?}");
        assert_eq!(stat(&dir.join("removed")).ino(), stat(&dir.join("again")).ino(), "{way:?}");
    });
    let gone = Tar::default().link("b", "usr/lib/f").file("usr/.wh..wh..opq", "");
    each(&[below(), gone], |dir, way| {
        assert_eq!((text(dir.join("b")).as_str(), names(&dir.join("usr")).as_str()), ("lib", ""), "{way:?}");
    });
    let gone = Tar::default().link("b", "usr/lib/f").file(".wh.usr", "");
    each(&[below(), gone], |dir, way| {
        assert_eq!((text(dir.join("b")).as_str(), names(dir).as_str()), ("lib", "a b lib"), "{way:?}");
    });
}

#[test]
fn a_link_to_a_link_to_a_lower_file_is_that_file() {
    let top = Tar::default().link("b", "a").link("c", "b").link("usr/d", "./c");
    each(&[below(), top], |dir, way| {
        assert_eq!(text(dir.join("usr/d")), "old", "{way:?}");
        assert_eq!(stat(&dir.join("usr/d")).nlink(), 4, "{way:?}");
    });
}

#[test]
fn the_last_entry_of_a_name_counts_where_links_are() {
    let top = Tar::default()
        .link("twice", "a")
        .link("twice", "usr/lib/f")
        .link("kept", "a")
        .file(".wh.kept", "")
        .link("d/in", "a")
        .link("d", "usr/lib/f")
        .link("e/in", "a")
        .file("e", "own");
    each(&[below(), top], |dir, way| {
        let all = ["twice", "kept", "d", "e"].map(|name| text(dir.join(name)));
        assert_eq!(all, ["lib", "old", "lib", "own"], "{way:?}");
    });
}

#[test]
fn a_link_goes_where_a_link_below_leads() {
    let top = Tar::default().link("lib/x", "a").file("lib/own", "own").link("y", "lib/own");
    each(&[below(), top], |dir, way| {
        assert_eq!(names(&dir.join("usr/lib")), "f own x", "{way:?}");
        assert_eq!((text(dir.join("lib/x")).as_str(), text(dir.join("y")).as_str()), ("old", "own"), "{way:?}");
    });
    let top = Tar::default().file("usr/lib/f", "new").link("y", "lib/f");
    each(&[below(), top], |dir, way| assert_eq!(text(dir.join("y")), "new", "{way:?}"));
    let top = Tar::default().file("lib/f", "new").link("y", "usr/lib/f");
    each(&[below(), top], |dir, way| assert_eq!(text(dir.join("y")), "new", "{way:?}"));
}

#[test]
fn a_link_to_what_is_no_file_is_another_name_of_it() {
    let below = Tar::default()
        .with(b'2', "s", b"", With { mode: 0o777, owner: (5, 6), mtime: 1000, link: "nowhere", ..PLAIN })
        .with(b'3', "null", b"", With { mode: 0o620, owner: (7, 8), mtime: 2000, device: (1, 3), ..PLAIN })
        .with(b'6', "pipe", b"", With { mode: 0o4600, ..PLAIN });
    let top = Tar::default()
        .with(b'1', "d/s", b"", With { owner: (5, 6), mtime: 1000, link: "s", ..PLAIN })
        .with(b'1', "d/null", b"", With { mode: 0o620, owner: (7, 8), mtime: 2000, link: "null", ..PLAIN })
        .with(b'1', "d/pipe", b"", With { mode: 0o4600, link: "pipe", ..PLAIN })
        .file(".wh.pipe", "");
    each(&[below, top], |dir, way| {
        assert_eq!((names(dir).as_str(), names(&dir.join("d")).as_str()), ("d null s", "null pipe s"), "{way:?}");
        let (link, device, pipe) = (stat(&dir.join("d/s")), stat(&dir.join("d/null")), stat(&dir.join("d/pipe")));
        assert_eq!(std::fs::read_link(dir.join("d/s")).expect("link"), Path::new("nowhere"), "{way:?}");
        assert_eq!((link.uid(), link.gid(), link.mtime(), link.nlink()), (5, 6, 1000, 2), "{way:?}");
        assert_eq!((device.mode(), device.uid(), device.gid()), (0o020_620, 7, 8), "{way:?}");
        assert_eq!((device.rdev(), device.mtime(), device.nlink()), (0x103, 2000, 2), "{way:?}");
        assert_eq!((pipe.mode(), pipe.nlink()), (0o014_600, 1), "{way:?}");
    });
    refused(&[Tar::default().dir("d"), Tar::default().link("e", "d")]);
}

#[test]
fn a_link_through_a_link_below_finds_what_only_this_layer_has() {
    let top = Tar::default()
        .file("usr/lib/new", "new")
        .link("x", "lib/new")
        .symlink("usr/lib/deep/s", "nowhere")
        .link("y", "lib/deep/s")
        .link("usr/lib/z", "a")
        .link("b", "lib/z");
    each(&[below(), top], |dir, way| {
        assert_eq!((text(dir.join("x")).as_str(), text(dir.join("b")).as_str()), ("new", "old"), "{way:?}");
        assert_eq!((stat(&dir.join("usr/lib/new")).nlink(), stat(&dir.join("a")).nlink()), (2, 3), "{way:?}");
        assert_eq!(std::fs::read_link(dir.join("y")).expect("link"), Path::new("nowhere"), "{way:?}");
    });
    refused(&[below(), Tar::default().file("usr/lib/new", "").link("x", "lib/other")]);
}

#[test]
fn a_directory_without_an_entry_takes_nothing_from_a_set_group_id() {
    let top = Tar::default().with(b'5', "d", b"", With { mode: 0o2775, owner: (7, 8), ..PLAIN }).file("d/in/f", "");
    each(std::slice::from_ref(&top), |dir, way| {
        let made = stat(&dir.join("d/in"));
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0), "{way:?}");
    });
    // Something below what was removed, in a directory that only the layer below has.
    let reopened = Tar::default().file("d/.wh.in", "").file("d/in/g", "");
    each(&[top, reopened], |dir, way| {
        let made = stat(&dir.join("d/in"));
        assert_eq!((made.mode() & 0o7777, made.gid(), names(&dir.join("d/in")).as_str()), (0o755, 0, "g"), "{way:?}");
    });
}

#[test]
fn holes_stay_holes_when_a_file_is_copied_up() {
    let length: u64 = 64 << 20;
    let (size, map) = (length.to_string(), format!("{},1", length - 1));
    let sparse = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
    let low = Tar::default().pax(b'x', &sparse).file("a", "x");
    each(&[low, Tar::default().link("b", "a")], |dir, way| {
        // What an image shows does not say where its holes are; its own file does.
        let copy = if way == Way::Images { dir.with_file_name("layer-1") } else { dir.join("b") };
        assert!(stat(&copy).blocks() * 512 < 4 << 20, "{way:?}: a length that is made up takes space");
        assert!(std::fs::read(dir.join("b")).expect("copy").ends_with(b"\0x"), "{way:?}");
        assert_eq!(stat(&dir.join("b")).len(), length, "{way:?}");
    });
}

/// As containerd has it: chown, chmod and utimes go to the file, by whichever name.
#[test]
fn the_last_entry_of_a_file_says_whose_it_is() {
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capable = |tar: Tar, name: &str| {
        tar.pax(b'x', &[("SCHILY.xattr.security.capability", &capability)]).with(
            b'0',
            name,
            b"",
            With { mode: 0o755, owner: (3, 4), mtime: 100, ..PLAIN },
        )
    };
    let alike = |link| With { mode: 0o755, owner: (3, 4), mtime: 100, link, ..PLAIN };
    let below = Tar::default().file("a", "old").file("c", "old").symlink("s", "a");
    let below = capable(capable(below, "kept"), "given");
    let top = Tar::default()
        .with(b'1', "z", b"", With { mode: 0o4711, owner: (5, 6), mtime: 200, link: "a", ..PLAIN })
        .with(b'1', "b", b"", With { mode: 0o4640, owner: (7, 8), mtime: 300, link: "z", ..PLAIN })
        .with(b'1', "y", b"", With { mode: 0o600, owner: (9, 9), mtime: 400, link: "c", ..PLAIN })
        .file("y", "of its own")
        .with(b'1', "x", b"", With { mode: 0o620, owner: (1, 2), mtime: 500, link: "c", ..PLAIN })
        .pax(b'x', &[("SCHILY.xattr.user.note", b"said")])
        .with(b'1', "t", b"", With { mode: 0o600, owner: (5, 6), mtime: 600, link: "s", ..PLAIN })
        .with(b'1', "kept2", b"", alike("kept"))
        .with(b'1', "given2", b"", With { owner: (5, 6), ..alike("given") });
    let same = Tar([&below.0[..], &top.0].concat());
    // In a layer above, and in the very same.
    for layers in [vec![below, top], vec![same]] {
        each(&layers, |dir, way| {
            let has = |name: &str| {
                let stat = stat(&dir.join(name));
                (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime())
            };
            assert_eq!((has("a"), has("b")), ((0o4640, 7, 8, 300), (0o4640, 7, 8, 300)), "{way:?}");
            assert_eq!((has("c"), has("x")), ((0o620, 1, 2, 500), (0o620, 1, 2, 500)), "{way:?}");
            assert_eq!((has("y"), text(dir.join("y")).as_str()), ((0o644, 0, 0, 0), "of its own"), "{way:?}");
            assert_eq!((has("s"), has("t")), ((0o777, 5, 6, 600), (0o777, 5, 6, 600)), "{way:?}");
            let fd = std::fs::File::open(dir).expect("open");
            let get = |name: &str| xattr::get(fd.as_fd(), name.as_ref(), b"security.capability").expect("attribute");
            assert_eq!(get("kept").as_deref(), Some(&capability[..]), "{way:?}");
            assert_eq!((get("given"), has("given")), (None, (0o755, 5, 6, 100)), "{way:?}");
        });
    }
}
