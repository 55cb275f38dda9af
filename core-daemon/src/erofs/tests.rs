use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::PathBuf;

use super::*;

/// An image's mount on a directory, until dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn of(image: &Path) -> Self {
        let dir = tempfile::tempdir().expect("directory").keep();
        let options = rung_sys::mount_options::MountOptions::parse(["ro"]);
        let tree = rung_sys::mount_words::make("erofs", image.to_str().expect("utf-8"), &options).expect("mount");
        let target = std::fs::File::open(&dir).expect("open");
        rung_sys::mount::attach(tree.as_fd(), target.as_fd()).expect("attach");
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rung_sys::mount::detach(&self.0).expect("unmount");
        std::fs::remove_dir(&self.0).expect("remove");
    }
}

#[test]
fn this_kernel_mounts_an_image() {
    let dir = tempfile::tempdir().expect("directory");
    probe(dir.path()).expect("probe");
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
}

#[test]
fn a_loop_device_shows_an_image_too() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image");
    Image::create(&path).expect("create").finish(&Tree::new()).expect("finish");
    let file = std::fs::File::open(&path).expect("open");
    let device = rung_sys::loop_device::attach(file.as_fd(), false).expect("loop device");
    let shown = Mounted::of(&device.path);
    assert_eq!(std::fs::read_dir(&shown.0).expect("list").count(), 0);
}

#[test]
fn directories_that_nest_too_deep_are_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let from = dir.path().join("from");
    let levels = rung_sys::beneath::MAX_DEPTH + 1;
    std::fs::create_dir_all(from.join(vec!["d"; levels].join("/"))).expect("directories");
    let error = from_directory(&from, &dir.path().join("image")).expect_err("as deep as a container likes");
    assert!(error.to_string().ends_with("directories nest deeper than 256 levels"), "{error}");
}

#[test]
fn a_directory_comes_back_from_its_image() {
    let dir = tempfile::tempdir().expect("directory");
    let from = dir.path().join("from");
    std::fs::create_dir_all(from.join("many")).expect("directory");
    // Directories of many blocks, names that sort around the dots, and the longest that there is.
    for number in 0..1000 {
        std::fs::write(from.join(format!("many/!{number}")), number.to_string()).expect("write");
    }
    std::fs::create_dir(from.join("many").join("n".repeat(255))).expect("long name");
    let sparse = std::fs::File::create(from.join("sparse")).expect("sparse");
    sparse.write_all_at(b"middle", 1 << 20).expect("middle");
    sparse.set_len(3 << 20).expect("end");
    std::fs::write(from.join("big"), vec![7; 3 << 20]).expect("big");
    symlink("some/where", from.join("link")).expect("link");
    std::fs::hard_link(from.join("big"), from.join("same")).expect("hard link");
    let fd = std::fs::File::open(&from).expect("open");
    rung_sys::xattr::set(fd.as_fd(), "big".as_ref(), b"user.long", &[b'v'; 1000]).expect("attribute");
    let long_ago = std::time::UNIX_EPOCH - std::time::Duration::from_secs(10);
    std::fs::File::open(from.join("big")).expect("open").set_modified(long_ago).expect("time");
    nix::sys::stat::mknod(
        &from.join("device"),
        nix::sys::stat::SFlag::S_IFBLK,
        nix::sys::stat::Mode::from_bits_truncate(0o640),
        nix::sys::stat::makedev(259, 300_000),
    )
    .expect("device");
    let image = dir.path().join("image");
    from_directory(&from, &image).expect("image");
    assert!(std::fs::metadata(&image).expect("size").blocks() * 512 < 6 << 20, "holes take space");
    let shown = Mounted::of(&image);
    let at = |name: &str| shown.0.join(name);
    assert_eq!(std::fs::read_dir(at("many")).expect("list").count(), 1001);
    for number in [0, 9, 99, 500, 999] {
        let text = std::fs::read_to_string(at(&format!("many/!{number}"))).expect("read");
        assert_eq!(text, number.to_string());
    }
    assert!(at("many").join("n".repeat(255)).is_dir());
    for name in ["sparse", "big"] {
        assert!(std::fs::read(at(name)).expect(name) == std::fs::read(from.join(name)).expect(name), "{name}");
    }
    assert_eq!(std::fs::read_link(at("link")).expect("link"), Path::new("some/where"));
    for name in ["big", "same", "link", "device", "many", "."] {
        let (is, was) =
            (std::fs::symlink_metadata(at(name)).expect(name), std::fs::symlink_metadata(from.join(name)).expect(name));
        let of = |it: &std::fs::Metadata| {
            (it.mode(), it.uid(), it.gid(), it.nlink(), it.rdev(), it.mtime(), it.mtime_nsec())
        };
        assert_eq!(of(&is), of(&was), "{name}");
    }
    let fd = std::fs::File::open(&shown.0).expect("open");
    let value = rung_sys::xattr::get(fd.as_fd(), "same".as_ref(), b"user.long").expect("attribute");
    assert_eq!(value.as_deref(), Some(&[b'v'; 1000][..]));
}
