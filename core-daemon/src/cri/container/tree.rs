//! What an image's layers make together, and copies of parts of it. Nothing of it is mounted where a path leads to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use rung_sys::beneath::{self, Root};
use rung_sys::mount::{self, Change, FileSystem};
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;
use rung_sys::xattr;

use crate::error::{Doing as _, Error, Result};
use crate::snapshots::Mount;

/// Deepest directory that is copied.
const MAX_DEPTH: usize = 256;

/// A read-only snapshot as one tree, mounted nowhere.
pub(super) fn mount_view(mounts: &[Mount]) -> Result<OwnedFd> {
    let [mount] = mounts else {
        return Err(Error::unimplemented(format!("mount a snapshot of {} mounts as a volume", mounts.len())));
    };
    let options = MountOptions::parse(&mount.options);
    let made = mount_words::make(&mount.kind, &mount.source, &options).and_then(|tree| {
        let change = Change { set: mount::attribute::RDONLY, ..Change::default() };
        mount::set_attributes(tree.as_fd(), false, &change).map(|()| tree)
    });
    Ok(made.map_err(io::Error::from)?)
}

/// The layers below a snapshot as one read-only tree, mounted nowhere.
fn mount_read_only(mounts: &[Mount]) -> Result<OwnedFd> {
    let mount = mounts.first().ok_or_else(|| Error::internal("snapshot without a mount"))?;
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<&str> = match (mount.kind.as_str(), lower) {
        ("overlay", Some(lower)) => lower.split(':').collect(),
        _ => vec![&mount.source],
    };
    let system = |error: rung_sys::Error| Error::from(io::Error::from(error));
    let tree = match layers.as_slice() {
        [single] => mount::open_tree_at_path(Path::new(single), false).map_err(system)?,
        several => {
            let overlay = FileSystem::open("overlay").map_err(system)?;
            for layer in several {
                overlay.set("lowerdir+", layer).map_err(system)?;
            }
            overlay.mount(0).map_err(system)?
        }
    };
    let change = Change { set: mount::attribute::RDONLY, ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change).map_err(system)?;
    Ok(tree)
}

/// Copies what the layers below a snapshot have at `path` into the directory `target`, itself included. Where they have
/// no directory there, nothing is copied.
pub(super) fn copy_from_layers(mounts: &[Mount], path: &Path, target: &Path) -> Result<()> {
    let overlay = mounts.first().is_some_and(|mount| mount.kind == "overlay");
    if !overlay {
        // An image without layers has nothing.
        return Ok(());
    }
    let root = Root::from_fd(mount_read_only(mounts)?);
    let source = match root.directory(path) {
        Ok(source) => source,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error).doing(|| format!("open {}", path.display())),
    };
    let target = Root::open(target).and_then(|root| root.directory(Path::new(".")))?;
    let stat = nix::sys::stat::fstat(source.as_fd()).map_err(io::Error::from)?;
    copy_content(source.as_fd(), target.as_fd(), 0).doing(|| format!("copy {}", path.display()))?;
    finish(source.as_fd(), target.as_fd(), OsStr::new("."), OsStr::new("."), &stat)?;
    Ok(())
}

fn copy_content(source: BorrowedFd<'_>, target: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
    }
    for name in beneath::entries(source)? {
        let Some(stat) = beneath::stat(source, &name)? else { continue };
        copy_entry(source, target, &name, &stat, depth)?;
    }
    Ok(())
}

fn copy_entry(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    depth: usize,
) -> io::Result<()> {
    let kind = beneath::file_type(stat);
    let private = Mode::from_bits_truncate(0o600);
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(target, name, Mode::from_bits_truncate(0o700))?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let (from, to) = (openat(source, name, flags, Mode::empty())?, openat(target, name, flags, Mode::empty())?);
            copy_content(from.as_fd(), to.as_fd(), depth + 1)?;
        }
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut from = File::from(openat(source, name, flags, Mode::empty())?);
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut to = File::from(openat(target, name, flags, private)?);
            io::copy(&mut from, &mut to)?;
        }
        SFlag::S_IFLNK => symlinkat(nix::fcntl::readlinkat(source, name)?.as_os_str(), target, name)?,
        // Sockets belong to who made them.
        SFlag::S_IFSOCK => return Ok(()),
        other => mknodat(target, name, other, private, stat.st_rdev)?,
    }
    finish(source, target, name, name, stat)
}

/// Owner, attributes, mode and time, in the order in which one does not undo another.
fn finish(source: BorrowedFd<'_>, target: BorrowedFd<'_>, from: &OsStr, to: &OsStr, stat: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(target, to, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    for name in xattr::list(source, from)? {
        // What an overlay keeps for itself means nothing elsewhere.
        if !name.starts_with(b"trusted.overlay.")
            && let Some(value) = xattr::get(source, from, &name)?
        {
            xattr::set(target, to, &name, &value)?;
        }
    }
    if beneath::file_type(stat) != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode);
        fchmodat(target, to, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    }
    let at = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(target, to, &at, &at, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}
