//! Mounts of a container that come from outside it. Images do not have their content; they have a name.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use rung_sys::mountinfo::{self, Mounted};
use rung_sys::namespace::Namespace;
use rung_sys::process::Pid;

use super::options::{external_mount, mount_name};
use super::wire::Message;
use crate::cgroups::View;
use crate::container::readiness;
use crate::error::{Doing as _, Error, Result};
use crate::init::binds::{self, Behalf};
use crate::init::target;
use crate::plan::InitPlan;
use crate::plan::mounts::MountKind;

/// One of them, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Where it is in the container, as the configuration says it.
    pub destination: PathBuf,
    /// What it shows.
    pub source: PathBuf,
}

/// All that a container of this plan can have. A device or a mask need not be a mount; see [`mounted_at`].
pub fn all(plan: &InitPlan, views: &[View], readiness: &Path) -> Vec<External> {
    let mut list = Vec::new();
    let mut add = |destination: &Path, source: &Path| {
        // criu splits the path, and stumbles over a dot at its end.
        list.push(External { destination: destination.to_owned(), source: source.components().collect() });
    };
    for step in &plan.mounts {
        match &step.kind {
            MountKind::Bind { source } => add(&step.destination, source),
            MountKind::Cgroup => match views {
                [only] if only.name.is_empty() => {
                    let own = plan.namespaces.has(Namespace::Cgroup);
                    add(&step.destination, if own { &only.directory } else { &only.mount });
                }
                views => views.iter().for_each(|view| add(&step.destination.join(&view.name), &view.directory)),
            },
            MountKind::FileSystem { .. } => {}
        }
    }
    for node in plan.devices.iter().flat_map(|devices| &devices.nodes) {
        add(&node.path, &node.path);
    }
    for path in &plan.masked {
        add(path, Path::new("/dev/null"));
    }
    add(Path::new(readiness::DIRECTORY), readiness);
    list
}

/// Tells criu, before it writes images, which mounts of process `pid` it shall only name.
pub fn name_all(mut message: Message, list: &[External], pid: Pid) -> Result<Message> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(path.as_str(), flags, Mode::empty()).doing(|| format!("open {path}"))?;
    let table = table_of(pid)?;
    for external in list {
        let Some(id) = mounted_at(root.as_fd(), &external.destination)? else { continue };
        let Some(mount) = table.iter().find(|mount| mount.id == id) else { continue };
        let is_directory = mount.root != Path::new("/null") || !external.source.ends_with("null");
        if external.source == Path::new("/dev/null") && is_directory && external.destination != external.source {
            // A mask of a directory is an empty file system, which is part of the images.
            continue;
        }
        let point = mount.point.to_str().filter(|point| !point.contains([']', '\n'])).ok_or_else(|| {
            Error::unsupported(format!("criu cannot express the mount point {}", mount.point.display()))
        })?;
        message = external_mount(message, point, &mount_name(&external.destination));
    }
    Ok(message)
}

/// Tells criu, on the way back, what belongs to each name.
pub fn supply_all(message: Message, list: &[External]) -> Result<Message> {
    list.iter().try_fold(message, |message, external| {
        let source = external.source.to_str();
        let source = source.ok_or_else(|| Error::invalid(format!("{} is not UTF-8", external.source.display())))?;
        Ok(external_mount(message, &mount_name(&external.destination), source))
    })
}

/// The number of the mount whose root is at `path` inside `root`; `None` where no mount is.
pub fn mounted_at(root: BorrowedFd<'_>, path: &Path) -> Result<Option<u64>> {
    let place = match target::find(root, path, true) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(None),
        other => other.doing(|| format!("open {} in the container", path.display()))?,
    };
    let id = rung_sys::mount::number_of(place.as_fd())?;
    Ok(is_mount_root(root, path)?.then_some(id))
}

/// Whether the last step to `path` crosses from one mount to another. Links at its end are followed.
fn is_mount_root(root: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
        let Ok(above) = target::find(root, parent, true) else { return Ok(false) };
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
        match openat2(&above, name, how.resolve(ResolveFlag::RESOLVE_NO_XDEV)) {
            Err(Errno::EXDEV) => return Ok(true),
            Err(_) => return Ok(false),
            Ok(found) => match nix::fcntl::readlinkat(&found, "") {
                Ok(text) => path = parent.join(text),
                Err(_) => return Ok(false),
            },
        }
    }
    Ok(false)
}

/// The mounts of a process.
pub fn table_of(pid: Pid) -> Result<Vec<Mounted>> {
    mountinfo::read(&pid.to_string()).doing(|| format!("read /proc/{pid}/mountinfo"))
}

/// Makes the mount points of a root, in a tree that only this process sees.
///
/// What is bound is put there too while the rest is made, for a mount point may be inside it.
pub fn make_mount_points(root: &OwnedFd, plan: &InitPlan) -> Result<()> {
    let mut in_images: Vec<&Path> = Vec::new();
    for step in &plan.mounts {
        if in_images.iter().any(|above| step.destination.starts_with(above)) {
            continue;
        }
        let doing = || format!("make mount point {}", step.destination.display());
        match &step.kind {
            MountKind::Bind { source } => {
                let tree = binds::open_source(step, source, None, Behalf::Own, None).doing(doing)?;
                let make =
                    if target::is_directory(tree.as_fd())? { target::Make::Directory } else { target::Make::File };
                let place = target::find_or_make(root.as_fd(), &step.destination, make).doing(doing)?;
                rung_sys::mount::attach(tree.as_fd(), place.as_fd()).doing(doing)?;
            }
            MountKind::Cgroup => {}
            MountKind::FileSystem { name, .. } => {
                target::find_or_make(root.as_fd(), &step.destination, target::Make::Directory).doing(doing)?;
                if name == "tmpfs" || name == "proc" || name == "sysfs" {
                    // What is in there comes from the images, or from the kernel.
                    in_images.push(&step.destination);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_mounts_are_found() {
        let table = table_of(Pid::this()).unwrap();
        let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let proc = mounted_at(root.as_fd(), Path::new("/proc")).unwrap().unwrap();
        let mount = table.iter().find(|mount| mount.id == proc).unwrap();
        assert_eq!((mount.point.as_path(), mount.kind.as_str()), (Path::new("/proc"), "proc"));
        for no_mount in ["/proc/self", "/proc/self/status", "/no/such/place"] {
            assert_eq!(mounted_at(root.as_fd(), Path::new(no_mount)).unwrap(), None, "{no_mount}");
        }
    }
}
