//! What an image's layers make together, and copies of parts of it. Nothing of it is mounted where a path leads to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rung_sys::beneath::Root;
use rung_sys::mount::{self, Change, FileSystem};
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;

use crate::error::{Doing as _, Error, Result};
use crate::snapshots::{Mount, copy_tree};

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
    copy_tree(source.as_fd(), target.as_fd()).doing(|| format!("copy {}", path.display()))
}
