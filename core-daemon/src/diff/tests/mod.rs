//! Traps of layers, each unpacked in the three ways there are: into directories that overlayfs stacks, into EROFS images
//! that it stacks, and onto a copy of what is below.

mod forms;
mod links;
mod rules;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rung_spec::digest::Digest;
use rung_sys::beneath::Root;
use rung_sys::mount_options::MountOptions;
use rung_sys::{mount, mount_words};

use super::*;
use crate::error::{Kind as Code, Result};

const LIMIT: u64 = 1 << 30;

/// An archive, entry by entry.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

/// What an entry has beside its name and contents.
#[derive(Clone, Copy)]
struct With<'a> {
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    link: &'a str,
    device: (u32, u32),
}

const PLAIN: With<'static> = With { mode: 0o644, owner: (0, 0), mtime: 0, link: "", device: (0, 0) };

impl Tar {
    fn block(mut self, kind: u8, name: &[u8], data: &[u8], with: With<'_>, change: impl Fn(&mut [u8; 512])) -> Self {
        let mut block = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, name);
        put(100, format!("{:07o}\0{:07o}\0{:07o}\0", with.mode, with.owner.0, with.owner.1).as_bytes());
        put(124, format!("{:011o}\0{:011o}\0", data.len(), with.mtime).as_bytes());
        put(156, &[kind]);
        put(157, with.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0{:07o}\0", with.device.0, with.device.1).as_bytes());
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn with(self, kind: u8, name: &str, data: &[u8], with: With<'_>) -> Self {
        self.block(kind, name.as_bytes(), data, with, |_| ())
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.with(b'0', name, data.as_bytes(), PLAIN)
    }

    fn dir(self, name: &str) -> Self {
        self.with(b'5', name, b"", With { mode: 0o755, ..PLAIN })
    }

    fn symlink(self, name: &str, link: &str) -> Self {
        self.with(b'2', name, b"", With { link, ..PLAIN })
    }

    fn link(self, name: &str, link: &str) -> Self {
        self.with(b'1', name, b"", With { link, ..PLAIN })
    }

    /// A pax header before the next entry; `g` for one that is about all.
    fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).expect("length");
            text.extend(format!("{length} {key}=").bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        self.with(kind, "pax", &text, PLAIN)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory to look at, with what has to stay for it.
struct Shown {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
}

impl Shown {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("directory"), lowers: Vec::new(), mounts: Vec::new() }
    }

    fn mount(&mut self, kind: &str, source: &str, options: &[String], name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).expect("mount point");
        let tree = mount_words::make(kind, source, &MountOptions::parse(options)).expect("mount");
        let target = std::fs::File::open(&path).expect("open");
        mount::attach(tree.as_fd(), target.as_fd()).expect("attach");
        self.mounts.push(path.clone());
        path
    }

    /// All lower directories as overlayfs shows them.
    fn stacked(&mut self) -> PathBuf {
        let empty = self.dir.path().join("empty");
        std::fs::create_dir(&empty).expect("directory");
        let all: Vec<String> =
            self.lowers.iter().chain([&empty]).map(|path| path.to_string_lossy().into_owned()).collect();
        self.mount("overlay", "overlay", &[format!("lowerdir={}", all.join(":"))], "shown")
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.mounts.iter().rev().for_each(|path| mount::detach(path).expect("unmount"));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Directories,
    Images,
    Direct,
}

const WAYS: [Way; 3] = [Way::Directories, Way::Images, Way::Direct];

fn hashed(tar: &[u8], work: impl FnOnce(&mut Ahead) -> Result<Applied>) -> Result<(Applied, Digest)> {
    read_ahead(tar, |tar| Ok((work(tar)?, tar.digest()?)))
}

fn unpack(way: Way, layers: &[Vec<u8>]) -> Result<(Shown, PathBuf)> {
    let mut shown = Shown::new();
    for (number, tar) in layers.iter().enumerate() {
        let mode = if number == 0 { Mode::Lowest } else { Mode::Overlay };
        let path = shown.dir.path().join(format!("layer-{number}"));
        let digest = match way {
            Way::Directories => {
                std::fs::create_dir(&path)?;
                let (applied, digest) = hashed(tar, |tar| apply(Root::open(&path)?, tar, mode, LIMIT))?;
                settle(&Root::open(&path)?, &shown.lowers, applied.deferred)?;
                shown.lowers.insert(0, path);
                digest
            }
            Way::Images => {
                let (applied, digest) = hashed(tar, |tar| convert(&path, tar, mode, LIMIT))?;
                applied.image.expect("an image").finish(&shown.lowers)?;
                let mounted = shown.mount("erofs", &path.to_string_lossy(), &["ro".into()], &format!("image-{number}"));
                shown.lowers.insert(0, mounted);
                digest
            }
            Way::Direct => {
                let top = shown.dir.path().join("direct");
                std::fs::create_dir_all(&top)?;
                hashed(tar, |tar| apply(Root::open(&top)?, tar, Mode::Direct, LIMIT))?.1
            }
        };
        assert_eq!(digest, Digest::of(tar), "the digest is of all of it");
    }
    let path = if way == Way::Direct { shown.dir.path().join("direct") } else { shown.stacked() };
    Ok((shown, path))
}

/// Unpacks the layers in every way and looks at each result.
fn each(layers: &[Tar], look: impl Fn(&Path, Way)) {
    let layers: Vec<Vec<u8>> = layers.iter().cloned().map(Tar::end).collect();
    for way in WAYS {
        let (_shown, path) = unpack(way, &layers).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        look(&path, way);
    }
}

fn refused(layers: &[Tar]) {
    let layers: Vec<Vec<u8>> = layers.iter().cloned().map(Tar::end).collect();
    for way in WAYS {
        assert!(unpack(way, &layers).is_err(), "{way:?}");
    }
}

/// Names in a directory, in order.
fn names(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("list")
        .flatten()
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.join(" ")
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn stat(path: &Path) -> std::fs::Metadata {
    std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}
