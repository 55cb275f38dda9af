//! A whole copy of a tree: files with their contents, holes and names, links, devices, owners, attributes and times.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use rung_sys::{beneath, holes, xattr};

/// Copies what is in the directory `from` into the empty directory `to`, and the attributes of `from` itself.
///
/// # Errors
/// What the kernel says.
pub fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    Copy { root: to, links: HashMap::new() }.inside(from, to, Path::new(""))?;
    let here = OsStr::new(".");
    let stat = beneath::stat(from, here)?.ok_or_else(|| io::Error::from(Errno::ENOENT))?;
    attributes(from, to, here, &stat)
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Files of several names: device and inode to the name that is copied.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy<'_> {
    fn inside(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        beneath::check_depth(path)?;
        for name in beneath::entries(from)? {
            let path = path.join(&name);
            let Some(stat) = beneath::stat(from, &name)? else { continue };
            self.one(from, to, &path, &name, &stat)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        name: &OsStr,
        stat: &FileStat,
    ) -> io::Result<()> {
        let kind = beneath::file_type(stat);
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                // The tree that is made is ours alone, and the path has no link in it.
                return Ok(linkat(self.root, first.as_path(), to, name, AtFlags::empty())?);
            }
            self.links.insert(inode, path.to_owned());
        }
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let (source, copy) =
                    (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
                self.inside(source.as_fd(), copy.as_fd(), path)?;
            }
            SFlag::S_IFREG => contents(from, to, name)?,
            SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            special => mknodat(to, name, special, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)?,
        }
        attributes(from, to, name, stat)
    }
}

fn contents(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut source = File::from(openat(from, name, read, Mode::empty())?);
    let mut copy = File::from(openat(to, name, write, Mode::S_IRUSR | Mode::S_IWUSR)?);
    holes::copy(&mut source, &mut copy)
}

/// Owner, attributes, permissions and times, in the order that keeps them.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, stat: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    for key in xattr::list(from, name)? {
        if let Some(value) = xattr::get(from, name, &key)? {
            xattr::set(to, name, &key, &value)?;
        }
    }
    if beneath::file_type(stat) != SFlag::S_IFLNK {
        fchmodat(to, name, Mode::from_bits_truncate(stat.st_mode & 0o7777), FchmodatFlags::FollowSymlink)?;
    }
    let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    Ok(utimensat(to, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}
