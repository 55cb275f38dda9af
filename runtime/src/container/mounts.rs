//! Mounts that come to a container, and go, while it runs: crun's `mounts add` and `mounts remove`.
//!
//! What is mounted is made on the host's side, as a tree that is attached nowhere. Then this process goes into the
//! container's mount namespace for the rest of its life and finds the places there, beneath the container's root.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Mount;
use rung_sys::mount::{self, FileSystem, Propagation};
use rung_sys::namespace::{self, Namespace};

use super::Container;
use crate::error::{Doing as _, Error, Result};
use crate::exe;
use crate::init::binds::{self, Behalf};
use crate::init::mounts::{describe, refuse_in_proc};
use crate::init::target::{self, Make};
use crate::plan::ids::IdMaps;
use crate::plan::mounts::{self, Context, MountKind, MountPlan};
use crate::plan::namespaces::NamespacePlan;

/// Adds mounts, written as in a configuration.
pub fn add(container: &Container, list: Vec<Mount>) -> Result<()> {
    let steps = plan(container, list)?;
    let trees = steps.iter().map(|step| make(step).doing(|| describe(step))).collect::<Result<Vec<_>>>()?;
    enter(container)?;
    let root = binds::current_root()?;
    for (step, tree) in steps.iter().zip(&trees) {
        let put = || -> Result<()> {
            let make = if target::is_directory(tree.as_fd())? { Make::Directory } else { Make::File };
            let place = target::find_or_make(root.as_fd(), &step.destination, make)?;
            refuse_in_proc(step, &place)?;
            Ok(mount::attach(tree.as_fd(), place.as_fd())?)
        };
        put().doing(|| describe(step))?;
    }
    Ok(())
}

/// Takes the topmost mount of each destination away.
pub fn remove(container: &Container, list: Vec<Mount>) -> Result<()> {
    enter(container)?;
    let root = binds::current_root()?;
    for destination in list.iter().map(Mount::destination) {
        let away = || -> Result<()> {
            let place = target::find(root.as_fd(), destination, true)?;
            if target::is_directory(place.as_fd())? {
                nix::unistd::fchdir(&place)?;
                return Ok(mount::detach(Path::new("."))?);
            }
            // A file cannot be gone into, and no path of its descriptor holds here: /proc is the container's.
            let (parent, name) = target::parent_of(root.as_fd(), destination)?;
            nix::unistd::fchdir(&parent)?;
            Ok(mount::detach(&name)?)
        };
        away().doing(|| format!("unmount {}", destination.display()))?;
    }
    Ok(())
}

fn plan(container: &Container, list: Vec<Mount>) -> Result<Vec<MountPlan>> {
    let mut spec = container.record.spec()?;
    let namespaces = NamespacePlan::new(spec.linux().as_ref())?;
    let ids = IdMaps::new(spec.linux().as_ref(), &namespaces)?;
    spec.set_mounts(Some(list));
    let (bundle, rootfs) = (container.record.bundle(), container.record.config.rootfs.as_path());
    mounts::plan(&spec, Context { bundle, rootfs, namespaces: &namespaces, ids: ids.as_ref() })
}

/// The tree to attach.
fn make(step: &MountPlan) -> Result<OwnedFd> {
    match &step.kind {
        _ if step.idmap.is_some()
            || step.options.copy_up
            || step.options.copy_symlink
            || step.options.destination_nofollow
            || step.options.remount =>
        {
            Err(Error::unsupported("options: not possible in a container that runs"))
        }
        // Nothing that is mounted in there shall reach the host.
        MountKind::Bind { source } => {
            binds::open_source(step, source, None, Behalf::Own, Some((Propagation::Private, true)))
        }
        MountKind::FileSystem { name, .. } if name == "tmpfs" => {
            let tmpfs = FileSystem::open(name)?;
            tmpfs.set("source", name)?;
            for word in &step.options.superblock {
                tmpfs.set_flag(word)?;
            }
            for word in &step.options.data {
                tmpfs.set_word(word)?;
            }
            let made = tmpfs.mount(step.options.set)?;
            binds::set_attributes(made.as_fd(), &step.options)?;
            Ok(made)
        }
        _ => Err(Error::unsupported("type: only a bind mount or a tmpfs can come to a container that runs")),
    }
}

/// Goes into the mount namespace of the container.
fn enter(container: &Container) -> Result<()> {
    exe::protect()?;
    let path = format!("/proc/{}/ns/mnt", container.pid());
    let namespace = File::open(&path).doing(|| format!("open {path}"))?;
    // Opened by number: were the process gone and its number given away, it would be another container's.
    container.require_alive()?;
    let inode = |path: &str| nix::sys::stat::stat(path).map(|found| found.st_ino);
    if inode(&path)? == inode("/proc/self/ns/mnt")? {
        return Err(Error::invalid("the container has no mount namespace of its own"));
    }
    rung_sys::process::set_dumpable(false)?;
    namespace::enter(namespace.as_fd(), Namespace::Mount.flag()).doing(|| "join the mount namespace")
}
