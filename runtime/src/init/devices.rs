//! Device nodes and the usual links in `/dev`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, major, makedev, minor, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use rung_sys::namespace::Namespace;
use rung_sys::{file, mount};

use super::rootfs::Root;
use super::target::{self, Make};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::plan::InitPlan;
use crate::plan::devices::{Node, NodeKind};

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Makes them, unless `/dev` is the host's.
pub fn set_up(plan: &InitPlan, root: &Root) -> Result<()> {
    let Some(devices) = &plan.devices else { return Ok(()) };
    // Through a link, nodes would be made in a directory of the image's choice.
    let dev = match target::find_without_links(root.as_fd(), Path::new("/dev")) {
        Err(Errno::ENOENT) => target::find_or_make(root.as_fd(), Path::new("/dev"), Make::Directory)?,
        Err(Errno::ELOOP | Errno::ENOTDIR) => {
            return Err(Error::invalid("/dev of the root is a link, which is refused"));
        }
        other => other.doing(|| "open /dev")?,
    };
    let bound = plan.namespaces.has(Namespace::User);
    for node in &devices.nodes {
        let made = match node.path.strip_prefix("/dev") {
            Ok(name) if name.components().count() == 1 => make_node(dev.as_fd(), name, node, bound),
            _ => target::parent_of(root.as_fd(), &node.path)
                .and_then(|(parent, name)| make_node(parent.as_fd(), &name, node, bound)),
        };
        made.doing(|| format!("make device {}", node.path.display()))?;
    }
    for (text, name) in LINKS {
        link(dev.as_fd(), text, name)?;
    }
    // The host's kernel decides whether there is a core to point to.
    if nix::unistd::access("/proc/kcore", nix::unistd::AccessFlags::F_OK).is_ok() {
        link(dev.as_fd(), "/proc/kcore", "core")?;
    }
    relink(dev.as_fd(), "pts/ptmx", "ptmx")
}

fn link(dev: BorrowedFd<'_>, text: &str, name: &str) -> Result<()> {
    match symlinkat(text, dev, name) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("make link /dev/{name}")),
    }
}

fn relink(dev: BorrowedFd<'_>, text: &str, name: &str) -> Result<()> {
    match symlinkat(text, dev, name) {
        Err(Errno::EEXIST) => {
            let removed = nix::unistd::unlinkat(dev, name, nix::unistd::UnlinkatFlags::NoRemoveDir);
            removed.and_then(|()| symlinkat(text, dev, name)).doing(|| format!("replace /dev/{name}"))
        }
        other => other.doing(|| format!("make link /dev/{name}")),
    }
}

fn make_node(directory: BorrowedFd<'_>, name: &Path, node: &Node, bound: bool) -> Result<()> {
    let (kind, number) = match node.kind {
        NodeKind::Character(major, minor) => (SFlag::S_IFCHR, makedev(major.into(), minor.into())),
        NodeKind::Block(major, minor) => (SFlag::S_IFBLK, makedev(major.into(), minor.into())),
        NodeKind::Fifo => (SFlag::S_IFIFO, 0),
    };
    if bound && node.kind != NodeKind::Fifo {
        return bind_node(directory, name, node);
    }
    let mode = Mode::from_bits_truncate(node.mode);
    match mknodat(directory, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EPERM) => return bind_node(directory, name, node),
        Err(Errno::EEXIST) => {
            let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let same_kind = found.st_mode & SFlag::S_IFMT.bits() == kind.bits();
            if !same_kind || (node.kind != NodeKind::Fifo && found.st_rdev != number) {
                return Err(Error::invalid(format!(
                    "something else is there already ({:o}, {}:{})",
                    found.st_mode,
                    major(found.st_rdev),
                    minor(found.st_rdev)
                )));
            }
            return Ok(());
        }
        Err(errno) => return Err(errno.into()),
    }
    if (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        fchownat(directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // Changing the owner may take set-id bits away.
        fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// Where nodes cannot be made (user namespaces, hosts without CAP_MKNOD) the host's own is bound.
fn bind_node(directory: BorrowedFd<'_>, name: &Path, node: &Node) -> Result<()> {
    let source = find_on_host(node)?;
    let place = target::find_or_make_last(directory, name, Make::File)?;
    if target::kind_of(place.as_fd())? == SFlag::S_IFLNK {
        return Err(Error::invalid("a link is there already"));
    }
    let tree = mount::open_tree(source.as_fd(), Path::new(""), false)?;
    Ok(mount::attach(tree.as_fd(), place.as_fd())?)
}

/// The host's node of a device: the one with the container's name for it if that is one, or the one that the kernel names.
fn find_on_host(node: &Node) -> Result<OwnedFd> {
    let (class, kind, (high, low)) = match node.kind {
        NodeKind::Character(major, minor) => ("char", SFlag::S_IFCHR, (major, minor)),
        NodeKind::Block(major, minor) => ("block", SFlag::S_IFBLK, (major, minor)),
        NodeKind::Fifo => return Err(Error::invalid("a FIFO cannot be made here")),
    };
    let is_it = |found: &OwnedFd| {
        fstat(found).is_ok_and(|found| {
            found.st_mode & SFlag::S_IFMT.bits() == kind.bits() && found.st_rdev == makedev(high.into(), low.into())
        })
    };
    let open = |path: &Path| file::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok().filter(is_it);
    let named_by_kernel = || {
        let told = std::fs::read_to_string(format!("/sys/dev/{class}/{high}:{low}/uevent")).ok()?;
        let name = told.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        open(&Path::new("/dev").join(name))
    };
    let missing = || Error::new(Kind::NotFound, format!("the host has no node of {class} device {high}:{low} to show"));
    open(&node.path).or_else(named_by_kernel).ok_or_else(missing)
}

/// Opens `/dev/null` of the container and makes sure that it is the real one, which no link and no file can pass for.
pub fn open_null() -> Result<OwnedFd> {
    let root = super::binds::current_root()?;
    let found = target::find_without_links(root.as_fd(), Path::new("/dev/null")).doing(|| "open /dev/null")?;
    if !is_null(found.as_fd())? {
        return Err(Error::invalid("/dev/null of the container is not the null device"));
    }
    Ok(found)
}

/// Whether a descriptor refers to the null device.
pub fn is_null(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(is_null_device(&fstat(fd)?))
}

/// Whether this is said of the null device.
pub fn is_null_device(found: &FileStat) -> bool {
    let is_device = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    is_device && found.st_rdev == makedev(1, 3)
}

/// Opens an existing null device for reading and writing through a place.
pub fn reopen_null() -> Result<OwnedFd> {
    let root = super::binds::current_root()?;
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(&root, "dev/null", flags, Mode::empty()).doing(|| "open /dev/null")?;
    if !is_null(opened.as_fd())? {
        return Err(Error::invalid("/dev/null of the container is not the null device"));
    }
    Ok(opened)
}
