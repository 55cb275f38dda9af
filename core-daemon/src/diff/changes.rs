//! What a directory of changes adds to, changes in and removes from the directories below it, by name.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag};
use rung_sys::beneath::{self, Root};

use super::create::is_mounted_on;
use super::lowers::Lowers;
use super::whiteout;
use crate::error::{Doing, Result};

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It, or something in it, is another.
    Modified,
    /// It is gone.
    Deleted,
}

/// The changes of `after`, by path: the upper directory of an overlay over `below`, newest first, where `upper`; else a
/// whole copy of the one directory below. New and empty files at `mounted_on` are none: something was mounted there.
///
/// # Errors
/// What reading the directories fails with.
pub fn changes(after: &Root, below: &[PathBuf], upper: bool, mounted_on: &[&str]) -> Result<Vec<(Change, PathBuf)>> {
    let lowers = Lowers::open(below).doing(|| "open the layers below")?;
    let before = match below {
        [one] if !upper => Some(Root::open(one).doing(|| "open the layer below")?),
        _ => None,
    };
    let mut walk = Walk { lowers, before, upper, mounted_on, found: Vec::new() };
    let top = after.directory(Path::new("")).doing(|| "open the changes")?;
    walk.directory(top.as_fd(), Path::new(""))?;
    walk.found.sort_by(|(_, a), (_, b)| a.cmp(b));
    Ok(walk.found)
}

struct Walk<'a> {
    lowers: Lowers,
    before: Option<Root>,
    upper: bool,
    mounted_on: &'a [&'a str],
    found: Vec<(Change, PathBuf)>,
}

impl Walk<'_> {
    /// Walks a directory, and says whether anything in it has changed.
    fn directory(&mut self, now: BorrowedFd<'_>, path: &Path) -> Result<bool> {
        beneath::check_depth(path)?;
        let mut names: Vec<OsString> = beneath::entries(now).doing(|| format!("list {}", path.display()))?;
        names.sort();
        let mut changed = self.removed(path, &names)?;
        for name in names {
            let path = path.join(&name);
            let Some(stat) = beneath::stat(now, &name)? else { continue };
            changed |= self.one(now, &path, &name, &stat)?;
        }
        Ok(changed)
    }

    fn one(&mut self, within: BorrowedFd<'_>, path: &Path, name: &OsString, stat: &FileStat) -> Result<bool> {
        if self.upper && whiteout::is_whiteout(stat) {
            self.found.push((Change::Deleted, path.to_owned()));
            return Ok(true);
        }
        let was = self.lowers.find(path, false)?.map(|found| found.stat);
        if was.is_none() && is_mounted_on(path, stat, self.mounted_on) {
            return Ok(false);
        }
        let is_directory = |stat: &FileStat| beneath::file_type(stat) == SFlag::S_IFDIR;
        // What is in an upper directory has changed, but for directories on the way to what has, or to a mount.
        let is_same = was.as_ref().is_some_and(|was| (!self.upper || is_directory(stat)) && is_same(was, stat));
        let change = if was.is_some() { Change::Modified } else { Change::Added };
        if !is_directory(stat) {
            if !is_same {
                self.found.push((change, path.to_owned()));
            }
            return Ok(!is_same);
        }
        let place = self.found.len();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let inside = openat(within, name.as_os_str(), flags, Mode::empty()).map_err(std::io::Error::from)?;
        let changed = self.directory(inside.as_fd(), path)?;
        if changed || !is_same {
            self.found.insert(place, (change, path.to_owned()));
        }
        Ok(changed || !is_same)
    }

    /// With a whole copy: what is not in it any more.
    fn removed(&mut self, path: &Path, names: &[OsString]) -> Result<bool> {
        let Some(before) = &self.before else { return Ok(false) };
        let Ok(directory) = before.directory(path) else { return Ok(false) };
        let mut gone = beneath::entries(directory.as_fd())?;
        gone.retain(|name| names.binary_search(name).is_err());
        let any = !gone.is_empty();
        self.found.extend(gone.into_iter().map(|name| (Change::Deleted, path.join(name))));
        Ok(any)
    }
}

fn is_same(was: &FileStat, now: &FileStat) -> bool {
    let shape = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let data = |stat: &FileStat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    shape(was) == shape(now) && (beneath::file_type(now) == SFlag::S_IFDIR || data(was) == data(now))
}
