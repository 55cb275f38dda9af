//! Files into a tar.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use super::header::{Entry, Kind};
use super::padding;

/// What goes into an archive.
#[derive(Debug)]
pub struct Source {
    /// The directory it is in.
    pub within: OwnedFd,
    /// Its name there.
    pub name: OsString,
    /// What it is called in the archive; empty: only what is in it goes there.
    pub called: OsString,
    /// Owners are kept; otherwise everything is root's.
    pub owners: bool,
}

/// The longest path below the directory, in bytes: more the kernel does not take.
const LONGEST: usize = 4095;

/// Writes the archive, and says how many bytes of files are in it.
///
/// # Errors
/// What reading or writing fails with, with the path.
pub fn pack(source: &Source, to: &mut impl Write) -> io::Result<u64> {
    let mut packer = Packer { source, to, links: HashMap::new(), waiting: Vec::new(), total: 0 };
    packer.waiting.push(PathBuf::new());
    let mut parent: Option<(PathBuf, OwnedFd)> = None;
    while let Some(below) = packer.waiting.pop() {
        let Some((above, name)) = below.parent().zip(below.file_name()) else {
            packer.name(source.within.as_fd(), &source.name, &below, Path::new(&source.called))?;
            continue;
        };
        let path = Path::new(&source.called).join(&below);
        let directory = match parent.take_if(|(open, _)| open == above) {
            Some((_, directory)) => directory,
            None => packer.open(above).map_err(|error| at(&path, error))?,
        };
        packer.name(directory.as_fd(), name, &below, &path)?;
        parent = Some((above.to_owned(), directory));
    }
    io::copy(&mut io::repeat(0).take(1024), packer.to)?;
    packer.to.flush()?;
    Ok(packer.total)
}

struct Packer<'a, W> {
    source: &'a Source,
    to: &'a mut W,
    /// Files of several names: device and inode to the path that is written.
    links: HashMap<(u64, u64), PathBuf>,
    /// What is still to be written, the next one last, by its path below what is packed. It takes neither the stack nor an
    /// open file for each level, however deep somebody's tree is.
    waiting: Vec<PathBuf>,
    total: u64,
}

impl<W: Write> Packer<'_, W> {
    fn name(&mut self, within: BorrowedFd<'_>, name: &OsStr, below: &Path, path: &Path) -> io::Result<()> {
        let stat = fstatat(within, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|error| at(path, error.into()))?;
        let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => Kind::Symlink,
            SFlag::S_IFIFO => Kind::Fifo,
            // A socket means nothing without its process.
            SFlag::S_IFSOCK => return Ok(()),
            _ => return Err(at(path, io::Error::other("is a device, which is not copied"))),
        };
        let mut entry = describe(path, kind, &stat, self.source.owners);
        match kind {
            Kind::Directory => self.directory(within, name, below, path, &entry),
            Kind::Symlink => {
                entry.link = readlinkat(within, name).map_err(|error| at(path, error.into()))?.as_bytes().to_vec();
                entry.write(self.to)
            }
            Kind::File => self.file(within, name, path, entry, &stat),
            _ => entry.write(self.to),
        }
    }

    fn directory(
        &mut self,
        within: BorrowedFd<'_>,
        name: &OsStr,
        below: &Path,
        path: &Path,
        entry: &Entry,
    ) -> io::Result<()> {
        if !path.as_os_str().is_empty() {
            entry.write(self.to)?;
        }
        let opened = openat(within, name, directory(), Mode::empty()).map_err(|error| at(path, error.into()))?;
        let begin = self.waiting.len();
        for found in Dir::from_fd(opened)?.iter() {
            let found = found.map_err(|error| at(path, error.into()))?;
            let name = OsStr::from_bytes(found.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let below = below.join(name);
            if self.source.name.len() + 1 + below.as_os_str().len() > LONGEST {
                return Err(io::Error::other(format!("holds a path that is longer than {LONGEST} bytes")));
            }
            self.waiting.push(below);
        }
        self.waiting[begin..].sort_by(|one, other| other.cmp(one));
        Ok(())
    }

    /// A directory below what is packed. No link is followed on the way.
    fn open(&self, below: &Path) -> io::Result<OwnedFd> {
        let path = Path::new(&self.source.name).join(below);
        let how = OpenHow::new().flags(directory()).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(openat2(&self.source.within, &path, how)?)
    }

    fn file(
        &mut self,
        within: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        mut entry: Entry,
        stat: &FileStat,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                entry.kind = Kind::HardLink;
                entry.link = first.as_os_str().as_bytes().to_vec();
                entry.size = 0;
                return entry.write(self.to);
            }
            self.links.insert(inode, path.to_owned());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(within, name, flags, Mode::empty()).map_err(|error| at(path, error.into()))?;
        entry.write(self.to)?;
        let copied = io::copy(&mut File::from(file).take(entry.size), self.to)?;
        if copied < entry.size {
            return Err(at(path, io::Error::other("became shorter while it was read")));
        }
        self.total += copied;
        io::copy(&mut io::repeat(0).take(padding(copied)), self.to).map(drop)
    }
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn describe(path: &Path, kind: Kind, stat: &FileStat, owners: bool) -> Entry {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if kind == Kind::Directory {
        name.push(b'/');
    }
    Entry {
        path: name,
        link: Vec::new(),
        kind,
        mode: stat.st_mode & 0o7777,
        owner: if owners { (stat.st_uid, stat.st_gid) } else { (0, 0) },
        size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {}", path.display(), crate::client::reason(&error)))
}
