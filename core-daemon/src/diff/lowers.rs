//! The layers below one, seen as overlayfs would show them, without mounting them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, SFlag};
use rung_sys::beneath::{self, Root};

use super::whiteout;

/// As many links as the kernel follows.
pub(super) const MAX_LINKS: usize = 40;

/// Directories of layers, newest first.
pub(super) struct Lowers {
    layers: Vec<Root>,
}

/// What the layers show at a path.
pub(super) struct Found {
    /// The path without links.
    pub(super) path: PathBuf,
    /// Its attributes.
    pub(super) stat: FileStat,
    /// The directory that it is in, in the layer that it comes from.
    pub(super) parent: OwnedFd,
}

impl Lowers {
    pub(super) fn open(directories: &[PathBuf]) -> io::Result<Self> {
        Ok(Self { layers: directories.iter().map(|directory| Root::open(directory)).collect::<io::Result<_>>()? })
    }

    /// Looks a path up, following links within; of the last part only with `follow`.
    pub(super) fn find(&self, path: &Path, follow: bool) -> io::Result<Option<Found>> {
        let mut waiting: VecDeque<OsString> = parts(path);
        let mut real = PathBuf::new();
        let mut found = None;
        let mut links = 0;
        while let Some(part) = waiting.pop_front() {
            if part == OsStr::new("..") {
                real.pop();
                continue;
            }
            let Some(step) = self.step(&real.join(&part))? else { return Ok(None) };
            if beneath::file_type(&step.stat) == SFlag::S_IFLNK && (follow || !waiting.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = PathBuf::from(readlinkat(&step.parent, part.as_os_str())?);
                if target.is_absolute() {
                    real.clear();
                }
                for part in parts(&target).into_iter().rev() {
                    waiting.push_front(part);
                }
                found = None;
                continue;
            }
            real.push(&part);
            found = Some(step);
        }
        // A path that ends in `..` or at the root is a directory that needs no attributes from here.
        Ok(found.filter(|found: &Found| found.path == real))
    }

    /// What the layers show at a path without links in it.
    fn step(&self, path: &Path) -> io::Result<Option<Found>> {
        let Some(name) = path.file_name() else { return Ok(None) };
        for layer in &self.layers {
            match covers(layer, path.parent().unwrap_or(Path::new("")))? {
                Cover::Directory { parent, opaque } => {
                    if let Some(stat) = beneath::stat(parent.as_fd(), name)? {
                        let hidden = whiteout::is_whiteout(&stat);
                        return Ok((!hidden).then(|| Found { path: path.to_owned(), stat, parent }));
                    }
                    if opaque {
                        return Ok(None);
                    }
                }
                Cover::Hidden => return Ok(None),
                Cover::Nothing => {}
            }
        }
        Ok(None)
    }
}

/// What a layer has to say of a directory.
enum Cover {
    /// It has it; with `opaque`, the layers below do not count.
    Directory { parent: OwnedFd, opaque: bool },
    /// It has something in the way, so that the layers below do not count.
    Hidden,
    /// Nothing.
    Nothing,
}

fn covers(layer: &Root, directory: &Path) -> io::Result<Cover> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(layer, path, how)
    };
    let mut opaque = false;
    let mut at = PathBuf::new();
    let mut last = open(&at)?;
    for part in directory.components() {
        at.push(part);
        last = match open(&at) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(if opaque { Cover::Hidden } else { Cover::Nothing }),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Cover::Hidden),
            Err(error) => return Err(error.into()),
        };
        opaque = opaque || whiteout::is_opaque(last.as_fd())?;
    }
    Ok(Cover::Directory { parent: last, opaque })
}

pub(super) fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}
