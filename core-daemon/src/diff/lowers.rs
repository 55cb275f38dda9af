//! The layers below one, seen as overlayfs would show them, without mounting them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use rung_sys::beneath::{self, Root};

use super::whiteout;

/// As many links as the kernel follows.
pub(super) const MAX_LINKS: usize = 40;

/// Most directories that are gone through for one path, over and over by links with `..` in them.
const MAX_STEPS: usize = 8192;
/// Most descriptors that are kept for the next path.
const KEPT: usize = 512;

/// Directories of layers, newest first.
pub struct Lowers {
    layers: Vec<Root>,
    /// The way to where the last path was looked up: the next is most often near.
    walk: RefCell<Walk>,
}

/// A directory, as those layers have it that count there, newest first.
type Place = Vec<OwnedFd>;

/// A way down from the root, of whose places the deepest are kept.
#[derive(Default)]
struct Walk {
    names: Vec<OsString>,
    /// The place of the last name comes last; that of the root is the one before the first name's.
    places: VecDeque<Place>,
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
    /// Those in these directories.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(directories: &[PathBuf]) -> io::Result<Self> {
        let layers = directories.iter().map(|directory| Root::open(directory)).collect::<io::Result<_>>()?;
        Ok(Self { layers, walk: RefCell::default() })
    }

    /// The file that the layers show at a path, where links lead, opened for reading; `None` where there is none.
    ///
    /// # Errors
    /// When the layers cannot be read, or links go round in a circle.
    pub fn file(&self, path: &Path) -> io::Result<Option<File>> {
        let Some(found) = self.find(path, true)? else { return Ok(None) };
        let Some(name) = found.path.file_name().filter(|_| beneath::file_type(&found.stat) == SFlag::S_IFREG) else {
            return Ok(None);
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(Some(openat(&found.parent, name, flags, Mode::empty())?.into()))
    }

    /// Looks a path up, following links within; of the last part only with `follow`.
    pub(super) fn find(&self, path: &Path, follow: bool) -> io::Result<Option<Found>> {
        let Some((real, found)) = self.walk(path, follow, false)? else { return Ok(None) };
        // A path that ends in `..` or at the root is a directory that needs no attributes from here.
        Ok(found.filter(|found| found.path == real))
    }

    /// Where a directory is, or where it comes to be if it is made: links are followed, to what no layer has too. `None` where
    /// something else is in the way.
    pub(super) fn leads_to(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        Ok(self.walk(path, true, true)?.map(|(real, _)| real))
    }

    /// The path without links, and what is there. With `make` what is missing counts as a directory, and nothing else as one.
    fn walk(&self, path: &Path, follow: bool, make: bool) -> io::Result<Option<(PathBuf, Option<Found>)>> {
        let mut waiting: VecDeque<OsString> = parts(path);
        let mut real: Vec<OsString> = Vec::new();
        let mut found = None;
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = waiting.pop_front() {
            if part == OsStr::new("..") {
                real.pop();
                continue;
            }
            let Some(step) = self.step(&real, &part, &mut steps)? else {
                if !make {
                    return Ok(None);
                }
                real.push(part);
                continue;
            };
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
            if make && beneath::file_type(&step.stat) != SFlag::S_IFDIR {
                return Ok(None);
            }
            real.push(part);
            found = Some(step);
        }
        Ok(Some((real.iter().collect(), found)))
    }

    /// Where a path of which the layers may have only the beginning leads: links are followed, of the last part not.
    pub(super) fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let (Some(within), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
        Ok(self.leads_to(within)?.map_or_else(|| path.to_owned(), |within| within.join(name)))
    }

    /// What the layers show as `name` in a directory without links on the way to it.
    fn step(&self, within: &[OsString], name: &OsStr, steps: &mut usize) -> io::Result<Option<Found>> {
        let mut walk = self.walk.borrow_mut();
        if !walk.go(&self.layers, within, steps)? {
            return Ok(None);
        }
        for directory in walk.places.back().into_iter().flatten() {
            if let Some(stat) = beneath::stat(directory.as_fd(), name)? {
                if whiteout::is_whiteout(&stat) {
                    return Ok(None);
                }
                let path = within.iter().map(OsString::as_os_str).chain([name]).collect();
                return Ok(Some(Found { path, stat, parent: directory.try_clone()? }));
            }
        }
        Ok(None)
    }
}

impl Walk {
    /// Goes to a directory, from where the last one branches off; false where it is none.
    fn go(&mut self, layers: &[Root], to: &[OsString], steps: &mut usize) -> io::Result<bool> {
        let common = self.names.iter().zip(to).take_while(|(a, b)| a == b).count();
        let back = self.names.len() - common;
        if back < self.places.len() {
            self.places.truncate(self.places.len() - back);
            self.names.truncate(common);
        } else {
            self.places = VecDeque::from([root(layers)?]);
            self.names.clear();
        }
        for name in &to[self.names.len()..] {
            *steps += 1;
            if *steps > MAX_STEPS {
                return Err(Errno::ELOOP.into());
            }
            let Some(place) = self.places.back().map(|place| enter(place, name)).transpose()? else { return Ok(false) };
            if place.is_empty() {
                return Ok(false);
            }
            self.names.push(name.clone());
            self.places.push_back(place);
            while self.places.len() > 1 && self.places.iter().map(Vec::len).sum::<usize>() > KEPT {
                self.places.pop_front();
            }
        }
        Ok(true)
    }
}

fn directory(within: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(within, name, flags, Mode::empty())
}

fn root(layers: &[Root]) -> io::Result<Place> {
    layers.iter().map(|layer| Ok(directory(layer, OsStr::new("."))?)).collect()
}

/// The directory `name` in another one: nothing where it is none.
fn enter(place: &[OwnedFd], name: &OsStr) -> io::Result<Place> {
    let mut inside = Place::new();
    for layer in place {
        match directory(layer, name) {
            Ok(fd) => {
                let opaque = whiteout::is_opaque(fd.as_fd())?;
                inside.push(fd);
                if opaque {
                    break;
                }
            }
            Err(Errno::ENOENT) => {}
            // Something else, which hides what is below it.
            Err(Errno::ENOTDIR | Errno::ELOOP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(inside)
}

pub(super) fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_from_where_the_last_one_was() {
        let dir = tempfile::tempdir().expect("directory");
        let layers: Vec<PathBuf> = (0..40).map(|layer| dir.path().join(layer.to_string())).collect();
        let deep = vec!["d"; 30].join("/");
        for layer in &layers {
            std::fs::create_dir_all(layer.join(&deep)).expect("directories");
        }
        let (top, bottom) = (&layers[0], &layers[39]);
        std::fs::write(bottom.join(&deep).join("f"), "").expect("file");
        std::fs::write(bottom.join("d/f"), "").expect("file");
        std::os::unix::fs::symlink("/d/f", top.join("d/l")).expect("link");
        std::os::unix::fs::symlink("d/../".repeat(600), top.join("loop")).expect("link");
        let lowers = Lowers::open(&layers).expect("open");
        let find = |path: &str| lowers.find(Path::new(path), true).expect("find").map(|found| found.path);
        // Down and up again and again: more descriptors than are kept, and never more than that.
        for _ in 0..3 {
            let file = format!("{deep}/f");
            assert_eq!(find(&file), Some(PathBuf::from(&file)));
            assert_eq!(find("d/l"), Some(PathBuf::from("d/f")));
            assert_eq!(find(&format!("{deep}/none/f")), None);
            assert!(lowers.walk.borrow().places.iter().map(Vec::len).sum::<usize>() <= KEPT + layers.len());
        }
        assert_eq!(find("loop/d/f"), Some(PathBuf::from("d/f")));
        let error = lowers.find(Path::new(&"d/d/../../".repeat(10_000)), true).err().expect("too long a way");
        assert_eq!(error.raw_os_error(), Some(Errno::ELOOP as i32));
    }
}
